/* sampler.c: from logits to one token. Layer 1; depends on numeric.h only. Order: top-k, top-p on
 * the distribution that is left, temperature last. The generator is our own (xoshiro256++, Blackman
 * and Vigna 2019, seeded by splitmix64), so that a seed means the same text everywhere. */
#include <float.h>
#include <inttypes.h>
#include <stdlib.h>

#include "error.h"
#include "numeric.h"

typedef struct candidate {
  int32_t id;
  float logit;
} candidate;

struct llm_sampler {
  llm_sampler_options options;
  size_t n_vocab;
  uint64_t state[4];
  candidate *heap; /* (n_vocab) */
  double *weight;  /* (n_vocab) of the kept candidates */
};

/* ---- random numbers ---- */

static uint64_t rotate(uint64_t x, int k) { return (x << k) | (x >> (64 - k)); }

static void random_seed(uint64_t state[4], uint64_t seed) {
  for (int i = 0; i < 4; i++) {
    uint64_t z = seed += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    state[i] = z ^ (z >> 31);
  }
}

/* Uniform in [0, 1), 53 bits. */
static double random_double(uint64_t s[4]) {
  uint64_t result = rotate(s[0] + s[3], 23) + s[0], t = s[1] << 17;
  s[2] ^= s[0];
  s[3] ^= s[1];
  s[1] ^= s[2];
  s[0] ^= s[3];
  s[2] ^= t;
  s[3] = rotate(s[3], 45);
  return (double)(result >> 11) * 0x1p-53;
}

/* ---- candidates: a max-heap by logit, ties to the lower id ---- */

static int better(candidate a, candidate b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

static void sift_down(candidate *heap, size_t n, size_t i) {
  for (;;) {
    size_t best = i, left = 2 * i + 1;
    if (left < n && better(heap[left], heap[best])) best = left;
    if (left + 1 < n && better(heap[left + 1], heap[best])) best = left + 1;
    if (best == i) return;
    candidate swap = heap[i];
    heap[i] = heap[best];
    heap[best] = swap;
    i = best;
  }
}

/* Finite logits: NaN counts as the least, infinities as the largest numbers. */
static float tame(float logit) {
  if (!(logit >= -FLT_MAX)) return -FLT_MAX;
  return logit > FLT_MAX ? FLT_MAX : logit;
}

static int32_t arg_max(const float *logits, size_t n) {
  size_t best = 0;
  for (size_t i = 1; i < n; i++)
    if (tame(logits[i]) > tame(logits[best])) best = i;
  return (int32_t)best;
}

/* Moves the best remaining candidate behind the heap of *n and returns it. */
static candidate heap_pop(candidate *heap, size_t *n) {
  candidate top = heap[0];
  heap[0] = heap[--*n];
  heap[*n] = top;
  sift_down(heap, *n, 0);
  return top;
}

static double heap_fill(llm_sampler *s, const float *logits) {
  float max = -FLT_MAX;
  for (size_t i = 0; i < s->n_vocab; i++) {
    s->heap[i] = (candidate){(int32_t)i, tame(logits[i])};
    if (s->heap[i].logit > max) max = s->heap[i].logit;
  }
  return max;
}

/* Leaves the kept candidates in descending order at the end of s->heap, last first; returns how
 * many. total is the weight that top-p's share is taken of. */
static size_t keep_best(llm_sampler *s, double max) {
  size_t left = s->n_vocab, limit = s->n_vocab, kept = 0;
  if (s->options.top_k > 0 && (size_t)s->options.top_k < limit) limit = (size_t)s->options.top_k;
  for (size_t i = left / 2; i-- > 0;) sift_down(s->heap, left, i);
  double total = 0, sum = 0;
  if (limit == s->n_vocab)
    for (size_t i = 0; i < s->n_vocab; i++) total += num_exp(s->heap[i].logit - max);
  while (kept < limit) {
    s->weight[kept++] = num_exp(heap_pop(s->heap, &left).logit - max);
    sum += s->weight[kept - 1];
    if (limit == s->n_vocab && sum >= (double)s->options.top_p * total) return kept;
  }
  if (limit == s->n_vocab) return kept;
  double share = (double)s->options.top_p * sum;
  sum = 0;
  for (size_t i = 0; i < kept; i++)
    if ((sum += s->weight[i]) >= share) return i + 1;
  return kept;
}

int32_t llm_sampler_sample(llm_sampler *s, const float *logits) {
  if (s->options.temperature == 0) return arg_max(logits, s->n_vocab);
  double max = heap_fill(s, logits), sum = 0;
  size_t kept = s->n_vocab;
  int sorted = s->options.top_k > 0 || s->options.top_p < 1;
  if (sorted) kept = keep_best(s, max);
  for (size_t i = 0; i < kept; i++) {
    const candidate *c = &s->heap[sorted ? s->n_vocab - 1 - i : i];
    s->weight[i] = num_exp((c->logit - max) / (double)s->options.temperature);
    sum += s->weight[i];
  }
  double u = random_double(s->state) * sum;
  size_t pick = 0;
  while (pick + 1 < kept && (u -= s->weight[pick]) >= 0) pick++;
  return s->heap[sorted ? s->n_vocab - 1 - pick : pick].id;
}

/* ---- public ---- */

int64_t llm_sampler_n_vocab(const llm_sampler *sampler) { return (int64_t)sampler->n_vocab; }

llm_sampler_options llm_sampler_default_options(void) {
  return (llm_sampler_options){.temperature = 0.8f, .top_k = 40, .top_p = 0.95f};
}

static llm_status check_options(int64_t n_vocab, const llm_sampler_options *o, llm_error *err) {
  if (n_vocab < 1 || n_vocab > INT32_MAX)
    return error_set(err, LLM_ERR_ARG, "n_vocab is %" PRId64 ", expected at least 1", n_vocab);
  if (!(o->temperature >= 0 && o->temperature <= FLT_MAX))
    return error_set(err, LLM_ERR_ARG, "temperature is %g, expected 0 or more", o->temperature);
  if (o->top_k < 0)
    return error_set(err, LLM_ERR_ARG, "top_k is %d, expected 0 (off) or more", (int)o->top_k);
  if (!(o->top_p > 0 && o->top_p <= 1))
    return error_set(err, LLM_ERR_ARG, "top_p is %g, expected above 0 and at most 1", o->top_p);
  return LLM_OK;
}

llm_status llm_sampler_new(llm_sampler **out, int64_t n_vocab, const llm_sampler_options *options,
                           llm_error *err) {
  *out = NULL;
  llm_sampler_options o = options ? *options : llm_sampler_default_options();
  llm_status status = check_options(n_vocab, &o, err);
  if (status) return status;
  llm_sampler *s = calloc(1, sizeof *s);
  if (!s) return error_nomem(err, sizeof *s, "a sampler");
  s->options = o;
  s->n_vocab = (size_t)n_vocab;
  s->heap = malloc(s->n_vocab * sizeof *s->heap);
  s->weight = malloc(s->n_vocab * sizeof *s->weight);
  if (!s->heap || !s->weight) {
    llm_sampler_free(s);
    return error_nomem(err, (uint64_t)n_vocab * sizeof *s->heap, "a sampler");
  }
  random_seed(s->state, o.seed);
  *out = s;
  return error_clear(err);
}

void llm_sampler_free(llm_sampler *sampler) {
  if (!sampler) return;
  free(sampler->heap);
  free(sampler->weight);
  free(sampler);
}
