/* test_quantize.c: rounding by the rules against digests that the public gguf package (0.19, numpy
 * 2) gave for the same values, gguf.quants.quantize(x, type) with h = arange(4096) * 2654435761 %
 * 2**32 x = float32((h - 2**31) / 2**31) * 2**(i // 32 % 24 - 12); x[64:96] = 0; x[100] = 0.5 and
 * FNV-1a over the bytes; the search against bounds and against exhaustive rounding; values that no
 * block can hold; threads; feedback against float64. */
#include <math.h>
#include <stdlib.h>

#include "check.h"
#include "quantize.h"

enum { N = 4096 };

static const llm_type blocks_of[] = {LLM_TYPE_Q8_0, LLM_TYPE_Q4_0, LLM_TYPE_Q4_1, LLM_TYPE_Q5_0,
                                     LLM_TYPE_Q5_1, LLM_TYPE_Q4_K, LLM_TYPE_Q5_K, LLM_TYPE_Q6_K};
enum { N_TYPES = sizeof blocks_of / sizeof *blocks_of };

static uint64_t fnv_1a(const void *data, size_t n_bytes) {
  uint64_t fnv = 0xcbf29ce484222325;
  for (size_t i = 0; i < n_bytes; i++) fnv = (fnv ^ ((const uint8_t *)data)[i]) * 0x100000001b3;
  return fnv;
}

/* ---- the rules ---- */

static void test_bf16(void) {
  for (unsigned h = 0; h < 0x10000; h++) {
    float x = bf16_to_f32((uint16_t)h);
    CHECK(f32_bits(x) == h << 16);
    if (isnan(x)) {
      CHECK(isnan(bf16_to_f32(f32_to_bf16(x))));
      continue;
    }
    CHECK(f32_to_bf16(x) == h);
    if ((h & 0x7fff) >= 0x7f80) continue;
    unsigned even = h + (h & 1);
    CHECK_MSG(f32_to_bf16(f32_from_bits(h << 16 | 0x8000)) == even, "tie over bf16 %04x", h);
    CHECK(f32_to_bf16(f32_from_bits(h << 16 | 0x7fff)) == h);
    CHECK(f32_to_bf16(f32_from_bits(h << 16 | 0x8001)) == h + 1);
  }
  CHECK(isnan(bf16_to_f32(f32_to_bf16(f32_from_bits(0x7f800001)))));
}

static void fill(float *x) {
  for (int i = 0; i < N; i++) {
    uint32_t h = (uint32_t)i * 2654435761u;
    x[i] = ldexpf((float)(((double)h - 0x1p31) / 0x1p31), i / 32 % 24 - 12);
  }
  for (int i = 64; i < 96; i++) x[i] = 0;
  x[100] = 0.5f;
}

static void test_rounding(void) {
  static const struct {
    llm_type type;
    uint64_t fnv;
    double bound; /* largest error over the block's largest magnitude */
  } cases[] = {
      /* half a step, and what the float16 scale adds to the largest integer */
      {LLM_TYPE_Q8_0, 0x62c86d6adc7aebfc, 0.5 / 127 + 0x1p-11},
      {LLM_TYPE_Q4_0, 0x282e764c93971a36, 1.0 / 8 + 0x1p-11}, /* a full step: +8 does not exist */
      {LLM_TYPE_Q4_1, 0xbb6070e483bcf722, 1.0 / 15 + 0x1p-10},
      {LLM_TYPE_Q5_0, 0xafc1d40d234e6e11, 1.0 / 16 + 0x1p-11},
      {LLM_TYPE_Q5_1, 0x088bb9a033a794cb, 1.0 / 31 + 0x1p-10},
      {LLM_TYPE_F16, 0xe7791af5cc750f0e, 0x1p-11},
      {LLM_TYPE_BF16, 0x5f99a94a2e125d8d, 0x1p-8},
  };
  const double tiny = 128 * 0x1p-25; /* scales below 2^-14 are multiples of 2^-24 */
  static float x[N], back[N];
  static uint8_t bytes[N * 4];
  fill(x);
  for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
    const char *name = llm_type_describe(cases[c].type).name;
    size_t n_bytes = type_row_bytes(cases[c].type, N);
    quantize(cases[c].type, x, N, bytes);
    uint64_t fnv = fnv_1a(bytes, n_bytes);
    CHECK_MSG(fnv == cases[c].fnv, "%s: digest %016llx, gguf's is %016llx", name,
              (unsigned long long)fnv, (unsigned long long)cases[c].fnv);
    dequantize(cases[c].type, bytes, N, back);
    for (int i = 0; i < N; i++) {
      double amax = 0;
      for (int j = i / 32 * 32; j < i / 32 * 32 + 32; j++) amax = fmax(amax, fabs((double)x[j]));
      double error = fabs((double)back[i] - (double)x[i]);
      CHECK_MSG(error <= amax * cases[c].bound + tiny, "%s: x[%d] = %g came back as %g", name, i,
                (double)x[i], (double)back[i]);
    }
  }
}

/* The search cuts extremes where that serves the rest: a step or two at the ends, and what rounding
 * scales and minima to 63rds, or 127ths, of the largest adds. */
static void test_super_blocks(void) {
  static const struct {
    llm_type type;
    double bound; /* largest error over the super-block's largest magnitude */
  } cases[] = {{LLM_TYPE_Q4_K, 2.0 / 15 + 1.5 / 63},
               {LLM_TYPE_Q5_K, 2.0 / 31 + 1.5 / 63},
               {LLM_TYPE_Q6_K, 1.5 / 31 + 0.5 / 127}};
  static float x[N], back[N];
  static uint8_t bytes[N * 4];
  fill(x);
  for (int i = 0; i < N; i++) x[i] = ldexpf(x[i], 12 + i / 256 % 3 - i / 32 % 24); /* more alike */
  for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
    quantize(cases[c].type, x, N, bytes);
    dequantize(cases[c].type, bytes, N, back);
    for (int i = 0; i < N; i++) {
      double amax = 0;
      for (int j = i / 256 * 256; j < i / 256 * 256 + 256; j++)
        amax = fmax(amax, fabs((double)x[j]));
      CHECK_MSG(fabs((double)back[i] - (double)x[i]) <= amax * cases[c].bound,
                "%s: x[%d] = %g came back as %g", llm_type_describe(cases[c].type).name, i,
                (double)x[i], (double)back[i]);
    }
  }
}

/* ---- the search ---- */

static llm_status round_rows(llm_type type, const float *x, size_t n_rows, const float *importance,
                             const float *feedback, int n_threads, void *dst, llm_error *err) {
  return llm_quantize(type, x, n_rows, N / n_rows, importance, feedback, n_threads, dst, err);
}

/* Sum of w * error^2 in float64. */
static double weighted_error(llm_type type, const void *bytes, const float *x, const float *w) {
  static float back[N];
  double sum = 0;
  dequantize(type, bytes, N, back);
  for (int i = 0; i < N; i++) {
    double e = (double)back[i] - (double)x[i];
    sum += (w ? (double)w[i % QK_SUPER] : 1) * e * e;
  }
  return sum;
}

static uint32_t next_random(uint32_t *state) { return *state = *state * 1664525 + 1013904223; }

/* About normal: the sum of four uniforms, in units of their deviation. */
static void fill_normal(float *x, size_t n, uint32_t seed) {
  for (size_t i = 0; i < n; i++) {
    x[i] = 0;
    for (int k = 0; k < 4; k++) x[i] += (float)(next_random(&seed) >> 8) * 0x1p-24f - 0.5f;
    x[i] *= 0.0346f; /* 0.02 for a weight */
  }
}

/* The search beats the rule, and importance moves the error to the columns that do not matter. */
static void test_search(void) {
  static float x[N];
  static uint8_t rule[N * 2], equal[N * 2], weighted[N * 2];
  float ones[QK_SUPER], importance[QK_SUPER];
  fill_normal(x, N, 1);
  for (int i = 0; i < QK_SUPER; i++) ones[i] = 1, importance[i] = i % 5 ? 0.01f : 3;
  for (int t = 0; t < N_TYPES; t++) {
    llm_type type = blocks_of[t];
    const char *name = llm_type_describe(type).name;
    size_t n_rows = N / QK_SUPER;
    CHECK(round_rows(type, x, n_rows, NULL, NULL, 1, rule, NULL) == LLM_OK);
    CHECK(round_rows(type, x, n_rows, ones, NULL, 1, equal, NULL) == LLM_OK);
    CHECK(round_rows(type, x, n_rows, importance, NULL, 1, weighted, NULL) == LLM_OK);
    double by_rule = weighted_error(type, rule, x, NULL);
    double by_search = weighted_error(type, equal, x, NULL);
    if (llm_type_describe(type).n_per_block == QK_SUPER)
      CHECK_MSG(by_search == by_rule, "%s: equal importance is none", name);
    else
      CHECK_MSG(by_search < 0.95 * by_rule, "%s: %g by search, %g by rule", name, by_search,
                by_rule);
    double unaware = weighted_error(type, equal, x, importance);
    double aware = weighted_error(type, weighted, x, importance);
    CHECK_MSG(aware < 0.97 * unaware, "%s: %g with importance, %g without", name, aware, unaware);
  }
}

/* What lies on a type's levels is found again: exactly where the scale is a float16 by itself. */
static void test_levels_are_kept(void) {
  static const int most[N_TYPES] = {127, 7, 7, 15, 15, 7, 15, 31};
  static float x[N], back[N];
  static uint8_t bytes[N * 2];
  float ones[QK_SUPER];
  for (int i = 0; i < QK_SUPER; i++) ones[i] = 1;
  for (int t = 0; t < N_TYPES; t++) {
    llm_type type = blocks_of[t];
    float tolerance = llm_type_describe(type).n_per_block == QK_SUPER ? 0x1p-8f : 0;
    for (int i = 0; i < N; i++) x[i] = (float)(i * 37 % (2 * most[t] + 1) - most[t]) * 0x1p-6f;
    for (int i = 0; i < N; i += 16) /* each group has both ends */
      x[i] = (float)-most[t] * 0x1p-6f, x[i + 1] = (float)most[t] * 0x1p-6f;
    CHECK(round_rows(type, x, N / QK_SUPER, ones, NULL, 1, bytes, NULL) == LLM_OK);
    dequantize(type, bytes, N, back);
    for (int i = 0; i < N; i++)
      CHECK_MSG(fabsf(back[i] - x[i]) <= tolerance, "%s: %g came back as %g",
                llm_type_describe(type).name, (double)x[i], (double)back[i]);
  }
}

/* ---- feedback ---- */

/* Elements behind the first of each pair are its copies, feedback 1: what one loses the next gains,
 * so that the sum of a row ends within one step of the true one. */
static void test_feedback(void) {
  static float x[N], feedback[QK_SUPER * QK_SUPER], back[N];
  static uint8_t plain[N * 2], passed[N * 2];
  float ones[QK_SUPER];
  for (int i = 0; i < QK_SUPER; i++) ones[i] = 1;
  for (int i = 0; i + 1 < QK_SUPER; i++) feedback[i * QK_SUPER + i + 1] = -1;
  fill_normal(x, N, 2);
  for (int t = 0; t < N_TYPES; t++) {
    llm_type type = blocks_of[t];
    size_t n_rows = N / QK_SUPER;
    CHECK(round_rows(type, x, n_rows, ones, NULL, 1, plain, NULL) == LLM_OK);
    CHECK(round_rows(type, x, n_rows, ones, feedback, 1, passed, NULL) == LLM_OK);
    double sums[2] = {0, 0};
    for (int k = 0; k < 2; k++) {
      dequantize(type, k ? passed : plain, N, back);
      for (size_t r = 0; r < n_rows; r++) {
        double sum = 0;
        for (int i = 0; i < QK_SUPER; i++)
          sum += (double)back[r * QK_SUPER + i] - (double)x[r * QK_SUPER + i];
        sums[k] += sum * sum;
      }
    }
    CHECK_MSG(sums[1] < 0.1 * sums[0], "%s: squared errors of row sums %g, with feedback %g",
              llm_type_describe(type).name, sums[0], sums[1]);
  }
}

/* ---- what cannot be held, and the smallest ---- */

static void test_strange_values(void) {
  static const float values[] = {INFINITY, NAN, -INFINITY, 3e38f};
  float x[QK_SUPER] = {0}, back[QK_SUPER], ones[QK_SUPER];
  uint8_t bytes[QK_SUPER * sizeof(float)];
  llm_error err;
  for (int i = 0; i < QK_SUPER; i++) ones[i] = 1;
  for (int t = 0; t < N_TYPES; t++) {
    const char *name = llm_type_describe(blocks_of[t]).name;
    for (int v = 0; v < 4; v++) {
      x[37] = values[v];
      CHECK(llm_quantize(blocks_of[t], x, 1, QK_SUPER, NULL, NULL, 1, bytes, &err) == LLM_ERR_ARG);
      CHECK(strstr(err.message, "row 0") && strstr(err.message, name));
    }
    for (int searched = 0; searched < 2; searched++) {
      const float *importance = searched ? ones : NULL;
      memset(x, 0, sizeof x);
      CHECK(llm_quantize(blocks_of[t], x, 1, QK_SUPER, importance, NULL, 1, bytes, &err) == LLM_OK);
      dequantize(blocks_of[t], bytes, QK_SUPER, back);
      for (int i = 0; i < QK_SUPER; i++) CHECK(back[i] == 0);
      x[3] = 0x1p-149f, x[20] = -0x1p-140f; /* below every float16 */
      CHECK(llm_quantize(blocks_of[t], x, 1, QK_SUPER, importance, NULL, 1, bytes, &err) == LLM_OK);
      dequantize(blocks_of[t], bytes, QK_SUPER, back);
      for (int i = 0; i < QK_SUPER; i++) CHECK(back[i] == 0);
      memset(x, 0, sizeof x);
      x[3] = 60000, x[4] = -60000; /* the greatest are finite */
      CHECK(llm_quantize(blocks_of[t], x, 1, QK_SUPER, importance, NULL, 1, bytes, &err) == LLM_OK);
      dequantize(blocks_of[t], bytes, QK_SUPER, back);
      for (int i = 0; i < QK_SUPER; i++) CHECK(fabsf(back[i] - x[i]) <= 9000);
    }
  }
  uint16_t half[2];
  float pair[2] = {65519.99f, 0x1p-24f};
  CHECK(llm_quantize(LLM_TYPE_F16, pair, 1, 2, NULL, NULL, 1, half, &err) == LLM_OK);
  CHECK(half[0] == 0x7bff && half[1] == 1);
  pair[0] = 65520, pair[1] = INFINITY;
  CHECK(llm_quantize(LLM_TYPE_F16, pair, 1, 1, NULL, NULL, 1, half, &err) == LLM_ERR_ARG);
  CHECK(llm_quantize(LLM_TYPE_F16, pair + 1, 1, 1, NULL, NULL, 1, half, &err) == LLM_ERR_ARG);
  CHECK(llm_quantize(LLM_TYPE_BF16, pair, 1, 2, NULL, NULL, 1, half, &err) == LLM_OK);
  CHECK(half[0] == 0x4780 && half[1] == 0x7f80);
}

static void test_arguments(void) {
  float x[64] = {0}, importance[64] = {0};
  uint8_t bytes[256];
  llm_error err;
  CHECK(llm_quantize((llm_type)10, x, 1, 64, NULL, NULL, 1, bytes, &err) == LLM_ERR_UNSUPPORTED);
  CHECK(llm_quantize(LLM_TYPE_Q4_0, x, 1, 33, NULL, NULL, 1, bytes, &err) == LLM_ERR_ARG);
  CHECK(strstr(err.message, "33") && strstr(err.message, "Q4_0"));
  CHECK(llm_quantize(LLM_TYPE_Q4_0, x, 1, 64, NULL, NULL, -1, bytes, &err) == LLM_ERR_ARG);
  CHECK(llm_quantize(LLM_TYPE_Q4_0, x, 1, 64, importance, NULL, 1, bytes, &err) == LLM_ERR_ARG);
  CHECK(strstr(err.message, "column 0"));
  CHECK(llm_quantize(LLM_TYPE_Q4_0, x, 0, 64, NULL, NULL, 1, bytes, &err) == LLM_OK);
  CHECK(llm_quantize(LLM_TYPE_F32, x, 1, 64, NULL, NULL, 1, bytes, &err) == LLM_OK);
}

/* ---- instruction sets ---- */

static void test_instruction_sets(void) {
  enum { ROWS = 24, WIDTH = 512 };
  float *x = malloc(ROWS * WIDTH * sizeof *x), *f = calloc(WIDTH * WIDTH, sizeof *f);
  float importance[WIDTH], row[WIDTH];
  uint8_t one[WIDTH * 2], other[WIDTH * 2];
  fill_normal(x, ROWS * WIDTH, 5);
  for (int i = 0; i < WIDTH; i++) {
    importance[i] = (float)(i % 13) + 0.25f;
    if (i + 1 < WIDTH) f[i * WIDTH + i + 1] = 0.3f;
  }
  for (int t = 0; t < N_TYPES; t++)
    for (int i = 0; i < 4 * ROWS; i++) {
      const float *weights = i % 2 ? importance : NULL, *feedback = i / 2 % 2 ? f : NULL;
      size_t n_bytes = type_row_bytes(blocks_of[t], WIDTH);
      memcpy(row, x + i / 4 * WIDTH, sizeof row);
      quantize_fit(blocks_of[t], row, WIDTH, weights, feedback, one);
      memcpy(row, x + i / 4 * WIDTH, sizeof row);
      quantize_fit_portable(blocks_of[t], row, WIDTH, weights, feedback, other);
      CHECK_MSG(!memcmp(one, other, n_bytes), "%s depends on the processor",
                llm_type_describe(blocks_of[t]).name);
    }
  free(x), free(f);
}

/* ---- threads ---- */

static void test_threads(void) {
  enum { ROWS = 137, WIDTH = 512 };
  float *x = malloc(ROWS * WIDTH * sizeof *x), *f = calloc(WIDTH * WIDTH, sizeof *f);
  uint8_t *one = malloc(ROWS * WIDTH * 2), *many = malloc(ROWS * WIDTH * 2);
  fill_normal(x, ROWS * WIDTH, 3);
  for (int i = 0; i + 1 < WIDTH; i++) f[i * WIDTH + i + 1] = 0.3f;
  for (int t = 0; t < N_TYPES; t++)
    for (int n_threads = 2; n_threads <= 5; n_threads++)
      for (int with = 0; with < 2; with++) {
        const float *feedback = with ? f : NULL;
        CHECK(!llm_quantize(blocks_of[t], x, ROWS, WIDTH, NULL, feedback, 1, one, NULL));
        CHECK(!llm_quantize(blocks_of[t], x, ROWS, WIDTH, NULL, feedback, n_threads, many, NULL));
        CHECK_MSG(!memcmp(one, many, ROWS * type_row_bytes(blocks_of[t], WIDTH)),
                  "%s differs with %d threads", llm_type_describe(blocks_of[t]).name, n_threads);
      }
  free(x), free(f), free(one), free(many);
}

int main(void) {
  test_bf16();
  test_rounding();
  test_super_blocks();
  test_search();
  test_levels_are_kept();
  test_feedback();
  test_strange_values();
  test_arguments();
  test_instruction_sets();
  test_threads();
  return check_report("test_quantize");
}
