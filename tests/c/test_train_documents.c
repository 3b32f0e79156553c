/* test_train_documents.c: a Bloom filter that never misses and errs as often as its header says;
 * MinHash keys that equal texts share, near texts mostly, other texts not; texts of any size. */
#include "train_documents.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

enum { N_HASHES = 7, BANDS = LLM_MINHASH_BANDS };

static uint64_t state = 1;
static uint64_t draw(void) { /* SplitMix64 */
  uint64_t x = state += 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

/* ---- the filter ---- */

static uint64_t count_bits(const uint8_t *bits, uint64_t n_bits) {
  uint64_t n = 0;
  for (uint64_t i = 0; i < n_bits; i++) n += bits[i >> 3] >> (i & 7) & 1;
  return n;
}

/* Fills a filter with n keys, asks for them and for as many as n_new others. */
static void check_filter(uint64_t n_bits, uint64_t n, uint64_t n_new) {
  uint64_t *keys = malloc(n * 8), n_found = 0, n_wrong = 0;
  uint8_t *bits = calloc(n_bits / 8, 1), *seen = malloc(n), *copy = malloc(n_bits / 8);
  for (uint64_t i = 0; i < n; i++) keys[i] = draw();
  uint64_t n_set = llm_bloom_add(bits, n_bits, N_HASHES, keys, n, 1, seen);
  CHECK(n_set == count_bits(bits, n_bits));
  CHECK(llm_bloom_add(bits, n_bits, N_HASHES, keys, n, 1, seen) == 0);
  for (uint64_t i = 0; i < n; i++) n_found += seen[i] == 1;
  CHECK_MSG(n_found == n, "%llu of %llu keys found", (unsigned long long)n_found,
            (unsigned long long)n);
  for (uint64_t i = 0; i < n_new; i++) { /* each asked of the same filter */
    uint64_t key = draw();
    memcpy(copy, bits, n_bits / 8);
    llm_bloom_add(copy, n_bits, N_HASHES, &key, 1, 1, seen);
    n_wrong += seen[0];
  }
  double expected = pow((double)n_set / (double)n_bits, N_HASHES);
  double error = 5 * sqrt(expected * (1 - expected) / (double)n_new) + 1e-9;
  double rate = (double)n_wrong / (double)n_new;
  CHECK_MSG(fabs(rate - expected) <= error, "%g mistaken, expected %g", rate, expected);
  free(keys);
  free(bits);
  free(seen);
  free(copy);
}

static void test_filter(void) {
  check_filter(1 << 10, 101, 20000);
  check_filter(1 << 12, 400, 20000);
  check_filter(1 << 12, 1500, 20000);
  uint8_t bits[2] = {0}, seen[3] = {7, 7, 7};
  CHECK(llm_bloom_add(bits, 16, N_HASHES, NULL, 0, 1, seen) == 0 && seen[0] == 7);
  uint64_t one = draw(); /* eight bits, the fewest */
  CHECK(llm_bloom_add(bits, 8, N_HASHES, &one, 1, 1, seen) == N_HASHES && seen[0] == 0);
  CHECK(llm_bloom_add(bits, 8, N_HASHES, &one, 1, 1, seen) == 0 && seen[0] == 1 && !bits[1]);
  /* A document that was there by any key leaves none of its own. */
  uint64_t keys[] = {1, 2, 2, 1000, 1000, 1001};
  uint8_t room[1 << 10] = {0};
  llm_bloom_add(room, 8 << 10, N_HASHES, keys, 3, 2, seen);
  CHECK(seen[0] == 0 && seen[1] == 1 && seen[2] == 0);
}

/* ---- MinHash ---- */

/* A text of n words of four letters; one in `changed` (0: none) is drawn anew by another seed. */
static size_t write_words(char *text, int n, uint64_t seed, int changed) {
  for (int i = 0; i < n; i++) {
    state = seed + (uint64_t)i * 7919;
    if (changed && i % changed == changed / 2) state += 1u << 20;
    uint64_t bits = draw();
    for (int c = 0; c < 4; c++, bits >>= 5) *text++ = (char)('a' + bits % 26);
    *text++ = ' ';
  }
  return 5 * (size_t)n;
}

static int n_shared(const char *a, size_t n_a, const char *b, size_t n_b) {
  char *both = malloc(n_a + n_b + 1);
  uint64_t offsets[] = {0, n_a, n_a + n_b}, keys[2 * BANDS];
  memcpy(both, a, n_a);
  memcpy(both + n_a, b, n_b);
  llm_minhash((const uint8_t *)both, offsets, 2, keys);
  free(both);
  int n = 0;
  for (int i = 0; i < BANDS; i++) n += keys[i] == keys[BANDS + i];
  return n;
}

static void test_alike(void) {
  enum { N_WORDS = 400, TRIES = 50 };
  static char a[5 * N_WORDS], b[5 * N_WORDS];
  int n_near = 0, n_far = 0;
  for (uint64_t seed = 1; seed <= TRIES; seed++) {
    size_t n = write_words(a, N_WORDS, seed << 32, 0);
    CHECK(n_shared(a, n, a, n) == BANDS);
    write_words(b, N_WORDS, seed << 32, 200); /* 2 words: J = 0.95 of the runs of five */
    n_near += n_shared(a, n, b, n) > 0;
    write_words(b, N_WORDS, seed << 32 | 1u << 31, 0);
    n_far += n_shared(a, n, b, n) > 0;
  }
  CHECK_MSG(n_near == TRIES, "%d of %d near texts found", n_near, TRIES);
  CHECK_MSG(n_far == 0, "%d of %d other texts taken for near", n_far, TRIES);
}

static int same_words(const char *a, const char *b) {
  return n_shared(a, strlen(a), b, strlen(b)) == BANDS;
}

static void test_words(void) {
  CHECK(same_words("\xe4\xb8\xad"
                   "abc",
                   "\xe4\xb8\xad abc")); /* a Chinese word, another */
  CHECK(same_words("abc\xe4\xb8\xad", "ABC \xe4\xb8\xad"));
  CHECK(same_words("\xe4\xbd\xa0\xe5\xa5\xbd", "\xe4\xbd\xa0, \xe5\xa5\xbd"));
  CHECK(same_words("\xe4\xbd\xa0\xef\xbc\x8c\xe5\xa5\xbd\xe3\x80\x82", "\xe4\xbd\xa0\xe5\xa5\xbd"));
  CHECK(same_words("well \xf0\x9f\x99\x82 done", "well done"));
  CHECK(same_words("\xe2\x80\x9cHello\xe2\x80\x9d \xe2\x80\x94 you", "\"Hello\" - you"));
  CHECK(!same_words("tw\xc3\xb6", "tw \xc3\xb6")); /* of two bytes: a letter */
  CHECK(!same_words("\xe4\xb8\xad"
                    "abc",
                    "abc \xe4\xb8\xad"));
}

/* Every size up to a few words, each in memory of its own for the sanitizer. */
static void test_sizes(void) {
  static const char text[] = "One tw\xc3\xb6 \xe4\xbd\xa0\xe5\xa5\xbd 3, four. Five six seven";
  for (size_t n = 0; n < sizeof text; n++) {
    uint64_t offsets[] = {0, n}, keys[BANDS + 1] = {0};
    uint8_t *alone = malloc(n ? n : 1);
    memcpy(alone, text, n);
    keys[BANDS] = 42;
    llm_minhash(alone, offsets, 1, keys);
    CHECK(keys[0] != 0 && keys[BANDS] == 42);
    CHECK(n_shared(text, n, (char *)alone, n) == BANDS);
    free(alone);
  }
  CHECK(n_shared("a b", 3, "A, B!", 5) == BANDS);
  CHECK(n_shared("a b", 3, "a c", 3) == 0);
  CHECK(n_shared("", 0, ".", 1) == 0);
}

int main(void) {
  test_filter();
  test_alike();
  test_words();
  test_sizes();
  return check_report("test_train_documents");
}
