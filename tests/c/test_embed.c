/* test_embed.c: the embedding against the mean of hidden states taken one token at a time, which
 * must give the same bits for any number of threads and across passes of N_BATCH tokens; and what
 * is refused. Its agreement with the NumPy model is tested in tests/test_engine.py. */
#include <math.h>

#include "forward.h"
#include "tiny_model.h"

enum { N_CTX = N_BATCH + 40, N_EMBD = 32 };

static int32_t ids[N_CTX + 1];

static llm_context *open_context(const tiny_model *t, int n_threads) {
  llm_context_options o = llm_context_default_options();
  llm_context *c;
  o.n_threads = n_threads;
  CHECK(!llm_context_new(&c, t->model, &o, NULL));
  return c;
}

static void naive(llm_context *c, size_t n, float *dst) {
  double sum[N_EMBD] = {0}, square = 0;
  CHECK(!llm_context_truncate(c, 0, NULL));
  for (size_t t = 0; t < n; t++) {
    CHECK(!llm_context_eval(c, ids + t, 1, NULL, 0, NULL));
    forward_hidden(c, 0, 1);
    for (int i = 0; i < N_EMBD; i++) sum[i] += c->xn[i];
  }
  for (int i = 0; i < N_EMBD; i++) square += sum[i] * sum[i];
  for (int i = 0; i < N_EMBD; i++) dst[i] = (float)(sum[i] / sqrt(square));
}

static void test_same_bits(const tiny_model *t) {
  const size_t lengths[] = {1, 2, 33, N_BATCH, N_BATCH + 1, N_CTX};
  for (int n_threads = 1; n_threads <= 3; n_threads++) {
    llm_context *c = open_context(t, n_threads);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
      float got[N_EMBD], expected[N_EMBD];
      double square = 0;
      naive(c, lengths[i], expected);
      CHECK(!llm_context_embed(c, ids, lengths[i], got, NULL));
      CHECK_MSG(!memcmp(got, expected, sizeof got), "%zu tokens, %d threads", lengths[i],
                n_threads);
      CHECK(llm_context_n_past(c) == (int64_t)lengths[i]);
      for (int k = 0; k < N_EMBD; k++) square += (double)got[k] * got[k];
      CHECK(fabs(square - 1) < 1e-6);
    }
    llm_context_free(c);
  }
}

static void test_refused(const tiny_model *t) {
  llm_context *c = open_context(t, 1);
  float out[N_EMBD];
  llm_error err;
  CHECK(llm_context_embed(c, ids, 0, out, &err) == LLM_ERR_ARG);
  CHECK(llm_context_embed(c, ids, N_CTX + 1, out, &err) == LLM_ERR_CONTEXT_FULL);
  CHECK(err.found == N_CTX + 1 && err.limit == N_CTX);
  CHECK(llm_context_embed(c, (int32_t[]){TINY_VOCAB}, 1, out, &err) == LLM_ERR_ARG);
  llm_context_free(c);
}

int main(void) {
  tiny_model t = tiny_open(&(tiny_shape){LLM_TYPE_F32, 1, N_EMBD, 2, 1, 48, N_CTX, 0, NULL});
  for (int i = 0; i <= N_CTX; i++) ids[i] = (i * i * 13 + i) % TINY_VOCAB;
  test_same_bits(&t);
  test_refused(&t);
  tiny_close(&t);
  return check_report("test_embed");
}
