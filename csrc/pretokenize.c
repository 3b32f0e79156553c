/* pretokenize.c: the pre-tokenizers. Layer 2; depends on unicode. The regular expressions are those
 * of GPT-2's encoder.py and of the tokenizer.json that SmolLM2 was published with. */
#include "pretokenize.h"

#include <string.h>

#include "unicode.h"

/* Class and length of the character at pos < n; ASCII, most of all text, without a call. */
static unicode_class class_at(const uint8_t *text, size_t n, size_t pos, size_t *length) {
  uint8_t c = text[pos];
  *length = 1;
  if ((uint8_t)((c | 0x20) - 'a') < 26) return UNICODE_LETTER;
  if ((uint8_t)(c - '0') < 10) return UNICODE_NUMBER;
  if (c == ' ' || (uint8_t)(c - '\t') < 5) return UNICODE_SPACE;
  if (c < 0x80) return UNICODE_OTHER;
  uint32_t code_point;
  *length = utf8_decode(text + pos, n - pos, &code_point);
  return unicode_classify(code_point);
}

/* The end of the run of characters of one class that begins at pos; *last is where its last
 * character begins. */
static size_t run_end(const uint8_t *text, size_t n, size_t pos, unicode_class class,
                      size_t *last) {
  size_t length;
  while (pos < n && class_at(text, n, pos, &length) == class) {
    *last = pos;
    pos += length;
  }
  return pos;
}

/* Length of 's 't 're 've 'm 'll 'd at pos, 0: none. */
static size_t contraction(const uint8_t *text, size_t n, size_t pos) {
  if (n - pos < 2 || text[pos] != '\'') return 0;
  uint8_t a = text[pos + 1];
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
  if (n - pos < 3) return 0;
  uint8_t b = text[pos + 2];
  return ((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 * With numbers_apart, a number counts as the end of the text. */
static size_t gpt2_next(const uint8_t *text, size_t n, size_t pos, int numbers_apart) {
  size_t length = contraction(text, n, pos), last = pos;
  if (length) return pos + length;

  unicode_class class = class_at(text, n, pos, &length);
  if (class != UNICODE_SPACE) return run_end(text, n, pos, class, &last);

  size_t end = run_end(text, n, pos, UNICODE_SPACE, &last);
  if (end == n) return end;
  class = class_at(text, n, end, &length);
  if (numbers_apart && class == UNICODE_NUMBER) return end;
  /* A space that ends the run goes to what follows; any other white space is on its own. */
  if (last > pos) return last;
  return text[pos] == ' ' ? run_end(text, n, end, class, &last) : end;
}

static size_t pretokenize_gpt2(const uint8_t *text, size_t n, size_t pos) {
  return gpt2_next(text, n, pos, 0);
}

/* First \p{N}, each alone, then GPT-2's expression inside what lies between. */
static size_t pretokenize_smollm(const uint8_t *text, size_t n, size_t pos) {
  size_t length;
  if (class_at(text, n, pos, &length) == UNICODE_NUMBER) return pos + length;
  return gpt2_next(text, n, pos, 1);
}

static const struct {
  const char *name;
  pretokenizer next;
} table[] = {
    {"gpt-2", pretokenize_gpt2},
    {"smollm", pretokenize_smollm},
};

pretokenizer pretokenizer_find(const char *name, size_t n) {
  for (size_t i = 0; i < sizeof table / sizeof *table; i++)
    if (strlen(table[i].name) == n && memcmp(table[i].name, name, n) == 0) return table[i].next;
  return NULL;
}

const char *pretokenizer_names(void) { return "gpt-2, smollm"; }
