/* model.h: hyperparameters and weights, read and checked once from the keys and tensors of a
 * parameter file. Layer 3. Weights point into the file's mapping and are never copied. */
#ifndef LLM_MODEL_H
#define LLM_MODEL_H

#include "gguf.h"
#include "mapfile.h"

typedef struct weight { /* (n_out, n_in) row-major in the file's blocks */
  llm_type type;
  size_t n_in, n_out;
  const void *data;
} weight;

typedef struct layer_weights {
  const float *attn_norm, *ffn_norm; /* (n_embd) */
  weight wq, wk, wv, wo; /* (n_head | n_kv_head | n_kv_head) * head_dim from n_embd; wo back */
  weight w_gate, w_up, w_down; /* n_ff from n_embd, twice; n_embd from n_ff */
} layer_weights;

struct llm_model {
  mapfile map;
  gguf *file;
  llm_config config;
  llm_tokenizer *tokenizer;
  uint64_t n_params;
  weight tok_embd, output; /* (n_vocab, n_embd); the same matrix when tied */
  const float *out_norm;   /* (n_embd) */
  layer_weights *layers;   /* (n_layer) */
};

/* Builds a model over bytes that outlive it (tests, fuzzing); llm_model_open maps a file and calls
 * it. Takes no ownership of the span. */
llm_status model_from_span(llm_model **out, const void *span, size_t n_bytes, const char *where,
                           llm_error *err);

#endif
