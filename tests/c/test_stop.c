/* test_stop.c: the matcher against a search of the whole text after each byte, on short alphabets,
 * where stop strings overlap themselves and each other. */
#include "stop.h"

#include <stdlib.h>
#include <string.h>

#include "check.h"

enum { MAX_STOPS = 4, MAX_BYTES = 6, N_TEXT = 60 };

static uint64_t state = 1;
static size_t draw(size_t n) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (size_t)(state >> 33) % n;
}

static int ends_with(const char *text, size_t n, const char *tail, size_t n_tail) {
  return n_tail <= n && memcmp(text + n - n_tail, tail, n_tail) == 0;
}

static void check_random(void) {
  char bytes[MAX_STOPS][MAX_BYTES], text[N_TEXT];
  const char *strings[MAX_STOPS];
  size_t lengths[MAX_STOPS], n_stop = 1 + draw(MAX_STOPS), alphabet = 1 + draw(3);
  for (size_t i = 0; i < n_stop; i++) {
    strings[i] = bytes[i];
    lengths[i] = 1 + draw(MAX_BYTES);
    for (size_t j = 0; j < lengths[i]; j++) bytes[i][j] = (char)draw(alphabet); /* NULs too */
  }
  stop_set set;
  CHECK(!stop_set_init(&set, strings, lengths, n_stop, NULL));
  for (size_t n = 1; n <= N_TEXT; n++) {
    text[n - 1] = (char)draw(alphabet);
    size_t longest = 0, held = 0, found = stop_set_feed(&set, (uint8_t)text[n - 1]);
    for (size_t i = 0; i < n_stop; i++) {
      if (ends_with(text, n, strings[i], lengths[i]) && lengths[i] > longest) longest = lengths[i];
      for (size_t k = 1; k < lengths[i]; k++)
        if (ends_with(text, n, strings[i], k) && k > held) held = k;
    }
    CHECK(found == longest);
    CHECK(stop_set_held(&set) == held);
  }
  stop_set_free(&set);
}

int main(void) {
  stop_set set;
  llm_error err;
  for (int i = 0; i < 3000; i++) check_random();
  CHECK(stop_set_init(&set, (const char *[]){"a", ""}, (size_t[]){1, 0}, 2, &err) == LLM_ERR_ARG);
  stop_set_free(&set);
  CHECK(!stop_set_init(&set, NULL, NULL, 0, &err));
  CHECK(stop_set_feed(&set, 'a') == 0 && stop_set_held(&set) == 0);
  stop_set_free(&set);
  return check_report("test_stop");
}
