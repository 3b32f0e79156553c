/* numeric.h: exp, log, sin and cos in our own few lines. Layer 0. libm's float functions differ in
 * the last bit between processors; these give the same bits everywhere, and the vector kernels
 * repeat num_expf operation by operation with the constants below (fma and fmaf are exact by
 * definition, so those two calls are allowed). */
#ifndef LLM_NUMERIC_H
#define LLM_NUMERIC_H

#ifndef __CUDACC_RTC__ /* which has no headers: port.h names the types */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#endif

static inline uint32_t f32_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

static inline float f32_from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

/* e^x, relative error below 1e-7 (the worst in test_numeric.c is 8.0e-8) on
 * [-87.3, 88.72]; 0 under that, +infinity over it, NaN for NaN. */
float num_expf(float x);

/* The largest of x; minus infinity for none. NaN counts as minus infinity. */
float num_most(const float *x, size_t n);

/* Double precision. */
double num_exp(double x);                        /* relative error below 1e-15; inf, 0 beyond */
void num_exp_all(double *x, size_t n);           /* each x <= 0 to num_exp(x), the same bits */
double num_log(double x);                        /* the same, x > 0 and normal */
void num_sincos(double x, double *s, double *c); /* absolute error below 1e-15, |x| < 2^31 */

/* num_expf: n = x / ln 2 to the nearest integer, by adding and taking away EXPF_MAGIC; r = x - n ln
 * 2 in two steps; e^r = 1 + r + r^2 P(r); then n is added to the exponent bits. P is that of Cephes
 * (expf.c, S. Moshier). */
#define EXPF_MIN      -87.3f
#define EXPF_MAX      88.72283f
#define EXPF_LOG2E    1.44269504f
#define EXPF_MAGIC    0x1.8p23f
#define EXPF_LN2_HIGH 0.693359375f
#define EXPF_LN2_LOW  -2.12194440e-4f
#define EXPF_P5       1.9875691500e-4f
#define EXPF_P4       1.3981999507e-3f
#define EXPF_P3       8.3334519073e-3f
#define EXPF_P2       4.1665795894e-2f
#define EXPF_P1       1.6666665459e-1f
#define EXPF_P0       5.0000001201e-1f

/* GELU in its tanh form (Hendrycks & Gimpel, 1606.08415), written with one exponential:
 * x (1 + tanh u) / 2 = x / (1 + e^(-2u)), -2u = x (GELU_A + GELU_B x^2). */
#define GELU_A -1.59576912f    /* -2 sqrt(2 / pi) */
#define GELU_B -7.13548163e-2f /* 0.044715 GELU_A */

#endif
