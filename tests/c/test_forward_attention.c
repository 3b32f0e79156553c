/* test_forward_attention.c: parts of attention put together against float64, and one part against
 * the whole: a maximum in any part, and scores so far apart that parts count for nothing. That the
 * bits know no threads and no batches is test_forward.c's matter. */
#include <math.h>

#include "check.h"
#include "forward_parts.h"
#include "kernels.h"

enum { N_POS = 11, N_Q = 2, D = 8, FLOATS = N_Q * (D + 2) };

static float q[N_Q * D], k[N_POS * D], v[N_POS * D];

static void fill(float spread) {
  uint32_t state = 7;
  for (int i = 0; i < N_POS * D; i++) {
    state = state * 1664525 + 1013904223;
    k[i] = spread * ((float)(state >> 8) * 0x1p-23f - 1);
    v[i] = (float)(state >> 20) * 0x1p-11f - 1;
    if (i < N_Q * D) q[i] = (float)(state >> 16) * 0x1p-15f - 1;
  }
}

static double exact(int h, int d) {
  double score[N_POS], max = -INFINITY, sum = 0, out = 0;
  for (int i = 0; i < N_POS; i++) {
    score[i] = 0;
    for (int j = 0; j < D; j++) score[i] += (double)q[h * D + j] * (double)k[i * D + j];
    max = fmax(max, score[i]);
  }
  for (int i = 0; i < N_POS; i++) {
    sum += exp(score[i] - max);
    out += exp(score[i] - max) * (double)v[i * D + d];
  }
  return out / sum;
}

/* Parts of `length` positions each. */
static void attend(size_t length, float *out) {
  float parts[N_POS * FLOATS], scores[N_Q * N_POS];
  size_t n = 0;
  for (size_t from = 0; from < N_POS; from += length, n++) {
    float *part = parts + n * FLOATS;
    attention_args a = {.out = part,
                        .max = part + N_Q * D,
                        .sum = part + N_Q * (D + 1),
                        .q = q,
                        .k = k + from * D,
                        .v = v + from * D,
                        .k_bytes = D * sizeof *k,
                        .v_bytes = D * sizeof *v,
                        .n_q = N_Q,
                        .n_pos = N_POS - from < length ? N_POS - from : length,
                        .head_dim = D,
                        .scale = 1,
                        .scores = scores};
    kernels_find(NULL)->attention(&a);
  }
  for (size_t h = 0; h < N_Q; h++) merge_head(parts, n, FLOATS, h, N_Q, D, out + h * D);
}

int main(void) {
  const float spreads[] = {0, 1, 10, 100, 1000}; /* of scores: up to thousands */
  for (size_t s = 0; s < sizeof spreads / sizeof *spreads; s++) {
    fill(spreads[s]);
    for (size_t length = 1; length <= N_POS; length++) {
      float out[N_Q * D];
      attend(length, out);
      for (int i = 0; i < N_Q * D; i++) {
        /* a score of size s has s * 1e-7 of rounding, and so has its share */
        double y = exact(i / D, i % D), tolerance = 1e-6 * (1 + (double)spreads[s]);
        CHECK_MSG(fabs((double)out[i] - y) < tolerance, "parts of %zu, spread %g: %g, not %g",
                  length, (double)spreads[s], (double)out[i], y);
      }
    }
  }
  return check_report("test_forward_attention");
}
