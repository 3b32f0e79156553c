/* test_forward.c: the same-bits rule (DESIGN rule 6). Logits must not depend on the kernel set, the
 * number of threads, how the tokens were cut into calls, or what a context held before; for every
 * architecture, tensor type, F16, F32 and Q8_0 caches, tied and untied output, shared key/value
 * heads. Also the errors and limits of llm_context_eval. Agreement with another program's
 * arithmetic is tested in Python.
 */
#include "context.h"
#include "kernels.h"
#include "tiny_model.h"

enum { N_IDS = 40 };

static const int32_t *some_ids(void) {
  static int32_t ids[N_IDS];
  for (int i = 0; i < N_IDS; i++) ids[i] = (i * 37 + 11) % TINY_VOCAB;
  return ids;
}

static llm_context *open_context(const tiny_model *t, const char *kernels, int n_threads,
                                 llm_type kv_type) {
  llm_context_options o = llm_context_default_options();
  llm_context *c;
  llm_error err;
  o.kernels = kernels;
  o.n_threads = n_threads;
  o.kv_type = (int32_t)kv_type;
  if (llm_context_new(&c, t->model, &o, &err)) {
    fprintf(stderr, "%s\n", err.message);
    abort();
  }
  return c;
}

/* All logits, (N_IDS, TINY_VOCAB), the ids cut into calls of at most `step`. */
static float *eval_cut(llm_context *c, size_t step) {
  float *logits = malloc(sizeof(float) * N_IDS * TINY_VOCAB);
  for (size_t i = 0; i < N_IDS; i += step) {
    size_t n = N_IDS - i < step ? N_IDS - i : step;
    CHECK(!llm_context_eval(c, some_ids() + i, n, logits + i * TINY_VOCAB, n, NULL));
  }
  return logits;
}

static void check_equal(float *got, const float *expected, const char *what, const char *kernels,
                        const tiny_shape *s) {
  CHECK_MSG(!memcmp(got, expected, sizeof(float) * N_IDS * TINY_VOCAB),
            "%s: other bits with kernels %s, %s, type %d, n_embd %d", what, kernels,
            s->architecture ? s->architecture : "llama", (int)s->type, s->n_embd);
  free(got);
}

static void check_kernels(const tiny_model *t, const tiny_shape *s, llm_type kv_type,
                          const char *kernels, const float *expected) {
  for (int n_threads = 1; n_threads <= 3; n_threads++) {
    llm_context *c = open_context(t, kernels, n_threads, kv_type);
    check_equal(eval_cut(c, N_IDS), expected, "threads", kernels, s);
    llm_context_free(c);
  }
  llm_context *c = open_context(t, kernels, 2, kv_type);
  for (size_t step = 1; step < N_IDS; step += step < 9 ? 1 : 7) {
    CHECK(!llm_context_truncate(c, 0, NULL));
    check_equal(eval_cut(c, step), expected, "cut", kernels, s);
  }
  /* A cached prefix, kept after longer use. */
  float *logits = eval_cut(c, 5 + (size_t)llm_context_truncate(c, 0, NULL));
  for (int64_t keep = 1; keep < N_IDS; keep += 6) {
    size_t n = (size_t)(N_IDS - keep);
    CHECK(!llm_context_truncate(c, keep, NULL));
    CHECK(!llm_context_eval(c, some_ids() + keep, n, logits + keep * TINY_VOCAB, n, NULL));
  }
  check_equal(logits, expected, "prefix", kernels, s);
  llm_context_free(c);
}

static void check_shape(tiny_shape s, llm_type kv_type) {
  tiny_model t = tiny_open(&s);
  llm_context *c = open_context(&t, "scalar", 1, kv_type);
  float *expected = eval_cut(c, N_IDS);
  for (size_t i = 0; i < N_IDS * TINY_VOCAB; i++) CHECK(expected[i] > -1e4f && expected[i] < 1e4f);
  llm_context_free(c);
  for (const char *const *name = kernels_available(); *name; name++)
    check_kernels(&t, &s, kv_type, *name, expected);
  free(expected);
  tiny_close(&t);
}

static void test_same_bits(void) {
  const llm_type types[] = {LLM_TYPE_F32,  LLM_TYPE_F16,  LLM_TYPE_BF16, LLM_TYPE_Q8_0,
                            LLM_TYPE_Q4_0, LLM_TYPE_Q4_1, LLM_TYPE_Q5_0, LLM_TYPE_Q5_1};
  const llm_type super[] = {LLM_TYPE_Q4_K, LLM_TYPE_Q5_K, LLM_TYPE_Q6_K};
  for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
    check_shape((tiny_shape){types[i], 2, 64, 4, 2, 96, 64, i % 2 == 1, NULL}, LLM_TYPE_F16);
    check_shape((tiny_shape){types[i], 1, 96, 3, 1, 160, 64, i % 2 == 0, NULL}, LLM_TYPE_F32);
  }
  check_shape((tiny_shape){LLM_TYPE_F16, 2, 64, 2, 1, 96, 64, 0, NULL}, LLM_TYPE_Q8_0);
  for (size_t i = 0; i < sizeof super / sizeof *super; i++)
    check_shape((tiny_shape){super[i], 1, 256, 4, 2, 256, 64, i % 2 == 1, NULL}, LLM_TYPE_F16);
  /* Widths that no vector divides. */
  check_shape((tiny_shape){LLM_TYPE_F32, 2, 30, 3, 3, 41, 64, 0, NULL}, LLM_TYPE_F32);
  check_shape((tiny_shape){LLM_TYPE_F16, 1, 42, 7, 7, 17, 64, 1, NULL}, LLM_TYPE_F16);
}

/* Prompts longer than gemma3's window; a head of q and k is normed, turned in halves or not at all,
 * biased or not, at widths that no vector divides. */
static void test_architectures(void) {
  static const char *const names[] = {"qwen2", "qwen3", "gemma3", "gpt2"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    int n_kv = strcmp(names[i], "gpt2") ? 2 : 4;
    check_shape((tiny_shape){LLM_TYPE_Q8_0, 2, 64, 4, n_kv, 96, 64, 0, names[i]}, LLM_TYPE_F16);
    check_shape((tiny_shape){LLM_TYPE_F16, 2, 128, 4, n_kv, 64, 64, 1, names[i]}, LLM_TYPE_F16);
    check_shape((tiny_shape){LLM_TYPE_F32, 3, 72, 4, n_kv, 41, 64, 1, names[i]}, LLM_TYPE_F32);
  }
}

/* A call of more than N_BATCH tokens is several passes, and the rows may begin in any of them;
 * attention takes tokens together or one by one, over one part of the positions or three. */
static void test_batches(llm_type kv_type) {
  enum { N = 2 * N_BATCH + 8 };
  tiny_shape s = {LLM_TYPE_Q8_0, 1, 64, 2, 1, 64, N, 0, NULL};
  tiny_model t = tiny_open(&s);
  llm_context *c = open_context(&t, NULL, 2, kv_type);
  const size_t row = sizeof(float) * TINY_VOCAB;
  float *whole = malloc(N * row), *part = malloc(N * row);
  int32_t ids[N];
  for (int i = 0; i < N; i++) ids[i] = (i * 37 + i / 90) % TINY_VOCAB;
  CHECK(!llm_context_eval(c, ids, N, whole, N, NULL));
  const size_t wanted[] = {1, 8, 9, N_BATCH + 8, N_BATCH + 9, N - 1};
  for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
    size_t n = wanted[i];
    CHECK(!llm_context_truncate(c, 0, NULL) && !llm_context_eval(c, ids, N, part, n, NULL));
    CHECK(!memcmp(part, whole + (N - n) * TINY_VOCAB, n * row));
  }
  for (size_t step = 1; step < N; step += 99) {
    CHECK(!llm_context_truncate(c, 0, NULL));
    for (size_t i = 0; i < N; i += step) {
      size_t n = N - i < step ? N - i : step;
      CHECK(!llm_context_eval(c, ids + i, n, part + i * TINY_VOCAB, n, NULL));
    }
    CHECK_MSG(!memcmp(part, whole, N * row), "other bits with calls of %zu tokens", step);
  }
  free(whole);
  free(part);
  llm_context_free(c);
  tiny_close(&t);
}

static int cancel_at_once(void *user) { return ++*(int *)user > 1; }

static void test_limits(void) {
  tiny_shape s = {LLM_TYPE_F32, 2, 32, 2, 1, 48, 16, 0, NULL};
  tiny_model t = tiny_open(&s);
  llm_context *c = open_context(&t, NULL, 2, LLM_TYPE_F16);
  llm_error err;
  float row[TINY_VOCAB];
  CHECK(llm_context_n_ctx(c) == 16 && llm_context_n_past(c) == 0);
  CHECK(llm_context_eval(c, some_ids(), 0, NULL, 0, &err) == LLM_ERR_ARG);
  CHECK(llm_context_eval(c, some_ids(), 1, row, 2, &err) == LLM_ERR_ARG);
  CHECK(llm_context_eval(c, (int32_t[]){TINY_VOCAB}, 1, row, 1, &err) == LLM_ERR_ARG);
  CHECK(llm_context_eval(c, (int32_t[]){-1}, 1, row, 1, &err) == LLM_ERR_ARG);
  CHECK(!llm_context_eval(c, some_ids(), 10, NULL, 0, &err) && llm_context_n_past(c) == 10);
  CHECK(llm_context_eval(c, some_ids(), 7, row, 1, &err) == LLM_ERR_CONTEXT_FULL);
  CHECK(err.found == 17 && err.limit == 16 && llm_context_n_past(c) == 10);
  CHECK(!llm_context_eval(c, some_ids(), 6, row, 1, &err) && llm_context_n_past(c) == 16);
  CHECK(llm_context_eval(c, some_ids(), 1, row, 1, &err) == LLM_ERR_CONTEXT_FULL);
  CHECK(llm_context_truncate(c, 17, &err) == LLM_ERR_ARG);
  CHECK(llm_context_truncate(c, -1, &err) == LLM_ERR_ARG);
  llm_context_free(c);

  int calls = 0;
  llm_context_options o = llm_context_default_options();
  o.cancel_check = cancel_at_once;
  o.cancel_user = &calls;
  CHECK(!llm_context_new(&c, t.model, &o, &err));
  CHECK(llm_context_eval(c, some_ids(), 3, row, 1, &err) == LLM_ERR_CANCELLED);
  CHECK(llm_context_n_past(c) == 0 && calls == 2);
  llm_context_free(c);
  tiny_close(&t);
}

static void test_options(void) {
  tiny_shape s = {LLM_TYPE_F32, 1, 32, 2, 1, 48, 16, 0, NULL};
  tiny_model t = tiny_open(&s);
  const struct {
    llm_context_options o;
    const char *fragment;
  } bad[] = {
      {{.n_ctx = 17, .kv_type = LLM_TYPE_F16}, "trained"},
      {{.n_ctx = -1, .kv_type = LLM_TYPE_F16}, "n_ctx"},
      {{.n_threads = -1, .kv_type = LLM_TYPE_F16}, "n_threads"},
      {{.n_threads = 1025, .kv_type = LLM_TYPE_F16}, "n_threads"},
      {{.kv_type = LLM_TYPE_Q4_1}, "kv_type"},
      {{.kv_type = LLM_TYPE_Q8_0}, "whole blocks of 32 elements, these have 16 (f16 fits any)"},
      {{.kv_type = LLM_TYPE_F16, .kernels = "abacus"}, "abacus"},
  };
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    llm_context *c;
    llm_error err;
    CHECK(llm_context_new(&c, t.model, &bad[i].o, &err) == LLM_ERR_ARG && !c);
    CHECK_MSG(strstr(err.message, bad[i].fragment) != NULL, "%s", err.message);
  }
  llm_context *c;
  llm_context_options o = {.n_ctx = 40, .allow_long_context = 1, .kv_type = LLM_TYPE_F32};
  CHECK(!llm_context_new(&c, t.model, &o, NULL) && llm_context_n_ctx(c) == 40);
  llm_context_free(c);
  tiny_close(&t);
}

/* Learned positions end where they end. */
static void test_learned_positions(void) {
  tiny_shape s = {LLM_TYPE_F32, 1, 32, 2, 2, 48, 16, 0, "gpt2"};
  tiny_model t = tiny_open(&s);
  llm_context_options o = {.n_ctx = 17, .allow_long_context = 1, .kv_type = LLM_TYPE_F32};
  llm_context *c;
  llm_error err;
  CHECK(llm_context_new(&c, t.model, &o, &err) == LLM_ERR_ARG && strstr(err.message, "learned"));
  tiny_close(&t);
}

/* A width of no whole blocks needs less scratch than a narrower one that quantized products read.
 */
static void test_scratch_serves_every_width(void) {
  tiny_shape s = {LLM_TYPE_F32, 1, 64, 1, 1, 176, 64, 0, NULL};
  tiny_model t = tiny_open(&s);
  for (const char *const *name = kernels_available(); *name; name++) {
    llm_context *c = open_context(&t, *name, 1, LLM_TYPE_F16);
    CHECK(c->matmul_scratch_bytes >= c->kernels->scratch_bytes(64));
    CHECK(c->matmul_scratch_bytes >= c->kernels->scratch_bytes(176));
    llm_context_free(c);
  }
  tiny_close(&t);
}

int main(void) {
  test_same_bits();
  test_scratch_serves_every_width();
  test_architectures();
  test_batches(LLM_TYPE_F16);
  test_batches(LLM_TYPE_Q8_0);
  test_limits();
  test_options();
  test_learned_positions();
  return check_report("test_forward");
}
