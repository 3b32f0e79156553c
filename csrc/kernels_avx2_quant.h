/* kernels_avx2_quant.h: what the AVX2 products with quantized weights share: quants of 8 rows as
 * bytes, scales of super-blocks. Layer 2. */
#ifndef LLM_KERNELS_AVX2_QUANT_H
#define LLM_KERNELS_AVX2_QUANT_H

#include "kernels_avx2.h"

/* Many tokens; n_out is 8 at least. */
size_t prefill_scratch_avx2(size_t n_in);
#define DECLARE_PREFILL(name, type)                                                                \
  void prefill_##name##_avx2(const matmul_args *m, size_t r0, size_t r1, void *scratch);
FOR_QUANTIZED_TYPES(DECLARE_PREFILL)

enum { ROWS = 8 };

/* No call of memcpy, which would cost all sums their registers. */
AVX2_INLINE void store_group(float *y, const row_group *g, __m256 sums) {
  if (g->to - g->from == ROWS) {
    _mm256_storeu_ps(y + g->first, sums);
    return;
  }
  const __m256i to = first_lanes((int)(g->to - g->first)),
                from = first_lanes((int)(g->from - g->first));
  _mm256_maskstore_ps(y + g->first, _mm256_andnot_si256(from, to), sums);
}

ALWAYS_INLINE int has_five_bits(const llm_type type) {
  return type == LLM_TYPE_Q5_0 || type == LLM_TYPE_Q5_1 || type == LLM_TYPE_Q5_K;
}

/* Rows i and i + 4 of 16 bytes each. */
AVX2_INLINE __m256i load_pair(const uint8_t *p, size_t four_rows) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(load16(p)), load16(p + four_rows), 1);
}

/* The bits of `bits` in x, moved left (right when negative), or'ed to y. */
AVX2_INLINE __m256i or_bits(__m256i y, __m256i x, const int left, const int bits) {
  x = left >= 0 ? _mm256_slli_epi16(x, left >= 0 ? left : 0)
                : _mm256_srli_epi16(x, left < 0 ? -left : 0);
  return _mm256_or_si256(y, _mm256_and_si256(x, _mm256_set1_epi8((char)bits)));
}

/* Adds 16 to the bytes of y whose bit is set; h has the 32 bits in each lane's first dword. */
AVX2_INLINE __m256i add_fifths(__m256i y, __m256i h, const int first_byte) {
  const __m256i each = _mm256_set1_epi64x((long long)0x8040201008040201);
  const __m256i at = _mm256_broadcastsi128_si256(
      _mm_add_epi8(_mm_set_epi64x(0x0101010101010101, 0), _mm_set1_epi8((char)first_byte)));
  __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(h, at), each), each);
  return _mm256_or_si256(y, _mm256_and_si256(set, _mm256_set1_epi8(16)));
}

/* Piece k of a block in two rows that lie four_rows bytes apart, each a 128-bit lane: its two
 * chunks as bytes, Q8_0's signed, the others' greater than the weights by zero_point. */
AVX2_INLINE void load_piece(const llm_type type, const uint8_t *block, size_t k, size_t four_rows,
                            __m256i *low, __m256i *high) {
  const uint8_t *q = block + quants_at(type) + 16 * k;
  __m256i w = load_pair(q, four_rows);
  if (type == LLM_TYPE_Q8_0) {
    *low = w;
    *high = load_pair(q + 16, four_rows);
    return;
  }
  const __m256i nibble = _mm256_set1_epi8(15);
  *low = _mm256_and_si256(w, nibble);
  *high = _mm256_and_si256(_mm256_srli_epi16(w, 4), nibble);
  const uint8_t *h = block + high_at(type);
  if (type == LLM_TYPE_Q5_0 || type == LLM_TYPE_Q5_1) {
    __m256i bits = load_pair(h, four_rows);
    *low = add_fifths(*low, bits, 0);
    *high = add_fifths(*high, bits, 2);
  } else if (type == LLM_TYPE_Q5_K) { /* bit b is of block b */
    __m256i bits = load_pair(h + k % 2 * 16, four_rows);
    bits = _mm256_srl_epi16(bits, _mm_cvtsi32_si128((int)(k / 2 * 2)));
    *low = or_bits(*low, bits, 4, 0x10);
    *high = or_bits(*high, bits, 3, 0x10);
  } else if (type == LLM_TYPE_Q6_K) { /* pairs of bits */
    __m256i bits = load_pair(h + k / 4 * 32 + k % 2 * 16, four_rows);
    bits = _mm256_srl_epi16(bits, _mm_cvtsi32_si128((int)(k % 4 / 2 * 2)));
    *low = or_bits(*low, bits, 4, 0x30);
    *high = or_bits(*high, bits, 0, 0x30);
  }
}

/* In: the lanes of d[i] are 16 bytes of rows i and i + 4. Out: d[j] is dword j of rows 0 to 7. */
AVX2_INLINE void transpose(__m256i d[4]) {
  __m256i a = _mm256_unpacklo_epi32(d[0], d[1]), b = _mm256_unpackhi_epi32(d[0], d[1]);
  __m256i c = _mm256_unpacklo_epi32(d[2], d[3]), e = _mm256_unpackhi_epi32(d[2], d[3]);
  d[0] = _mm256_unpacklo_epi64(a, c);
  d[1] = _mm256_unpackhi_epi64(a, c);
  d[2] = _mm256_unpacklo_epi64(b, e);
  d[3] = _mm256_unpackhi_epi64(b, e);
}

/* 16 bytes of 8 rows: d[j] is dword j of all. */
AVX2_INLINE void load_rows(const uint8_t *p, size_t row_bytes, __m256i d[4]) {
  UNROLL
  for (size_t i = 0; i < 4; i++) d[i] = load_pair(p + i * row_bytes, 4 * row_bytes);
  transpose(d);
}

/* The float16s in the high (1) or low (0) halves of dwords. */
AVX2_INLINE __m256 floats_of(__m256i d, const int high) {
  d = high ? _mm256_srli_epi32(d, 16) : _mm256_and_si256(d, _mm256_set1_epi32(0xffff));
  return _mm256_cvtph_ps(
      _mm_packus_epi32(_mm256_castsi256_si128(d), _mm256_extracti128_si256(d, 1)));
}

/* Byte i of each dword as a float. */
AVX2_INLINE __m256 unsigned_byte(__m256i d, const int i) {
  return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(d, 8 * i), _mm256_set1_epi32(255)));
}

AVX2_INLINE __m256 signed_byte(__m256i d, const int i) {
  return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(d, 24 - 8 * i), 24));
}

/* Of the 8 blocks of a super-block in 8 rows: the scale, and the minimum or Q6_K's second scale.
 * quant.h's k_scale says how the six-bit numbers lie. */
AVX2_INLINE void super_scales(const llm_type type, const uint8_t *block, size_t row_bytes,
                              __m256 scale[8], __m256 second[8]) {
  __m256i d[4];
  if (type == LLM_TYPE_Q6_K) {
    __m256i end[4];
    load_rows(block + offsetof(block_q6_k, scales), row_bytes, d);
    load_rows(block + sizeof(block_q6_k) - 16, row_bytes, end);
    const __m256 all = floats_of(end[3], 1);
    UNROLL
    for (int b = 0; b < 8; b++) {
      scale[b] = _mm256_mul_ps(all, signed_byte(d[b / 2], b % 2 * 2));
      second[b] = _mm256_mul_ps(all, signed_byte(d[b / 2], b % 2 * 2 + 1));
    }
    return;
  }
  load_rows(block, row_bytes, d);
  const __m256i six = _mm256_set1_epi8(63), four = _mm256_set1_epi8(15);
  const __m256 all = floats_of(d[0], 0);
  const __m256 minus = _mm256_sub_ps(_mm256_set1_ps(-0.0f), floats_of(d[0], 1));
  const __m256i scales[2] = {_mm256_and_si256(d[1], six),
                             or_bits(_mm256_and_si256(d[3], four), d[1], -2, 0x30)};
  const __m256i minima[2] = {
      _mm256_and_si256(d[2], six),
      or_bits(_mm256_and_si256(_mm256_srli_epi32(d[3], 4), four), d[2], -2, 0x30)};
  UNROLL
  for (int b = 0; b < 8; b++) {
    scale[b] = _mm256_mul_ps(all, unsigned_byte(scales[b / 4], b % 4));
    second[b] = _mm256_mul_ps(minus, unsigned_byte(minima[b / 4], b % 4));
  }
}

#endif
