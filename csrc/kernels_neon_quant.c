/* kernels_neon_quant.c: quantized weights times one token and many, by NEON's products of signed
 * bytes (sdot, a feature of ARMv8.2 on: FEAT_DotProd). Layer 2.
 *
 * Rows come in fours, so that lane = row and block order costs one FMA a block. One token: each
 * row's block is four partial sums, which pairwise adds of four rows bring together. Many tokens:
 * panels of 4 rows hold 4 bytes of each row in turn, signed, and a product takes 4 bytes of a token
 * from any lane. Unsigned quants are below 64, so they are signed bytes too. */
#include "kernels.h"

#if defined(__aarch64__)
#include "kernels_neon.h"
#include "kernels_panels.h"

/* Nothing is asked where the whole program is built for such processors (-march, Apple). */
#if defined(__ARM_FEATURE_DOTPROD)
#define DOTPROD
#elif defined(__clang__)
#define DOTPROD __attribute__((target("dotprod")))
#else
#define DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
#define DOTPROD_INLINE static inline __attribute__((always_inline)) DOTPROD

enum { ROWS = 4, TILE_TOK = 4 };

static kernels below; /* the set that this one started from: takes matrices of fewer than 4 rows */

/* Lane i + the four products of bytes 4i to 4i + 3; and of bytes 4 lane to 4 lane + 3 of a. clang
 * before 16 has the intrinsics under -march alone. */
#if defined(__clang__) && !defined(__ARM_FEATURE_DOTPROD)
DOTPROD_INLINE int32x4_t add_dot(int32x4_t sum, int8x16_t w, int8x16_t a) {
  __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(w), "w"(a));
  return sum;
}
#define ADD_DOT_LANE(sum, w, a, lane)                                                              \
  __asm__("sdot %0.4s, %1.16b, %2.4b[" #lane "]" : "+w"(sum) : "w"(w), "w"(a))
#else
DOTPROD_INLINE int32x4_t add_dot(int32x4_t sum, int8x16_t w, int8x16_t a) {
  return vdotq_s32(sum, w, a);
}
#define ADD_DOT_LANE(sum, w, a, lane) sum = vdotq_laneq_s32(sum, w, a, lane)
#endif

/* ---- blocks of weights ---- */

/* What is to be taken off the quants as load_piece gives them: all of them signed. */
ALWAYS_INLINE int too_great_by(const llm_type type) {
  switch (type) {
  case LLM_TYPE_Q8_0:
  case LLM_TYPE_Q5_0: return 0;
  case LLM_TYPE_Q5_1: return -16;
  default: return zero_point(type);
  }
}

/* Bits of two bytes, all ones where one is set; each dword of `bits` is the same. */
ALWAYS_INLINE uint8x16_t spread_bits(uint8x16_t bits, const int first_byte) {
  const uint8x16_t each = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
  const uint8x16_t at =
      vcombine_u8(vdup_n_u8((uint8_t)first_byte), vdup_n_u8((uint8_t)(first_byte + 1)));
  return vtstq_u8(vqtbl1q_u8(bits, at), each);
}

ALWAYS_INLINE uint8x16_t shift_left(uint8x16_t x, int n) {
  return vshlq_u8(x, vdupq_n_s8((int8_t)n));
}

/* Piece k of a block: its two chunks as bytes. Above four bits, x and y have what belongs there: x
 * in its low bits, y in place. */
ALWAYS_INLINE void load_piece(const llm_type type, const uint8_t *block, size_t k, int8x16_t *low,
                              int8x16_t *high) {
  const uint8_t *q = block + quants_at(type) + 16 * k, *h = block + high_at(type);
  const uint8x16_t w = vld1q_u8(q);
  uint8x16_t x, y;
  if (type == LLM_TYPE_Q8_0) {
    *low = vreinterpretq_s8_u8(w);
    *high = vld1q_s8((const int8_t *)q + 16);
    return;
  }
  if (type == LLM_TYPE_Q5_0 || type == LLM_TYPE_Q5_1) { /* ones where no bit is set: 16 less */
    const uint8x16_t bits = vreinterpretq_u8_s32(vdupq_n_s32(~load_i32(h)));
    x = spread_bits(bits, 0);
    y = spread_bits(bits, 2);
  } else if (type == LLM_TYPE_Q5_K) { /* bit b is of block b */
    const uint8x16_t bits = vld1q_u8(h + k % 2 * 16);
    const int b = (int)(k / 2 * 2);
    x = vandq_u8(shift_left(bits, -b), vdupq_n_u8(1));
    y = vandq_u8(shift_left(bits, 3 - b), vdupq_n_u8(0x10));
  } else if (type == LLM_TYPE_Q6_K) { /* pairs of bits */
    const int b = (int)(k % 4 / 2 * 2);
    const uint8x16_t bits = shift_left(vld1q_u8(h + k / 4 * 32 + k % 2 * 16), -b);
    x = vandq_u8(bits, vdupq_n_u8(3));
    y = vandq_u8(bits, vdupq_n_u8(0x30));
  } else {
    *low = vreinterpretq_s8_u8(vandq_u8(w, vdupq_n_u8(15)));
    *high = vreinterpretq_s8_u8(vshrq_n_u8(w, 4));
    return;
  }
  *high = vreinterpretq_s8_u8(vsriq_n_u8(y, w, 4));
  *low = vreinterpretq_s8_u8(vsliq_n_u8(w, x, 4));
}

/* 16 bytes of 4 rows: d[j] is dword j of all. */
ALWAYS_INLINE void load_rows(const uint8_t *p, size_t row_bytes, uint32x4_t d[4]) {
  uint32x4_t r[4];
  UNROLL
  for (size_t i = 0; i < 4; i++) r[i] = vreinterpretq_u32_u8(vld1q_u8(p + i * row_bytes));
  UNROLL
  for (size_t i = 0; i < 2; i++) {
    const uint64x2_t a = vreinterpretq_u64_u32(i ? vtrn2q_u32(r[0], r[1]) : vtrn1q_u32(r[0], r[1]));
    const uint64x2_t b = vreinterpretq_u64_u32(i ? vtrn2q_u32(r[2], r[3]) : vtrn1q_u32(r[2], r[3]));
    d[i] = vreinterpretq_u32_u64(vtrn1q_u64(a, b));
    d[i + 2] = vreinterpretq_u32_u64(vtrn2q_u64(a, b));
  }
}

/* Byte i of each dword as a float. */
ALWAYS_INLINE float32x4_t unsigned_byte(uint32x4_t d, const int i) {
  return vcvtq_f32_u32(vandq_u32(vshlq_u32(d, vdupq_n_s32(-8 * i)), vdupq_n_u32(255)));
}

ALWAYS_INLINE float32x4_t signed_byte(uint32x4_t d, const int i) {
  return vcvtq_f32_s32(
      vshrq_n_s32(vshlq_s32(vreinterpretq_s32_u32(d), vdupq_n_s32(24 - 8 * i)), 24));
}

/* Of the 8 blocks of a super-block in 4 rows: the scale, and the minimum or Q6_K's second scale.
 * quant.h's k_scale says how the six-bit numbers lie. */
ALWAYS_INLINE void super_scales(const llm_type type, const uint8_t *block, size_t row_bytes,
                                float32x4_t scale[8], float32x4_t second[8]) {
  uint32x4_t d[4];
  if (type == LLM_TYPE_Q6_K) {
    float32x4_t all, unused;
    load_rows(block + offsetof(block_q6_k, scales), row_bytes, d);
    load_scales(type, block + offsetof(block_q6_k, d), row_bytes, &all, &unused);
    UNROLL
    for (int b = 0; b < 8; b++) {
      scale[b] = vmulq_f32(all, signed_byte(d[b / 2], b % 2 * 2));
      second[b] = vmulq_f32(all, signed_byte(d[b / 2], b % 2 * 2 + 1));
    }
    return;
  }
  load_rows(block, row_bytes, d);
  const uint32x4_t six = vdupq_n_u32(0x3f3f3f3f), four = vdupq_n_u32(0x0f0f0f0f);
  const uint32x4_t two = vdupq_n_u32(0x30303030);
  const float32x4_t all = expand_f16(vmovn_u32(d[0]));
  const float32x4_t minus = vnegq_f32(expand_f16(vshrn_n_u32(d[0], 16)));
  const uint32x4_t scales[2] = {
      vandq_u32(d[1], six), vorrq_u32(vandq_u32(d[3], four), vandq_u32(vshrq_n_u32(d[1], 2), two))};
  const uint32x4_t minima[2] = {
      vandq_u32(d[2], six),
      vorrq_u32(vandq_u32(vshrq_n_u32(d[3], 4), four), vandq_u32(vshrq_n_u32(d[2], 2), two))};
  UNROLL
  for (int b = 0; b < 8; b++) {
    scale[b] = vmulq_f32(all, unsigned_byte(scales[b / 4], b % 4));
    second[b] = vmulq_f32(minus, unsigned_byte(minima[b / 4], b % 4));
  }
}

/* ---- one token ---- */

/* As floats, less what the quants are too great by. */
ALWAYS_INLINE float32x4_t totals(const llm_type type, const int32x4_t p[4], int act_sum) {
  int32x4_t dot = sum_rows(p);
  if (too_great_by(type)) dot = vsubq_s32(dot, vdupq_n_s32(too_great_by(type) * act_sum));
  return vcvtq_f32_s32(dot);
}

/* The product of a block added to y; the minimum, of types that have one. */
ALWAYS_INLINE float32x4_t add_block(const llm_type type, float32x4_t dot, float32x4_t scale,
                                    float32x4_t minimum, const act_block *a, float32x4_t y) {
  y = vfmaq_f32(y, dot, vmulq_n_f32(scale, a->scale));
  return type_has_minimum(type) ? vfmaq_n_f32(y, minimum, a->scaled_sum) : y;
}

/* One block of 4 rows that lie `stride` bytes apart, added to y. */
DOTPROD_INLINE float32x4_t decode_block(const llm_type type, const uint8_t *w, size_t stride,
                                        const act_block *a, float32x4_t y) {
  const int8x16_t a_low = vld1q_s8(a->q), a_high = vld1q_s8(a->q + 16);
  float32x4_t scale, minimum;
  int32x4_t p[4];
  load_scales(type, w, stride, &scale, &minimum);
  UNROLL
  for (size_t i = 0; i < 4; i++) {
    int8x16_t low, high;
    load_piece(type, w + i * stride, 0, &low, &high);
    p[i] = add_dot(add_dot(vdupq_n_s32(0), low, a_low), high, a_high);
  }
  return add_block(type, totals(type, p, a->sum), scale, minimum, a, y);
}

/* The same with a super-block, whose pieces are gone through by a loop, as by AVX2. */
DOTPROD_INLINE float32x4_t decode_super(const llm_type type, const uint8_t *w, size_t stride,
                                        const act_block *a, float32x4_t y) {
  const size_t q6 = type == LLM_TYPE_Q6_K, apart = q6 ? 1 : 2; /* pieces of a sum */
  float32x4_t scale[8], second[8], total[16];                  /* Q6_K's, of 16 elements each */
  super_scales(type, w, stride, scale, second);
  for (size_t k = 0; k < 8; k += apart) {
    const size_t at = low_block(type, k);
    const act_block *low_a = a + at, *high_a = low_a + high_after(type);
    int32x4_t low_dot[4], high_dot[4];
    UNROLL
    for (size_t i = 0; i < 4; i++) low_dot[i] = high_dot[i] = vdupq_n_s32(0);
    UNROLL
    for (size_t j = 0; j < apart; j++) {
      const size_t from = (q6 ? k % 2 : j) * 16;
      const int8x16_t a_low = vld1q_s8(low_a->q + from), a_high = vld1q_s8(high_a->q + from);
      UNROLL
      for (size_t i = 0; i < 4; i++) {
        int8x16_t low, high;
        load_piece(type, w + i * stride, k + j, &low, &high);
        low_dot[i] = add_dot(low_dot[i], low, a_low);
        high_dot[i] = add_dot(high_dot[i], high, a_high);
      }
    }
    if (q6) {
      total[2 * at + k % 2] = totals(type, low_dot, half_sum(low_a, k % 2));
      total[2 * (at + high_after(type)) + k % 2] = totals(type, high_dot, half_sum(high_a, k % 2));
    } else {
      y = add_block(type, totals(type, low_dot, 0), scale[k], second[k], low_a, y);
      y = add_block(type, totals(type, high_dot, 0), scale[k + 1], second[k + 1], high_a, y);
    }
  }
  if (!q6) return y;
  for (size_t i = 0; i < 8; i++) {
    float32x4_t sum = vmulq_f32(total[2 * i], scale[i]);
    sum = vfmaq_f32(sum, total[2 * i + 1], second[i]);
    y = vfmaq_n_f32(y, sum, a[i].scale);
  }
  return y;
}

DOTPROD_INLINE float32x4_t decode_rows(const llm_type type, const uint8_t *w, size_t stride,
                                       const act_rows *act) {
  const size_t per = is_super(type) ? QK_SUPER / QK : 1, size = block_bytes(type);
  float32x4_t y = vdupq_n_f32(0);
  for (size_t b = 0; b < act->n_in / QK; b += per, w += size)
    y = is_super(type) ? decode_super(type, w, stride, act->q + b, y)
                       : decode_block(type, w, stride, act->q + b, y);
  return y;
}

SHARED_CODE void decode(rows_decoder decode_rows, size_t row_bytes, const matmul_args *m, size_t r0,
                        size_t r1) {
  decode_groups(decode_rows, ROWS, row_bytes, m, r0, r1);
}

/* ---- many tokens ---- */

/* A block of 4 rows: four bytes of every row in turn. second: the minimum, or Q6_K's other scale.
 */
typedef struct panel_block {
  float scale[ROWS], second[ROWS];
  int8_t quants[QK / 4][4 * ROWS];
} panel_block;

ALWAYS_INLINE void store_chunk(const llm_type type, const int8x16_t rows[ROWS], size_t chunk,
                               int less, panel_block *out) {
  int32x4x4_t turned; /* as it is stored */
  UNROLL
  for (size_t i = 0; i < ROWS; i++)
    turned.val[i] = vreinterpretq_s32_s8(
        too_great_by(type) ? vsubq_s8(rows[i], vdupq_n_s8((int8_t)less)) : rows[i]);
  vst4q_s32((int32_t *)out[chunk / 2].quants[chunk % 2 * 4], turned);
}

ALWAYS_INLINE void fill_scales(const llm_type type, const uint8_t *w, size_t row_bytes,
                               panel_block *out) {
  float32x4_t scale[8], second[8];
  if (is_super(type))
    super_scales(type, w, row_bytes, scale, second);
  else
    load_scales(type, w, row_bytes, &scale[0], &second[0]);
  for (size_t b = 0; b < (is_super(type) ? QK_SUPER / QK : 1); b++) {
    vst1q_f32(out[b].scale, scale[b]);
    vst1q_f32(out[b].second, second[b]);
  }
}

ALWAYS_INLINE void fill_panel(const llm_type type, const uint8_t *w, size_t n_blocks, int less,
                              panel_block *out) {
  const size_t per = is_super(type) ? QK_SUPER / QK : 1, size = block_bytes(type);
  const size_t row_bytes = n_blocks / per * size;
  for (size_t b = 0; b < n_blocks; b += per, w += size, out += per) {
    for (size_t k = 0; k < n_pieces(type); k++) {
      int8x16_t low[ROWS], high[ROWS];
      UNROLL
      for (size_t i = 0; i < ROWS; i++) load_piece(type, w + i * row_bytes, k, &low[i], &high[i]);
      store_chunk(type, low, low_chunk(type, k), less, out);
      store_chunk(type, high, high_chunk(type, k), less, out);
    }
    fill_scales(type, w, row_bytes, out);
  }
}

/* 16 elements of 4 rows times those of a token. */
DOTPROD_INLINE int32x4_t add_chunk(int32x4_t sum, const int8x16_t w[4], int8x16_t a) {
  ADD_DOT_LANE(sum, w[0], a, 0);
  ADD_DOT_LANE(sum, w[1], a, 1);
  ADD_DOT_LANE(sum, w[2], a, 2);
  ADD_DOT_LANE(sum, w[3], a, 3);
  return sum;
}

/* One block of a panel times n_tok tokens, n_blocks apart, added to y. */
DOTPROD_INLINE void multiply_block(const llm_type type, const size_t n_tok, const panel_block *w,
                                   const act_block *a, size_t n_blocks, float32x4_t y[TILE_TOK]) {
  const float32x4_t scale = vld1q_f32(w->scale), second = vld1q_f32(w->second);
  int32x4_t dot[TILE_TOK];
  float32x4_t part[TILE_TOK];
  UNROLL
  for (size_t half = 0; half < 2; half++) {
    int8x16_t q[4];
    UNROLL
    for (size_t i = 0; i < 4; i++) q[i] = vld1q_s8(w->quants[4 * half + i]);
    UNROLL
    for (size_t j = 0; j < n_tok; j++) {
      const int8x16_t x = vld1q_s8(a[j * n_blocks].q + 16 * half);
      const int begins = half == 0 || type == LLM_TYPE_Q6_K;
      dot[j] = add_chunk(begins ? vdupq_n_s32(0) : dot[j], q, x);
      if (type == LLM_TYPE_Q6_K) {
        const float32x4_t value = vcvtq_f32_s32(dot[j]);
        part[j] = half ? vfmaq_f32(part[j], value, second) : vmulq_f32(value, scale);
      }
    }
  }
  UNROLL
  for (size_t j = 0; j < n_tok; j++) {
    const act_block *at = a + j * n_blocks;
    y[j] = type == LLM_TYPE_Q6_K ? vfmaq_n_f32(y[j], part[j], at->scale)
                                 : add_block(type, vcvtq_f32_s32(dot[j]), scale, second, at, y[j]);
  }
}

typedef float tile_sums[2][TILE_TOK][ROWS]; /* by panel, token, row */

SHARED_CODE void store_tile(const tile_args *p, size_t n_tok, tile_sums y) {
  for (size_t i = 0; i < 2; i++) {
    const row_group g = p->rows[i];
    for (size_t j = 0; j < n_tok; j++)
      for (size_t r = g.from; r < g.to; r++) p->y[j * p->ldy + r] = y[i][j][r - g.first];
  }
}

DOTPROD_INLINE void multiply_tile(const llm_type type, const size_t n_tok, const tile_args *p) {
  const panel_block *w[2] = {p->w[0], p->w[1]};
  float32x4_t y[2][TILE_TOK];
  tile_sums sums;
  UNROLL
  for (size_t i = 0; i < 2; i++) {
    UNROLL
    for (size_t j = 0; j < n_tok; j++) y[i][j] = vdupq_n_f32(0);
  }
  for (size_t b = 0; b < p->n_blocks; b++) {
    UNROLL
    for (size_t i = 0; i < 2; i++)
      multiply_block(type, n_tok, w[i] + b, p->a + b, p->n_blocks, y[i]);
  }
  UNROLL
  for (size_t i = 0; i < 2; i++) {
    UNROLL
    for (size_t j = 0; j < n_tok; j++) vst1q_f32(sums[i][j], y[i][j]);
  }
  store_tile(p, n_tok, sums);
}

#define DEFINE_TILES(name, type)                                                                   \
  DOTPROD static void name##_most(const tile_args *p) { multiply_tile(type, TILE_TOK, p); }        \
  DOTPROD static void name##_two(const tile_args *p) { multiply_tile(type, 2, p); }
DEFINE_TILES(plain, LLM_TYPE_Q8_0)
DEFINE_TILES(minima, LLM_TYPE_Q4_1)
DEFINE_TILES(q6_k, LLM_TYPE_Q6_K)

static panel_kernels kernels_of(llm_type type, panel_fill fill) {
  panel_kernels k = {.n_rows = ROWS,
                     .block_bytes = sizeof(panel_block),
                     .most_bytes = 256 << 10, /* half of an L2 cache */
                     .n_tok = TILE_TOK,
                     .less = too_great_by(type),
                     .fill = fill,
                     .multiply = plain_most,
                     .multiply_two = plain_two};
  if (type == LLM_TYPE_Q6_K) k.multiply = q6_k_most, k.multiply_two = q6_k_two;
  if (type_has_minimum(type)) k.multiply = minima_most, k.multiply_two = minima_two;
  return k;
}

size_t quant_scratch_neon(size_t n_in) {
  const panel_kernels k = kernels_of(LLM_TYPE_Q8_0, NULL);
  return n_in % QK ? 0 : (panels_bytes(&k, n_in) + 63) / 64 * 64;
}

#define DEFINE_QUANTIZED_MATMUL(name, type)                                                        \
  DOTPROD static void decode_##name(const uint8_t *w, size_t stride, const act_rows *act,          \
                                    float *y) {                                                    \
    vst1q_f32(y, decode_rows(type, w, stride, act));                                               \
  }                                                                                                \
  static void fill_##name(const uint8_t *w, size_t n_blocks, int less, void *panel) {              \
    fill_panel(type, w, n_blocks, less, panel);                                                    \
  }                                                                                                \
  static void matmul_##name##_neon(const matmul_args *m, size_t r0, size_t r1, void *scratch) {    \
    const panel_kernels k = kernels_of(type, fill_##name);                                         \
    if (m->n_out < ROWS)                                                                           \
      below.matmul[type](m, r0, r1, NULL);                                                         \
    else if (m->act->n_tok == 1)                                                                   \
      decode(decode_##name, row_bytes_of(type, m->act->n_in), m, r0, r1);                          \
    else                                                                                           \
      panels_matmul(&k, type, m, r0, r1, scratch);                                                 \
  }
FOR_QUANTIZED_TYPES(DEFINE_QUANTIZED_MATMUL)

void kernels_set_neon_quant(kernels *k) {
  below = *k;
#define SET_QUANTIZED(name, type) k->matmul[type] = matmul_##name##_neon;
  FOR_QUANTIZED_TYPES(SET_QUANTIZED)
}
#endif
