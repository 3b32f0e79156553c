/* fuzz_tokenizer.c: any bytes as text. The first byte chooses pre-tokenizer or SentencePiece,
 * vocabulary and whether special tokens are parsed; the rest is encoded and must come back, but for
 * what SentencePiece reads as a space and for bytes that the second vocabulary lacks. Built with
 * libFuzzer by `make fuzz`, or with replay.c over saved files. */
#include <stdlib.h>

#include "../c/tokenizer_recipe.h"
#include "../c/vocabulary_sample.h"

static const char *const pres[] = {"gpt-2", "smollm", "llama-bpe", "cl100k",
                                   "qwen2", "gpt-4o", "tekken"};
enum { PRE = 7, SPM = 7, PARSE_SPECIAL = 8, LACKS_BYTES = 16, N_FLAGS = 32 };

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
  return vocabulary_tokenizer(&v, pres[flags & PRE]);
}

/* Byte tokens, or an unknown token instead, and pieces with spaces inside and at both ends. */
static llm_tokenizer *spm_of(int flags) {
  static const char *const words[] = {"\xe2\x96\x81",
                                      "x",
                                      "y",
                                      "\xe2\x96\x81x",
                                      "xx",
                                      "xy",
                                      "yx\xe2\x96\x81x",
                                      "\xe2\x96\x81\xe2\x96\x81",
                                      "\xc3\xa9",
                                      "xxxx",
                                      "xxxxx",
                                      "y\xe2\x96\x81"};
  static char names[256][8];
  static recipe r; /* no types: normal */
  memset(&r, 0, sizeof r);
  r.model = "llama", r.n_merges = MAX_ENTRIES;
  r.tokens_type = GGUF_STRING, r.types_type = GGUF_INT32, r.scores_type = GGUF_FLOAT32;
  r.bos = r.eos = r.eot = r.eom = r.unknown = r.padding = -1;
  r.add_bos = r.add_eos = r.add_space = r.removes = -1;
  size_t n = 0;
  for (size_t i = 0; i < sizeof words / sizeof *words; i++, n++) {
    r.tokens[n] = words[i], r.scores[n] = (float)(i % 5), r.types[n] = i == 10 ? 5 : 1;
  }
  r.tokens[n] = "<x>", r.types[n++] = LLM_TOKEN_CONTROL;
  r.tokens[n] = "~~", r.types[n++] = LLM_TOKEN_USER_DEFINED;
  if (flags & LACKS_BYTES) r.tokens[n] = "<unk>", r.types[n++] = LLM_TOKEN_UNKNOWN;
  for (int byte = 0; byte < 256 && !(flags & LACKS_BYTES); byte++, n++) {
    snprintf(names[byte], sizeof names[byte], "<0x%02X>", (unsigned)byte);
    r.tokens[n] = names[byte], r.types[n] = LLM_TOKEN_BYTE;
  }
  r.n_tokens = r.n_types = r.n_scores = n;
  return accept(&r);
}

static size_t decode(const llm_tokenizer *t, const int32_t *ids, size_t n_ids, char *dst,
                     size_t capacity) {
  size_t n = 0, n_pieces = 0;
  if (llm_tokenizer_decode_text(t, ids, n_ids, 1, dst, capacity, &n, NULL)) abort();
  for (size_t i = 0; i < n_ids; i++) {
    char piece[512];
    size_t n_piece = 0;
    if (llm_tokenizer_decode(t, &ids[i], 1, 1, piece, sizeof piece, &n_piece, NULL)) abort();
    n_pieces += n_piece;
  }
  if (n_pieces < n || (!llm_tokenizer_adds_space(t) && n_pieces != n)) abort();
  return n;
}

/* What the tokenizer promises to give back, in place. */
static size_t promised(char *text, size_t n, int flags) {
  size_t n_kept = 0;
  for (size_t i = 0; i < n; i++) {
    int is_mark = (flags & PRE) == SPM && n - i >= 3 && memcmp(text + i, "\xe2\x96\x81", 3) == 0;
    char c = is_mark ? ' ' : text[i];
    if (is_mark) i += 2;
    /* Special tokens hold bytes that the second vocabulary lacks: compare what it can spell. */
    if (!(flags & LACKS_BYTES) || (uint8_t)c >= 'm') text[n_kept++] = c;
  }
  return n_kept;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
  static llm_tokenizer *tokenizers[N_FLAGS];
  if (n_bytes == 0) return 0;
  int flags = data[0] % N_FLAGS;
  if (!tokenizers[flags])
    tokenizers[flags] = (flags & PRE) == SPM ? spm_of(flags) : vocabulary_of(flags);
  const llm_tokenizer *t = tokenizers[flags];
  const char *text = (const char *)data + 1;
  size_t n = n_bytes - 1, n_ids, n_again;
  size_t capacity = llm_tokenizer_adds_space(t) ? 2 * n + 1 : n; /* as llm.h has it */

  int32_t *ids = malloc((capacity + 1) * sizeof *ids);
  char *back = malloc(capacity * 16 + 1), *want = malloc(n + 1);
  int special = (flags & PARSE_SPECIAL) != 0;
  if (llm_tokenizer_encode(t, text, n, special, ids, capacity, &n_ids, NULL)) abort();
  if (llm_tokenizer_encode(t, text, n, special, NULL, 0, &n_again, NULL) != (n_ids ? 1 : 0))
    abort();
  if (n_again != n_ids || n_ids > capacity) abort();
  size_t n_back = decode(t, ids, n_ids, back, capacity * 16);
  memcpy(want, text, n);
  if ((flags & PRE) != SPM || !(flags & LACKS_BYTES)) { /* else unknown tokens */
    size_t n_want = promised(want, n, flags), n_got = promised(back, n_back, flags);
    if (n_got != n_want || memcmp(back, want, n_want)) abort();
  }
  free(ids);
  free(back);
  free(want);
  return 0;
}
