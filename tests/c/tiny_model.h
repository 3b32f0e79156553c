/* tiny_model.h: a seeded random llama in memory, as the bytes of a GGUF file, for the tests of the
 * model and of what stands on it. Any tensor type; parsed from an allocation of its exact size, so
 * that the address sanitizer sees a kernel that reads past the end. */
#ifndef LLM_TEST_TINY_MODEL_H
#define LLM_TEST_TINY_MODEL_H

#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "model.h"
#include "quantize.h"

enum { TINY_PRINTABLE = 94, TINY_VOCAB = TINY_PRINTABLE + 1, TINY_EOS = TINY_PRINTABLE };

typedef struct tiny_shape {
  llm_type type; /* of the matrices */
  int n_layer, n_embd, n_head, n_kv_head, n_ff, n_ctx, untied;
} tiny_shape;

typedef struct tiny_bytes {
  unsigned char *data;
  size_t n, capacity;
} tiny_bytes;

static inline void tiny_put(tiny_bytes *b, const void *data, size_t n) {
  if (b->n + n > b->capacity) b->data = realloc(b->data, b->capacity = 2 * (b->n + n));
  memcpy(b->data + b->n, data, n);
  b->n += n;
}

static inline void tiny_u32(tiny_bytes *b, uint32_t x) { tiny_put(b, &x, sizeof x); }
static inline void tiny_u64(tiny_bytes *b, uint64_t x) { tiny_put(b, &x, sizeof x); }

static inline void tiny_string(tiny_bytes *b, const char *text) {
  tiny_u64(b, strlen(text));
  tiny_put(b, text, strlen(text));
}

static inline void tiny_key(tiny_bytes *b, const char *key, uint32_t value) {
  tiny_string(b, key);
  tiny_u32(b, GGUF_UINT32);
  tiny_u32(b, value);
}

static inline void tiny_text(tiny_bytes *b, const char *key, const char *value) {
  tiny_string(b, key);
  tiny_u32(b, GGUF_STRING);
  tiny_string(b, value);
}

static inline void tiny_array(tiny_bytes *b, const char *key, uint32_t type, uint64_t n) {
  tiny_string(b, key);
  tiny_u32(b, GGUF_ARRAY);
  tiny_u32(b, type);
  tiny_u64(b, n);
}

static inline void tiny_pad(tiny_bytes *b) {
  while (b->n % 32) tiny_put(b, "", 1);
}

static inline float tiny_random(uint64_t *state) { /* uniform in [-1, 1) */
  *state = *state * 6364136223846793005u + 1442695040888963407u;
  return (float)(*state >> 40) * 0x1p-23f - 1;
}

enum { TINY_N_KEYS = 15 };

static inline void tiny_meta(tiny_bytes *b, const tiny_shape *s) {
  float eps = 1e-5f;
  tiny_text(b, "general.architecture", "llama");
  tiny_key(b, "llama.context_length", (uint32_t)s->n_ctx);
  tiny_key(b, "llama.embedding_length", (uint32_t)s->n_embd);
  tiny_key(b, "llama.block_count", (uint32_t)s->n_layer);
  tiny_key(b, "llama.feed_forward_length", (uint32_t)s->n_ff);
  tiny_key(b, "llama.attention.head_count", (uint32_t)s->n_head);
  tiny_key(b, "llama.attention.head_count_kv", (uint32_t)s->n_kv_head);
  tiny_string(b, "llama.attention.layer_norm_rms_epsilon");
  tiny_u32(b, GGUF_FLOAT32);
  tiny_put(b, &eps, sizeof eps);
  tiny_key(b, "llama.vocab_size", TINY_VOCAB);
  tiny_text(b, "tokenizer.ggml.model", "gpt2");
  tiny_text(b, "tokenizer.ggml.pre", "gpt-2");
  tiny_array(b, "tokenizer.ggml.tokens", GGUF_STRING, TINY_VOCAB);
  for (int i = 0; i < TINY_PRINTABLE; i++) tiny_string(b, (char[]){(char)('!' + i), 0});
  tiny_string(b, "<|end|>");
  tiny_array(b, "tokenizer.ggml.token_type", GGUF_INT32, TINY_VOCAB);
  for (int i = 0; i < TINY_VOCAB; i++)
    tiny_u32(b, i == TINY_EOS ? LLM_TOKEN_CONTROL : LLM_TOKEN_NORMAL);
  tiny_array(b, "tokenizer.ggml.merges", GGUF_STRING, 0);
  tiny_key(b, "tokenizer.ggml.eos_token_id", TINY_EOS);
}

/* One tensor: its header entry goes to `head`, its data to `data`. */
static inline void tiny_tensor(tiny_bytes *head, tiny_bytes *data, uint64_t *state, llm_type type,
                               const char *name, int n_out, int n_in) {
  size_t n = (size_t)n_in * (size_t)(n_out ? n_out : 1);
  tiny_string(head, name);
  tiny_u32(head, n_out ? 2 : 1);
  tiny_u64(head, (uint64_t)n_in);
  if (n_out) tiny_u64(head, (uint64_t)n_out);
  if (!n_out) type = LLM_TYPE_F32;
  tiny_u32(head, type);
  tiny_u64(head, data->n);
  float *values = malloc(n * sizeof *values);
  void *packed = malloc(n * sizeof *values);
  for (size_t i = 0; i < n; i++) values[i] = n_out ? 0.3f * tiny_random(state) : 1.0f;
  quantize(type, values, n, packed);
  tiny_put(data, packed, type_row_bytes(type, n));
  tiny_pad(data);
  free(values);
  free(packed);
}

static inline void tiny_layer(tiny_bytes *head, tiny_bytes *data, uint64_t *state,
                              const tiny_shape *s, int layer) {
  int n_kv = s->n_embd / s->n_head * s->n_kv_head;
  const struct {
    const char *suffix;
    int n_out, n_in;
  } list[] = {
      {"attn_norm", 0, s->n_embd},           {"attn_q", s->n_embd, s->n_embd},
      {"attn_k", n_kv, s->n_embd},           {"attn_v", n_kv, s->n_embd},
      {"attn_output", s->n_embd, s->n_embd}, {"ffn_norm", 0, s->n_embd},
      {"ffn_gate", s->n_ff, s->n_embd},      {"ffn_up", s->n_ff, s->n_embd},
      {"ffn_down", s->n_embd, s->n_ff},
  };
  for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
    char name[64];
    snprintf(name, sizeof name, "blk.%d.%s.weight", layer, list[i].suffix);
    tiny_tensor(head, data, state, s->type, name, list[i].n_out, list[i].n_in);
  }
}

/* The file's bytes, in an allocation of exactly *n. */
static inline unsigned char *tiny_file(const tiny_shape *s, size_t *n) {
  tiny_bytes file = {0}, head = {0}, data = {0};
  uint64_t state = 1;
  tiny_put(&file, "GGUF", 4);
  tiny_u32(&file, 3);
  tiny_u64(&file, (uint64_t)(2 + s->untied + 9 * s->n_layer));
  tiny_u64(&file, TINY_N_KEYS);
  tiny_meta(&file, s);
  tiny_tensor(&head, &data, &state, s->type, "token_embd.weight", TINY_VOCAB, s->n_embd);
  for (int i = 0; i < s->n_layer; i++) tiny_layer(&head, &data, &state, s, i);
  tiny_tensor(&head, &data, &state, s->type, "output_norm.weight", 0, s->n_embd);
  if (s->untied) tiny_tensor(&head, &data, &state, s->type, "output.weight", TINY_VOCAB, s->n_embd);
  tiny_put(&file, head.data, head.n);
  tiny_pad(&file);
  tiny_put(&file, data.data, data.n);
  free(head.data);
  free(data.data);
  *n = file.n;
  return realloc(file.data, file.n);
}

typedef struct tiny_model {
  unsigned char *bytes;
  llm_model *model;
} tiny_model;

static inline tiny_model tiny_open(const tiny_shape *s) {
  tiny_model t;
  size_t n;
  llm_error err;
  t.bytes = tiny_file(s, &n);
  if (model_from_span(&t.model, t.bytes, n, "tiny", &err)) {
    fprintf(stderr, "%s\n", err.message);
    abort();
  }
  return t;
}

static inline void tiny_close(tiny_model *t) {
  llm_model_free(t->model);
  free(t->bytes);
}

#endif
