/* quantize_fit.c: scales found by search, so that the sum of importance * error^2 is small. Layer
 * 0.
 *
 * Of each group of 16 or 32 elements some scales are tried; what they round to gives a
 * least-squares fit of the scale (and minimum), and the fit with the least error wins. A
 * super-block rounds the scales of its groups to 6 or 8 bits of a common one: neighbouring levels
 * are tried, then the common scale is fitted to what was chosen. After J. Kawrakow's k-quants in
 * llama.cpp, whose search weighs by magnitude and stops at the groups.
 *
 * Tries stand side by side in 8 lanes, or an element's sums do, in a fixed order: the same bits
 * from any compiler and for any target. */
#include <assert.h>

#include "cpu.h"
#include "quantize.h"

/* All that loops over elements is part of one function, which is compiled for each target. */
#define INLINE static inline __attribute__((always_inline))

enum { FIT_LANES = 8, MAX_GROUPS = QK_SUPER / 16 };

/* ---- a group and its levels ---- */

/* How a type's elements are spread: x = step * q + origin, low <= q <= high. */
typedef struct levels {
  size_t n_groups, n_group; /* groups of a block, elements of a group */
  float low, high;
  int has_origin;
} levels;

static levels levels_of(llm_type type) {
  switch (type) {
  case LLM_TYPE_Q8_0: return (levels){1, QK, -127, 127, 0};
  case LLM_TYPE_Q4_0: return (levels){1, QK, -8, 7, 0};
  case LLM_TYPE_Q5_0: return (levels){1, QK, -16, 15, 0};
  case LLM_TYPE_Q4_1: return (levels){1, QK, 0, 15, 1};
  case LLM_TYPE_Q5_1: return (levels){1, QK, 0, 31, 1};
  case LLM_TYPE_Q4_K: return (levels){8, QK, 0, 15, 1};
  case LLM_TYPE_Q5_K: return (levels){8, QK, 0, 31, 1};
  case LLM_TYPE_Q6_K: return (levels){16, 16, -32, 31, 0};
  default: assert(!"a quantized type"); return (levels){0, 0, 0, 0, 0};
  }
}

typedef struct group {
  const float *x, *w; /* elements and their importance */
  size_t n;
  float low, high; /* of the levels */
  float sum_w, sum_x, sum_xx;
} group;

/* Weighted sums over the levels that a group's elements go to. */
typedef struct level_sums {
  float q, qq, xq;
} level_sums;

/* Eight floats and eight masks: operators work on each lane, whatever the processor has. */
typedef float lanes __attribute__((vector_size(4 * FIT_LANES)));
typedef int32_t masks __attribute__((vector_size(4 * FIT_LANES)));

INLINE float lane_sum(const lanes *sum) {
  float lane[FIT_LANES];
  memcpy(lane, sum, sizeof lane);
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

INLINE float level_of(float x, float inverse, float origin, float low, float high) {
  float level = (x - origin) * inverse;
  level = level < low ? low : level;
  level = level > high ? high : level;
  return round_to_even(level);
}

/* In each lane what level_of() does with its product. */
INLINE void to_levels(lanes *level, float low, float high) {
  const lanes least = low - (lanes){0}, most = high - (lanes){0};
  lanes y = *level;
  masks below = y < least;
  y = (lanes)(((masks)least & below) | ((masks)y & ~below));
  masks above = y > most;
  y = (lanes)(((masks)most & above) | ((masks)y & ~above));
  *level = (y + 0x1.8p23f) - 0x1.8p23f;
}

/* inverse_or_0() in each lane. */
INLINE void inverses(const lanes *step, lanes *inverse) {
  const lanes greatest = 0x1.fffffep127f - (lanes){0};
  lanes y = 1 / *step;
  masks number = (y <= greatest) & (y >= -greatest);
  *inverse = (lanes)((masks)y & number);
}

INLINE level_sums sums_at(const group *g, float inverse, float origin) {
  lanes q = {0}, qq = {0}, xq = {0}, x, w;
  for (size_t i = 0; i < g->n; i += FIT_LANES) {
    memcpy(&x, g->x + i, sizeof x), memcpy(&w, g->w + i, sizeof w);
    lanes level = (x - origin) * inverse;
    to_levels(&level, g->low, g->high);
    lanes weighted = w * level;
    q += weighted;
    qq += weighted * level;
    xq += weighted * x;
  }
  return (level_sums){lane_sum(&q), lane_sum(&qq), lane_sum(&xq)};
}

INLINE float error_at(const group *g, float step, float origin) {
  float inverse = inverse_or_0(step);
  lanes sum = {0}, x, w;
  for (size_t i = 0; i < g->n; i += FIT_LANES) {
    memcpy(&x, g->x + i, sizeof x), memcpy(&w, g->w + i, sizeof w);
    lanes level = (x - origin) * inverse;
    to_levels(&level, g->low, g->high);
    lanes e = x - (step * level + origin);
    sum += w * e * e;
  }
  return lane_sum(&sum);
}

INLINE group group_of(const float *from, const float *weights, const levels *l) {
  lanes sw = {0}, sx = {0}, sxx = {0}, x, w;
  for (size_t i = 0; i < l->n_group; i += FIT_LANES) {
    memcpy(&x, from + i, sizeof x), memcpy(&w, weights + i, sizeof w);
    sw += w;
    sx += w * x;
    sxx += w * x * x;
  }
  return (group){from,    weights,       l->n_group,    l->low,
                 l->high, lane_sum(&sw), lane_sum(&sx), lane_sum(&sxx)};
}

INLINE void group_range(const group *g, float *least, float *most) {
  *least = *most = g->x[0];
  for (size_t i = 1; i < g->n; i++) {
    if (g->x[i] < *least) *least = g->x[i];
    if (g->x[i] > *most) *most = g->x[i];
  }
}

/* ---- the search for a group's scale ---- */

typedef struct fit {
  float step, origin, error;
} fit;

/* Keeps the least-squares step for the levels that step `tried` gives, if it beats the best. The
 * error by sums is a difference of two that may be almost equal: it sorts out the hopeless. */
INLINE void try_step(const group *g, float tried, fit *best) {
  level_sums s = sums_at(g, inverse_or_0(tried), 0);
  if (!(s.qq > 0)) return;
  float step = s.xq / s.qq;
  if (g->sum_xx - step * s.xq > best->error + 1e-5f * g->sum_xx) return;
  float error = error_at(g, step, 0);
  if (error < best->error) *best = (fit){step, 0, error};
}

/* The extreme at the lowest level or near it, and at the highest: all tries of one shift of both
 * side by side, a lane each. The one whose least-squares step takes the most of the error away is
 * then refined. */
INLINE fit fit_step(const group *g) {
  enum { N_SHIFTS = 16 };
  float least, most;
  group_range(g, &least, &most);
  float extreme = most > -least ? most : least, reach = g->high < 16 ? 0.2f : 0.1f;
  float inverse_extreme = inverse_or_0(extreme);
  fit best = {0, 0, g->sum_xx};
  lanes best_gain = {0}, best_step = {0};
  for (int i = 0; i < 2 * N_SHIFTS; i += FIT_LANES) {
    float tried[FIT_LANES];
    lanes inverse, qq = {0}, xq = {0};
    for (int k = 0; k < FIT_LANES; k++) {
      float shift = reach * (float)((i + k) / 2 - 4);
      tried[k] = (k % 2 ? g->high + shift : g->low - shift) * inverse_extreme;
    }
    memcpy(&inverse, tried, sizeof inverse);
    for (size_t j = 0; j < g->n; j++) {
      lanes level = g->x[j] * inverse;
      to_levels(&level, g->low, g->high);
      lanes weighted = g->w[j] * level;
      qq += weighted * level;
      xq += weighted * g->x[j];
    }
    lanes step = xq / qq, gain = step * xq; /* NaN, and not better, where all levels are 0 */
    masks better = gain > best_gain;
    best_gain = (lanes)(((masks)gain & better) | ((masks)best_gain & ~better));
    best_step = (lanes)(((masks)step & better) | ((masks)best_step & ~better));
  }
  float gains[FIT_LANES], steps[FIT_LANES];
  memcpy(gains, &best_gain, sizeof gains), memcpy(steps, &best_step, sizeof steps);
  int first = 0;
  for (int k = 1; k < FIT_LANES; k++)
    if (gains[k] > gains[first]) first = k;
  for (int i = 0; i < 3; i++) try_step(g, i ? best.step : steps[first], &best);
  return best;
}

/* The same with an origin, which may be held at 0 or below it. */
INLINE void try_line(const group *g, float tried, float from, int not_above_0, fit *best) {
  level_sums s = sums_at(g, inverse_or_0(tried), from);
  float determinant = g->sum_w * s.qq - s.q * s.q, step, origin;
  if (!(s.qq > 0)) return;
  if (determinant > 0) {
    step = (g->sum_w * s.xq - g->sum_x * s.q) / determinant;
    origin = (s.qq * g->sum_x - s.q * s.xq) / determinant;
  } else {
    step = s.xq / s.qq, origin = 0;
  }
  if (not_above_0 && origin > 0) step = s.xq / s.qq, origin = 0;
  float by_sums = g->sum_xx - step * s.xq - origin * g->sum_x;
  if (by_sums > best->error + 1e-5f * g->sum_xx) return;
  float error = error_at(g, step, origin);
  if (error < best->error) *best = (fit){step, origin, error};
}

INLINE fit fit_line(const group *g, int not_above_0) {
  float least, most;
  group_range(g, &least, &most);
  if (not_above_0 && least > 0) least = 0;
  fit best = {0, least, error_at(g, 0, least)};
  if (most == least) return best;
  for (int i = -5; i <= 12; i++) {
    float shift = 0.2f * (float)i;
    float tried = (most - least) / (g->high + shift), cut = 0.5f * shift * tried;
    int refine = i > 10;
    for (int ends = 1; ends <= 2; ends++) {
      if (ends == 2 && (refine || i <= 0 || least + cut >= 0)) break;
      float origin = ends == 2 ? least + cut : least;
      try_line(g, refine ? best.step : tried, refine ? best.origin : origin, not_above_0, &best);
    }
  }
  return best;
}

/* ---- blocks ---- */

/* A block's scales as they are stored, and what they mean for each group. */
typedef struct block_scales {
  uint16_t d, m; /* m: minimum, or common minimum */
  int scale[MAX_GROUPS], minimum[MAX_GROUPS];
  float step[MAX_GROUPS], origin[MAX_GROUPS];
  float error;
} block_scales;

INLINE void fit_single(llm_type type, const group *g, block_scales *out) {
  if (type_has_minimum(type)) {
    fit f = fit_line(g, 0);
    out->d = f32_to_f16(f.step), out->m = f32_to_f16(f.origin);
    out->origin[0] = f16_to_f32(out->m);
  } else {
    out->d = f32_to_f16(fit_step(g).step);
  }
  out->step[0] = f16_to_f32(out->d);
}

static int clamp(float x, int low, int high) {
  return x <= (float)low ? low : x >= (float)high ? high : (int)round_to_even(x);
}

/* The best levels of a group's scale and minimum near the wished ones, under common scales: a try
 * in each lane. */
INLINE void choose_levels(const group *g, size_t i, int low, int high, float d, float dmin,
                          const fit *wish, block_scales *s) {
  int scale0 = clamp(wish->step * inverse_or_0(d), low, high);
  int minimum0 = clamp(-wish->origin * inverse_or_0(dmin), 0, 63);
  int scale[FIT_LANES], minimum[FIT_LANES];
  float steps[FIT_LANES], origins[FIT_LANES], errors[FIT_LANES];
  for (int k = 0; k < FIT_LANES; k++) { /* around a pair of levels but for a corner, or a level */
    int a = dmin != 0 ? scale0 - 1 + k % 3 : scale0 - 4 + k;
    int b = dmin != 0 ? minimum0 - 1 + k / 3 : 0;
    scale[k] = a < low ? low : a > high ? high : a;
    minimum[k] = b < 0 ? 0 : b > 63 ? 63 : b;
    steps[k] = d * (float)scale[k], origins[k] = -(dmin * (float)minimum[k]);
  }
  lanes step, origin, inverse, error = {0};
  memcpy(&step, steps, sizeof step), memcpy(&origin, origins, sizeof origin);
  inverses(&step, &inverse);
  for (size_t j = 0; j < g->n; j++) {
    lanes level = (g->x[j] - origin) * inverse;
    to_levels(&level, g->low, g->high);
    lanes e = g->x[j] - (step * level + origin);
    error += g->w[j] * e * e;
  }
  memcpy(errors, &error, sizeof errors);
  int best = 0;
  for (int k = 1; k < FIT_LANES; k++)
    if (errors[k] < errors[best]) best = k;
  s->scale[i] = scale[best], s->minimum[i] = minimum[best];
  s->step[i] = steps[best], s->origin[i] = origins[best];
  s->error += errors[best];
}

/* Common scales that fit the levels chosen best: sums over the groups of what multiplies d (scale *
 * q) and dmin (-minimum). */
INLINE void refit_common(const group *g, size_t n_groups, const block_scales *s, float *d,
                         float *dmin) {
  float aa = 0, ab = 0, bb = 0, xa = 0, xb = 0;
  for (size_t i = 0; i < n_groups; i++) {
    level_sums q = sums_at(&g[i], inverse_or_0(s->step[i]), s->origin[i]);
    float a = (float)s->scale[i], b = -(float)s->minimum[i];
    aa += a * a * q.qq, ab += a * b * q.q, bb += b * b * g[i].sum_w;
    xa += a * q.xq, xb += b * g[i].sum_x;
  }
  float determinant = aa * bb - ab * ab;
  if (bb > 0 && determinant > 0) {
    *d = (xa * bb - xb * ab) / determinant;
    *dmin = (xb * aa - xa * ab) / determinant;
  } else if (aa > 0) {
    *d = xa / aa;
  }
}

INLINE void try_common(const group *g, const levels *l, float d, float dmin, const fit *wishes,
                       block_scales *best) {
  block_scales s = {.d = f32_to_f16(d), .m = f32_to_f16(dmin > 0 ? dmin : 0)};
  int low = l->has_origin ? 0 : -128, high = l->has_origin ? 63 : 127;
  for (size_t i = 0; i < l->n_groups; i++)
    choose_levels(&g[i], i, low, high, f16_to_f32(s.d), f16_to_f32(s.m), &wishes[i], &s);
  if (best->error < 0 || s.error < best->error) *best = s;
}

INLINE void fit_super(const group *g, const levels *l, block_scales *best) {
  int n_rounds = l->has_origin ? 3 : 2;
  fit wishes[MAX_GROUPS];
  float most_step = 0, most_origin = 0;
  for (size_t i = 0; i < l->n_groups; i++) {
    wishes[i] = l->has_origin ? fit_line(&g[i], 1) : fit_step(&g[i]);
    float step = wishes[i].step;
    if (step * step > most_step * most_step) most_step = step;
    if (-wishes[i].origin > most_origin) most_origin = -wishes[i].origin;
  }
  float d = most_step / (l->has_origin ? 63 : -128), dmin = most_origin / 63;
  best->error = -1;
  for (int i = 0; i < n_rounds; i++) {
    try_common(g, l, d, dmin, wishes, best);
    refit_common(g, l->n_groups, best, &d, &dmin);
  }
}

static void store_scales(llm_type type, const block_scales *s, void *block) {
  uint8_t scale[8], minimum[8], packed[12];
  if (type == LLM_TYPE_Q6_K) {
    block_q6_k *b = block;
    b->d = s->d;
    for (int i = 0; i < MAX_GROUPS; i++) b->scales[i] = (int8_t)s->scale[i];
    return;
  }
  memcpy(block, &s->d, sizeof s->d); /* all others begin with it */
  if (!type_has_minimum(type)) return;
  memcpy((char *)block + sizeof s->d, &s->m, sizeof s->m);
  if (llm_type_describe(type).n_per_block != QK_SUPER) return;
  for (int i = 0; i < 8; i++) scale[i] = (uint8_t)s->scale[i], minimum[i] = (uint8_t)s->minimum[i];
  pack_k_scales(scale, minimum, packed);
  memcpy((char *)block + 2 * sizeof s->d, packed, sizeof packed);
}

/* ---- rows ---- */

/* x[1..n) -= e * feedback[1..n) */
INLINE void pass_on(float *x, const float *feedback, size_t n, float e) {
  for (size_t k = 1; k < n; k++) x[k] -= e * feedback[k];
}

INLINE void fit_row(llm_type type, float *row, size_t n, const float *importance,
                    const float *feedback, void *dst) {
  levels l = levels_of(type);
  llm_type_info info = llm_type_describe(type);
  uint8_t quants[QK_SUPER];
  float equal[QK];
  for (size_t i = 0; i < QK; i++) equal[i] = 1;
  for (size_t at = 0; at < n; at += info.n_per_block) {
    group g[MAX_GROUPS];
    block_scales s = {0};
    char *block = (char *)dst + at / info.n_per_block * info.bytes_per_block;
    for (size_t i = 0; i < l.n_groups; i++) {
      size_t from = at + i * l.n_group;
      g[i] = group_of(row + from, importance ? importance + from : equal, &l);
    }
    if (l.n_groups == 1)
      fit_single(type, &g[0], &s);
    else
      fit_super(g, &l, &s);
    for (size_t i = 0; i < l.n_groups; i++) {
      float step = s.step[i], origin = s.origin[i], inverse = inverse_or_0(step);
      for (size_t j = i * l.n_group; j < (i + 1) * l.n_group; j++) {
        float *x = row + at + j, level = level_of(*x, inverse, origin, l.low, l.high);
        quants[j] = (uint8_t)(int)(level - (type == LLM_TYPE_Q8_0 ? -128 : l.low));
        if (feedback)
          pass_on(x, feedback + (at + j) * n + at + j, n - at - j, *x - (step * level + origin));
      }
    }
    store_scales(type, &s, block);
    pack_quants(type, quants, block);
  }
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void fit_row_avx2(llm_type type, float *row, size_t n,
                                                         const float *importance,
                                                         const float *feedback, void *dst) {
  fit_row(type, row, n, importance, feedback, dst);
}
#endif

void quantize_fit_portable(llm_type type, float *row, size_t n, const float *importance,
                           const float *feedback, void *dst) {
  fit_row(type, row, n, importance, feedback, dst);
}

void quantize_fit(llm_type type, float *row, size_t n, const float *importance,
                  const float *feedback, void *dst) {
#if defined(__x86_64__)
  if (cpu_features() & CPU_AVX2) {
    fit_row_avx2(type, row, n, importance, feedback, dst);
    return;
  }
#endif
  quantize_fit_portable(type, row, n, importance, feedback, dst);
}
