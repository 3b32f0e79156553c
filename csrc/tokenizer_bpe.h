/* tokenizer_bpe.h: byte-level byte-pair encoding: bytes to ids by a table of ranked merges.
 * Layer 2. Knows nothing of spellings, special tokens or files: tokenizer_load.c resolves those to
 * ids. */
#ifndef LLM_TOKENIZER_BPE_H
#define LLM_TOKENIZER_BPE_H

#include "pretokenize.h"
#include "tokenizer_cache.h"
#include "tokenizer_table.h"

typedef struct bpe bpe;

/* Tokens by their bytes, and the type of each id. */
typedef struct whole_tokens {
  const token_table *table;
  const uint8_t *types;
} whole_tokens;

/* byte_token[b] is the token of the single byte b, -1 where there is none: such bytes are dropped
 * before merging, so that their neighbours meet (as Hugging Face's tokenizers does it). n_merges is
 * how many bpe_add_merge calls will follow at most, below 2^31. */
llm_status bpe_new(bpe **out, const pretokenizer *pre, const int32_t byte_token[256],
                   size_t n_merges, llm_error *err);
void bpe_free(bpe *b);

/* Ranks are below 2^31, the lowest merges first. 0: the pair has a merge already, nothing was
 * added. */
int bpe_add_merge(bpe *b, int32_t left, int32_t right, int32_t product, int64_t rank);
/* Asks for what bpe_add_merge will look at. */
void bpe_prefetch_merge(const bpe *b, int32_t left, int32_t right);

/* From now on a piece that is a normal token is that token at once. The table is borrowed. */
void bpe_take_whole(bpe *b, whole_tokens whole);

/* One piece, with the merges added so far and no whole tokens. */
llm_status bpe_merge_piece(const bpe *b, const uint8_t *piece, size_t n_bytes, id_sink *out,
                           llm_error *err);

/* Any bytes; O(n log n) in the longest piece. The cache is of this bpe only. LLM_ERR_NOMEM leaves
 * the sink undefined. */
llm_status bpe_encode(const bpe *b, const uint8_t *text, size_t n_bytes, const piece_cache *cache,
                      id_sink *out, llm_error *err);

#endif
