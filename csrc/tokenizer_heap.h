/* tokenizer_heap.h: the priority queue of candidate merges: numbers, the least first. Layer 2. */
#ifndef LLM_TOKENIZER_HEAP_H
#define LLM_TOKENIZER_HEAP_H

#include <stddef.h>
#include <stdint.h>

typedef struct merge_heap {
  uint64_t *keys; /* rank << 32 | symbol; the caller's memory */
  size_t n;
} merge_heap;

static inline void heap_push(merge_heap *h, uint64_t key) {
  size_t i = h->n++;
  for (; i > 0 && key < h->keys[(i - 1) / 2]; i = (i - 1) / 2) h->keys[i] = h->keys[(i - 1) / 2];
  h->keys[i] = key;
}

static inline uint64_t heap_pop(merge_heap *h) {
  uint64_t top = h->keys[0], key = h->keys[--h->n];
  size_t i = 0, child;
  for (; (child = 2 * i + 1) < h->n; i = child) {
    child += child + 1 < h->n && h->keys[child + 1] < h->keys[child];
    if (h->keys[child] >= key) break;
    h->keys[i] = h->keys[child];
  }
  h->keys[i] = key;
  return top;
}

#endif
