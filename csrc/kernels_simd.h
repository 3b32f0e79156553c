/* kernels_simd.h: what the vector kernels of every instruction set share. Layer 2.
 *
 * One token reads each weight once, from memory. The tiles for one token therefore take rows that
 * lie a fraction of the share apart: memory is read as 4 or 8 long streams, which the processor's
 * own prefetching follows at up to twice the rate of one (Zen 3: 28 GB/s against 18, and 15 with
 * software prefetching of neighbouring rows). */
#ifndef LLM_KERNELS_SIMD_H
#define LLM_KERNELS_SIMD_H

#include <string.h>

#include "kernels.h"
#include "quant.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* Before a loop of constant length over an array that must end up in registers. */
#if defined(LLM_EMULATE_AVX512)
#define UNROLL /* nothing to gain, minutes to compile */
#elif defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

static inline size_t min_size(size_t a, size_t b) { return a < b ? a : b; }

ALWAYS_INLINE size_t block_bytes(const llm_type type) {
  return type == LLM_TYPE_Q8_0   ? sizeof(block_q8_0)
         : type == LLM_TYPE_Q4_0 ? sizeof(block_q4_0)
                                 : sizeof(block_q4_1);
}

ALWAYS_INLINE size_t header_bytes(const llm_type type) { return type == LLM_TYPE_Q4_1 ? 4 : 2; }

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

#endif
