/* kernels_avx512.h: what the AVX-512 files share: loads that spread rows or blocks over the four
 * 128-bit lanes, quants as the unsigned bytes that VNNI wants, scales of 16 rows. Layer 2. */
#ifndef LLM_KERNELS_AVX512_H
#define LLM_KERNELS_AVX512_H

#ifdef LLM_EMULATE_AVX512 /* tests on machines without it, all files as one */
#include "emulate_avx512.h"
#define AVX512_SHARED static
#else
#define AVX512_SHARED
#include <immintrin.h>
#define AVX512                                                                                     \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")))
#endif

#include "kernels_avx2.h"

#define AVX512_INLINE static inline __attribute__((always_inline)) AVX512

/* One token (n_out is 4 at least), and any number of them (16 rows at least), with the scratch that
 * each needs. */
AVX512_SHARED size_t decode_scratch_avx512(size_t n_in);
AVX512_SHARED size_t prefill_scratch_avx512(size_t n_in);
#define DECLARE_QUANTIZED(name, type)                                                              \
  AVX512_SHARED void decode_##name##_avx512(const matmul_args *m, size_t r0, size_t r1,            \
                                            void *scratch);                                        \
  AVX512_SHARED void prefill_##name##_avx512(const matmul_args *m, size_t r0, size_t r1,           \
                                             void *scratch);
FOR_QUANTIZED_TYPES(DECLARE_QUANTIZED)
AVX512_SHARED void kernels_set_avx512_attention(kernels *k);

/* 16 bytes from each of four places, one a 128-bit lane. */
AVX512_INLINE __m512i load_four(const uint8_t *p, size_t o1, size_t o2, size_t o3) {
  __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(load16(p)), load16(p + o1), 1);
  __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(load16(p + o2)), load16(p + o3), 1);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

/* The bits of `bits` in x, moved left (right when negative), or'ed to y. */
AVX512_INLINE __m512i or_bits(__m512i y, __m512i x, const int left, const int bits) {
  x = left >= 0 ? _mm512_slli_epi16(x, left >= 0 ? left : 0)
                : _mm512_srli_epi16(x, left < 0 ? -left : 0);
  return _mm512_or_si512(y, _mm512_and_si512(x, _mm512_set1_epi8((char)bits)));
}

/* Adds 16 to the bytes of y whose bit is set; h has the 32 bits in each lane's first dword. */
AVX512_INLINE __m512i add_fifths(__m512i y, __m512i h, const int first_byte) {
  const __m512i each = _mm512_set1_epi64((long long)0x8040201008040201);
  const __m512i at = _mm512_broadcast_i32x4(
      _mm_add_epi8(_mm_set_epi64x(0x0101010101010101, 0), _mm_set1_epi8((char)first_byte)));
  __mmask64 set = _mm512_test_epi8_mask(_mm512_shuffle_epi8(h, at), each);
  return _mm512_mask_add_epi8(y, set, y, _mm512_set1_epi8(16));
}

/* Piece k of four blocks, at `block` and o1, o2, o3 bytes further, one a 128-bit lane: its two
 * chunks as unsigned bytes. */
AVX512_INLINE void load_piece(const llm_type type, const uint8_t *block, size_t k, size_t o1,
                              size_t o2, size_t o3, __m512i *low, __m512i *high) {
  const uint8_t *q = block + quants_at(type) + 16 * k;
  __m512i w = load_four(q, o1, o2, o3);
  if (type == LLM_TYPE_Q8_0) {
    const __m512i sign = _mm512_set1_epi8((char)0x80);
    *low = _mm512_xor_si512(w, sign);
    *high = _mm512_xor_si512(load_four(q + 16, o1, o2, o3), sign);
    return;
  }
  const __m512i nibble = _mm512_set1_epi8(15);
  *low = _mm512_and_si512(w, nibble);
  *high = _mm512_and_si512(_mm512_srli_epi16(w, 4), nibble);
  const uint8_t *h = block + high_at(type);
  if (type == LLM_TYPE_Q5_0 || type == LLM_TYPE_Q5_1) {
    __m512i bits = load_four(h, o1, o2, o3);
    *low = add_fifths(*low, bits, 0);
    *high = add_fifths(*high, bits, 2);
  } else if (type == LLM_TYPE_Q5_K) { /* bit b is of block b */
    __m512i bits = load_four(h + k % 2 * 16, o1, o2, o3);
    bits = _mm512_srl_epi16(bits, _mm_cvtsi32_si128((int)(k / 2 * 2)));
    *low = or_bits(*low, bits, 4, 0x10);
    *high = or_bits(*high, bits, 3, 0x10);
  } else if (type == LLM_TYPE_Q6_K) { /* pairs of bits */
    __m512i bits = load_four(h + k / 4 * 32 + k % 2 * 16, o1, o2, o3);
    bits = _mm512_srl_epi16(bits, _mm_cvtsi32_si128((int)(k % 4 / 2 * 2)));
    *low = or_bits(*low, bits, 4, 0x30);
    *high = or_bits(*high, bits, 0, 0x30);
  }
}

enum { PANEL_ROWS = 16 };

/* The rows of a panel that are stored. */
ALWAYS_INLINE __mmask16 panel_mask(const row_group *g) {
  const unsigned below = (1u << (g->to - g->first)) - 1, skipped = (1u << (g->from - g->first)) - 1;
  return (__mmask16)(below & ~skipped);
}

/* By a mask: a call of memcpy would cost all sums their registers. */
AVX512_INLINE void store_panel(float *y, const row_group *g, __m512 sums) {
  _mm512_mask_storeu_ps(y + g->first, panel_mask(g), sums);
}

/* In: lane l of d[i] is 16 bytes of row 4l + i. Out: d[j] is dword j of rows 0 to 15. */
AVX512_INLINE void transpose(__m512i d[4]) {
  __m512i a = _mm512_unpacklo_epi32(d[0], d[1]), b = _mm512_unpackhi_epi32(d[0], d[1]);
  __m512i c = _mm512_unpacklo_epi32(d[2], d[3]), e = _mm512_unpackhi_epi32(d[2], d[3]);
  d[0] = _mm512_unpacklo_epi64(a, c);
  d[1] = _mm512_unpackhi_epi64(a, c);
  d[2] = _mm512_unpacklo_epi64(b, e);
  d[3] = _mm512_unpackhi_epi64(b, e);
}

/* Four registers of four dwords a lane to one: element i of a lane is the sum of register i's. */
AVX512_INLINE __m512i sum_dwords(const __m512i d[4]) {
  __m512i a =
      _mm512_add_epi32(_mm512_unpacklo_epi32(d[0], d[1]), _mm512_unpackhi_epi32(d[0], d[1]));
  __m512i b =
      _mm512_add_epi32(_mm512_unpacklo_epi32(d[2], d[3]), _mm512_unpackhi_epi32(d[2], d[3]));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

/* 16 bytes of 16 rows: d[j] is dword j of all. */
AVX512_INLINE void load_rows(const uint8_t *p, size_t row_bytes, __m512i d[4]) {
  UNROLL
  for (size_t i = 0; i < 4; i++)
    d[i] = load_four(p + i * row_bytes, 4 * row_bytes, 8 * row_bytes, 12 * row_bytes);
  transpose(d);
}

/* The float16s in the high (1) or low (0) halves of dwords. */
AVX512_INLINE __m512 floats_of(__m512i d, const int high) {
  return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(high ? _mm512_srli_epi32(d, 16) : d));
}

/* Byte i of each dword as a float. */
AVX512_INLINE __m512 unsigned_byte(__m512i d, const int i) {
  return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(d, 8 * i), _mm512_set1_epi32(255)));
}

AVX512_INLINE __m512 signed_byte(__m512i d, const int i) {
  return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(d, 24 - 8 * i), 24));
}

/* The header of Q4_K or Q5_K in each lane: out come eight scales and eight minima, a byte each. */
AVX512_INLINE __m512i unpack_six_bits(__m512i header) {
  const int d1 = 0x07060504, d2 = 0x0b0a0908, d3 = 0x0f0e0d0c, none = (int)0x80808080;
  const int six = 0x3f3f3f3f, four = 0x0f0f0f0f;
  __m512i low =
      _mm512_shuffle_epi8(header, _mm512_broadcast_i32x4(_mm_setr_epi32(d1, d3, d2, none)));
  __m512i last =
      _mm512_shuffle_epi8(header, _mm512_broadcast_i32x4(_mm_setr_epi32(none, none, none, d3)));
  __m512i two =
      _mm512_shuffle_epi8(header, _mm512_broadcast_i32x4(_mm_setr_epi32(none, d1, none, d2)));
  low = _mm512_and_si512(low, _mm512_broadcast_i32x4(_mm_setr_epi32(six, four, six, 0)));
  return or_bits(or_bits(low, last, -4, 15), two, -2, 0x30);
}

/* Of the 8 blocks of a super-block in 16 rows: the scale, and the minimum or Q6_K's second scale.
 * quant.h's k_scale says how the six-bit numbers lie. */
AVX512_INLINE void super_scales(const llm_type type, const uint8_t *block, size_t row_bytes,
                                __m512 scale[8], __m512 second[8]) {
  __m512i d[4];
  if (type == LLM_TYPE_Q6_K) {
    __m512i end[4];
    load_rows(block + offsetof(block_q6_k, scales), row_bytes, d);
    load_rows(block + sizeof(block_q6_k) - 16, row_bytes, end);
    const __m512 all = floats_of(end[3], 1);
    UNROLL
    for (int b = 0; b < 8; b++) {
      scale[b] = _mm512_mul_ps(all, signed_byte(d[b / 2], b % 2 * 2));
      second[b] = _mm512_mul_ps(all, signed_byte(d[b / 2], b % 2 * 2 + 1));
    }
    return;
  }
  load_rows(block, row_bytes, d);
  const __m512i six = _mm512_set1_epi8(63), four = _mm512_set1_epi8(15);
  const __m512 all = floats_of(d[0], 0);
  const __m512 minus = _mm512_sub_ps(_mm512_set1_ps(-0.0f), floats_of(d[0], 1));
  const __m512i scales[2] = {_mm512_and_si512(d[1], six),
                             or_bits(_mm512_and_si512(d[3], four), d[1], -2, 0x30)};
  const __m512i minima[2] = {
      _mm512_and_si512(d[2], six),
      or_bits(_mm512_and_si512(_mm512_srli_epi32(d[3], 4), four), d[2], -2, 0x30)};
  UNROLL
  for (int b = 0; b < 8; b++) {
    scale[b] = _mm512_mul_ps(all, unsigned_byte(scales[b / 4], b % 4));
    second[b] = _mm512_mul_ps(minus, unsigned_byte(minima[b / 4], b % 4));
  }
}

#endif
