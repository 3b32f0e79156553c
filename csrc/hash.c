/* hash.c: memory for hash tables. Layer 0. */
#define _DEFAULT_SOURCE /* madvise */
#include "hash.h"

#include <stdlib.h>
#include <sys/mman.h>

enum { LARGE_PAGE = 2 << 20 };

void *hash_table_new(size_t n_bytes) {
  if (n_bytes < LARGE_PAGE / 2) return calloc(n_bytes, 1);
  size_t n_whole = (n_bytes + LARGE_PAGE - 1) / LARGE_PAGE * LARGE_PAGE;
  void *table = aligned_alloc(LARGE_PAGE, n_whole);
  if (!table) return NULL;
#ifdef MADV_HUGEPAGE
  (void)madvise(table, n_whole, MADV_HUGEPAGE);
#endif
  return memset(table, 0, n_bytes);
}
