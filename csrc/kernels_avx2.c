/* kernels_avx2.c: matrix products with float weights by AVX2, FMA and F16C, and the table. Layer 2.
 * Tiles of rows x tokens (or keys x queries), two registers of 8 lanes an output; many tokens share
 * blocks of rows that stay in L2. */
#include "kernels.h"

#if defined(__x86_64__)
#include "kernels_avx2.h"

enum { MAX_TILE = 6 };

/* Rows r, r + apart, ... times vectors v, v + 1, ... */
AVX2_INLINE void float_tile(const llm_type type, const int n_row, const int n_vec,
                            const float_product *p, size_t r, size_t apart, size_t v) {
  const char *w = p->w + r * p->row_bytes;
  const size_t stride = apart * p->row_bytes;
  const float *x = p->x + v * p->n_in;
  __m256 sum[2][MAX_TILE]; /* lanes 0 to 7 and 8 to 15 */
  UNROLL
  for (int i = 0; i < n_row * n_vec; i++) sum[0][i] = sum[1][i] = _mm256_setzero_ps();
  for (size_t k = 0; k < p->n_in; k += LANES) {
    UNROLL
    for (size_t half = 0; half < 2; half++) {
      __m256 wk[4];
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

AVX2_INLINE void float_one(const llm_type type, const float_product *p) {
  const size_t apart = p->n_row / 4;
  for (size_t r = 0; r < apart; r++) float_tile(type, 4, 1, p, r, apart, 0);
  for (size_t r = 4 * apart; r < p->n_row; r++) float_tile(type, 1, 1, p, r, 1, 0);
}

AVX2_INLINE void float_rows(const llm_type type, const int n_vec, const float_product *p, size_t v,
                            size_t r0, size_t r1) {
  size_t r = r0;
  for (; r + 2 <= r1; r += 2) float_tile(type, 2, n_vec, p, r, 1, v);
  if (r < r1) float_tile(type, 1, n_vec, p, r, 1, v);
}

enum { FLOAT_BLOCK_BYTES = 128 << 10 }; /* of weights that stay in L2 while all vectors pass */

AVX2_INLINE void float_many(const llm_type type, const float_product *p) {
  const size_t step = FLOAT_BLOCK_BYTES / p->row_bytes / 2 * 2 + 2;
  for (size_t r0 = 0; r0 < p->n_row; r0 += step) {
    size_t r1 = min_size(r0 + step, p->n_row), v = 0;
    for (; v + 3 <= p->n_vec; v += 3) float_rows(type, 3, p, v, r0, r1);
    if (p->n_vec - v == 2) float_rows(type, 2, p, v, r0, r1);
    if (p->n_vec - v == 1) float_rows(type, 1, p, v, r0, r1);
  }
}

#define DEFINE_FLOAT_PRODUCT(name, type)                                                           \
  AVX2 void float_product_##name##_avx2(const float_product *p) {                                  \
    if (p->n_in % LANES)                                                                           \
      float_odd(type, p);                                                                          \
    else if (p->n_vec == 1)                                                                        \
      float_one(type, p);                                                                          \
    else                                                                                           \
      float_many(type, p);                                                                         \
  }

DEFINE_FLOAT_PRODUCT(f32, LLM_TYPE_F32)
DEFINE_FLOAT_PRODUCT(f16, LLM_TYPE_F16)
DEFINE_FLOAT_PRODUCT(bf16, LLM_TYPE_BF16)

static float_product product_of(const matmul_args *m, size_t r0, size_t r1, size_t element_bytes) {
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

#define DEFINE_FLOAT_MATMUL(type, element_bytes)                                                   \
  static void matmul_##type##_avx2(const matmul_args *m, size_t r0, size_t r1, void *scratch) {    \
    (void)scratch;                                                                                 \
    float_product p = product_of(m, r0, r1, element_bytes);                                        \
    float_product_##type##_avx2(&p);                                                               \
  }

DEFINE_FLOAT_MATMUL(f32, 4)
DEFINE_FLOAT_MATMUL(f16, 2)
DEFINE_FLOAT_MATMUL(bf16, 2)

void kernels_set_avx2(kernels *k) {
  k->matmul[LLM_TYPE_F32] = matmul_f32_avx2;
  k->matmul[LLM_TYPE_F16] = matmul_f16_avx2;
  k->matmul[LLM_TYPE_BF16] = matmul_bf16_avx2;
  kernels_set_avx2_quant(k);
  kernels_set_avx2_rows(k);
  kernels_set_avx2_attention(k);
}
#endif
