/* test_chat.c: conversations on a tiny model, under the sanitizers above all. What an answer must
 * be is tested in tests/test_chat.py against fresh contexts. */
#include "context.h"
#include "tiny_model.h"

static llm_message say(llm_role role, const char *text) {
  return (llm_message){role, text, strlen(text)};
}

static llm_context *open_context(const tiny_model *t, int64_t n_ctx, llm_on_full on_full) {
  llm_context_options o = llm_context_default_options();
  llm_context *c;
  o.n_ctx = n_ctx;
  o.on_full = (int32_t)on_full;
  o.n_threads = 1;
  CHECK(!llm_context_new(&c, t->model, &o, NULL));
  return c;
}

/* Steps of an answer; what was forgotten is added up. */
static int run(llm_generator *g, size_t *tokens, size_t *turns) {
  llm_step step = {0};
  int n = 0;
  *tokens = *turns = 0;
  while (!step.finish) {
    CHECK(!llm_generator_next(g, &step, NULL));
    n += step.id >= 0;
    *tokens += step.forgot_tokens;
    *turns += step.forgot_turns;
  }
  return n;
}

static void test_modes(void) {
  tiny_model t = tiny_open(&(tiny_shape){LLM_TYPE_F32, 1, 32, 2, 1, 48, 512, 0, NULL});
  const llm_message talk[] = {say(LLM_ROLE_SYSTEM, "brief"),   say(LLM_ROLE_USER, "one"),
                              say(LLM_ROLE_ASSISTANT, "eins"), say(LLM_ROLE_USER, "two"),
                              say(LLM_ROLE_ASSISTANT, "zwei"), say(LLM_ROLE_USER, "three")};
  const llm_generator_options steps = {.max_tokens = 300, .n_top = -1};
  size_t tokens, turns;
  llm_sampler *s;
  llm_generator *g;
  llm_error err;
  /* Token TINY_EOS is banned: answers fill the window. */
  llm_sampler_options sampling = llm_sampler_default_options();
  const int32_t id = TINY_EOS;
  const float bias = -1e9f;
  sampling.n_biases = 1;
  sampling.bias_ids = &id;
  sampling.bias_values = &bias;
  CHECK(!llm_sampler_new(&s, TINY_VOCAB, &sampling, NULL));
  for (int mode = LLM_ON_FULL_STOP; mode <= LLM_ON_FULL_SLIDE; mode++) {
    llm_context *c = open_context(&t, 256, (llm_on_full)mode);
    for (int again = 0; again < 3; again++) {
      CHECK(!llm_chat_start(&g, c, s, LLM_TEMPLATE_CHATML, talk, 6, &steps, NULL));
      int n = run(g, &tokens, &turns);
      CHECK(mode == LLM_ON_FULL_STOP ? n < 256 && !tokens : n == 300 || mode != LLM_ON_FULL_SLIDE);
      CHECK((turns > 0) == (mode == LLM_ON_FULL_FORGET));
      CHECK(llm_generator_n_forgotten(g) == 2 * turns);
      llm_generator_free(g);
    }
    llm_context_free(c);
  }
  llm_context *c = open_context(&t, 64, LLM_ON_FULL_FORGET);
  CHECK(llm_chat_start(&g, c, s, LLM_TEMPLATE_CHATML, talk, 6, &steps, &err) ==
        LLM_ERR_CONTEXT_FULL);
  CHECK(!g && err.limit == 64 && err.found > 64 && strstr(err.message, "last message"));
  CHECK(llm_chat_start(&g, c, s, (llm_template)99, talk, 6, &steps, &err) == LLM_ERR_ARG && !g);
  llm_context_free(c);
  llm_sampler_free(s);
  tiny_close(&t);
}

/* Of a long conversation the fewest turns go: what one of them more would need does not fit. */
static void test_fewest_turns(void) {
  enum { N_TURNS = 150, N = 2 * N_TURNS + 1 };
  tiny_model t = tiny_open(&(tiny_shape){LLM_TYPE_F32, 1, 32, 2, 1, 48, 512, 0, NULL});
  static char text[64];
  llm_message talk[N], kept[N];
  llm_context *c = open_context(&t, 256, LLM_ON_FULL_FORGET);
  llm_sampler *s;
  llm_generator *g;
  size_t n = 0;
  memset(text, 'x', sizeof text);
  CHECK(!llm_sampler_new(&s, TINY_VOCAB, NULL, NULL));
  talk[0] = say(LLM_ROLE_SYSTEM, "brief");
  for (size_t i = 1; i < N; i++)
    talk[i] = (llm_message){i % 2 ? LLM_ROLE_USER : LLM_ROLE_ASSISTANT, text, i * 29 % 40};
  for (size_t n_talk = 2; n_talk <= N; n_talk += 2) {
    size_t gone = 0;
    CHECK(!llm_chat_start(&g, c, s, LLM_TEMPLATE_CHATML, talk, n_talk, NULL, NULL));
    kept[0] = talk[0];
    for (;; gone += 2) { /* one turn after the other */
      memcpy(kept + 1, talk + 1 + gone, (n_talk - 1 - gone) * sizeof *kept);
      llm_chat_render(t.model, LLM_TEMPLATE_CHATML, kept, n_talk - gone, 1, NULL, 0, &n, NULL);
      if (n <= (gone ? context_after_forgetting(c) : 256)) break;
    }
    CHECK_MSG(llm_generator_n_forgotten(g) == gone, "of %zu messages %zu went, expected %zu",
              n_talk, llm_generator_n_forgotten(g), gone);
    CHECK(llm_context_n_past(c) == (int64_t)n);
    llm_generator_free(g);
  }
  llm_context_free(c);
  llm_sampler_free(s);
  tiny_close(&t);
}

int main(void) {
  test_modes();
  test_fewest_turns();
  return check_report("test_chat");
}
