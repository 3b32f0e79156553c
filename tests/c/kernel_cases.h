/* kernel_cases.h: data for test_kernels.c. Numbers from a seed, memory that ends at a page which
 * may not be touched, weights and activations of ordinary and of extreme values. */
#ifndef LLM_TEST_KERNEL_CASES_H
#define LLM_TEST_KERNEL_CASES_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels.h"
#include "quantize.h"

static uint64_t random_state = 88172645463325252u;

static inline uint64_t random_u64(void) { /* xorshift64 */
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

static inline float random_float(void) { /* [-1, 1) */
  return (float)(int32_t)(random_u64() >> 32) * 0x1p-31f;
}

/* ---- guarded memory: the byte after the last one is not readable ---- */

typedef struct guarded {
  char *base, *end; /* end: first byte of the forbidden page */
} guarded;

static inline guarded guarded_new(size_t n_bytes) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE), size = (n_bytes + page - 1) / page * page;
  char *base = mmap(NULL, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED || mprotect(base + size, page, PROT_NONE)) {
    perror("mmap");
    exit(1);
  }
  return (guarded){base, base + size};
}

static inline void guarded_free(guarded g) {
  munmap(g.base, (size_t)(g.end - g.base) + (size_t)sysconf(_SC_PAGESIZE));
}

/* A copy of n_bytes that ends exactly at the forbidden page. */
static inline void *guarded_copy(guarded g, const void *src, size_t n_bytes) {
  return n_bytes ? memcpy(g.end - n_bytes, src, n_bytes) : g.end;
}

/* ---- values ---- */

typedef enum case_mode { ORDINARY, ZEROS, LARGEST, TINY, HUGE_SCALES, N_MODES } case_mode;

static const char *const mode_names[N_MODES] = {"ordinary", "zeros", "largest", "tiny", "huge"};

static const llm_type all_types[] = {LLM_TYPE_F32,  LLM_TYPE_F16,  LLM_TYPE_BF16, LLM_TYPE_Q8_0,
                                     LLM_TYPE_Q4_0, LLM_TYPE_Q4_1, LLM_TYPE_Q5_0, LLM_TYPE_Q5_1,
                                     LLM_TYPE_Q4_K, LLM_TYPE_Q5_K, LLM_TYPE_Q6_K};
enum { N_TYPES = sizeof all_types / sizeof *all_types };

static inline float mode_float(case_mode mode) {
  switch (mode) {
  case ZEROS: return random_u64() & 1 ? 0.0f : -0.0f;
  case LARGEST: return random_u64() & 1 ? 1.0f : -1.0f;
  case TINY: return random_float() * 0x1p-70f; /* products are subnormal */
  case HUGE_SCALES: return random_float() * 0x1p55f;
  default: return random_float();
  }
}

static inline uint16_t mode_scale(case_mode mode) {
  switch (mode) {
  case ZEROS: return 0;
  case TINY: return (uint16_t)(random_u64() & 0x83ff); /* subnormal */
  case HUGE_SCALES: return (uint16_t)(0x7800 | (random_u64() & 0x83ff));
  default: return f32_to_f16(random_float() * 0.02f);
  }
}

/* Any bits but for the float16 scales, which are finite. */
static inline void fill_block(llm_type type, case_mode mode, uint8_t *bytes, size_t size) {
  size_t first = type == LLM_TYPE_Q6_K ? offsetof(block_q6_k, d) : 0;
  for (size_t i = 0; i < size; i++) {
    bytes[i] = mode == ZEROS ? 0 : (uint8_t)random_u64();
    if (mode != LARGEST) continue;
    if (type == LLM_TYPE_Q8_0) /* -128; others: all bits set or none */
      bytes[i] = 0x80;
    else if (type == LLM_TYPE_Q6_K && i >= offsetof(block_q6_k, scales))
      bytes[i] = bytes[i] & 1 ? 0x80 : 0x7f; /* scales -128, 127 */
    else
      bytes[i] = bytes[i] & 1 ? 0xff : 0x00;
  }
  for (size_t i = 0; i <= (size_t)type_has_minimum(type); i++) {
    uint16_t scale = mode_scale(mode);
    memcpy(bytes + first + 2 * i, &scale, sizeof scale);
  }
}

static inline void fill_weights(llm_type type, case_mode mode, void *dst, size_t n) {
  uint8_t *bytes = dst;
  if (!type_is_quantized(type)) {
    size_t size = type_row_bytes(type, 1);
    for (size_t i = 0; i < n; i++) {
      float x = mode_float(mode);
      if (type == LLM_TYPE_F16 && mode == HUGE_SCALES) x *= 0x1p-40f; /* still finite */
      quantize(type, &x, 1, bytes + i * size);
    }
    return;
  }
  llm_type_info info = llm_type_describe(type);
  for (size_t b = 0; b < n / info.n_per_block; b++, bytes += info.bytes_per_block)
    fill_block(type, mode, bytes, info.bytes_per_block);
}

/* ---- activations ---- */

static inline void acts_free(act_rows *a) {
  free((void *)a->x);
  free(a->q);
}

/* At a multiple of 64, as an arena's parts lie; a file's tensors at one of 32 at least. */
static inline void *aligned_new(size_t n_bytes) {
  return aligned_alloc(64, (n_bytes + 63) / 64 * 64);
}

static inline act_rows acts_new(case_mode mode, size_t n_tok, size_t n_in) {
  size_t n = n_tok * n_in;
  float *x = aligned_new(n * sizeof *x);
  for (size_t i = 0; i < n; i++) x[i] = mode_float(mode);
  act_rows a = {.n_tok = n_tok, .n_in = n_in, .x = x};
  if (n_in % QK) return a;
  a.q = aligned_new(n / QK * sizeof *a.q);
  kernels_find("scalar")->quantize_row(x, n, a.q);
  return a;
}

/* The last n_tok tokens of `all`, each array ending at a forbidden page. */
typedef struct guarded_acts {
  guarded g[2];
  act_rows rows;
} guarded_acts;

static inline guarded_acts guarded_acts_new(const act_rows *all, size_t n_tok) {
  guarded_acts a = {.rows = *all};
  size_t n = n_tok * all->n_in, skip = (all->n_tok - n_tok) * all->n_in;
  a.rows.n_tok = n_tok;
  size_t q_bytes = n / QK * sizeof *all->q;
  a.g[0] = guarded_new(n * 4), a.g[1] = guarded_new(q_bytes);
  a.rows.x = guarded_copy(a.g[0], all->x + skip, n * 4);
  if (all->q) a.rows.q = guarded_copy(a.g[1], all->q + skip / QK, q_bytes);
  return a;
}

static inline void guarded_acts_free(guarded_acts *a) {
  guarded_free(a->g[0]), guarded_free(a->g[1]);
}

#endif
