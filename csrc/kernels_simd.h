/* kernels_simd.h: what the vector kernels of every instruction set share. Layer 2.
 *
 * One token reads each weight once, from memory. Quantized rows are read in the order of the file,
 * on x86-64 with requests 16 to 24 KiB ahead, which go on into the next matrix. Rows of floats,
 * which take little unpacking, come as 4 long streams a fraction of the share apart: the
 * processor's own prefetching follows those faster than one, and faster than requests (Zen 4, F16:
 * 27 GB/s against 22). */
#ifndef LLM_KERNELS_SIMD_H
#define LLM_KERNELS_SIMD_H

#include <stddef.h>
#include <string.h>

#include "kernels.h"
#include "quant.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* Runs for all types: without the copies for constant arguments that gcc likes to make. */
#if defined(__clang__)
#define SHARED_CODE static __attribute__((noinline))
#else
#define SHARED_CODE static __attribute__((noinline, noclone))
#endif

/* Before a loop of constant length over an array that must end up in registers. */
#if defined(__clang__)
#define WITH_SANITIZER __has_feature(address_sanitizer)
#elif defined(__SANITIZE_ADDRESS__)
#define WITH_SANITIZER 1
#else
#define WITH_SANITIZER 0
#endif
#if defined(LLM_EMULATE_AVX512) || WITH_SANITIZER
#define UNROLL /* nothing to gain, minutes to compile */
#elif defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

static inline size_t min_size(size_t a, size_t b) { return a < b ? a : b; }

/* ---- what is constant for a type ---- */

#define FOR_QUANTIZED_TYPES(DO)                                                                    \
  DO(q8_0, LLM_TYPE_Q8_0)                                                                          \
  DO(q4_0, LLM_TYPE_Q4_0)                                                                          \
  DO(q4_1, LLM_TYPE_Q4_1)                                                                          \
  DO(q5_0, LLM_TYPE_Q5_0)                                                                          \
  DO(q5_1, LLM_TYPE_Q5_1)                                                                          \
  DO(q4_k, LLM_TYPE_Q4_K)                                                                          \
  DO(q5_k, LLM_TYPE_Q5_K)                                                                          \
  DO(q6_k, LLM_TYPE_Q6_K)

ALWAYS_INLINE int is_super(const llm_type type) {
  return type == LLM_TYPE_Q4_K || type == LLM_TYPE_Q5_K || type == LLM_TYPE_Q6_K;
}

ALWAYS_INLINE size_t block_bytes(const llm_type type) {
  switch (type) {
  case LLM_TYPE_Q4_0: return sizeof(block_q4_0);
  case LLM_TYPE_Q4_1: return sizeof(block_q4_1);
  case LLM_TYPE_Q5_0: return sizeof(block_q5_0);
  case LLM_TYPE_Q5_1: return sizeof(block_q5_1);
  case LLM_TYPE_Q4_K: return sizeof(block_q4_k);
  case LLM_TYPE_Q5_K: return sizeof(block_q5_k);
  case LLM_TYPE_Q6_K: return sizeof(block_q6_k);
  default: return sizeof(block_q8_0);
  }
}

ALWAYS_INLINE size_t row_bytes_of(const llm_type type, size_t n_in) {
  return n_in / (is_super(type) ? QK_SUPER : QK) * block_bytes(type);
}

/* Where a block's bytes of low four bits (Q8_0: its quants) begin. */
ALWAYS_INLINE size_t quants_at(const llm_type type) {
  switch (type) {
  case LLM_TYPE_Q4_1: return offsetof(block_q4_1, q);
  case LLM_TYPE_Q5_0: return offsetof(block_q5_0, q);
  case LLM_TYPE_Q5_1: return offsetof(block_q5_1, q);
  case LLM_TYPE_Q4_K: return offsetof(block_q4_k, q);
  case LLM_TYPE_Q5_K: return offsetof(block_q5_k, q);
  case LLM_TYPE_Q6_K: return offsetof(block_q6_k, low);
  default: return 2;
  }
}

/* And of high bits, of types that have them. */
ALWAYS_INLINE size_t high_at(const llm_type type) {
  switch (type) {
  case LLM_TYPE_Q5_0: return offsetof(block_q5_0, high);
  case LLM_TYPE_Q5_1: return offsetof(block_q5_1, high);
  case LLM_TYPE_Q5_K: return offsetof(block_q5_k, high);
  default: return offsetof(block_q6_k, high);
  }
}

/* Weights are stored as unsigned numbers that are this much greater (Q8_0: once its sign bits are
 * turned). */
ALWAYS_INLINE int zero_point(const llm_type type) {
  switch (type) {
  case LLM_TYPE_Q8_0: return 128;
  case LLM_TYPE_Q4_0: return 8;
  case LLM_TYPE_Q5_0: return 16;
  case LLM_TYPE_Q6_K: return 32;
  default: return 0;
  }
}

/* Quants come 16 bytes at a time: piece k of a block has two chunks of 16 elements, one in the low
 * and one in the high halves of its bytes. Chunks are numbered in the order of the elements. */
ALWAYS_INLINE size_t n_pieces(const llm_type type) { return is_super(type) ? 8 : 1; }

ALWAYS_INLINE size_t low_chunk(const llm_type type, size_t k) {
  return type == LLM_TYPE_Q6_K ? k / 4 * 8 + k % 4 : k / 2 * 4 + k % 2;
}

ALWAYS_INLINE size_t high_chunk(const llm_type type, size_t k) {
  return low_chunk(type, k) + (type == LLM_TYPE_Q6_K ? 4 : is_super(type) ? 2 : 1);
}

/* Of piece k of a super-block (Q4_K, Q5_K: k even): the block of the low halves, and how many
 * blocks further that of the high ones is. */
ALWAYS_INLINE size_t low_block(const llm_type type, size_t k) {
  return type == LLM_TYPE_Q6_K ? k / 4 * 4 + k % 4 / 2 : k;
}

ALWAYS_INLINE size_t high_after(const llm_type type) { return type == LLM_TYPE_Q6_K ? 2 : 1; }

/* The sum of the first or second 16 activations. */
ALWAYS_INLINE int half_sum(const act_block *a, const size_t half) {
  return half ? a->sum - a->sum_of_half : a->sum_of_half;
}

/* ---- reading ---- */

ALWAYS_INLINE int load_u16(const uint8_t *p) {
  uint16_t x;
  memcpy(&x, p, sizeof x);
  return x;
}

ALWAYS_INLINE int load_i32(const void *p) {
  int x;
  memcpy(&x, p, sizeof x);
  return x;
}

/* Groups of n rows that reach past r1 or the matrix are moved up to end with it: the same rows give
 * the same bits again, and only rows from r on are stored. n_out is n at least. */
typedef struct row_group {
  size_t first, from, to; /* rows first to first + n are computed, from to `to` are stored */
} row_group;

static inline row_group group_at(size_t r, size_t r1, size_t n_out, size_t n) {
  return (row_group){min_size(r, n_out - n), r, min_size(r + n, r1)};
}

/* ---- one token of quantized weights, many of float ones ---- */

/* y of n rows that lie row_bytes apart, for the first token. */
typedef void (*rows_decoder)(const uint8_t *w, size_t row_bytes, const act_rows *act, float *y);

enum { MOST_ROWS = 8 }; /* of a group */

/* Groups of n rows in the order of the file; n_out is n at least. */
ALWAYS_INLINE void decode_groups(rows_decoder decode_rows, const size_t n, size_t row_bytes,
                                 const matmul_args *m, size_t r0, size_t r1) {
  for (size_t r = r0; r < r1; r += n) {
    row_group g = group_at(r, r1, m->n_out, n);
    float y[MOST_ROWS], *to = g.to - g.from == n ? m->y + g.from : y;
    decode_rows((const uint8_t *)m->w + g.first * row_bytes, row_bytes, m->act, to);
    if (to == y) memcpy(m->y + g.from, y + (g.from - g.first), (g.to - g.from) * sizeof *y);
  }
}

/* Vectors (n_vec, n_in) against rows of weights that lie row_bytes apart:
 * y[v * ldy + r] = row r . vector v for r < n_row, the 16-lane dot of kernels.h. */
typedef struct float_product {
  const char *w;
  size_t row_bytes, n_row;
  const float *x;
  size_t n_vec, n_in;
  float *y;
  size_t ldy;
} float_product;

/* Rows r0 to r1 times all tokens. */
ALWAYS_INLINE float_product product_of(const matmul_args *m, size_t r0, size_t r1,
                                       size_t element_bytes) {
  size_t row_bytes = m->act->n_in * element_bytes;
  return (float_product){
      (const char *)m->w + r0 * row_bytes,
      row_bytes,
      r1 - r0,
      m->act->x,
      m->act->n_tok,
      m->act->n_in,
      m->y + r0,
      m->ldy,
  };
}

#endif
