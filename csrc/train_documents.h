/* train_documents.h: finding documents that were there before. Trainer only; the text between the
 * marker lines is its cffi declaration. */
#ifndef LLM_TRAIN_DOCUMENTS_H
#define LLM_TRAIN_DOCUMENTS_H

#include "llm.h"

/* cffi: begin */

/* A Bloom filter of n_bits, a power of two, n_hashes of them for a key. Documents come in order,
 * n_keys keys each, keys (n_documents, n_keys). seen[d] becomes 1 where any key of document d is in
 * the filter already, of this call's earlier documents too; else 0, and its keys go in. Returns how
 * many bits were newly set. No key that went in is ever missed; with a share f of the bits set, a
 * new key is found by mistake with probability f^n_hashes. */
uint64_t llm_bloom_add(uint8_t *bits, uint64_t n_bits, int32_t n_hashes, const uint64_t *keys,
                       uint64_t n_documents, int32_t n_keys, uint8_t *seen);

enum { LLM_MINHASH_BANDS = 16, LLM_MINHASH_ROWS = 8 };

/* What near duplicates share: keys (n_documents, LLM_MINHASH_BANDS) of the documents' runs of five
 * words. Two documents that have a share J of all their runs in common get one equal key at least
 * with probability about 1 - (1 - J^8)^16: 0.06 at J = 0.5, 0.61 at 0.7, 0.95 at 0.8, 1 at 0.9. */
void llm_minhash(const uint8_t *text, const uint64_t *offsets, uint64_t n_documents,
                 uint64_t *keys);

/* cffi: end */

#endif
