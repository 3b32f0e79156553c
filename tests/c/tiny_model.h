/* tiny_model.h: a seeded random model in memory, as the bytes of a GGUF file, for the tests of the
 * model and of what stands on it. Any architecture and tensor type; parsed from an allocation of
 * its exact size, so that the address sanitizer sees a kernel that reads past the end. */
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
  const char *architecture; /* "llama" when NULL */
} tiny_shape;

typedef struct tiny_bytes {
  unsigned char *data;
  size_t n, capacity;
} tiny_bytes;

typedef struct tiny_file {
  const tiny_shape *s;
  const char *architecture;
  tiny_bytes keys, tensors, data;
  uint64_t n_keys, n_tensors, state;
} tiny_file;

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

static inline void tiny_pad(tiny_bytes *b) {
  while (b->n % 32) tiny_put(b, "", 1);
}

static inline float tiny_random(uint64_t *state) { /* uniform in [-1, 1) */
  *state = *state * 6364136223846793005u + 1442695040888963407u;
  return (float)(*state >> 40) * 0x1p-23f - 1;
}

/* ---- keys; one that begins with a point is the architecture's ---- */

static inline void tiny_key(tiny_file *f, const char *key, uint32_t type) {
  char name[128];
  snprintf(name, sizeof name, "%s%s", key[0] == '.' ? f->architecture : "", key);
  tiny_string(&f->keys, name);
  tiny_u32(&f->keys, type);
  f->n_keys++;
}

static inline void tiny_int(tiny_file *f, const char *key, int value) {
  tiny_key(f, key, GGUF_UINT32);
  tiny_u32(&f->keys, (uint32_t)value);
}

static inline void tiny_float(tiny_file *f, const char *key, float value) {
  tiny_key(f, key, GGUF_FLOAT32);
  tiny_put(&f->keys, &value, sizeof value);
}

static inline void tiny_text(tiny_file *f, const char *key, const char *value) {
  tiny_key(f, key, GGUF_STRING);
  tiny_string(&f->keys, value);
}

static inline void tiny_array(tiny_file *f, const char *key, uint32_t type, uint64_t n) {
  tiny_key(f, key, GGUF_ARRAY);
  tiny_u32(&f->keys, type);
  tiny_u64(&f->keys, n);
}

static inline int tiny_is(const tiny_file *f, const char *name) {
  return strcmp(f->architecture, name) == 0;
}

static inline void tiny_hyperparameters(tiny_file *f) {
  const tiny_shape *s = f->s;
  tiny_text(f, "general.architecture", f->architecture);
  tiny_int(f, ".context_length", s->n_ctx);
  tiny_int(f, ".embedding_length", s->n_embd);
  tiny_int(f, ".block_count", s->n_layer);
  tiny_int(f, ".feed_forward_length", s->n_ff);
  tiny_int(f, ".attention.head_count", s->n_head);
  tiny_int(f, ".attention.head_count_kv", s->n_kv_head);
  tiny_float(
      f, tiny_is(f, "gpt2") ? ".attention.layer_norm_epsilon" : ".attention.layer_norm_rms_epsilon",
      1e-5f);
  if (tiny_is(f, "gemma3")) tiny_int(f, ".attention.sliding_window", 7);
  if (tiny_is(f, "gemma3")) tiny_int(f, ".attention.sliding_window_pattern", 2);
  tiny_int(f, ".vocab_size", TINY_VOCAB);
}

static inline void tiny_vocabulary(tiny_file *f) {
  tiny_text(f, "tokenizer.ggml.model", "gpt2");
  tiny_text(f, "tokenizer.ggml.pre", "gpt-2");
  tiny_array(f, "tokenizer.ggml.tokens", GGUF_STRING, TINY_VOCAB);
  for (int i = 0; i < TINY_PRINTABLE; i++) tiny_string(&f->keys, (char[]){(char)('!' + i), 0});
  tiny_string(&f->keys, "<|end|>");
  tiny_array(f, "tokenizer.ggml.token_type", GGUF_INT32, TINY_VOCAB);
  for (int i = 0; i < TINY_VOCAB; i++)
    tiny_u32(&f->keys, i == TINY_EOS ? LLM_TOKEN_CONTROL : LLM_TOKEN_NORMAL);
  tiny_array(f, "tokenizer.ggml.merges", GGUF_STRING, 0);
  tiny_int(f, "tokenizer.ggml.eos_token_id", TINY_EOS);
}

/* ---- tensors ---- */

/* Random values about `centre`; n_out 0 for a vector. */
static inline void tiny_tensor(tiny_file *f, const char *name, const char *part, int n_out,
                               int n_in, float centre) {
  size_t n = (size_t)n_in * (size_t)(n_out ? n_out : 1);
  llm_type type = n_out ? f->s->type : LLM_TYPE_F32;
  char full[96];
  snprintf(full, sizeof full, "%s.%s", name, part);
  tiny_string(&f->tensors, full);
  tiny_u32(&f->tensors, n_out ? 2 : 1);
  tiny_u64(&f->tensors, (uint64_t)n_in);
  if (n_out) tiny_u64(&f->tensors, (uint64_t)n_out);
  tiny_u32(&f->tensors, type);
  tiny_u64(&f->tensors, f->data.n);
  f->n_tensors++;
  float *values = malloc(n * sizeof *values);
  void *packed = malloc(n * sizeof *values);
  for (size_t i = 0; i < n; i++) values[i] = centre + 0.3f * tiny_random(&f->state);
  quantize(type, values, n, packed);
  tiny_put(&f->data, packed, type_row_bytes(type, n));
  tiny_pad(&f->data);
  free(values);
  free(packed);
}

static inline void tiny_norm(tiny_file *f, const char *name, int n) {
  tiny_tensor(f, name, "weight", 0, n, 1);
  if (tiny_is(f, "gpt2")) tiny_tensor(f, name, "bias", 0, n, 0);
}

static inline void tiny_linear(tiny_file *f, const char *name, int n_out, int n_in, int bias) {
  tiny_tensor(f, name, "weight", n_out, n_in, 0);
  if (bias) tiny_tensor(f, name, "bias", 0, n_out, 0);
}

static inline void tiny_layer(tiny_file *f, int layer) {
  const tiny_shape *s = f->s;
  int d = s->n_embd / s->n_head, n_kv = d * s->n_kv_head;
  int gpt2 = tiny_is(f, "gpt2"), gemma3 = tiny_is(f, "gemma3");
  const struct {
    const char *name;
    int n_out, n_in, present, bias;
  } list[] = {
      {"attn_norm", 0, s->n_embd, 1, 0},
      {"attn_qkv", s->n_embd + 2 * n_kv, s->n_embd, gpt2, 1},
      {"attn_q", s->n_embd, s->n_embd, !gpt2, tiny_is(f, "qwen2")},
      {"attn_k", n_kv, s->n_embd, !gpt2, tiny_is(f, "qwen2")},
      {"attn_v", n_kv, s->n_embd, !gpt2, tiny_is(f, "qwen2")},
      {"attn_q_norm", 0, d, gemma3 || tiny_is(f, "qwen3"), 0},
      {"attn_k_norm", 0, d, gemma3 || tiny_is(f, "qwen3"), 0},
      {"attn_output", s->n_embd, s->n_embd, 1, gpt2},
      {"post_attention_norm", 0, s->n_embd, gemma3, 0},
      {"ffn_norm", 0, s->n_embd, 1, 0},
      {"ffn_gate", s->n_ff, s->n_embd, !gpt2, 0},
      {"ffn_up", s->n_ff, s->n_embd, 1, gpt2},
      {"ffn_down", s->n_embd, s->n_ff, 1, gpt2},
      {"post_ffw_norm", 0, s->n_embd, gemma3, 0},
  };
  for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
    char name[64];
    snprintf(name, sizeof name, "blk.%d.%s", layer, list[i].name);
    if (!list[i].present) continue;
    if (list[i].n_out)
      tiny_linear(f, name, list[i].n_out, list[i].n_in, list[i].bias);
    else
      tiny_norm(f, name, list[i].n_in);
  }
}

static inline void tiny_tensors(tiny_file *f) {
  const tiny_shape *s = f->s;
  tiny_linear(f, "token_embd", TINY_VOCAB, s->n_embd, 0);
  if (tiny_is(f, "gpt2")) tiny_linear(f, "position_embd", s->n_ctx, s->n_embd, 0);
  for (int i = 0; i < s->n_layer; i++) tiny_layer(f, i);
  tiny_norm(f, "output_norm", s->n_embd);
  if (s->untied) tiny_linear(f, "output", TINY_VOCAB, s->n_embd, 0);
}

/* The file's bytes, in an allocation of exactly *n; the keys of `more` behind its own. */
static inline unsigned char *tiny_write_with(const tiny_shape *s, const tiny_file *more,
                                             size_t *n) {
  tiny_file f = {.s = s, .architecture = s->architecture ? s->architecture : "llama", .state = 1};
  tiny_bytes out = {0};
  tiny_hyperparameters(&f);
  tiny_vocabulary(&f);
  if (more->n_keys) tiny_put(&f.keys, more->keys.data, more->keys.n);
  f.n_keys += more->n_keys;
  tiny_tensors(&f);
  tiny_put(&out, "GGUF", 4);
  tiny_u32(&out, 3);
  tiny_u64(&out, f.n_tensors);
  tiny_u64(&out, f.n_keys);
  tiny_put(&out, f.keys.data, f.keys.n);
  tiny_put(&out, f.tensors.data, f.tensors.n);
  tiny_pad(&out);
  tiny_put(&out, f.data.data, f.data.n);
  free(f.keys.data);
  free(f.tensors.data);
  free(f.data.data);
  *n = out.n;
  return realloc(out.data, out.n);
}

static inline unsigned char *tiny_write(const tiny_shape *s, size_t *n) {
  return tiny_write_with(s, &(tiny_file){0}, n);
}

typedef struct tiny_model {
  unsigned char *bytes;
  llm_model *model;
} tiny_model;

static inline tiny_model tiny_open(const tiny_shape *s) {
  tiny_model t;
  size_t n;
  llm_error err;
  t.bytes = tiny_write(s, &n);
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
