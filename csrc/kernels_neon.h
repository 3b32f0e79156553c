/* kernels_neon.h: what the files of the NEON set share: the 16 lanes of a sum in four registers,
 * and float products (matrix rows times tokens, or keys times queries). Layer 2. */
#ifndef LLM_KERNELS_NEON_H
#define LLM_KERNELS_NEON_H

#include <arm_neon.h>
#include <math.h>

#include "kernels_simd.h"
#include "numeric.h"

enum { QUARTERS = LANES / 4 }; /* registers of a sum */

void float_product_f32_neon(const float_product *p);
void float_product_f16_neon(const float_product *p);
void float_product_bf16_neon(const float_product *p);

float sum_of_neon(const float *x, size_t n); /* in 16 lanes, as the dot */
size_t quant_scratch_neon(size_t n_in);
void kernels_set_neon_quant(kernels *k); /* products with quantized weights */
void kernels_set_neon_attention(kernels *k);

/* Four float16s. */
ALWAYS_INLINE float32x4_t expand_f16(uint16x4_t h) { return vcvt_f32_f16(vreinterpret_f16_u16(h)); }

/* Four elements from element k on. */
ALWAYS_INLINE float32x4_t load4(const llm_type type, const void *src, size_t k) {
  if (type == LLM_TYPE_F32) return vld1q_f32((const float *)src + k);
  const uint16x4_t half = vld1_u16((const uint16_t *)src + k);
  if (type == LLM_TYPE_F16) return expand_f16(half);
  return vreinterpretq_f32_u32(vshll_n_u16(half, 16));
}

ALWAYS_INLINE float sum_lanes(const float lane[LANES]) {
  const float32x4_t low = vaddq_f32(vld1q_f32(lane), vld1q_f32(lane + 8));
  const float32x4_t four = vaddq_f32(low, vaddq_f32(vld1q_f32(lane + 4), vld1q_f32(lane + 12)));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(vpadd_f32(two, two), 0);
}

/* Lane i: the sum of p[i]'s lanes. */
ALWAYS_INLINE int32x4_t sum_rows(const int32x4_t p[4]) {
  return vpaddq_s32(vpaddq_s32(p[0], p[1]), vpaddq_s32(p[2], p[3]));
}

/* The scales, and the minima of types that have them, of one block in 4 rows. */
ALWAYS_INLINE void load_scales(const llm_type type, const uint8_t *p, size_t row_bytes,
                               float32x4_t *scale, float32x4_t *minimum) {
  const uint8_t *p1 = p + row_bytes, *p2 = p1 + row_bytes, *p3 = p2 + row_bytes;
  if (type_has_minimum(type)) { /* scale and minimum are one dword */
    uint32x4_t d = vdupq_n_u32(*(const uint32_t *)p);
    d = vld1q_lane_u32((const uint32_t *)p1, d, 1);
    d = vld1q_lane_u32((const uint32_t *)p2, d, 2);
    d = vld1q_lane_u32((const uint32_t *)p3, d, 3);
    *scale = expand_f16(vmovn_u32(d));
    *minimum = expand_f16(vshrn_n_u32(d, 16));
    return;
  }
  uint16x4_t h = vld1_dup_u16((const uint16_t *)p);
  h = vld1_lane_u16((const uint16_t *)p1, h, 1);
  h = vld1_lane_u16((const uint16_t *)p2, h, 2);
  h = vld1_lane_u16((const uint16_t *)p3, h, 3);
  *scale = *minimum = expand_f16(h);
}

/* num_expf, four at a time. */
ALWAYS_INLINE float32x4_t expf4(float32x4_t x) {
  const float32x4_t magic = vdupq_n_f32(EXPF_MAGIC);
  const float32x4_t shifted = vfmaq_f32(magic, x, vdupq_n_f32(EXPF_LOG2E));
  const float32x4_t n = vsubq_f32(shifted, magic);
  float32x4_t r = vfmaq_f32(x, n, vdupq_n_f32(-EXPF_LN2_HIGH));
  r = vfmaq_f32(r, n, vdupq_n_f32(-EXPF_LN2_LOW));
  float32x4_t p = vfmaq_f32(vdupq_n_f32(EXPF_P4), vdupq_n_f32(EXPF_P5), r);
  p = vfmaq_f32(vdupq_n_f32(EXPF_P3), p, r);
  p = vfmaq_f32(vdupq_n_f32(EXPF_P2), p, r);
  p = vfmaq_f32(vdupq_n_f32(EXPF_P1), p, r);
  p = vfmaq_f32(vdupq_n_f32(EXPF_P0), p, r);
  const float32x4_t y = vaddq_f32(vfmaq_f32(r, p, vmulq_f32(r, r)), vdupq_n_f32(1));
  const uint32x4_t bits = vsubq_u32(vreinterpretq_u32_f32(shifted), vreinterpretq_u32_f32(magic));
  uint32x4_t e = vaddq_u32(vreinterpretq_u32_f32(y), vshlq_n_u32(bits, 23));
  e = vbicq_u32(e, vcltq_f32(x, vdupq_n_f32(EXPF_MIN)));
  e = vbslq_u32(vcgtq_f32(x, vdupq_n_f32(EXPF_MAX)), vdupq_n_u32(0x7f800000), e);
  return vbslq_f32(vceqq_f32(x, x), vreinterpretq_f32_u32(e), x);
}

#endif
