/* Test of pretokenize.c: where each pre-tokenizer cuts, on cases cut by hand from its regular
 * expression (tests/test_tokenizer.py compares with the peers), and that any bytes are covered. */
#include "pretokenize.h"

#include <stdlib.h>
#include <string.h>

#include "check.h"

/* `cut` is the text with a | at each border. */
static void expect(const char *name, const char *cut) {
  uint8_t text[256];
  size_t n = 0;
  for (const char *c = cut; *c; c++)
    if (*c != '|') text[n++] = (uint8_t)*c;
  pretokenizer next = pretokenizer_find(name, strlen(name));
  char got[512];
  size_t n_got = 0;
  for (size_t pos = 0; pos < n;) {
    size_t end = next(text, n, pos);
    CHECK(end > pos && end <= n);
    if (end <= pos || end > n) return;
    if (pos) got[n_got++] = '|';
    memcpy(got + n_got, text + pos, end - pos);
    n_got += end - pos;
    pos = end;
  }
  got[n_got] = '\0';
  CHECK_MSG(strcmp(got, cut) == 0, "%s: \"%s\", expected \"%s\"", name, got, cut);
}

static void test_both(void) {
  static const char *const cases[] = {
      "",
      "a",
      "Hello|,| world|!",
      "I|'m| you|'re| he|'s| we|'ll| they|'ve| she|'d| can|'t",
      "I|'|M| '|s| '|re", /* contractions are lower case and never after a space */
      "'s|'t|'re|'ve|'m|'ll|'d|'|l|'|v|'|r|'",
      "a|  | b",  /* the last space goes with the word, */
      "a| |\n|b", /* other white space does not */
      "a|\n|\n|b",
      "a|\n| b",
      "a|  \n\t|\r|b",
      "a|   ", /* at the end all of it stays together */
      "\n\n",
      " ",
      " a| |\xc2\xa0|b|\xc2\xa0", /* NBSP is white space, */
      "a| |\xe3\x80\x80|b",       /* so is the ideographic space, */
      "x|\xe2\x80\x8b|y",         /* the zero-width space is not */
      "\xc3\x84rger|,| \xc3\xb1",
      "e|\xcc\x81|e", /* a combining mark is neither letter nor number */
      "\xe4\xbd\xa0\xe5\xa5\xbd|\xef\xbc\x81| \xe4\xb8\x96",
      "\xf0\x9f\x98\x80\xf0\x9f\x98\x81| \xf0\x9f\x98\x82",
      "a|\xff\xfe!|b| \x80|c", /* bytes that are not UTF-8 go with punctuation */
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    expect("gpt-2", cases[i]);
    expect("smollm", cases[i]);
  }
}

static void test_numbers(void) {
  expect("gpt-2", "a|123| 45|b| \xd9\xa1\xd9\xa2|x|\xc2\xbd");
  expect("smollm", "a|1|2|3| |4|5|b| |\xd9\xa1|\xd9\xa2|x|\xc2\xbd");
  expect("gpt-2", "a| | 1");
  expect("smollm", "a|  |1"); /* a number ends the text for the second expression */
  expect("smollm", "1|'s|2|'|3|.|4| a");
}

/* Any bytes are covered, without a step outside the span. */
static void test_noise(void) {
  static const uint8_t alphabet[] = " \n\t'sld1a.\xc2\xa0\xe2\x80\x8b\xf0\x9f\xff\xcc";
  uint32_t seed = 1;
  for (int round = 0; round < 20000; round++) {
    size_t n = 1 + seed % 24;
    uint8_t *text = malloc(n); /* exact: the address sanitizer sees a step too far */
    for (size_t i = 0; i < n; i++) {
      seed = seed * 1664525 + 1013904223;
      text[i] = alphabet[(seed >> 16) % (sizeof alphabet - 1)];
    }
    for (int which = 0; which < 2; which++) {
      pretokenizer next = which ? pretokenizer_find("gpt-2", 5) : pretokenizer_find("smollm", 6);
      size_t pos = 0;
      while (pos < n) {
        size_t end = next(text, n, pos);
        CHECK(end > pos && end <= n);
        if (end <= pos || end > n) break;
        pos = end;
      }
    }
    free(text);
  }
}

int main(void) {
  test_both();
  test_numbers();
  test_noise();
  CHECK(pretokenizer_find("gpt2", 4) == NULL);
  CHECK(pretokenizer_find("smollm2", 7) == NULL);
  CHECK(pretokenizer_find("", 0) == NULL);
  CHECK(strcmp(pretokenizer_names(), "gpt-2, smollm") == 0);
  return check_report("test_pretokenize");
}
