/* fuzz_tokenizer.c: any bytes as text. The first byte chooses pre-tokenizer, vocabulary and whether
 * special tokens are parsed; the rest is encoded and must come back, but for bytes that the second
 * vocabulary lacks. Built with libFuzzer by `make fuzz`, or with replay.c over saved files. */
#include <stdlib.h>

#include "../c/vocabulary_sample.h"

enum { PRE_SMOLLM = 1, PARSE_SPECIAL = 2, LACKS_BYTES = 4 };

/* All bytes, or only those above 'm', and merges that reach long tokens and across characters. */
static llm_tokenizer *vocabulary_of(int flags) {
  static vocabulary v;
  memset(&v, 0, sizeof v);
  int first = flags & LACKS_BYTES ? 'm' : 0;
  for (int byte = first; byte < 256; byte++) vocabulary_add(&v, &(uint8_t){(uint8_t)byte}, 1);
  static const char *const pairs[] = {"xx", "xy", "yx", "zz", "\xc3\xa9", "\xe2\x80", "\xf0\x9f"};
  for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
    vocabulary_merge(&v, (uint8_t)pairs[i][0] - first, (uint8_t)pairs[i][1] - first);
  int32_t n_bytes = 256 - first;
  vocabulary_merge(&v, n_bytes, n_bytes);
  vocabulary_merge(&v, n_bytes, n_bytes + 1);
  vocabulary_merge(&v, n_bytes + 7, n_bytes + 7);
  static const char *const special[] = {"<x>", "<x><y>", "x<", "~~"};
  for (size_t i = 0; i < 4; i++)
    v.types[vocabulary_add(&v, special[i], strlen(special[i]))] =
        i < 3 ? LLM_TOKEN_CONTROL : LLM_TOKEN_USER_DEFINED;
  return vocabulary_tokenizer(&v, flags & PRE_SMOLLM ? "smollm" : "gpt-2");
}

static size_t decode(const llm_tokenizer *t, const int32_t *ids, size_t n_ids, char *dst,
                     size_t capacity) {
  size_t n = 0;
  if (llm_tokenizer_decode(t, ids, n_ids, 1, dst, capacity, &n, NULL)) abort();
  return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
  static llm_tokenizer *tokenizers[8];
  if (n_bytes == 0) return 0;
  int flags = data[0] & 7;
  if (!tokenizers[flags]) tokenizers[flags] = vocabulary_of(flags);
  const llm_tokenizer *t = tokenizers[flags];
  const char *text = (const char *)data + 1;
  size_t n = n_bytes - 1, n_ids, n_again;

  int32_t *ids = malloc((n + 1) * sizeof *ids);
  char *back = malloc(n + 1), *want = malloc(n + 1);
  int special = (flags & PARSE_SPECIAL) != 0;
  if (llm_tokenizer_encode(t, text, n, special, ids, n, &n_ids, NULL)) abort();
  if (llm_tokenizer_encode(t, text, n, special, NULL, 0, &n_again, NULL) != (n_ids ? 1 : 0))
    abort();
  if (n_again != n_ids || n_ids > n) abort();
  size_t n_back = decode(t, ids, n_ids, back, n);

  /* Special tokens hold bytes that the second vocabulary lacks: compare what it can spell. */
  size_t n_want = 0, n_got = 0;
  int least = flags & LACKS_BYTES ? 'm' : 0;
  for (size_t i = 0; i < n; i++)
    if ((uint8_t)text[i] >= least) want[n_want++] = text[i];
  for (size_t i = 0; i < n_back; i++)
    if ((uint8_t)back[i] >= least) back[n_got++] = back[i];
  if (n_got != n_want || memcmp(back, want, n_want)) abort();
  free(ids);
  free(back);
  free(want);
  return 0;
}
