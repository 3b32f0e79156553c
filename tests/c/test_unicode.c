/* Test of unicode.c: decoding against a plain encoder and a list of broken sequences; classes
 * against totals of Unicode 16.0.0's DerivedGeneralCategory.txt and hand-picked code points. All
 * code points are compared with the peers in tests/test_tokenizer.py. */
#include "llm.h"
#include "unicode.h"

#include <string.h>

#include "check.h"

static size_t encode(uint32_t c, uint8_t *p) {
  if (c < 0x80) return p[0] = (uint8_t)c, 1;
  size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
  static const uint8_t leads[] = {0, 0, 0xc0, 0xe0, 0xf0};
  for (size_t i = n; i-- > 1; c >>= 6) p[i] = (uint8_t)(0x80 | (c & 0x3f));
  p[0] = (uint8_t)(leads[n] | c);
  return n;
}

static void test_every_code_point(void) {
  for (uint32_t c = 0; c < 0x110000; c++) {
    uint8_t bytes[4];
    uint32_t got;
    size_t n = encode(c, bytes), length = utf8_decode(bytes, n, &got);
    if (c >= 0xd800 && c < 0xe000) {
      CHECK_MSG(got == UTF8_INVALID && length == 1, "surrogate %x: %x, %zu", c, got, length);
      continue;
    }
    CHECK_MSG(got == c && length == n, "%x: got %x, %zu bytes", c, got, length);
    for (size_t cut = 1; cut < n; cut++) {
      length = utf8_decode(bytes, cut, &got);
      CHECK_MSG(got == UTF8_INVALID && length == cut, "%x cut to %zu: %zu", c, cut, length);
    }
  }
}

static void test_broken(void) {
  static const struct {
    const char *bytes;
    const char *lengths; /* of the pieces that are not UTF-8, '.' for a good character */
  } cases[] = {
      /* Unicode 16, table 3-11 */
      {"a\xf1\x80\x80\xe1\x80\xc2"
       "b\x80"
       "c\x80\xbf"
       "d",
       ".321.1.11."},
      {"\xc0\xaf\xe0\x80\xbf\xf0\x81\x82"
       "A",
       "11111111."},                                                /* table 3-8: overlong */
      {"\xed\xa0\x80\xed\xbf\xbf\xed\xaf", "11111111"},             /* table 3-9: surrogates */
      {"\xf4\x91\x92\x93\xff", "11111"},                            /* table 3-10: past U+10FFFF */
      {"\xf5\x80\x80\x80\xfe", "11111"},                            /* no such leads */
      {"\xf4\x8f\xbf\xbf\xef\xbf\xbf\xe0\xa0\x80\xc2\x80", "...."}, /* the borders themselves */
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const uint8_t *p = (const uint8_t *)cases[i].bytes;
    size_t n = strlen(cases[i].bytes), pos = 0;
    for (const char *want = cases[i].lengths; *want; want++) {
      uint32_t c = 0;
      CHECK(pos < n);
      if (pos >= n) break;
      size_t length = utf8_decode(p + pos, n - pos, &c);
      if (*want == '.')
        CHECK_MSG(c != UTF8_INVALID, "case %zu at %zu: not decoded", i, pos);
      else
        CHECK_MSG(c == UTF8_INVALID && length == (size_t)(*want - '0'), "case %zu at %zu: %zu", i,
                  pos, length);
      pos += length;
    }
    CHECK_MSG(pos == n, "case %zu: ends at %zu of %zu", i, pos, n);
  }
}

static void test_classes(void) {
  long totals[16] = {0};
  for (uint32_t c = 0; c < 0x110000; c++) totals[unicode_classify(c)]++;
  static const struct {
    unicode_class class;
    long n;
  } expected[] = {
      {UNICODE_SPACE, 25},   {UNICODE_NUMBER, 1911}, {UNICODE_MARK, 2501},
      {UNICODE_UPPER, 1889}, {UNICODE_LOWER, 2258},  {UNICODE_LETTER, 136881},
  };
  for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
    CHECK_MSG(totals[expected[i].class] == expected[i].n, "%d: %ld", (int)expected[i].class,
              totals[expected[i].class]);

  static const struct {
    uint32_t c;
    unicode_class class;
  } cases[] = {
      {0, UNICODE_OTHER},        {' ', UNICODE_SPACE},      {'\t', UNICODE_SPACE},
      {'\r', UNICODE_SPACE},     {0x1c, UNICODE_OTHER},     {0x85, UNICODE_SPACE},
      {0xa0, UNICODE_SPACE},     {0x200b, UNICODE_OTHER},   {0x2028, UNICODE_SPACE},
      {0x3000, UNICODE_SPACE},   {0xfeff, UNICODE_OTHER},   {'a', UNICODE_LOWER},
      {'Z', UNICODE_UPPER},      {'[', UNICODE_OTHER},      {0xaa, UNICODE_LETTER},
      {0x1c5, UNICODE_UPPER},    {0x2b0, UNICODE_LETTER},   {0x903, UNICODE_MARK},
      {0x300, UNICODE_MARK},     {0x4e00, UNICODE_LETTER},  {0x9fff, UNICODE_LETTER},
      {0x20000, UNICODE_LETTER}, {0x323af, UNICODE_LETTER}, {0x323b0, UNICODE_OTHER},
      {'0', UNICODE_NUMBER},     {0xb2, UNICODE_NUMBER},    {0xbd, UNICODE_NUMBER},
      {0x2167, UNICODE_NUMBER},  {0x3007, UNICODE_NUMBER},  {0x0660, UNICODE_NUMBER},
      {0x1d7ff, UNICODE_NUMBER}, {0x1f600, UNICODE_OTHER},  {0xe0100, UNICODE_MARK},
      {0x20dd, UNICODE_MARK},    {0x24d0, UNICODE_OTHER},   {0xff21, UNICODE_UPPER},
      {0x10ffff, UNICODE_OTHER}, {0x110000, UNICODE_OTHER}, {UTF8_INVALID, UNICODE_OTHER},
      {0x10d40, UNICODE_NUMBER}, /* new in Unicode 16 */
      {0x11de0, UNICODE_OTHER},  /* assigned in Unicode 17 */
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    CHECK_MSG(unicode_classify(cases[i].c) == cases[i].class, "U+%04X is %d", cases[i].c,
              (int)unicode_classify(cases[i].c));
}

static void test_length(void) {
  CHECK(llm_utf8_length(NULL, 0) == 0);
  CHECK(llm_utf8_length("", 1) == 1); /* the character NUL */
  CHECK(llm_utf8_length("a\x80", 2) == 1 && llm_utf8_length("\x80", 1) == 0);
  for (size_t n = 1; n <= 5; n++) {
    CHECK(llm_utf8_length("\xf0\x9f\x98\x80!", n) == (n < 4 ? 0 : 4));
    CHECK(llm_utf8_length("\xe2\x82\xac!", n) == (n < 3 ? 0 : 3));
    CHECK(llm_utf8_length("\xed\xa0\x80", n < 3 ? n : 3) == 0); /* a surrogate */
  }
}

int main(void) {
  test_length();
  test_every_code_point();
  test_broken();
  test_classes();
  return check_report("test_unicode");
}
