/* train_documents.c: duplicates by a Bloom filter (1970), near duplicates by MinHash with one
 * permutation (Li, Owen, Zhang 2012), empty bins filled from the next (Shrivastava, Li 2014), whose
 * bands go into such a filter (LSHBloom, 2024). Trainer; depends on hash, unicode. A word is a run
 * of ASCII letters and digits, case ignored, and of characters of two bytes; one of three or four
 * bytes is a word of its own, as Chinese puts no spaces, but for punctuation and symbols. */
#include "train_documents.h"

#include <string.h>

#include "hash.h"
#include "unicode.h"

/* ---- the filter ---- */

static int bloom_has(const uint8_t *bits, uint64_t mask, int32_t n_hashes, uint64_t key) {
  uint64_t at = key, step = hash_mix(1, key) | 1;
  for (int32_t i = 0; i < n_hashes; i++, at += step)
    if (!(bits[(at & mask) >> 3] >> (at & 7) & 1)) return 0;
  return 1;
}

uint64_t llm_bloom_add(uint8_t *bits, uint64_t n_bits, int32_t n_hashes, const uint64_t *keys,
                       uint64_t n_documents, int32_t n_keys, uint8_t *seen) {
  uint64_t mask = n_bits - 1, n_set = 0;
  for (uint64_t d = 0; d < n_documents; d++, keys += n_keys) {
    seen[d] = 0;
    for (int32_t k = 0; k < n_keys && !seen[d]; k++)
      seen[d] = (uint8_t)bloom_has(bits, mask, n_hashes, keys[k]);
    for (int32_t k = 0; k < n_keys && !seen[d]; k++) {
      uint64_t at = keys[k], step = hash_mix(1, keys[k]) | 1;
      for (int32_t i = 0; i < n_hashes; i++, at += step) {
        uint8_t *byte = &bits[(at & mask) >> 3], bit = (uint8_t)(1 << (at & 7));
        n_set += !(*byte & bit);
        *byte |= bit;
      }
    }
  }
  return n_set;
}

/* ---- MinHash ---- */

enum { N_BINS = LLM_MINHASH_BANDS * LLM_MINHASH_ROWS, RUN = 5, BIN_BITS = 7 };

_Static_assert(N_BINS == 1 << BIN_BITS, "a bin is chosen by the upper bits of a hash");

static uint64_t stir(uint64_t x) { /* the finalizer of SplitMix64 */
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

typedef struct runs {
  uint64_t words[RUN], n_words; /* hashes of the last words, in a ring */
  uint64_t least[N_BINS];       /* UINT64_MAX: empty */
} runs;

static void add_run(runs *r, uint64_t n) {
  uint64_t hash = 0;
  for (uint64_t i = r->n_words - n; i < r->n_words; i++)
    hash = stir(hash + 0x9e3779b97f4a7c15u + r->words[i % RUN]);
  uint64_t *least = &r->least[hash >> (64 - BIN_BITS)];
  if (hash < *least) *least = hash;
}

static void add_word(runs *r, uint64_t hash) {
  r->words[r->n_words++ % RUN] = hash;
  if (r->n_words >= RUN) add_run(r, RUN);
}

enum { BETWEEN, PART, WHOLE }; /* of words: what a character is */

/* Blocks of Unicode from one to before the other: punctuation and symbols, those of Chinese and
 * Japanese, their wide ASCII before and behind the digits, emoji. */
static const uint32_t between[][2] = {
    {0x2000, 0x2c00}, {0x3000, 0x3040}, {0xff00, 0xff10}, {0xff1a, 0xff21}, {0x1f000, 0x1fb00}};

static int kind_of(uint32_t code_point) {
  uint32_t lower = code_point | 0x20;
  if (code_point < 0x80)
    return (lower >= 'a' && lower <= 'z') || (code_point >= '0' && code_point <= '9');
  if (code_point < 0x800) return PART;
  for (size_t i = 0; i < sizeof between / sizeof *between; i++)
    if (code_point >= between[i][0] && code_point < between[i][1]) return BETWEEN;
  return WHOLE;
}

static uint64_t fnv(uint64_t hash, const uint8_t *bytes, size_t n) { /* FNV-1a, case ignored */
  for (size_t i = 0; i < n; i++) {
    uint8_t byte = bytes[i] >= 'A' && bytes[i] <= 'Z' ? bytes[i] | 0x20 : bytes[i];
    hash = (hash ^ byte) * 0x100000001b3u;
  }
  return hash;
}

static void minhash_one(const uint8_t *text, uint64_t n, runs *r) {
  const uint64_t none = 0xcbf29ce484222325u; /* what FNV begins with */
  r->n_words = 0;
  memset(r->least, 0xff, sizeof r->least);
  uint64_t hash = none;
  for (size_t i = 0, length; i < n; i += length) {
    uint32_t code_point = text[i];
    length = code_point < 0x80 ? 1 : utf8_decode(text + i, n - i, &code_point);
    int kind = kind_of(code_point);
    if (kind != PART && hash != none) add_word(r, hash), hash = none;
    if (kind != BETWEEN) hash = fnv(hash, text + i, length);
    if (kind == WHOLE) add_word(r, hash), hash = none;
  }
  if (hash != none) add_word(r, hash);
  if (r->n_words == 0) add_word(r, hash_bytes(text, n)); /* no word: as it stands */
  if (r->n_words < RUN) add_run(r, r->n_words);
}

/* Empty bins take what the next full one holds, told apart by its distance. */
static void fill_bins(runs *r) {
  uint64_t filled[N_BINS];
  for (int b = 0; b < N_BINS; b++) {
    int far = 0;
    while (r->least[(b + far) % N_BINS] == UINT64_MAX) far++;
    filled[b] = stir(r->least[(b + far) % N_BINS] + (uint64_t)far * 0x9e3779b97f4a7c15u);
  }
  memcpy(r->least, filled, sizeof filled);
}

void llm_minhash(const uint8_t *text, const uint64_t *offsets, uint64_t n_documents,
                 uint64_t *keys) {
  runs r;
  for (uint64_t d = 0; d < n_documents; d++) {
    minhash_one(text + offsets[d], offsets[d + 1] - offsets[d], &r);
    fill_bins(&r);
    for (int b = 0; b < LLM_MINHASH_BANDS; b++) {
      uint64_t key = (uint64_t)b;
      for (int i = 0; i < LLM_MINHASH_ROWS; i++)
        key = stir(key + 0x9e3779b97f4a7c15u + r.least[b * LLM_MINHASH_ROWS + i]);
      *keys++ = key;
    }
  }
}
