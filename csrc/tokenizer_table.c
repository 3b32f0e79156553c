/* tokenizer_table.c: the hash table from bytes to ids. Layer 2; depends on error, hash. */
#include "tokenizer_table.h"

#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "hash.h"

llm_status token_table_init(token_table *table, size_t n, llm_error *err) {
  size_t n_slots = 16;
  while (n_slots / 4 * 3 < n) n_slots *= 2;
  table->mask = n_slots - 1;
  table->slots = hash_table_new(n_slots * sizeof *table->slots);
  return table->slots ? LLM_OK : error_nomem(err, n_slots * sizeof *table->slots, "a vocabulary");
}

void token_table_free(token_table *table) {
  free(table->slots);
  table->slots = NULL;
}

void token_table_prefetch(const token_table *table, name key) {
  __builtin_prefetch(&table->slots[hash_bytes(key.bytes, key.n_bytes) & table->mask]);
}

token_slot *token_table_slot(const token_table *table, name key) {
  uint64_t head = key_head(key.bytes, key.n_bytes);
  size_t i = (size_t)hash_bytes(key.bytes, key.n_bytes) & table->mask;
  for (; table->slots[i].id_plus_1; i = (i + 1) & table->mask) {
    const token_slot *s = &table->slots[i];
    if (s->head != head || s->n_bytes != key.n_bytes) continue;
    if (key.n_bytes <= 8 || memcmp(s->bytes + 8, key.bytes + 8, key.n_bytes - 8) == 0) break;
  }
  return &table->slots[i];
}

void token_slot_set(token_slot *slot, name key, int32_t id) {
  *slot = (token_slot){key_head(key.bytes, key.n_bytes), key.bytes, (uint32_t)key.n_bytes, id + 1};
}

int sized_token_compare(const void *left, const void *right) {
  const sized_token *a = left, *b = right;
  if (a->n_bytes != b->n_bytes) return a->n_bytes < b->n_bytes ? -1 : 1;
  return (a->id > b->id) - (a->id < b->id);
}
