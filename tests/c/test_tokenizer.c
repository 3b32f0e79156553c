/* Test of tokenizer.c, tokenizer_bpe.c and tokenizer_special.c: merging against the obvious loop on
 * random vocabularies, dropped bytes, special tokens, decoding, buffers and wrong arguments. */
#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "vocabulary_sample.h"

static uint32_t seed = 1;

static uint32_t random_below(uint32_t n) {
  seed = seed * 1664525 + 1013904223;
  return (seed >> 8) % n;
}

typedef struct encoded {
  int32_t *ids;
  size_t n;
} encoded;

static encoded encode(const llm_tokenizer *t, const char *text, size_t n, int parse_special) {
  encoded e = {malloc((n + 1) * sizeof(int32_t)), 0};
  llm_error err;
  llm_status status = llm_tokenizer_encode(t, text, n, parse_special, e.ids, n, &e.n, &err);
  CHECK_MSG(status == LLM_OK, "%s", err.message);
  return e;
}

/* ids as "1 2 3" */
static void expect_ids(const llm_tokenizer *t, const char *text, int parse_special,
                       const char *want) {
  encoded e = encode(t, text, strlen(text), parse_special);
  char got[512] = "";
  for (size_t i = 0; i < e.n; i++)
    snprintf(got + strlen(got), sizeof got - strlen(got), i ? " %d" : "%d", (int)e.ids[i]);
  CHECK_MSG(strcmp(got, want) == 0, "\"%s\": %s, expected %s", text, got, want);
  free(e.ids);
}

static void expect_text(const llm_tokenizer *t, const int32_t *ids, size_t n, int render_special,
                        const char *want) {
  char got[256];
  size_t n_got = 0;
  llm_error err;
  CHECK(llm_tokenizer_decode(t, ids, n, render_special, got, sizeof got, &n_got, &err) == LLM_OK);
  CHECK_MSG(n_got == strlen(want) && memcmp(got, want, n_got) == 0, "\"%.*s\", expected \"%s\"",
            (int)n_got, got, want);
}

/* ---- merging ---- */

/* The definition: lowest rank first, leftmost first. ids[0..n) in place. */
static size_t merge_slowly(const vocabulary *v, int32_t *ids, size_t n) {
  for (;;) {
    size_t best = 0;
    int64_t rank = v->n_merges;
    for (size_t i = 0; i + 1 < n; i++)
      for (int64_t m = 0; m < rank; m++)
        if (v->merges[2 * m] == ids[i] && v->merges[2 * m + 1] == ids[i + 1]) {
          best = i;
          rank = m;
        }
    if (rank == v->n_merges) return n;
    ids[best] = v->products[rank];
    memmove(ids + best + 1, ids + best + 2, (n - best - 2) * sizeof *ids);
    n--;
  }
}

static void test_merging(void) {
  for (int round = 0; round < 300; round++) {
    vocabulary v;
    uint32_t n_letters = 2 + random_below(4);
    vocabulary_init(&v);
    for (int m = 0; m < 40; m++) { /* random pairs of what is there; some repeat and are refused */
      uint32_t n = n_letters + (uint32_t)v.n_vocab - 256;
      uint32_t a = random_below(n), b = random_below(n);
      vocabulary_merge(&v, (int32_t)(a < n_letters ? 'a' + a : 256 + a - n_letters),
                       (int32_t)(b < n_letters ? 'a' + b : 256 + b - n_letters));
    }
    llm_tokenizer *t = vocabulary_tokenizer(&v, "gpt-2");
    for (int k = 0; k < 20; k++) { /* one word, so one piece; on both sides of the short limit */
      char text[160];
      int32_t want[160];
      size_t n = 1 + random_below(k % 2 ? 40 : 160);
      for (size_t i = 0; i < n; i++) text[i] = (char)('a' + random_below(n_letters));
      for (size_t i = 0; i < n; i++) want[i] = text[i];
      size_t n_want = merge_slowly(&v, want, n);
      encoded e = encode(t, text, n, 0);
      CHECK_MSG(e.n == n_want && memcmp(e.ids, want, n_want * sizeof *want) == 0,
                "round %d: %.*s: %zu ids, expected %zu", round, (int)n, text, e.n, n_want);
      free(e.ids);
    }
    llm_tokenizer_free(t);
  }
}

/* ---- ranks ---- */

/* The definition: of all neighbours that make a token, the lowest id first, leftmost first; parts
 * of `text` end at ends[0..n). */
static size_t merge_by_rank_slowly(const vocabulary *v, const char *text, size_t *ends, size_t n) {
  for (;;) {
    size_t best = n;
    int32_t lowest = INT32_MAX;
    for (size_t i = 0; i + 1 < n; i++) {
      size_t begin = i ? ends[i - 1] : 0;
      int32_t id = vocabulary_find(v, text + begin, ends[i + 1] - begin);
      if (id < 0 || id >= lowest) continue;
      best = i;
      lowest = id;
    }
    if (best == n) return n;
    memmove(ends + best, ends + best + 1, (n - best - 1) * sizeof *ends);
    n--;
  }
}

static void test_ranks(void) {
  for (int round = 0; round < 100; round++) {
    vocabulary v;
    uint32_t n_letters = 2 + random_below(3);
    vocabulary_init(&v);
    for (int i = 0; i < 60; i++) { /* in no order of length */
      char text[8];
      size_t n = 2 + random_below(6);
      for (size_t k = 0; k < n; k++) text[k] = (char)('a' + random_below(n_letters));
      if (vocabulary_find(&v, text, n) < 0) vocabulary_add(&v, text, n);
    }
    llm_bpe_spec spec = vocabulary_spec(&v, "gpt-2");
    spec.n_merges = LLM_BPE_BY_RANK, spec.merges = NULL;
    llm_tokenizer *t = NULL;
    CHECK(llm_tokenizer_new_bpe(&t, &spec, NULL) == LLM_OK);
    for (int k = 0; k < 20; k++) {
      char text[120];
      size_t ends[120], n = 8 + random_below(k % 2 ? 20 : 112); /* longer than any token */
      for (size_t i = 0; i < n; i++) text[i] = (char)('a' + random_below(n_letters));
      for (size_t i = 0; i < n; i++) ends[i] = i + 1;
      size_t n_want = merge_by_rank_slowly(&v, text, ends, n), mismatches = 0;
      encoded e = encode(t, text, n, 0);
      for (size_t i = 0, begin = 0; i < n_want && i < e.n; begin = ends[i++])
        mismatches += e.ids[i] != vocabulary_find(&v, text + begin, ends[i] - begin);
      CHECK_MSG(e.n == n_want && !mismatches, "round %d: %.*s", round, (int)n, text);
      free(e.ids);
    }
    llm_tokenizer_free(t);
  }
}

/* ---- cache ---- */

/* The same word comes from the cache the second time; many words evict each other. */
static void test_cache(void) {
  vocabulary v;
  vocabulary_init(&v);
  int32_t ab = vocabulary_merge(&v, 'a', 'b'), abab = vocabulary_merge(&v, ab, ab);
  vocabulary_merge(&v, abab, 'c');
  llm_tokenizer *t = vocabulary_tokenizer(&v, "gpt-2");
  enum { N_WORDS = 20000, WIDTH = 24 };
  char *text = malloc(N_WORDS * WIDTH);
  size_t n = 0;
  for (int i = 0; i < N_WORDS; i++) {
    size_t length = 1 + random_below(WIDTH - 1);
    for (size_t k = 0; k < length; k++) text[n++] = (char)('a' + random_below(3));
    text[n++] = '.'; /* a piece of its own */
  }
  encoded whole = encode(t, text, n, 0);
  size_t n_ids = 0, mismatches = 0;
  for (size_t begin = 0, end; begin < n; begin = end) {
    for (end = begin; text[end] != '.';) end++;
    end++;
    encoded e = encode(t, text + begin, end - begin, 0);
    mismatches += n_ids + e.n > whole.n || memcmp(whole.ids + n_ids, e.ids, e.n * 4) != 0;
    n_ids += e.n;
    free(e.ids);
  }
  CHECK_MSG(mismatches == 0 && n_ids == whole.n, "%zu words differ", mismatches);
  free(whole.ids);
  free(text);
  llm_tokenizer_free(t);
}

/* A megabyte without a border; every byte once; the bytes come back. */
static void test_round_trip(void) {
  vocabulary v;
  vocabulary_init(&v);
  int32_t aa = vocabulary_merge(&v, 'a', 'a'), four = vocabulary_merge(&v, aa, aa);
  vocabulary_merge(&v, four, four);
  vocabulary_merge(&v, 0xc3, 0xa4);
  llm_tokenizer *t = vocabulary_tokenizer(&v, "smollm");
  CHECK(llm_tokenizer_n_byte_tokens(t) == 256);
  size_t n = (1 << 20) + 256;
  char *text = malloc(n), *back = malloc(n);
  memset(text, 'a', n);
  for (int i = 0; i < 256; i++) text[n - 256 + (size_t)i] = (char)i;
  encoded e = encode(t, text, n, 0);
  CHECK_MSG(e.n == (1 << 17) + 256, "%zu", e.n);
  size_t n_back = 0;
  CHECK(llm_tokenizer_decode(t, e.ids, e.n, 1, back, n, &n_back, NULL) == LLM_OK);
  CHECK(n_back == n && memcmp(text, back, n) == 0);
  free(e.ids);
  free(text);
  free(back);
  llm_tokenizer_free(t);
}

/* Bytes without a token are dropped and their neighbours merge, as tokenizers does it. */
static void test_dropped_bytes(void) {
  static const char *const names[] = {"a", "b", "ab", "abab"};
  vocabulary v = {0};
  for (size_t i = 0; i < 4; i++) vocabulary_add(&v, names[i], strlen(names[i]));
  vocabulary_pair(&v, 0, 1, 2);
  vocabulary_pair(&v, 2, 2, 3);
  llm_tokenizer *t = vocabulary_tokenizer(&v, "gpt-2");
  CHECK(llm_tokenizer_n_byte_tokens(t) == 2);
  expect_ids(t, "axb", 0, "2");
  expect_ids(t, "xaxbxaxbx", 0, "3");
  expect_ids(t, "a b", 0, "0 1"); /* pieces stay apart */
  expect_ids(t, "xyz", 0, "");
  expect_ids(t, "axxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxb", 0, "2");
  expect_ids(t, "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", 0, "");
  llm_tokenizer_free(t);
}

/* ---- special tokens ---- */

static void test_special(void) {
  vocabulary v;
  vocabulary_init(&v);
  int32_t lt_pipe = vocabulary_merge(&v, '<', '|');
  CHECK(lt_pipe == 256);
  static const struct {
    const char *text;
    int32_t type;
  } added[] = {
      {"<|im_end|>", LLM_TOKEN_CONTROL},  /* 257 */
      {"<|im", LLM_TOKEN_CONTROL},        /* 258 */
      {"<user>", LLM_TOKEN_USER_DEFINED}, /* 259 */
      {"<unk>", LLM_TOKEN_UNKNOWN},       /* 260 */
      {"<unused>", LLM_TOKEN_UNUSED},     /* 261 */
      {"  ", LLM_TOKEN_USER_DEFINED},     /* 262 */
      {"</s>", LLM_TOKEN_USER_DEFINED},   /* 263 */
      {"<|im_end|>x", LLM_TOKEN_CONTROL}, /* 264 */
  };
  for (size_t i = 0; i < sizeof added / sizeof *added; i++)
    v.types[vocabulary_add(&v, added[i].text, strlen(added[i].text))] = added[i].type;
  llm_tokenizer *t = vocabulary_tokenizer(&v, "gpt-2");

  CHECK(llm_tokenizer_find(t, "<|im_end|>", 10) == 257 && llm_tokenizer_find(t, "  ", 2) == 262);
  CHECK(llm_tokenizer_find(t, "<|", 2) == 256 && llm_tokenizer_find(t, "\0", 1) == 0);
  CHECK(llm_tokenizer_find(t, "<|im_end|", 9) == -1 && llm_tokenizer_find(t, NULL, 0) == -1);

  expect_ids(t, "a<|im_end|>b", 1, "97 257 98");
  expect_ids(t, "<|im_end|", 1, "258 95 101 110 100 124"); /* the longest that is there */
  expect_ids(t, "<|im_end|>x", 1, "264");
  expect_ids(t, "<|<|im", 1, "256 258");
  expect_ids(t, "<|i", 1, "256 105");
  expect_ids(t, "<unk><user><unused>", 1, "260 259 60 117 110 117 115 101 100 62");
  expect_ids(t, "<|im_end|>", 0, "256 105 109 95 101 110 100 124 62");
  expect_ids(t, "<unk>", 0, "60 117 110 107 62");
  expect_ids(t, "a   b<user>", 0, "97 262 32 98 259"); /* user-defined: always */
  expect_ids(t, "<|im_end|><|im_end|>", 1, "257 257");
  expect_ids(t, "", 1, "");

  static const int32_t ids[] = {'a', 257, 259, 260, 261, 'b'};
  expect_text(t, ids, 6, 1, "a<|im_end|><user><unk><unused>b");
  expect_text(t, ids, 6, 0, "a<user>b");
  expect_text(t, ids, 0, 0, "");

  CHECK(llm_tokenizer_token_type(t, 257) == LLM_TOKEN_CONTROL);
  CHECK(llm_tokenizer_token_type(t, 'a') == LLM_TOKEN_NORMAL);
  CHECK(llm_tokenizer_token_type(t, -1) == 0 && llm_tokenizer_token_type(t, 265) == 0);
  CHECK(llm_tokenizer_is_eog(t, 257)); /* by its name */
  CHECK(!llm_tokenizer_is_eog(t, 258) && !llm_tokenizer_is_eog(t, -1));
  CHECK(!llm_tokenizer_is_eog(t, 263)); /* not a control token */
  CHECK(llm_tokenizer_bos(t) == -1 && llm_tokenizer_eos(t) == -1 && !llm_tokenizer_add_bos(t));
  CHECK(llm_tokenizer_n_vocab(t) == 265);
  llm_tokenizer_free(t);
}

/* Many special tokens with long common beginnings, against a plain search. */
static void test_special_search(void) {
  vocabulary v;
  vocabulary_init(&v);
  for (int i = 0; i < 200; i++) {
    char text[12];
    size_t n = 1 + random_below(sizeof text);
    for (size_t k = 0; k < n; k++) text[k] = (char)('x' + random_below(2));
    if (n == 1 || vocabulary_find(&v, text, n) >= 0) continue;
    v.types[vocabulary_add(&v, text, n)] = LLM_TOKEN_CONTROL;
  }
  llm_tokenizer *t = vocabulary_tokenizer(&v, "gpt-2");
  for (int round = 0; round < 2000; round++) {
    char text[64];
    int32_t want[64];
    size_t n = random_below(sizeof text), n_want = 0;
    for (size_t i = 0; i < n; i++) text[i] = (char)('x' + random_below(2));
    for (size_t pos = 0; pos < n;) {
      size_t length = n - pos < 12 ? n - pos : 12;
      int32_t id = -1;
      while (length && (id = vocabulary_find(&v, text + pos, length)) < 0) length--;
      want[n_want++] = id; /* single bytes are in the vocabulary */
      pos += length;
    }
    encoded e = encode(t, text, n, 1);
    CHECK(e.n == n_want && (!n_want || memcmp(e.ids, want, n_want * sizeof *want) == 0));
    free(e.ids);
  }
  llm_tokenizer_free(t);
}

/* ---- buffers and wrong arguments ---- */

/* Tokens longer than TEXT_SLACK, as long and shorter, into buffers of every size. */
static void test_decode_room(void) {
  static const char text[] = "0123456789abcdef"
                             "0123456789abcdefg"
                             "xyz"
                             "w";
  static const uint64_t offsets[] = {0, 16, 33, 36, 37};
  static const int32_t ids[] = {3, 2, 1, 0, 2, 3, 1};
  static const char want[] = "wxyz0123456789abcdefg0123456789abcdefxyzw0123456789abcdefg";
  llm_bpe_spec spec = {"gpt-2", 4, (const uint8_t *)text, offsets, NULL, 0, NULL};
  llm_tokenizer *t = NULL;
  CHECK(llm_tokenizer_new_bpe(&t, &spec, NULL) == LLM_OK);
  for (size_t capacity = 0; capacity < sizeof want + 20; capacity++) {
    char got[sizeof want + 21];
    size_t n = 0, fit = capacity < sizeof want - 1 ? capacity : sizeof want - 1;
    memset(got, '#', sizeof got);
    llm_status status = llm_tokenizer_decode(t, ids, 7, 0, got, capacity, &n, NULL);
    CHECK((status == LLM_OK) == (capacity >= sizeof want - 1) && n == sizeof want - 1);
    CHECK_MSG(memcmp(got, want, fit) == 0 && got[capacity] == '#', "%zu bytes", capacity);
  }
  llm_tokenizer_free(t);
}

static void test_buffers(void) {
  vocabulary v;
  vocabulary_init(&v);
  llm_tokenizer *t = vocabulary_tokenizer(&v, "gpt-2");
  int32_t ids[4] = {-7, -7, -7, -7};
  char text[4] = "....";
  size_t n = 99;
  llm_error err;
  CHECK(llm_tokenizer_encode(t, "hey", 3, 0, ids, 2, &n, &err) == LLM_ERR_ARG);
  CHECK(n == 3 && ids[0] == 'h' && ids[1] == 'e' && ids[2] == -7);
  CHECK(strstr(err.message, "3 tokens") != NULL);
  CHECK(llm_tokenizer_encode(t, "hey", 3, 0, NULL, 0, &n, &err) == LLM_ERR_ARG && n == 3);
  CHECK(llm_tokenizer_encode(t, "hey", 3, 0, NULL, 3, &n, &err) == LLM_ERR_ARG && n == 0);
  CHECK(llm_tokenizer_encode(t, NULL, 3, 0, ids, 3, &n, &err) == LLM_ERR_ARG && n == 0);
  CHECK(llm_tokenizer_encode(t, NULL, 0, 0, NULL, 0, &n, &err) == LLM_OK && n == 0);
  CHECK(llm_tokenizer_encode(t, "a\0b", 3, 0, ids, 4, &n, &err) == LLM_OK && n == 3 && !ids[1]);

  static const int32_t some[] = {'h', 'e', 'y'}, bad[] = {'h', 256}, negative[] = {-1};
  CHECK(llm_tokenizer_decode(t, some, 3, 0, text, 2, &n, &err) == LLM_ERR_ARG);
  CHECK(n == 3 && memcmp(text, "he..", 4) == 0);
  CHECK(llm_tokenizer_decode(t, some, 3, 0, NULL, 0, &n, &err) == LLM_ERR_ARG && n == 3);
  CHECK(llm_tokenizer_decode(t, bad, 2, 0, text, 4, &n, &err) == LLM_ERR_ARG && n == 0);
  CHECK_MSG(strstr(err.message, "id 256 at position 1") != NULL, "%s", err.message);
  CHECK(llm_tokenizer_decode(t, negative, 1, 0, text, 4, &n, &err) == LLM_ERR_ARG);
  CHECK(llm_tokenizer_decode(t, NULL, 1, 0, text, 4, &n, &err) == LLM_ERR_ARG);
  CHECK(llm_tokenizer_decode(t, some, 1, 0, NULL, 4, &n, &err) == LLM_ERR_ARG);
  llm_tokenizer_free(t);
  llm_tokenizer_free(NULL);
}

int main(void) {
  test_decode_room();
  test_merging();
  test_ranks();
  test_cache();
  test_round_trip();
  test_dropped_bytes();
  test_special();
  test_special_search();
  test_buffers();
  return check_report("test_tokenizer");
}
