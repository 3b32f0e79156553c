/* kernels_avx2.c: matrix products with float weights by AVX2, FMA and F16C, and the table. Layer 2.
 * Tiles of rows x tokens (or keys x queries), two registers of 8 lanes an output. Many tokens share
 * blocks of rows that stay in L2. */
#include "kernels.h"

#if defined(__x86_64__)
#include "kernels_avx2_quant.h"

enum { MAX_TILE = 6 };

/* Elements k0 to k1 of all dot products. kept: what the lanes of a tile's outputs hold between two
 * parts, lanes 0 to 7 first. */
typedef struct dot_part {
  size_t k0, k1;
  __m256 (*kept)[MAX_TILE];
} dot_part;

/* Rows r, r + apart, ... times vectors v, v + 1, ... */
AVX2_INLINE void float_tile(const llm_type type, const int n_row, const int n_vec,
                            const float_product *p, size_t r, size_t apart, size_t v,
                            const dot_part part) {
  const char *w = p->w + r * p->row_bytes;
  const size_t stride = apart * p->row_bytes;
  const float *x = p->x + v * p->n_in;
  __m256 sum[2][MAX_TILE]; /* lanes 0 to 7 and 8 to 15 */
  UNROLL
  for (size_t half = 0; half < 2; half++) {
    UNROLL
    for (int i = 0; i < n_row * n_vec; i++)
      sum[half][i] = part.k0 ? part.kept[half][i] : _mm256_setzero_ps();
  }
  for (size_t k = part.k0; k < part.k1; k += LANES) {
    UNROLL
    for (size_t half = 0; half < 2; half++) {
      __m256 wk[4];
      if (n_vec > 1 && v == 0 && half == 0 && (type == LLM_TYPE_F32 || k % (2 * LANES) == 0)) {
        UNROLL
        for (size_t i = 0; i < (size_t)n_row; i++)
          prefetch((const uint8_t *)w + i * stride + k * (type == LLM_TYPE_F32 ? 4 : 2));
      }
      UNROLL
      for (int i = 0; i < n_row; i++) wk[i] = load8(type, w + (size_t)i * stride, k + 8 * half);
      UNROLL
      for (int j = 0; j < n_vec; j++) {
        __m256 xk = _mm256_loadu_ps(x + j * p->n_in + k + 8 * half);
        KEEP(xk);
        UNROLL
        for (int i = 0; i < n_row; i++)
          sum[half][i * n_vec + j] = _mm256_fmadd_ps(wk[i], xk, sum[half][i * n_vec + j]);
      }
    }
  }
  if (part.k1 < p->n_in) {
    UNROLL
    for (size_t half = 0; half < 2; half++) {
      UNROLL
      for (int i = 0; i < n_row * n_vec; i++) part.kept[half][i] = sum[half][i];
    }
    return;
  }
  float *y = p->y + v * p->ldy + r;
  UNROLL
  for (int i = 0; i < n_row; i++) {
    UNROLL
    for (int j = 0; j < n_vec; j++)
      y[(size_t)j * p->ldy + (size_t)i * apart] =
          sum_lanes(sum[0][i * n_vec + j], sum[1][i * n_vec + j]);
  }
}

/* Widths that are no multiple of 16, one output at a time. Lanes without an element keep their
 * value, the sign of zero included. */
AVX2_INLINE float float_dot(const llm_type type, const char *w, const float *x, size_t n) {
  const size_t n_whole = n / LANES * LANES, n_tail = n - n_whole;
  const size_t size = type == LLM_TYPE_F32 ? 4 : 2;
  float w_tail[LANES] = {0}, x_tail[LANES] = {0};
  memcpy(w_tail, w + n_whole * size, n_tail * size);
  memcpy(x_tail, x + n_whole, n_tail * sizeof *x);
  __m256 sum[2];
  UNROLL
  for (size_t half = 0; half < 2; half++) {
    sum[half] = _mm256_setzero_ps();
    for (size_t k = 8 * half; k < n_whole; k += LANES)
      sum[half] = _mm256_fmadd_ps(load8(type, w, k), _mm256_loadu_ps(x + k), sum[half]);
    __m256 next = _mm256_fmadd_ps(load8(type, w_tail, 8 * half), _mm256_loadu_ps(x_tail + 8 * half),
                                  sum[half]);
    __m256i used = first_lanes((int)n_tail - 8 * (int)half);
    sum[half] = _mm256_blendv_ps(sum[half], next, _mm256_castsi256_ps(used));
  }
  return sum_lanes(sum[0], sum[1]);
}

AVX2_INLINE void float_odd(const llm_type type, const float_product *p) {
  for (size_t r = 0; r < p->n_row; r++)
    for (size_t v = 0; v < p->n_vec; v++)
      p->y[v * p->ldy + r] = float_dot(type, p->w + r * p->row_bytes, p->x + v * p->n_in, p->n_in);
}

AVX2_INLINE void float_one(const llm_type type, const float_product *p, size_t v) {
  const size_t apart = p->n_row / 4;
  const dot_part all = {0, p->n_in, NULL};
  for (size_t r = 0; r < apart; r++) float_tile(type, 4, 1, p, r, apart, v, all);
  for (size_t r = 4 * apart; r < p->n_row; r++) float_tile(type, 1, 1, p, r, 1, v, all);
}

#define DEFINE_FLOAT_PRODUCT(name, type)                                                           \
  AVX2 void float_product_##name##_avx2(const float_product *p) {                                  \
    if (p->n_in % LANES)                                                                           \
      float_odd(type, p);                                                                          \
    else                                                                                           \
      for (size_t v = 0; v < p->n_vec; v++) float_one(type, p, v);                                 \
  }

DEFINE_FLOAT_PRODUCT(f32, LLM_TYPE_F32)
DEFINE_FLOAT_PRODUCT(f16, LLM_TYPE_F16)
DEFINE_FLOAT_PRODUCT(bf16, LLM_TYPE_BF16)

/* ---- many tokens ---- */

/* A block of rows stays in L2 while all tokens pass; of each part of it, the tokens of a tile stay
 * in L1 while its rows pass. */
enum { BLOCK_BYTES = 256 << 10, BLOCK_ROWS = 64, PART = 1024 };

/* As float32, whatever the type. */
static size_t block_rows(size_t n_in) {
  size_t n = BLOCK_BYTES / (n_in * sizeof(float)) / 2 * 2;
  return n < 2 ? 2 : min_size(n, BLOCK_ROWS);
}

/* n_vec vectors from v on times all rows, of which the last odd one meets itself. */
AVX2_INLINE void pass_rows(const llm_type type, const int n_vec, const float_product *p, size_t v) {
  __m256 kept[BLOCK_ROWS / 2][2][MAX_TILE];
  for (size_t k = 0; k < p->n_in; k += PART) {
    for (size_t r = 0; r < p->n_row; r += 2) {
      const dot_part part = {k, min_size(k + PART, p->n_in), kept[r / 2]};
      float_tile(type, 2, n_vec, p, r, r + 1 < p->n_row, v, part);
    }
  }
}

/* Two vectors at least: 4 are 2 + 2, so that one is never left. */
AVX2_INLINE void float_block(const llm_type type, const float_product *p) {
  for (size_t v = 0, left; (left = p->n_vec - v) > 0; v += left == 2 || left == 4 ? 2 : 3) {
    if (left == 2 || left == 4)
      pass_rows(type, 2, p, v);
    else
      pass_rows(type, 3, p, v);
  }
}

#define DEFINE_FLOAT_BLOCK(name, type)                                                             \
  AVX2 SHARED_CODE void float_block_##name(const float_product *p) { float_block(type, p); }
DEFINE_FLOAT_BLOCK(f32, LLM_TYPE_F32)
DEFINE_FLOAT_BLOCK(f16, LLM_TYPE_F16)
DEFINE_FLOAT_BLOCK(bf16, LLM_TYPE_BF16)

/* One instruction expands F16, two BF16: from some tokens on those are written down once. */
enum { EXPAND_FROM = 8 };

AVX2 static void block_bf16(float_product *p, float *scratch) {
  if (p->n_vec < EXPAND_FROM) {
    float_block_bf16(p);
    return;
  }
  for (size_t i = 0; i < p->n_row * p->n_in; i += 8)
    _mm256_storeu_ps(scratch + i, load8(LLM_TYPE_BF16, p->w, i));
  p->w = (const char *)scratch, p->row_bytes = p->n_in * sizeof *scratch;
  float_block_f32(p);
}

AVX2_INLINE void float_matmul(const llm_type type, const matmul_args *m, size_t r0, size_t r1,
                              void *scratch) {
  const size_t step = block_rows(m->act->n_in);
  for (size_t r = r0; r < r1; r += step) {
    float_product p = product_of(m, r, min_size(r + step, r1), type == LLM_TYPE_F32 ? 4 : 2);
    if (type == LLM_TYPE_F32)
      float_block_f32(&p);
    else if (type == LLM_TYPE_F16)
      float_block_f16(&p);
    else
      block_bf16(&p, scratch);
  }
}

#define DEFINE_FLOAT_MATMUL(name, type)                                                            \
  AVX2 static void matmul_##name##_avx2(const matmul_args *m, size_t r0, size_t r1,                \
                                        void *scratch) {                                           \
    if (m->act->n_tok > 1 && m->act->n_in % LANES == 0) {                                          \
      float_matmul(type, m, r0, r1, scratch);                                                      \
    } else {                                                                                       \
      float_product p = product_of(m, r0, r1, type == LLM_TYPE_F32 ? 4 : 2);                       \
      float_product_##name##_avx2(&p);                                                             \
    }                                                                                              \
  }

DEFINE_FLOAT_MATMUL(f32, LLM_TYPE_F32)
DEFINE_FLOAT_MATMUL(f16, LLM_TYPE_F16)
DEFINE_FLOAT_MATMUL(bf16, LLM_TYPE_BF16)

static size_t scratch_bytes_avx2(size_t n_in) {
  const size_t quants = prefill_scratch_avx2(n_in);
  const size_t floats = n_in % LANES ? 0 : block_rows(n_in) * n_in * sizeof(float);
  return quants > floats ? quants : floats;
}

void kernels_set_avx2(kernels *k) {
  k->matmul[LLM_TYPE_F32] = matmul_f32_avx2;
  k->matmul[LLM_TYPE_F16] = matmul_f16_avx2;
  k->matmul[LLM_TYPE_BF16] = matmul_bf16_avx2;
  k->scratch_bytes = scratch_bytes_avx2;
  kernels_set_avx2_quant(k);
  kernels_set_avx2_rows(k);
  kernels_set_avx2_attention(k);
}
#endif
