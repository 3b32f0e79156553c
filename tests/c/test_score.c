/* test_score.c: scores of texts that fit the context and of longer ones, with every stride, against
 * the windows evaluated one token at a time. */
#include <math.h>

#include "logprobs.h"
#include "tiny_model.h"

enum { N_CTX = 16, N_IDS = 70 };

static int32_t ids[N_IDS];

/* -ln p of text[at] after text[begin .. at), by calls of one token. */
static double naive_nats(llm_context *c, size_t begin, size_t at) {
  float logits[TINY_VOCAB];
  CHECK(!llm_context_truncate(c, 0, NULL));
  for (size_t i = begin; i < at; i++) CHECK(!llm_context_eval(c, ids + i, 1, logits, 1, NULL));
  return logprob_nats(logits, TINY_VOCAB, ids[at]);
}

/* Where the first window of N_CTX tokens that holds `at` begins, among those `stride` apart. */
static size_t window_of(size_t at, size_t stride) {
  size_t begin = 0;
  while (begin + N_CTX <= at) begin += stride;
  return begin;
}

static void check_score(llm_context *c, size_t n, size_t stride) {
  llm_score score;
  float each[N_IDS];
  double sum = 0;
  size_t step = stride ? stride : N_CTX / 2;
  CHECK(!llm_score_text(c, ids, n, (int64_t)stride, each, &score, NULL));
  CHECK(score.n_scored == (int64_t)n - 1 && isnan(each[0]));
  CHECK(score.n_windows == (n <= N_CTX ? 1 : (int64_t)(1 + (n - N_CTX + step - 1) / step)));
  CHECK(llm_context_n_past(c) == (int64_t)(n - window_of(n - 1, step)));
  for (size_t i = 1; i < n; i++) {
    size_t begin = window_of(i, step);
    double expected = naive_nats(c, begin, i);
    CHECK_MSG(each[i] == (float)expected, "token %zu of %zu, stride %zu: %g, naively %g", i, n,
              stride, each[i], expected);
    CHECK(i - begin >= (i < N_CTX ? i : N_CTX - step));
    sum += expected;
  }
  CHECK(sum == score.nats);
}

static void test_refused(llm_context *c) {
  llm_score score;
  llm_error err;
  const int64_t strides[] = {-1, N_CTX, INT64_MAX, INT64_MIN};
  CHECK(llm_score_text(c, ids, 1, 0, NULL, &score, NULL) == LLM_ERR_ARG);
  for (size_t i = 0; i < sizeof strides / sizeof *strides; i++)
    CHECK(llm_score_text(c, ids, 9, strides[i], NULL, &score, &err) == LLM_ERR_ARG &&
          strstr(err.message, "stride"));
}

int main(void) {
  tiny_model t = tiny_open(&(tiny_shape){LLM_TYPE_F32, 1, 32, 2, 1, 48, N_CTX, 0, NULL});
  llm_context *c;
  for (int i = 0; i < N_IDS; i++) ids[i] = (i * i * 13 + i) % TINY_VOCAB;
  CHECK(!llm_context_new(&c, t.model, NULL, NULL));
  for (size_t n = 2; n <= N_IDS; n += 17) check_score(c, n, 0);
  for (size_t stride = 1; stride < N_CTX; stride++) check_score(c, 40 + stride, stride);
  check_score(c, N_CTX, 1);
  test_refused(c);
  llm_context_free(c);
  tiny_close(&t);
  return check_report("test_score");
}
