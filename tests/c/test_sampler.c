/* test_sampler.c: arg-max and its ties, the reach of top-k and top-p, frequencies against the
 * softmax, seeds, and logits that are not numbers. */
#include <math.h>
#include <string.h>

#include "check.h"
#include "llm.h"

static llm_sampler *make(int64_t n, float temperature, int32_t top_k, float top_p, uint64_t seed) {
  llm_sampler *s = NULL;
  llm_sampler_options o = {temperature, top_k, top_p, seed};
  CHECK(llm_sampler_new(&s, n, &o, NULL) == LLM_OK);
  return s;
}

static void test_arg_max(void) {
  llm_sampler *s = make(5, 0, 40, 0.95f, 1);
  CHECK(llm_sampler_sample(s, (float[]){0, 3, 1, 3, 2}) == 1); /* ties: the lowest id */
  CHECK(llm_sampler_sample(s, (float[]){NAN, -5, NAN, -4, NAN}) == 3);
  CHECK(llm_sampler_sample(s, (float[]){NAN, NAN, NAN, NAN, NAN}) == 0);
  CHECK(llm_sampler_sample(s, (float[]){0, INFINITY, 1, 3, 2}) == 1);
  CHECK(llm_sampler_sample(s, (float[]){-INFINITY, -INFINITY, -1, -INFINITY, 0}) == 4);
  llm_sampler_free(s);
}

enum { N = 6, DRAWS = 40000 };

/* Frequencies over many draws against the expected distribution; 5 standard deviations. */
static void check_frequencies(const float *logits, float temperature, int32_t top_k, float top_p,
                              const double *expected) {
  llm_sampler *s = make(N, temperature, top_k, top_p, 7);
  int count[N] = {0};
  for (int i = 0; i < DRAWS; i++) count[llm_sampler_sample(s, logits)]++;
  for (int i = 0; i < N; i++) {
    double p = expected[i], slack = 5 * sqrt(p * (1 - p) / DRAWS);
    CHECK_MSG(fabs((double)count[i] / DRAWS - p) <= slack,
              "id %d: %d draws, p %g, top_k %d, top_p %g", i, count[i], p, (int)top_k, top_p);
  }
  llm_sampler_free(s);
}

/* softmax(logits / temperature) over the ids whose bit is set */
static void distribution(const float *logits, double temperature, unsigned kept, double *p) {
  double sum = 0;
  for (int i = 0; i < N; i++) sum += p[i] = kept >> i & 1 ? exp(logits[i] / temperature) : 0;
  for (int i = 0; i < N; i++) p[i] /= sum;
}

static void test_frequencies(void) {
  /* softmax: .05 .40 .10 .25 .15 .05 */
  const double start[N] = {.05, .40, .10, .25, .15, .05};
  float logits[N];
  double p[N];
  for (int i = 0; i < N; i++) logits[i] = (float)log(start[i]);
  distribution(logits, 1, 077, p), check_frequencies(logits, 1, 0, 1, p);
  distribution(logits, .5, 077, p), check_frequencies(logits, .5f, 0, 1, p);
  distribution(logits, 1, 012, p), check_frequencies(logits, 1, 2, 1, p);
  distribution(logits, 1, 012, p), check_frequencies(logits, 1, 0, .6f, p); /* .40 + .25 */
  distribution(logits, 1, 032, p), check_frequencies(logits, 1, 0, .7f, p);
  distribution(logits, 2, 032, p), check_frequencies(logits, 2, 0, .7f, p); /* before temperature */
  /* top-p's share is of what top-k left: .40 of .65 is over .6 */
  distribution(logits, 1, 002, p), check_frequencies(logits, 1, 2, .6f, p);
  distribution(logits, 1, 077, p), check_frequencies(logits, 1, 100, 1, p);
}

static void test_not_numbers(void) {
  const float logits[N] = {NAN, 0, -INFINITY, NAN, 0, -INFINITY};
  const double p[N] = {0, .5, 0, 0, .5, 0};
  check_frequencies(logits, 1, 0, 1, p);
  check_frequencies(logits, 1, 3, .9f, p);
  const float all_nan[N] = {NAN, NAN, NAN, NAN, NAN, NAN};
  llm_sampler *s = make(N, 1, 3, .9f, 1);
  int32_t id = llm_sampler_sample(s, all_nan);
  CHECK(id >= 0 && id < N);
  const float top[N] = {INFINITY, 0, INFINITY, 0, 0, 0};
  id = llm_sampler_sample(s, top);
  CHECK(id == 0 || id == 2);
  llm_sampler_free(s);
}

static void test_seeds(void) {
  float logits[N] = {0};
  llm_sampler *a = make(N, 1, 0, 1, 5), *b = make(N, 1, 0, 1, 5), *c = make(N, 1, 0, 1, 6);
  int equal = 0;
  for (int i = 0; i < 100; i++) {
    int32_t id = llm_sampler_sample(a, logits);
    CHECK(id == llm_sampler_sample(b, logits));
    equal += id == llm_sampler_sample(c, logits);
  }
  CHECK(equal < 60);
  llm_sampler_free(a), llm_sampler_free(b), llm_sampler_free(c);
}

static void test_options(void) {
  const llm_sampler_options bad[] = {
      {-1, 0, 1, 0}, {NAN, 0, 1, 0},  {INFINITY, 0, 1, 0}, {1, -1, 1, 0},
      {1, 0, 0, 0},  {1, 0, 1.5f, 0}, {1, 0, NAN, 0},
  };
  llm_sampler *s;
  llm_error err;
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
    CHECK(llm_sampler_new(&s, N, &bad[i], &err) == LLM_ERR_ARG && !s && *err.message);
  CHECK(llm_sampler_new(&s, 0, NULL, &err) == LLM_ERR_ARG);
  llm_sampler_free(NULL);
}

int main(void) {
  test_arg_max();
  test_frequencies();
  test_not_numbers();
  test_seeds();
  test_options();
  return check_report("test_sampler");
}
