/* kernels_avx512_quant.c: quantized weights times one token by AVX-512 with VNNI. Layer 2.
 *
 * 4 rows x 4 blocks of 32, or a super-block of 4 rows: 128-bit lane = block, so that a short tree
 * of adds leaves element = row and the blocks follow one another in 128-bit FMAs. Weights become
 * unsigned bytes, as VNNI wants them; what that adds to a dot product, a multiple of the sum of the
 * activations, is taken off again. */
#include "kernels.h"

#if defined(__x86_64__)
#include "kernels_avx512.h"

enum { ROWS = 4, MAX_GROUPS = 2 };

/* One or two groups of 4 rows are computed side by side: two hide the latency of each other's sums
 * as long as their rows leave room in L1 for what is prefetched. */
enum { TWO_GROUPS_BYTES = 28 << 10 };

AVX512_INLINE void store_rows(float *y, const row_group *g, const __m128 sums[MAX_GROUPS]) {
  store_panel(y, g, _mm512_castps256_ps512(_mm256_set_m128(sums[1], sums[0])));
}

/* ---- blocks of 32: 4 rows x 4 blocks ---- */

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
    memcpy(a->low + 16 * lane, act->q[b].q, 16);
    memcpy(a->high + 16 * lane, act->q[b].q + 16, 16);
    for (size_t i = 4 * lane; i < 4 * lane + 4; i++) {
      a->scale[i] = act->q[b].scale;
      a->scaled_sum[i] = act->q[b].scaled_sum;
      a->start[i] = -zero * act->q[b].sum;
    }
  }
}

/* The first n bytes of 64. */
AVX512_INLINE __mmask64 first_bytes(size_t n) {
  return n >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << n) - 1;
}

/* The headers of up to four blocks of row i go to element i of each lane of h: 16-bit scales, or
 * dwords of scale and minimum. `bytes` may be read: the first 64, and where these do not hold four
 * headers, 64 from `then` on. */
AVX512_INLINE __m512i gather_headers(const llm_type type, const uint8_t *row, const int i,
                                     const size_t bytes, __m512i h) {
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
  UNROLL
  for (int part = 0; part < 2; part++) {
    if (part && (in_first == 4 || bytes <= (size_t)(in_first * size))) break;
    const size_t begin = part ? (size_t)then : 0;
    const int lanes = (1 << 4 * in_first) - 1, to = 0x1111 << i & (part ? ~lanes : lanes);
    __m512i found = _mm512_maskz_loadu_epi8(first_bytes(bytes - begin), row + begin);
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
                                 const quad *a, size_t n, const uint8_t *ahead, __m128 y) {
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
    headers = gather_headers(type, row, i, n * size, headers);
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

AVX512_INLINE void decode_blocks(const llm_type type, size_t n_groups, const matmul_args *m,
                                 size_t r0, size_t r1, quad *quads) {
  const size_t size = block_bytes(type), n_blocks = m->act->n_in / QK, n_rows = n_groups * ROWS;
  const size_t row_bytes = n_blocks * size;
  fill_quads(m->act, zero_point(type), quads);
  for (size_t r = r0; r < r1; r += n_rows) {
    row_group g = group_at(r, r1, m->n_out, n_rows);
    const uint8_t *w = (const uint8_t *)m->w + g.first * row_bytes, *ahead = w;
    __m128 y[MAX_GROUPS] = {_mm_setzero_ps(), _mm_setzero_ps()};
    size_t b = 0;
    for (; b + 4 <= n_blocks; b += 4, w += 4 * size)
      for (size_t i = 0; i < n_groups; i++, ahead += 4 * ROWS * size)
        y[i] =
            decode_quad(type, w + i * ROWS * row_bytes, row_bytes, quads + b / 4, 4, ahead, y[i]);
    for (size_t i = 0; i < n_groups && b < n_blocks; i++)
      y[i] = decode_quad(type, w + i * ROWS * row_bytes, row_bytes, quads + b / 4, n_blocks - b,
                         ahead, y[i]);
    store_rows(m->y, &g, y);
  }
}

/* ---- super-blocks: 4 rows x 8 blocks ---- */

/* Activations of eight blocks as a super-block of weights meets them. A register of quants: four
 * lots of 16, of Q6_K in the order of the elements; of Q4_K and Q5_K the first halves of the even
 * blocks, their second halves, then the odd blocks'. */
typedef struct super_acts {
  int8_t quants[QK_SUPER];
  float scale[8], scaled_sum[8];
  int32_t start[16]; /* Q6_K: -zero_point * sum of each 16 */
} super_acts;

AVX512_INLINE void fill_supers(const llm_type type, const act_rows *act, super_acts *out) {
  for (size_t s = 0; s < act->n_in / QK_SUPER; s++, out++) {
    const act_block *a = act->q + 8 * s;
    for (size_t i = 0; i < 16; i++) {
      const size_t at = type == LLM_TYPE_Q6_K ? i : i % 4 * 4 + i / 4;
      memcpy(out->quants + 16 * i, a[at / 2].q + at % 2 * 16, 16);
      out->start[i] = -zero_point(type) * half_sum(&a[i / 2], i % 2);
    }
    for (size_t i = 0; i < 8; i++) out->scale[i] = a[i].scale, out->scaled_sum[i] = a[i].scaled_sum;
  }
}

/* Products with the super-block of a row. Q6_K: lane l of dot[j] is of elements 16 (4j + l) and
 * following. Others: of block 2l + j. */
AVX512_INLINE void multiply_super(const llm_type type, const uint8_t *w, const super_acts *a,
                                  __m512i dot[4]) {
  const int q6 = type == LLM_TYPE_Q6_K;
  const __m512i nibble = _mm512_set1_epi8(15), zero = _mm512_setzero_si512();
  const uint8_t *q = w + quants_at(type), *h = w + high_at(type);
  __m512i four[2] = {_mm512_loadu_si512(q), _mm512_loadu_si512(q + 64)}, low[2], high[2];
  if (!q6) {
    __m512i first = _mm512_shuffle_i32x4(four[0], four[1], 0x88);
    four[1] = _mm512_shuffle_i32x4(four[0], four[1], 0xdd);
    four[0] = first;
  }
  UNROLL
  for (size_t j = 0; j < 2; j++) {
    low[j] = _mm512_and_si512(four[j], nibble);
    high[j] = _mm512_and_si512(_mm512_srli_epi16(four[j], 4), nibble);
    if (type == LLM_TYPE_Q5_K) { /* lane l: bits 2l and 2l + 1 */
      const int s = 0x20002;
      const __m512i by = _mm512_setr_epi32(0, 0, 0, 0, s, s, s, s, 2 * s, 2 * s, 2 * s, 2 * s,
                                           3 * s, 3 * s, 3 * s, 3 * s);
      __m512i bits = _mm512_srlv_epi16(_mm512_broadcast_i32x4(load16(h + 16 * j)), by);
      low[j] = or_bits(low[j], bits, 4, 0x10);
      high[j] = or_bits(high[j], bits, 3, 0x10);
    } else if (q6) { /* lanes 0, 1: bits 0, 1 and 4, 5; lanes 2, 3: bits 2, 3 and 6, 7 */
      const int s = 0x20002;
      const __m512i by = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, s, s, s, s, s, s, s, s);
      __m256i pair = _mm256_loadu_si256((const __m256i *)(h + 32 * j));
      __m512i bits = _mm512_srlv_epi16(_mm512_broadcast_i64x4(pair), by);
      low[j] = or_bits(low[j], bits, 4, 0x30);
      high[j] = or_bits(high[j], bits, 0, 0x30);
    }
  }
  const __m512i *x = (const __m512i *)a->quants;
  if (q6) {
    UNROLL
    for (size_t j = 0; j < 2; j++) {
      dot[2 * j] = _mm512_dpbusd_epi32(zero, low[j], _mm512_loadu_si512(x + 2 * j));
      dot[2 * j + 1] = _mm512_dpbusd_epi32(zero, high[j], _mm512_loadu_si512(x + 2 * j + 1));
    }
  } else {
    dot[0] = _mm512_dpbusd_epi32(zero, low[0], _mm512_loadu_si512(x));
    dot[0] = _mm512_dpbusd_epi32(dot[0], low[1], _mm512_loadu_si512(x + 1));
    dot[1] = _mm512_dpbusd_epi32(zero, high[0], _mm512_loadu_si512(x + 2));
    dot[1] = _mm512_dpbusd_epi32(dot[1], high[1], _mm512_loadu_si512(x + 3));
  }
}

/* Dword 4i + `of` of x to element i of each lane. */
AVX512_INLINE __m512i spread_rows(__m512i x, const int of) {
  const __m512i at = _mm512_setr_epi32(of, of + 4, of + 8, of + 12, of, of + 4, of + 8, of + 12, of,
                                       of + 4, of + 8, of + 12, of, of + 4, of + 8, of + 12);
  return _mm512_permutexvar_epi32(at, x);
}

/* Dword of + 2l of x to lane l. */
AVX512_INLINE __m512i spread_blocks(__m512i x, const int of) {
  const int l1 = of + 2, l2 = of + 4, l3 = of + 6;
  const __m512i at =
      _mm512_setr_epi32(of, of, of, of, l1, l1, l1, l1, l2, l2, l2, l2, l3, l3, l3, l3);
  return _mm512_permutexvar_epi32(at, x);
}

/* Element i of lane l is of row i and, in Q6_K's scale[e] and second[e], of block 4e + l, elsewhere
 * of block 2l + e. */
AVX512_INLINE void scales_of_rows(const llm_type type, const uint8_t *w, size_t row_bytes,
                                  __m512 scale[2], __m512 second[2]) {
  const size_t o2 = 2 * row_bytes, o3 = 3 * row_bytes;
  /* lane = row; word l of each goes to lane l, to element row */
  const __m512i words = _mm512_setr_epi32(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27);
  const __m512i next = _mm512_add_epi32(words, _mm512_set1_epi32(4));
  if (type == LLM_TYPE_Q6_K) {
    __m512i bytes = load_four(w + offsetof(block_q6_k, scales), row_bytes, o2, o3);
    __m512i end = load_four(w + sizeof(block_q6_k) - 16, row_bytes, o2, o3);
    const __m512 d = floats_of(spread_rows(end, 3), 1);
    const __m512i pairs[2] = {_mm512_maskz_permutexvar_epi16(0x55555555, words, bytes),
                              _mm512_maskz_permutexvar_epi16(0x55555555, next, bytes)};
    UNROLL
    for (int e = 0; e < 2; e++) {
      scale[e] = _mm512_mul_ps(d, signed_byte(pairs[e], 0));
      second[e] = _mm512_mul_ps(d, signed_byte(pairs[e], 1));
    }
    return;
  }
  __m512i header = load_four(w, row_bytes, o2, o3);
  __m512i bytes = unpack_six_bits(header);
  const __m512i d = spread_rows(header, 0);
  const __m512 minus = _mm512_sub_ps(_mm512_set1_ps(-0.0f), floats_of(d, 1));
  const __m512i pairs[2] = {_mm512_maskz_permutexvar_epi16(0x55555555, words, bytes),
                            _mm512_maskz_permutexvar_epi16(0x55555555, next, bytes)};
  UNROLL
  for (int e = 0; e < 2; e++) {
    scale[e] = _mm512_mul_ps(floats_of(d, 0), unsigned_byte(pairs[0], e));
    second[e] = _mm512_mul_ps(minus, unsigned_byte(pairs[1], e));
  }
}

#define LANE(v, l) _mm512_extractf32x4_ps(v, l)
#define ADD_PAIR(l)                                                                                \
  y = _mm_fmadd_ps(LANE(value[0], l), LANE(scale[0], l), y);                                       \
  y = _mm_fmadd_ps(LANE(second[0], l), _mm_set1_ps(a->scaled_sum[2 * l]), y);                      \
  y = _mm_fmadd_ps(LANE(value[1], l), LANE(scale[1], l), y);                                       \
  y = _mm_fmadd_ps(LANE(second[1], l), _mm_set1_ps(a->scaled_sum[2 * l + 1]), y);
#define ADD_Q6(l) y = _mm_fmadd_ps(LANE(value[e], l), _mm_set1_ps(a->scale[4 * e + l]), y);

/* A super-block of 4 rows added to y. */
AVX512_INLINE __m128 decode_super(const llm_type type, const uint8_t *w, size_t row_bytes,
                                  const super_acts *a, const uint8_t *ahead, __m128 y) {
  const int n_dots = type == LLM_TYPE_Q6_K ? 4 : 2;
  __m512 scale[2], second[2], value[2];
  __m512i dot[4][ROWS];
  scales_of_rows(type, w, row_bytes, scale, second);
  UNROLL
  for (size_t i = 0; i < ROWS; i++) {
    __m512i of_row[4];
    for (size_t k = 64 * i; k < ROWS * block_bytes(type); k += 256) prefetch(ahead + k);
    multiply_super(type, w + i * row_bytes, a, of_row);
    UNROLL
    for (int j = 0; j < n_dots; j++) dot[j][i] = of_row[j];
  }
  if (type == LLM_TYPE_Q6_K) {
    const __m512i start = _mm512_loadu_si512(a->start);
    UNROLL
    for (int e = 0; e < 2; e++) {
      __m512i t0 = sum_dwords(dot[2 * e]), t1 = sum_dwords(dot[2 * e + 1]);
      __m512i even = _mm512_shuffle_i32x4(t0, t1, 0x88), odd = _mm512_shuffle_i32x4(t0, t1, 0xdd);
      even = _mm512_add_epi32(even, spread_blocks(start, 8 * e));
      odd = _mm512_add_epi32(odd, spread_blocks(start, 8 * e + 1));
      value[e] = _mm512_mul_ps(_mm512_cvtepi32_ps(even), scale[e]);
      value[e] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(odd), second[e], value[e]);
      ADD_Q6(0) ADD_Q6(1) ADD_Q6(2) ADD_Q6(3)
    }
    return y;
  }
  const __m512i by = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)a->scale));
  UNROLL
  for (int e = 0; e < 2; e++) {
    value[e] = _mm512_cvtepi32_ps(sum_dwords(dot[e]));
    scale[e] = _mm512_mul_ps(scale[e], _mm512_castsi512_ps(spread_blocks(by, e)));
  }
  ADD_PAIR(0) ADD_PAIR(1) ADD_PAIR(2) ADD_PAIR(3) return y;
}

AVX512_INLINE void decode_supers(const llm_type type, size_t n_groups, const matmul_args *m,
                                 size_t r0, size_t r1, super_acts *a) {
  const size_t size = block_bytes(type), n_supers = m->act->n_in / QK_SUPER;
  const size_t row_bytes = n_supers * size, n_rows = n_groups * ROWS;
  fill_supers(type, m->act, a);
  for (size_t r = r0; r < r1; r += n_rows) {
    row_group g = group_at(r, r1, m->n_out, n_rows);
    const uint8_t *w = (const uint8_t *)m->w + g.first * row_bytes, *ahead = w;
    __m128 y[MAX_GROUPS] = {_mm_setzero_ps(), _mm_setzero_ps()};
    for (size_t s = 0; s < n_supers; s++, w += size)
      for (size_t i = 0; i < n_groups; i++, ahead += ROWS * size)
        y[i] = decode_super(type, w + i * ROWS * row_bytes, row_bytes, a + s, ahead, y[i]);
    store_rows(m->y, &g, y);
  }
}

/* ---- both ---- */

/* Super-blocks need less. */
AVX512_SHARED size_t decode_scratch_avx512(size_t n_in) { return quads_for(n_in) * sizeof(quad); }

#define DEFINE_DECODE(name, type)                                                                  \
  AVX512 AVX512_SHARED void decode_##name##_avx512(const matmul_args *m, size_t r0, size_t r1,     \
                                                   void *scratch) {                                \
    const size_t two_bytes = 2 * ROWS * row_bytes_of(type, m->act->n_in);                          \
    const size_t n_groups = m->n_out >= 2 * ROWS && two_bytes <= TWO_GROUPS_BYTES ? 2 : 1;         \
    if (is_super(type))                                                                            \
      decode_supers(type, n_groups, m, r0, r1, scratch);                                           \
    else                                                                                           \
      decode_blocks(type, n_groups, m, r0, r1, scratch);                                           \
    LEAVE_AVX();                                                                                   \
  }
FOR_QUANTIZED_TYPES(DEFINE_DECODE)
#endif
