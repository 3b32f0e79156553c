/* logprobs.c: log-probabilities of the raw distribution, before any option of a sampler. Layer 1.
 * The top ones are found by a heap of ids that lies in the caller's own array, so that a whole
 * vocabulary can be asked for without scratch. */
#include "logprobs.h"

#include <inttypes.h>

#include "error.h"
#include "numeric.h"

enum { CHUNK = 256 }; /* logits at a time */

/* The largest logit and the sum of e^(logit - max): ln p = logit - max - ln sum. */
typedef struct normalizer {
  double max, log_sum;
} normalizer;

/* l - max; where every logit is minus infinity, nothing tells the tokens apart. */
static double below_max(float logit, double max) {
  double l = (double)logit_tame((double)logit);
  return l == max ? 0 : l - max;
}

static normalizer normalize(const float *logits, size_t n_vocab) {
  double max = -INFINITY, sum = 0;
  for (size_t i = 0; i < n_vocab; i++) {
    double l = (double)logit_tame((double)logits[i]);
    if (l > max) max = l;
  }
  for (size_t i = 0, n; i < n_vocab; i += n) {
    double x[CHUNK];
    n = n_vocab - i < CHUNK ? n_vocab - i : CHUNK;
    for (size_t k = 0; k < n; k++) x[k] = below_max(logits[i + k], max);
    num_exp_all(x, n);
    for (size_t k = 0; k < n; k++) sum += x[k];
  }
  return (normalizer){max, num_log(sum)};
}

static double log_p(normalizer z, float logit) { return below_max(logit, z.max) - z.log_sum; }

double logprob_nats(const float *logits, size_t n_vocab, int32_t id) {
  return 0 - log_p(normalize(logits, n_vocab), logits[id]); /* no minus zero */
}

/* ---- the likeliest tokens: a heap of ids with the least likely on top ---- */

static int likelier(const float *logits, int32_t a, int32_t b) {
  float x = logit_tame((double)logits[a]), y = logit_tame((double)logits[b]);
  return x > y || (x == y && a < b);
}

static void sift_down(const float *logits, int32_t *heap, size_t n, size_t i) {
  for (;;) {
    size_t last = i, left = 2 * i + 1;
    if (left < n && likelier(logits, heap[last], heap[left])) last = left;
    if (left + 1 < n && likelier(logits, heap[last], heap[left + 1])) last = left + 1;
    if (last == i) return;
    int32_t swap = heap[i];
    heap[i] = heap[last];
    heap[last] = swap;
    i = last;
  }
}

/* The n likeliest ids, the likeliest first, ties to the lowest id. */
static void find_top(const float *logits, size_t n_vocab, int32_t *ids, size_t n) {
  for (size_t i = 0; i < n; i++) ids[i] = (int32_t)i;
  for (size_t i = n / 2; i-- > 0;) sift_down(logits, ids, n, i);
  for (size_t i = n; i < n_vocab && n; i++) {
    if (!likelier(logits, (int32_t)i, ids[0])) continue;
    ids[0] = (int32_t)i;
    sift_down(logits, ids, n, 0);
  }
  while (n > 1) { /* the least likely of those left goes behind them */
    int32_t least = ids[0];
    ids[0] = ids[--n];
    ids[n] = least;
    sift_down(logits, ids, n, 0);
  }
}

llm_status llm_logprobs(const float *logits, int64_t n_vocab, int32_t id, size_t n_top,
                        int32_t *top_ids, float *top_logprobs, float *logprob, llm_error *err) {
  if (n_vocab < 1 || n_vocab > INT32_MAX)
    return error_set(err, LLM_ERR_ARG, "n_vocab is %" PRId64 ", expected at least 1", n_vocab);
  if (logprob && (id < 0 || id >= n_vocab))
    return error_set(err, LLM_ERR_ARG, "id %d is outside the vocabulary of %" PRId64, (int)id,
                     n_vocab);
  if (n_top > (size_t)n_vocab)
    return error_set(err, LLM_ERR_ARG, "the top %zu tokens asked for, the vocabulary has %" PRId64,
                     n_top, n_vocab);
  normalizer z = normalize(logits, (size_t)n_vocab);
  find_top(logits, (size_t)n_vocab, top_ids, n_top);
  for (size_t i = 0; i < n_top; i++) top_logprobs[i] = (float)log_p(z, logits[top_ids[i]]);
  if (logprob) *logprob = (float)log_p(z, logits[id]);
  return error_clear(err);
}
