/* Test of tokenizer_load.c and tokenizer_load_bpe.c: reading tokenizer.ggml.*, one refusal per
 * rule, the same for specs, and GPT-2's published vocabulary with llama.cpp's 47 cases where
 * LLM_TEST_DATA names the data. */
#include "tokenizer.h"

#include "mapfile.h"
#include "tokenizer_recipe.h"
#include "vocabulary_sample.h"

static recipe good_recipe(void) {
  return (recipe){
      .model = "gpt2",
      .pre = "gpt-2",
      .tokens = {"a", "b", "ab", "\xc4\xa0",
                 "\xc4\xa0"
                 "a",
                 "<|im_end|>", "<s>", "\xc3\x84", "\xe2\x96\x81x"},
      .types = {1, 1, 1, 1, 1, 3, 3, 1, 1},
      .merges = {"a b", "\xc4\xa0 a"},
      .n_tokens = 9,
      .n_types = 9,
      .n_merges = 2,
      .tokens_type = GGUF_STRING,
      .types_type = GGUF_INT32,
      .scores_type = GGUF_FLOAT32,
      .bos = 6,
      .eos = -1,
      .eot = -1,
      .eom = -1,
      .unknown = -1,
      .padding = -1,
      .add_bos = 1,
      .add_eos = -1,
      .add_space = -1,
      .removes = -1,
  };
}

/* ---- good files ---- */

static void test_good(void) {
  recipe r = good_recipe();
  llm_tokenizer *t = accept(&r);
  CHECK(llm_tokenizer_n_vocab(t) == 9 && llm_tokenizer_n_byte_tokens(t) == 4);
  CHECK(llm_tokenizer_bos(t) == 6 && llm_tokenizer_add_bos(t) == 1);
  CHECK(llm_tokenizer_eos(t) == -1); /* absent, not some default */
  CHECK(llm_tokenizer_is_eog(t, 5)); /* by its name */
  CHECK(!llm_tokenizer_is_eog(t, 6) && !llm_tokenizer_is_eog(t, 0));
  expect_text(t, 4, " a");
  expect_text(t, 5, "<|im_end|>");
  expect_text(t, 7, "\xc4");          /* a letter of the alphabet: one byte */
  expect_text(t, 8, "\xe2\x96\x81x"); /* not in the alphabet: as spelled */
  int32_t ids[8];
  size_t n = 0;
  CHECK(llm_tokenizer_encode(t, "ab a\xc4<|im_end|>", 15, 1, ids, 8, &n, NULL) == LLM_OK);
  CHECK(n == 4 && ids[0] == 2 && ids[1] == 4 && ids[2] == 7 && ids[3] == 5);
  llm_tokenizer_free(t);

  r.n_types = 0;
  r.add_bos = -1;
  r.eos = 0, r.eot = 1, r.eom = 2;
  r.n_scores = 9;
  t = accept(&r);
  CHECK(llm_tokenizer_token_type(t, 4) == LLM_TOKEN_NORMAL && !llm_tokenizer_add_bos(t));
  CHECK(llm_tokenizer_token_type(t, 5) == LLM_TOKEN_CONTROL); /* a turn marker, by its name */
  CHECK(llm_tokenizer_eos(t) == 0);
  for (int32_t id = 0; id < 9; id++) CHECK(llm_tokenizer_is_eog(t, id) == (id < 3 || id == 5));
  llm_tokenizer_free(t);

  r.n_merges = 0;
  t = accept(&r);
  llm_tokenizer_free(t);
}

/* ---- bad files ---- */

static void test_bad_keys(void) {
  recipe r = good_recipe();
  r.model = NULL, refuse(&r, LLM_ERR_FORMAT, "tokenizer.ggml.model");
  r.model = "bert",
  refuse(&r, LLM_ERR_UNSUPPORTED, "\"bert\"; this program has gpt2, llama"); /* V1 */
  r.model = "llama", refuse(&r, LLM_ERR_FORMAT, "tokenizer.ggml.scores is missing");
  r = good_recipe(), r.pre = NULL, refuse(&r, LLM_ERR_FORMAT, "tokenizer.ggml.pre");
  r.pre = "bloom",
  refuse(&r, LLM_ERR_UNSUPPORTED, "\"bloom\"; this program has gpt-2, smollm"); /* B1 */
  r = good_recipe(), r.tokens_type = 0, refuse(&r, LLM_ERR_FORMAT, "tokenizer.ggml.tokens");
  r.tokens_type = GGUF_UINT32, refuse(&r, LLM_ERR_FORMAT, "tokenizer.ggml.tokens");
  r = good_recipe(), r.n_merges = MAX_ENTRIES, refuse(&r, LLM_ERR_FORMAT, "tokenizer.ggml.merges");
  r = good_recipe(), r.n_types = r.n_merges = r.n_tokens = 0;
  refuse(&r, LLM_ERR_FORMAT, "0 tokens"); /* V2 */

  r = good_recipe(), r.n_types = 8;
  refuse(&r, LLM_ERR_FORMAT, "key tokenizer.ggml.token_type has 8 elements for 9 tokens"); /* V3 */
  r = good_recipe(), r.types_type = GGUF_INT16;
  refuse(&r, LLM_ERR_FORMAT, "tokenizer.ggml.token_type");
  r = good_recipe(), r.n_scores = 10;
  refuse(&r, LLM_ERR_FORMAT, "key tokenizer.ggml.scores has 10 elements for 9 tokens");
  r.n_scores = 9, r.scores_type = GGUF_INT32;
  refuse(&r, LLM_ERR_FORMAT, "tokenizer.ggml.scores");
  r = good_recipe(), r.types[3] = 0,
  refuse(&r, LLM_ERR_FORMAT, "the type of token 3 is 0"); /* V4 */
  r.types[3] = 7, refuse(&r, LLM_ERR_FORMAT, "expected 1 to 6");
  r.types[3] = -1, refuse(&r, LLM_ERR_FORMAT, "the type of token 3 is -1");

  r = good_recipe(), r.bos = 9, refuse(&r, LLM_ERR_FORMAT, "tokenizer.ggml.bos_token_id"); /* V6 */
  r.bos = UINT32_MAX, refuse(&r, LLM_ERR_FORMAT, "tokenizer.ggml.bos_token_id");
  r.bos = -1, refuse(&r, LLM_ERR_FORMAT, "tokenizer.ggml.bos_token_id is missing"); /* V7 */
  r = good_recipe(), r.eos = 9, refuse(&r, LLM_ERR_FORMAT, "tokenizer.ggml.eos_token_id");
  r = good_recipe(), r.eot = 9, refuse(&r, LLM_ERR_FORMAT, "tokenizer.ggml.eot_token_id");
  r = good_recipe(), r.eom = 9, refuse(&r, LLM_ERR_FORMAT, "tokenizer.ggml.eom_token_id");
  r = good_recipe(), r.unknown = 9, refuse(&r, LLM_ERR_FORMAT, "tokenizer.ggml.unknown_token_id");
  r = good_recipe(), r.padding = 9, refuse(&r, LLM_ERR_FORMAT, "tokenizer.ggml.padding_token_id");
}

static void test_bad_vocabulary(void) {
  recipe r = good_recipe();
  r.tokens[8] = "ab", refuse(&r, LLM_ERR_FORMAT, "tokens 2 and 8 are both \"ab\""); /* V5 */
  r.tokens[8] = "<|im_end|>", refuse(&r, LLM_ERR_FORMAT, "tokens 5 and 8 are both");

  r = good_recipe(), r.merges[1] = "ab", refuse(&r, LLM_ERR_FORMAT, "merge 1 is \"ab\""); /* B2 */
  r.merges[1] = "", refuse(&r, LLM_ERR_FORMAT, "merge 1 is \"\"");
  r.merges[1] = "b c", refuse(&r, LLM_ERR_FORMAT, "merge 1 names \"c\", which is no token");
  r.merges[1] = "c b", refuse(&r, LLM_ERR_FORMAT, "merge 1 names \"c\"");
  r.merges[1] = "a  b", refuse(&r, LLM_ERR_FORMAT, "merge 1 names \" b\"");
  r.merges[1] = " b", refuse(&r, LLM_ERR_FORMAT, "merge 1 names \"\"");
  r.merges[1] = "b a",
  refuse(&r, LLM_ERR_FORMAT,
         "merge 1 of \"b\" and \"a\" makes no token of the vocabulary");       /* B3 */
  r.merges[1] = "a b", refuse(&r, LLM_ERR_FORMAT, "repeats an earlier merge"); /* B3 */
  r.types[2] = LLM_TOKEN_CONTROL;
  refuse(&r, LLM_ERR_FORMAT, "merge 0 of \"a\" and \"b\" makes a control token"); /* B3 */

  /* what a message quotes of a hostile file is short and whole */
  r = good_recipe();
  char letters[301] = "";
  for (int i = 0; i < 100; i++) strcat(letters, "\xe2\x96\x81");
  r.tokens[7] = r.tokens[8] = letters;
  refuse(&r, LLM_ERR_FORMAT, "tokens 7 and 8 are both \"\xe2\x96\x81");
  r.tokens[7] = "\033[2J", r.tokens[8] = "\033[2J";
  refuse(&r, LLM_ERR_FORMAT, "tokens 7 and 8 are both \"?[2J\"");
}

/* Merges, which are read some at a time: "A B", "AB C", "ABC D" ..., a longer token each. */
enum { MOST_MERGES = 33 };

static recipe chain_of(size_t n_merges) {
  static char letters[MOST_MERGES + 1][2], words[MOST_MERGES][64], pairs[MOST_MERGES][64];
  recipe r = good_recipe();
  char word[MOST_MERGES + 2] = "A";
  memset(r.tokens, 0, sizeof r.tokens);
  for (size_t i = 0; i <= MOST_MERGES; i++) {
    letters[i][0] = (char)(i < 26 ? 'A' + i : 'a' + i - 26);
    r.tokens[i] = letters[i];
  }
  for (size_t i = 0; i < MOST_MERGES; i++) {
    snprintf(pairs[i], sizeof pairs[i], "%s %s", word, letters[i + 1]);
    strcat(word, letters[i + 1]);
    r.tokens[MOST_MERGES + 1 + i] = strcpy(words[i], word);
    r.merges[i] = pairs[i];
  }
  r.n_tokens = 2 * MOST_MERGES + 1, r.n_types = 0, r.n_merges = n_merges;
  r.bos = r.add_bos = -1;
  return r;
}

static void test_many_merges(void) {
  for (size_t n = 0; n <= MOST_MERGES; n++) {
    const recipe r = chain_of(n);
    llm_tokenizer *t = accept(&r);
    const char *all = r.tokens[2 * MOST_MERGES];
    int32_t ids[MOST_MERGES + 1];
    size_t n_ids = 0;
    CHECK(llm_tokenizer_encode(t, all, MOST_MERGES + 1, 0, ids, MOST_MERGES + 1, &n_ids, NULL) ==
          LLM_OK);
    CHECK_MSG(n_ids == MOST_MERGES + 1 - n && ids[0] == (n ? MOST_MERGES + (int32_t)n : 0),
              "%zu merges: %zu ids, the first %d", n, n_ids, (int)ids[0]);
    llm_tokenizer_free(t);
  }
}

static void test_bad_merges(void) {
  static const struct {
    const char *merge, *fault; /* NULL: the one before again */
  } cases[] = {
      {"", "is \"\", expected two tokens"},         {"AB", "is \"AB\", expected two tokens"},
      {"? B", "names \"?\", which is no token"},    {"B ?", "names \"?\", which is no token"},
      {"B A", "of \"B\" and \"A\" makes no token"}, {NULL, "of \"A"}};
  for (size_t n = 1; n <= MOST_MERGES; n += n == 1 ? 14 : n == 17 ? 16 : 1) /* 1, 15, 16, 17, 33 */
    for (size_t m = 0; m < n; m++)
      for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        recipe r = chain_of(n);
        char fragment[64];
        if (!cases[i].merge && !m) continue;
        r.merges[m] = cases[i].merge ? cases[i].merge : r.merges[m - 1];
        snprintf(fragment, sizeof fragment, "merge %zu %s", m, cases[i].fault);
        refuse(&r, LLM_ERR_FORMAT, fragment);
      }
}

/* ---- specs ---- */

static void refuse_spec(const llm_bpe_spec *spec, llm_status want, const char *fragment) {
  llm_tokenizer *t = NULL;
  llm_error err;
  CHECK_MSG(llm_tokenizer_new_bpe(&t, spec, &err) == want && !t, "%s", fragment);
  CHECK_MSG(strstr(err.message, fragment), "\"%s\", expected \"%s\"", err.message, fragment);
}

static void test_bad_spec(void) {
  vocabulary *v = malloc(sizeof *v);
  vocabulary_init(v);
  vocabulary_merge(v, 'a', 'b');
  const llm_bpe_spec good = vocabulary_spec(v, "gpt-2");
  llm_bpe_spec s = good;
  s.n_vocab = 0, refuse_spec(&s, LLM_ERR_ARG, "n_vocab");
  s.n_vocab = (int64_t)1 << 31, refuse_spec(&s, LLM_ERR_ARG, "n_vocab");
  s = good, s.n_merges = -2, refuse_spec(&s, LLM_ERR_ARG, "n_merges");
  s = good, s.pre = NULL, refuse_spec(&s, LLM_ERR_ARG, "NULL");
  s = good, s.merges = NULL, refuse_spec(&s, LLM_ERR_ARG, "NULL");
  s = good, s.text = NULL, refuse_spec(&s, LLM_ERR_ARG, "text[0]");
  s = good, s.offsets = good.offsets + 1, refuse_spec(&s, LLM_ERR_ARG, "text[0]");
  s = good, s.pre = "gpt2", refuse_spec(&s, LLM_ERR_UNSUPPORTED, "\"gpt2\"");
  v->types[7] = 9, refuse_spec(&good, LLM_ERR_ARG, "type of token 7"), v->types[7] = 1;
  v->offsets[7] = 9, refuse_spec(&good, LLM_ERR_ARG, "offsets of the tokens fall");
  v->offsets[7] = 7;
  v->merges[0] = 257, refuse_spec(&good, LLM_ERR_ARG, "merge names no token");
  v->merges[0] = -1, refuse_spec(&good, LLM_ERR_ARG, "merge names no token");
  v->merges[0] = 'b', refuse_spec(&good, LLM_ERR_ARG, "makes no token"), v->merges[0] = 'a';
  v->text[7] = 8, refuse_spec(&good, LLM_ERR_ARG, "tokens 7 and 8"), v->text[7] = 7;
  free(v);
}

/* Tokens of 65,536 bytes load and merge; one byte more is refused. */
static void test_long_token(void) {
  vocabulary *v = malloc(sizeof *v);
  vocabulary_init(v);
  uint8_t *text = calloc(65537, 1);
  memset(text, 'x', 65537);
  int32_t half = vocabulary_add(v, text, 32768), whole = vocabulary_add(v, text, 65536);
  vocabulary_pair(v, half, half, whole);
  llm_tokenizer_free(vocabulary_tokenizer(v, "gpt-2"));
  v->n_vocab--;
  vocabulary_add(v, text, 65537);
  llm_bpe_spec s = vocabulary_spec(v, "gpt-2");
  refuse_spec(&s, LLM_ERR_ARG, "token 257 has 65537 bytes, expected at most 65536");
  free(text);
  free(v);
}

/* Special tokens of 1,024 bytes load, hidden or not; one byte more is refused. */
static void test_long_special(void) {
  vocabulary *v = malloc(sizeof *v);
  const int32_t types[] = {LLM_TOKEN_CONTROL, LLM_TOKEN_UNKNOWN, LLM_TOKEN_USER_DEFINED};
  uint8_t text[1025];
  memset(text, 'x', sizeof text);
  for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
    vocabulary_init(v);
    v->types[vocabulary_add(v, text, 1024)] = types[i];
    llm_tokenizer_free(vocabulary_tokenizer(v, "gpt-2"));
    v->n_vocab--;
    v->types[vocabulary_add(v, text, 1025)] = types[i];
    llm_bpe_spec s = vocabulary_spec(v, "gpt-2");
    refuse_spec(&s, LLM_ERR_ARG, "token 256 is a special token of 1025 bytes, at most 1024");
  }
  free(v);
}

/* ---- GPT-2's vocabulary ---- */

static char *read_text(const char *folder, const char *name) {
  char path[1024];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  mapfile map;
  if (mapfile_open(&map, path, NULL) != LLM_OK) return NULL;
  char *text = calloc(map.n_bytes + 1, 1);
  memcpy(text, map.data, map.n_bytes);
  mapfile_close(&map);
  return text;
}

static void run_cases(const llm_tokenizer *t, const char *text, const char *ids) {
  static const char border[] = "\n__ggml_vocab_test__\n";
  int n_cases = 0;
  for (const char *end; text; text = end ? end + strlen(border) : NULL) {
    end = strstr(text, border);
    size_t n_bytes = end ? (size_t)(end - text) : strlen(text), n = 0;
    int32_t got[1024];
    CHECK(llm_tokenizer_encode(t, text, n_bytes, 0, got, 1024, &n, NULL) == LLM_OK);
    size_t i = 0;
    for (; *ids && *ids != '\n'; i++) {
      char *after;
      int32_t want = (int32_t)strtol(ids, &after, 10);
      CHECK_MSG(i < n && got[i] == want, "case %d, id %zu", n_cases, i);
      for (ids = after; *ids == ' ';) ids++;
    }
    CHECK_MSG(i == n, "case %d: %zu ids, expected %zu", n_cases, n, i);
    ids += *ids == '\n';
    n_cases++;
  }
  CHECK_MSG(n_cases == 47, "%d cases", n_cases);
}

static void test_published(void) {
  static const struct {
    const char *file, *ids;
    int64_t n_vocab;
    int32_t eos;
  } cases[] = {{"ggml-vocab-gpt-2.gguf", "ggml-vocab-gpt-2.gguf.out", 50257, 50256},
               {"ggml-vocab-llama-spm.gguf", "ggml-vocab-llama-spm.gguf.out", 32000, 2},
               {"ggml-vocab-llama-spm.gguf", "ggml-vocab-phi-3.gguf.out", 32000, 2}};
  const char *folder = getenv("LLM_TEST_DATA");
  if (!folder) {
    puts("test_tokenizer_load: published vocabularies skipped, LLM_TEST_DATA is not set");
    return;
  }
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", folder, cases[i].file);
    llm_tokenizer *t = NULL;
    llm_error err = {0};
    char *text = read_text(folder, "ggml-vocab-gpt-2.gguf.inp");
    char *ids = read_text(folder, cases[i].ids);
    CHECK_MSG(llm_tokenizer_open(&t, path, &err) == LLM_OK, "%s", err.message);
    CHECK(text && ids);
    if (t && text && ids) {
      CHECK(llm_tokenizer_n_vocab(t) == cases[i].n_vocab && llm_tokenizer_n_byte_tokens(t) == 256);
      CHECK(llm_tokenizer_eos(t) == cases[i].eos && llm_tokenizer_is_eog(t, cases[i].eos));
      run_cases(t, text, ids);
    }
    llm_tokenizer_free(t);
    free(text);
    free(ids);
  }
}

static void test_open(void) {
  llm_tokenizer *t = (llm_tokenizer *)&t;
  llm_error err;
  CHECK(llm_tokenizer_open(&t, "build/no-such-file", &err) == LLM_ERR_IO && !t);
  CHECK(llm_tokenizer_open(&t, "Makefile", &err) == LLM_ERR_FORMAT && !t);
  CHECK_MSG(strstr(err.message, "Makefile") != NULL, "%s", err.message);
}

int main(void) {
  test_good();
  test_bad_keys();
  test_bad_vocabulary();
  test_many_merges();
  test_bad_merges();
  test_bad_spec();
  test_long_token();
  test_long_special();
  test_open();
  test_published();
  return check_report("test_tokenizer_load");
}
