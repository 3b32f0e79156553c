/* model.c: from an index of keys and tensors to a checked model. Layer 3; depends on gguf,
 * tokenizer, quant, mapfile. Which tensors are expected follows from the architecture and the
 * hyperparameters (model_config.c): each must be there with exactly its shape, and a tensor that is
 * not expected is refused by name. GGUF spellings of tensors appear in this file alone. */
#include "model.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "quant.h"
#include "tokenizer.h"

enum { MAX_VOCAB = 1 << 24 };

/* ---- tensors ---- */

enum { TENSOR_NAME = 64 };

typedef struct binder {
  llm_model *model;
  unsigned char *bound; /* one flag per tensor of the file */
  llm_error *err;
  llm_status status; /* the first failure; later calls do nothing */
  char prefix[32];   /* "blk.7." inside a layer */
} binder;

static void binder_fail(binder *b, llm_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static void binder_fail(binder *b, llm_status status, const char *format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  b->status = error_set(b->err, status, "%s: %s", gguf_where(b->model->file), text);
}

static const llm_tensor *find(const binder *b, const char *what, const char *part,
                              char name[TENSOR_NAME]) {
  snprintf(name, TENSOR_NAME, "%s%s.%s", b->prefix, what, part);
  return gguf_find_tensor(b->model->file, name);
}

/* Finds the tensor "<prefix><what>.<part>", checks its shape (n_out, n_in), n_out 0 for a vector,
 * and marks it as used. */
static const llm_tensor *bind_tensor(binder *b, const char *what, const char *part, int64_t n_out,
                                     int64_t n_in) {
  char name[TENSOR_NAME];
  if (b->status) return NULL;
  const llm_tensor *t = find(b, what, part, name);
  if (!t) {
    binder_fail(b, LLM_ERR_FORMAT, "tensor %s is missing", name);
    return NULL;
  }
  int32_t n_dims = n_out ? 2 : 1;
  int64_t rows = n_out ? n_out : 1;
  if (t->n_dims != n_dims || t->dims[0] != n_in || t->dims[1] != rows) {
    binder_fail(b, LLM_ERR_FORMAT,
                "tensor %s has shape [%" PRId64 ", %" PRId64 "] (%d dims), expected [%" PRId64
                ", %" PRId64 "] (%d dims)",
                name, t->dims[0], t->dims[1], (int)t->n_dims, n_in, rows, (int)n_dims);
    return NULL;
  }
  b->bound[t - gguf_tensor(b->model->file, 0)] = 1;
  b->model->n_params += (uint64_t)n_in * (uint64_t)rows;
  return t;
}

static void bind_vector(binder *b, const float **out, const char *what, const char *part,
                        int64_t n) {
  const llm_tensor *t = bind_tensor(b, what, part, 0, n);
  if (!t) return;
  if (t->type != LLM_TYPE_F32) {
    binder_fail(b, LLM_ERR_UNSUPPORTED, "tensor %s is %s: vectors must be F32", t->name,
                llm_type_describe(t->type).name);
    return;
  }
  *out = t->data;
}

static int wanted(const binder *b, const char *what, const char *part, presence p) {
  char name[TENSOR_NAME];
  return p == REQUIRED || (p == OPTIONAL && find(b, what, part, name));
}

static void bind_linear(binder *b, weight *out, const char *what, int64_t n_out, int64_t n_in,
                        presence bias) {
  const llm_tensor *t = bind_tensor(b, what, "weight", n_out, n_in);
  if (t) *out = (weight){t->type, (size_t)n_in, (size_t)n_out, t->data, NULL};
  if (wanted(b, what, "bias", bias)) bind_vector(b, &out->bias, what, "bias", n_out);
}

static void bind_norm(binder *b, norm_weight *out, const char *what, int64_t n) {
  bind_vector(b, &out->weight, what, "weight", n);
  if (b->model->arch->norm == NORM_LAYER) bind_vector(b, &out->bias, what, "bias", n);
}

/* n rows of a matrix that has a bias, as a matrix of their own. */
static weight rows_of(const weight *w, size_t first, size_t n) {
  const char *data = (const char *)w->data + first * type_row_bytes(w->type, w->n_in);
  return (weight){w->type, w->n_in, n, data, w->bias + first};
}

static void bind_qkv(binder *b, layer_weights *l, int64_t n_q, int64_t n_kv, int64_t n_embd) {
  const architecture *a = b->model->arch;
  if (!a->fused_qkv) {
    bind_linear(b, &l->wq, "attn_q", n_q, n_embd, a->qkv_bias);
    bind_linear(b, &l->wk, "attn_k", n_kv, n_embd, a->qkv_bias);
    bind_linear(b, &l->wv, "attn_v", n_kv, n_embd, a->qkv_bias);
    return;
  }
  weight qkv = {0};
  bind_linear(b, &qkv, "attn_qkv", n_q + 2 * n_kv, n_embd, REQUIRED);
  if (b->status) return;
  l->wq = rows_of(&qkv, 0, (size_t)n_q);
  l->wk = rows_of(&qkv, (size_t)n_q, (size_t)n_kv);
  l->wv = rows_of(&qkv, (size_t)(n_q + n_kv), (size_t)n_kv);
}

static void bind_layer(binder *b, int64_t index, layer_weights *l) {
  const llm_config *c = &b->model->config;
  const architecture *a = b->model->arch;
  int64_t n_q = c->n_head * c->head_dim, n_kv = c->n_kv_head * c->head_dim;
  snprintf(b->prefix, sizeof b->prefix, "blk.%" PRId64 ".", index);
  bind_norm(b, &l->attn_norm, "attn_norm", c->n_embd);
  bind_qkv(b, l, n_q, n_kv, c->n_embd);
  if (a->qk_norm) {
    bind_vector(b, &l->q_norm, "attn_q_norm", "weight", c->head_dim);
    bind_vector(b, &l->k_norm, "attn_k_norm", "weight", c->head_dim);
  }
  bind_linear(b, &l->wo, "attn_output", c->n_embd, n_q, a->bias);
  if (a->post_norms) bind_norm(b, &l->attn_post_norm, "post_attention_norm", c->n_embd);
  bind_norm(b, &l->ffn_norm, "ffn_norm", c->n_embd);
  if (a->ffn != FFN_GELU) bind_linear(b, &l->w_gate, "ffn_gate", c->n_ff, c->n_embd, a->bias);
  bind_linear(b, &l->w_up, "ffn_up", c->n_ff, c->n_embd, a->bias);
  bind_linear(b, &l->w_down, "ffn_down", c->n_embd, c->n_ff, a->bias);
  if (a->post_norms) bind_norm(b, &l->ffn_post_norm, "post_ffw_norm", c->n_embd);
  int64_t period = b->model->window_period;
  l->local = period && index % period < period - 1;
}

static void bind_rope_factors(binder *b) {
  llm_model *m = b->model;
  int64_t n = m->config.rope_dim / 2;
  if (!wanted(b, "rope_freqs", "weight", m->arch->rope_factors)) return;
  bind_vector(b, &m->rope_factors, "rope_freqs", "weight", n);
  for (int64_t i = 0; i < n && !b->status; i++)
    if (!(m->rope_factors[i] >= 1e-6f && m->rope_factors[i] <= 1e6f))
      binder_fail(b, LLM_ERR_FORMAT, "rope_freqs.weight has %g, expected 1e-6 to 1e6",
                  (double)m->rope_factors[i]);
}

static void bind_all(binder *b) {
  llm_model *m = b->model;
  llm_config *c = &m->config;
  bind_linear(b, &m->tok_embd, "token_embd", c->n_vocab, c->n_embd, ABSENT);
  if (m->arch->rope == ROPE_NONE)
    bind_linear(b, &m->pos_embd, "position_embd", c->n_ctx_train, c->n_embd, ABSENT);
  bind_rope_factors(b);
  bind_norm(b, &m->out_norm, "output_norm", c->n_embd);
  c->tied_output = !gguf_find_tensor(m->file, "output.weight");
  if (c->tied_output)
    m->output = m->tok_embd;
  else
    bind_linear(b, &m->output, "output", c->n_vocab, c->n_embd, ABSENT);
  for (int64_t i = 0; i < c->n_layer && !b->status; i++) bind_layer(b, i, &m->layers[i]);
  for (size_t i = 0; i < gguf_n_tensors(m->file) && !b->status; i++)
    if (!b->bound[i])
      binder_fail(b, LLM_ERR_UNSUPPORTED,
                  "tensor %s has no place in a %s model of %" PRId64 " layers",
                  gguf_tensor(m->file, i)->name, m->arch->name, c->n_layer);
}

static llm_status read_vocab_size(llm_model *m, llm_error *err) {
  const llm_tensor *t = gguf_find_tensor(m->file, "token_embd.weight");
  int64_t n_tokens = llm_tokenizer_n_vocab(m->tokenizer), declared = n_tokens;
  llm_status status = model_get_int(m, "vocab_size", 0, 1, MAX_VOCAB, &declared, err);
  if (status) return status;
  if (declared != n_tokens || (t && t->dims[1] != n_tokens))
    return error_set(err, LLM_ERR_FORMAT,
                     "%s: the tokenizer has %" PRId64 " tokens, %s.vocab_size says %" PRId64
                     ", token_embd.weight has %" PRId64 " rows: they must be equal",
                     gguf_where(m->file), n_tokens, m->arch->name, declared, t ? t->dims[1] : 0);
  m->config.n_vocab = n_tokens;
  return LLM_OK;
}

static llm_status read_weights(llm_model *m, llm_error *err) {
  size_t n_tensors = gguf_n_tensors(m->file);
  /* Each layer needs nine tensors or more: no allocation beyond what the file backs. */
  if ((uint64_t)m->config.n_layer * 9 > n_tensors)
    return error_set(err, LLM_ERR_FORMAT,
                     "%s: %" PRId64 " layers need at least %" PRId64 " tensors, the file has %zu",
                     gguf_where(m->file), m->config.n_layer, m->config.n_layer * 9, n_tensors);
  m->layers = calloc((size_t)m->config.n_layer, sizeof *m->layers);
  unsigned char *bound = calloc(n_tensors, 1);
  binder b = {m, bound, err, LLM_OK, ""};
  if (!m->layers || !bound)
    b.status = error_nomem(err, (uint64_t)m->config.n_layer * sizeof *m->layers, "the layer table");
  else
    bind_all(&b);
  free(bound);
  return b.status;
}

/* ---- construction ---- */

llm_status model_from_span(llm_model **out, const void *span, size_t n_bytes, const char *where,
                           llm_error *err) {
  *out = NULL;
  llm_model *m = calloc(1, sizeof *m);
  if (!m) return error_nomem(err, sizeof *m, "a model");
  llm_status status = gguf_parse(&m->file, span, n_bytes, where, err);
  if (!status) status = model_read_config(m, err);
  if (!status) status = tokenizer_from_gguf(&m->tokenizer, m->file, err);
  if (!status) status = read_vocab_size(m, err);
  if (!status) status = read_weights(m, err);
  if (status) {
    llm_model_free(m);
    return status;
  }
  *out = m;
  return error_clear(err);
}

llm_status llm_model_open(llm_model **out, const char *path, llm_error *err) {
  *out = NULL;
  mapfile map;
  llm_status status = mapfile_open(&map, path, err);
  if (status) return status;
  status = model_from_span(out, map.data, map.n_bytes, path, err);
  if (status)
    mapfile_close(&map);
  else
    (*out)->map = map;
  return status;
}

void llm_model_free(llm_model *model) {
  if (!model) return;
  llm_tokenizer_free(model->tokenizer);
  gguf_free(model->file);
  free(model->layers);
  mapfile_close(&model->map);
  free(model);
}

/* ---- reading ---- */

const llm_config *llm_model_config(const llm_model *model) { return &model->config; }
uint64_t llm_model_n_params(const llm_model *model) { return model->n_params; }
uint64_t llm_model_file_bytes(const llm_model *model) { return model->map.n_bytes; }
const llm_tokenizer *llm_model_tokenizer(const llm_model *model) { return model->tokenizer; }
size_t llm_model_n_tensors(const llm_model *model) { return gguf_n_tensors(model->file); }
size_t llm_model_n_meta(const llm_model *model) { return gguf_n_meta(model->file); }

llm_status llm_model_tensor(const llm_model *model, size_t index, llm_tensor *out, llm_error *err) {
  size_t n = gguf_n_tensors(model->file);
  if (index >= n)
    return error_set(err, LLM_ERR_ARG, "tensor index %zu of a file with %zu tensors", index, n);
  *out = *gguf_tensor(model->file, index);
  return error_clear(err);
}

llm_status llm_model_meta(const llm_model *model, size_t index, llm_meta *out, llm_error *err) {
  size_t n = gguf_n_meta(model->file);
  if (index >= n)
    return error_set(err, LLM_ERR_ARG, "metadata index %zu of a file with %zu keys", index, n);
  *out = *gguf_meta(model->file, index);
  return error_clear(err);
}
