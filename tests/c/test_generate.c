/* test_generate.c: generation and proofs on a tiny model, under the sanitizers above all.
 * What they compute is compared with the NumPy model in tests/test_engine.py. */
#include "tiny_model.h"

static tiny_model open_tiny(void) {
  return tiny_open(&(tiny_shape){LLM_TYPE_F32, 1, 32, 2, 1, 48, 16, 0, NULL});
}

static const int32_t prompt[4] = {1, 2, 3, 4};

typedef struct outcome {
  int n_new, n_steps;
  size_t n_text;
  llm_finish finish;
} outcome;

static outcome run(llm_context *c, llm_sampler *s, size_t n_prompt, int64_t max_tokens) {
  llm_generator *g;
  llm_step step;
  outcome o = {0};
  CHECK(!llm_generator_new(&g, c, s, prompt, n_prompt,
                           &(llm_generator_options){.max_tokens = max_tokens}, NULL));
  do {
    CHECK(!llm_generator_next(g, &step, NULL));
    o.n_new += step.id >= 0;
    o.n_text += step.n_bytes;
    o.n_steps++;
  } while (!step.finish);
  o.finish = step.finish;
  CHECK(!llm_generator_next(g, &step, NULL)); /* the finish is repeated, without text */
  CHECK(step.finish == o.finish && step.id == -1 && step.n_bytes == 0);
  llm_generator_free(g);
  return o;
}

static void test_ends(void) {
  tiny_model t = open_tiny();
  llm_context *c;
  llm_sampler *s;
  llm_generator *g;
  llm_error err;
  CHECK(!llm_context_new(&c, t.model, NULL, NULL));
  llm_sampler_options greedy = llm_sampler_default_options();
  greedy.temperature = 0;
  CHECK(!llm_sampler_new(&s, TINY_VOCAB, &greedy, NULL));
  outcome o = run(c, s, 4, 3);
  CHECK(o.finish == LLM_FINISH_LENGTH && o.n_new == 3 && o.n_text == 3 && o.n_steps == 3);
  CHECK(llm_context_n_past(c) == 6); /* the last token was not evaluated */
  CHECK(!llm_context_truncate(c, 0, NULL));
  o = run(c, s, 4, 0);
  CHECK(o.finish == LLM_FINISH_LENGTH && o.n_new == 0);
  CHECK(!llm_context_truncate(c, 0, NULL));
  o = run(c, s, 4, -1);
  CHECK(o.finish == LLM_FINISH_STOP || (o.finish == LLM_FINISH_CONTEXT && o.n_new == 12));
  CHECK(llm_context_n_past(c) <= 16);
  CHECK(llm_generator_new(&g, c, s, prompt, 0, NULL, &err) == LLM_ERR_ARG && !g);
  while (llm_context_n_past(c) < 16) CHECK(!llm_context_eval(c, prompt, 1, NULL, 0, NULL));
  CHECK(llm_generator_new(&g, c, s, prompt, 1, NULL, &err) == LLM_ERR_CONTEXT_FULL && !g);
  CHECK(err.found == 17 && err.limit == 16);
  llm_sampler_free(s);
  CHECK(!llm_sampler_new(&s, TINY_VOCAB + 1, NULL, NULL));
  CHECK(llm_generator_new(&g, c, s, prompt, 1, NULL, &err) == LLM_ERR_ARG && !g);
  llm_sampler_free(s);
  llm_context_free(c);
  tiny_close(&t);
}

/* Others may use the context between two steps, to its last token. */
static void test_filled_by_others(void) {
  tiny_model t = open_tiny();
  static const llm_on_full modes[] = {LLM_ON_FULL_STOP, LLM_ON_FULL_SLIDE, LLM_ON_FULL_FORGET};
  for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
    llm_context_options options = llm_context_default_options();
    llm_context *c;
    llm_sampler *s;
    llm_generator *g;
    llm_step step;
    options.on_full = modes[i];
    CHECK(!llm_context_new(&c, t.model, &options, NULL));
    CHECK(!llm_sampler_new(&s, TINY_VOCAB, NULL, NULL));
    CHECK(!llm_generator_new(&g, c, s, prompt, 4, NULL, NULL));
    CHECK(!llm_generator_next(g, &step, NULL) && step.id >= 0);
    while (llm_context_n_past(c) < 16) CHECK(!llm_context_eval(c, prompt, 1, NULL, 0, NULL));
    CHECK(!llm_generator_next(g, &step, NULL));
    CHECK((step.finish == LLM_FINISH_CONTEXT) == (modes[i] == LLM_ON_FULL_STOP));
    llm_generator_free(g);
    llm_sampler_free(s);
    llm_context_free(c);
  }
  tiny_close(&t);
}

static void test_proof(void) {
  tiny_model t = open_tiny();
  int32_t ids[5], again[5];
  char hex[65], hex_again[65];
  llm_error err;
  llm_verify_report report;
  CHECK(!llm_proof_compute(t.model, prompt, 4, 5, ids, hex, NULL));
  CHECK(!llm_proof_compute(t.model, prompt, 4, 5, again, hex_again, NULL));
  CHECK(!memcmp(ids, again, sizeof ids) && !strcmp(hex, hex_again) && strlen(hex) == 64);
  CHECK(llm_proof_compute(t.model, prompt, 4, 0, ids, hex, &err) == LLM_ERR_ARG);
  CHECK(llm_proof_compute(t.model, prompt, 4, 17, ids, hex, &err) == LLM_ERR_ARG);
  CHECK(llm_model_verify(t.model, NULL, &report, &err) == LLM_ERR_UNSUPPORTED);
  tiny_close(&t);
}

int main(void) {
  test_ends();
  test_filled_by_others();
  test_proof();
  for (int i = LLM_FINISH_NONE; i <= LLM_FINISH_CANCELLED; i++)
    CHECK(llm_finish_name((llm_finish)i) != NULL);
  CHECK(llm_finish_name((llm_finish)99) == NULL);
  return check_report("test_generate");
}
