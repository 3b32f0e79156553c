/* model.h: hyperparameters and weights, read and checked once from the keys and tensors of a
 * parameter file. Layer 3. Weights point into the file's mapping and are never copied. What one
 * family of decoders does differently from another is a row of the table in model_config.c; what a
 * row leaves out is NULL, 0 or 1 below. */
#ifndef LLM_MODEL_H
#define LLM_MODEL_H

#include "gguf.h"
#include "mapfile.h"

typedef enum presence { ABSENT, OPTIONAL, REQUIRED } presence;

typedef struct architecture {
  const char *name;
  enum { NORM_RMS, NORM_LAYER } norm;               /* LayerNorm has a bias too */
  enum { ROPE_PAIRS, ROPE_HALVES, ROPE_NONE } rope; /* none: positions are learned vectors */
  enum { FFN_SWIGLU, FFN_GEGLU, FFN_GELU } ffn;     /* the last has no gate */
  presence qkv_bias, bias; /* of q, k, v; of the other matrices of a layer */
  presence rope_factors;   /* a divisor for each RoPE frequency */
  int fused_qkv;           /* one matrix for q, k, v */
  int qk_norm;             /* RMSNorm of each head of q and k */
  int post_norms;          /* what a block adds is normed first */
  int scaled_embedding;    /* times sqrt(n_embd) */
  int64_t window_period;   /* n > 0: of n layers the last sees all, the others a window */
} architecture;

typedef struct weight { /* y = W x + b; W (n_out, n_in) row-major in the file's blocks */
  llm_type type;
  size_t n_in, n_out;
  const void *data;
  const float *bias; /* (n_out) or NULL */
} weight;

typedef struct norm_weight {
  const float *weight, *bias; /* bias: LayerNorm only */
} norm_weight;

typedef struct layer_weights {
  int local; /* 1: sees config.sliding_window positions and turns by rope_theta_local */
  norm_weight attn_norm, ffn_norm;           /* (n_embd) */
  norm_weight attn_post_norm, ffn_post_norm; /* (n_embd) */
  const float *q_norm, *k_norm;              /* (head_dim) */
  weight wq, wk, wv, wo; /* (n_head | n_kv_head | n_kv_head) * head_dim from n_embd; wo back */
  weight w_gate, w_up, w_down; /* n_ff from n_embd, twice; n_embd from n_ff */
} layer_weights;

struct llm_model {
  mapfile map;
  gguf *file;
  const architecture *arch;
  llm_config config;
  float embed_scale, attention_scale;
  float rope_theta_local;    /* of local layers; their positions are not scaled */
  float rope_scale;          /* positions are divided by this */
  const float *rope_factors; /* (rope_dim / 2) or NULL: frequencies are divided by these */
  int64_t window_period;     /* layer i is local unless i % n == n - 1; 0: none is */
  llm_tokenizer *tokenizer;
  uint64_t n_params;
  weight tok_embd, output; /* (n_vocab, n_embd); the same matrix when tied */
  weight pos_embd;         /* (n_ctx_train, n_embd); data is NULL with RoPE */
  norm_weight out_norm;    /* (n_embd) */
  layer_weights *layers;   /* (n_layer) */
};

/* Builds a model over bytes that outlive it (tests, fuzzing); llm_model_open maps a file and calls
 * it. Takes no ownership of the span. */
llm_status model_from_span(llm_model **out, const void *span, size_t n_bytes, const char *where,
                           llm_error *err);

/* model_config.c: fills arch, config and the scalars of a model from the keys of model->file. */
llm_status model_read_config(llm_model *model, llm_error *err);
/* An integer under "<architecture>.<suffix>". */
llm_status model_get_int(const llm_model *model, const char *suffix, int required, int64_t min,
                         int64_t max, int64_t *out, llm_error *err);

#endif
