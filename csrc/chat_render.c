/* chat_render.c: a conversation to token ids. Layer 6; depends on chat_template's formats. What is
 * rendered is a row of control ids and runs of text; a run, the template's words and the messages'
 * alike, is tokenized at once, so that its ids are those of the whole text. Control ids come from
 * literals only: messages are tokenized with special parsing off. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "chat_template.h"
#include "error.h"
#include "model.h"
#include "unicode.h"

/* Control tokens that literals name; one that the vocabulary lacks stays text. */
static const char control_texts[][20] = {
    "<|im_start|>",      "<|im_end|>",       "<|start_header_id|>",
    "<|end_header_id|>", "<|eot_id|>",       "<start_of_turn>",
    "<end_of_turn>",     "[INST]",           "[/INST]",
    "[SYSTEM_PROMPT]",   "[/SYSTEM_PROMPT]", "<<SYS>>",
    "<</SYS>>",          "<|system|>",       "<|user|>",
    "<|assistant|>",     "<think>",          "</think>"};
enum { N_CONTROLS = sizeof control_texts / sizeof *control_texts };

typedef struct renderer {
  const llm_tokenizer *tokenizer;
  const chat_format *format;
  int32_t controls[N_CONTROLS]; /* -1: not in the vocabulary */
  int32_t *dst;
  size_t capacity, n;
  int begun;  /* 1: BOS stands first already */
  char *text; /* the run that is being collected */
  size_t n_text, text_capacity;
  llm_status status; /* the first failure; nothing is done after it */
  llm_error *err;
} renderer;

/* ---- control ids and runs of text ---- */

/* Tokenizes the run. */
static void flush(renderer *r) {
  if (r->status) return;
  size_t room = r->capacity > r->n ? r->capacity - r->n : 0, needed = 0;
  llm_status status = llm_tokenizer_encode(r->tokenizer, r->text, r->n_text, 0,
                                           room ? r->dst + r->n : NULL, room, &needed, r->err);
  if (status && needed <= room) {
    r->status = status;
    return;
  }
  r->n += needed;
  r->n_text = 0;
}

/* id < 0: the file names none. */
static void put_id(renderer *r, int32_t id) {
  if (id < 0) return;
  flush(r);
  if (r->n < r->capacity) r->dst[r->n] = id;
  r->n++;
}

static void put_text(renderer *r, const char *text, size_t n_bytes) {
  if (r->status || n_bytes == 0) return;
  if (n_bytes > r->text_capacity - r->n_text) {
    size_t capacity = 2 * (r->n_text + n_bytes);
    char *grown = n_bytes < SIZE_MAX / 4 ? realloc(r->text, capacity) : NULL;
    if (!grown) {
      r->status = error_nomem(r->err, capacity, "the text of a conversation");
      return;
    }
    r->text = grown;
    r->text_capacity = capacity;
  }
  memcpy(r->text + r->n_text, text, n_bytes);
  r->n_text += n_bytes;
}

/* Which control token the literal begins with; -1: none that the vocabulary has. */
static int control_at(const renderer *r, const char *literal) {
  for (int i = 0; i < N_CONTROLS; i++)
    if (r->controls[i] >= 0 && !strncmp(literal, control_texts[i], strlen(control_texts[i])))
      return i;
  return -1;
}

static void put_literal(renderer *r, const char *literal) {
  while (*literal) {
    int control = control_at(r, literal);
    if (control >= 0) {
      put_id(r, r->controls[control]);
      literal += strlen(control_texts[control]);
      continue;
    }
    if (*literal == *CHAT_BOS) {
      if (!r->begun || r->n > 1 || r->n_text) put_id(r, llm_tokenizer_bos(r->tokenizer));
    } else if (*literal == *CHAT_EOS) {
      put_id(r, llm_tokenizer_eos(r->tokenizer));
    } else if (*literal == *CHAT_DATE) {
      put_text(r, r->format->date.data, r->format->date.n_bytes);
    } else {
      put_text(r, literal, 1);
    }
    literal++;
  }
}

/* ---- white space ---- */

/* White space as Python's str.strip has it, which is what Jinja's trim is. */
static int is_python_space(uint32_t c) {
  return unicode_classify(c) == UNICODE_SPACE || (c >= 0x1c && c <= 0x1f);
}

typedef enum sides { LEFT = 1, RIGHT = 2, BOTH = LEFT | RIGHT } sides;

static gguf_string trimmed(gguf_string s, sides which) {
  size_t begin = s.n_bytes, end = 0, step;
  for (size_t at = 0; at < s.n_bytes; at += step) {
    uint32_t c;
    step = utf8_decode((const uint8_t *)s.data + at, s.n_bytes - at, &c);
    if (is_python_space(c)) continue;
    if (begin == s.n_bytes) begin = at;
    end = at + step;
  }
  if (begin == s.n_bytes) return (gguf_string){s.data, 0};
  if (!(which & LEFT)) begin = 0;
  if (!(which & RIGHT)) end = s.n_bytes;
  return (gguf_string){s.data + begin, end - begin};
}

static gguf_string stripped_of_lines(gguf_string s, sides which) {
  while ((which & LEFT) && s.n_bytes && s.data[0] == '\n') s.data++, s.n_bytes--;
  while ((which & RIGHT) && s.n_bytes && s.data[s.n_bytes - 1] == '\n') s.n_bytes--;
  return s;
}

static void put_string(renderer *r, gguf_string s) { put_text(r, s.data, s.n_bytes); }

static gguf_string text_of(const llm_message *m) { return (gguf_string){m->text, m->n_bytes}; }

/* ---- Qwen 3's thoughts ---- */

/* The first or last place of `mark` in s; NULL: none. */
static const char *find_mark(gguf_string s, const char *mark, int last) {
  size_t n = strlen(mark);
  const char *found = NULL;
  for (size_t at = 0; at + n <= s.n_bytes && (last || !found); at++)
    if (!memcmp(s.data + at, mark, n)) found = s.data + at;
  return found;
}

/* What stands before `mark`, or from behind it on; all of s where there is none. */
static gguf_string before(gguf_string s, const char *mark) {
  const char *at = find_mark(s, mark, 0);
  return at ? (gguf_string){s.data, (size_t)(at - s.data)} : s;
}

static gguf_string behind(gguf_string s, const char *mark) {
  const char *at = find_mark(s, mark, 1);
  if (!at) return s;
  at += strlen(mark);
  return (gguf_string){at, s.n_bytes - (size_t)(at - s.data)};
}

/* A message of the user's that is no tool's response, as the template tells them apart. */
static int is_question(const llm_message *m) {
  static const char head[] = "<tool_response>", tail[] = "</tool_response>";
  size_t n_head = sizeof head - 1, n_tail = sizeof tail - 1, n = m->n_bytes;
  if (m->role != LLM_ROLE_USER) return 0;
  return n < n_tail || memcmp(m->text, head, n_head) || memcmp(m->text + n - n_tail, tail, n_tail);
}

/* An answer as the template has it: its thoughts are shown behind the last question only. */
static void put_thinking_answer(renderer *r, gguf_string text, int behind_question, int is_last) {
  gguf_string thoughts = {NULL, 0}, said = text;
  if (find_mark(text, "</think>", 0)) {
    thoughts = stripped_of_lines(before(text, "</think>"), RIGHT);
    thoughts = stripped_of_lines(behind(thoughts, "<think>"), LEFT);
    said = stripped_of_lines(behind(text, "</think>"), LEFT);
  }
  if (behind_question && (is_last || thoughts.n_bytes)) {
    put_literal(r, "<think>\n");
    put_string(r, stripped_of_lines(thoughts, BOTH));
    put_literal(r, "\n</think>\n\n");
    said = stripped_of_lines(said, LEFT);
  }
  put_string(r, said);
}

/* ---- messages ---- */

static void put_system_turn(renderer *r, gguf_string text, int is_first) {
  const chat_format *f = r->format;
  if (f->trims[LLM_ROLE_SYSTEM]) text = trimmed(text, BOTH);
  put_literal(r, is_first && f->first_system ? f->first_system : f->open[LLM_ROLE_SYSTEM]);
  put_string(r, text);
  put_literal(r, f->close[LLM_ROLE_SYSTEM]);
}

/* `system` stands inside the turn; NULL: none does. */
static void put_user_turn(renderer *r, gguf_string text, const llm_message *system) {
  const chat_format *f = r->format;
  put_literal(r, f->open[LLM_ROLE_USER]);
  int joint = system && f->trims_jointly;
  if (f->trims[LLM_ROLE_USER]) text = trimmed(text, joint ? RIGHT : BOTH);
  if (system) {
    put_literal(r, f->open[LLM_ROLE_SYSTEM]);
    put_string(r, text_of(system));
    put_literal(r, f->close[LLM_ROLE_SYSTEM]);
    if (!joint || text.n_bytes) put_literal(r, f->system_end);
  }
  put_string(r, text);
  put_literal(r, f->close[LLM_ROLE_USER]);
}

static void put_answer(renderer *r, const llm_message *m, int behind_question, int is_last) {
  const chat_format *f = r->format;
  gguf_string text = text_of(m);
  if (f->trims[LLM_ROLE_ASSISTANT]) text = trimmed(text, BOTH);
  put_literal(r, f->open[LLM_ROLE_ASSISTANT]);
  if (f->thinks)
    put_thinking_answer(r, text, behind_question, is_last);
  else
    put_string(r, text);
  put_literal(r, f->close[LLM_ROLE_ASSISTANT]);
}

/* Which message's turn takes in a system message that opens the conversation; n_messages: none. */
static size_t host_of_system(const chat_format *f, const llm_message *messages, size_t n_messages) {
  if (f->system == CHAT_SYSTEM_TURN || messages[0].role != LLM_ROLE_SYSTEM) return n_messages;
  if (f->system == CHAT_SYSTEM_FIRST_USER) return 1;
  return messages[n_messages - 1].role == LLM_ROLE_USER ? n_messages - 1 : n_messages;
}

static void put_conversation(renderer *r, const llm_message *messages, size_t n_messages,
                             int32_t add_generation_prompt) {
  const chat_format *f = r->format;
  size_t host = host_of_system(f, messages, n_messages), n_asked = n_messages; /* behind the last */
  while (n_asked && !is_question(&messages[n_asked - 1])) n_asked--;
  if (!n_asked) n_asked = n_messages;
  put_literal(r, f->begin);
  if (f->has_default_system && messages[0].role != LLM_ROLE_SYSTEM)
    put_system_turn(r, f->default_system, 1);
  for (size_t i = 0; i < n_messages; i++) {
    const llm_message *m = &messages[i];
    switch (m->role) {
    case LLM_ROLE_SYSTEM:
      if (f->system == CHAT_SYSTEM_TURN) put_system_turn(r, text_of(m), i == 0);
      break;
    case LLM_ROLE_USER: put_user_turn(r, text_of(m), i == host ? &messages[0] : NULL); break;
    case LLM_ROLE_ASSISTANT: put_answer(r, m, i >= n_asked, i + 1 == n_messages); break;
    }
  }
  if (add_generation_prompt && f->opens_answer) put_literal(r, f->open[LLM_ROLE_ASSISTANT]);
}

/* ---- the calls ---- */

/* What templates with alternating turns refuse; those that take a system message in also where it
 * would be lost. */
static llm_status check_turns(const chat_format *f, const llm_message *messages, size_t n_messages,
                              llm_error *err) {
  int has_system = messages[0].role == LLM_ROLE_SYSTEM;
  if (has_system && f->system == CHAT_SYSTEM_REFUSED)
    return error_set(err, LLM_ERR_ARG, "the chat template (%s) takes no system message",
                     llm_template_name(f->family));
  for (size_t i = (size_t)has_system; i < n_messages; i++) {
    llm_role expected = (i - (size_t)has_system) % 2 ? LLM_ROLE_ASSISTANT : LLM_ROLE_USER;
    if (messages[i].role != expected)
      return error_set(err, LLM_ERR_ARG,
                       "message %zu is the %s's, expected the %s's: the chat template (%s) wants "
                       "turns that alternate, the user's first",
                       i, chat_role_names[messages[i].role], chat_role_names[expected],
                       llm_template_name(f->family));
  }
  if (has_system && n_messages == 1)
    return error_set(err, LLM_ERR_ARG,
                     "a system message alone: the chat template (%s) puts it into a user's",
                     llm_template_name(f->family));
  return LLM_OK;
}

static llm_status check_messages(const llm_message *messages, size_t n_messages, llm_error *err) {
  if (n_messages == 0) return error_set(err, LLM_ERR_ARG, "the conversation has no messages");
  for (size_t i = 0; i < n_messages; i++) {
    const llm_message *m = &messages[i];
    int role = (int)m->role;
    if (role < 0 || role >= CHAT_N_ROLES)
      return error_set(err, LLM_ERR_ARG, "message %zu: role %d, expected 0 to %d", i, role,
                       CHAT_N_ROLES - 1);
    if (!m->text && m->n_bytes)
      return error_set(err, LLM_ERR_ARG, "message %zu: the text is NULL", i);
  }
  return LLM_OK;
}

/* -1: the vocabulary has no such control token. */
static int32_t find_control(const llm_tokenizer *t, const char *text) {
  int32_t id = llm_tokenizer_find(t, text, strlen(text));
  return llm_tokenizer_token_type(t, id) == LLM_TOKEN_CONTROL ? id : -1;
}

llm_status llm_chat_render(const llm_model *model, llm_template which, const llm_message *messages,
                           size_t n_messages, int32_t add_generation_prompt, int32_t *dst,
                           size_t capacity, size_t *n_needed, llm_error *err) {
  *n_needed = 0;
  if (!llm_template_name(which))
    return error_set(err, LLM_ERR_ARG, "llm_chat_render: template %d is unknown", (int)which);
  if (!dst && capacity) return error_set(err, LLM_ERR_ARG, "llm_chat_render: dst is NULL");
  chat_format format = chat_format_of(model, which);
  llm_status status = check_messages(messages, n_messages, err);
  if (!status && format.alternates) status = check_turns(&format, messages, n_messages, err);
  if (status) return status;

  renderer r = {.tokenizer = llm_model_tokenizer(model),
                .format = &format,
                .dst = dst,
                .capacity = capacity,
                .err = err};
  for (int i = 0; i < N_CONTROLS; i++) r.controls[i] = find_control(r.tokenizer, control_texts[i]);
  if (llm_tokenizer_add_bos(r.tokenizer)) {
    put_id(&r, llm_tokenizer_bos(r.tokenizer));
    r.begun = 1;
  }
  put_conversation(&r, messages, n_messages, add_generation_prompt);
  flush(&r);
  free(r.text);
  if (r.status) return r.status;
  *n_needed = r.n;
  if (r.n > capacity)
    return error_set(err, LLM_ERR_ARG, "the conversation has %zu tokens, the buffer holds %zu", r.n,
                     capacity);
  return error_clear(err);
}
