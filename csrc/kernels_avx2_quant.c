/* kernels_avx2_quant.c: quantized weights times one token by AVX2, and the table. Layer 2.
 *
 * 8 rows at a time, a register's 128-bit halves are two rows, so that a short tree of adds leaves
 * lane = row and block order costs one FMA a block. Integer sums are exact: 4-bit weights stay
 * below 8 * 2 * 15 * 127 = 30,480 in 16 bits, 5-bit ones below 4 * 2 * 31 * 127 = 31,496 and 6-bit
 * ones below 2 * 2 * 63 * 127 = 32,004 before they are widened; signed bytes are added up in 32. */
#include "kernels.h"

#if defined(__x86_64__)
#include "cpu.h"
#include "kernels_avx2_quant.h"

int avx2_small_l1;

static kernels below; /* the set that this one started from: takes matrices of fewer than 8 rows */

/* |w| * (sign of w applied to a): the one unsigned x signed product there is, exact for -128. */
AVX2_INLINE __m256i multiply_i8(__m256i w, __m256i a) {
  __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

/* Halves of x and y, four dwords each, to two dwords of x's half and two of y's. */
#define FOLD(add, width, x, y) add(_mm256_unpacklo_##width(x, y), _mm256_unpackhi_##width(x, y))

/* The products of a chunk, to be added up by add and sum_rows. */
AVX2_INLINE __m256i multiply(const llm_type type, __m256i w, __m256i a) {
  return type == LLM_TYPE_Q8_0 ? multiply_i8(w, a) : _mm256_maddubs_epi16(w, a);
}

AVX2_INLINE __m256i add(const llm_type type, __m256i x, __m256i y) {
  return type == LLM_TYPE_Q8_0 ? _mm256_add_epi32(x, y) : _mm256_add_epi16(x, y);
}

/* Lanes of p[i]: products of rows i and i + 4, of up to two chunks. Lane i is the sum of row i. */
AVX2_INLINE __m256i sum_rows(const llm_type type, const __m256i p[4]) {
  const __m256i ones = _mm256_set1_epi16(1);
  if (type == LLM_TYPE_Q8_0) {
    const __m256i a = FOLD(_mm256_add_epi32, epi32, p[0], p[1]);
    return FOLD(_mm256_add_epi32, epi64, a, FOLD(_mm256_add_epi32, epi32, p[2], p[3]));
  }
  const __m256i a = FOLD(_mm256_add_epi16, epi32, p[0], p[1]);
  const __m256i b = FOLD(_mm256_add_epi16, epi32, p[2], p[3]);
  if (has_five_bits(type) || type == LLM_TYPE_Q6_K) /* 16 bits do not hold the whole sum */
    return FOLD(_mm256_add_epi32, epi64, _mm256_madd_epi16(a, ones), _mm256_madd_epi16(b, ones));
  return _mm256_madd_epi16(FOLD(_mm256_add_epi16, epi64, a, b), ones);
}

/* 16 activations. */
AVX2_INLINE __m256i chunk_of(const act_block *a, size_t chunk) {
  return _mm256_broadcastsi128_si256(load16(a[chunk / 2].q + chunk % 2 * 16));
}

/* The product of a block added to y; the minimum, of types that have one. */
AVX2_INLINE __m256 add_block(const llm_type type, __m256i dot, __m256 scale, __m256 minimum,
                             const act_block *a, __m256 y) {
  scale = _mm256_mul_ps(scale, _mm256_broadcast_ss(&a->scale));
  y = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, y);
  return type_has_minimum(type) ? _mm256_fmadd_ps(minimum, _mm256_broadcast_ss(&a->scaled_sum), y)
                                : y;
}

/* One block of 8 rows that lie `stride` bytes apart, added to y. */
AVX2_INLINE __m256 decode_block(const llm_type type, const uint8_t *w, size_t stride,
                                const act_block *a, __m256 y) {
  const __m256i a_low = chunk_of(a, 0), a_high = chunk_of(a, 1);
  __m256 scale, minimum;
  __m256i p[4];
  load_scales(type, w, stride, &scale, &minimum);
  UNROLL
  for (size_t i = 0; i < 4; i++) {
    __m256i low, high;
    load_piece(type, w + i * stride, 0, 4 * stride, &low, &high);
    p[i] = add(type, multiply(type, low, a_low), multiply(type, high, a_high));
  }
  __m256i dot = sum_rows(type, p);
  if (zero_point(type) && type != LLM_TYPE_Q8_0)
    dot = _mm256_sub_epi32(dot, _mm256_set1_epi32(zero_point(type) * a->sum));
  return add_block(type, dot, scale, minimum, a, y);
}

/* Q6_K: the product of 16 elements. */
AVX2_INLINE __m256 half_total(__m256i sum, const act_block *a, size_t half) {
  const int zero = zero_point(LLM_TYPE_Q6_K) * half_sum(a, half);
  return _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, _mm256_set1_epi32(zero)));
}

/* The same with a super-block. Its pieces are gone through by a loop: unrolled it would take three
 * times the code. */
AVX2_INLINE __m256 decode_super(const llm_type type, const uint8_t *w, size_t stride,
                                const act_block *a, __m256 y) {
  const size_t q6 = type == LLM_TYPE_Q6_K, apart = q6 ? 1 : 2; /* pieces of a sum */
  __m256 scale[8], second[8], total[16];                       /* Q6_K's, of 16 elements each */
  super_scales(type, w, stride, scale, second);
  for (size_t k = 0; k < 8; k += apart) {
    const size_t at = low_block(type, k);
    const act_block *low_a = a + at, *high_a = low_a + high_after(type);
    __m256i low_dot[4], high_dot[4];
    UNROLL
    for (size_t j = 0; j < apart; j++) {
      const __m256i a_low = chunk_of(low_a, q6 ? k % 2 : j);
      const __m256i a_high = chunk_of(high_a, q6 ? k % 2 : j);
      UNROLL
      for (size_t i = 0; i < 4; i++) {
        __m256i low, high;
        load_piece(type, w + i * stride, k + j, 4 * stride, &low, &high);
        low = multiply(type, low, a_low), high = multiply(type, high, a_high);
        low_dot[i] = j ? add(type, low_dot[i], low) : low;
        high_dot[i] = j ? add(type, high_dot[i], high) : high;
      }
    }
    const __m256i low_sum = sum_rows(type, low_dot), high_sum = sum_rows(type, high_dot);
    if (q6) {
      total[2 * at + k % 2] = half_total(low_sum, low_a, k % 2);
      total[2 * (at + high_after(type)) + k % 2] = half_total(high_sum, high_a, k % 2);
    } else {
      y = add_block(type, low_sum, scale[k], second[k], low_a, y);
      y = add_block(type, high_sum, scale[k + 1], second[k + 1], high_a, y);
    }
  }
  if (!q6) return y;
  for (size_t i = 0; i < 8; i++) {
    __m256 sum = _mm256_mul_ps(total[2 * i], scale[i]);
    sum = _mm256_fmadd_ps(total[2 * i + 1], second[i], sum);
    y = _mm256_fmadd_ps(sum, _mm256_broadcast_ss(&a[i].scale), y);
  }
  return y;
}

AVX2_INLINE __m256 decode_rows(const llm_type type, const uint8_t *w, size_t stride,
                               const act_rows *act) {
  const size_t per = is_super(type) ? QK_SUPER / QK : 1, size = block_bytes(type);
  const uint8_t *ahead = w; /* in the order of the file */
  __m256 y = _mm256_setzero_ps();
  for (size_t b = 0; b < act->n_in / QK; b += per, w += size, ahead += ROWS * size) {
    for (size_t k = 0; k < ROWS * size; k += 64) prefetch(ahead + k);
    y = is_super(type) ? decode_super(type, w, stride, act->q + b, y)
                       : decode_block(type, w, stride, act->q + b, y);
  }
  return y;
}

SHARED_CODE void decode(rows_decoder decode_rows, size_t row_bytes, const matmul_args *m, size_t r0,
                        size_t r1) {
  decode_groups(decode_rows, ROWS, row_bytes, m, r0, r1);
}

#define DEFINE_QUANTIZED_MATMUL(name, type)                                                        \
  AVX2 static void decode_##name(const uint8_t *w, size_t stride, const act_rows *act, float *y) { \
    _mm256_storeu_ps(y, decode_rows(type, w, stride, act));                                        \
    LEAVE_AVX();                                                                                   \
  }                                                                                                \
  static void matmul_##name##_avx2(const matmul_args *m, size_t r0, size_t r1, void *scratch) {    \
    if (m->n_out < ROWS)                                                                           \
      below.matmul[type](m, r0, r1, NULL);                                                         \
    else if (m->act->n_tok == 1)                                                                   \
      decode(decode_##name, row_bytes_of(type, m->act->n_in), m, r0, r1);                          \
    else                                                                                           \
      prefill_##name##_avx2(m, r0, r1, scratch);                                                   \
  }
FOR_QUANTIZED_TYPES(DEFINE_QUANTIZED_MATMUL)

void kernels_set_avx2_quant(kernels *k) {
  below = *k;
  avx2_small_l1 = cpu_l1_bytes() <= 32 << 10;
#define SET_QUANTIZED(name, type) k->matmul[type] = matmul_##name##_avx2;
  FOR_QUANTIZED_TYPES(SET_QUANTIZED)
}
#endif
