/* train.h: the trainer's kernels, as the bindings see them. Layer T. The text between the marker
 * lines is cffi's cdef. llm/ops_numpy.py is the specification of every operation: names, shapes and
 * formulas are said there and not repeated here. Matrices are row-major float32, tokens and targets
 * int32; sizes and pointers are the caller's responsibility (llm/ops_c.py checks them).
 *
 * Same inputs, same instruction set: the same bits, whatever the number of threads. A handle serves
 * one call at a time. */
#ifndef LLM_TRAIN_H
#define LLM_TRAIN_H

#ifndef __CUDACC_RTC__
#include "llm.h"
#endif

/* An activation: a float to the CPU; to a GPU's rounding build a bfloat16 (port.h). */
#ifndef PORT_BF16
typedef float llm_act;
#endif

/* cffi: begin */

typedef struct llm_ops llm_ops; /* threads, instruction set, scratch */

/* kernels: "scalar", "avx2", "avx512", "amx"; NULL is the best that this machine has. rounds:
 * products round their operands to bfloat16; refused where kernels or machine have no such product.
 * "amx" has no other. */
llm_status llm_ops_new(llm_ops **out, int32_t n_threads, const char *kernels, int32_t rounds,
                       llm_error *err);
void llm_ops_free(llm_ops *ops);
const char *llm_ops_kernels(const llm_ops *ops);
int32_t llm_ops_can_round(void);
int32_t llm_ops_threads_available(void);

/* ---- row kernels: n_rows is what the comment calls a row ---- */

typedef struct llm_embed_args { /* per token */
  llm_act *x;
  const float *table;
  const int32_t *tokens;
  int64_t n_embd;
} llm_embed_args;
void llm_ops_embed(llm_ops *ops, const llm_embed_args *args, int64_t n_rows);

typedef struct llm_embed_backward_args { /* per block of columns and class of tokens */
  float *dtable;
  const llm_act *dx;
  const int32_t *tokens;
  int64_t n_tokens, n_embd, n_columns;
  int64_t n_classes; /* a power of two; a token's class is its id modulo this */
} llm_embed_backward_args;
void llm_ops_embed_backward(llm_ops *ops, const llm_embed_backward_args *args, int64_t n_rows);

typedef struct llm_rmsnorm_args { /* per row */
  llm_act *y;
  float *rstd;
  const llm_act *x;
  const float *w;
  int64_t n;
  float eps;
} llm_rmsnorm_args;
void llm_ops_rmsnorm(llm_ops *ops, const llm_rmsnorm_args *args, int64_t n_rows);

typedef struct llm_rmsnorm_backward_args { /* per chunk of n_chunk rows */
  llm_act *dx, *dy;
  float *dw_parts; /* (chunks, n): sum_rows adds them up */
  const llm_act *x;
  const float *w, *rstd;
  int64_t n_total, n, n_chunk; /* rows in all chunks, columns */
} llm_rmsnorm_backward_args;
void llm_ops_rmsnorm_backward(llm_ops *ops, const llm_rmsnorm_backward_args *args, int64_t n_rows);

typedef struct llm_sum_rows_args { /* per block of n_columns in each group of n_group parts */
  float *sum;                      /* (groups, n) */
  const float *parts;              /* (n_parts, n), or NULL: */
  const llm_act *act_parts;
  int64_t n_parts, n, n_columns, n_group;
} llm_sum_rows_args;
void llm_ops_sum_rows(llm_ops *ops, const llm_sum_rows_args *args, int64_t n_rows);

typedef struct llm_rope_args { /* per (batch, time) */
  llm_act *x;
  const float *cos, *sin;
  const int32_t *starts; /* (batch, time), or NULL */
  int64_t n_time, n_head, head_dim;
  float direction; /* 1, or -1 for the backward */
  int32_t halves;
} llm_rope_args;
void llm_ops_rope(llm_ops *ops, const llm_rope_args *args, int64_t n_rows);

typedef struct llm_swiglu_args { /* per row */
  llm_act *h;
  const llm_act *gate, *up;
  int64_t n;
} llm_swiglu_args;
void llm_ops_swiglu(llm_ops *ops, const llm_swiglu_args *args, int64_t n_rows);

typedef struct llm_swiglu_backward_args { /* per row */
  llm_act *gate, *up, *dh;
  int64_t n;
} llm_swiglu_backward_args;
void llm_ops_swiglu_backward(llm_ops *ops, const llm_swiglu_backward_args *args, int64_t n_rows);

typedef struct llm_cross_entropy_args { /* per token */
  float *losses;
  llm_act *logits;
  const int32_t *targets;
  int64_t n_vocab;
  float scale;
  int32_t with_gradient;
} llm_cross_entropy_args;
void llm_ops_cross_entropy(llm_ops *ops, const llm_cross_entropy_args *args, int64_t n_rows);

typedef struct llm_sum_squares_args { /* per chunk of 4096 elements */
  float *parts;
  const float *x;
  int64_t n;
} llm_sum_squares_args;
void llm_ops_sum_squares(llm_ops *ops, const llm_sum_squares_args *args, int64_t n_rows);

typedef struct llm_adamw_args { /* per chunk of 4096 elements */
  float *p, *m, *v;
  const float *g;
  const uint8_t *decay;
  int64_t n;
  float grad_scale, beta1, beta2, new1, new2, rate, eps, shrink, root; /* see the kernel */
} llm_adamw_args;
void llm_ops_adamw(llm_ops *ops, const llm_adamw_args *args, int64_t n_rows);

typedef struct llm_muon_momentum_args { /* per chunk of 4096 elements */
  float *m, *x, *squares;               /* squares: by chunk, the sum of x^2 */
  const float *g;
  int64_t n;
  float momentum, grad_scale;
} llm_muon_momentum_args;
void llm_ops_muon_momentum(llm_ops *ops, const llm_muon_momentum_args *args, int64_t n_rows);

typedef struct llm_muon_update_args { /* per chunk of 4096 elements */
  float *p;
  const float *x;
  int64_t n;
  float rate;
} llm_muon_update_args;
void llm_ops_muon_update(llm_ops *ops, const llm_muon_update_args *args, int64_t n_rows);

typedef struct llm_combine_args { /* per chunk of 4096 elements */
  float *out;
  const float *x, *y; /* either may be out */
  int64_t n;
  float a, b;
} llm_combine_args;
void llm_ops_combine(llm_ops *ops, const llm_combine_args *args, int64_t n_rows);

/* ---- the GPU's products: rounding, and attention by batches of heads. Where a field ending in _16
 * is not NULL it takes the result, rounded to bfloat16, and not the field before it. ---- */

typedef struct llm_round_args { /* per chunk of 4096 elements */
  uint16_t *out_16;
  const float *x;
  int64_t n;
} llm_round_args;
void llm_ops_round(llm_ops *ops, const llm_round_args *args, int64_t n_rows);

typedef struct llm_repeat_args { /* per row of out (n_rows, n), which becomes x (n) */
  llm_act *out;
  const float *x;
  int64_t n;
} llm_repeat_args;
void llm_ops_repeat(llm_ops *ops, const llm_repeat_args *args, int64_t n_rows);

/* out (n_batch, n_head, n_time, head_dim) from x (n_batch, n_time, n_kv_head, head_dim), each
 * key/value head for all heads of its group; join sums over a group on the way back. */
typedef struct llm_split_heads_args { /* per (batch, time) */
  llm_act *out;
  const llm_act *x;
  int64_t n_time, n_head, n_kv_head, head_dim;
} llm_split_heads_args;
void llm_ops_split_heads(llm_ops *ops, const llm_split_heads_args *args, int64_t n_rows);

typedef struct llm_join_heads_args { /* per (batch, time) */
  llm_act *out;
  const float *x;
  int64_t n_time, n_head, n_kv_head, head_dim;
} llm_join_heads_args;
void llm_ops_join_heads(llm_ops *ops, const llm_join_heads_args *args, int64_t n_rows);

/* scores = q k^T (n_batch, n_head, n_queries, first_query + n_queries), of queries in a row with
 * the positions up to the last of them, become probabilities; lse and starts as in
 * llm_attention_args; scale is 1 / sqrt(head_dim). */
typedef struct llm_causal_softmax_args { /* per (batch, head, query) */
  float *scores;
  uint16_t *scores_16;
  float *lse;
  const int32_t *starts;
  int64_t n_head, n_time, first_query, n_queries;
  float scale;
} llm_causal_softmax_args;
void llm_ops_causal_softmax(llm_ops *ops, const llm_causal_softmax_args *args, int64_t n_rows);

/* The same, and dp = do v^T becomes the gradient of q k^T. d_o, o (n_batch, n_time, n_head,
 * head_dim). */
typedef struct llm_causal_softmax_backward_args { /* per (batch, head, query) */
  float *scores;
  uint16_t *scores_16;
  float *dp;
  uint16_t *dp_16;
  const float *lse;
  const llm_act *d_o, *o;
  const int32_t *starts;
  int64_t n_head, n_time, head_dim, first_query, n_queries;
  float scale;
} llm_causal_softmax_backward_args;
void llm_ops_causal_softmax_backward(llm_ops *ops, const llm_causal_softmax_backward_args *args,
                                     int64_t n_rows);

/* Attention of the GPU's tensor cores (train_flash.h): llm_attention_args without a host's sizes,
 * of heads up to 128 wide, a multiple of 8. delta (n_batch, n_head, n_time) is the backward's own.
 */
typedef struct llm_flash_args { /* per 64 queries, or keys, of (batch, head): sequences first */
  const llm_act *q, *k, *v, *d_o;
  llm_act *o, *dq, *dk, *dv;
  float *lse, *delta;
  const int32_t *starts;
  int64_t n_time, n_head, n_kv_head, head_dim;
  float scale;
} llm_flash_args;

/* ---- matrix products, attention, Muon: LLM_ERR_NOMEM is the only failure ---- */

/* C (m, n) = op(A) op(B) + add; a_trans: A is stored (k, m); b_trans: B is stored (n, k). `ld` are
 * floats from row to row as stored; add (m, n) is NULL, C itself, or apart from C; with ld_add 0 a
 * bias (n). */
typedef struct llm_gemm_args {
  int64_t m, n, k;
  const float *a, *b, *add;
  float *c;
  int64_t lda, ldb, ldc, ld_add;
  int32_t a_trans, b_trans;
} llm_gemm_args;
llm_status llm_ops_gemm(llm_ops *ops, const llm_gemm_args *args, llm_error *err);

/* q, o (n_batch, n_time, n_head, head_dim); k, v with n_kv_head; lse (n_batch, n_head, n_time);
 * starts (n_batch, n_time), or NULL: a query's document begins there, and it sees nothing before.
 * The forward writes o and lse, the backward reads them and writes dq, dk, dv. */
typedef struct llm_attention_args {
  int64_t n_batch, n_time, n_head, n_kv_head, head_dim;
  const int32_t *starts;
  const float *q, *k, *v;
  float *o, *lse;
  const float *d_o; /* "do" is a word of C */
  float *dq, *dk, *dv;
} llm_attention_args;
llm_status llm_ops_attention(llm_ops *ops, const llm_attention_args *args, llm_error *err);
llm_status llm_ops_attention_backward(llm_ops *ops, const llm_attention_args *args, llm_error *err);

/* A step for matrices within flat buffers; a thread takes a whole matrix, so that none waits. */
typedef struct llm_muon_args {
  float *p, *m;
  const float *g;
  const int64_t *matrices; /* (n_matrices, 4): offset, rows, columns, offset in m */
  int64_t n_matrices, n_iterations;
  float rate, momentum, grad_scale, coefficient_a, coefficient_b, coefficient_c;
} llm_muon_args;
llm_status llm_ops_muon(llm_ops *ops, const llm_muon_args *args, llm_error *err);

/* cffi: end */

#endif
