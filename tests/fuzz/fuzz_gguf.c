/* fuzz_gguf.c: any bytes as a parameter file. The index is walked to its last byte, every key is
 * read as every type, and what parses is offered to the
 * tokenizer's and the model's checks. Built with libFuzzer by
 * `make fuzz`, or with replay.c to run over saved files. */
#include <stdlib.h>

#include "gguf.h"
#include "model.h"
#include "tokenizer.h"

/* Kept where the compiler cannot drop the reads. */
static volatile unsigned sink;

static void bytes_read(const void *data, uint64_t n) {
  unsigned sum = 0;
  for (uint64_t i = 0; i < n; i++) sum += ((const unsigned char *)data)[i];
  sink = sum;
}

static void strings_walk(const llm_meta *m) {
  const char *cursor = m->data;
  for (uint64_t i = 0; i < m->n_elements; i++) gguf_next_string(&cursor);
  if (cursor != (const char *)m->data + m->n_bytes) abort();
}

static void key_read(const gguf *g, const llm_meta *m) {
  int64_t integer;
  float real;
  int32_t flag;
  gguf_string string;
  const llm_meta *array;
  llm_error err;
  gguf_get_int(g, m->key, 1, INT64_MIN, INT64_MAX, &integer, &err);
  gguf_get_float(g, m->key, 1, -1e30, 1e30, &real, &err);
  gguf_get_bool(g, m->key, 1, &flag, &err);
  gguf_get_string(g, m->key, 1, &string, &err);
  for (int type = 0; type < GGUF_N_TYPES; type++)
    if (type != GGUF_ARRAY) gguf_get_array(g, m->key, 1, type, &array, &err);
  if (gguf_find(g, m->key) != m) abort();
  if (m->value_type == GGUF_ARRAY && m->element_type == GGUF_STRING) strings_walk(m);
  bytes_read(m->data, m->n_bytes);
}

/* A vocabulary that loads encodes and decodes. */
static void tokenizer_use(llm_tokenizer *t) {
  static const char text[] = "ab <|end|> \xe2\x96\x81 \xff\xc3\xa9 aabb";
  int32_t ids[2 * sizeof text];
  char back[1 << 12];
  size_t n_ids, n;
  for (int special = 0; special < 2; special++) {
    if (llm_tokenizer_encode(t, text, sizeof text, special, ids, 2 * sizeof text, &n_ids, NULL))
      abort();
    llm_tokenizer_decode_text(t, ids, n_ids, special, back, sizeof back, &n, NULL);
  }
  llm_tokenizer_free(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
  gguf *g;
  llm_error err;
  if (gguf_parse(&g, data, n_bytes, "fuzz", &err)) {
    if (g || !err.message[0]) abort();
    return 0;
  }
  for (size_t i = 0; i < gguf_n_meta(g); i++) key_read(g, gguf_meta(g, i));
  for (size_t i = 0; i < gguf_n_tensors(g); i++) {
    const llm_tensor *t = gguf_tensor(g, i);
    if (gguf_find_tensor(g, t->name) != t) abort();
    bytes_read(t->data, t->n_bytes);
  }
  uint64_t n_data;
  const void *section = gguf_tensor_data(g, &n_data);
  bytes_read(section, n_data);
  llm_tokenizer *tokenizer;
  if (tokenizer_from_gguf(&tokenizer, g, &err) == LLM_OK) tokenizer_use(tokenizer);
  gguf_free(g);

  llm_model *model;
  if (model_from_span(&model, data, n_bytes, "fuzz", &err) == LLM_OK) llm_model_free(model);
  return 0;
}
