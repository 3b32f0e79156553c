/* test_logprobs.c: the top list against sorting everything, values against libm in long double,
 * ties, logits that are not numbers, and what is refused. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "llm.h"
#include "logprobs.h"

enum { N = 1000 };

static float logits[N];

static int by_rank(const void *a, const void *b) {
  int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
  if (logits[i] != logits[j]) return logits[i] > logits[j] ? -1 : 1;
  return i < j ? -1 : 1;
}

/* Values from a few: many ties. */
static void fill(uint64_t seed, int n_values) {
  for (int i = 0; i < N; i++) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    logits[i] = (float)((int)(seed >> 33) % n_values) / 7 - 20;
  }
}

static void check_against_sorting(void) {
  int32_t sorted[N], ids[N];
  float values[N], value;
  long double sum = 0;
  for (int i = 0; i < N; i++) sorted[i] = i, sum += expl(logits[i]);
  qsort(sorted, N, sizeof *sorted, by_rank);
  for (size_t n = 0; n <= N; n = 2 * n + 1) {
    int32_t id = (int32_t)(n * 7 % N);
    CHECK(!llm_logprobs(logits, N, id, n, ids, values, &value, NULL));
    CHECK(!memcmp(ids, sorted, n * sizeof *ids));
    CHECK(fabsl(value - (logits[id] - logl(sum))) < 1e-5L);
    CHECK(fabsl(logprob_nats(logits, N, id) - (logl(sum) - logits[id])) < 1e-12L);
    for (size_t i = 0; i < n; i++) CHECK(fabsl(values[i] - (logits[ids[i]] - logl(sum))) < 1e-5L);
  }
  CHECK(!llm_logprobs(logits, N, -1, N, ids, values, NULL, NULL));
  CHECK(!memcmp(ids, sorted, sizeof ids));
}

static void test_not_numbers(void) {
  const float mixed[4] = {NAN, 1, -INFINITY, 1}, none[2] = {NAN, -INFINITY};
  const float endless[3] = {0, INFINITY, INFINITY}, certain[2] = {0, -1000};
  int32_t ids[4];
  float values[4], value;
  CHECK(!llm_logprobs(mixed, 4, 0, 4, ids, values, &value, NULL));
  CHECK(ids[0] == 1 && ids[1] == 3 && ids[2] == 0 && ids[3] == 2);
  CHECK(fabsf(values[0] + 0.693147f) < 1e-6f && values[1] == values[0]);
  CHECK(value == -INFINITY && values[2] == -INFINITY && values[3] == -INFINITY);
  CHECK(!llm_logprobs(none, 2, 1, 1, ids, values, &value, NULL));
  CHECK(ids[0] == 0 && value == values[0] && fabsf(value + 0.693147f) < 1e-6f);
  CHECK(!llm_logprobs(endless, 3, 2, 1, ids, values, &value, NULL));
  CHECK(ids[0] == 1 && fabsf(value + 0.693147f) < 1e-6f);
  CHECK(!llm_logprobs(certain, 2, 0, 0, NULL, NULL, &value, NULL));
  CHECK(value == 0 && !signbit(value));
}

static void test_refused(void) {
  int32_t id;
  float value;
  llm_error err;
  CHECK(llm_logprobs(logits, 0, 0, 0, NULL, NULL, &value, &err) == LLM_ERR_ARG);
  CHECK(llm_logprobs(logits, 4, 4, 0, NULL, NULL, &value, &err) == LLM_ERR_ARG);
  CHECK(llm_logprobs(logits, 4, -1, 0, NULL, NULL, &value, &err) == LLM_ERR_ARG);
  CHECK(llm_logprobs(logits, 4, 0, 5, &id, &value, &value, &err) == LLM_ERR_ARG && *err.message);
}

int main(void) {
  for (int n_values = 1; n_values < 500; n_values = 3 * n_values + 1) {
    fill((uint64_t)n_values, n_values);
    check_against_sorting();
  }
  test_not_numbers();
  test_refused();
  return check_report("test_logprobs");
}
