/* tokenizer_spm.h: SentencePiece's byte-pair encoding: characters merge by the score of what they
 * make. Layer 2. Text and tokens are in raw bytes here, with spaces where SentencePiece's files
 * write U+2581; tokenizer.c puts the dummy prefix and cuts out special tokens. */
#ifndef LLM_TOKENIZER_SPM_H
#define LLM_TOKENIZER_SPM_H

#include "tokenizer_cache.h"
#include "tokenizer_table.h"

typedef struct spm spm;

/* Token i is text[offsets[i] .. offsets[i + 1]). All pointers but scores are borrowed and outlive
 * the spm. */
typedef struct spm_vocabulary {
  int64_t n_vocab;
  const token_table *by_bytes;
  const uint8_t *text;
  const uint64_t *offsets;
  const uint8_t *types;
  float *scores;           /* finite; taken over and freed, whatever comes of it */
  int32_t byte_token[256]; /* all -1: characters without a token are unknown */
  int32_t unknown;         /* -1: those are dropped */
} spm_vocabulary;

llm_status spm_new(spm **out, const spm_vocabulary *vocabulary, llm_error *err);
void spm_free(spm *s);

/* Any bytes, O(n log n). Bytes that are not UTF-8 become byte tokens, so that they come back. The
 * cache is of this spm only. */
llm_status spm_encode(const spm *s, const uint8_t *text, size_t n_bytes, const piece_cache *cache,
                      id_sink *out, llm_error *err);

#endif
