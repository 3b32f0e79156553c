/* test_sha256.c: the vectors of FIPS 180-4's examples, every length around the block, and the
 * instructions of this machine against the plain rounds. */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "sha256.h"

static void expect(const void *data, size_t n, const char *expected) {
  char hex[65];
  sha256_hex(data, n, hex);
  CHECK_MSG(!strcmp(hex, expected), "%zu bytes: %s, expected %s", n, hex, expected);
}

static void test_vectors(void) {
  expect(NULL, 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  expect("abc", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  expect("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56,
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  char *a = malloc(1000000);
  memset(a, 'a', 1000000);
  expect(a, 1000000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  free(a);
}

/* Every length around the block, against the padding of FIPS 180-4 written out. */
static void test_lengths(void) {
  enum { N = 140 };
  uint8_t bytes[N + 72] = {0};
  for (size_t n = 0; n <= N; n++) {
    uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    char hex[65], expected[65];
    size_t n_padded = n + 1;
    for (size_t i = 0; i < n; i++) bytes[i] = (uint8_t)(i * 37 + 11);
    sha256_hex(bytes, n, hex);
    bytes[n] = 0x80;
    while (n_padded % 64 != 56) bytes[n_padded++] = 0;
    for (int shift = 56; shift >= 0; shift -= 8) bytes[n_padded++] = (uint8_t)(8 * n >> shift);
    sha256_blocks_plain(state, bytes, n_padded / 64);
    for (int i = 0; i < 8; i++) snprintf(expected + 8 * i, 9, "%08x", (unsigned)state[i]);
    CHECK_MSG(!strcmp(hex, expected), "%zu bytes", n);
  }
}

static void test_instructions(void) {
  enum { N_BLOCKS = 50 };
  uint8_t bytes[N_BLOCKS * 64 + 1];
  uint32_t x = 1;
  for (size_t i = 0; i < sizeof bytes; i++)
    bytes[i] = (uint8_t)((x = x * 1664525 + 1013904223) >> 24);
  for (size_t n = 0; n <= N_BLOCKS; n++) {
    uint32_t plain[8], fast[8];
    for (int i = 0; i < 8; i++) plain[i] = fast[i] = x = x * 1664525 + 1013904223;
    sha256_blocks_plain(plain, bytes + 1, n); /* not aligned */
    sha256_blocks(fast, bytes + 1, n);
    CHECK_MSG(!memcmp(plain, fast, sizeof plain), "%zu blocks", n);
  }
}

int main(void) {
  test_vectors();
  test_lengths();
  test_instructions();
  return check_report("test_sha256");
}
