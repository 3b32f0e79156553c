/* vocabulary_sample.h: small vocabularies put together token by token, for the tokenizer tests. */
#ifndef LLM_TEST_VOCABULARY_SAMPLE_H
#define LLM_TEST_VOCABULARY_SAMPLE_H

#include <string.h>

#include "check.h"
#include "llm.h"

enum { SAMPLE_TOKENS = 640, SAMPLE_TEXT = 1 << 17 };

typedef struct vocabulary {
  uint8_t text[SAMPLE_TEXT];
  uint64_t offsets[SAMPLE_TOKENS + 1];
  int32_t types[SAMPLE_TOKENS];
  int64_t n_vocab;
  int32_t merges[2 * SAMPLE_TOKENS], products[SAMPLE_TOKENS];
  int64_t n_merges;
} vocabulary;

/* -1: no such token */
static inline int32_t vocabulary_find(const vocabulary *v, const void *text, size_t n) {
  for (int64_t id = 0; id < v->n_vocab; id++)
    if (v->offsets[id + 1] - v->offsets[id] == n && !memcmp(v->text + v->offsets[id], text, n))
      return (int32_t)id;
  return -1;
}

static inline int32_t vocabulary_add(vocabulary *v, const void *text, size_t n) {
  uint64_t at = v->offsets[v->n_vocab];
  memcpy(v->text + at, text, n);
  v->offsets[v->n_vocab + 1] = at + n;
  v->types[v->n_vocab] = LLM_TOKEN_NORMAL;
  return (int32_t)v->n_vocab++;
}

/* The 256 bytes, id = byte. */
static inline void vocabulary_init(vocabulary *v) {
  memset(v, 0, sizeof *v);
  for (int byte = 0; byte < 256; byte++) vocabulary_add(v, &(uint8_t){(uint8_t)byte}, 1);
}

static inline void vocabulary_pair(vocabulary *v, int32_t left, int32_t right, int32_t product) {
  v->merges[2 * v->n_merges] = left;
  v->merges[2 * v->n_merges + 1] = right;
  v->products[v->n_merges++] = product;
}

/* Merges two tokens into a new one, or into one that other merges make already. -1: too long, or
 * the pair has a merge. */
static inline int32_t vocabulary_merge(vocabulary *v, int32_t left, int32_t right) {
  uint8_t joined[4096];
  size_t n = (size_t)(v->offsets[left + 1] - v->offsets[left]);
  size_t m = (size_t)(v->offsets[right + 1] - v->offsets[right]);
  if (n + m > 256) return -1;
  memcpy(joined, v->text + v->offsets[left], n);
  memcpy(joined + n, v->text + v->offsets[right], m);
  for (int64_t i = 0; i < v->n_merges; i++)
    if (v->merges[2 * i] == left && v->merges[2 * i + 1] == right) return -1;
  int32_t product = vocabulary_find(v, joined, n + m);
  if (product < 0) product = vocabulary_add(v, joined, n + m);
  vocabulary_pair(v, left, right, product);
  return product;
}

static inline llm_bpe_spec vocabulary_spec(const vocabulary *v, const char *pre) {
  return (llm_bpe_spec){pre, v->n_vocab, v->text, v->offsets, v->types, v->n_merges, v->merges};
}

static inline llm_tokenizer *vocabulary_tokenizer(const vocabulary *v, const char *pre) {
  llm_bpe_spec spec = vocabulary_spec(v, pre);
  llm_tokenizer *t = NULL;
  llm_error err;
  llm_status status = llm_tokenizer_new_bpe(&t, &spec, &err);
  CHECK_MSG(status == LLM_OK && t, "%s", err.message);
  return t;
}

#endif
