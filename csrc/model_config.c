/* model_config.c: the architectures that run, one row each, and their hyperparameters, read from
 * the keys of a file and held against each other. Layer 3. GGUF spellings of keys appear in this
 * file alone. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "error.h"
#include "model.h"

/* Llama 1 to 3, Mistral, TinyLlama, SmolLM2 are all `llama`. */
static const architecture architectures[] = {
    {.name = "llama",
     .rope = ROPE_PAIRS,
     .qkv_bias = OPTIONAL,
     .bias = OPTIONAL,
     .rope_factors = OPTIONAL},
    {.name = "qwen2", .rope = ROPE_HALVES, .qkv_bias = REQUIRED},
    {.name = "qwen3", .rope = ROPE_HALVES, .qk_norm = 1},
    {.name = "gemma3",
     .rope = ROPE_HALVES,
     .ffn = FFN_GEGLU,
     .qk_norm = 1,
     .post_norms = 1,
     .scaled_embedding = 1,
     .window_period = 6},
    {.name = "gpt2",
     .norm = NORM_LAYER,
     .rope = ROPE_NONE,
     .ffn = FFN_GELU,
     .qkv_bias = REQUIRED,
     .bias = REQUIRED,
     .fused_qkv = 1},
};
enum { N_ARCHITECTURES = sizeof architectures / sizeof *architectures };

/* Caps far above any published model: they bound every later product in 64 bits. */
enum {
  MAX_LAYER = 1024,
  MAX_EMBD = 1 << 20,
  MAX_HEAD = 1 << 14,
  MAX_FF = 1 << 24,
};

/* Gemma 3 27B divides attention scores by sqrt(n_embd / n_head), which is not its sqrt(head_dim).
 * No key says so; its number of layers tells, as it does for llama.cpp. */
enum { GEMMA3_27B_LAYERS = 62 };

/* ---- keys ---- */

static const char *spell(const llm_model *m, const char *suffix, char key[128]) {
  snprintf(key, 128, "%s.%s", m->arch->name, suffix);
  return key;
}

llm_status model_get_int(const llm_model *m, const char *suffix, int required, int64_t min,
                         int64_t max, int64_t *out, llm_error *err) {
  char key[128];
  return gguf_get_int(m->file, spell(m, suffix, key), required, min, max, out, err);
}

static llm_status get_float(const llm_model *m, const char *suffix, int required, double min,
                            double max, float *out, llm_error *err) {
  char key[128];
  return gguf_get_float(m->file, spell(m, suffix, key), required, min, max, out, err);
}

/* ---- hyperparameters ---- */

static llm_status read_architecture(llm_model *m, llm_error *err) {
  gguf_string name;
  llm_status status = gguf_get_string(m->file, "general.architecture", 1, &name, err);
  if (status) return status;
  for (int i = 0; i < N_ARCHITECTURES && !m->arch; i++)
    if (gguf_string_is(name, architectures[i].name)) m->arch = &architectures[i];
  if (!m->arch)
    return error_set(err, LLM_ERR_UNSUPPORTED,
                     "%s: architecture \"%.*s\" is not one that this version runs (llama, qwen2, "
                     "qwen3, gemma3, gpt2)",
                     gguf_where(m->file), gguf_quoted(name.n_bytes), name.data);
  strcpy(m->config.architecture, m->arch->name);
  return LLM_OK;
}

static llm_status refuse_cap(const llm_model *m, const char *suffix, llm_error *err) {
  float cap = 0;
  llm_status status = get_float(m, suffix, 0, 0, 1e9, &cap, err);
  if (!status && cap > 0)
    return error_set(err, LLM_ERR_UNSUPPORTED, "%s: %s.%s is %g: capped logits do not run yet",
                     gguf_where(m->file), m->arch->name, suffix, (double)cap);
  return status;
}

/* Variants that would silently give wrong text if ignored. */
static llm_status refuse_variants(const llm_model *m, llm_error *err) {
  int64_t n_expert = 0;
  llm_status status = model_get_int(m, "expert_count", 0, 0, INT32_MAX, &n_expert, err);
  if (!status && n_expert > 0)
    return error_set(err, LLM_ERR_UNSUPPORTED,
                     "%s: %s.expert_count is %" PRId64 ": mixtures of experts do not run yet",
                     gguf_where(m->file), m->arch->name, n_expert);
  if (!status) status = refuse_cap(m, "final_logit_softcapping", err);
  if (!status) status = refuse_cap(m, "attn_logit_softcapping", err);
  return status;
}

static llm_status read_sizes(llm_model *m, llm_error *err) {
  llm_config *c = &m->config;
  llm_status status = model_get_int(m, "context_length", 1, 1, INT32_MAX, &c->n_ctx_train, err);
  if (!status) status = model_get_int(m, "embedding_length", 1, 1, MAX_EMBD, &c->n_embd, err);
  if (!status) status = model_get_int(m, "block_count", 1, 1, MAX_LAYER, &c->n_layer, err);
  if (!status) status = model_get_int(m, "feed_forward_length", 1, 1, MAX_FF, &c->n_ff, err);
  if (!status) status = model_get_int(m, "attention.head_count", 1, 1, MAX_HEAD, &c->n_head, err);
  c->n_kv_head = c->n_head;
  if (!status)
    status = model_get_int(m, "attention.head_count_kv", 0, 1, MAX_HEAD, &c->n_kv_head, err);
  if (status) return status;
  m->embed_scale = m->arch->scaled_embedding ? __builtin_sqrtf((float)c->n_embd) : 1;
  return get_float(m,
                   m->arch->norm == NORM_LAYER ? "attention.layer_norm_epsilon"
                                               : "attention.layer_norm_rms_epsilon",
                   1, 1e-12, 1, &c->norm_eps, err);
}

static llm_status read_head_dim(llm_model *m, llm_error *err) {
  llm_config *c = &m->config;
  const char *where = gguf_where(m->file);
  if (c->n_head % c->n_kv_head)
    return error_set(err, LLM_ERR_FORMAT,
                     "%s: %" PRId64 " heads cannot share %" PRId64 " key/value heads evenly", where,
                     c->n_head, c->n_kv_head);
  c->head_dim = c->n_embd / c->n_head;
  llm_status status = model_get_int(m, "attention.key_length", 0, 1, MAX_EMBD, &c->head_dim, err);
  int64_t value_length = c->head_dim;
  if (!status)
    status = model_get_int(m, "attention.value_length", 0, 1, MAX_EMBD, &value_length, err);
  if (status) return status;
  if (value_length != c->head_dim)
    return error_set(err, LLM_ERR_UNSUPPORTED,
                     "%s: keys of %" PRId64 " and values of %" PRId64 " elements do not run yet",
                     where, c->head_dim, value_length);
  if (c->head_dim < 1 || c->n_head * c->head_dim > MAX_EMBD)
    return error_set(err, LLM_ERR_FORMAT,
                     "%s: %" PRId64 " heads of %" PRId64 " elements: too narrow or too wide", where,
                     c->n_head, c->head_dim);
  double per_score = (double)c->head_dim;
  if (m->arch->window_period && c->n_layer == GEMMA3_27B_LAYERS)
    per_score = (double)(c->n_embd / c->n_head);
  m->attention_scale = 1.0f / __builtin_sqrtf((float)per_score);
  return LLM_OK;
}

/* Linear scaling, under its key or the one of older files; other kinds are refused by name. */
static llm_status read_rope_scale(llm_model *m, llm_error *err) {
  char key[128];
  gguf_string type = {"linear", 6};
  llm_status status = gguf_get_string(m->file, spell(m, "rope.scaling.type", key), 0, &type, err);
  if (status || gguf_string_is(type, "none")) return status;
  if (!gguf_string_is(type, "linear"))
    return error_set(err, LLM_ERR_UNSUPPORTED, "%s: %s \"%.*s\" does not run yet (none, linear)",
                     gguf_where(m->file), key, gguf_quoted(type.n_bytes), type.data);
  status = get_float(m, "rope.scale_linear", 0, 1e-6, 1e6, &m->rope_scale, err);
  if (!status) status = get_float(m, "rope.scaling.factor", 0, 1e-6, 1e6, &m->rope_scale, err);
  return status;
}

static llm_status read_rope(llm_model *m, llm_error *err) {
  llm_config *c = &m->config;
  if (m->arch->rope == ROPE_NONE) return LLM_OK;
  c->rope_dim = c->head_dim;
  c->rope_theta = m->rope_theta_local = 10000;
  m->rope_scale = 1;
  llm_status status = model_get_int(m, "rope.dimension_count", 0, 1, MAX_EMBD, &c->rope_dim, err);
  if (status) return status;
  if (c->head_dim % 2 || c->rope_dim % 2 || c->rope_dim > c->head_dim)
    return error_set(err, LLM_ERR_FORMAT,
                     "%s: head_dim %" PRId64 " with %" PRId64
                     " rotated elements: both must be even, the second at most the first",
                     gguf_where(m->file), c->head_dim, c->rope_dim);
  status = get_float(m, "rope.freq_base", 0, 1, 1e12, &c->rope_theta, err);
  if (!status) status = read_rope_scale(m, err);
  return status;
}

static llm_status read_window(llm_model *m, llm_error *err) {
  if (!m->arch->window_period) return LLM_OK;
  int64_t *window = &m->config.sliding_window;
  llm_status status = model_get_int(m, "attention.sliding_window", 0, 0, INT32_MAX, window, err);
  if (status || *window == 0) return status;
  m->window_period = m->arch->window_period;
  status =
      model_get_int(m, "attention.sliding_window_pattern", 0, 1, INT32_MAX, &m->window_period, err);
  if (!status) status = get_float(m, "rope.freq_base_swa", 0, 1, 1e12, &m->rope_theta_local, err);
  return status;
}

llm_status model_read_config(llm_model *m, llm_error *err) {
  llm_status status = read_architecture(m, err);
  if (!status) status = refuse_variants(m, err);
  if (!status) status = read_sizes(m, err);
  if (!status) status = read_head_dim(m, err);
  if (!status) status = read_rope(m, err);
  if (!status) status = read_window(m, err);
  return status;
}
