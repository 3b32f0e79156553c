/* context.c: construction, sizes and position of a context. Layer 4. */
#include "context.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "hash.h"
#include "numeric.h"
#include "quant.h"

enum { DEFAULT_N_CTX = 4096, DEFAULT_N_SINK = 4, ALIGN = 64 };

llm_context_options llm_context_default_options(void) {
  llm_context_options options = {0};
  options.kv_type = LLM_TYPE_F16;
  options.n_sink = DEFAULT_N_SINK;
  return options;
}

/* ---- options ---- */

static llm_status resolve_n_ctx(llm_context *c, llm_error *err) {
  int64_t trained = c->model->config.n_ctx_train, asked = c->options.n_ctx;
  if (asked < 0 || asked > INT32_MAX)
    return error_set(err, LLM_ERR_ARG, "n_ctx is %" PRId64 ", expected 1 to %d", asked, INT32_MAX);
  if (asked > trained && !c->options.allow_long_context)
    return error_set(err, LLM_ERR_ARG,
                     "a context of %" PRId64 " tokens is longer than the %" PRId64
                     " that the model was trained on",
                     asked, trained);
  if (asked > trained && c->model->arch->rope == ROPE_NONE)
    return error_set(err, LLM_ERR_ARG,
                     "a context of %" PRId64 " tokens: the model has learned %" PRId64
                     " positions and cannot go beyond",
                     asked, trained);
  if (asked == 0) asked = trained < DEFAULT_N_CTX ? trained : DEFAULT_N_CTX;
  c->n_ctx = (size_t)asked;
  return LLM_OK;
}

static llm_status resolve_options(llm_context *c, llm_error *err) {
  const llm_context_options *o = &c->options;
  if (o->n_threads < 0 || o->n_threads > MAX_THREADS)
    return error_set(err, LLM_ERR_ARG, "n_threads is %d, expected 0 (all cores) to %d",
                     (int)o->n_threads, MAX_THREADS);
  if (o->kv_type != LLM_TYPE_F16 && o->kv_type != LLM_TYPE_F32 && o->kv_type != LLM_TYPE_Q8_0)
    return error_set(err, LLM_ERR_ARG, "kv_type %d is none of F16, F32 and Q8_0", (int)o->kv_type);
  if (o->kv_type == LLM_TYPE_Q8_0 && c->model->config.head_dim % QK)
    return error_set(err, LLM_ERR_ARG,
                     "a Q8_0 cache needs heads of whole blocks of %d elements, these have %" PRId64
                     " (f16 fits any)",
                     QK, c->model->config.head_dim);
  if (o->on_full < LLM_ON_FULL_STOP || o->on_full > LLM_ON_FULL_SLIDE)
    return error_set(err, LLM_ERR_ARG, "on_full %d is none of stop, forget and slide",
                     (int)o->on_full);
  if (o->on_full == LLM_ON_FULL_SLIDE && c->model->arch->rope == ROPE_NONE)
    return error_set(err, LLM_ERR_UNSUPPORTED,
                     "the window cannot slide: %s has learned positions, which cannot be turned",
                     c->model->arch->name);
  llm_status status = llm_kernels_check(o->kernels, err);
  if (status) return status;
  c->kernels = kernels_find(o->kernels);
  status = resolve_n_ctx(c, err);
  if (status || o->on_full != LLM_ON_FULL_SLIDE) return status;
  if (o->n_sink < 0 || (size_t)o->n_sink >= c->n_ctx)
    return error_set(err, LLM_ERR_ARG,
                     "a window of %zu tokens cannot slide behind %" PRId64
                     " first tokens: n_sink must be 0 to %zu",
                     c->n_ctx, o->n_sink, c->n_ctx - 1);
  c->n_sink = (size_t)o->n_sink;
  return LLM_OK;
}

/* ---- memory ---- */

/* What no size_t holds is SIZE_MAX, which no allocation gives. */
static size_t times(size_t a, size_t b) { return b && a > SIZE_MAX / b ? SIZE_MAX : a * b; }
static size_t plus(size_t a, size_t b) { return a > SIZE_MAX - b ? SIZE_MAX : a + b; }

/* Two passes over the same list: the first adds up sizes, the second hands out addresses. */
typedef struct arena {
  char *base;
  size_t used;
} arena;

static void *arena_take(arena *a, size_t rows, size_t width, size_t size) {
  void *p = a->base ? a->base + a->used : NULL;
  size_t n_bytes = plus(times(times(rows, width), size), ALIGN - 1) / ALIGN * ALIGN;
  a->used = plus(a->used, n_bytes);
  return p;
}

static size_t max_size(size_t a, size_t b) { return a > b ? a : b; }

/* Of the products over inputs of these widths. The widest need not ask for the most: where it is no
 * whole number of blocks, no quantized product reads it. */
static size_t scratch_bytes(const kernels *kernels, const size_t *widths, size_t n) {
  size_t most = 0;
  for (size_t i = 0; i < n; i++) most = max_size(most, kernels->scratch_bytes(widths[i]));
  return (most + ALIGN - 1) / ALIGN * ALIGN;
}

/* Tokens that attention may take at once. */
static size_t attended_together(const llm_context *c) {
  int can = c->kernels->attention_tile && c->model->config.head_dim % QK == 0;
  return can ? ATTENTION_TOKENS : 1;
}

static void lay_out(llm_context *c, arena *a) {
  const llm_config *m = &c->model->config;
  size_t rows = c->n_ctx < N_BATCH ? c->n_ctx : N_BATCH;
  size_t rope_rows = context_slides(c) ? c->n_ctx : rows;
  size_t n_embd = (size_t)m->n_embd, n_ff = (size_t)m->n_ff, half = (size_t)m->rope_dim / 2;
  size_t n_q = (size_t)(m->n_head * m->head_dim), n_kv = (size_t)(m->n_kv_head * m->head_dim);
  size_t widest = max_size(max_size(n_embd, n_q), n_ff), n_threads = (size_t)c->options.n_threads;

  c->x = arena_take(a, rows, n_embd, sizeof(float));
  c->xn = arena_take(a, rows, n_embd, sizeof(float));
  c->q = arena_take(a, rows, n_q, sizeof(float));
  c->att = arena_take(a, rows, n_q, sizeof(float));
  c->k = arena_take(a, rows, n_kv, sizeof(float));
  c->v = arena_take(a, rows, n_kv, sizeof(float));
  c->gate = arena_take(a, rows, n_ff, sizeof(float));
  c->up = arena_take(a, rows, n_ff, sizeof(float));
  for (int local = 0; local < 2; local++) {
    c->rope[local].inv_freq = arena_take(a, 1, half, sizeof(double));
    c->rope[local].cos = arena_take(a, rope_rows, half, sizeof(float));
    c->rope[local].sin = arena_take(a, rope_rows, half, sizeof(float));
  }
  c->act.q = arena_take(a, rows, widest / 32 + 1, sizeof *c->act.q);
  size_t n_parts = (c->n_ctx + ATTENTION_PART - 1) / ATTENTION_PART;
  c->n_together = attended_together(c);
  c->n_scores = (size_t)(m->n_head / m->n_kv_head) * ATTENTION_PART;
  if (c->n_together > 1)
    c->n_scores = max_size(c->n_scores, attention_tile_floats((size_t)m->head_dim, ATTENTION_PART));
  c->scores = arena_take(a, n_threads, c->n_scores, sizeof(float));
  c->n_parts = max_size(rows, times(n_parts, c->n_together));
  c->parts = arena_take(a, c->n_parts, n_q + 2 * (size_t)m->n_head, sizeof(float));
  c->matmul_scratch_bytes = scratch_bytes(c->kernels, (size_t[]){n_embd, n_q, n_ff}, 3);
  c->matmul_scratch = arena_take(a, n_threads, c->matmul_scratch_bytes, 1);
  c->ids = arena_take(a, 1, c->n_ctx, sizeof *c->ids);
  if (!context_slides(c)) return;
  c->slide_k = arena_take(a, n_kv, c->n_ctx, sizeof(float));
  c->slide_v = arena_take(a, (size_t)m->n_kv_head, c->n_ctx, c->kv_row_bytes);
}

llm_status context_plan(llm_context *c, const llm_model *model, const llm_context_options *options,
                        llm_error *err) {
  const llm_config *m = &model->config;
  *c = (llm_context){.model = model};
  c->options = options ? *options : llm_context_default_options();
  llm_status status = resolve_options(c, err);
  if (status) return status;
  if (c->options.n_threads == 0) c->options.n_threads = threads_available();
  c->kv_row_bytes = type_row_bytes((llm_type)c->options.kv_type, (size_t)m->head_dim);
  size_t per_token = times(times((size_t)m->n_layer, (size_t)m->n_kv_head), c->kv_row_bytes);
  c->kv_bytes = times(2, times(per_token, c->n_ctx));
  arena a = {0};
  lay_out(c, &a);
  c->arena_bytes = a.used;
  return LLM_OK;
}

static llm_status allocate(llm_context *c, llm_error *err) {
  c->arena = aligned_alloc(ALIGN, c->arena_bytes / ALIGN * ALIGN);
  if (!c->arena) return error_nomem(err, c->arena_bytes, "the scratch of a context");
  arena a = {c->arena, 0};
  lay_out(c, &a);
  c->k_cache = calloc(c->kv_bytes / 2, 1); /* calloc: the pages come zeroed and untouched */
  c->v_cache = calloc(c->kv_bytes / 2, 1);
  if (!c->k_cache || !c->v_cache)
    return error_nomem(err, c->kv_bytes, "the key/value cache: lower n_ctx");
  return LLM_OK;
}

/* theta^(-2i / rope_dim), slowed down by what stretches the model's context: a factor for all, or
 * one for each frequency. Local layers never see far and are not stretched. */
static void fill_inv_freq(llm_context *c) {
  const llm_model *m = c->model;
  const double dim = (double)m->config.rope_dim, scale = (double)m->rope_scale;
  for (int64_t i = 0; i < m->config.rope_dim / 2; i++) {
    double factor = m->rope_factors ? (double)m->rope_factors[i] : 1, two_i = (double)(2 * i);
    double global = num_exp(-num_log((double)m->config.rope_theta) * two_i / dim);
    c->rope[0].inv_freq[i] = global / scale / factor;
    c->rope[1].inv_freq[i] = num_exp(-num_log((double)m->rope_theta_local) * two_i / dim);
  }
}

void context_fill_rope(const llm_context *c, const rope_table *rope, size_t row, size_t position) {
  size_t half = (size_t)c->model->config.rope_dim / 2;
  for (size_t i = 0; i < half; i++) {
    double s, co;
    num_sincos((double)position * rope->inv_freq[i], &s, &co);
    rope->sin[row * half + i] = (float)s;
    rope->cos[row * half + i] = (float)co;
  }
}

/* The places of a window that slides never change. */
static void fill_places(llm_context *c) {
  for (size_t p = 0; p < c->n_ctx; p++) {
    context_fill_rope(c, &c->rope[0], p, p);
    if (c->model->config.sliding_window) context_fill_rope(c, &c->rope[1], p, p);
  }
}

/* ---- what is held ---- */

size_t context_slot(const llm_context *c, size_t p) {
  if (p < c->n_sink || !context_slides(c)) return p;
  return c->n_sink + (p - c->n_sink + c->ring_start) % (c->n_ctx - c->n_sink);
}

size_t context_make_room(llm_context *c) {
  if (c->n_past < c->n_ctx || !context_slides(c)) return c->n_ctx - c->n_past;
  c->ring_start = (c->ring_start + 1) % (c->n_ctx - c->n_sink);
  c->n_past--;
  memmove(c->ids + c->n_sink, c->ids + c->n_sink + 1, (c->n_past - c->n_sink) * sizeof *c->ids);
  return 1;
}

static uint64_t hash_ids(uint64_t hash, const int32_t *ids, size_t n) {
  for (size_t i = 0; i < n; i++) hash = hash_mix(hash, (uint64_t)(uint32_t)ids[i] + 1);
  return hash;
}

void context_note(llm_context *c, const int32_t *ids, size_t n) {
  memcpy(c->ids + c->n_past - n, ids, n * sizeof *ids);
  c->n_read += n;
  if (context_slides(c)) c->read_hash = hash_ids(c->read_hash, ids, n);
}

size_t context_common_beginning(const llm_context *c, const int32_t *ids, size_t n) {
  if (c->n_read > c->n_past) /* some slid out */
    return c->n_read <= n && hash_ids(0, ids, c->n_read) == c->read_hash ? c->n_read : 0;
  size_t same = 0;
  while (same < n && same < c->n_past && ids[same] == c->ids[same]) same++;
  return same;
}

/* ---- public ---- */

llm_status llm_context_new(llm_context **out, const llm_model *model,
                           const llm_context_options *options, llm_error *err) {
  *out = NULL;
  llm_context *c = calloc(1, sizeof *c);
  if (!c) return error_nomem(err, sizeof *c, "a context");
  llm_status status = context_plan(c, model, options, err);
  if (!status) status = allocate(c, err);
  if (!status) status = thread_pool_new(&c->pool, c->options.n_threads, err);
  if (status) {
    llm_context_free(c);
    return status;
  }
  fill_inv_freq(c);
  if (context_slides(c)) fill_places(c);
  *out = c;
  return error_clear(err);
}

void llm_context_free(llm_context *context) {
  if (!context) return;
  thread_pool_free(context->pool);
  free(context->k_cache);
  free(context->v_cache);
  free(context->arena);
  free(context);
}

int64_t llm_context_n_ctx(const llm_context *context) { return (int64_t)context->n_ctx; }
int64_t llm_context_n_past(const llm_context *context) { return (int64_t)context->n_past; }
const int32_t *llm_context_ids(const llm_context *context) { return context->ids; }
int32_t llm_context_n_threads(const llm_context *context) { return context->options.n_threads; }
const char *llm_context_kernels(const llm_context *context) { return context->kernels->name; }

void llm_context_observe(llm_context *context, llm_input_observer observer, void *user) {
  context->observer = observer;
  context->observer_user = user;
}

llm_status llm_context_truncate(llm_context *context, int64_t n_keep, llm_error *err) {
  if (n_keep < 0 || (size_t)n_keep > context->n_past)
    return error_set(err, LLM_ERR_ARG, "cannot keep %" PRId64 " of %zu tokens", n_keep,
                     context->n_past);
  int slid = context->n_read > context->n_past;
  context->n_past = (size_t)n_keep;
  if (!slid || n_keep == 0) {
    context->n_read = context->n_past;
    context->read_hash = hash_ids(0, context->ids, context->n_past);
    context->ring_start = 0;
  } else {
    context->read_hash = 0; /* of a text that is no longer known */
  }
  return error_clear(err);
}
