/* Test of tokenizer_train.c: merges against a learner that counts everything anew at every step,
 * and what a vocabulary promises: borders kept, tokens unique, ready for the tokenizer. */
#include "tokenizer_train.h"

#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "pretokenize.h"

enum { MAX_TEXT = 2048, MAX_TOKENS = 256 + 120 };

static const uint32_t MOST = UINT32_MAX - 1; /* bytes of distinct words: all of them */

static uint32_t seed = 7;

static uint32_t random_below(uint32_t n) {
  seed = seed * 1664525 + 1013904223;
  return (seed >> 8) % n;
}

/* ---- the slow learner ---- */

typedef struct slow {
  int32_t ids[MAX_TEXT], piece[MAX_TEXT]; /* symbols and the pieces they lie in */
  size_t n;
  size_t n_tokens;
} slow;

static int slow_pair_at(const slow *s, size_t i, int32_t a, int32_t b) {
  return i + 1 < s->n && s->piece[i] == s->piece[i + 1] && s->ids[i] == a && s->ids[i + 1] == b;
}

/* The most frequent pair, the smallest ids among equals; 0: none occurs twice. */
static int slow_best(const slow *s, int32_t *a, int32_t *b) {
  static int counts[MAX_TOKENS][MAX_TOKENS];
  int best = 1;
  memset(counts, 0, sizeof counts);
  for (size_t i = 0; i + 1 < s->n; i++)
    if (s->piece[i] == s->piece[i + 1]) counts[s->ids[i]][s->ids[i + 1]]++;
  for (size_t x = 0; x < s->n_tokens; x++)
    for (size_t y = 0; y < s->n_tokens; y++)
      if (counts[x][y] > best) {
        best = counts[x][y];
        *a = (int32_t)x;
        *b = (int32_t)y;
      }
  return best > 1;
}

static void slow_merge(slow *s, int32_t a, int32_t b, int32_t product) {
  size_t n = 0;
  for (size_t i = 0; i < s->n; i++, n++) {
    int here = slow_pair_at(s, i, a, b);
    s->piece[n] = s->piece[i];
    s->ids[n] = here ? product : s->ids[i];
    i += (size_t)here;
  }
  s->n = n;
}

static int64_t learn_slowly(const char *text, const uint64_t *offsets, uint64_t n_documents,
                            int64_t n_vocab, int32_t *merges) {
  static slow s;
  memset(&s, 0, sizeof s);
  s.n_tokens = 256;
  int32_t piece = 0, a, b;
  for (uint64_t d = 0; d < n_documents; d++) {
    const uint8_t *document = (const uint8_t *)text + offsets[d];
    size_t n = (size_t)(offsets[d + 1] - offsets[d]);
    for (size_t pos = 0, end; pos < n; pos = end, piece++)
      for (end = pretokenizer_find("gpt-2", 5)->next(document, n, pos); pos < end; pos++) {
        s.ids[s.n] = document[pos];
        s.piece[s.n++] = piece;
      }
  }
  int64_t m = 0;
  while (256 + m < n_vocab && slow_best(&s, &a, &b)) {
    merges[2 * m] = a;
    merges[2 * m + 1] = b;
    slow_merge(&s, a, b, (int32_t)s.n_tokens++);
    m++;
  }
  return m;
}

/* ---- comparison ---- */

static void test_against_slow(void) {
  for (int round = 0; round < 120; round++) {
    char text[MAX_TEXT];
    uint32_t n_letters = 1 + random_below(4), n_bytes = 200 + random_below(MAX_TEXT - 200);
    for (uint32_t i = 0; i < n_bytes; i++)
      text[i] =
          random_below(12) ? (char)('a' + random_below(n_letters)) : "  \n1!"[random_below(5)];
    uint64_t cut = random_below(n_bytes), offsets[] = {0, cut, cut, n_bytes};
    int64_t n_vocab = 256 + random_below(120), n = -1;
    int32_t want[2 * MAX_TOKENS], got[2 * MAX_TOKENS];
    int64_t n_want = learn_slowly(text, offsets, 3, n_vocab, want);
    llm_error err;
    CHECK(llm_bpe_train("gpt-2", (const uint8_t *)text, offsets, 3, n_vocab, MOST, got, &n, &err) ==
          0);
    CHECK_MSG(n == n_want, "round %d: %d merges, expected %d", round, (int)n, (int)n_want);
    for (int64_t i = 0; i < n && i < n_want; i++)
      CHECK_MSG(got[2 * i] == want[2 * i] && got[2 * i + 1] == want[2 * i + 1],
                "round %d, merge %d: %d %d, expected %d %d", round, (int)i, got[2 * i],
                got[2 * i + 1], want[2 * i], want[2 * i + 1]);
  }
}

/* ---- properties ---- */

/* The vocabulary that merges make, as a tokenizer: refuses tokens that are not unique. */
static llm_tokenizer *build(const int32_t *merges, int64_t n_merges) {
  int64_t n_vocab = 256 + n_merges;
  uint64_t *offsets = calloc((size_t)n_vocab + 1, sizeof *offsets);
  uint8_t *text = malloc((size_t)n_vocab * 256);
  for (int64_t t = 0; t < n_vocab; t++) {
    offsets[t + 1] = offsets[t];
    if (t < 256) text[offsets[t + 1]++] = (uint8_t)t;
    for (int half = 0; t >= 256 && half < 2; half++) {
      int32_t part = merges[2 * (t - 256) + half];
      size_t n = (size_t)(offsets[part + 1] - offsets[part]);
      memcpy(text + offsets[t + 1], text + offsets[part], n);
      offsets[t + 1] += n;
    }
    CHECK_MSG(offsets[t + 1] - offsets[t] <= 256, "token %d is too long", (int)t);
  }
  llm_bpe_spec spec = {"gpt-2", n_vocab, text, offsets, NULL, n_merges, merges};
  llm_tokenizer *tokenizer = NULL;
  llm_error err;
  CHECK_MSG(llm_tokenizer_new_bpe(&tokenizer, &spec, &err) == LLM_OK, "%s", err.message);
  free(offsets);
  free(text);
  return tokenizer;
}

/* One word of a megabyte: learning visits places, not words, and tokens stay short. */
static void test_long_word(void) {
  size_t n_bytes = 1 << 20, n_ids = 0;
  char *text = malloc(n_bytes);
  memset(text, 'a', n_bytes);
  for (size_t i = 0; i < n_bytes / 2; i++) text[i] = (char)('a' + random_below(3));
  uint64_t offsets[] = {0, n_bytes};
  int32_t *merges = calloc(2 * 2000, sizeof *merges), *ids = malloc(n_bytes * sizeof *ids);
  int64_t n = 0;
  CHECK(llm_bpe_train("gpt-2", (uint8_t *)text, offsets, 1, 2256, MOST, merges, &n, NULL) ==
        LLM_OK);
  CHECK_MSG(n == 2000, "%d", (int)n);
  llm_tokenizer *t = build(merges, n);
  CHECK(llm_tokenizer_encode(t, text, n_bytes, 0, ids, n_bytes, &n_ids, NULL) == LLM_OK);
  CHECK_MSG(n_ids < n_bytes / 4, "%zu ids", n_ids);
  llm_tokenizer_free(t);
  free(merges);
  free(ids);
  free(text);
}

/* Any bytes may be learned from. */
static void test_noise(void) {
  uint8_t text[50000];
  for (size_t i = 0; i < sizeof text; i++)
    text[i] = (uint8_t)(random_below(2) ? 0xff : random_below(256));
  uint64_t offsets[] = {0, 0, sizeof text};
  int32_t merges[2 * 300];
  int64_t n = 0;
  CHECK(llm_bpe_train("smollm", text, offsets, 2, 556, MOST, merges, &n, NULL) == LLM_OK);
  CHECK(n > 0);
  llm_tokenizer_free(build(merges, n));
}

static void expect_merges(const char *pre, const char *text, const char *want) {
  uint64_t offsets[] = {0, strlen(text)};
  int32_t merges[2 * 64];
  int64_t n = -1;
  CHECK(llm_bpe_train(pre, (const uint8_t *)text, offsets, 1, 256 + 64, MOST, merges, &n, NULL) ==
        0);
  char got[256] = "";
  for (int64_t i = 0; i < 2 * n; i++)
    snprintf(got + strlen(got), sizeof got - strlen(got), i ? " %d" : "%d", merges[i]);
  CHECK_MSG(strcmp(got, want) == 0, "\"%s\": %s, expected %s", text, got, want);
}

static void test_small(void) {
  expect_merges("gpt-2", "", "");
  expect_merges("gpt-2", "ab", "");                    /* once is not enough */
  expect_merges("gpt-2", "ab ab", "97 98");            /* " ab" is another word */
  expect_merges("gpt-2", "aaaa", "97 97");             /* three overlapping places, two merges */
  expect_merges("gpt-2", "cdcd abab", "97 98 99 100"); /* equal counts: smallest ids first */
  expect_merges("gpt-2", "x12 y12", "49 50");
  expect_merges("smollm", "x12 y12", ""); /* digits stand alone */
}

/* Words that come once drive nothing out that comes often; where all fit, nothing changes. */
static void test_bounded(void) {
  enum { N_WORDS = 4000, EACH = 12 };
  static char text[N_WORDS * EACH + 1];
  for (int i = 0; i < N_WORDS; i++)
    snprintf(text + i * EACH, EACH + 1, i % 2 ? " the the the" : " %c%c%c%06d.", 'a' + i % 26,
             'a' + i / 26 % 26, 'a' + i / 676, i);
  uint64_t offsets[] = {0, N_WORDS * EACH};
  int32_t all[2 * 44], most[2 * 44], few[2 * 44];
  int64_t n_all = 0, n_most = 0, n_few = 0;
  const uint8_t *bytes = (const uint8_t *)text;
  CHECK(llm_bpe_train("gpt-2", bytes, offsets, 1, 300, MOST, all, &n_all, NULL) == 0);
  CHECK(llm_bpe_train("gpt-2", bytes, offsets, 1, 300, 100000, most, &n_most, NULL) == 0);
  CHECK(n_all == n_most && memcmp(all, most, (size_t)n_all * 8) == 0);
  CHECK(llm_bpe_train("gpt-2", bytes, offsets, 1, 300, 400, few, &n_few, NULL) == 0);
  CHECK_MSG(n_few >= 3 && few[0] == ' ' && few[1] == 't', "%d merges", (int)n_few);
}

static void test_arguments(void) {
  uint64_t offsets[] = {0, 4, 2};
  const uint8_t *text = (const uint8_t *)"abab";
  int64_t n = 9;
  int32_t merges[8];
  llm_error err;
  CHECK(llm_bpe_train("gpt-9", text, offsets, 1, 260, MOST, merges, &n, &err) == LLM_ERR_ARG &&
        n == 0);
  CHECK_MSG(strstr(err.message, "\"gpt-9\", expected one of gpt-2, smollm"), "%s", err.message);
  CHECK(llm_bpe_train("gpt-2", text, offsets, 1, 255, MOST, merges, &n, &err) == LLM_ERR_ARG);
  CHECK_MSG(strstr(err.message, "n_vocab is 255"), "%s", err.message);
  CHECK(llm_bpe_train("gpt-2", text, offsets, 1, (int64_t)1 << 31, MOST, merges, &n, &err) ==
        LLM_ERR_ARG);
  CHECK(llm_bpe_train("gpt-2", text, offsets, 2, 260, MOST, merges, &n, &err) == LLM_ERR_ARG);
  CHECK_MSG(strstr(err.message, "document 1"), "%s", err.message);
  CHECK(llm_bpe_train("gpt-2", NULL, offsets, 1, 260, MOST, merges, &n, &err) == LLM_ERR_ARG);
  CHECK(llm_bpe_train("gpt-2", text, offsets, 1, 256, MOST, NULL, &n, &err) == LLM_OK && n == 0);
  CHECK(llm_bpe_train("gpt-2", NULL, NULL, 0, 260, MOST, merges, &n, &err) == LLM_OK && n == 0);
}

int main(void) {
  test_against_slow();
  test_long_word();
  test_noise();
  test_small();
  test_bounded();
  test_arguments();
  return check_report("test_tokenizer_train");
}
