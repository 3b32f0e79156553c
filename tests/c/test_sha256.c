/* test_sha256.c: the vectors of FIPS 180-4's examples, streams cut anywhere, and the instructions
 * of this machine against the plain rounds. */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "sha256.h"

static void expect(const void *data, size_t n, const char *expected) {
  char hex[65];
  llm_sha256_hex(data, n, hex);
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

/* Every length around the block, cut at every place, equals one piece. */
static void test_streams(void) {
  enum { N = 140 };
  uint8_t bytes[N];
  for (int i = 0; i < N; i++) bytes[i] = (uint8_t)(i * 37 + 11);
  for (size_t n = 0; n <= N; n++) {
    char whole[65], parts[65];
    llm_sha256_hex(bytes, n, whole);
    for (size_t cut = 0; cut <= n; cut++) {
      sha256 s;
      sha256_init(&s);
      sha256_update(&s, bytes, cut);
      sha256_update(&s, bytes + cut, n - cut);
      sha256_final(&s, parts);
      CHECK_MSG(!strcmp(whole, parts), "%zu bytes cut at %zu", n, cut);
    }
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
  test_streams();
  test_instructions();
  return check_report("test_sha256");
}
