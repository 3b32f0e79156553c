/* kernels.h: the inner loops of the forward pass, one table of function pointers per instruction
 * set. Layer 2. The scalar table is the specification; each faster table starts as a copy of the
 * one below it and overwrites entries.
 *
 * Same bits (DESIGN rule 6): every table computes each output with the same operations in the same
 * order, so all tables agree bit for bit, for any number of tokens and any split of rows. The
 * orders:
 *
 * Float weights (F32, F16, BF16 expanded exactly), and dot products inside attention:
 *   16 lanes, lane l takes the elements k = l, l + 16, ... in rising order:
 *     lane[l] = fmaf(w[k], x[k], lane[l]), starting from +0; missing tail elements leave the lane.
 *   Then lane[l] += lane[l + 8] for l < 8, the same with 4, 2, 1; lane[0] is the result.
 *
 * Quantized weights against activations quantized to 8 bits, both in blocks of 32 (quant.h's
 * quant_block: integers q, scale, minimum), each block's products of integers summed exactly:
 *   y = 0; for each block b in rising order:
 *     y = fmaf((float)sum of q a, scale * sa, y)                   (the product rounded once)
 *     with a minimum: y = fmaf(minimum, ma, y), ma = sa * (float)sum of a
 *   Q6_K has two scales a block; the products of its halves are summed apart:
 *     y = fmaf(fmaf((float)sum1, scale1, (float)sum0 * scale0), sa, y)
 *
 * Activation block: amax = max |x|; scale = amax / 127, inv = 127 / amax, or both 0 when amax is
 *   below ACT_TINY (1 / amax would overflow); q = x * inv rounded to nearest even (|q| <= 127).
 */
#ifndef LLM_KERNELS_H
#define LLM_KERNELS_H

#include "llm.h"

#define ACT_TINY 0x1p-100f

enum { LANES = 16 }; /* of every float sum */

/* 32 activations in 8 bits. Its size is a multiple of 16, so that no load of 16 bytes is cut. */
typedef struct act_block {
  int8_t q[32];
  float scale, scaled_sum;  /* scaled_sum = scale * (float)sum, rounded once */
  int32_t sum, sum_of_half; /* of q, and of its first 16 */
} act_block;

/* Activations of n_tok tokens, each n_in wide, in the two forms that matrix products read. The
 * quantized form exists only when q is not NULL (it needs n_in % 32 == 0). */
typedef struct act_rows {
  size_t n_tok, n_in;
  const float *x; /* (n_tok, n_in) */
  act_block *q;   /* (n_tok, n_in / 32), 16-byte aligned */
} act_rows;

/* y[t * ldy + r] = W[r] . x[t] for all t and r0 <= r < r1; W is (n_out, n_in) row-major in the
 * file's blocks and may end at the end of the mapping: no read past its last byte. scratch is
 * private to the thread: kernels.scratch_bytes(n_in) bytes, 64-byte aligned, or NULL where that is
 * 0. */
typedef struct matmul_args {
  const void *w;
  size_t n_out;
  const act_rows *act; /* n_in = act->n_in */
  float *y;
  size_t ldy;
} matmul_args;
typedef void (*matmul_kernel)(const matmul_args *args, size_t r0, size_t r1, void *scratch);

/* One key/value head, n_q query heads that share it, one token, and a part of the positions that it
 * sees: out (n_q, head_dim) = p v, p = exp(scale * q k^T - max), with max and sum of p (n_q each),
 * over n_pos positions; q (n_q, head_dim) float32; k and v point at the first position, each of
 * F32, F16 or Q8_0 (then head_dim % 32 == 0) expanded exactly, k_bytes and v_bytes from one
 * position to the next. scores: n_q * n_pos floats.
 * Order: each score is the 16-lane dot, then * scale; maximum; p = num_expf(score - max); the sum
 * of p in 16 lanes over positions (as the dot's); out[d] = fmaf(p, v[d], out[d]) from +0 in rising
 * position.
 * Q8_0 keys meet queries in 16 bits, rounded in blocks of 32 as activations are, but to 32767: y =
 * 0; for each block: y = fmaf((float)sum of k q, scale * sq, y), the product rounded once. Q8_0
 * values: out[d] = fmaf(p * scale, (float)v[d], out[d]). */
typedef struct attention_args {
  float *out, *max, *sum;
  const float *q;
  const void *k, *v;
  llm_type k_type, v_type;
  size_t k_bytes, v_bytes, n_q, n_pos, head_dim;
  float scale;
  float *scores;
} attention_args;
typedef void (*attention_kernel)(const attention_args *args);

/* The same for tokens in a row that begin to see at k and v, head_dim % 32 == 0: token i has its q
 * q_apart, its out, max and sum out_apart floats behind those of token i - 1, and sees the first
 * min(n_pos + i, n_all) positions, n_all < n_pos + n_tok. scores: attention_tile_floats(head_dim,
 * n_all) floats, a multiple of 32. */
typedef struct attention_tile {
  attention_args first; /* of the first token */
  size_t n_tok;         /* ATTENTION_TOKENS at most */
  size_t n_all, q_apart, out_apart;
} attention_tile;

/* Tokens and query heads of a tile; keys or values that are expanded at a time. */
enum { ATTENTION_TOKENS = 16, ATTENTION_HEADS = 4, ATTENTION_ROWS = 32 };
static inline size_t attention_tile_floats(size_t head_dim, size_t n_all) {
  return ATTENTION_ROWS * head_dim +
         ATTENTION_HEADS * ATTENTION_TOKENS * (2 * head_dim + n_all + 3);
}

typedef struct kernels {
  const char *name;
  /* of one thread, for any matmul of that width; a multiple of 64 */
  size_t (*scratch_bytes)(size_t n_in);

  /* indexed by llm_type; NULL where the type is not run */
  matmul_kernel matmul[LLM_TYPE_BF16 + 1]; /* quantized types read act->q, the others act->x */
  attention_kernel attention;
  void (*attention_tile)(const attention_tile *args); /* may be NULL */

  /* One row of activations, n a multiple of 32. */
  void (*quantize_row)(const float *x, size_t n, act_block *q);
  /* y = (x * (1 / sqrt(sum / n + eps))) * w; sum is the 16-lane dot of x with itself. */
  void (*rmsnorm)(float *y, const float *x, const float *w, size_t n, float eps);
  /* y = x - mean, mean = sum / n, the sum in 16 lanes over x as the dot's; then
   * y = fmaf(y * (1 / sqrt(sum / n + eps)), w, b), sum the 16-lane dot of y with itself. */
  void (*layernorm)(float *y, const float *x, const float *w, const float *b, size_t n, float eps);
  /* y = (gate / (1 + num_expf(-gate))) * up; y may be gate or up. */
  void (*swiglu)(float *y, const float *gate, const float *up, size_t n);
  /* y = x / (1 + num_expf(x * fmaf(GELU_B, x * x, GELU_A))); y may be x. geglu: of gate, * up. */
  void (*gelu)(float *y, const float *x, size_t n);
  void (*geglu)(float *y, const float *gate, const float *up, size_t n);
  /* x += y */
  void (*add)(float *x, const float *y, size_t n);
  /* Adjacent pairs (2i, 2i+1) of x, n_pair of them, turned by (cos[i], sin[i]):
   * a' = fmaf(a, c, -(b * s)), b' = fmaf(a, s, b * c). */
  void (*rope)(float *x, const float *cos, const float *sin, size_t n_pair);
  /* The same with the pairs (i, i + n_pair). */
  void (*rope_halves)(float *x, const float *cos, const float *sin, size_t n_pair);
  void (*f32_to_f16)(uint16_t *dst, const float *src, size_t n);
  /* n elements (whole blocks) of any type that runs, to float32: the token embedding. */
  void (*dequantize)(llm_type type, const void *src, size_t n, float *dst);
} kernels;

/* NULL name: the best set of this machine. NULL result: unknown, or not on this machine. */
const kernels *kernels_find(const char *name);
/* Names that kernels_find accepts here, slowest first, ended by NULL. */
const char *const *kernels_available(void);

/* Each fills or overwrites the entries that its file has; kernels.c and the files of the same set
 * call them. */
void kernels_set_scalar(kernels *k);
void kernels_set_scalar_quant(kernels *k);
void kernels_set_avx2(kernels *k);
void kernels_set_avx512(kernels *k);
void kernels_set_amx(kernels *k);
void kernels_set_neon(kernels *k);

#endif
