/* tokenizer_train.h: learning the merges of a byte-level BPE from text. Trainer only; the text
 * between the marker lines is its cffi declaration. */
#ifndef LLM_TOKENIZER_TRAIN_H
#define LLM_TOKENIZER_TRAIN_H

#include "llm.h"

/* cffi: begin */

/* Learns a vocabulary of at most n_vocab tokens: ids 0 to 255 are the bytes, 256 + m is what merge
 * m makes, and no two tokens have the same bytes. Document d is text[offsets[d] .. offsets[d + 1]);
 * it is cut into pieces by the pre-tokenizer `pre` and merges never cross a piece. The pair that
 * occurs most often merges first, among equals the one with the smallest ids; learning ends early
 * when no pair occurs twice. merges has room for 2 * (n_vocab - 256) ids, 256 <= n_vocab < 2^31,
 * and gets *n_merges pairs. Memory grows with the distinct pieces (about 40 bytes for each of their
 * bytes), not with the text: where they would have more than most_bytes (below 2^32 - 1) bytes, the
 * rarest so far are forgotten. The result depends on nothing but the arguments.
 */
llm_status llm_bpe_train(const char *pre, const uint8_t *text, const uint64_t *offsets,
                         uint64_t n_documents, int64_t n_vocab, uint32_t most_bytes,
                         int32_t *merges, int64_t *n_merges, llm_error *err);

/* cffi: end */

#endif
