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

static const char *const role_names[CHAT_N_ROLES] = {"system", "user", "assistant"};

/* Control tokens that literals name; one that the vocabulary lacks stays text. */
static const char *const control_texts[] = {
    "<|im_start|>",    "<|im_end|>",   "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "[INST]",       "<end_of_turn>",       "[/INST]",           "<|system|>",
    "<|user|>",        "<|assistant|>"};
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
  size_t *ends;                    /* of messages; may be NULL */
  size_t n_ended, n_open, at_mark; /* ends[n_ended - n_open ..] wait for the run, which had at_mark
                                      bytes when the last of them ended */
  llm_status status;               /* the first failure; nothing is done after it */
  llm_error *err;
} renderer;

/* ---- control ids and runs of text ---- */

/* Tokenizes the run. A message that ended at the run's end takes it; one that ended inside leaves
 * it to the next. */
static void flush(renderer *r) {
  if (r->status) return;
  size_t room = r->capacity > r->n ? r->capacity - r->n : 0, needed = 0, before = r->n;
  int32_t *dst = room ? r->dst + r->n : NULL;
  llm_status status =
      llm_tokenizer_encode(r->tokenizer, r->text, r->n_text, 0, dst, room, &needed, r->err);
  if (status && needed <= room) {
    r->status = status;
    return;
  }
  r->n += needed;
  for (; r->n_open; r->n_open--)
    r->ends[r->n_ended - r->n_open] = r->at_mark == r->n_text ? r->n : before;
  r->n_text = 0;
}

static void put_ids(renderer *r, const int32_t *ids, size_t n_ids) {
  flush(r);
  for (size_t i = 0; i < n_ids; i++, r->n++)
    if (r->n < r->capacity) r->dst[r->n] = ids[i];
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

static void put_special(renderer *r, int32_t id) {
  if (id >= 0) put_ids(r, &id, 1);
}

static void put_literal(renderer *r, const char *literal) {
  while (*literal) {
    int control = control_at(r, literal);
    if (control >= 0) {
      put_ids(r, &r->controls[control], 1);
      literal += strlen(control_texts[control]);
      continue;
    }
    if (*literal == *CHAT_BOS) {
      if (!r->begun || r->n > 1 || r->n_text) put_special(r, llm_tokenizer_bos(r->tokenizer));
    } else if (*literal == *CHAT_EOS) {
      put_special(r, llm_tokenizer_eos(r->tokenizer));
    } else if (*literal == *CHAT_DATE) {
      put_text(r, r->format->date.data, r->format->date.n_bytes);
    } else {
      put_text(r, literal, 1);
    }
    literal++;
  }
}

static void end_message(renderer *r) {
  if (!r->ends) return;
  r->n_ended++;
  r->n_open++;
  r->at_mark = r->n_text;
}

/* ---- messages ---- */

/* White space as Python's str.strip has it, which is what Jinja's trim is. */
static int is_python_space(uint32_t c) {
  return unicode_classify(c) == UNICODE_SPACE || (c >= 0x1c && c <= 0x1f);
}

static gguf_string trimmed(gguf_string s) {
  size_t begin = s.n_bytes, end = 0, step;
  for (size_t at = 0; at < s.n_bytes; at += step) {
    uint32_t c;
    step = utf8_decode((const uint8_t *)s.data + at, s.n_bytes - at, &c);
    if (is_python_space(c)) continue;
    if (begin == s.n_bytes) begin = at;
    end = at + step;
  }
  return end ? (gguf_string){s.data + begin, end - begin} : (gguf_string){s.data, 0};
}

static void put_message(renderer *r, const chat_message *m, int is_first) {
  const chat_format *f = r->format;
  llm_role role = m->said.role;
  if (m->ids) {
    put_literal(r, f->answer);
    put_ids(r, m->ids, m->n_ids);
    put_literal(r, f->close[role] + strspn(f->close[role], " "));
    return;
  }
  gguf_string text = {m->said.text, m->said.n_bytes};
  if (f->trims[role]) text = trimmed(text);
  int is_first_system = is_first && role == LLM_ROLE_SYSTEM && f->first_system;
  put_literal(r, is_first_system ? f->first_system : f->open[role]);
  put_text(r, text.data, text.n_bytes);
  put_literal(r, f->close[role]);
}

static void put_conversation(renderer *r, const chat_message *messages, size_t n_messages,
                             int32_t add_generation_prompt) {
  const chat_format *f = r->format;
  put_literal(r, f->begin);
  if (f->has_default_system && messages[0].said.role != LLM_ROLE_SYSTEM) {
    gguf_string text = f->default_system;
    put_message(r, &(chat_message){{LLM_ROLE_SYSTEM, text.data, text.n_bytes}, NULL, 0}, 1);
  }
  for (size_t i = 0; i < n_messages; i++) {
    put_message(r, &messages[i], i == 0);
    end_message(r);
  }
  if (add_generation_prompt) put_literal(r, f->answer);
}

/* ---- the calls ---- */

static llm_status check_messages(const chat_message *messages, size_t n_messages, llm_error *err) {
  if (n_messages == 0) return error_set(err, LLM_ERR_ARG, "the conversation has no messages");
  for (size_t i = 0; i < n_messages; i++) {
    const chat_message *m = &messages[i];
    int role = (int)m->said.role;
    if (role < 0 || role >= CHAT_N_ROLES)
      return error_set(err, LLM_ERR_ARG, "message %zu: role %d, expected 0 to %d", i, role,
                       CHAT_N_ROLES - 1);
    if (!m->said.text && m->said.n_bytes)
      return error_set(err, LLM_ERR_ARG, "message %zu: the text is NULL", i);
    if (m->ids && role != LLM_ROLE_ASSISTANT)
      return error_set(err, LLM_ERR_ARG, "message %zu: ids for the %s, expected the assistant", i,
                       role_names[role]);
  }
  return LLM_OK;
}

/* -1: the vocabulary has no such control token. */
static int32_t find_control(const llm_tokenizer *t, const char *text) {
  int32_t id = llm_tokenizer_find(t, text, strlen(text));
  return llm_tokenizer_token_type(t, id) == LLM_TOKEN_CONTROL ? id : -1;
}

llm_status chat_render(const llm_model *model, const chat_format *format,
                       const chat_message *messages, size_t n_messages,
                       int32_t add_generation_prompt, int32_t *dst, size_t capacity,
                       size_t *n_needed, size_t *ends, llm_error *err) {
  *n_needed = 0;
  if (!dst && capacity) return error_set(err, LLM_ERR_ARG, "chat_render: dst is NULL");
  llm_status status = check_messages(messages, n_messages, err);
  if (status) return status;
  renderer r = {.tokenizer = llm_model_tokenizer(model),
                .format = format,
                .dst = dst,
                .capacity = capacity,
                .ends = ends,
                .err = err};
  for (int i = 0; i < N_CONTROLS; i++) r.controls[i] = find_control(r.tokenizer, control_texts[i]);
  if (llm_tokenizer_add_bos(r.tokenizer)) {
    put_special(&r, llm_tokenizer_bos(r.tokenizer));
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

llm_status llm_chat_render(const llm_model *model, llm_template which, const llm_message *messages,
                           size_t n_messages, int32_t add_generation_prompt, int32_t *dst,
                           size_t capacity, size_t *n_needed, llm_error *err) {
  *n_needed = 0;
  if (!llm_template_name(which))
    return error_set(err, LLM_ERR_ARG, "llm_chat_render: template %d is unknown", (int)which);
  chat_message *copies = calloc(n_messages ? n_messages : 1, sizeof *copies);
  if (!copies) return error_nomem(err, n_messages * sizeof *copies, "a conversation");
  for (size_t i = 0; i < n_messages; i++) copies[i].said = messages[i];
  chat_format format = chat_format_of(model, which);
  llm_status status = chat_render(model, &format, copies, n_messages, add_generation_prompt, dst,
                                  capacity, n_needed, NULL, err);
  free(copies);
  return status;
}
