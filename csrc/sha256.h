/* sha256.h: SHA-256. Layer 0. */
#ifndef LLM_SHA256_H
#define LLM_SHA256_H

#include <stddef.h>
#include <stdint.h>

/* SHA-256 of bytes, 64 hex digits and a NUL. */
void sha256_hex(const void *data, size_t n_bytes, char hex[65]);

/* The compression function over whole blocks: the plain rounds, and the fastest of this machine. */
void sha256_blocks_plain(uint32_t state[8], const uint8_t *data, size_t n_blocks);
void sha256_blocks(uint32_t state[8], const uint8_t *data, size_t n_blocks);

#endif
