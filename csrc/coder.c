/* coder.c: see coder.h. */
#include "coder.h"

#include <math.h> /* INFINITY only */

#include "numeric.h"

/* ---- the coder: range in [2^56, 2^64) before each symbol ---- */

#define RANGE_LEAST ((uint64_t)1 << 56)

encoder encoder_begin(uint8_t *bytes, size_t capacity) {
  return (encoder){0, UINT64_MAX, bytes, 0, capacity};
}

static void carry(encoder *e) {
  for (size_t i = e->n < e->capacity ? e->n : e->capacity; i-- > 0;)
    if (++e->bytes[i]) return;
}

static void put_top_byte(encoder *e) {
  if (e->n < e->capacity) e->bytes[e->n] = (uint8_t)(e->low >> 56);
  e->n++;
  e->low <<= 8;
}

void encoder_put(encoder *e, interval part) {
  uint64_t unit = e->range / part.total, low = e->low + unit * part.begin;
  if (low < e->low) carry(e);
  e->low = low;
  for (e->range = unit * part.size; e->range < RANGE_LEAST; e->range <<= 8) put_top_byte(e);
}

/* One byte more names a number in the range, the rest being zeros: the next multiple of 2^56. */
void encoder_end(encoder *e) {
  uint64_t low = e->low + (RANGE_LEAST - 1);
  if (low < e->low) carry(e);
  e->low = low;
  put_top_byte(e);
}

static uint64_t next_byte(decoder *d) { return d->at < d->n ? d->bytes[d->at++] : 0; }

decoder decoder_begin(const uint8_t *bytes, size_t n) {
  decoder d = {0, UINT64_MAX, bytes, n, 0};
  for (int i = 0; i < 8; i++) d.code = d.code << 8 | next_byte(&d);
  return d;
}

uint64_t decoder_peek(const decoder *d, uint64_t total) { return d->code / (d->range / total); }

void decoder_take(decoder *d, interval part) {
  uint64_t unit = d->range / part.total;
  d->code -= unit * part.begin;
  for (d->range = unit * part.size; d->range < RANGE_LEAST; d->range <<= 8)
    d->code = d->code << 8 | next_byte(d);
}

/* ---- frequencies ---- */

/* 2^f for |f| <= 1/2: the Taylor series of e^(f ln 2), relative error below 3e-6. Any constants
 * would do that encoder and decoder share; changing one is a new version of the archive. */
#define EXP2_1 0.693147181f
#define EXP2_2 0.240226507f
#define EXP2_3 0.0555041087f
#define EXP2_4 0.00961812911f
#define EXP2_5 0.00133335581f
#define LEAST  -29.0f /* 2^28 2^-29 is cut to 0 */

/* Without branches or calls, so that compilers make vector code of it, with the same bits. */
static inline uint32_t frequency(float logit, float max) {
  float x = (logit - max) * EXPF_LOG2E;
  x = x > LEAST ? x : LEAST; /* NaN too */
  float shifted = x + EXPF_MAGIC, f = x - (shifted - EXPF_MAGIC);
  float p = 1 + f * (EXP2_1 + f * (EXP2_2 + f * (EXP2_3 + f * (EXP2_4 + f * EXP2_5))));
  uint32_t bits = f32_bits(p) + ((f32_bits(shifted) - f32_bits(EXPF_MAGIC) + 28) << 23);
  return (uint32_t)(int32_t)f32_from_bits(bits) + 1;
}

float logits_max(const float *logits, size_t n_vocab) {
  float max = -INFINITY;
  for (size_t i = 0; i < n_vocab; i++) max = logits[i] > max ? logits[i] : max;
  return max;
}

uint64_t logits_weight(const float *logits, float max, size_t begin, size_t end) {
  uint64_t sum = 0;
  for (size_t i = begin; i < end; i++) sum += frequency(logits[i], max);
  return sum;
}

enum { STRETCH = 256 }; /* tokens passed over at once */

size_t logits_find(const float *logits, float max, size_t n_vocab, uint64_t at, interval *part) {
  uint64_t begin = 0, size;
  size_t i = 0;
  for (; i + STRETCH < n_vocab; i += STRETCH, begin += size) {
    size = logits_weight(logits, max, i, i + STRETCH);
    if (at - begin < size) break;
  }
  for (; i + 1 < n_vocab; i++, begin += size) {
    size = frequency(logits[i], max);
    if (at - begin < size) break;
  }
  part->begin = begin;
  part->size = frequency(logits[i], max);
  return i;
}
