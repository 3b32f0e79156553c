/* kernels_neon.c: products with float weights, rows of activations and the table, for 64-bit ARM.
 * Layer 2. What stands here is in every such processor; the set asks for sdot, which
 * kernels_neon_quant.c needs. What is left of a row behind the last whole register goes to the set
 * below, whose operations are the same. */
#include "kernels.h"

#if defined(__aarch64__)
#include "kernels_neon.h"

static kernels below;

/* ---- products with float weights ---- */

enum {
  STREAMS = 4,             /* rows beside one vector */
  TILE_VEC = 3,            /* vectors beside two rows */
  BLOCK_BYTES = 128 << 10, /* of rows, which stay in L2 while all vectors pass */
  BLOCK_ROWS = 64
};

/* Rows r, r + apart, ... times vectors v, v + 1, ... */
typedef struct tile {
  size_t r, apart, v;
} tile;

/* The lanes of each row's sums with each vector: the last elements, fewer than 16, are added, and
 * the results stored. Apart from the loop, which so keeps its registers. */
SHARED_CODE void finish_tile(llm_type type, const float_product *p, tile t, size_t n_row,
                             size_t n_vec, float sums[][LANES]) {
  const size_t whole = p->n_in / LANES * LANES;
  for (size_t i = 0; i < n_row; i++)
    for (size_t j = 0; j < n_vec; j++) {
      const size_t r = t.r + i * t.apart, v = t.v + j;
      float *lane = sums[i * n_vec + j], w;
      for (size_t k = whole; k < p->n_in; k++) {
        dequantize(type, p->w + r * p->row_bytes + k * (type == LLM_TYPE_F32 ? 4 : 2), 1, &w);
        lane[k - whole] = fmaf(w, p->x[v * p->n_in + k], lane[k - whole]);
      }
      p->y[v * p->ldy + r] = sum_lanes(lane);
    }
}

ALWAYS_INLINE void float_tile(const llm_type type, const size_t n_row, const size_t n_vec,
                              const float_product *p, tile t) {
  const char *w = p->w + t.r * p->row_bytes;
  const size_t stride = t.apart * p->row_bytes;
  const float *x = p->x + t.v * p->n_in;
  float32x4_t sum[2 * TILE_VEC][QUARTERS];
  float sums[2 * TILE_VEC][LANES];
  UNROLL
  for (size_t i = 0; i < n_row * n_vec; i++) {
    UNROLL
    for (size_t q = 0; q < QUARTERS; q++) sum[i][q] = vdupq_n_f32(0);
  }
  for (size_t k = 0; k + LANES <= p->n_in; k += LANES) {
    UNROLL
    for (size_t q = 0; q < QUARTERS; q++) {
      float32x4_t wk[STREAMS];
      UNROLL
      for (size_t i = 0; i < n_row; i++) wk[i] = load4(type, w + i * stride, k + 4 * q);
      UNROLL
      for (size_t j = 0; j < n_vec; j++) {
        const float32x4_t xk = vld1q_f32(x + j * p->n_in + k + 4 * q);
        UNROLL
        for (size_t i = 0; i < n_row; i++)
          sum[i * n_vec + j][q] = vfmaq_f32(sum[i * n_vec + j][q], wk[i], xk);
      }
    }
  }
  UNROLL
  for (size_t i = 0; i < n_row * n_vec; i++) {
    UNROLL
    for (size_t q = 0; q < QUARTERS; q++) vst1q_f32(sums[i] + 4 * q, sum[i][q]);
  }
  finish_tile(type, p, t, n_row, n_vec, sums);
}

ALWAYS_INLINE void one_vector(const llm_type type, const float_product *p) {
  const size_t apart = p->n_row / STREAMS;
  for (size_t r = 0; r < apart; r++) float_tile(type, STREAMS, 1, p, (tile){r, apart, 0});
  for (size_t r = STREAMS * apart; r < p->n_row; r++) float_tile(type, 1, 1, p, (tile){r, 1, 0});
}

/* n_vec vectors from v on times all rows, of which the last odd one meets itself. */
ALWAYS_INLINE void pass_rows(const llm_type type, const size_t n_vec, const float_product *p,
                             size_t v) {
  for (size_t r = 0; r < p->n_row; r += 2)
    float_tile(type, 2, n_vec, p, (tile){r, r + 1 < p->n_row, v});
}

/* Two vectors at least: 4 are 2 + 2, so that one is never left. */
ALWAYS_INLINE void many_vectors(const llm_type type, const float_product *p) {
  for (size_t v = 0, left; (left = p->n_vec - v) > 0; v += left == 2 || left == 4 ? 2 : 3) {
    if (left == 2 || left == 4)
      pass_rows(type, 2, p, v);
    else
      pass_rows(type, TILE_VEC, p, v);
  }
}

static size_t block_rows(size_t row_bytes) {
  const size_t n = BLOCK_BYTES / row_bytes / 2 * 2;
  return n < 2 ? 2 : min_size(n, BLOCK_ROWS);
}

#define DEFINE_FLOAT_PRODUCT(name, type, size)                                                     \
  void float_product_##name##_neon(const float_product *p) {                                       \
    if (p->n_vec == 1)                                                                             \
      one_vector(type, p);                                                                         \
    else                                                                                           \
      many_vectors(type, p);                                                                       \
  }                                                                                                \
  static void matmul_##name##_neon(const matmul_args *m, size_t r0, size_t r1, void *scratch) {    \
    const size_t step = m->act->n_tok == 1 ? r1 - r0 : block_rows(m->act->n_in * size);            \
    (void)scratch;                                                                                 \
    for (size_t r = r0; r < r1; r += step) {                                                       \
      const float_product p = product_of(m, r, min_size(r + step, r1), size);                      \
      float_product_##name##_neon(&p);                                                             \
    }                                                                                              \
  }

DEFINE_FLOAT_PRODUCT(f32, LLM_TYPE_F32, 4)
DEFINE_FLOAT_PRODUCT(f16, LLM_TYPE_F16, 2)
DEFINE_FLOAT_PRODUCT(bf16, LLM_TYPE_BF16, 2)

/* ---- rows ---- */

static void quantize_row_neon(const float *x, size_t n, act_block *q) {
  for (size_t b = 0; b < n / QK; b++, x += QK, q++) {
    float32x4_t v[8], largest = vdupq_n_f32(0);
    UNROLL
    for (size_t i = 0; i < 8; i++) {
      v[i] = vld1q_f32(x + 4 * i);
      largest = vmaxnmq_f32(largest, vabsq_f32(v[i]));
    }
    const float amax = vmaxnmvq_f32(largest), inverse = amax < ACT_TINY ? 0 : 127 / amax;
    int16x4_t k[8];
    UNROLL
    for (size_t i = 0; i < 8; i++) k[i] = vmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(v[i], inverse)));
    int8x8_t bytes[4];
    UNROLL
    for (size_t i = 0; i < 4; i++) bytes[i] = vmovn_s16(vcombine_s16(k[2 * i], k[2 * i + 1]));
    const int8x16_t low = vcombine_s8(bytes[0], bytes[1]), high = vcombine_s8(bytes[2], bytes[3]);
    vst1q_s8(q->q, low);
    vst1q_s8(q->q + 16, high);
    q->scale = amax < ACT_TINY ? 0 : amax / 127;
    q->sum_of_half = vaddlvq_s8(low);
    q->sum = q->sum_of_half + vaddlvq_s8(high);
    q->scaled_sum = q->scale * (float)q->sum;
  }
}

/* 1 / sqrt(mean of squares + eps) */
static float inverse_rms(const float *x, size_t n, float eps) {
  float sum;
  float_product square = {(const char *)x, n * sizeof *x, 1, x, 1, n, &sum, 0};
  float_product_f32_neon(&square);
  return 1.0f / __builtin_sqrtf(sum / (float)n + eps);
}

static void rmsnorm_neon(float *y, const float *x, const float *w, size_t n, float eps) {
  const float r = inverse_rms(x, n, eps);
  size_t i = 0;
  for (; i + 4 <= n; i += 4)
    vst1q_f32(y + i, vmulq_f32(vmulq_n_f32(vld1q_f32(x + i), r), vld1q_f32(w + i)));
  for (; i < n; i++) y[i] = x[i] * r * w[i];
}

float sum_of_neon(const float *x, size_t n) {
  float32x4_t sum[QUARTERS] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
  float lane[LANES];
  const size_t n_tail = n % LANES;
  for (size_t i = 0; i < n - n_tail; i += LANES) {
    UNROLL
    for (size_t q = 0; q < QUARTERS; q++) sum[q] = vaddq_f32(sum[q], vld1q_f32(x + i + 4 * q));
  }
  UNROLL
  for (size_t q = 0; q < QUARTERS; q++) vst1q_f32(lane + 4 * q, sum[q]);
  for (size_t i = 0; i < n_tail; i++) lane[i] += x[n - n_tail + i];
  return sum_lanes(lane);
}

static void layernorm_neon(float *y, const float *x, const float *w, const float *b, size_t n,
                           float eps) {
  const float mean = sum_of_neon(x, n) / (float)n;
  size_t i = 0;
  for (; i + 4 <= n; i += 4) vst1q_f32(y + i, vsubq_f32(vld1q_f32(x + i), vdupq_n_f32(mean)));
  for (; i < n; i++) y[i] = x[i] - mean;
  const float r = inverse_rms(y, n, eps);
  for (i = 0; i + 4 <= n; i += 4) {
    const float32x4_t v = vmulq_n_f32(vld1q_f32(y + i), r);
    vst1q_f32(y + i, vfmaq_f32(vld1q_f32(b + i), v, vld1q_f32(w + i)));
  }
  for (; i < n; i++) y[i] = fmaf(y[i] * r, w[i], b[i]);
}

/* x / (1 + e^u) */
ALWAYS_INLINE float32x4_t gate4(float32x4_t x, float32x4_t u) {
  return vdivq_f32(x, vaddq_f32(vdupq_n_f32(1), expf4(u)));
}

static void swiglu_neon(float *y, const float *gate, const float *up, size_t n) {
  size_t i = 0;
  for (; i + 4 <= n; i += 4) {
    const float32x4_t g = vld1q_f32(gate + i);
    vst1q_f32(y + i, vmulq_f32(gate4(g, vnegq_f32(g)), vld1q_f32(up + i)));
  }
  below.swiglu(y + i, gate + i, up + i, n - i);
}

ALWAYS_INLINE float32x4_t gelu4(float32x4_t x) {
  const float32x4_t slope = vfmaq_f32(vdupq_n_f32(GELU_A), vdupq_n_f32(GELU_B), vmulq_f32(x, x));
  return gate4(x, vmulq_f32(x, slope));
}

static void gelu_neon(float *y, const float *x, size_t n) {
  size_t i = 0;
  for (; i + 4 <= n; i += 4) vst1q_f32(y + i, gelu4(vld1q_f32(x + i)));
  below.gelu(y + i, x + i, n - i);
}

static void geglu_neon(float *y, const float *gate, const float *up, size_t n) {
  size_t i = 0;
  for (; i + 4 <= n; i += 4)
    vst1q_f32(y + i, vmulq_f32(gelu4(vld1q_f32(gate + i)), vld1q_f32(up + i)));
  below.geglu(y + i, gate + i, up + i, n - i);
}

static void add_neon(float *x, const float *y, size_t n) {
  size_t i = 0;
  for (; i + 4 <= n; i += 4) vst1q_f32(x + i, vaddq_f32(vld1q_f32(x + i), vld1q_f32(y + i)));
  below.add(x + i, y + i, n - i);
}

/* Pairs turned in place, in four lanes. */
ALWAYS_INLINE void turn(float32x4_t *a, float32x4_t *b, float32x4_t c, float32x4_t s) {
  const float32x4_t x = *a, y = *b;
  *a = vfmaq_f32(vnegq_f32(vmulq_f32(y, s)), x, c);
  *b = vfmaq_f32(vmulq_f32(y, c), x, s);
}

static void rope_neon(float *x, const float *cos, const float *sin, size_t n_pair) {
  size_t i = 0;
  for (; i + 4 <= n_pair; i += 4) {
    float32x4x2_t pairs = vld2q_f32(x + 2 * i);
    turn(&pairs.val[0], &pairs.val[1], vld1q_f32(cos + i), vld1q_f32(sin + i));
    vst2q_f32(x + 2 * i, pairs);
  }
  below.rope(x + 2 * i, cos + i, sin + i, n_pair - i);
}

static void rope_halves_neon(float *x, const float *cos, const float *sin, size_t n_pair) {
  float *y = x + n_pair;
  size_t i = 0;
  for (; i + 4 <= n_pair; i += 4) {
    float32x4_t a = vld1q_f32(x + i), b = vld1q_f32(y + i);
    turn(&a, &b, vld1q_f32(cos + i), vld1q_f32(sin + i));
    vst1q_f32(x + i, a);
    vst1q_f32(y + i, b);
  }
  for (; i < n_pair; i++) {
    const float a = x[i], b = y[i];
    x[i] = fmaf(a, cos[i], -(b * sin[i]));
    y[i] = fmaf(a, sin[i], b * cos[i]);
  }
}

static void f32_to_f16_neon(uint16_t *dst, const float *src, size_t n) {
  size_t i = 0;
  for (; i + 4 <= n; i += 4)
    vst1_u16(dst + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(src + i))));
  below.f32_to_f16(dst + i, src + i, n - i);
}

void kernels_set_neon(kernels *k) {
  below = *k;
  k->scratch_bytes = quant_scratch_neon;
  k->matmul[LLM_TYPE_F32] = matmul_f32_neon;
  k->matmul[LLM_TYPE_F16] = matmul_f16_neon;
  k->matmul[LLM_TYPE_BF16] = matmul_bf16_neon;
  k->quantize_row = quantize_row_neon;
  k->rmsnorm = rmsnorm_neon;
  k->layernorm = layernorm_neon;
  k->swiglu = swiglu_neon;
  k->gelu = gelu_neon;
  k->geglu = geglu_neon;
  k->add = add_neon;
  k->rope = rope_neon;
  k->rope_halves = rope_halves_neon;
  k->f32_to_f16 = f32_to_f16_neon;
  kernels_set_neon_quant(k);
  kernels_set_neon_attention(k);
}
#endif
