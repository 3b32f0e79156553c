/* tokenizer_bpe.h: byte-level byte-pair encoding: bytes to ids by a table of ranked merges.
 * Layer 2. Knows nothing of spellings, special tokens or files: tokenizer_load.c resolves those to
 * ids. */
#ifndef LLM_TOKENIZER_BPE_H
#define LLM_TOKENIZER_BPE_H

#include "llm.h"
#include "pretokenize.h"

typedef struct bpe bpe;

/* Where ids go: counted past the capacity, written up to it. */
typedef struct id_sink {
  int32_t *dst;
  size_t capacity, n;
} id_sink;

static inline void id_sink_put(id_sink *sink, int32_t id) {
  if (sink->n < sink->capacity) sink->dst[sink->n] = id;
  sink->n++;
}

/* byte_token[b] is the token of the single byte b, -1 where there is none: such bytes are dropped
 * before merging, so that their neighbours meet (as Hugging Face's tokenizers does it). n_merges is
 * how many bpe_add_merge calls will follow at most, below 2^31. */
llm_status bpe_new(bpe **out, pretokenizer next, const int32_t byte_token[256], size_t n_merges,
                   llm_error *err);
void bpe_free(bpe *b);

/* Appends the merge with the next rank. 0: the pair has a merge already, nothing was added. */
int bpe_add_merge(bpe *b, int32_t left, int32_t right, int32_t product);

/* Any bytes; O(n log n) in the longest piece. LLM_ERR_NOMEM leaves the sink undefined. */
llm_status bpe_encode(const bpe *b, const uint8_t *text, size_t n_bytes, id_sink *out,
                      llm_error *err);

#endif
