/* kernels_avx512_quant.c: quantized weights times one token by AVX-512 with VNNI. Layer 2.
 *
 * Blocks of 32: 4 rows x 4 blocks, 128-bit lane = block, so that a short tree of adds leaves
 * element = row and the blocks follow one another in four 128-bit FMAs. Super-blocks: 16 rows,
 * whose scales are worth unpacking together; the same tree leaves a register with a row an element.
 * Weights become unsigned bytes, as VNNI wants them; what that adds to a dot product, a multiple of
 * the sum of the activations, is taken off again. */
#include "kernels.h"

#if defined(__x86_64__)
#include "kernels_avx512.h"

/* Each line is asked for three times: a single request is lost when the miss buffers are full. */
AVX512_INLINE void prefetch(const uint8_t *p) {
  _mm_prefetch((const char *)p + (16 << 10), _MM_HINT_T0);
  _mm_prefetch((const char *)p + (20 << 10), _MM_HINT_T0);
  _mm_prefetch((const char *)p + (24 << 10), _MM_HINT_T0);
}

/* ---- blocks of 32: 4 rows x 4 blocks ---- */

enum { ROWS = 4 };

/* Activations of four blocks as the weights meet them; what is one a block stands four times. */
typedef struct quad {
  int8_t low[64], high[64];
  float scale[16], scaled_sum[16];
  int32_t start[16]; /* -zero_point * sum */
} quad;

static size_t quads_for(size_t n_in) { return (n_in / QK + 3) / 4; }

static void fill_quads(const act_rows *act, int zero, quad *quads) {
  memset(quads, 0, quads_for(act->n_in) * sizeof *quads);
  for (size_t b = 0; b < act->n_in / QK; b++) {
    quad *a = &quads[b / 4];
    size_t lane = b % 4;
    memcpy(a->low + 16 * lane, act->q + b * QK, 16);
    memcpy(a->high + 16 * lane, act->q + b * QK + 16, 16);
    for (size_t i = 4 * lane; i < 4 * lane + 4; i++) {
      a->scale[i] = act->scale[b];
      a->scaled_sum[i] = act->scaled_sum[b];
      a->start[i] = -zero * act->sum[b];
    }
  }
}

/* The headers of up to four blocks of row i go to element i of each lane of h: 16-bit scales, or
 * dwords of scale and minimum. `bytes` may be read: the first 64, and where these do not hold four
 * headers, 64 from `then` on. */
AVX512_INLINE __m512i gather_headers(const llm_type type, const uint8_t *row, const int i,
                                     const size_t bytes, const int all, __m512i h) {
  const int size = (int)block_bytes(type), width = type_has_minimum(type) ? 4 : 2;
  const int in_first = (int)min_size(4, (63 + block_bytes(type)) / block_bytes(type));
  const int then = in_first == 4 ? 0 : (int)min_size(64, 4 * block_bytes(type) - 64);
  const short at1 = (short)(size / width);
  const short at2 = (short)((2 * size - (in_first > 2 ? 0 : then)) / width);
  const short at3 = (short)((3 * size - (in_first > 3 ? 0 : then)) / width);
  const __m512i at =
      width == 4 ? _mm512_setr_epi32(0, 0, 0, 0, at1, at1, at1, at1, at2, at2, at2, at2, at3, at3,
                                     at3, at3)
                 : _mm512_broadcast_i64x4(_mm256_setr_epi16(0, 0, 0, 0, at1, at1, at1, at1, at2,
                                                            at2, at2, at2, at3, at3, at3, at3));
  for (int part = 0; part < 2; part++) {
    const size_t begin = part ? (size_t)then : 0, left = bytes - begin;
    if (part && (in_first == 4 || bytes <= (size_t)(in_first * size))) break;
    const __mmask64 mask = left >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << left) - 1;
    const int lanes = (1 << 4 * in_first) - 1, to = 0x1111 << i & (part ? ~lanes : lanes);
    const uint8_t *p = row + begin;
    __m512i found = all ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi8(mask, p);
    h = width == 4 ? _mm512_mask_permutexvar_epi32(h, (__mmask16)to, at, found)
                   : _mm512_mask_permutexvar_epi16(h, (__mmask32)(to & 0xffff), at, found);
  }
  return h;
}

#define ADD_BLOCK(lane)                                                                            \
  y = _mm_fmadd_ps(_mm512_extractf32x4_ps(value, lane), _mm512_extractf32x4_ps(scale, lane), y);   \
  if (type_has_minimum(type))                                                                      \
    y = _mm_fmadd_ps(_mm512_extractf32x4_ps(minimum, lane), _mm512_extractf32x4_ps(sum, lane), y);

/* n blocks (1 to 4) of 4 rows added to y; ahead: where to prefetch from, in file order. */
AVX512_INLINE __m128 decode_quad(const llm_type type, const uint8_t *w, size_t row_bytes,
                                 const quad *a, const size_t n, const uint8_t *ahead, __m128 y) {
  const size_t size = block_bytes(type);
  const size_t o1 = min_size(1, n - 1) * size, o2 = min_size(2, n - 1) * size, o3 = (n - 1) * size;
  const __m512i a_low = _mm512_load_si512(a->low), a_high = _mm512_load_si512(a->high);
  __m512i dot[ROWS], headers = _mm512_setzero_si512();
  UNROLL
  for (int i = 0; i < ROWS; i++) {
    const uint8_t *row = w + (size_t)i * row_bytes;
    for (size_t k = 64 * (size_t)i; k < 16 * size; k += 256) prefetch(ahead + k);
    __m512i low, high;
    load_piece(type, row, 0, o1, o2, o3, &low, &high);
    dot[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), low, a_low);
    dot[i] = _mm512_dpbusd_epi32(dot[i], high, a_high);
    headers = gather_headers(type, row, i, n * size, n == 4, headers);
  }
  __m512i total = _mm512_add_epi32(sum_dwords(dot), _mm512_load_si512(a->start));
  __m512 value = _mm512_cvtepi32_ps(total), sum = _mm512_load_ps(a->scaled_sum), scale, minimum;
  if (type_has_minimum(type)) {
    scale = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(headers));
    minimum = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(headers, 16)));
  } else {
    scale = minimum = _mm512_cvtph_ps(_mm512_castsi512_si256(headers));
  }
  scale = _mm512_mul_ps(scale, _mm512_load_ps(a->scale));
  ADD_BLOCK(0)
  if (n > 1) {
    ADD_BLOCK(1)
  }
  if (n > 2) {
    ADD_BLOCK(2)
  }
  if (n > 3) {
    ADD_BLOCK(3)
  }
  return y;
}

AVX512_INLINE void decode_blocks(const llm_type type, const matmul_args *m, size_t r0, size_t r1,
                                 quad *quads) {
  const size_t size = block_bytes(type), n_blocks = m->act->n_in / QK;
  const size_t row_bytes = row_bytes_of(type, m->act->n_in);
  fill_quads(m->act, zero_point(type), quads);
  for (size_t r = r0; r < r1; r += ROWS) {
    row_group g = group_at(r, r1, m->n_out, ROWS);
    const uint8_t *w = (const uint8_t *)m->w + g.first * row_bytes, *ahead = w;
    __m128 sum = _mm_setzero_ps();
    size_t b = 0;
    for (; b + 4 <= n_blocks; b += 4, ahead += 16 * size)
      sum = decode_quad(type, w + b * size, row_bytes, quads + b / 4, 4, ahead, sum);
    if (b < n_blocks)
      sum = decode_quad(type, w + b * size, row_bytes, quads + b / 4, n_blocks - b, ahead, sum);
    float y[ROWS];
    _mm_storeu_ps(y, sum);
    memcpy(m->y + g.from, y + (g.from - g.first), (g.to - g.from) * sizeof *y);
  }
}

/* ---- super-blocks: 16 rows ---- */

/* A super-block of 16 rows added to y: quants, scales and sums of the activations are those of its
 * elements. */
AVX512_INLINE __m512 decode_super(const llm_type type, const uint8_t *w, size_t row_bytes,
                                  const int8_t *a, const float *a_scale, const float *scaled_sum,
                                  const int32_t *starts, __m512 y) {
  const int q6 = type == LLM_TYPE_Q6_K;
  const size_t four = 4 * row_bytes;
  __m512 scale[8], second[8];
  __m512i low_dot[4], high_dot[4], total[16]; /* Q6_K: of each 16 elements; else of 32 */
  super_scales(type, w, row_bytes, scale, second);
  UNROLL
  for (size_t k = 0; k < 8; k++) {
    const size_t at_low = low_chunk(type, k), at_high = high_chunk(type, k);
    const __m512i a_low = _mm512_broadcast_i32x4(load16(a + 16 * at_low));
    const __m512i a_high = _mm512_broadcast_i32x4(load16(a + 16 * at_high));
    UNROLL
    for (size_t i = 0; i < 4; i++) {
      __m512i low, high;
      load_piece(type, w + i * row_bytes, k, four, 2 * four, 3 * four, &low, &high);
      if (q6 || k % 2 == 0) low_dot[i] = high_dot[i] = _mm512_setzero_si512();
      low_dot[i] = _mm512_dpbusd_epi32(low_dot[i], low, a_low);
      high_dot[i] = _mm512_dpbusd_epi32(high_dot[i], high, a_high);
    }
    if (q6 || k % 2) {
      total[q6 ? at_low : at_low / 2] = sum_dwords(low_dot);
      total[q6 ? at_high : at_high / 2] = sum_dwords(high_dot);
    }
  }
  UNROLL
  for (size_t b = 0; b < 8; b++) {
    const __m512 by = _mm512_set1_ps(a_scale[b]);
    if (q6) {
      __m512i d0 = _mm512_add_epi32(total[2 * b], _mm512_set1_epi32(starts[2 * b]));
      __m512i d1 = _mm512_add_epi32(total[2 * b + 1], _mm512_set1_epi32(starts[2 * b + 1]));
      __m512 sum = _mm512_mul_ps(_mm512_cvtepi32_ps(d0), scale[b]);
      sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(d1), second[b], sum);
      y = _mm512_fmadd_ps(sum, by, y);
    } else {
      y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total[b]), _mm512_mul_ps(scale[b], by), y);
      y = _mm512_fmadd_ps(second[b], _mm512_set1_ps(scaled_sum[b]), y);
    }
  }
  return y;
}

AVX512_INLINE void decode_supers(const llm_type type, const matmul_args *m, size_t r0, size_t r1,
                                 int32_t *starts) {
  const size_t size = block_bytes(type), n_supers = m->act->n_in / QK_SUPER;
  const size_t row_bytes = n_supers * size;
  if (zero_point(type)) fill_starts(m->act->q, m->act->n_in, starts);
  for (size_t r = r0; r < r1; r += PANEL_ROWS) {
    row_group g = group_at(r, r1, m->n_out, PANEL_ROWS);
    const uint8_t *w = (const uint8_t *)m->w + g.first * row_bytes, *ahead = w;
    __m512 sum = _mm512_setzero_ps();
    for (size_t s = 0; s < n_supers; s++, ahead += PANEL_ROWS * size) {
      for (size_t k = 0; k < PANEL_ROWS * size; k += 64) prefetch(ahead + k);
      sum = decode_super(type, w + s * size, row_bytes, m->act->q + s * QK_SUPER,
                         m->act->scale + 8 * s, m->act->scaled_sum + 8 * s, starts + 16 * s, sum);
    }
    store_panel(m->y, &g, sum);
  }
}

/* ---- both ---- */

AVX512_SHARED size_t decode_scratch_avx512(size_t n_in) { return quads_for(n_in) * sizeof(quad); }

#define DEFINE_DECODE(name, type)                                                                  \
  AVX512 AVX512_SHARED void decode_##name##_avx512(const matmul_args *m, size_t r0, size_t r1,     \
                                                   void *scratch) {                                \
    if (is_super(type))                                                                            \
      decode_supers(type, m, r0, r1, scratch);                                                     \
    else                                                                                           \
      decode_blocks(type, m, r0, r1, scratch);                                                     \
  }
FOR_QUANTIZED_TYPES(DEFINE_DECODE)
#endif
