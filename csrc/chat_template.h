/* chat_template.h: conversations to token ids. Layer 6. chat_template.c recognises the template of
 * a file, chat_render.c renders. A template is never executed: its text is searched for the marks
 * of the published ones, each of which is a chat_format here. */
#ifndef LLM_CHAT_TEMPLATE_H
#define LLM_CHAT_TEMPLATE_H

#include "gguf.h"

typedef enum chat_system {                            /* what becomes of a system message */
                           CHAT_SYSTEM_TURN = 0,      /* a turn as any other */
                           CHAT_SYSTEM_IN_FIRST_USER, /* inside the first user's turn */
                           CHAT_SYSTEM_IN_LAST_USER,  /* inside the last message, if a user's */
                           CHAT_SYSTEM_REFUSED
} chat_system;

enum { CHAT_N_ROLES = LLM_ROLE_ASSISTANT + 1 };

/* Literals hold control tokens by their text and these bytes. */
#define CHAT_BOS  "\1"
#define CHAT_EOS  "\2"
#define CHAT_DATE "\3" /* chat_format.date */

typedef struct chat_format {
  llm_template family;
  const char *begin;               /* before the first message */
  const char *open[CHAT_N_ROLES];  /* by role, around the text of a message */
  const char *close[CHAT_N_ROLES]; /* a system message inside a user's turn has them after open */
  const char *first_system;        /* instead of open where the first message is the system's */
  const char *answer;              /* asks for an answer */
  chat_system system;
  int has_default_system; /* 1: default_system where the first message is not the system's */
  int alternates;         /* 1: user and assistant must take turns */
  int trims[CHAT_N_ROLES], trims_end_only; /* white space around a text is dropped (only behind
                                              the first user's, where it follows a system's) */
  int thinks;                              /* 1: Qwen 3's treatment of <think> */
  gguf_string default_system, date;        /* in the template's text, or literals */
} chat_format;

/* The format of a file's template, or of a family that the caller names; LLM_TEMPLATE_AUTO gives
 * plain ChatML where the file's is unknown. */
chat_format chat_format_of(const llm_model *model, llm_template which);

/* A message whose text may be replaced by ids: an answer as the model wrote it. */
typedef struct chat_message {
  llm_message said;
  const int32_t *ids; /* (n_ids) or NULL; without the token that ended generation */
  size_t n_ids;
} chat_message;

/* llm_chat_render with answers as ids, and where each message ends: ends[i] (n_messages, may be
 * NULL) counts the ids up to the end of message i. An answer given as ids stands behind what asked
 * for it and is followed by what closes it, so a context that holds a rendering with
 * add_generation_prompt and then the answer's ids holds the beginning of the next rendering.
 * Messages 0..i render the same whatever follows them, except:
 * - text between control tokens is tokenized at once: where no control token ends a turn, the text
 *   that closes it counts to the next message and is merged with its opening;
 * - CHAT_SYSTEM_IN_LAST_USER moves the system text into the newest turn;
 * - Qwen 3 drops the thoughts of answers before the last question (not of answers given as ids). */
llm_status chat_render(const llm_model *model, const chat_format *format,
                       const chat_message *messages, size_t n_messages,
                       int32_t add_generation_prompt, int32_t *dst, size_t capacity,
                       size_t *n_needed, size_t *ends, llm_error *err);

#endif
