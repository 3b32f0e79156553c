/* test_numeric.c: our exp, log, sin and cos against libm's double and long double functions. */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "check.h"
#include "numeric.h"

static uint64_t state = 88172645463325252u;

static double uniform(double low, double high) { /* xorshift64 */
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return low + (high - low) * ((double)(state >> 11) * 0x1p-53);
}

static float float_of_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

static void check_expf(float x, double *worst) {
  double expected = exp((double)x), error = fabs((double)num_expf(x) / expected - 1);
  if (error > *worst) *worst = error;
  CHECK_MSG(error < 1e-7, "num_expf(%.9g) = %.9g, expected %.9g", (double)x, (double)num_expf(x),
            expected);
}

static void test_expf(void) {
  double worst = 0;
  /* Every 997th float of the range, both signs, tiny ones included. */
  for (uint32_t bits = 0; float_of_bits(bits) <= 87.3f; bits += 997) {
    check_expf(float_of_bits(bits), &worst);
    check_expf(-float_of_bits(bits), &worst);
  }
  for (float x = 87.3f; x <= 88.72283f; x = nextafterf(x, 100)) check_expf(x, &worst);
  printf("num_expf: worst relative error %.3g\n", worst);
  CHECK(num_expf(0) == 1 && num_expf(-0.0f) == 1);
  CHECK(num_expf(-87.3f) > 0 && num_expf(nextafterf(-87.3f, -100)) == 0);
  CHECK(num_expf(-INFINITY) == 0 && num_expf(-FLT_MAX) == 0);
  CHECK(isfinite(num_expf(88.72283f)) && isinf(num_expf(nextafterf(88.72283f, 100))));
  CHECK(isinf(num_expf(FLT_MAX)) && isinf(num_expf(INFINITY)));
  CHECK(isnan(num_expf(NAN)));
}

static void test_exp(void) {
  double worst = 0;
  for (int i = 0; i < 200000; i++) {
    double x = i % 2 ? uniform(-700, 700) : uniform(-2, 2);
    double error = (double)fabsl((long double)num_exp(x) / expl((long double)x) - 1);
    if (error > worst) worst = error;
    CHECK_MSG(error < 1e-15, "num_exp(%.17g): relative error %.3g", x, error);
  }
  printf("num_exp: worst relative error %.3g\n", worst);
  CHECK(num_exp(0) == 1);
  CHECK(num_exp(-709) == 0 && num_exp(-INFINITY) == 0);
  CHECK(isinf(num_exp(710)) && isinf(num_exp(INFINITY)) && isfinite(num_exp(709.7)));
  CHECK(isnan(num_exp(NAN)));
}

static void test_exp_all(void) {
  enum { N = 1000 };
  double x[N], y[N];
  for (int i = 0; i < N; i++) x[i] = i % 3 ? uniform(-750, 0) : uniform(-2, 0);
  x[0] = 0;
  x[1] = -INFINITY;
  x[2] = -708.3;
  x[3] = nextafter(-708.3, -INFINITY);
  x[4] = -DBL_MAX;
  for (size_t n = 0; n <= N; n += n < 70 ? 1 : 155) {
    memcpy(y, x, sizeof x);
    num_exp_all(y, n);
    for (size_t i = 0; i < N; i++)
      CHECK_MSG(y[i] == (i < n ? num_exp(x[i]) : x[i]), "e^%.17g, %zu of %zu", x[i], i, n);
  }
}

static void test_most(void) {
  float x[200];
  for (size_t n = 0; n <= 200; n++)
    for (size_t at = 0; at < n; at += 1 + n / 7) {
      float expected = -INFINITY;
      for (size_t i = 0; i < n; i++) {
        x[i] = i % 5 == 3 ? NAN : (float)uniform(-9, 9);
        if (i == at) x[i] = n % 3 == 0 ? INFINITY : n % 3 == 1 ? FLT_MAX : 9.5f;
        if (x[i] > expected) expected = x[i];
      }
      CHECK_MSG(num_most(x, n) == expected, "%zu numbers, the largest at %zu", n, at);
    }
  for (size_t i = 0; i < 200; i++) x[i] = i % 2 ? NAN : -INFINITY;
  CHECK(num_most(x, 0) == -INFINITY && num_most(x, 1) == -INFINITY);
  CHECK(num_most(x, 128) == -INFINITY && num_most(x, 200) == -INFINITY);
}

static void test_log(void) {
  double worst = 0;
  for (int i = 0; i < 200000; i++) {
    double x = i % 3 == 0 ? exp(uniform(-700, 700)) : i % 3 == 1 ? uniform(0.5, 2) : 1 + i * 1e-16;
    long double expected = logl((long double)x);
    double error = (double)fabsl((long double)num_log(x) - expected);
    if (expected != 0) error /= (double)fabsl(expected);
    if (error > worst) worst = error;
    CHECK_MSG(error < 1e-15, "num_log(%.17g): relative error %.3g", x, error);
  }
  printf("num_log: worst relative error %.3g\n", worst);
  CHECK(num_log(1) == 0);
  CHECK(fabs(num_log(DBL_MIN) / log(DBL_MIN) - 1) < 1e-15);
  CHECK(fabs(num_log(DBL_MAX) / log(DBL_MAX) - 1) < 1e-15);
}

static void check_sincos(double x, double *worst) {
  double s, c;
  num_sincos(x, &s, &c);
  double error = fmax((double)fabsl((long double)s - sinl((long double)x)),
                      (double)fabsl((long double)c - cosl((long double)x)));
  if (error > *worst) *worst = error;
  CHECK_MSG(error < 1e-15, "num_sincos(%.17g): absolute error %.3g", x, error);
}

static void test_sincos(void) {
  double worst = 0;
  for (int i = 0; i < 200000; i++) check_sincos(uniform(-1e6, 1e6), &worst);
  for (int i = 0; i < 100000; i++) check_sincos(uniform(-0x1p31, 0x1p31), &worst);
  for (int i = 0; i < 100000; i++) check_sincos(uniform(-4, 4), &worst);
  for (int i = -600000; i < 600000; i += 7) check_sincos(i * 1.5707963267948966, &worst);
  for (int i = 0; i < 100000; i++) check_sincos(i, &worst);
  printf("num_sincos: worst absolute error %.3g\n", worst);
  double s, c;
  num_sincos(0, &s, &c);
  CHECK(s == 0 && c == 1);
}

int main(void) {
  test_expf();
  test_exp();
  test_exp_all();
  test_most();
  test_log();
  test_sincos();
  return check_report("test_numeric");
}
