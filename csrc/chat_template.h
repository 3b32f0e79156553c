/* chat_template.h: conversations to token ids. Layer 6. chat_template.c recognises the template of
 * a file, chat_render.c renders. A template is never executed: its text is searched for the marks
 * of the published ones, each of which is a chat_format here. */
#ifndef LLM_CHAT_TEMPLATE_H
#define LLM_CHAT_TEMPLATE_H

#include "gguf.h"

/* Where a system message goes. */
typedef enum chat_system {
  CHAT_SYSTEM_TURN = 0,   /* a turn of its own, as any other */
  CHAT_SYSTEM_FIRST_USER, /* into the first user's turn */
  CHAT_SYSTEM_LAST_USER,  /* into the last message, if a user's */
  CHAT_SYSTEM_REFUSED
} chat_system;

enum { CHAT_N_ROLES = LLM_ROLE_ASSISTANT + 1 };
extern const char *const chat_role_names[CHAT_N_ROLES];

/* Literals hold control tokens by their text, and these bytes. */
#define CHAT_BOS  "\1"
#define CHAT_EOS  "\2"
#define CHAT_DATE "\3" /* chat_format.date */

/* Short texts stand in it: pointers would have to be moved with the program when it starts. */
typedef struct chat_format {
  llm_template family;
  uint8_t system;               /* chat_system */
  uint8_t opens_answer;         /* 1: open[LLM_ROLE_ASSISTANT] asks for an answer */
  uint8_t has_default_system;   /* 1: default_system, where the first message is not the system's */
  uint8_t alternates;           /* 1: user and assistant take turns, the user first */
  uint8_t thinks;               /* 1: Qwen 3's treatment of <think> */
  uint8_t trims[CHAT_N_ROLES];  /* 1: white space around a text is dropped */
  uint8_t trims_jointly;        /* 1: a system's text and the user's behind it are trimmed as one */
  char begin[2];                /* before the first message */
  char system_end[3];           /* between a system's text in a user's turn and the user's text */
  char close[CHAT_N_ROLES][18]; /* behind a text, by role */
  const char *open[CHAT_N_ROLES]; /* before it; a system's inside a user's turn after what opens
                                     that */
  const char *first_system; /* opens the first message where it is the system's; NULL: as others */
  gguf_string default_system, date; /* in the template's text */
} chat_format;

/* The ids of a message depend on later ones in three cases, where a session must read again:
 * - text between two control tokens is tokenized at once, so where no control token ends a turn
 * (the vocabulary lacks it; Zephyr's line end after EOS) the text that closes it merges with the
 * next;
 * - Mistral v3 moves the system message into the newest question (CHAT_SYSTEM_LAST_USER);
 * - Qwen 3 shows the thoughts of answers behind the last question and drops those before it. */

/* The format of a file's template where `which` is AUTO or its family, else the family's own.
 * AUTO gives plain ChatML where the file's template is unknown. */
chat_format chat_format_of(const llm_model *model, llm_template which);

#endif
