/* tokenizer_table.h: from the bytes of a token to its id, in one hash table. Layer 2. The keys are
 * not copied: they must outlive the table. */
#ifndef LLM_TOKENIZER_TABLE_H
#define LLM_TOKENIZER_TABLE_H

#include <stddef.h>

#include "llm.h"

typedef struct name {
  const uint8_t *bytes;
  size_t n_bytes;
} name;

typedef struct token_slot { /* short names are compared without leaving the table */
  uint64_t head;            /* first 8 bytes, zeros after a shorter name */
  const uint8_t *bytes;
  uint32_t n_bytes;
  int32_t id_plus_1; /* 0: free */
} token_slot;

typedef struct token_table {
  token_slot *slots; /* open addressing, a power of two, at most 3/4 full */
  size_t mask;       /* slots - 1 */
} token_table;

/* Room for n names of less than 4 GiB each. */
llm_status token_table_init(token_table *table, size_t n, llm_error *err);
void token_table_free(token_table *table);

/* Asks for what token_table_slot will look at: a large table lies in no near cache. */
void token_table_prefetch(const token_table *table, name key);
/* The slot of a name, or the free one where it would go. */
token_slot *token_table_slot(const token_table *table, name key);
void token_slot_set(token_slot *slot, name key, int32_t id);

/* -1: no such token. */
static inline int32_t token_table_find(const token_table *table, name key) {
  return token_table_slot(table, key)->id_plus_1 - 1;
}

/* A token by its length, for sorting with qsort: the parts of a token come before it. */
typedef struct sized_token {
  uint32_t n_bytes;
  int32_t id;
} sized_token;
int sized_token_compare(const void *left, const void *right);

#endif
