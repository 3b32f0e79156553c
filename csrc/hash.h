/* hash.h: hashing short keys for open-addressing tables. Layer 0. Fast and well spread over honest
 * keys; not a defence against chosen ones. Take the low bits for the place in a table. */
#ifndef LLM_HASH_H
#define LLM_HASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint64_t hash_mix(uint64_t hash, uint64_t word) {
  hash = (hash ^ word) * 0x9e3779b97f4a7c15u; /* 2^64 / golden ratio */
  return hash ^ hash >> 32;
}

/* Reads overlap rather than go byte by byte: most keys are shorter than a word. */
static inline uint64_t hash_bytes(const uint8_t *p, size_t n) {
  uint64_t hash = n, word = 0;
  for (; n > 8; p += 8, n -= 8) {
    memcpy(&word, p, 8);
    hash = hash_mix(hash, word);
  }
  if (n >= 4) {
    uint32_t first, last;
    memcpy(&first, p, 4);
    memcpy(&last, p + n - 4, 4);
    word = (uint64_t)last << 32 | first;
  } else if (n) {
    word = (uint64_t)p[0] << 16 | (uint64_t)p[n / 2] << 8 | p[n - 1];
  }
  return hash_mix(hash, word);
}

#endif
