/* chat_sample.h: a model that is a vocabulary and a chat template and nothing else, for the tests
 * of chat templates. All 256 bytes, pairs that merge, then control tokens. */
#ifndef LLM_TEST_CHAT_SAMPLE_H
#define LLM_TEST_CHAT_SAMPLE_H

#include "tiny_model.h"
#include "tokenizer.h"

enum { CHAT_SAMPLE_CONTROLS = 8, CHAT_SAMPLE_FIRST_CONTROL = 256 + 3 };

typedef struct chat_sample {
  const char *controls[CHAT_SAMPLE_CONTROLS]; /* ids from CHAT_SAMPLE_FIRST_CONTROL on; the first is
                                                 BOS, the second EOS */
  int add_bos;
  const void *jinja; /* NULL: no template */
  size_t n_jinja;
  tiny_bytes file; /* filled by chat_sample_open */
  llm_model model;
} chat_sample;

/* GPT-2's spelling of a byte. */
static inline void chat_sample_spell(int byte, char spelled[3]) {
  int shift = byte <= ' ' ? 256 : byte < 0x7f || byte > 0xad ? 0 : byte < 0xa1 ? 162 : 0;
  int c = byte == 0xad ? 256 + 67 : shift == 256 ? 256 + byte : shift ? byte + shift : byte;
  memset(spelled, 0, 3);
  if (c < 0x80) {
    spelled[0] = (char)c;
  } else {
    spelled[0] = (char)(0xc0 | c >> 6);
    spelled[1] = (char)(0x80 | (c & 0x3f));
  }
}

static inline void chat_sample_tokens(tiny_file *f, const chat_sample *s, size_t n_controls) {
  /* "\n\n", " [" and "\nT": they merge across the border of the template's words and a text. */
  static const char *const pairs[3] = {"\xc4\x8a\xc4\x8a", "\xc4\xa0[", "\xc4\x8aT"};
  static const char *const merges[3] = {"\xc4\x8a \xc4\x8a", "\xc4\xa0 [", "\xc4\x8a T"};
  tiny_array(f, "tokenizer.ggml.tokens", GGUF_STRING, CHAT_SAMPLE_FIRST_CONTROL + n_controls);
  for (int byte = 0; byte < 256; byte++) {
    char spelled[3];
    chat_sample_spell(byte, spelled);
    tiny_string(&f->keys, spelled);
  }
  for (int i = 0; i < 3; i++) tiny_string(&f->keys, pairs[i]);
  for (size_t i = 0; i < n_controls; i++) tiny_string(&f->keys, s->controls[i]);
  tiny_array(f, "tokenizer.ggml.token_type", GGUF_INT32, CHAT_SAMPLE_FIRST_CONTROL + n_controls);
  for (size_t i = 0; i < CHAT_SAMPLE_FIRST_CONTROL + n_controls; i++)
    tiny_u32(&f->keys, i < CHAT_SAMPLE_FIRST_CONTROL ? LLM_TOKEN_NORMAL : LLM_TOKEN_CONTROL);
  tiny_array(f, "tokenizer.ggml.merges", GGUF_STRING, 3);
  for (int i = 0; i < 3; i++) tiny_string(&f->keys, merges[i]);
}

static inline void chat_sample_open(chat_sample *s) {
  size_t n_controls = 0;
  while (n_controls < CHAT_SAMPLE_CONTROLS && s->controls[n_controls]) n_controls++;
  tiny_file f = {0};
  tiny_text(&f, "tokenizer.ggml.model", "gpt2");
  tiny_text(&f, "tokenizer.ggml.pre", "gpt-2");
  chat_sample_tokens(&f, s, n_controls);
  if (n_controls > 0) tiny_int(&f, "tokenizer.ggml.bos_token_id", CHAT_SAMPLE_FIRST_CONTROL);
  if (n_controls > 1) tiny_int(&f, "tokenizer.ggml.eos_token_id", CHAT_SAMPLE_FIRST_CONTROL + 1);
  if (s->add_bos) {
    tiny_key(&f, "tokenizer.ggml.add_bos_token", GGUF_BOOL);
    tiny_put(&f.keys, "\1", 1);
  }
  if (s->jinja) {
    tiny_key(&f, "tokenizer.chat_template", GGUF_STRING);
    tiny_u64(&f.keys, s->n_jinja);
    tiny_put(&f.keys, s->jinja, s->n_jinja);
  }
  tiny_bytes *b = &s->file;
  tiny_put(b, "GGUF", 4);
  tiny_u32(b, 3);
  tiny_u64(b, 0);
  tiny_u64(b, f.n_keys);
  tiny_put(b, f.keys.data, f.keys.n);
  free(f.keys.data);
  b->data = realloc(b->data, b->n); /* so that a read past the end is seen */
  llm_error err = {0};
  if (gguf_parse(&s->model.file, b->data, b->n, "sample", &err) ||
      tokenizer_from_gguf(&s->model.tokenizer, s->model.file, &err)) {
    fprintf(stderr, "%s\n", err.message);
    abort();
  }
}

static inline void chat_sample_close(chat_sample *s) {
  llm_tokenizer_free(s->model.tokenizer);
  gguf_free(s->model.file);
  free(s->file.data);
  s->file = (tiny_bytes){0};
}

#endif
