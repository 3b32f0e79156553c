/* chat_template.c: recognising the chat template of a file. Layer 6. The Jinja text is searched for
 * marks, more of them than llama.cpp asks for, because variants of one family differ in their
 * default system message, in spaces and in what they trim. What is taken over from the text (a
 * default system message, a date) becomes plain text, never a control token. */
#include "chat_template.h"

#include <string.h>

#include "model.h"

enum { MAX_TEMPLATE_BYTES = 64 * 1024 }; /* a longer one is not looked at */

static const char *const family_names[] = {"auto",    "chatml", "llama2", "llama3",
                                           "mistral", "gemma",  "zephyr"};
enum { N_FAMILIES = sizeof family_names / sizeof *family_names };

const char *llm_template_name(llm_template which) {
  return (int)which >= 0 && (int)which < N_FAMILIES ? family_names[which] : NULL;
}

llm_template llm_template_find(const char *name) {
  for (int i = 1; name && i < N_FAMILIES; i++)
    if (!strcmp(name, family_names[i])) return (llm_template)i;
  return LLM_TEMPLATE_AUTO;
}

/* ---- the families, as a caller gets them by name ---- */

static const chat_format chatml = {
    .family = LLM_TEMPLATE_CHATML,
    .begin = "",
    .open = {"<|im_start|>system\n", "<|im_start|>user\n", "<|im_start|>assistant\n"},
    .close = {"<|im_end|>\n", "<|im_end|>\n", "<|im_end|>\n"},
    .answer = "<|im_start|>assistant\n",
};

#define LLAMA3_HEADER(role) "<|start_header_id|>" role "<|end_header_id|>\n\n"

static const chat_format llama3 = {
    .family = LLM_TEMPLATE_LLAMA3,
    .begin = CHAT_BOS,
    .open = {LLAMA3_HEADER("system"), LLAMA3_HEADER("user"), LLAMA3_HEADER("assistant")},
    .close = {"<|eot_id|>", "<|eot_id|>", "<|eot_id|>"},
    .answer = LLAMA3_HEADER("assistant"),
    .trims = {1, 1, 1},
};

static const chat_format *const families[] = {&chatml, &chatml, &chatml, &llama3};

static const chat_format *family_of(llm_template which) {
  int i = (int)which;
  return i >= 0 && i < (int)(sizeof families / sizeof *families) ? families[i] : &chatml;
}

/* ---- searching the text ---- */

/* The first byte of `mark` in s, or NULL. */
static const char *find(gguf_string s, const char *mark) {
  size_t n = strlen(mark);
  for (size_t at = 0; at + n <= s.n_bytes; at++)
    if (s.data[at] == mark[0] && !memcmp(s.data + at, mark, n)) return s.data + at;
  return NULL;
}

static int has(gguf_string s, const char *mark) { return find(s, mark) != NULL; }

static gguf_string from(gguf_string s, const char *at) {
  return (gguf_string){at, s.n_bytes - (size_t)(at - s.data)};
}

/* What stands between two marks, when it is plain text of a Jinja string: no quote, backslash or
 * brace. data is NULL otherwise. */
static gguf_string between(gguf_string s, const char *before, const char *after) {
  gguf_string none = {NULL, 0};
  const char *begin = find(s, before);
  if (!begin) return none;
  gguf_string rest = from(s, begin + strlen(before));
  const char *end = find(rest, after);
  if (!end) return none;
  gguf_string found = {rest.data, (size_t)(end - rest.data)};
  for (size_t i = 0; i < found.n_bytes; i++)
    if (strchr("'\"\\{}", found.data[i])) return none; /* also for a NUL */
  return found;
}

/* ---- the families' marks ---- */

static int recognise_chatml(gguf_string s, chat_format *f) {
  if (!has(s, "<|im_start|>") || !has(s, "<|im_end|>") || has(s, "<|im_sep|>")) return 0;
  *f = chatml;
  /* The line end is a character or Jinja's escape for it. */
  gguf_string text = between(s, "<|im_start|>system\n", "<|im_end|>");
  if (!text.data) text = between(s, "<|im_start|>system\\n", "<|im_end|>");
  f->has_default_system = text.data != NULL;
  f->default_system = text;
  return 1;
}

static int recognise_llama3(gguf_string s, chat_format *f) {
  if (!has(s, "<|start_header_id|>") || !has(s, "<|end_header_id|>") || !has(s, "<|eot_id|>"))
    return 0;
  *f = llama3;
  if (!has(s, "Cutting Knowledge Date: December 2023\\n")) return 1;
  f->first_system = LLAMA3_HEADER("system") "Cutting Knowledge Date: December 2023\n"
                                            "Today Date: " CHAT_DATE "\n\n";
  f->date = between(s, "date_string = \"", "\"");
  f->has_default_system = 1; /* an empty one: the dates stand in any case */
  return f->date.data != NULL;
}

static int recognise(const llm_model *model, chat_format *f) {
  static int (*const tests[])(gguf_string, chat_format *) = {recognise_chatml, recognise_llama3};
  gguf_string s = {"", 0};
  if (gguf_get_string(model->file, "tokenizer.chat_template", 0, &s, NULL)) return 0;
  if (s.n_bytes == 0 || s.n_bytes > MAX_TEMPLATE_BYTES || memchr(s.data, 0, s.n_bytes)) return 0;
  for (size_t i = 0; i < sizeof tests / sizeof *tests; i++)
    if (tests[i](s, f)) return 1;
  return 0;
}

chat_format chat_format_of(const llm_model *model, llm_template which) {
  chat_format f;
  if (recognise(model, &f) && (which == LLM_TEMPLATE_AUTO || which == f.family)) return f;
  return *family_of(which);
}

llm_template llm_model_template(const llm_model *model, int32_t *recognised) {
  chat_format f;
  int known = recognise(model, &f);
  if (recognised) *recognised = known;
  return known ? f.family : LLM_TEMPLATE_CHATML;
}
