/* test_hash.c: heads of keys against their bytes one by one; hashes depend on every byte; large and
 * small tables are zeros. */
#include "check.h"
#include "hash.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int main(void) {
  uint8_t key[40];
  for (size_t i = 0; i < sizeof key; i++) key[i] = (uint8_t)(7 * i + 1);
  for (size_t n = 0; n <= sizeof key; n++) {
    uint8_t *copy = malloc(n + 1); /* of its own, so that a sanitizer sees reads past it */
    uint64_t head = 0, hash;
    memcpy(copy, key, n);
    for (size_t i = 0; i < n && i < 8; i++) head |= (uint64_t)copy[i] << 8 * i;
    CHECK(key_head(copy, n) == head);
    hash = hash_bytes(copy, n);
    for (size_t i = 0; i < n; i++) {
      copy[i] ^= 1;
      CHECK(hash_bytes(copy, n) != hash);
      copy[i] ^= 1;
    }
    free(copy);
  }
  static const size_t sizes[] = {16, 4096, 1 << 20, (3 << 20) + 8};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    uint8_t *table = hash_table_new(sizes[i]);
    size_t n_set = 0;
    CHECK(table != NULL);
    for (size_t j = 0; table && j < sizes[i]; j++) n_set += table[j] != 0;
    CHECK(n_set == 0);
    free(table);
  }
  return check_report("test_hash");
}
