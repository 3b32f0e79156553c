/* forward_attention.c: between the products of q, k, v and that of the output: norms and turns of
 * heads, the cache, attention. Layer 5. What a token sees is cut into parts of ATTENTION_PART
 * positions, "Flash-Decoding" (Dao and others, 2023): one token of a long text is work for all
 * threads. The parts' results are put together in rising order, so the bits know no threads. */
#include <string.h>

#include "forward_parts.h"
#include "numeric.h"
#include "quant.h"

/* ---- the cache ---- */

/* Where the key or value of a position begins in its cache. */
static size_t cache_offset(const llm_context *c, size_t layer, size_t head, size_t position) {
  size_t n_kv_head = (size_t)c->model->config.n_kv_head;
  return ((layer * n_kv_head + head) * c->n_ctx + position) * c->kv_row_bytes;
}

/* A row of n elements as Q8_0, with the rounding of activations. */
static void store_q8_0(const kernels *kernels, block_q8_0 *dst, const float *src, size_t n) {
  for (size_t b = 0; b < n / QK; b++) {
    act_block a;
    kernels->quantize_row(src + b * QK, QK, &a);
    memcpy(dst[b].q, a.q, QK);
    dst[b].d = f32_to_f16(a.scale);
  }
}

static void cache_store(const llm_context *c, char *cache, size_t offset, const float *src,
                        size_t n) {
  void *dst = cache + offset;
  switch (c->options.kv_type) {
  case LLM_TYPE_F16: c->kernels->f32_to_f16(dst, src, n); return;
  case LLM_TYPE_Q8_0: store_q8_0(c->kernels, dst, src, n); return;
  default: memcpy(dst, src, n * sizeof *src); return;
  }
}

/* Turns one head of q or k by a row of the angles. */
static void turn(const llm_context *c, const rope_table *rope, size_t row, float *head) {
  size_t half = (size_t)c->model->config.rope_dim / 2;
  const float *co = rope->cos + row * half, *s = rope->sin + row * half;
  switch (c->model->arch->rope) {
  case ROPE_PAIRS: c->kernels->rope(head, co, s, half); break;
  case ROPE_HALVES: c->kernels->rope_halves(head, co, s, half); break;
  case ROPE_NONE: break;
  }
}

static void norm_head(const llm_context *c, const float *w, float *head) {
  const llm_config *m = &c->model->config;
  if (w) c->kernels->rmsnorm(head, head, w, (size_t)m->head_dim, m->norm_eps);
}

void place_and_store_row(llm_context *c, size_t t, const void *arg) {
  size_t layer = *(const size_t *)arg;
  const llm_config *m = &c->model->config;
  const layer_weights *l = &c->model->layers[layer];
  const rope_table *rope = &c->rope[l->local];
  size_t d = (size_t)m->head_dim, row = context_rope_row(c, t);
  size_t slot = context_row_slot(c, t, context_position(c, t));
  float *q = c->q + t * (size_t)m->n_head * d, *k = c->k + t * (size_t)m->n_kv_head * d;
  const float *v = c->v + t * (size_t)m->n_kv_head * d;
  for (size_t h = 0; h < (size_t)m->n_head; h++) {
    norm_head(c, l->q_norm, q + h * d);
    turn(c, rope, row, q + h * d);
  }
  for (size_t h = 0; h < (size_t)m->n_kv_head; h++) {
    size_t offset = cache_offset(c, layer, h, slot);
    norm_head(c, l->k_norm, k + h * d);
    if (!context_slides(c)) turn(c, rope, row, k + h * d);
    cache_store(c, c->k_cache, offset, k + h * d, d);
    cache_store(c, c->v_cache, offset, v + h * d, d);
  }
}

/* ---- attention: a unit is one part of the positions that a group of tokens sees, for one
 * key/value head and the query heads that share it ---- */

typedef struct attention_job {
  llm_context *c;
  size_t layer;
  size_t window;         /* positions that a token sees, itself included; 0: all */
  size_t first_seen;     /* by any token of the pass */
  size_t n_together;     /* tokens of a group: those of the kernel that takes many, or 1 */
  size_t t0, t1, n_part; /* tokens t0 to t1 of the pass see n_part parts at most */
} attention_job;

/* The first position that token t sees. */
static size_t sees_from(const attention_job *job, size_t t) {
  size_t n_pos = context_position(job->c, t) + 1;
  return job->window && n_pos > job->window ? n_pos - job->window : 0;
}

static size_t parts_of(const attention_job *job, size_t t) {
  size_t n_seen = context_position(job->c, t) + 1 - sees_from(job, t);
  return (n_seen + ATTENTION_PART - 1) / ATTENTION_PART;
}

/* Position first_seen + p of a window that slides: keys turned by their place, values in order. */
static void gather_row(llm_context *c, size_t p, const void *arg) {
  const attention_job *job = arg;
  const llm_config *m = &c->model->config;
  size_t d = (size_t)m->head_dim, position = job->first_seen + p;
  const rope_table *rope = &c->rope[c->model->layers[job->layer].local];
  for (size_t h = 0; h < (size_t)m->n_kv_head; h++) {
    size_t from = cache_offset(c, job->layer, h, context_slot(c, position));
    size_t to = h * c->n_ctx + position;
    float *k = c->slide_k + to * d;
    c->kernels->dequantize((llm_type)c->options.kv_type, c->k_cache + from, d, k);
    turn(c, rope, position, k);
    memcpy(c->slide_v + to * c->kv_row_bytes, c->v_cache + from, c->kv_row_bytes);
  }
}

/* Where attention of token t reads keys and values of a head from a position on. */
static void point_at(const attention_job *job, size_t t, size_t head, size_t position,
                     attention_args *a) {
  const llm_context *c = job->c;
  a->k_type = a->v_type = (llm_type)c->options.kv_type;
  a->k_bytes = a->v_bytes = c->kv_row_bytes;
  if (context_slides(c)) {
    size_t at = head * c->n_ctx + position;
    a->k_type = LLM_TYPE_F32;
    a->k_bytes = (size_t)c->model->config.head_dim * sizeof(float);
    a->k = (char *)c->slide_k + at * a->k_bytes;
    a->v = c->slide_v + at * a->v_bytes;
  } else {
    size_t offset = cache_offset(c, job->layer, head, context_row_slot(c, t, position));
    a->k = c->k_cache + offset;
    a->v = c->v_cache + offset;
  }
}

enum {
  FEW_UNITS = 4, /* a thread */
  FEW_TOKENS = 8 /* of a group: fewer are faster one by one */
};

static size_t heads_per_key(const llm_config *m) { return (size_t)(m->n_head / m->n_kv_head); }

/* Floats that a unit leaves: p v of its n_q heads, their maxima, their sums. */
static size_t part_floats(const llm_config *m) {
  return heads_per_key(m) * (size_t)(m->head_dim + 2);
}

static float *part_at(const attention_job *job, size_t t, size_t part, size_t head) {
  const llm_config *m = &job->c->model->config;
  size_t at = ((t - job->t0) * job->n_part + part) * (size_t)m->n_kv_head + head;
  return job->c->parts + at * part_floats(m);
}

/* Token t and query heads q0 to q1 of those that share a key/value head. */
static attention_args args_of(const attention_job *job, size_t t, size_t part, size_t head,
                              size_t q0, size_t q1, float *scores) {
  llm_context *c = job->c;
  const llm_config *m = &c->model->config;
  size_t d = (size_t)m->head_dim, n_q = heads_per_key(m);
  size_t from = sees_from(job, t) + part * ATTENTION_PART, to = context_position(c, t) + 1;
  float *out = part_at(job, t, part, head);
  attention_args args = {
      .out = out + q0 * d,
      .max = out + n_q * d + q0,
      .sum = out + n_q * (d + 1) + q0,
      .q = c->q + (t * (size_t)m->n_head + head * n_q + q0) * d,
      .n_q = q1 - q0,
      .n_pos = to - from < ATTENTION_PART ? to - from : ATTENTION_PART,
      .head_dim = d,
      .scale = c->model->attention_scale,
      .scores = scores,
  };
  point_at(job, t, head, from, &args);
  return args;
}

/* n tokens in a row by the kernel that takes many: no part begins between them. */
static void attend_together(const attention_job *job, const attention_args *first, size_t n) {
  const llm_config *m = &job->c->model->config;
  size_t seen = first->n_pos + n - 1;
  attention_tile x = {.first = *first, .n_tok = n};
  x.n_all = seen < ATTENTION_PART ? seen : ATTENTION_PART;
  x.q_apart = (size_t)(m->n_head * m->head_dim);
  x.out_apart = job->n_part * (size_t)m->n_kv_head * part_floats(m);
  job->c->kernels->attention_tile(&x);
}

/* Tokens of a pass come in groups, which end where a multiple of their size in the text does. */
static size_t groups_of(const attention_job *job) {
  size_t first = job->c->n_past + job->t0, last = job->c->n_past + job->t1 - 1;
  return last / job->n_together - first / job->n_together + 1;
}

static size_t group_begins(const attention_job *job, size_t group) {
  size_t first = job->c->n_past + job->t0, n = job->n_together;
  return group ? job->t0 + (first / n + group) * n - first : job->t0;
}

static void attention_unit(const attention_job *job, size_t unit, size_t q0, size_t q1,
                           float *scores) {
  size_t n_kv_head = (size_t)job->c->model->config.n_kv_head;
  size_t head = unit % n_kv_head, part = unit / n_kv_head % job->n_part;
  size_t group = unit / n_kv_head / job->n_part, t = group_begins(job, group);
  size_t end = group_begins(job, group + 1) < job->t1 ? group_begins(job, group + 1) : job->t1;
  int together = end - t >= FEW_TOKENS && sees_from(job, end - 1) == 0;
  for (; t < end; t += together ? end - t : 1) {
    if (part >= parts_of(job, t)) continue;
    attention_args first = args_of(job, t, part, head, q0, q1, scores);
    if (together)
      attend_together(job, &first, end - t);
    else
      job->c->kernels->attention(&first);
  }
}

/* Many units are dealt in turn, heads first: the last parts of a token are short, and later tokens
 * have more of them, so blocks would be uneven. Of few a thread may get one more than another, so
 * these are dealt by query heads: keys and values of a head between two threads are read twice. */
static void attention_thread(void *arg, int thread, int n_threads) {
  const attention_job *job = arg;
  const llm_config *m = &job->c->model->config;
  size_t n_q = heads_per_key(m), n = (size_t)n_threads;
  size_t n_units = groups_of(job) * job->n_part * (size_t)m->n_kv_head;
  float *scores = job->c->scores + (size_t)thread * job->c->n_scores;
  if (n_units >= FEW_UNITS * n || n_units % n == 0) {
    for (size_t u = (size_t)thread; u < n_units; u += n) attention_unit(job, u, 0, n_q, scores);
    return;
  }
  size_t begin, end;
  thread_share(n_units * n_q, 1, thread, n_threads, &begin, &end);
  for (size_t i = begin, q0, q1; i < end; i += q1 - q0) {
    q0 = i % n_q;
    q1 = q0 + end - i < n_q ? q0 + end - i : n_q;
    attention_unit(job, i / n_q, q0, q1, scores);
  }
}

/* out[j] += share * part[j] for a group of elements; loops of a fixed length become vectors. */
static void add_share(float *restrict out, const float *restrict part, float share) {
  for (size_t j = 0; j < LANES; j++) out[j] += share * part[j];
}

void merge_head(const float *parts, size_t n, size_t apart, size_t h, size_t n_q, size_t d,
                float *restrict out) {
  const float *max = parts + n_q * d + h, *sum = max + n_q;
  float all = max[0], total = 0;
  for (size_t i = 1; i < n; i++) all = max[i * apart] > all ? max[i * apart] : all;
  for (size_t j = 0; j < d; j++) out[j] = 0;
  for (size_t i = 0; i < n; i++) {
    const float *restrict part = parts + i * apart + h * d;
    float share = max[i * apart] == all ? 1 : num_expf(max[i * apart] - all);
    total += share * sum[i * apart];
    size_t j = 0;
    for (; j + LANES <= d; j += LANES) add_share(out + j, part + j, share);
    for (; j < d; j++) out[j] += share * part[j];
  }
  float inverse = 1.0f / total;
  for (size_t j = 0; j < d; j++) out[j] *= inverse;
}

/* att = softmax(scale * q k^T) v of token t0 + row, prepared. */
static void merge_row(llm_context *c, size_t row, const void *arg) {
  const attention_job *job = arg;
  const llm_config *m = &c->model->config;
  size_t d = (size_t)m->head_dim, n = (size_t)m->n_head * d, t = job->t0 + row;
  size_t n_q = heads_per_key(m), apart = (size_t)m->n_kv_head * part_floats(m);
  for (size_t h = 0; h < (size_t)m->n_head; h++)
    merge_head(part_at(job, t, 0, h / n_q), parts_of(job, t), apart, h % n_q, n_q, d,
               c->att + t * n + h * d);
  if (type_is_quantized(c->model->layers[job->layer].wo.type)) prepare_row(c, t, c->att + t * n, n);
}

/* As many tokens at once as there is room for their parts, in whole groups. */
void attention(llm_context *c, size_t layer, size_t n_tok) {
  const llm_model *m = c->model;
  size_t window = m->layers[layer].local ? (size_t)m->config.sliding_window : 0;
  size_t first_seen = window && c->n_past + 1 > window ? c->n_past + 1 - window : 0;
  attention_job job = {c, layer, window, first_seen, c->lanes ? 1 : c->n_together, 0, 0, 1};
  if (context_slides(c)) for_rows(c, c->n_past + n_tok - first_seen, gather_row, &job);
  for (size_t t = 0; t < n_tok; t++)
    if (job.n_part < parts_of(&job, t)) job.n_part = parts_of(&job, t);
  for (; job.t0 < n_tok; job.t0 = job.t1) {
    job.t1 = job.t0 + c->n_parts / job.n_part;
    size_t torn = (c->n_past + job.t1) % job.n_together;
    if (job.t1 > n_tok)
      job.t1 = n_tok;
    else if (job.t1 - job.t0 > torn)
      job.t1 -= torn;
    thread_pool_run(c->pool, attention_thread, &job);
    for_rows(c, job.t1 - job.t0, merge_row, &job);
  }
}
