/* tokenizer_cache.h: where encoded ids go, and the pieces that one call has encoded already: most
 * of a text is words seen before. Layer 2. */
#ifndef LLM_TOKENIZER_CACHE_H
#define LLM_TOKENIZER_CACHE_H

#include <stdlib.h>

#include "error.h"
#include "hash.h"

/* Where ids go: counted past the capacity, written up to it. */
typedef struct id_sink {
  int32_t *dst;
  size_t capacity, n;
} id_sink;

static inline void id_sink_put(id_sink *sink, int32_t id) {
  if (sink->n < sink->capacity) sink->dst[sink->n] = id;
  sink->n++;
}

enum {
  CACHED_BYTES = 16,
  CACHED_IDS = 11, /* so that an entry is 64 bytes */
  CACHE_MAX = 8192 /* entries; half a megabyte stays in the second-level cache */
};

typedef struct cached { /* n_bytes 0: free */
  uint64_t bytes[CACHED_BYTES / 8];
  uint8_t n_bytes, n_ids;
  int32_t ids[CACHED_IDS];
} cached;

_Static_assert(sizeof(cached) == 64, "one cache line");

typedef struct piece_cache {
  cached *entries; /* a power of two */
  size_t mask;
} piece_cache;

/* For a text of n_bytes. */
static inline llm_status cache_init(piece_cache *cache, size_t n_bytes, llm_error *err) {
  size_t n = 16;
  while (n < CACHE_MAX && n < n_bytes / 8) n *= 2;
  cache->mask = n - 1;
  cache->entries = calloc(n, sizeof *cache->entries);
  return cache->entries ? LLM_OK : error_nomem(err, n * sizeof *cache->entries, "encoding");
}

/* The entry for a piece, made its own where another piece had it; NULL: the piece is too long.
 * *hit: it holds the piece's ids; else cache_fill them in. */
static inline cached *cache_entry(const piece_cache *cache, const uint8_t *piece, size_t n_bytes,
                                  int *hit) {
  *hit = 0;
  if (n_bytes > CACHED_BYTES) return NULL;
  uint64_t bytes[CACHED_BYTES / 8] = {0};
  memcpy(bytes, piece, n_bytes);
  cached *entry = &cache->entries[hash_mix(bytes[0], bytes[1]) & cache->mask];
  *hit = entry->n_bytes == n_bytes && entry->bytes[0] == bytes[0] && entry->bytes[1] == bytes[1];
  if (!*hit) memcpy(entry->bytes, bytes, sizeof bytes);
  return entry;
}

static inline void cache_fill(cached *entry, size_t n_bytes, const int32_t *ids, size_t n) {
  entry->n_bytes = n <= CACHED_IDS ? (uint8_t)n_bytes : 0;
  entry->n_ids = (uint8_t)n;
  if (entry->n_bytes) memcpy(entry->ids, ids, n * sizeof *ids);
}

#endif
