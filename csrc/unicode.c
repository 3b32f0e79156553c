/* unicode.c: UTF-8 decoding that accepts any bytes, and class look-up. Layer 0. */
#include "unicode.h"

#include "llm.h"

static unicode_class classify_far(uint32_t code_point) {
  for (const unicode_range *r = unicode_far; r < unicode_far + UNICODE_N_FAR; r++)
    if (code_point >= r->first && code_point <= r->last) return r->class;
  return UNICODE_OTHER;
}

unicode_class unicode_classify(uint32_t code_point) {
  if (code_point >= UNICODE_TABLED) return classify_far(code_point);
  uint16_t leaf = unicode_blocks[unicode_index[code_point >> 7]][code_point >> 4 & 7];
  uint8_t two = unicode_leaves[leaf][code_point >> 1 & 7];
  return (unicode_class)(two >> 4 * (code_point & 1) & 15);
}

size_t utf8_decode(const uint8_t *p, size_t n, uint32_t *code_point) {
  uint8_t lead = p[0];
  *code_point = lead;
  if (lead < 0x80) return 1;

  *code_point = UTF8_INVALID;
  if (lead < 0xc2 || lead > 0xf4) return 1;
  size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  uint32_t value = lead & (0x7f >> length);
  /* Only the second byte has a range of its own: no overlong forms, surrogates or planes past 16.
   */
  uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  for (size_t i = 1; i < length; i++) {
    if (i == n || p[i] < low || p[i] > high) return i;
    value = value << 6 | (p[i] & 0x3f);
    low = 0x80;
    high = 0xbf;
  }
  *code_point = value;
  return length;
}

size_t llm_utf8_length(const char *text, size_t n) {
  uint32_t code_point;
  if (n == 0) return 0;
  size_t length = utf8_decode((const uint8_t *)text, n, &code_point);
  return code_point == UTF8_INVALID ? 0 : length;
}
