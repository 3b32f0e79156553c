/* model.c: from an index of keys and tensors to a checked model. Layer 3; depends on gguf,
 * tokenizer, quant, mapfile. The list of expected tensors is computed from the hyperparameters:
 * each must be there with exactly its shape, and a tensor that is not on the list is refused by
 * name. GGUF spellings of hyperparameters and tensors appear in this file alone. */
#include "model.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "quant.h"
#include "tokenizer.h"

/* Caps far above any published model: they bound every later product in 64 bits. */
enum {
  MAX_LAYER = 1024,
  MAX_EMBD = 1 << 20,
  MAX_HEAD = 1 << 14,
  MAX_FF = 1 << 24,
  MAX_VOCAB = 1 << 24,
};

/* ---- hyperparameters ---- */

static llm_status arch_int(const gguf *g, const char *suffix, int required, int64_t min,
                           int64_t max, int64_t *out, llm_error *err) {
  char key[128];
  snprintf(key, sizeof key, "llama.%s", suffix);
  return gguf_get_int(g, key, required, min, max, out, err);
}

static llm_status read_architecture(const gguf *g, llm_config *config, llm_error *err) {
  gguf_string name;
  llm_status status = gguf_get_string(g, "general.architecture", 1, &name, err);
  if (status) return status;
  if (!gguf_string_is(name, "llama"))
    return error_set(err, LLM_ERR_UNSUPPORTED,
                     "%s: architecture \"%.*s\" is not one that this version runs (llama)",
                     gguf_where(g), gguf_quoted(name.n_bytes), name.data);
  strcpy(config->architecture, "llama");
  return LLM_OK;
}

/* Variants of the llama layout that would silently give wrong text if ignored. */
static llm_status refuse_variants(const gguf *g, llm_error *err) {
  int64_t n_expert = 0;
  llm_status status = arch_int(g, "expert_count", 0, 0, INT32_MAX, &n_expert, err);
  if (status) return status;
  if (n_expert > 0)
    return error_set(err, LLM_ERR_UNSUPPORTED,
                     "%s: llama.expert_count is %" PRId64 ": mixtures of experts do not run yet",
                     gguf_where(g), n_expert);
  gguf_string scaling = {"none", 4};
  status = gguf_get_string(g, "llama.rope.scaling.type", 0, &scaling, err);
  if (status) return status;
  if (!gguf_string_is(scaling, "none"))
    return error_set(err, LLM_ERR_UNSUPPORTED,
                     "%s: llama.rope.scaling.type \"%.*s\" does not run yet (none)", gguf_where(g),
                     gguf_quoted(scaling.n_bytes), scaling.data);
  return LLM_OK;
}

static llm_status read_head_dim(const gguf *g, llm_config *c, llm_error *err) {
  if (c->n_head % c->n_kv_head)
    return error_set(err, LLM_ERR_FORMAT,
                     "%s: %" PRId64 " heads cannot share %" PRId64 " key/value heads evenly",
                     gguf_where(g), c->n_head, c->n_kv_head);
  int64_t value_length;
  c->head_dim = c->n_embd / c->n_head;
  llm_status status = arch_int(g, "attention.key_length", 0, 1, MAX_EMBD, &c->head_dim, err);
  value_length = c->head_dim;
  if (!status) status = arch_int(g, "attention.value_length", 0, 1, MAX_EMBD, &value_length, err);
  c->rope_dim = c->head_dim;
  if (!status) status = arch_int(g, "rope.dimension_count", 0, 1, MAX_EMBD, &c->rope_dim, err);
  if (status) return status;
  if (value_length != c->head_dim)
    return error_set(err, LLM_ERR_UNSUPPORTED,
                     "%s: keys of %" PRId64 " and values of %" PRId64 " elements do not run yet",
                     gguf_where(g), c->head_dim, value_length);
  if (c->head_dim < 1 || c->head_dim % 2 || c->rope_dim % 2 || c->rope_dim > c->head_dim)
    return error_set(err, LLM_ERR_FORMAT,
                     "%s: head_dim %" PRId64 " with %" PRId64
                     " rotated elements: both must be even, the second at most the first",
                     gguf_where(g), c->head_dim, c->rope_dim);
  if (c->n_head * c->head_dim > MAX_EMBD)
    return error_set(err, LLM_ERR_FORMAT, "%s: %" PRId64 " heads of %" PRId64 " elements: too wide",
                     gguf_where(g), c->n_head, c->head_dim);
  return LLM_OK;
}

static llm_status read_config(const gguf *g, llm_config *c, llm_error *err) {
  memset(c, 0, sizeof *c);
  llm_status status = read_architecture(g, c, err);
  if (!status) status = refuse_variants(g, err);
  if (!status) status = arch_int(g, "context_length", 1, 1, INT32_MAX, &c->n_ctx_train, err);
  if (!status) status = arch_int(g, "embedding_length", 1, 1, MAX_EMBD, &c->n_embd, err);
  if (!status) status = arch_int(g, "block_count", 1, 1, MAX_LAYER, &c->n_layer, err);
  if (!status) status = arch_int(g, "feed_forward_length", 1, 1, MAX_FF, &c->n_ff, err);
  if (!status) status = arch_int(g, "attention.head_count", 1, 1, MAX_HEAD, &c->n_head, err);
  c->n_kv_head = c->n_head;
  if (!status) status = arch_int(g, "attention.head_count_kv", 0, 1, MAX_HEAD, &c->n_kv_head, err);
  if (!status) status = read_head_dim(g, c, err);
  c->rope_theta = 10000.0f;
  if (!status) status = gguf_get_float(g, "llama.rope.freq_base", 0, 1, 1e12, &c->rope_theta, err);
  if (!status)
    status =
        gguf_get_float(g, "llama.attention.layer_norm_rms_epsilon", 1, 1e-12, 1, &c->norm_eps, err);
  return status;
}

/* ---- tensors ---- */

typedef struct binder {
  llm_model *model;
  unsigned char *bound; /* one flag per tensor of the file */
  llm_error *err;
  llm_status status; /* the first failure; later calls do nothing */
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

/* Finds `name`, checks its shape (n_out, n_in), n_out 0 for a vector, and marks it as used. */
static const llm_tensor *bind_tensor(binder *b, const char *name, int64_t n_out, int64_t n_in) {
  if (b->status) return NULL;
  const llm_tensor *t = gguf_find_tensor(b->model->file, name);
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

static void bind_matrix(binder *b, weight *out, const char *name, int64_t n_out, int64_t n_in) {
  const llm_tensor *t = bind_tensor(b, name, n_out, n_in);
  if (t) *out = (weight){t->type, (size_t)n_in, (size_t)n_out, t->data};
}

static void bind_vector(binder *b, const float **out, const char *name, int64_t n) {
  const llm_tensor *t = bind_tensor(b, name, 0, n);
  if (!t) return;
  if (t->type != LLM_TYPE_F32) {
    binder_fail(b, LLM_ERR_UNSUPPORTED, "tensor %s is %s: vectors must be F32", name,
                llm_type_describe(t->type).name);
    return;
  }
  *out = t->data;
}

static void bind_layer(binder *b, int64_t index, layer_weights *l) {
  const llm_config *c = &b->model->config;
  int64_t n_q = c->n_head * c->head_dim, n_kv = c->n_kv_head * c->head_dim;
  const struct {
    const char *suffix;
    weight *matrix;
    const float **vector;
    int64_t n_out, n_in;
  } expected[] = {
      {"attn_norm", NULL, &l->attn_norm, 0, c->n_embd},
      {"attn_q", &l->wq, NULL, n_q, c->n_embd},
      {"attn_k", &l->wk, NULL, n_kv, c->n_embd},
      {"attn_v", &l->wv, NULL, n_kv, c->n_embd},
      {"attn_output", &l->wo, NULL, c->n_embd, n_q},
      {"ffn_norm", NULL, &l->ffn_norm, 0, c->n_embd},
      {"ffn_gate", &l->w_gate, NULL, c->n_ff, c->n_embd},
      {"ffn_up", &l->w_up, NULL, c->n_ff, c->n_embd},
      {"ffn_down", &l->w_down, NULL, c->n_embd, c->n_ff},
  };
  for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
    char name[64];
    snprintf(name, sizeof name, "blk.%" PRId64 ".%s.weight", index, expected[i].suffix);
    if (expected[i].matrix)
      bind_matrix(b, expected[i].matrix, name, expected[i].n_out, expected[i].n_in);
    else
      bind_vector(b, expected[i].vector, name, expected[i].n_in);
  }
}

static void bind_all(binder *b) {
  llm_model *m = b->model;
  llm_config *c = &m->config;
  bind_matrix(b, &m->tok_embd, "token_embd.weight", c->n_vocab, c->n_embd);
  bind_vector(b, &m->out_norm, "output_norm.weight", c->n_embd);
  c->tied_output = !gguf_find_tensor(m->file, "output.weight");
  if (c->tied_output)
    m->output = m->tok_embd;
  else
    bind_matrix(b, &m->output, "output.weight", c->n_vocab, c->n_embd);
  for (int64_t i = 0; i < c->n_layer && !b->status; i++) bind_layer(b, i, &m->layers[i]);
  for (size_t i = 0; i < gguf_n_tensors(m->file) && !b->status; i++)
    if (!b->bound[i])
      binder_fail(b, LLM_ERR_UNSUPPORTED,
                  "tensor %s has no place in a llama model of %" PRId64 " layers",
                  gguf_tensor(m->file, i)->name, c->n_layer);
}

static llm_status read_vocab_size(llm_model *m, llm_error *err) {
  const llm_tensor *t = gguf_find_tensor(m->file, "token_embd.weight");
  int64_t n_tokens = llm_tokenizer_n_vocab(m->tokenizer), declared = n_tokens;
  llm_status status = arch_int(m->file, "vocab_size", 0, 1, MAX_VOCAB, &declared, err);
  if (status) return status;
  if (declared != n_tokens || (t && t->dims[1] != n_tokens))
    return error_set(err, LLM_ERR_FORMAT,
                     "%s: the tokenizer has %" PRId64 " tokens, llama.vocab_size says %" PRId64
                     ", token_embd.weight has %" PRId64 " rows: they must be equal",
                     gguf_where(m->file), n_tokens, declared, t ? t->dims[1] : 0);
  m->config.n_vocab = n_tokens;
  return LLM_OK;
}

static llm_status read_weights(llm_model *m, llm_error *err) {
  size_t n_tensors = gguf_n_tensors(m->file);
  /* Each layer needs nine tensors: no allocation beyond what the file backs. */
  if ((uint64_t)m->config.n_layer * 9 > n_tensors)
    return error_set(err, LLM_ERR_FORMAT,
                     "%s: %" PRId64 " layers need at least %" PRId64 " tensors, the file has %zu",
                     gguf_where(m->file), m->config.n_layer, m->config.n_layer * 9, n_tensors);
  m->layers = calloc((size_t)m->config.n_layer, sizeof *m->layers);
  unsigned char *bound = calloc(n_tensors, 1);
  binder b = {m, bound, err, LLM_OK};
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
  if (!status) status = read_config(m->file, &m->config, err);
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
