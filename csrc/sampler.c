/* sampler.c: from logits to one token. Layer 1. Order: penalties, logit bias, top-k, top-p on
 * the distribution that is left, min-p, temperature last (llm.h has the formulas). The generator is
 * our own (xoshiro256++, Blackman and Vigna 2019, seeded by splitmix64), so that a seed means the
 * same text everywhere. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "logprobs.h"
#include "numeric.h"

typedef struct candidate {
  int32_t id;
  float logit;
} candidate;

enum {
  MAX_LAST_N = 1 << 20, /* of penalty_last_n: bounds the memory of the history */
  GROUP = 64            /* logits */
};

struct llm_sampler {
  llm_sampler_options options;
  size_t n_vocab;
  uint64_t state[4];
  const float *logits; /* (n_vocab) that the choice is from: the caller's, or own_logits */
  float *own_logits;   /* (n_vocab) changed by penalties and bias */
  float *most;         /* (n_groups) the largest of each GROUP of them */
  candidate *heap;     /* (n_vocab) */
  double *weight;      /* (n_vocab) of the kept candidates */
  int32_t *history;    /* (penalty_last_n) ring of the newest accepted tokens */
  size_t n_accepted;   /* ever; the next one goes to history[n_accepted % penalty_last_n] */
  int32_t *count;      /* (n_vocab) zeros, but while the history is being counted */
  int32_t *bias_ids;   /* (n_biases) */
  float *bias_values;  /* (n_biases) */
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

/* Moves the best remaining candidate behind the heap of *n and returns it. */
static candidate heap_pop(candidate *heap, size_t *n) {
  candidate top = heap[0];
  heap[0] = heap[--*n];
  heap[*n] = top;
  sift_down(heap, *n, 0);
  return top;
}

/* ---- before the choice: penalties and bias ---- */

static float penalize(const llm_sampler_options *o, float logit, int32_t count) {
  double x = logit > 0 ? (double)logit / (double)o->repeat_penalty
                       : (double)logit * (double)o->repeat_penalty;
  return logit_tame(x - (double)o->presence_penalty - count * (double)o->frequency_penalty);
}

static int has_penalties(const llm_sampler_options *o) {
  return o->repeat_penalty != 1 || o->presence_penalty != 0 || o->frequency_penalty != 0;
}

static float logit_at(const llm_sampler *s, size_t id) { return logit_tame((double)s->logits[id]); }

/* Each token of the history once, with the number of times that it stands there. */
static void apply_penalties(llm_sampler *s) {
  const llm_sampler_options *o = &s->options;
  size_t n = s->n_accepted, last_n = (size_t)o->penalty_last_n;
  if (!has_penalties(o)) return;
  if (n > last_n) n = last_n;
  for (size_t i = 0; i < n; i++) s->count[s->history[i]]++;
  for (size_t i = 0; i < n; i++) {
    int32_t id = s->history[i];
    if (s->count[id]) s->own_logits[id] = penalize(o, logit_at(s, (size_t)id), s->count[id]);
    s->count[id] = 0;
  }
}

static void apply_bias(llm_sampler *s) {
  for (size_t i = 0; i < s->options.n_biases; i++) {
    size_t id = (size_t)s->bias_ids[i];
    s->own_logits[id] = logit_tame((double)logit_at(s, id) + (double)s->bias_values[i]);
  }
}

/* ---- the largest of each group: few groups hold what can be chosen, and only those are looked at
 * one by one: a scan of all would take as long as a layer ---- */

static size_t n_groups(const llm_sampler *s) { return (s->n_vocab + GROUP - 1) / GROUP; }

static size_t group_end(const llm_sampler *s, size_t g) {
  return (g + 1) * GROUP < s->n_vocab ? (g + 1) * GROUP : s->n_vocab;
}

/* The logits as the choice sees them; returns the likeliest. Where all are minus infinity, nothing
 * tells them apart: all become 0. */
static candidate fill(llm_sampler *s, const float *logits) {
  size_t best = 0;
  s->logits = logits;
  if (has_penalties(&s->options) || s->options.n_biases) {
    s->logits = memcpy(s->own_logits, logits, s->n_vocab * sizeof *logits);
    apply_penalties(s);
    apply_bias(s);
  }
  for (size_t g = 0; g < n_groups(s); g++) {
    size_t from = g * GROUP;
    s->most[g] = logit_tame((double)num_most(s->logits + from, group_end(s, g) - from));
    if (s->most[g] > s->most[best]) best = g;
  }
  if (s->most[best] == -INFINITY) {
    s->logits = memset(s->own_logits, 0, s->n_vocab * sizeof *logits);
    for (size_t g = 0; g < n_groups(s); g++) s->most[g] = 0;
  }
  size_t id = best * GROUP;
  while (logit_at(s, id) < s->most[best]) id++;
  return (candidate){(int32_t)id, s->most[best]};
}

/* ---- the choice ---- */

/* The k-th largest of the groups' largest: what is below it is not among the k best. */
static float threshold(llm_sampler *s, size_t k) {
  size_t n = n_groups(s);
  if (k > n) return -INFINITY;
  for (size_t g = 0; g < n; g++) s->heap[g] = (candidate){(int32_t)g, s->most[g]};
  for (size_t i = n / 2; i-- > 0;) sift_down(s->heap, n, i);
  while (--k) heap_pop(s->heap, &n);
  return s->heap[0].logit;
}

/* Puts those that can be among the k best into the heap and returns how many. */
static size_t gather(llm_sampler *s, size_t k) {
  float least = threshold(s, k);
  size_t n = 0;
  for (size_t g = 0; g < n_groups(s); g++)
    for (size_t i = g * GROUP; s->most[g] >= least && i < group_end(s, g); i++)
      if (logit_at(s, i) >= least) s->heap[n++] = (candidate){(int32_t)i, logit_at(s, i)};
  for (size_t i = n / 2; i-- > 0;) sift_down(s->heap, n, i);
  return n;
}

/* Leaves the kept candidates in descending order before s->heap + *end, last first; returns how
 * many. total is the weight that top-p's share is taken of. */
static size_t keep_best(llm_sampler *s, double max, size_t *end) {
  size_t limit = s->n_vocab, kept = 0;
  if (s->options.top_k > 0 && (size_t)s->options.top_k < limit) limit = (size_t)s->options.top_k;
  size_t left = *end = gather(s, limit);
  double top_p = s->options.top_p < 1 ? (double)s->options.top_p : INFINITY; /* sums are rounded */
  double total = 0, sum = 0;
  if (limit == s->n_vocab) {
    for (size_t i = 0; i < s->n_vocab; i++) s->weight[i] = s->heap[i].logit - max;
    num_exp_all(s->weight, s->n_vocab);
    for (size_t i = 0; i < s->n_vocab; i++) total += s->weight[i];
  }
  while (kept < limit) {
    s->weight[kept++] = num_exp(heap_pop(s->heap, &left).logit - max);
    sum += s->weight[kept - 1];
    if (limit == s->n_vocab && sum >= top_p * total) return kept;
  }
  if (limit == s->n_vocab) return kept;
  double share = top_p * sum;
  sum = 0;
  for (size_t i = 0; i < kept; i++)
    if ((sum += s->weight[i]) >= share) return i + 1;
  return kept;
}

/* From logits below the largest, to shares in the draw. The probability over the largest one is
 * e^below; min-p looks at it as it is before temperature. */
static void draw_weights(const llm_sampler_options *o, double *below, size_t n) {
  for (size_t i = 0; i < n; i++)
    below[i] = o->min_p > 0 && num_exp(below[i]) < (double)o->min_p
                   ? -INFINITY
                   : below[i] / (double)o->temperature;
  num_exp_all(below, n);
}

int32_t llm_sampler_sample(llm_sampler *s, const float *logits) {
  candidate best = fill(s, logits);
  if (s->options.temperature == 0) return best.id;
  double max = best.logit, sum = 0;
  size_t kept = s->n_vocab, end = s->n_vocab;
  int sorted = s->options.top_k > 0 || s->options.top_p < 1;
  if (sorted) kept = keep_best(s, max, &end);
  for (size_t i = 0; i < kept; i++) {
    float logit = sorted ? s->heap[end - 1 - i].logit : logit_at(s, i);
    s->weight[i] = logit - max;
  }
  draw_weights(&s->options, s->weight, kept);
  for (size_t i = 0; i < kept; i++) sum += s->weight[i];
  double u = random_double(s->state) * sum;
  size_t pick = 0;
  while (pick + 1 < kept && (u -= s->weight[pick]) >= 0) pick++;
  while (pick > 0 && s->weight[pick] == 0)
    pick--; /* rounding walked past the last that can be drawn */
  return sorted ? s->heap[end - 1 - pick].id : (int32_t)pick;
}

/* ---- history ---- */

void llm_sampler_accept(llm_sampler *s, const int32_t *ids, size_t n_ids) {
  size_t last_n = (size_t)s->options.penalty_last_n;
  if (last_n == 0) return;
  for (size_t i = n_ids > last_n ? n_ids - last_n : 0; i < n_ids; i++)
    if (ids[i] >= 0 && (size_t)ids[i] < s->n_vocab) s->history[s->n_accepted++ % last_n] = ids[i];
}

void llm_sampler_reset(llm_sampler *s) { s->n_accepted = 0; }

/* ---- public ---- */

int64_t llm_sampler_n_vocab(const llm_sampler *sampler) { return (int64_t)sampler->n_vocab; }

llm_sampler_options llm_sampler_default_options(void) {
  return (llm_sampler_options){
      .temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .repeat_penalty = 1, .penalty_last_n = 64};
}

static llm_status check_penalties(const llm_sampler_options *o, llm_error *err) {
  if (!(o->repeat_penalty > 0 && o->repeat_penalty <= FLT_MAX))
    return error_set(err, LLM_ERR_ARG, "repeat_penalty is %g, expected above 0 (1: off)",
                     o->repeat_penalty);
  if (!(o->presence_penalty >= -FLT_MAX && o->presence_penalty <= FLT_MAX))
    return error_set(err, LLM_ERR_ARG, "presence_penalty is %g, expected a finite number",
                     o->presence_penalty);
  if (!(o->frequency_penalty >= -FLT_MAX && o->frequency_penalty <= FLT_MAX))
    return error_set(err, LLM_ERR_ARG, "frequency_penalty is %g, expected a finite number",
                     o->frequency_penalty);
  if (o->penalty_last_n < 0 || o->penalty_last_n > MAX_LAST_N)
    return error_set(err, LLM_ERR_ARG, "penalty_last_n is %d, expected 0 (none) to %d",
                     (int)o->penalty_last_n, MAX_LAST_N);
  return LLM_OK;
}

static llm_status check_biases(int64_t n_vocab, const llm_sampler_options *o, llm_error *err) {
  for (size_t i = 0; i < o->n_biases; i++) {
    if (o->bias_ids[i] < 0 || o->bias_ids[i] >= n_vocab)
      return error_set(err, LLM_ERR_ARG,
                       "logit bias %zu is for id %d, outside the vocabulary of %" PRId64, i,
                       (int)o->bias_ids[i], n_vocab);
    if (!(o->bias_values[i] <= FLT_MAX))
      return error_set(err, LLM_ERR_ARG,
                       "the logit bias of id %d is %g, expected a finite number or -inf (a ban)",
                       (int)o->bias_ids[i], o->bias_values[i]);
  }
  return LLM_OK;
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
  if (!(o->min_p >= 0 && o->min_p <= 1))
    return error_set(err, LLM_ERR_ARG, "min_p is %g, expected 0 (off) to 1", o->min_p);
  llm_status status = check_penalties(o, err);
  return status ? status : check_biases(n_vocab, o, err);
}

/* An array of at least one element, so that NULL means failure alone. */
static void *array_of(size_t n, size_t size) { return calloc(n ? n : 1, size); }

static void copy(void *dst, const void *src, size_t n_bytes) {
  if (n_bytes) memcpy(dst, src, n_bytes);
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
  s->own_logits = array_of(s->n_vocab, sizeof *s->own_logits);
  s->most = array_of(n_groups(s), sizeof *s->most);
  s->heap = array_of(s->n_vocab, sizeof *s->heap);
  s->weight = array_of(s->n_vocab, sizeof *s->weight);
  s->count = array_of(s->n_vocab, sizeof *s->count);
  s->history = array_of((size_t)o.penalty_last_n, sizeof *s->history);
  s->bias_ids = array_of(o.n_biases, sizeof *s->bias_ids);
  s->bias_values = array_of(o.n_biases, sizeof *s->bias_values);
  if (!s->own_logits || !s->most || !s->heap || !s->weight || !s->count || !s->history ||
      !s->bias_ids || !s->bias_values) {
    llm_sampler_free(s);
    return error_nomem(err, (uint64_t)n_vocab * sizeof *s->heap, "a sampler");
  }
  copy(s->bias_ids, o.bias_ids, o.n_biases * sizeof *s->bias_ids);
  copy(s->bias_values, o.bias_values, o.n_biases * sizeof *s->bias_values);
  random_seed(s->state, o.seed);
  *out = s;
  return error_clear(err);
}

void llm_sampler_free(llm_sampler *sampler) {
  if (!sampler) return;
  free(sampler->own_logits);
  free(sampler->most);
  free(sampler->heap);
  free(sampler->weight);
  free(sampler->count);
  free(sampler->history);
  free(sampler->bias_ids);
  free(sampler->bias_values);
  free(sampler);
}
