/* sha256.h: SHA-256 of a stream of bytes. Layer 0. */
#ifndef LLM_SHA256_H
#define LLM_SHA256_H

#include "llm.h"

typedef struct sha256 {
  uint32_t state[8];
  uint64_t n_bytes;  /* taken so far */
  uint8_t block[64]; /* the first n_bytes % 64 are waiting */
} sha256;

void sha256_init(sha256 *s);
void sha256_update(sha256 *s, const void *data, size_t n_bytes);
/* 64 hex digits and a NUL; *s is spent. */
void sha256_final(sha256 *s, char hex[65]);

/* The compression function over whole blocks: the plain rounds, and the fastest of this machine. */
void sha256_blocks_plain(uint32_t state[8], const uint8_t *data, size_t n_blocks);
void sha256_blocks(uint32_t state[8], const uint8_t *data, size_t n_blocks);

#endif
