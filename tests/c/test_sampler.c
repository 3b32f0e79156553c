/* test_sampler.c: arg-max and its ties, the reach of top-k, top-p and min-p, frequencies against
 * the softmax, vocabularies of several groups, penalties and their history, biases and bans, seeds,
 * and logits that are not numbers. tests/test_sampler.py compares the whole with a plain NumPy
 * version. */
#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "llm.h"

static llm_sampler_options options(float temperature, int32_t top_k, float top_p, uint64_t seed) {
  llm_sampler_options o = llm_sampler_default_options();
  o.temperature = temperature;
  o.top_k = top_k;
  o.top_p = top_p;
  o.seed = seed;
  return o;
}

static llm_sampler *make(int64_t n, float temperature, int32_t top_k, float top_p, uint64_t seed) {
  llm_sampler *s = NULL;
  llm_sampler_options o = options(temperature, top_k, top_p, seed);
  CHECK(llm_sampler_new(&s, n, &o, NULL) == LLM_OK);
  return s;
}

static void test_arg_max(void) {
  llm_sampler *s = make(5, 0, 40, 0.95f, 1);
  CHECK(llm_sampler_sample(s, (float[]){0, 3, 1, 3, 2}) == 1); /* ties: the lowest id */
  CHECK(llm_sampler_sample(s, (float[]){NAN, -5, NAN, -4, NAN}) == 3);
  CHECK(llm_sampler_sample(s, (float[]){NAN, NAN, NAN, NAN, NAN}) == 0);
  CHECK(llm_sampler_sample(s, (float[]){0, INFINITY, 1, 3, 2}) == 1);
  CHECK(llm_sampler_sample(s, (float[]){0, FLT_MAX, INFINITY, 3, INFINITY}) == 1);
  CHECK(llm_sampler_sample(s, (float[]){-INFINITY, -INFINITY, -1, -INFINITY, 0}) == 4);
  llm_sampler_free(s);
}

enum { N = 6, DRAWS = 40000 };

/* Frequencies over many draws against the expected distribution; 5 standard deviations. */
static void check_draws(llm_sampler_options o, const float *logits, const double *expected) {
  llm_sampler *s = NULL;
  o.seed = 7;
  CHECK(!llm_sampler_new(&s, N, &o, NULL));
  int count[N] = {0};
  for (int i = 0; i < DRAWS; i++) count[llm_sampler_sample(s, logits)]++;
  for (int i = 0; i < N; i++) {
    double p = expected[i], slack = 5 * sqrt(p * (1 - p) / DRAWS);
    CHECK_MSG(fabs((double)count[i] / DRAWS - p) <= slack,
              "id %d: %d draws, p %g, top_k %d, top_p %g, min_p %g", i, count[i], p, (int)o.top_k,
              o.top_p, o.min_p);
  }
  llm_sampler_free(s);
}

static void check_frequencies(const float *logits, float temperature, int32_t top_k, float top_p,
                              const double *expected) {
  check_draws(options(temperature, top_k, top_p, 7), logits, expected);
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

/* ---- vocabularies of several groups: none hides a token. Arrays are of the exact size, for the
 * address sanitizer ---- */

static size_t n_likelier(const float *logits, size_t n, size_t id) {
  size_t likelier = 0;
  for (size_t i = 0; i < n; i++)
    likelier += logits[i] > logits[id] || (logits[i] == logits[id] && i < id);
  return likelier;
}

/* What is drawn is among the top_k likeliest, and each of them is, however unlikely. */
static void check_groups(size_t n, size_t top_k, uint64_t seed) {
  float *logits = malloc(n * sizeof *logits);
  char *drawn = calloc(n, 1);
  size_t kept = top_k && top_k < n ? top_k : n, n_drawn = 0;
  for (size_t i = 0; i < n; i++) logits[i] = (float)((i + seed) * 2654435761u % 997 / 9);
  llm_sampler *best = make((int64_t)n, 0, 40, .95f, 1);
  llm_sampler *any = make((int64_t)n, FLT_MAX, (int32_t)top_k, 1, seed);
  CHECK(n_likelier(logits, n, (size_t)llm_sampler_sample(best, logits)) == 0);
  for (size_t i = 0; i < 20 * kept; i++) {
    size_t id = (size_t)llm_sampler_sample(any, logits);
    CHECK_MSG(n_likelier(logits, n, id) < kept, "id %zu of %zu, top_k %zu", id, n, top_k);
    n_drawn += !drawn[id];
    drawn[id] = 1;
  }
  CHECK_MSG(n_drawn == kept, "of the %zu likeliest of %zu only %zu are drawn", kept, n, n_drawn);
  llm_sampler_free(best), llm_sampler_free(any);
  free(logits), free(drawn);
}

static void test_groups(void) {
  const size_t sizes[] = {1, 2, 63, 64, 65, 127, 128, 129, 200, 640};
  const size_t top[] = {0, 1, 2, 3, 9, 10, 11, 64, 65, 200, 1000};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
    for (size_t k = 0; k < sizeof top / sizeof *top; k++) check_groups(sizes[i], top[k], i + k);
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

/* The id that is left when everything but the likeliest is cut off. */
static int32_t greedy(llm_sampler_options o, const float *logits, const int32_t *ids,
                      size_t n_ids) {
  llm_sampler *s = NULL;
  o.temperature = 0;
  CHECK(!llm_sampler_new(&s, N, &o, NULL));
  llm_sampler_accept(s, ids, n_ids);
  int32_t id = llm_sampler_sample(s, logits);
  CHECK(llm_sampler_sample(s, logits) == id); /* looking changes nothing */
  llm_sampler_free(s);
  return id;
}

static void test_penalties(void) {
  const float logits[N] = {2, 1.5f, 1, -1, -1.5f, -2}, low[N] = {-1, -1.5f, -9, -9, -9, -9};
  llm_sampler_options o = options(0, 0, 1, 1);
  CHECK(greedy(o, logits, (int32_t[]){0}, 1) == 0); /* off by default */
  o.repeat_penalty = 1.3f;                          /* 2 / 1.3 is over 1.5 */
  CHECK(greedy(o, logits, (int32_t[]){0}, 1) == 0);
  o.repeat_penalty = 1.4f; /* 2 / 1.4 is not */
  CHECK(greedy(o, logits, (int32_t[]){0, 0}, 2) == 1);
  CHECK(greedy(o, logits, (int32_t[]){0, 1}, 2) == 0);
  o.repeat_penalty = 1.6f; /* a negative logit moves down as well */
  CHECK(greedy(o, low, (int32_t[]){0}, 1) == 1);
  o.repeat_penalty = 1;
  o.presence_penalty = .4f;
  CHECK(greedy(o, logits, (int32_t[]){0, 0, 0}, 3) == 0);
  o.presence_penalty = .6f;
  CHECK(greedy(o, logits, (int32_t[]){0}, 1) == 1);
  o.presence_penalty = 0;
  o.frequency_penalty = .2f; /* 2 - .2 c against 1.5 */
  CHECK(greedy(o, logits, (int32_t[]){0, 0}, 2) == 0);
  CHECK(greedy(o, logits, (int32_t[]){0, 0, 0}, 3) == 1);
  o.penalty_last_n = 2; /* the newest alone count */
  CHECK(greedy(o, logits, (int32_t[]){0, 0, 0}, 3) == 0);
  o.frequency_penalty = .3f;
  CHECK(greedy(o, logits, (int32_t[]){5, 5, 0, 0}, 4) == 1);
  CHECK(greedy(o, logits, (int32_t[]){0, 0, 5, 0}, 4) == 0);
  o.penalty_last_n = 0;
  CHECK(greedy(o, logits, (int32_t[]){0, 0, 0}, 3) == 0);
  o.penalty_last_n = 64;
  CHECK(greedy(o, logits, (int32_t[]){-1, N, INT32_MAX, 0}, 4) == 0); /* no tokens but the last */
}

/* Accepted one by one, over many turns of the ring, and forgotten on reset. */
static void test_history(void) {
  const float logits[N] = {2, 1.5f, 1, -1, -1.5f, -2};
  llm_sampler_options o = options(0, 0, 1, 1);
  llm_sampler *s = NULL;
  o.presence_penalty = 1;
  o.penalty_last_n = 3;
  CHECK(!llm_sampler_new(&s, N, &o, NULL));
  for (int i = 0; i < 1000; i++) {
    CHECK(llm_sampler_sample(s, logits) == (i % 4 == 1 || i % 4 == 2 || i % 4 == 3 ? 1 : 0));
    llm_sampler_accept(s, (int32_t[]){i % 4 ? 5 : 0}, 1);
  }
  llm_sampler_accept(s, (int32_t[]){0}, 1);
  CHECK(llm_sampler_sample(s, logits) == 1);
  llm_sampler_reset(s);
  CHECK(llm_sampler_sample(s, logits) == 0);
  llm_sampler_free(s);
}

static llm_sampler_options biased(llm_sampler_options o, const int32_t *ids, const float *values,
                                  size_t n) {
  o.bias_ids = ids;
  o.bias_values = values;
  o.n_biases = n;
  return o;
}

static void test_bias(void) {
  const float logits[N] = {2, 1.5f, 1, -1, -1.5f, -2};
  llm_sampler_options o = options(0, 0, 1, 1);
  int32_t ids[N] = {0, 1, 2, 3, 4, 5};
  float ban[N], bias[2] = {-1, 4.6f};
  for (int i = 0; i < N; i++) ban[i] = -INFINITY;
  CHECK(greedy(biased(o, ids, ban, 2), logits, NULL, 0) == 2);
  CHECK(greedy(biased(o, ids + 4, bias, 2), logits, NULL, 0) == 5);
  CHECK(greedy(biased(o, (int32_t[]){1, 1}, (float[]){.3f, .3f}, 2), logits, NULL, 0) == 1);
  CHECK(greedy(biased(o, ids, ban, N), logits, NULL, 0) == 0); /* all alike: the lowest id */
  o.temperature = 1;
  double p[N];
  distribution(logits, 1, 074, p);
  check_draws(biased(o, ids, ban, 2), logits, p);
  o.temperature = FLT_MAX; /* nearly uniform: a ban stays a ban */
  distribution(logits, FLT_MAX, 074, p);
  check_draws(biased(o, ids, ban, 2), logits, p);
  distribution(logits, FLT_MAX, 077, p);
  o.temperature = 1;
  check_draws(biased(o, ids, ban, N), logits, p); /* nothing tells them apart */
  o.top_k = 2;
  const double two[N] = {.5, .5};
  check_draws(biased(o, ids, ban, N), logits, two);
  /* A ban of all but one, cut by top-k and top-p as well. */
  o.top_k = 4;
  o.top_p = .9f;
  o.min_p = .5f;
  const double last[N] = {0, 0, 0, 0, 0, 1};
  check_draws(biased(o, ids, ban, N - 1), logits, last);
}

static void test_min_p(void) {
  const double start[N] = {.05, .40, .10, .25, .15, .05};
  float logits[N];
  double p[N];
  for (int i = 0; i < N; i++) logits[i] = (float)log(start[i]);
  llm_sampler_options o = options(2, 0, 1, 1);
  o.min_p = .3f; /* .12: before temperature */
  distribution(logits, 2, 032, p), check_draws(o, logits, p);
  o.min_p = 1;
  distribution(logits, 2, 002, p), check_draws(o, logits, p);
  o.min_p = .3f;
  o.top_k = 2;
  distribution(logits, 2, 012, p), check_draws(o, logits, p);
  o.top_k = 0;
  o.top_p = .9f; /* five tokens */
  distribution(logits, 2, 032, p), check_draws(o, logits, p);
}

static void refused(llm_sampler_options o) {
  llm_sampler *s;
  llm_error err;
  CHECK(llm_sampler_new(&s, N, &o, &err) == LLM_ERR_ARG && !s && *err.message);
}

static void test_options(void) {
  const float bad[][3] = {{-1, 0, 1}, {NAN, 0, 1},  {INFINITY, 0, 1}, {1, -1, 1},
                          {1, 0, 0},  {1, 0, 1.5f}, {1, 0, NAN}};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
    refused(options(bad[i][0], (int32_t)bad[i][1], bad[i][2], 0));
  const struct {
    size_t at;
    float value;
  } wrong[] = {
      {offsetof(llm_sampler_options, min_p), -.1f},
      {offsetof(llm_sampler_options, min_p), 1.1f},
      {offsetof(llm_sampler_options, min_p), NAN},
      {offsetof(llm_sampler_options, repeat_penalty), 0},
      {offsetof(llm_sampler_options, repeat_penalty), -1},
      {offsetof(llm_sampler_options, repeat_penalty), INFINITY},
      {offsetof(llm_sampler_options, repeat_penalty), NAN},
      {offsetof(llm_sampler_options, presence_penalty), INFINITY},
      {offsetof(llm_sampler_options, presence_penalty), NAN},
      {offsetof(llm_sampler_options, frequency_penalty), -INFINITY},
      {offsetof(llm_sampler_options, frequency_penalty), NAN},
  };
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    llm_sampler_options o = llm_sampler_default_options();
    memcpy((char *)&o + wrong[i].at, &wrong[i].value, sizeof(float));
    refused(o);
  }
  llm_sampler_options o = llm_sampler_default_options();
  o.penalty_last_n = -1, refused(o);
  o.penalty_last_n = (1 << 20) + 1, refused(o);
  o = llm_sampler_default_options();
  refused(biased(o, (int32_t[]){N}, (float[]){1}, 1));
  refused(biased(o, (int32_t[]){-1}, (float[]){1}, 1));
  refused(biased(o, (int32_t[]){0}, (float[]){NAN}, 1));
  refused(biased(o, (int32_t[]){0}, (float[]){INFINITY}, 1));
  llm_sampler *s;
  CHECK(llm_sampler_new(&s, 0, NULL, NULL) == LLM_ERR_ARG);
  llm_sampler_free(NULL);
}

int main(void) {
  test_arg_max();
  test_frequencies();
  test_not_numbers();
  test_groups();
  test_seeds();
  test_penalties();
  test_history();
  test_bias();
  test_min_p();
  test_options();
  return check_report("test_sampler");
}
