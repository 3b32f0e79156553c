/* context.h: one timeline of tokens. Layer 4: the key/value cache, the scratch of a forward pass,
 * and the position. forward.c computes, this file owns. */
#ifndef LLM_CONTEXT_H
#define LLM_CONTEXT_H

#include "kernels.h"
#include "model.h"
#include "threads.h"

enum { N_BATCH = 512 }; /* most tokens in one pass: bounds the scratch, not the result */

/* Attention looks at this many positions, counted from the first that a token sees, as one part.
 * The parts' results are put together in their order: this number changes the bits. */
enum { ATTENTION_PART = 512 };

/* RoPE angles of one base: of the layers that see everything, or of the local ones. */
typedef struct rope_table {
  double *inv_freq; /* (rope_dim / 2): the angle of a pair, per position */
  float *cos, *sin; /* (B, rope_dim / 2) of the tokens of one pass; (n_ctx, rope_dim / 2) of every
                       place in a window that slides */
} rope_table;

/* Where a token of a pass over several texts stands: its text's first slot of the cache, and its
 * position in the text. */
typedef struct lane_row {
  size_t base, position;
} lane_row;

struct llm_context {
  const llm_model *model;
  const kernels *kernels;
  thread_pool *pool;
  llm_context_options options;
  llm_input_observer observer; /* may be NULL */
  void *observer_user;
  size_t n_ctx, n_past;
  int32_t *ids;       /* (n_ctx) of the tokens held, in the order of the text */
  size_t n_read;      /* tokens read since the context was empty: n_past and those that slid out */
  uint64_t read_hash; /* of their ids; kept where the window slides */

  /* Cache, (n_layer, n_kv_head, n_ctx, head_dim) each, of options.kv_type. Untouched pages cost no
   * memory. */
  char *k_cache, *v_cache;
  size_t kv_row_bytes; /* one head's key or value of one token */
  size_t kv_bytes;     /* of both caches */

  const lane_row *lanes; /* (B) in a pass over several texts (forward_lanes); else NULL */

  /* A window that slides: behind the first n_sink slots the cache is a ring that begins at
   * ring_start; keys are stored unrotated. slide_k, slide_v: (n_kv_head, n_ctx, head_dim) of one
   * layer in the order of the text, keys rotated, F32; values as they are cached. */
  size_t n_sink, ring_start;
  float *slide_k;
  char *slide_v;

  /* Scratch of one pass over n <= N_BATCH tokens, B rows each (B = min(N_BATCH, n_ctx)). */
  float *x;           /* (B, n_embd) residual stream */
  float *xn;          /* (B, n_embd) normed */
  float *q, *att;     /* (B, n_head * head_dim) */
  float *k, *v;       /* (B, n_kv_head * head_dim) */
  float *gate, *up;   /* (B, n_ff) */
  rope_table rope[2]; /* indexed by layer_weights.local */
  act_rows act;       /* quantized activations, as wide as the widest input */
  float *scores;      /* (n_threads, n_scores), attention's own */
  size_t n_scores;
  size_t n_together; /* tokens of one text that attention may take at once */
  float *parts;      /* attention's, (n_parts, n_head, head_dim + 2) */
  size_t n_parts;
  char *matmul_scratch; /* (n_threads, matmul_scratch_bytes) */
  size_t matmul_scratch_bytes;
  void *arena; /* all of the above in one allocation, */
  size_t arena_bytes;
};

/* Fills in what follows from the options, arena_bytes and kv_bytes among it, and allocates nothing.
 * Sizes that no size_t holds are SIZE_MAX or near it. */
llm_status context_plan(llm_context *c, const llm_model *model, const llm_context_options *options,
                        llm_error *err);

/* How many of the ids [0, n) the context has read since it was empty, before any other. Where text
 * slid out of the window, all that was read or nothing. */
size_t context_common_beginning(const llm_context *c, const int32_t *ids, size_t n);

/* The slot of the cache that holds position p of the window. */
size_t context_slot(const llm_context *c, size_t p);
/* Tokens that can be appended at once; a window that slides drops its oldest one where it is full.
 * At least 1 is left by check_ids or by that. */
size_t context_make_room(llm_context *c);
/* Notes n tokens that the forward pass has appended. */
void context_note(llm_context *c, const int32_t *ids, size_t n);

/* Tokens that a context which forgets keeps at most: a quarter of the window, and one token at
 * least, becomes free. A window of one token keeps it. */
static inline size_t context_after_forgetting(const llm_context *c) {
  size_t n_free = c->n_ctx / 4 ? c->n_ctx / 4 : 1;
  return c->n_ctx > 1 ? c->n_ctx - n_free : 1;
}

static inline int context_slides(const llm_context *c) {
  return c->options.on_full == LLM_ON_FULL_SLIDE;
}

/* The row of the RoPE tables for token t of a pass: of its place in the window, or t. */
static inline size_t context_rope_row(const llm_context *c, size_t t) {
  return context_slides(c) ? c->n_past + t : t;
}

/* Position of token t of a pass in its text, and the slot of a position p of that text. */
static inline size_t context_position(const llm_context *c, size_t t) {
  return c->lanes ? c->lanes[t].position : c->n_past + t;
}
static inline size_t context_row_slot(const llm_context *c, size_t t, size_t p) {
  return c->lanes ? c->lanes[t].base + p : context_slot(c, p);
}
void context_fill_rope(const llm_context *c, const rope_table *rope, size_t row, size_t position);

#endif
