/* coder.h: an arithmetic coder with 64-bit integers, and the model's logits as its frequencies.
 * Layer 1. After G. N. N. Martin 1979, "Range encoding"; the carry goes back into the bytes that
 * are written already. Encoder and decoder do the same integer operations, so they agree whenever
 * the logits do, bit for bit (DESIGN rule 6).
 *
 * Frequencies: of token i 1 + floor(2^28 e^(l_i - max)), in float multiplications and additions
 * alone (the same bits everywhere), so that every token can be coded; behind the tokens the escape,
 * CODER_ESCAPE. Totals stay below 2^50. */
#ifndef LLM_CODER_H
#define LLM_CODER_H

#include <stddef.h>
#include <stdint.h>

enum { CODER_ESCAPE = 1 << 14 }; /* 2^-14 of the likeliest token at most: 0.0001 bits a token */

typedef struct encoder {
  uint64_t low, range;
  uint8_t *bytes; /* (capacity) */
  size_t n, capacity;
} encoder;

typedef struct decoder {
  uint64_t code, range; /* code: of the bytes read, counted from the range's beginning */
  const uint8_t *bytes; /* (n); zeros follow */
  size_t n, at;
} decoder;

/* The part [begin, begin + size) of [0, total): size >= 1, total < 2^54. */
typedef struct interval {
  uint64_t begin, size, total;
} interval;

encoder encoder_begin(uint8_t *bytes, size_t capacity);
/* n goes on counting past the capacity, where nothing is written. */
void encoder_put(encoder *e, interval part);
void encoder_end(encoder *e);

decoder decoder_begin(const uint8_t *bytes, size_t n);
/* Where in [0, total) the next symbol lies; `total` or more for bytes that no encoder wrote.
 * decoder_take then goes past that symbol. */
uint64_t decoder_peek(const decoder *d, uint64_t total);
void decoder_take(decoder *d, interval part);

/* NaN counts as minus infinity; where no logit is finite, all tokens are equally likely. */
float logits_max(const float *logits, size_t n_vocab);
/* The sum of the frequencies of the tokens begin to end - 1. */
uint64_t logits_weight(const float *logits, float max, size_t begin, size_t end);
/* The token whose interval holds `at`, below the sum of all: its begin and size are set. */
size_t logits_find(const float *logits, float max, size_t n_vocab, uint64_t at, interval *part);

#endif
