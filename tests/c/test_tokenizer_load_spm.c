/* Test of tokenizer_load_spm.c: reading a SentencePiece vocabulary and one refusal per rule. */
#include <math.h>

#include "tokenizer_recipe.h"

enum { N_WORDS = 8, N_TOKENS = 256 + N_WORDS };

/* 256 byte tokens, then the words. */
static recipe good_recipe(void) {
  static char names[256][8];
  static const char *const words[N_WORDS] = {"<unk>",
                                             "<s>",
                                             "</s>",
                                             "\xe2\x96\x81",
                                             "a",
                                             "\xe2\x96\x81"
                                             "a",
                                             "<end_of_turn>",
                                             "<b>"};
  static const int32_t types[N_WORDS] = {2, 3, 3, 1, 1, 1, 4, 4};
  recipe r = {.model = "llama",
              .n_merges = MAX_ENTRIES, /* none */
              .n_tokens = N_TOKENS,
              .n_types = N_TOKENS,
              .n_scores = N_TOKENS,
              .tokens_type = GGUF_STRING,
              .types_type = GGUF_INT32,
              .scores_type = GGUF_FLOAT32,
              .bos = 257,
              .eos = 258,
              .eot = -1,
              .eom = -1,
              .unknown = -1,
              .padding = -1,
              .add_bos = -1,
              .add_eos = -1,
              .add_space = -1,
              .removes = -1};
  for (int byte = 0; byte < 256; byte++) {
    snprintf(names[byte], sizeof names[byte], "<0x%02X>", (unsigned)byte);
    r.tokens[byte] = names[byte];
    r.types[byte] = LLM_TOKEN_BYTE;
  }
  for (int i = 0; i < N_WORDS; i++) {
    r.tokens[256 + i] = words[i];
    r.types[256 + i] = types[i];
    r.scores[256 + i] = -(float)i;
  }
  return r;
}

static void expect_ids(const llm_tokenizer *t, const char *text, int parse_special,
                       const char *want) {
  int32_t ids[64];
  size_t n = 0;
  CHECK(llm_tokenizer_encode(t, text, strlen(text), parse_special, ids, 64, &n, NULL) == LLM_OK);
  char got[512] = "";
  for (size_t i = 0; i < n; i++)
    snprintf(got + strlen(got), sizeof got - strlen(got), i ? " %d" : "%d", (int)ids[i]);
  CHECK_MSG(strcmp(got, want) == 0, "\"%s\": %s, expected %s", text, got, want);
}

static void test_good(void) {
  recipe r = good_recipe();
  llm_tokenizer *t = accept(&r);
  CHECK(strcmp(llm_tokenizer_model(t), "llama") == 0 && llm_tokenizer_n_byte_tokens(t) == 256);
  CHECK(llm_tokenizer_add_bos(t) == 1 && llm_tokenizer_add_eos(t) == 0); /* what absent keys mean */
  CHECK(llm_tokenizer_adds_space(t) == 1);
  expect_text(t, 10, "\n");
  expect_text(t, 261, " a");
  expect_text(t, 257, "<s>");
  expect_ids(t, "a", 0, "261");
  expect_ids(t, "aa", 0, "261 260");
  expect_ids(t,
             "\xe2\x96\x81"
             "a<s>a",
             0, "259 261 60 115 62 260");
  expect_ids(t, "a<s>a<b>a", 1, "261 257 261 263 260");
  expect_ids(t, "<b>", 0, "259 263");
  expect_ids(t, "<end_of_turn>", 1, "262"); /* a turn marker: no prefix before it */
  CHECK(llm_tokenizer_token_type(t, 262) == LLM_TOKEN_CONTROL && llm_tokenizer_is_eog(t, 262));
  CHECK(llm_tokenizer_is_eog(t, 258) && !llm_tokenizer_is_eog(t, 263));
  CHECK(llm_tokenizer_find(t, " a", 2) == 261 && llm_tokenizer_find(t, "\n", 1) == 10);
  llm_tokenizer_free(t);

  r.add_space = r.add_bos = 0, r.add_eos = 1, r.removes = 0;
  t = accept(&r);
  CHECK(!llm_tokenizer_adds_space(t) && !llm_tokenizer_add_bos(t) && llm_tokenizer_add_eos(t));
  expect_ids(t, "aa", 0, "260 260");
  llm_tokenizer_free(t);

  r = good_recipe(), r.bos = -1; /* the default asks for what the file does not name */
  t = accept(&r);
  CHECK(!llm_tokenizer_add_bos(t));
  llm_tokenizer_free(t);
}

/* Without byte tokens characters that have no token are unknown. */
static void test_without_bytes(void) {
  recipe r = good_recipe();
  for (int i = 0; i < 256; i++) r.types[i] = LLM_TOKEN_NORMAL;
  llm_tokenizer *t = accept(&r);
  CHECK(llm_tokenizer_n_byte_tokens(t) == 0);
  expect_ids(t, "bca", 0, "259 256 260");
  llm_tokenizer_free(t);
  r.unknown = 263; /* the key before the type */
  t = accept(&r);
  expect_ids(t, "bca", 0, "259 263 260");
  llm_tokenizer_free(t);
  r.unknown = -1, r.types[256] = LLM_TOKEN_CONTROL;
  refuse(&r, LLM_ERR_FORMAT, "neither byte tokens nor an unknown token"); /* S4 */
}

static void test_bad(void) {
  recipe r = good_recipe();
  r.n_scores = 0, refuse(&r, LLM_ERR_FORMAT, "tokenizer.ggml.scores is missing"); /* S1 */
  r.n_scores = N_TOKENS - 1;
  refuse(&r, LLM_ERR_FORMAT, "key tokenizer.ggml.scores has 263 elements for 264 tokens"); /* V3 */
  r = good_recipe(), r.scores_type = GGUF_INT32;
  refuse(&r, LLM_ERR_FORMAT, "tokenizer.ggml.scores");
  r = good_recipe(), r.scores[259] = NAN;
  refuse(&r, LLM_ERR_FORMAT, "the score of token 259 is nan"); /* S2 */
  r.scores[259] = -INFINITY, refuse(&r, LLM_ERR_FORMAT, "the score of token 259 is -inf");

  static const char *const spellings[] = {"<0x0a>", "<0x-1>", "<0x1>", "<0x010>",
                                          "<0X10>", "x",      ""};
  for (size_t i = 0; i < sizeof spellings / sizeof *spellings; i++) {
    r = good_recipe(), r.tokens[17] = spellings[i];
    refuse(&r, LLM_ERR_FORMAT, "expected <0x00> to <0xFF>"); /* S3 */
  }
  r = good_recipe(), r.tokens[17] = "<0x12>";
  refuse(&r, LLM_ERR_FORMAT, "tokens 17 and 18 are both \"<0x12>\""); /* V5 */
  r = good_recipe(), r.types[17] = LLM_TOKEN_NORMAL;
  refuse(&r, LLM_ERR_FORMAT, "255 byte tokens, expected all 256 or none"); /* S4 */

  char text[1026] = "";
  r = good_recipe();
  memset(text, 'x', 1025);
  r.tokens[260] = text,
  refuse(&r, LLM_ERR_FORMAT, "token 260 has 1025 bytes, at most 1024"); /* S5 */
  text[1024] = 0;
  llm_tokenizer_free(accept(&r));

  r = good_recipe(), r.removes = 1;
  refuse(&r, LLM_ERR_UNSUPPORTED, "remove_extra_whitespaces is true"); /* S6 */
  r = good_recipe(), r.unknown = N_TOKENS;
  refuse(&r, LLM_ERR_FORMAT, "tokenizer.ggml.unknown_token_id");
  r = good_recipe(), r.eos = -1, r.add_eos = 1;
  refuse(&r, LLM_ERR_FORMAT, "key tokenizer.ggml.add_eos_token is true, but"); /* V7 */
}

int main(void) {
  test_good();
  test_without_bytes();
  test_bad();
  return check_report("test_tokenizer_load_spm");
}
