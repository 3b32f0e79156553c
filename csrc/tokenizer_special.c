/* tokenizer_special.c: finding special tokens in a text. Layer 2. The sorted list is walked as a
 * trie: each byte of the text narrows the range of items that still agree, by binary search. */
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "tokenizer_parts.h"

int token_type_is_hidden(int32_t type) {
  return type == LLM_TOKEN_CONTROL || type == LLM_TOKEN_UNKNOWN;
}

int token_is_preferred(const llm_tokenizer *t, int64_t id, int64_t other) {
  static const int order[] = {
      [LLM_TOKEN_CONTROL] = 5, [LLM_TOKEN_UNKNOWN] = 4, [LLM_TOKEN_USER_DEFINED] = 3,
      [LLM_TOKEN_NORMAL] = 2,  [LLM_TOKEN_UNUSED] = 1,  [LLM_TOKEN_BYTE] = 0};
  int by = order[t->types[id]] - order[t->types[other]];
  return by > 0 || (by == 0 && id < other);
}

static int special_compare(const void *left, const void *right) {
  const special *a = left, *b = right;
  size_t n = a->n_bytes < b->n_bytes ? a->n_bytes : b->n_bytes;
  int order = memcmp(a->bytes, b->bytes, n);
  return order ? order : (a->n_bytes > b->n_bytes) - (a->n_bytes < b->n_bytes);
}

static llm_status special_set_init(special_set *set, const llm_tokenizer *t, int with_hidden,
                                   llm_error *err) {
  for (int pass = 0; pass < 2; pass++) { /* count, then fill */
    set->n = 0;
    for (int64_t id = 0; id < t->n_vocab; id++) {
      int wanted = t->types[id] == LLM_TOKEN_USER_DEFINED ||
                   (with_hidden && token_type_is_hidden(t->types[id]));
      size_t n_bytes = (size_t)(t->offsets[id + 1] - t->offsets[id]);
      if (!wanted || n_bytes == 0) continue;
      const uint8_t *bytes = t->text + t->offsets[id];
      if (pass) set->items[set->n] = (special){bytes, n_bytes, (int32_t)id};
      set->begins[bytes[0]] = 1;
      set->n++;
    }
    if (set->n == 0 || pass) break;
    set->items = calloc(set->n, sizeof *set->items);
    if (!set->items) return error_nomem(err, set->n * sizeof *set->items, "special tokens");
  }
  if (set->n) qsort(set->items, set->n, sizeof *set->items, special_compare);
  return LLM_OK;
}

llm_status special_sets_init(llm_tokenizer *t, llm_error *err) {
  llm_status status = special_set_init(&t->always, t, 0, err);
  return status ? status : special_set_init(&t->on_demand, t, 1, err);
}

/* The first item of [low, high) whose byte at `depth` is >= c; all are longer than depth. */
static size_t lower_bound(const special_set *set, size_t low, size_t high, size_t depth, int c) {
  while (low < high) {
    size_t middle = low + (high - low) / 2;
    if (set->items[middle].bytes[depth] < c)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

const special *special_match(const special_set *set, const uint8_t *text, size_t n) {
  const special *longest = NULL;
  size_t low = 0, high = set->n;
  for (size_t depth = 0; low < high; depth++) {
    /* An item that ends here sorts before those that go on. */
    if (set->items[low].n_bytes == depth) longest = &set->items[low++];
    if (depth == n) break;
    low = lower_bound(set, low, high, depth, text[depth]);
    high = lower_bound(set, low, high, depth, text[depth] + 1);
  }
  return longest;
}
