/* forward.c: the decoder, as in "LLaMA: Open and Efficient Foundation Language Models"
 * (2302.13971): x += Wo attention(rope(Wq n), rope(Wk n), Wv n), n = rmsnorm(x); x += W_down
 * (silu(W_gate n) * W_up n). Layer 5. Prefill and decode are this same code, with T > 1 or T = 1
 * tokens. Where another family departs from LLaMA, its row of model_config.c says so or a weight
 * is there: LayerNorm, biases, norms of q and k or of what a block adds, GELU, a window.
 *
 * Work is handed to the pool by rows of a matrix, tokens, or (token, head) pairs. No sum is ever
 * split between threads, and no result depends on T, so the bits depend on neither (DESIGN rule 6).
 */
#include "forward.h"

#include "error.h"
#include "forward_parts.h"
#include "quant.h"

/* ---- matrix products: up to three matrices that read the same input, in one job ---- */

enum { ROW_UNIT = 16 }; /* rows are dealt to threads in groups of this many */

/* The products of a pass in order: those of each layer, then the logits. */
enum { QKV, ATTENTION_OUT, GATE_UP, DOWN, N_PRODUCTS, LOGITS = N_PRODUCTS };

static size_t product_at(size_t layer, size_t product) { return layer * N_PRODUCTS + product; }

typedef struct matrices {
  const weight *w[MAX_AHEAD]; /* three at most: all can be asked for ahead */
  size_t n, n_rows;           /* n_rows: of all */
} matrices;

static matrices matrices_of(const llm_model *m, size_t at) {
  size_t layer = at / N_PRODUCTS;
  const layer_weights *l = &m->layers[layer];
  matrices all;
  switch (layer < (size_t)m->config.n_layer ? at % N_PRODUCTS : LOGITS) {
  case QKV: all = (matrices){{&l->wq, &l->wk, &l->wv}, 3, 0}; break;
  case ATTENTION_OUT: all = (matrices){{&l->wo}, 1, 0}; break;
  case GATE_UP: all = (matrices){{&l->w_gate, &l->w_up}, 2, 0}; break;
  case DOWN: all = (matrices){{&l->w_down}, 1, 0}; break;
  default: all = (matrices){{&m->output}, 1, 0};
  }
  if (all.n == 2 && m->arch->ffn == FFN_GELU) all = (matrices){{&l->w_up}, 1, 0};
  for (size_t i = 0; i < all.n; i++) all.n_rows += all.w[i]->n_out;
  return all;
}

/* The rows r0 to r1 of matrix i that rows begin to end of all are. */
static void rows_of(const matrices *all, size_t i, size_t begin, size_t end, size_t *r0,
                    size_t *r1) {
  size_t base = 0, n = all->w[i]->n_out;
  for (size_t k = 0; k < i; k++) base += all->w[k]->n_out;
  *r0 = begin > base ? begin - base : 0;
  *r1 = end > base ? end - base : 0;
  if (*r0 > n) *r0 = n;
  if (*r1 > n) *r1 = n;
}

typedef struct matmul_job {
  llm_context *c;
  matrices all, next; /* next: those of the product that follows */
  float *const *y;    /* (T, n_out) of each matrix */
} matmul_job;

static void add_bias(const llm_context *c, const matmul_args *m, const float *bias, size_t r0,
                     size_t r1) {
  for (size_t t = 0; t < m->act->n_tok; t++)
    c->kernels->add(m->y + t * m->ldy + r0, bias + r0, r1 - r0);
}

static void matmul_rows(const matmul_job *job, size_t begin, size_t end, void *scratch) {
  llm_context *c = job->c;
  for (size_t i = 0, r0, r1; i < job->all.n; i++) {
    const weight *w = job->all.w[i];
    matmul_args args = {w->data, w->n_out, &c->act, job->y[i], w->n_out};
    rows_of(&job->all, i, begin, end, &r0, &r1);
    if (r0 < r1) c->kernels->matmul[w->type](&args, r0, r1, scratch);
    if (r0 < r1 && w->bias) add_bias(c, &args, w->bias, r0, r1);
  }
}

/* A thread that waits, while another works on rows alone or is slower, asks for the weights that it
 * will read next: those of its share of the next product. */
static void ask_ahead(const matmul_job *job, int share, int n_shares) {
  thread_ahead ahead = {0};
  size_t begin, end, r0, r1;
  thread_share(job->next.n_rows, ROW_UNIT, share, n_shares, &begin, &end);
  for (size_t i = 0; i < job->next.n; i++) {
    const weight *w = job->next.w[i];
    size_t row_bytes = type_row_bytes(w->type, w->n_in);
    rows_of(&job->next, i, begin, end, &r0, &r1);
    ahead.from[i] = (const char *)w->data + r0 * row_bytes;
    ahead.n_bytes[i] = (r1 - r0) * row_bytes;
  }
  thread_pool_ahead(job->c->pool, share, &ahead);
}

static void matmul_thread(void *arg, int thread, int n_threads) {
  const matmul_job *job = arg;
  thread_pool *pool = job->c->pool;
  void *scratch = job->c->matmul_scratch + (size_t)thread * job->c->matmul_scratch_bytes;
  size_t begin, end;
  int share = thread;
  while (thread_pool_take(pool, job->all.n_rows, ROW_UNIT, &share, n_threads, &begin, &end))
    matmul_rows(job, begin, end, scratch);
  ask_ahead(job, thread, n_threads);
}

/* y_i = W_i x + b_i of all matrices of a product, for the prepared input c->act. */
static void matmul(llm_context *c, size_t at, float *const *y) {
  size_t n_products = product_at((size_t)c->model->config.n_layer - 1, LOGITS) + 1;
  matmul_job job = {c, matrices_of(c->model, at), matrices_of(c->model, (at + 1) % n_products), y};
  for (size_t i = 0; c->observer && i < job.all.n; i++)
    c->observer(c->observer_user, job.all.w[i]->data, c->act.x, c->act.n_tok, c->act.n_in);
  thread_pool_run(c->pool, matmul_thread, &job);
}

/* ---- row work: one token at a time, all threads when there are many ---- */

typedef struct rows_job {
  llm_context *c;
  size_t n_rows;
  void (*row)(llm_context *c, size_t t, const void *arg);
  const void *arg;
} rows_job;

static void rows_thread(void *arg, int thread, int n_threads) {
  const rows_job *job = arg;
  size_t begin, end;
  thread_share(job->n_rows, 1, thread, n_threads, &begin, &end);
  for (size_t t = begin; t < end; t++) job->row(job->c, t, job->arg);
}

void for_rows(llm_context *c, size_t n_rows, void (*row)(llm_context *c, size_t t, const void *arg),
              const void *arg) {
  rows_job job = {c, n_rows, row, arg};
  if (n_rows == 1)
    row(c, 0, arg);
  else
    thread_pool_run(c->pool, rows_thread, &job);
}

void prepare_row(llm_context *c, size_t t, const float *x, size_t n) {
  if (n % 32) return; /* no quantized matrix has such a width */
  c->kernels->quantize_row(x, n, c->act.q + t * (n / 32));
}

static void set_input(llm_context *c, const float *x, size_t n_tok, size_t n_in) {
  c->act.x = x;
  c->act.n_tok = n_tok;
  c->act.n_in = n_in;
}

/* ---- the steps of a layer, one token each ---- */

static void expand_row(const llm_context *c, const weight *w, size_t row, float *dst) {
  const char *src = (const char *)w->data + row * type_row_bytes(w->type, w->n_in);
  c->kernels->dequantize(w->type, src, w->n_in, dst);
}

static void embed_row(llm_context *c, size_t t, const void *arg) {
  const llm_model *m = c->model;
  size_t n = (size_t)m->config.n_embd;
  float *x = c->x + t * n, *position = c->xn + t * n;
  expand_row(c, &m->tok_embd, (size_t)((const int32_t *)arg)[t], x);
  if (m->arch->scaled_embedding)
    for (size_t i = 0; i < n; i++) x[i] *= m->embed_scale;
  if (m->arch->rope == ROPE_NONE) {
    expand_row(c, &m->pos_embd, context_position(c, t), position);
    c->kernels->add(x, position, n);
  }
}

static void rope_angles_row(llm_context *c, size_t t, const void *arg) {
  context_fill_rope(c, arg, t, context_position(c, t));
}

static void norm(const llm_context *c, float *y, const float *x, const norm_weight *w) {
  const llm_config *m = &c->model->config;
  if (w->bias)
    c->kernels->layernorm(y, x, w->weight, w->bias, (size_t)m->n_embd, m->norm_eps);
  else
    c->kernels->rmsnorm(y, x, w->weight, (size_t)m->n_embd, m->norm_eps);
}

/* x += the output that the last block left in xn. */
static void add_output(llm_context *c, size_t t, const norm_weight *post) {
  size_t n = (size_t)c->model->config.n_embd;
  float *xn = c->xn + t * n;
  if (post->weight) norm(c, xn, xn, post);
  c->kernels->add(c->x + t * n, xn, n);
}

typedef struct norm_args { /* x += output of the last block; xn = norm(x), prepared */
  const norm_weight *post; /* NULL: no block came before */
  const norm_weight *norm;
  int quantize;
} norm_args;

static void norm_row(llm_context *c, size_t t, const void *arg) {
  const norm_args *a = arg;
  size_t n = (size_t)c->model->config.n_embd;
  float *xn = c->xn + t * n;
  if (a->post) add_output(c, t, a->post);
  norm(c, xn, c->x + t * n, a->norm);
  if (a->quantize) prepare_row(c, t, xn, n);
}

/* gate = act(gate) * up, or act(gate) where there is no gate and gate holds W_up x. */
static void activate_row(llm_context *c, size_t t, const void *arg) {
  size_t n = (size_t)c->model->config.n_ff;
  float *gate = c->gate + t * n, *up = c->up + t * n;
  switch (c->model->arch->ffn) {
  case FFN_SWIGLU: c->kernels->swiglu(gate, gate, up, n); break;
  case FFN_GEGLU: c->kernels->geglu(gate, gate, up, n); break;
  case FFN_GELU: c->kernels->gelu(gate, gate, n); break;
  }
  if (*(const int *)arg) prepare_row(c, t, gate, n);
}

/* ---- the pass ---- */

static int any_quantized(const weight *a, const weight *b, const weight *c) {
  return type_is_quantized(a->type) || type_is_quantized(b->type) || type_is_quantized(c->type);
}

/* Each block first adds the output of the one before to x, and leaves its own in c->xn. */
static void attention_block(llm_context *c, size_t layer, size_t n_tok) {
  const llm_config *m = &c->model->config;
  const layer_weights *l = &c->model->layers[layer];
  const norm_weight *post = layer ? &l[-1].ffn_post_norm : NULL;
  norm_args args = {post, &l->attn_norm, any_quantized(&l->wq, &l->wk, &l->wv)};
  for_rows(c, n_tok, norm_row, &args);
  set_input(c, c->xn, n_tok, (size_t)m->n_embd);
  matmul(c, product_at(layer, QKV), (float *[]){c->q, c->k, c->v});
  for_rows(c, n_tok, place_and_store_row, &layer);
  attention(c, layer, n_tok);
  set_input(c, c->att, n_tok, (size_t)(m->n_head * m->head_dim));
  matmul(c, product_at(layer, ATTENTION_OUT), &c->xn);
}

static void ffn_block(llm_context *c, size_t layer, size_t n_tok) {
  const llm_config *m = &c->model->config;
  const layer_weights *l = &c->model->layers[layer];
  norm_args args = {&l->attn_post_norm, &l->ffn_norm,
                    any_quantized(&l->w_gate, &l->w_up, &l->w_up)};
  int quantize = type_is_quantized(l->w_down.type);
  for_rows(c, n_tok, norm_row, &args);
  set_input(c, c->xn, n_tok, (size_t)m->n_embd);
  matmul(c, product_at(layer, GATE_UP), (float *[]){c->gate, c->up});
  for_rows(c, n_tok, activate_row, &quantize);
  set_input(c, c->gate, n_tok, (size_t)m->n_ff);
  matmul(c, product_at(layer, DOWN), &c->xn);
}

static void add_output_row(llm_context *c, size_t t, const void *arg) { add_output(c, t, arg); }

llm_status forward_tokens(llm_context *c, const int32_t *ids, size_t n_ids, llm_error *err) {
  const llm_model *m = c->model;
  size_t n_layer = (size_t)m->config.n_layer;
  for_rows(c, n_ids, embed_row, ids);
  if (!context_slides(c)) for_rows(c, n_ids, rope_angles_row, &c->rope[0]);
  if (!context_slides(c) && m->config.sliding_window)
    for_rows(c, n_ids, rope_angles_row, &c->rope[1]);
  for (size_t layer = 0; layer < n_layer; layer++) {
    if (c->options.cancel_check && c->options.cancel_check(c->options.cancel_user))
      return error_set(err, LLM_ERR_CANCELLED, "cancelled");
    attention_block(c, layer, n_ids);
    ffn_block(c, layer, n_ids);
  }
  for_rows(c, n_ids, add_output_row, &m->layers[n_layer - 1].ffn_post_norm);
  if (!c->lanes) c->n_past += n_ids;
  return LLM_OK;
}

llm_status forward_lanes(llm_context *c, const int32_t *ids, const lane_row *lanes, size_t n_ids,
                         llm_error *err) {
  c->lanes = lanes;
  llm_status status = forward_tokens(c, ids, n_ids, err);
  c->lanes = NULL;
  return status;
}

void forward_hidden(llm_context *c, size_t first_row, size_t n_rows) {
  const llm_model *m = c->model;
  size_t n_embd = (size_t)m->config.n_embd;
  for (size_t t = 0; t < n_rows; t++) { /* few rows: not worth a job of their own */
    const float *x = c->x + (first_row + t) * n_embd;
    norm(c, c->xn + t * n_embd, x, &m->out_norm);
  }
}

void forward_logits(llm_context *c, size_t first_row, size_t n_rows, float *logits) {
  const llm_model *m = c->model;
  size_t n_embd = (size_t)m->config.n_embd;
  forward_hidden(c, first_row, n_rows);
  for (size_t t = 0; t < n_rows && type_is_quantized(m->output.type); t++)
    prepare_row(c, t, c->xn + t * n_embd, n_embd);
  set_input(c, c->xn, n_rows, n_embd);
  matmul(c, product_at((size_t)m->config.n_layer - 1, LOGITS), &logits);
}

/* ---- public ---- */

static llm_status check_ids(const llm_context *c, const int32_t *ids, size_t n_ids, size_t n_rows,
                            llm_error *err) {
  if (n_ids == 0) return error_set(err, LLM_ERR_ARG, "no tokens to evaluate");
  if (n_rows > n_ids)
    return error_set(err, LLM_ERR_ARG, "logits of %zu rows asked for %zu tokens", n_rows, n_ids);
  for (size_t i = 0; i < n_ids; i++)
    if (ids[i] < 0 || ids[i] >= c->model->config.n_vocab)
      return error_set(err, LLM_ERR_ARG, "token %zu has id %d, outside the vocabulary of %lld", i,
                       (int)ids[i], (long long)c->model->config.n_vocab);
  if (n_ids > c->n_ctx - c->n_past && !context_slides(c))
    return error_set_full(err, (int64_t)(n_ids + c->n_past), (int64_t)c->n_ctx,
                          "%zu tokens do not fit a context of %zu that holds %zu", n_ids, c->n_ctx,
                          c->n_past);
  return LLM_OK;
}

llm_status llm_context_eval(llm_context *context, const int32_t *ids, size_t n_ids, float *logits,
                            size_t n_rows, llm_error *err) {
  llm_status status = check_ids(context, ids, n_ids, n_rows, err);
  if (status) return status;
  size_t held = context->n_past, n_vocab = (size_t)context->model->config.n_vocab;
  size_t first_wanted = n_ids - n_rows;
  for (size_t done = 0; done < n_ids;) {
    size_t room = context_make_room(context), n = n_ids - done;
    if (n > room) n = room;
    if (n > N_BATCH) n = N_BATCH;
    status = forward_tokens(context, ids + done, n, err);
    if (status) { /* what slid out cannot come back */
      if (context->n_read == context->n_past) llm_context_truncate(context, (int64_t)held, NULL);
      return status;
    }
    context_note(context, ids + done, n);
    if (done + n > first_wanted) {
      size_t row = first_wanted > done ? first_wanted - done : 0;
      forward_logits(context, row, n - row, logits + (done + row - first_wanted) * n_vocab);
    }
    done += n;
  }
  return error_clear(err);
}
