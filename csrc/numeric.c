/* numeric.c: see numeric.h. Range reduction as in Cody & Waite, with fma so that each product is
 * exact; the double polynomials are Taylor series, long enough that the rest is below 1e-17. */
#include "numeric.h"

#include <float.h>
#include <math.h>

#include "cpu.h"

static uint64_t bits_of_double(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

static double double_of_bits(uint64_t bits) {
  double x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

float num_expf(float x) {
  if (x < EXPF_MIN) return 0;
  if (x > EXPF_MAX) return INFINITY;
  if (x != x) return x;
  float shifted = fmaf(x, EXPF_LOG2E, EXPF_MAGIC), n = shifted - EXPF_MAGIC;
  float r = fmaf(n, -EXPF_LN2_LOW, fmaf(n, -EXPF_LN2_HIGH, x));
  float p = fmaf(EXPF_P5, r, EXPF_P4);
  p = fmaf(p, r, EXPF_P3);
  p = fmaf(p, r, EXPF_P2);
  p = fmaf(p, r, EXPF_P1);
  p = fmaf(p, r, EXPF_P0);
  float y = fmaf(p, r * r, r) + 1.0f;
  uint32_t bits = f32_bits(y) + ((f32_bits(shifted) - f32_bits(EXPF_MAGIC)) << 23);
  return f32_from_bits(bits);
}

/* The larger ones of two halves, until one is left; loops of a fixed length become vectors. */
static inline void halve(float *x, int n) {
  for (int i = 0; i < n / 2; i++) x[i] = x[i + n / 2] > x[i] ? x[i + n / 2] : x[i];
}

float num_most(const float *x, size_t n) {
  enum { GROUP = 64 };
  float group[GROUP], most = -INFINITY;
  for (; n >= GROUP; n -= GROUP, x += GROUP) {
    for (int i = 0; i < GROUP; i++) group[i] = x[i] >= -FLT_MAX ? x[i] : -INFINITY; /* NaN */
    halve(group, 64);
    halve(group, 32);
    halve(group, 16);
    halve(group, 8);
    halve(group, 4);
    halve(group, 2);
    if (group[0] > most) most = group[0];
  }
  for (size_t i = 0; i < n; i++)
    if (x[i] > most) most = x[i];
  return most;
}

/* ln 2 in two parts; the first has 32 bits, so that n times it is exact (fdlibm, e_exp.c). */
static const double LN2_HIGH = 6.93147180369123816490e-01, LN2_LOW = 1.90821492927058770002e-10;
static const double MAGIC = 0x1.8p52; /* x + MAGIC - MAGIC rounds to the nearest integer */

static const double INVERSE_FACTORIAL[18] = {
    1.0,
    1.0,
    1.0 / 2,
    1.0 / 6,
    1.0 / 24,
    1.0 / 120,
    1.0 / 720,
    1.0 / 5040,
    1.0 / 40320,
    1.0 / 362880,
    1.0 / 3628800,
    1.0 / 39916800,
    1.0 / 479001600,
    1.0 / 6227020800.0,
    1.0 / 87178291200.0,
    1.0 / 1307674368000.0,
    1.0 / 20922789888000.0,
    1.0 / 355687428096000.0,
};

double num_exp(double x) {
  if (x > 709.7) return INFINITY;
  if (x < -708.3) return 0;
  double shifted = x * 1.4426950408889634 + MAGIC, n = shifted - MAGIC;
  double r = fma(-n, LN2_LOW, fma(-n, LN2_HIGH, x));
  double p = 0;
  for (int k = 13; k >= 0; k--) p = fma(p, r, INVERSE_FACTORIAL[k]);
  int64_t exponent = (int64_t)n;
  /* 2^n in two factors: 2^1024 is not a double, the result may be one */
  int64_t half = exponent / 2;
  return p * double_of_bits((uint64_t)(half + 1023) << 52) *
         double_of_bits((uint64_t)(exponent - half + 1023) << 52);
}

#if defined(__x86_64__)
enum { EXP_BLOCK = 32 };

/* num_exp of a block, step by step for all, so that the compiler makes vectors of it: a thirtieth
 * of the time, since fma is an instruction here and a call above. x <= 0: one factor holds 2^n. */
__attribute__((target("avx2,fma"))) static void exp_block_avx2(double x[EXP_BLOCK]) {
  double r[EXP_BLOCK], p[EXP_BLOCK], power[EXP_BLOCK];
  for (int i = 0; i < EXP_BLOCK; i++) {
    double shifted = x[i] * 1.4426950408889634 + MAGIC, n = shifted - MAGIC;
    r[i] = fma(-n, LN2_LOW, fma(-n, LN2_HIGH, x[i]));
    power[i] = double_of_bits((bits_of_double(shifted) - bits_of_double(MAGIC) + 1023) << 52);
    p[i] = INVERSE_FACTORIAL[13];
  }
  for (int k = 12; k >= 0; k--)
    for (int i = 0; i < EXP_BLOCK; i++) p[i] = fma(p[i], r[i], INVERSE_FACTORIAL[k]);
  for (int i = 0; i < EXP_BLOCK; i++) x[i] = x[i] < -708.3 ? 0 : p[i] * power[i];
}
#endif

void num_exp_all(double *x, size_t n) {
  size_t i = 0;
#if defined(__x86_64__)
  if (cpu_features() & CPU_AVX2)
    for (; i + EXP_BLOCK <= n; i += EXP_BLOCK) exp_block_avx2(x + i);
#endif
  for (; i < n; i++) x[i] = num_exp(x[i]);
}

double num_log(double x) {
  uint64_t bits = bits_of_double(x);
  int64_t n = (int64_t)(bits >> 52) - 1023;
  double m = double_of_bits((bits & 0xfffffffffffff) | (uint64_t)1023 << 52); /* [1, 2) */
  if (m > 1.4142135623730951) m /= 2, n++;
  double s = (m - 1) / (m + 1), z = s * s, series = 0; /* ln m = 2 atanh s, |s| < 0.172 */
  for (int k = 23; k >= 3; k -= 2) series = fma(series, z, 1.0 / k);
  /* 2s is split off: its rounding is the only one that matters when n = 0 */
  double rest = fma(2 * s * z, series, (double)n * LN2_LOW);
  return (double)n * LN2_HIGH + (2 * s + rest);
}

/* pi/2 as the nearest double and what that leaves; the products with n are exact inside fma. */
static const double HALF_PI = 1.5707963267948966, HALF_PI_REST = 6.123233995736766e-17;

void num_sincos(double x, double *s, double *c) {
  double shifted = x * 0.6366197723675814 + MAGIC, n = shifted - MAGIC;
  double r = fma(-n, HALF_PI_REST, fma(-n, HALF_PI, x)), z = r * r;
  double sine = 0, cosine = 0;
  for (int k = 17; k >= 3; k -= 2) sine = fma(sine, -z, INVERSE_FACTORIAL[k]);
  for (int k = 16; k >= 2; k -= 2) cosine = fma(cosine, -z, INVERSE_FACTORIAL[k]);
  sine = fma(r * -z, sine, r);
  cosine = fma(cosine, -z, 1);
  switch (bits_of_double(shifted) & 3) { /* the quadrant */
  case 0: *s = sine, *c = cosine; break;
  case 1: *s = cosine, *c = -sine; break;
  case 2: *s = -sine, *c = -cosine; break;
  case 3: *s = -cosine, *c = sine; break;
  }
}
