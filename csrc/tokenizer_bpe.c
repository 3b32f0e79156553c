/* tokenizer_bpe.c: byte-level BPE. Layer 2. In each piece the pair with the lowest rank merges
 * first, the leftmost among equals, until no pair has a merge (Sennrich et al. 2016). Short pieces
 * scan for the lowest rank, long ones keep a heap; pieces seen before in the same call come from a
 * cache. */
#include "tokenizer_bpe.h"

#include <inttypes.h>
#include <stdlib.h>

#include "tokenizer_heap.h"

enum { SHORT_PIECE = 32 /* bytes up to which scanning beats the heap */ };

typedef struct merge {
  uint64_t pair; /* left << 32 | right */
  uint32_t rank; /* from 1; 0: a free slot, or no merge */
  int32_t product;
} merge;

struct bpe {
  const pretokenizer *pre;
  whole_tokens whole; /* table NULL: pieces are always merged */
  int32_t byte_token[256];
  merge *slots; /* open addressing, a power of two, at most 3/4 full */
  size_t mask;  /* slots - 1 */
};

/* ---- merges ---- */

llm_status bpe_new(bpe **out, const pretokenizer *pre, const int32_t byte_token[256],
                   size_t n_merges, llm_error *err) {
  size_t n_slots = 16;
  while (n_slots / 4 * 3 < n_merges) n_slots *= 2;
  bpe *b = *out = calloc(1, sizeof *b);
  if (b) b->slots = hash_table_new(n_slots * sizeof *b->slots);
  if (!b || !b->slots) {
    bpe_free(b);
    *out = NULL;
    return error_nomem(err, n_slots * sizeof *b->slots, "the merges of a tokenizer");
  }
  b->pre = pre;
  memcpy(b->byte_token, byte_token, sizeof b->byte_token);
  b->mask = n_slots - 1;
  return LLM_OK;
}

void bpe_free(bpe *b) {
  if (!b) return;
  free(b->slots);
  free(b);
}

static uint64_t pair_of(int32_t left, int32_t right) {
  return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

/* The slot of a pair, or the free one where it would go. */
static merge *merge_slot(const bpe *b, int32_t left, int32_t right) {
  uint64_t pair = pair_of(left, right);
  size_t i = (size_t)hash_mix(0, pair) & b->mask;
  while (b->slots[i].rank && b->slots[i].pair != pair) i = (i + 1) & b->mask;
  return &b->slots[i];
}

int bpe_add_merge(bpe *b, int32_t left, int32_t right, int32_t product, int64_t rank) {
  merge *slot = merge_slot(b, left, right);
  if (slot->rank) return 0;
  *slot = (merge){pair_of(left, right), (uint32_t)rank + 1, product};
  return 1;
}

void bpe_prefetch_merge(const bpe *b, int32_t left, int32_t right) {
  __builtin_prefetch(&b->slots[hash_mix(0, pair_of(left, right)) & b->mask]);
}

void bpe_take_whole(bpe *b, whole_tokens whole) { b->whole = whole; }

/* ---- one short piece ---- */

/* Merges ids[0..n), n <= SHORT_PIECE, in place; returns how many are left. */
static size_t merge_short(const bpe *b, int32_t *ids, size_t n) {
  const merge *pair[SHORT_PIECE]; /* pair[i] joins ids[i] and ids[i + 1] */
  for (size_t i = 0; i + 1 < n; i++) pair[i] = merge_slot(b, ids[i], ids[i + 1]);
  while (n > 1) {
    size_t best = 0;
    uint32_t lowest = UINT32_MAX;
    for (size_t i = 0; i + 1 < n; i++) {
      if (pair[i]->rank - 1 >= lowest) continue; /* rank 0, no merge, wraps to the highest */
      best = i;
      lowest = pair[i]->rank - 1;
    }
    if (lowest == UINT32_MAX) break;
    ids[best] = pair[best]->product;
    n--;
    memmove(ids + best + 1, ids + best + 2, (n - best - 1) * sizeof *ids);
    memmove(pair + best, pair + best + 1, (n - best - 1) * sizeof *pair);
    if (best > 0) pair[best - 1] = merge_slot(b, ids[best - 1], ids[best]);
    if (best + 1 < n) pair[best] = merge_slot(b, ids[best], ids[best + 1]);
  }
  return n;
}

/* ---- one long piece ---- */

#define NONE UINT32_MAX

typedef struct symbol { /* a linked list over the bytes; NONE ends it */
  uint32_t prev, next;
  int32_t id, product; /* product and rank: of the merge with the next symbol */
  uint32_t rank;       /* 0: none, or this symbol was merged away */
} symbol;

typedef struct long_piece {
  const bpe *b;
  symbol *symbols;
  merge_heap heap; /* what went stale is skipped on its turn */
} long_piece;

/* Notes the merge of symbol i with the one after it. */
static void consider(long_piece *p, uint32_t i) {
  symbol *s = &p->symbols[i];
  s->rank = 0;
  if (s->next == NONE) return;
  const merge *m = merge_slot(p->b, s->id, p->symbols[s->next].id);
  s->rank = m->rank;
  s->product = m->product;
  if (m->rank) heap_push(&p->heap, (uint64_t)m->rank << 32 | i);
}

static void merge_at(long_piece *p, uint32_t i) {
  symbol *s = &p->symbols[i], *gone = &p->symbols[s->next];
  s->id = s->product;
  s->next = gone->next;
  gone->rank = 0;
  if (s->next != NONE) p->symbols[s->next].prev = i;
  consider(p, i);
  if (s->prev != NONE) consider(p, s->prev);
}

static llm_status encode_long(const bpe *b, const uint8_t *piece, size_t n_bytes, id_sink *out,
                              llm_error *err) {
  if (n_bytes >= NONE)
    return error_set(err, LLM_ERR_ARG, "one word has %zu bytes, expected less than %" PRIu32,
                     n_bytes, NONE);
  /* Every merge takes one symbol away and adds at most two candidates for the one it used up. */
  const size_t bytes_each = 2 * sizeof(uint64_t) + sizeof(symbol);
  uint64_t *memory = calloc(n_bytes, bytes_each);
  if (!memory) return error_nomem(err, (uint64_t)n_bytes * bytes_each, "merging one long word");
  long_piece p = {b, (symbol *)(memory + 2 * n_bytes), {memory, 0}};

  uint32_t n = 0;
  for (size_t i = 0; i < n_bytes; i++) {
    int32_t id = b->byte_token[piece[i]];
    if (id < 0) continue;
    p.symbols[n] = (symbol){.prev = n - 1, .next = n + 1, .id = id}; /* the first: NONE */
    n++;
  }
  if (n) p.symbols[n - 1].next = NONE;
  for (uint32_t i = 0; i < n; i++) consider(&p, i);
  while (p.heap.n) {
    uint64_t key = heap_pop(&p.heap);
    if (p.symbols[(uint32_t)key].rank == key >> 32) merge_at(&p, (uint32_t)key);
  }
  for (uint32_t i = 0; i < n; i = p.symbols[i].next) id_sink_put(out, p.symbols[i].id);
  free(memory);
  return LLM_OK;
}

/* ---- a text ---- */

/* ids: SHORT_PIECE of them */
static size_t encode_short(const bpe *b, const uint8_t *piece, size_t n_bytes, int32_t *ids) {
  size_t n = 0;
  for (size_t i = 0; i < n_bytes; i++)
    if (b->byte_token[piece[i]] >= 0) ids[n++] = b->byte_token[piece[i]];
  return merge_short(b, ids, n);
}

llm_status bpe_merge_piece(const bpe *b, const uint8_t *piece, size_t n_bytes, id_sink *out,
                           llm_error *err) {
  if (n_bytes > SHORT_PIECE) return encode_long(b, piece, n_bytes, out, err);
  int32_t ids[SHORT_PIECE];
  size_t n = encode_short(b, piece, n_bytes, ids);
  for (size_t i = 0; i < n; i++) id_sink_put(out, ids[i]);
  return LLM_OK;
}

/* -1: the piece is no token, or whole tokens are not taken. */
static int32_t whole_token(const bpe *b, const uint8_t *piece, size_t n_bytes) {
  if (!b->whole.table || n_bytes > UINT32_MAX) return -1;
  int32_t id = token_table_find(b->whole.table, (name){piece, n_bytes});
  return id >= 0 && b->whole.types[id] == LLM_TOKEN_NORMAL ? id : -1;
}

static llm_status encode_piece(const bpe *b, const uint8_t *piece, size_t n_bytes,
                               const piece_cache *cache, id_sink *out, llm_error *err) {
  int hit;
  cached *entry = cache_entry(cache, piece, n_bytes, &hit);
  if (hit) {
    for (size_t i = 0; i < entry->n_ids; i++) id_sink_put(out, entry->ids[i]);
    return LLM_OK;
  }
  int32_t ids[SHORT_PIECE] = {whole_token(b, piece, n_bytes)};
  size_t n = 1;
  if (ids[0] < 0) {
    if (n_bytes > SHORT_PIECE) return encode_long(b, piece, n_bytes, out, err);
    n = encode_short(b, piece, n_bytes, ids);
  }
  for (size_t i = 0; i < n; i++) id_sink_put(out, ids[i]);
  if (entry) cache_fill(entry, n_bytes, ids, n);
  return LLM_OK;
}

llm_status bpe_encode(const bpe *b, const uint8_t *text, size_t n_bytes, const piece_cache *cache,
                      id_sink *out, llm_error *err) {
  llm_status status = LLM_OK;
  for (size_t pos = 0; pos < n_bytes && !status;) {
    size_t end = b->pre->next(text, n_bytes, pos);
    status = encode_piece(b, text + pos, end - pos, cache, out, err);
    pos = end;
  }
  return status;
}
