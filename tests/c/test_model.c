/* test_model.c: hostile files of every architecture. Bits of the header are flipped one at a time:
 * the file is refused with a message, or opens as a model that evaluates tokens. What is refused
 * and how is tested by name in test_model_file.py and test_architectures.py. */
#include "context.h"
#include "tiny_model.h"

static const char *const names[] = {"llama", "qwen2", "qwen3", "gemma3", "gpt2"};
enum { N_NAMES = sizeof names / sizeof *names };

static tiny_shape shape_of(const char *name) {
  return (tiny_shape){LLM_TYPE_Q8_0, 2, 32, 2, strcmp(name, "gpt2") ? 1 : 2, 32, 8, 0, name};
}

static void eval_some(const llm_model *model) {
  llm_context_options o = {.n_ctx = 8, .n_threads = 1, .kv_type = LLM_TYPE_F32};
  const int32_t ids[] = {1, 2, 3};
  llm_context *c;
  llm_error err;
  if (model->config.n_ctx_train < 8 || llm_context_new(&c, model, &o, &err)) return;
  float *logits = malloc(sizeof *logits * (size_t)model->config.n_vocab);
  CHECK(!llm_context_eval(c, ids, 3, logits, 1, &err));
  free(logits);
  llm_context_free(c);
}

/* 1 when it opens. */
static int open_bytes(const unsigned char *bytes, size_t n) {
  llm_model *model;
  llm_error err;
  if (model_from_span(&model, bytes, n, "flipped", &err)) {
    CHECK(!model && err.message[0]);
    return 0;
  }
  eval_some(model);
  llm_model_free(model);
  return 1;
}

static void test_bit_flips(const char *name) {
  tiny_shape s = shape_of(name);
  size_t n, n_opened = 0;
  unsigned char *bytes = tiny_write(&s, &n);
  CHECK(open_bytes(bytes, n));
  llm_model *model;
  CHECK(!model_from_span(&model, bytes, n, name, NULL));
  size_t header = (size_t)((const unsigned char *)model->tok_embd.data - bytes);
  llm_model_free(model);
  for (size_t bit = 0; bit < 8 * header; bit += 5) {
    bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
    n_opened += (size_t)open_bytes(bytes, n);
    bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
  }
  CHECK(n_opened > 0); /* the norm's epsilon, for one, may be another */
  free(bytes);
}

int main(void) {
  for (int i = 0; i < N_NAMES; i++) test_bit_flips(names[i]);
  return check_report("test_model");
}
