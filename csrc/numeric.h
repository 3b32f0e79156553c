/* numeric.h: exp, sin, cos and rounding in our own few lines. Layer 0. libm's float functions
 * differ in the last bit between processors; these give the same bits everywhere, and the vector
 * kernels repeat them operation by operation (fmaf is exact by definition, so that one call is
 * allowed). */
#ifndef LLM_NUMERIC_H
#define LLM_NUMERIC_H

/* e^x, relative error below 2e-7 on [-87, 88]; 0 under -87.3, +infinity over 88.7, NaN for NaN. */
float num_expf(float x);

/* Double precision, absolute error below 1e-15 for |x| < 1e6: RoPE angles. */
double num_exp(double x); /* x in [-700, 700] */
double num_log(double x); /* x > 0, normal */
void num_sincos(double x, double *s, double *c);

#endif
