/* Test of tokenizer_spm.c: merging against the obvious loop on random vocabularies with ties,
 * unknown characters, unused tokens taken apart, what is no UTF-8, and a long text in one word.
 * (tests/test_sentencepiece.py compares with sentencepiece.) */
#include "tokenizer_spm.h"

#include <time.h>

#include "check.h"
#include "vocabulary_sample.h"

static uint32_t seed = 3;

static uint32_t random_below(uint32_t n) {
  seed = seed * 1664525 + 1013904223;
  return (seed >> 8) % n;
}

/* A vocabulary with scores and what spm_new borrows from it. */
typedef struct scored {
  vocabulary v;
  float scores[SAMPLE_TOKENS];
  uint8_t types[SAMPLE_TOKENS];
  token_table table;
  spm *s;
} scored;

static int32_t add(scored *k, const char *text, float score) {
  int32_t id = vocabulary_add(&k->v, text, strlen(text));
  k->scores[id] = score;
  return id;
}

/* With byte tokens as the last 256, or none. */
static void build(scored *k, int with_bytes, int32_t unknown) {
  spm_vocabulary s = {.text = k->v.text, .offsets = k->v.offsets, .types = k->types};
  int64_t n_plain = k->v.n_vocab;
  for (int byte = 0; byte < 256; byte++) {
    s.byte_token[byte] = with_bytes ? (int32_t)k->v.n_vocab : -1;
    if (!with_bytes) continue;
    k->v.types[vocabulary_add(&k->v, &(uint8_t){(uint8_t)byte}, 1)] = LLM_TOKEN_BYTE;
  }
  s.n_vocab = k->v.n_vocab;
  s.unknown = unknown;
  s.by_bytes = &k->table;
  s.scores = malloc(sizeof k->scores);
  memcpy(s.scores, k->scores, sizeof k->scores);
  CHECK(token_table_init(&k->table, (size_t)k->v.n_vocab, NULL) == LLM_OK);
  for (int64_t id = 0; id < k->v.n_vocab; id++) k->types[id] = (uint8_t)k->v.types[id];
  for (int64_t id = 0; id < n_plain; id++) {
    name key = {k->v.text + k->v.offsets[id], (size_t)(k->v.offsets[id + 1] - k->v.offsets[id])};
    token_slot_set(token_table_slot(&k->table, key), key, (int32_t)id);
  }
  CHECK(spm_new(&k->s, &s, NULL) == LLM_OK);
}

static void discard(scored *k) {
  spm_free(k->s);
  token_table_free(&k->table);
}

static size_t encode(const scored *k, const char *text, size_t n, int32_t *ids, size_t capacity) {
  piece_cache cache;
  id_sink sink = {ids, capacity, 0};
  CHECK(cache_init(&cache, n, NULL) == LLM_OK);
  CHECK(spm_encode(k->s, (const uint8_t *)text, n, &cache, &sink, NULL) == LLM_OK);
  free(cache.entries);
  return sink.n;
}

static void expect(const scored *k, const char *text, const char *want) {
  int32_t ids[64];
  size_t n = encode(k, text, strlen(text), ids, 64);
  char got[512] = "";
  for (size_t i = 0; i < n; i++)
    snprintf(got + strlen(got), sizeof got - strlen(got), i ? " %d" : "%d", (int)ids[i]);
  CHECK_MSG(strcmp(got, want) == 0, "\"%s\": %s, expected %s", text, got, want);
}

/* ---- the definition ---- */

/* Highest score first, leftmost first, over parts of `text` that end at ends[0..n). */
static size_t merge_slowly(const scored *k, const char *text, size_t *ends, size_t n) {
  for (;;) {
    size_t best = n;
    float highest = 0;
    for (size_t i = 0; i + 1 < n; i++) {
      size_t begin = i ? ends[i - 1] : 0;
      int32_t id = vocabulary_find(&k->v, text + begin, ends[i + 1] - begin);
      if (id < 0 || k->v.types[id] == LLM_TOKEN_BYTE) continue;
      if (best < n && k->scores[id] <= highest) continue;
      best = i;
      highest = k->scores[id];
    }
    if (best == n) return n;
    memmove(ends + best, ends + best + 1, (n - best - 1) * sizeof *ends);
    n--;
  }
}

static void test_merging(void) {
  static const char letters[] = "ab c";
  for (int round = 0; round < 200; round++) {
    scored *k = calloc(1, sizeof *k);
    uint32_t n_letters = 2 + random_below(3), skipped = random_below(6);
    for (uint32_t i = 0; i < n_letters; i++)
      if (i != skipped) add(k, (char[]){letters[i], 0}, 0); /* else an unknown character */
    for (int i = 0; i < 30; i++) {                          /* few scores, so that many are equal */
      char text[8] = "";
      uint32_t n = 2 + random_below(5);
      for (uint32_t c = 0; c < n; c++) text[c] = letters[random_below(n_letters)];
      if (vocabulary_find(&k->v, text, n) < 0) add(k, text, (float)random_below(5) - 2.5f);
    }
    int64_t n_plain = k->v.n_vocab;
    build(k, 1, -1);
    for (int t = 0; t < 20; t++) { /* on both sides of the short limit */
      char text[128];
      size_t ends[128], n = 1 + random_below(t % 2 ? 30 : 128), n_want = 0;
      int32_t got[128], want[128];
      for (size_t i = 0; i < n; i++) {
        text[i] = letters[random_below(n_letters)];
        ends[i] = i + 1;
      }
      size_t n_parts = merge_slowly(k, text, ends, n);
      for (size_t i = 0, begin = 0; i < n_parts; begin = ends[i++]) {
        int32_t id = vocabulary_find(&k->v, text + begin, ends[i] - begin);
        if (id >= n_plain) id = -1; /* the byte token of an unknown letter */
        want[n_want++] = id >= 0 ? id : (int32_t)n_plain + text[begin];
      }
      size_t n_got = encode(k, text, n, got, 128);
      CHECK_MSG(n_got == n_want && memcmp(got, want, n_want * sizeof *want) == 0,
                "round %d: \"%.*s\": %zu ids, expected %zu", round, (int)n, text, n_got, n_want);
    }
    discard(k);
    free(k);
  }
}

/* ---- unknown characters ---- */

static void test_bytes(void) {
  scored *k = calloc(1, sizeof *k);
  add(k, "a", 0), add(k, "\xc3\xa9", 0), add(k, "a\xc3\xa9", -1), add(k, "\xff", -1);
  build(k, 1, 0);
  expect(k, "a\xc3\xa9\xc3\xa9", "2 1"); /* é is one symbol */
  expect(k, "\xc3\xa8", "199 172");      /* 4 + the byte */
  expect(k, "a\xc3", "0 199");           /* cut inside a character */
  expect(k,
         "\xe2\x82"
         "a\xfe",
         "230 134 0 258");
  expect(k, "\xff", "3"); /* a token of such a byte is a token */
  int32_t ids[4];
  CHECK(encode(k, "\0\0", 2, ids, 4) == 2 && ids[0] == 4 && ids[1] == 4);
  CHECK(encode(k, "", 0, ids, 4) == 0);
  discard(k);
  free(k);
}

static void test_unknown(void) {
  scored *k = calloc(1, sizeof *k);
  k->v.types[add(k, "<unk>", 0)] = LLM_TOKEN_UNKNOWN;
  k->v.types[add(k, "c", 0)] = LLM_TOKEN_CONTROL;
  add(k, "a", 0), add(k, " a", 0), add(k, "xy", 0), add(k, " ", 0);
  build(k, 0, 0);
  expect(k, "bbb", "0");      /* a run of unknown characters is one token */
  expect(k, "abba", "2 0 2"); /* between others too */
  expect(k, "b b", "0 5 0");
  expect(k, "xyx", "4 0"); /* a token of characters that are none */
  expect(k, "c a", "0 3"); /* a control token is not made from text */
  expect(k, "<unk>", "0");
  expect(k, "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", "0"); /* past the cache */
  discard(k);
  k->s = NULL;
  build(k, 0, -1);
  expect(k, "abba", "2 2"); /* without one they are dropped */
  discard(k);
  free(k);
}

/* Runs of unknown characters stay one token across words that the cache knows. */
static void test_unknown_across_words(void) {
  scored *k = calloc(1, sizeof *k);
  k->v.types[add(k, "<unk>", 0)] = LLM_TOKEN_UNKNOWN;
  add(k, "a", 0);
  build(k, 0, 0);
  expect(k, "b b b ab b", "0 1 0"); /* the space is unknown as well */
  expect(k, " b b b b b b", "0");
  discard(k);
  free(k);
}

/* ---- unused tokens ---- */

static void test_unused(void) {
  scored *k = calloc(1, sizeof *k);
  add(k, "a", 0), add(k, "b", 0), add(k, "c", 0);
  k->v.types[add(k, "ab", -1)] = LLM_TOKEN_UNUSED;   /* 3 */
  add(k, "abc", -2);                                 /* 4: made of an unused one */
  k->v.types[add(k, "bb", -3)] = LLM_TOKEN_UNUSED;   /* 5 */
  k->v.types[add(k, "bbbb", -4)] = LLM_TOKEN_UNUSED; /* 6: of unused ones */
  k->v.types[add(k, "x", 0)] = LLM_TOKEN_UNUSED;     /* 7: one character */
  k->v.types[add(k, "acab", 0)] = LLM_TOKEN_UNUSED;  /* 8: nothing makes it */
  build(k, 1, -1);
  expect(k, "ab", "0 1");
  expect(k, "abc", "4");
  expect(k, "bbbb", "1 1 1 1");
  expect(k, "bbbba", "1 1 1 1 0");
  expect(k, "x", "129"); /* 9 + the byte */
  expect(k, "acab", "0 2 0 1");
  discard(k);
  free(k);
}

/* ---- cutting ---- */

/* Where a token goes on past a space, text is not cut there. */
static void test_spaces(void) {
  scored *k = calloc(1, sizeof *k);
  add(k, "a", 0), add(k, " ", 0), add(k, "a a", 5), add(k, "b", 0), add(k, " a", 4);
  add(k, "a ", 3), add(k, "  ", 2), add(k, " b", 1);
  build(k, 1, -1);
  expect(k, "a a", "2");
  expect(k, "a a a a", "2 4 4");
  expect(k, "b a b", "3 4 7");
  expect(k, "b  a", "3 1 4");
  expect(k, "    ", "6 6");
  discard(k);
  free(k);
}

/* Ten million letters without a space: n log n, so seconds. */
static void test_long_word(void) {
  scored *k = calloc(1, sizeof *k);
  add(k, "a", 0), add(k, "b", 0);
  for (size_t n = 2; n <= 64; n *= 2) {
    char text[65] = "";
    memset(text, 'a', n);
    add(k, text, (float)n);
  }
  build(k, 1, -1);
  size_t n = 10 * 1000 * 1000;
  char *text = malloc(n);
  memset(text, 'a', n);
  clock_t start = clock();
  CHECK_MSG(encode(k, text, n, NULL, 0) == n / 64, "%zu", encode(k, text, n, NULL, 0));
  for (size_t i = 0; i < n; i++) text[i] = random_below(8) ? 'a' : 'b';
  CHECK(encode(k, text, n, NULL, 0) > n / 64);
  double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
  CHECK_MSG(seconds < 120, "%.1f s for twice ten megabytes", seconds); /* 3 s; n^2 would be days */
  free(text);
  discard(k);
  free(k);
}

int main(void) {
  test_merging();
  test_bytes();
  test_unknown();
  test_unknown_across_words();
  test_unused();
  test_spaces();
  test_long_word();
  return check_report("test_tokenizer_spm");
}
