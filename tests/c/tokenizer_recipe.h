/* tokenizer_recipe.h: a file that holds a tokenizer, key by key, for the loaders' tests. */
#ifndef LLM_TEST_TOKENIZER_RECIPE_H
#define LLM_TEST_TOKENIZER_RECIPE_H

#include "gguf_sample.h"
#include "tokenizer.h"

enum { MAX_ENTRIES = 272 };

typedef struct recipe {
  const char *model, *pre; /* NULL: the key is left out */
  const char *tokens[MAX_ENTRIES], *merges[MAX_ENTRIES];
  uint64_t n_tokens, n_merges, n_types, n_scores; /* of types and scores, 0: left out */
  int32_t types[MAX_ENTRIES];
  uint32_t tokens_type, types_type, scores_type;
  int64_t bos, eos, eot, eom, unknown, padding; /* -1: left out */
  int add_bos, add_eos, add_space, removes;     /* -1: left out */
  float scores[MAX_ENTRIES];
} recipe;

static inline void put_id(sample *s, const char *key, int64_t id, uint64_t *n_keys) {
  if (id < 0) return;
  put_key(s, key, GGUF_UINT32), put_u32(s, (uint32_t)id);
  ++*n_keys;
}

static inline void put_text(sample *s, const char *key, const char *text, uint64_t *n_keys) {
  if (!text) return;
  put_key(s, key, GGUF_STRING), put_string(s, text);
  ++*n_keys;
}

static inline void put_strings(sample *s, const char *key, uint32_t type,
                               const char *const *strings, uint64_t n, uint64_t *n_keys) {
  put_array(s, key, type, n);
  for (uint64_t i = 0; i < n; i++)
    if (type == GGUF_STRING)
      put_string(s, strings[i]);
    else
      put_u32(s, 0);
  ++*n_keys;
}

static inline void put_flag(sample *s, const char *key, int flag, uint64_t *n_keys) {
  if (flag < 0) return;
  put_key(s, key, GGUF_BOOL), put(s, &(uint8_t){(uint8_t)flag}, 1);
  ++*n_keys;
}

static inline opened open_recipe(const recipe *r) {
  sample *s = calloc(1, sizeof *s);
  uint64_t n_keys = 0;
  put(s, "GGUF", 4), put_u32(s, 3), put_u64(s, 0), put_u64(s, 0);
  put_text(s, "tokenizer.ggml.model", r->model, &n_keys);
  put_text(s, "tokenizer.ggml.pre", r->pre, &n_keys);
  if (r->tokens_type)
    put_strings(s, "tokenizer.ggml.tokens", r->tokens_type, r->tokens, r->n_tokens, &n_keys);
  if (r->n_merges < MAX_ENTRIES)
    put_strings(s, "tokenizer.ggml.merges", GGUF_STRING, r->merges, r->n_merges, &n_keys);
  if (r->n_types) {
    put_array(s, "tokenizer.ggml.token_type", r->types_type, r->n_types), n_keys++;
    for (uint64_t i = 0; i < r->n_types; i++)
      put(s, &r->types[i], r->types_type == GGUF_INT16 ? 2 : 4);
  }
  if (r->n_scores) {
    put_array(s, "tokenizer.ggml.scores", r->scores_type, r->n_scores), n_keys++;
    for (uint64_t i = 0; i < r->n_scores; i++) put(s, &r->scores[i], 4);
  }
  put_id(s, "tokenizer.ggml.bos_token_id", r->bos, &n_keys);
  put_id(s, "tokenizer.ggml.eos_token_id", r->eos, &n_keys);
  put_id(s, "tokenizer.ggml.eot_token_id", r->eot, &n_keys);
  put_id(s, "tokenizer.ggml.eom_token_id", r->eom, &n_keys);
  put_id(s, "tokenizer.ggml.unknown_token_id", r->unknown, &n_keys);
  put_id(s, "tokenizer.ggml.padding_token_id", r->padding, &n_keys);
  put_flag(s, "tokenizer.ggml.add_bos_token", r->add_bos, &n_keys);
  put_flag(s, "tokenizer.ggml.add_eos_token", r->add_eos, &n_keys);
  put_flag(s, "tokenizer.ggml.add_space_prefix", r->add_space, &n_keys);
  put_flag(s, "tokenizer.ggml.remove_extra_whitespaces", r->removes, &n_keys);
  memcpy(s->bytes + 16, &n_keys, 8);
  put_padding(s, 32);
  opened o = open_bytes(s->bytes, s->n);
  CHECK_MSG(o.status == LLM_OK, "%s", o.err.message);
  free(s);
  return o;
}

static inline llm_tokenizer *accept(const recipe *r) {
  opened o = open_recipe(r);
  llm_tokenizer *t = NULL;
  llm_error err;
  llm_status status = tokenizer_from_gguf(&t, o.g, &err);
  CHECK_MSG(status == LLM_OK && t, "%s", err.message);
  close_bytes(&o); /* a tokenizer outlives its file */
  return t;
}

static inline void refuse(const recipe *r, llm_status want, const char *fragment) {
  opened o = open_recipe(r);
  llm_tokenizer *t = (llm_tokenizer *)&o;
  llm_error err;
  llm_status status = tokenizer_from_gguf(&t, o.g, &err);
  CHECK_MSG(status == want && err.status == want && !t, "%s: status %d", fragment, status);
  CHECK_MSG(strncmp(err.message, "x.gguf: ", 8) == 0 && strstr(err.message, fragment),
            "\"%s\", expected \"%s\"", err.message, fragment);
  CHECK(tokenizer_from_gguf(&t, o.g, NULL) == want);
  close_bytes(&o);
}

static inline void expect_text(const llm_tokenizer *t, int32_t id, const char *want) {
  char got[64];
  size_t n = 0;
  CHECK(llm_tokenizer_decode(t, &id, 1, 1, got, sizeof got, &n, NULL) == LLM_OK);
  CHECK_MSG(n == strlen(want) && !memcmp(got, want, n), "%d is \"%.*s\"", (int)id, (int)n, got);
}

#endif
