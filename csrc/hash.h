/* hash.h: hashing short keys for open-addressing tables, and their memory. Layer 0. Fast and well
 * spread over honest keys; not a defence against chosen ones. Take the low bits for the place in a
 * table. */
#ifndef LLM_HASH_H
#define LLM_HASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint64_t hash_mix(uint64_t hash, uint64_t word) {
  hash = (hash ^ word) * 0x9e3779b97f4a7c15u; /* 2^64 / golden ratio */
  return hash ^ hash >> 32;
}

/* The first 8 bytes of a key, zeros after a shorter one. Reads overlap rather than go byte by byte:
 * most keys are shorter than a word. */
static inline uint64_t key_head(const uint8_t *p, size_t n) {
  uint64_t head = 0;
  if (n >= 8) {
    memcpy(&head, p, 8);
  } else if (n >= 4) {
    uint32_t first, last;
    memcpy(&first, p, 4);
    memcpy(&last, p + n - 4, 4);
    head = first | (uint64_t)last << 8 * (n - 4);
  } else if (n) {
    head = p[0] | (uint64_t)p[n / 2] << 8 * (n / 2) | (uint64_t)p[n - 1] << 8 * (n - 1);
  }
  return head;
}

static inline uint64_t hash_bytes(const uint8_t *p, size_t n) {
  uint64_t hash = hash_mix(n, key_head(p, n));
  for (size_t i = 8; i < n; i += 8) hash = hash_mix(hash, key_head(p + (i + 8 < n ? i : n - 8), 8));
  return hash;
}

/* Zeros, n_bytes of them, to be freed by free(); NULL: no memory. Keys fall all over a table: where
 * the system has large pages, a large table costs one page fault and no misses of the TLB. */
void *hash_table_new(size_t n_bytes);

#endif
