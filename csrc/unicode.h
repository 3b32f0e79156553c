/* unicode.h: UTF-8 and the character classes that pre-tokenizers ask about. Layer 0. The tables are
 * of Unicode 16.0.0 (gen_unicode.py says why); code points that it does not assign are OTHER. */
#ifndef LLM_UNICODE_H
#define LLM_UNICODE_H

#include <stddef.h>
#include <stdint.h>

typedef enum unicode_class { /* the numbers stand in the tables */
                             UNICODE_OTHER = 0,
                             UNICODE_SPACE = 1,  /* White_Space: \s */
                             UNICODE_NUMBER = 2, /* \p{N} */
                             UNICODE_MARK = 3,   /* \p{M} */
                             UNICODE_UPPER = 4,  /* \p{Lu}\p{Lt} */
                             UNICODE_LOWER = 5,  /* \p{Ll} */
                             UNICODE_LETTER = 6  /* \p{Lm}\p{Lo}: without case */
} unicode_class;

/* Any number is allowed; those past U+10FFFF are OTHER. */
unicode_class unicode_classify(uint32_t code_point);

#define UTF8_INVALID 0xffffffffu

/* Length of the character at p[0..n), n >= 1, and its code point. Where the bytes are not UTF-8
 * the code point is UTF8_INVALID and the length that of the maximal subpart (Unicode 16, table
 * 3-11): what a decoder would replace by one U+FFFD. */
size_t utf8_decode(const uint8_t *p, size_t n, uint32_t *code_point);

/* The tables: leaves of 16 code points, four bits each, low bits first; blocks of 8 leaves. Each
 * different leaf and block stands there once. Code points past the tables lie in ranges. */
enum { UNICODE_TABLED = 0x20000, UNICODE_N_FAR = 10 };
typedef struct unicode_range {
  uint32_t first, last;
  unicode_class class;
} unicode_range;
extern const uint8_t unicode_index[], unicode_leaves[][8];
extern const uint16_t unicode_blocks[][8];
extern const unicode_range unicode_far[];

#endif
