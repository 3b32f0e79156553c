/* tokenizer_heap.h: the priority queue of candidate merges: numbers, the least first. Layer 2. */
#ifndef LLM_TOKENIZER_HEAP_H
#define LLM_TOKENIZER_HEAP_H

#include <stddef.h>
#include <stdint.h>

typedef struct merge_heap {
  uint64_t *keys; /* rank << 32 | symbol; the caller's memory */
  size_t n;
} merge_heap;

enum { HEAP_WIDTH = 8 }; /* children of a node: one cache line, and a third of the levels of two */

static inline void heap_push(merge_heap *h, uint64_t key) {
  size_t i = h->n++;
  for (size_t parent; i > 0 && key < h->keys[parent = (i - 1) / HEAP_WIDTH]; i = parent)
    h->keys[i] = h->keys[parent];
  h->keys[i] = key;
}

static inline uint64_t heap_pop(merge_heap *h) {
  uint64_t top = h->keys[0], key = h->keys[--h->n];
  size_t i = 0, first;
  for (; (first = HEAP_WIDTH * i + 1) < h->n;) {
    size_t least = first, end = first + HEAP_WIDTH < h->n ? first + HEAP_WIDTH : h->n;
    for (size_t child = first + 1; child < end; child++)
      if (h->keys[child] < h->keys[least]) least = child;
    if (h->keys[least] >= key) break;
    h->keys[i] = h->keys[least];
    i = least;
  }
  h->keys[i] = key;
  return top;
}

#endif
