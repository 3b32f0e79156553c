/* test_needs.c: what a context is said to need against what one takes, the bytes that a token reads
 * against a count by hand, sizes beyond 64 bits, and what is refused. */
#include "context.h"
#include "tiny_model.h"

enum { N_EMBD = 64, N_FF = 96, N_CTX = 50 };

static void test_a_context_takes_it(const tiny_model *t, int on_full, llm_type kv_type) {
  llm_context_options o = llm_context_default_options();
  llm_needs needs;
  llm_context *c;
  o.n_threads = 3;
  o.on_full = on_full;
  o.kv_type = (int32_t)kv_type;
  CHECK(!llm_model_needs(t->model, &o, &needs, NULL));
  CHECK(!llm_context_new(&c, t->model, &o, NULL));
  CHECK(needs.kv_bytes == c->kv_bytes);
  CHECK(needs.scratch_bytes == c->arena_bytes);
  CHECK(needs.total_bytes == needs.file_bytes + needs.kv_bytes + needs.scratch_bytes);
  CHECK(needs.n_ctx == N_CTX && needs.n_threads == 3);
  CHECK(!strcmp(needs.kernels, llm_context_kernels(c)));
  CHECK(needs.bytes_per_second > 0);
  CHECK(needs.seconds_per_token == (double)needs.token_bytes / needs.bytes_per_second);
  llm_context_free(c);
}

static void test_bytes_of_a_token(const char *architecture, int untied, uint64_t expected) {
  tiny_shape s = {LLM_TYPE_F32, 1, N_EMBD, 2, 2, N_FF, N_CTX, untied, architecture};
  tiny_model t = tiny_open(&s);
  llm_needs needs;
  CHECK(!llm_model_needs(t.model, NULL, &needs, NULL));
  CHECK(needs.token_bytes == 4 * expected);
  tiny_close(&t);
}

static void test_sizes_beyond_64_bits(const tiny_model *t) {
  llm_context_options o = llm_context_default_options();
  llm_needs needs;
  o.n_threads = 1;
  o.n_ctx = INT32_MAX;
  o.allow_long_context = 1;
  CHECK(!llm_model_needs(t->model, &o, &needs, NULL));
  CHECK(needs.kv_bytes == 2ull * 2 * 2 * INT32_MAX * 32 * 2); /* of 2 layers, 2 heads */
  t->model->config.n_layer = INT64_MAX;
  CHECK(!llm_model_needs(t->model, &o, &needs, NULL));
  CHECK(needs.kv_bytes == SIZE_MAX && needs.total_bytes == UINT64_MAX);
  t->model->config.n_layer = 2;
}

static void test_refused(const tiny_model *t) {
  llm_context_options o = llm_context_default_options();
  llm_needs needs;
  llm_error err;
  o.n_ctx = N_CTX + 1;
  CHECK(llm_model_needs(t->model, &o, &needs, &err) == LLM_ERR_ARG);
  CHECK(strstr(err.message, "longer than the 50"));
}

int main(void) {
  tiny_shape s = {LLM_TYPE_Q8_0, 2, N_EMBD, 2, 2, N_FF, N_CTX, 1, NULL};
  tiny_model t = tiny_open(&s);
  test_a_context_takes_it(&t, LLM_ON_FULL_STOP, LLM_TYPE_F16);
  test_a_context_takes_it(&t, LLM_ON_FULL_SLIDE, LLM_TYPE_Q8_0);
  test_sizes_beyond_64_bits(&t);
  test_refused(&t);
  tiny_close(&t);
  const uint64_t matrices = 4 * N_EMBD * N_EMBD + 3 * N_EMBD * N_FF,
                 embedding = TINY_VOCAB * N_EMBD;
  test_bytes_of_a_token("llama", 0, embedding + matrices + 3 * N_EMBD);
  test_bytes_of_a_token("llama", 1, embedding + N_EMBD + matrices + 3 * N_EMBD);
  /* a row of the positions; no gate; norms and matrices with biases */
  test_bytes_of_a_token(
      "gpt2", 0, embedding + N_EMBD + matrices - N_EMBD * N_FF + 6 * N_EMBD + 5 * N_EMBD + N_FF);
  return check_report("test_needs");
}
