/* test_coder.c: what goes in comes out, at the size that the frequencies promise; carries; logits
 * at their extremes. test_zip.py compares with a slow coder in Python's integers. */
#include "coder.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

enum { N = 3000 };

static uint64_t state = 1;
static uint64_t draw(uint64_t n) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (state >> 11) % n;
}

/* Intervals of all sizes, most often likely ones; some at the end of the range, where carries come
 * from. */
static interval any_interval(void) {
  uint64_t total = (uint64_t)1 << (1 + draw(53)), size = 1 + draw(total);
  if (draw(2)) size = 1 + draw(total < 8 ? total : 8);
  if (draw(4) == 0) return (interval){total - size, size, total};
  return (interval){draw(total - size + 1), size, total};
}

static void test_round_trip(void) {
  static interval parts[N];
  static uint8_t bytes[8 * N];
  double bits = 0;
  encoder e = encoder_begin(bytes, sizeof bytes);
  for (int i = 0; i < N; i++) {
    parts[i] = any_interval();
    bits += log2((double)parts[i].total / (double)parts[i].size);
    encoder_put(&e, parts[i]);
  }
  encoder_end(&e);
  CHECK(e.n <= e.capacity);
  CHECK_MSG((double)e.n * 8 < bits * 1.002 + 16, "%zu bytes for %g bits", e.n, bits);
  decoder d = decoder_begin(bytes, e.n);
  for (int i = 0; i < N; i++) {
    uint64_t at = decoder_peek(&d, parts[i].total);
    CHECK_MSG(at >= parts[i].begin && at - parts[i].begin < parts[i].size, "symbol %d", i);
    decoder_take(&d, parts[i]);
  }
}

/* The top of every range: 0xff bytes pile up until something carries through all of them. */
static void test_carry(void) {
  uint8_t bytes[64];
  encoder e = encoder_begin(bytes, sizeof bytes);
  for (int i = 0; i < 20; i++) encoder_put(&e, (interval){254, 2, 256});
  encoder_put(&e, (interval){65535, 1, 65536});
  encoder_end(&e);
  decoder d = decoder_begin(bytes, e.n);
  for (int i = 0; i < 20; i++) {
    CHECK(decoder_peek(&d, 256) >= 254);
    decoder_take(&d, (interval){254, 2, 256});
  }
  CHECK(decoder_peek(&d, 65536) == 65535);
}

static void test_capacity(void) {
  uint8_t bytes[4] = {0, 0, 0, 7};
  encoder e = encoder_begin(bytes, 3);
  for (int i = 0; i < 10; i++) encoder_put(&e, (interval){255, 1, 256});
  encoder_end(&e);
  CHECK(e.n > 3 && bytes[3] == 7);
}

static void check_logits(const float *logits, size_t n) {
  float max = logits_max(logits, n);
  uint64_t total = logits_weight(logits, max, 0, n), begin = 0;
  for (size_t i = 0; i < n; i++) {
    interval part = {0};
    uint64_t size = logits_weight(logits, max, i, i + 1);
    CHECK(size >= 1);
    CHECK(logits_find(logits, max, n, begin, &part) == i && part.begin == begin &&
          part.size == size);
    CHECK(logits_find(logits, max, n, begin + size - 1, &part) == i);
    begin += size;
  }
  CHECK(begin == total);
}

static void test_frequencies(void) {
  static float logits[1000];
  for (int i = 0; i < 1000; i++) logits[i] = (float)(20 * sin(i * 1.7) - i * 0.01);
  check_logits(logits, 1000);
  check_logits(logits, 256);
  check_logits(logits, 257);
  check_logits(logits, 1);
  float max = logits_max(logits, 1000);
  for (size_t i = 0; i < 1000; i++) {
    double expected = 1 + 0x1p28 * exp((double)logits[i] - (double)max);
    double found = (double)logits_weight(logits, max, i, i + 1);
    CHECK_MSG(fabs(found - expected) <= 1 + 1e-5 * expected, "%g, expected %g", found, expected);
  }
  float hostile[] = {NAN, -INFINITY, 3, 2, -INFINITY, 1e30f};
  check_logits(hostile, 6);
  check_logits(hostile, 4);
  CHECK(logits_weight(hostile, 3, 0, 2) == 2);
  check_logits(hostile, 2); /* none is finite */
  hostile[2] = INFINITY;
  check_logits(hostile, 6);
}

int main(void) {
  for (int i = 0; i < 20; i++) test_round_trip();
  test_carry();
  test_capacity();
  test_frequencies();
  return check_report("test_coder");
}
