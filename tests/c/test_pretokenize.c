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
  const pretokenizer *pre = pretokenizer_find(name, strlen(name));
  char got[512];
  size_t n_got = 0;
  for (size_t pos = 0; pos < n;) {
    size_t end = pre->next(text, n, pos);
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

/* A word of every length ends at every byte that is no letter, near the end of the text or not. */
static void test_ends_of_words(void) {
  static const char *const names[] = {"gpt-2", "cl100k"};
  for (int k = 0; k < 2 * 21 * 256 * 2; k++) {
    size_t n_word = (size_t)(k / 2 % 21), n_tail = k % 2 ? 12 : 0;
    uint8_t text[64], byte = (uint8_t)(k / 42 % 256);
    size_t begin = (size_t)(k / 42 / 256); /* a space before the word, or none */
    text[0] = ' ';
    for (size_t i = 0; i < n_word; i++) text[begin + i] = "azAZmQ"[i % 6];
    text[begin + n_word] = byte;
    memset(text + begin + n_word + 1, '.', n_tail);
    int is_letter = (byte | 0x20) >= 'a' && (byte | 0x20) <= 'z' && byte < 0x80;
    size_t want = begin + n_word + (size_t)is_letter;
    if (want == begin) continue; /* no word */
    for (int i = 0; i < 2; i++) {
      size_t end =
          pretokenizer_find(names[i], strlen(names[i]))->next(text, begin + n_word + 1 + n_tail, 0);
      CHECK_MSG(end == want, "%s: %zu letters and %02x: %zu, expected %zu", names[i], n_word, byte,
                end, want);
    }
  }
}

static void test_numbers(void) {
  expect("gpt-2", "a|123| 45|b| \xd9\xa1\xd9\xa2|x|\xc2\xbd");
  expect("smollm", "a|1|2|3| |4|5|b| |\xd9\xa1|\xd9\xa2|x|\xc2\xbd");
  expect("gpt-2", "a| | 1");
  expect("smollm", "a|  |1"); /* a number ends the text for the second expression */
  expect("smollm", "1|'s|2|'|3|.|4| a");
}

/* Cut by Python's regex module with the published expressions. */
static void test_later_ones(void) {
  static const struct {
    const char *cl100k, *o200k, *tekken;
  } cases[] = {
      {"", "", ""},
      {"Hello|,| world|!", "Hello|,| world|!", "Hello|,| world|!"},
      {"I|'m| you|'RE| he|'s|.'|Ll|'d|'x", "I'm| you'RE| he's|.'|Ll'd|'x",
       "I|'m| you|'RE| he|'s|.'|Ll|'d|'x"},
      {"don|'T|'S|x|'ve", "don'T|'Sx've", "don|'T|'Sx|'ve"},
      {"it|'\xc5\xbf|x|'t", "it'\xc5\xbf|x't", "it|'\xc5\xbfx|'t"},
      {"it|'\xe2\x84\xaa", "it|'\xe2\x84\xaa", "it|'\xe2\x84\xaa"},
      {"\tfoo|(bar|)|\xc2\xa0zap| ((|a|)", "\tfoo|(bar|)|\xc2\xa0zap| ((|a|)",
       "\tfoo|(bar|)|\xc2\xa0zap| ((|a|)"},
      {"a|   | b|  | !!\n|x", "a|   | b|  | !!\n|x", "a|   | b|  | !!\n|x"},
      {"a| \n\n| | b|\n|c", "a| \n\n| | b|\n|c", "a| \n\n| | b|\n|c"},
      {"!\r\n|a|\n\n| b", "!\r\n|a|\n\n| b", "!\r\n|a|\n\n| b"},
      {"e|\xcc\x81| f", "e\xcc\x81| f", "e\xcc\x81| f"},
      {"e|\xcc\x81g", "e\xcc\x81g", "e\xcc\x81g"},
      {"x| \xe2\x80\x8b\xe2\x80\x8b!", "x| \xe2\x80\x8b\xe2\x80\x8b!",
       "x| \xe2\x80\x8b\xe2\x80\x8b!"},
      {"a|.\n\n|/b|//\n|/", "a|.\n\n/|b|//\n/", "a|.\n\n/|b|//\n/"},
      {"HelloWorld| helloWORLD| XMLHttp", "Hello|World| hello|WORLD| XMLHttp",
       "Hello|World| hello|WORLD| XMLHttp"},
      {"ABC|'S| abc|'RE| '", "ABC'S| abc'RE| '", "ABC|'S| abc|'RE| '"},
      {"\xcc\x81"
       "ABC| \xcc\x81|a| \xcc\x81\xcc\x81",
       "\xcc\x81|ABC| \xcc\x81"
       "a| \xcc\x81\xcc\x81",
       "\xcc\x81|ABC| \xcc\x81"
       "a| \xcc\x81\xcc\x81"},
      {"A\xc2\xaa"
       "Bc| \xc2\xaa"
       "AB| \xe4\xb8\xad"
       "A| \xe4\xb8\xad"
       "a",
       "A\xc2\xaa"
       "Bc| \xc2\xaa|AB| \xe4\xb8\xad|A| \xe4\xb8\xad"
       "a",
       "A\xc2\xaa"
       "Bc| \xc2\xaa|AB| \xe4\xb8\xad|A| \xe4\xb8\xad"
       "a"},
      {"!\xcc\x81| !!\xcc\x81", "!\xcc\x81| !!\xcc\x81", "!\xcc\x81| !!\xcc\x81"},
      {"\xc7\x85"
       "a| \xc7\x85"
       "B| \xca\xb0X",
       "\xc7\x85"
       "a| \xc7\x85"
       "B| \xca\xb0|X",
       "\xc7\x85"
       "a| \xc7\x85"
       "B| \xca\xb0|X"},
      {"e|\xcc\x81G| E|\xcc\x81g", "e\xcc\x81|G| E\xcc\x81g", "e\xcc\x81|G| E\xcc\x81g"},
      {"/a|/B|\n|//\n", "/a|/B|\n|//\n", "/a|/B|\n|//\n"},
      {"a| \t", "a| \t", "a| \t"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    expect("cl100k", cases[i].cl100k);
    expect("dbrx", cases[i].cl100k);
    expect("llama-bpe", cases[i].cl100k);
    expect("qwen2", cases[i].cl100k);
    expect("gpt-4o", cases[i].o200k);
    expect("tekken", cases[i].tekken);
  }
  /* where they differ: white space at the end, and how many digits stay together */
  expect("cl100k", "a|\n  ");
  expect("llama-bpe", "a|\n|  ");
  expect("qwen2", "a|\n|  ");
  expect("gpt-4o", "a|\n|  ");
  static const char *const three[] = {"cl100k", "llama-bpe", "gpt-4o"};
  for (size_t i = 0; i < 3; i++) expect(three[i], "123|45| |\xd9\xa1\xd9\xa2\xc2\xbd|6|x");
  expect("qwen2", "1|2| |\xd9\xa1|\xc2\xbd|x");
  expect("tekken", "1|2| |\xd9\xa1|\xc2\xbd|x");
}

static const char *const all_names[] = {"gpt-2", "smollm", "llama-bpe", "cl100k",
                                        "qwen2", "gpt-4o", "tekken"};

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
    for (size_t which = 0; which < sizeof all_names / sizeof *all_names; which++) {
      const char *name = all_names[which];
      const pretokenizer *pre = pretokenizer_find(name, strlen(name));
      size_t pos = 0;
      while (pos < n) {
        size_t end = pre->next(text, n, pos);
        CHECK(end > pos && end <= n);
        if (end <= pos || end > n) break;
        pos = end;
      }
    }
    free(text);
  }
}

static void test_names(void) {
  CHECK(pretokenizer_find("gpt2", 4) == NULL && pretokenizer_find("smollm2", 7) == NULL);
  CHECK(pretokenizer_find("", 0) == NULL && pretokenizer_find("qwen2x", 5) != NULL);
  const char *names = pretokenizer_names(); /* each of them is found */
  for (size_t n; *names; names += n + (names[n] ? 2 : 0)) {
    n = strcspn(names, ",");
    CHECK_MSG(pretokenizer_find(names, n) != NULL, "%s", names);
  }
  CHECK(pretokenizer_find("llama3", 6)->takes_whole && pretokenizer_find("tekken", 6)->adds_bos);
  CHECK(!pretokenizer_find("dbrx", 4)->takes_whole && !pretokenizer_find("qwen2", 5)->adds_bos);
}

int main(void) {
  test_both();
  test_ends_of_words();
  test_numbers();
  test_later_ones();
  test_noise();
  test_names();
  return check_report("test_pretokenize");
}
