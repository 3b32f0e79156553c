/* train_attention.c: causal attention, forward and backward, by blocks of queries. Layer T.
 *
 * One unit of work is one batch entry and one key/value head with the heads that share it. Keys and
 * values are packed once per unit, as B of the product in train_gemm.c, and rounded where that
 * rounds; scores exist for one block of queries at a time, (q_block, T) per thread. The log-sum-exp
 * is kept and lets the backward make the probabilities again (Dao et al. 2022). Work above the
 * diagonal is left out by tiles. Sums run in an order that the shape decides; a unit belongs to one
 * thread. */
#include <float.h>

#include "train_ops.h"

enum { Q_BLOCK = 48 };   /* at least; a block's scores stay in the second-level cache */
enum { SEEN_UNIT = 96 }; /* a multiple of every mr and every nr */

/* ---- rows of scores; a row is a query of the block, `first` the block's first position ---- */

typedef struct llm_softmax_args {
  float *scores; /* in: q . k up to the query; out: exp(scale * (s - max)), zero up to `end` */
  int64_t ld, first, end;
  float scale;
  float *lse, *inverse;  /* by query of the block: log of the sum of exp, 1 / sum */
  const int32_t *starts; /* of the block's queries: what lies before is as what lies behind */
} llm_softmax_args;

PORT_INLINE void softmax_row(const llm_softmax_args *a, int64_t row) {
  float *s = a->scores + row * a->ld;
  const int64_t n = a->first + row + 1, whole = (n + 15) / 16 * 16;
  const int64_t start = a->starts ? a->starts[row] : 0;
  const float scale = a->scale;
  for (int64_t i = 0; i < start; i++) s[i] = -FLT_MAX;
  for (int64_t i = n; i < whole; i++) s[i] = -FLT_MAX; /* no ragged ends: these become zeros */
  ROW_MAX(top, i, whole, s[i]);
  const float shift = top * scale;
  EACH(i, whole) s[i] = port_exp(s[i] * scale - shift);
  ROW_SUM(total, i, whole, s[i]);
  for (int64_t i = whole; i < a->end; i++) s[i] = 0.0f;
  a->lse[row] = shift + (float)port_log((double)total);
  a->inverse[row] = 1.0f / total;
}
PORT_BUILDS(softmax)

typedef struct llm_scale_rows_args {
  float *x;
  int64_t ld, n;
  const float *factors;
} llm_scale_rows_args;

PORT_INLINE void scale_rows_row(const llm_scale_rows_args *a, int64_t row) {
  float *x = a->x + row * a->ld;
  const float factor = a->factors[row];
  EACH(i, a->n) x[i] *= factor;
}
PORT_BUILDS(scale_rows)

typedef struct llm_score_gradient_args {
  float *scores;   /* in: q . k; out: probabilities */
  float *gradient; /* in: do . v; out: d(loss) / d(q . k) */
  int64_t ld, first, end;
  float scale;
  const float *lse, *o, *d_o;
  int64_t ld_o, head_dim;
  const int32_t *starts; /* as above */
} llm_score_gradient_args;

PORT_INLINE void score_gradient_row(const llm_score_gradient_args *a, int64_t row) {
  float *p = a->scores + row * a->ld, *ds = a->gradient + row * a->ld;
  const float *o = a->o + row * a->ld_o, *d_o = a->d_o + row * a->ld_o;
  const int64_t n = a->first + row + 1, whole = (n + 15) / 16 * 16;
  const float scale = a->scale, lse = a->lse[row];
  for (int64_t i = 0; i < a->head_dim; i += 16) /* of all operands only o is far away still */
    __builtin_prefetch(o + 4 * a->ld_o + i);
  ROW_SUM(delta, i, a->head_dim, o[i] * d_o[i]);
  EACH(i, whole) {
    p[i] = port_exp(p[i] * scale - lse);
    ds[i] = p[i] * (ds[i] - delta) * scale;
  }
  const int64_t start = a->starts ? a->starts[row] : 0;
  for (int64_t i = 0; i < start; i++) p[i] = ds[i] = 0.0f;
  for (int64_t i = n; i < a->end || i < whole; i++) p[i] = ds[i] = 0.0f;
}
PORT_BUILDS(score_gradient)

/* ---- a unit of work ---- */

typedef struct attention_unit {
  const llm_ops *ops;
  const llm_attention_args *x;
  const int32_t *starts; /* of the batch entry's positions, or NULL */
  size_t T, D;           /* n_time, head_dim */
  size_t ld_q, ld_kv;    /* floats from position to position */
  size_t ld_s;           /* of a row of scores: an odd number of cache lines, against conflicts */
  size_t t_pad, d_pad;   /* T and D in whole panels */
  size_t q_block;        /* queries of a block: whole tiles */
  float scale;
  /* The thread's scratch, packed as steps. "by_time": transposed, panels over positions, (t_pad,
   * D); "by_dim": panels over head_dim, (rows, d_pad). */
  float *k_by_time, *v_by_time, *kv_by_dim; /* of the key/value head */
  float *q_by_dim, *do_by_dim;              /* of a block of queries */
  float *scores, *gradient;                 /* (q_block, ld_s) */
  float *rows;                              /* what gemm_pack_rows may take */
  float *inverse;                           /* (q_block) */
} attention_unit;

static attention_unit unit_of(const llm_ops *ops, const llm_attention_args *x) {
  const size_t nr = ops->product->nr;
  attention_unit u = {.ops = ops, .x = x, .T = (size_t)x->n_time, .D = (size_t)x->head_dim};
  u.ld_q = (size_t)x->n_head * u.D;
  u.ld_kv = (size_t)x->n_kv_head * u.D;
  u.t_pad = round_up(u.T, nr);
  u.d_pad = round_up(u.D, nr);
  u.q_block = round_up(Q_BLOCK, ops->product->mr);
  u.ld_s = round_up(u.t_pad, 32) + 16;
  u.scale = (float)(1.0 / sqrt((double)u.D));
  return u;
}

/* Lays the scratch out in `memory` (NULL: nowhere) and returns how many floats it takes. */
static size_t unit_place(attention_unit *u, int backward, float *memory) {
  const gemm_kernel *g = u->ops->product;
  const size_t by_time = u->t_pad * gemm_steps(g, u->D);
  const size_t by_dim = gemm_steps(g, u->q_block) * u->d_pad;
  size_t used = 0;
  u->k_by_time = take(memory, &used, by_time);
  u->kv_by_dim = take(memory, &used, gemm_steps(g, u->T) * u->d_pad);
  u->rows = take(memory, &used, u->q_block * (u->t_pad + u->d_pad));
  u->scores = take(memory, &used, u->q_block * u->ld_s);
  u->inverse = take(memory, &used, u->q_block);
  if (!backward) return used;
  u->v_by_time = take(memory, &used, by_time);
  u->q_by_dim = take(memory, &used, by_dim);
  u->do_by_dim = take(memory, &used, by_dim);
  u->gradient = take(memory, &used, u->q_block * u->ld_s);
  return used;
}

/* ---- products of a block of m queries at positions [first, first + m) ---- */

/* No query of the block sees a position before this one: scores there are zero, and adding zeros
 * changes no bit, so they are left out. */
static size_t first_seen(const attention_unit *u, size_t first) {
  return u->starts ? (size_t)u->starts[first] / SEEN_UNIT * SEEN_UNIT : 0;
}

/* s (m, first + m) = x (m, D) times the packed keys or values; tiles above the diagonal left out.
 */
static void block_scores(const attention_unit *u, size_t first, size_t m, const float *x,
                         const float *by_time, float *s) {
  const gemm_kernel *g = u->ops->product;
  const size_t steps = gemm_steps(g, u->D);
  const gemm_rows a = gemm_pack_rows(g, u->rows, m, u->D, x, u->ld_q, 0);
  for (size_t col = first_seen(u, first); col < first + m; col += g->nr) {
    const size_t r = col > first ? (col - first) / g->mr * g->mr : 0;
    gemm_panel(g, m - r, g->nr, steps, a.a + r * a.tile, a.row, a.step, by_time + col * steps,
               s + r * u->ld_s + col, u->ld_s, NULL, 0, NULL, NULL);
  }
}

/* y (m, D) = s (m, first + m) times the packed values or keys; the sum stops at the diagonal. */
static void block_times_rows(const attention_unit *u, size_t first, size_t m, const float *s,
                             float *y) {
  const gemm_kernel *g = u->ops->product;
  const size_t seen = first_seen(u, first);
  const float *by_dim = u->kv_by_dim + seen / g->pair * g->nr;
  const gemm_rows a = gemm_pack_rows(g, u->rows, m, first + m - seen, s + seen, u->ld_s, 0);
  for (size_t r = 0; r < m; r += g->mr) {
    if (r + g->mr > m && m >= g->mr) r = m - g->mr; /* a whole tile again: nothing accumulates */
    const size_t rows = min_size(g->mr, m - r);
    for (size_t d = 0; d < u->D; d += g->nr)
      gemm_panel(g, rows, min_size(g->nr, u->D - d), gemm_steps(g, first + r + rows - seen),
                 a.a + r * a.tile, a.row, a.step, by_dim + d * gemm_steps(g, u->T),
                 y + r * u->ld_q + d, u->ld_q, NULL, 0, NULL, NULL);
  }
}

/* y (first + m, D) += s^T (first + m, m) times the packed queries or output gradients; queries
 * before a tile's first key have nothing to say to it. fresh: nothing stands in y from first on. */
static void add_transposed(const attention_unit *u, size_t first, size_t m, const float *s,
                           const float *by_dim, float *y, int fresh) {
  const gemm_kernel *g = u->ops->product;
  const size_t steps = gemm_steps(g, m);
  const size_t seen = first_seen(u, first);
  const gemm_rows a = gemm_pack_rows(g, u->rows, first + m - seen, m, s + seen, u->ld_s, 1);
  for (size_t r = seen; r < first + m; r += g->mr) {
    const size_t rows = min_size(g->mr, first + m - r);
    const size_t skip = r > first ? (r - first) / g->pair : 0; /* steps */
    for (size_t d = 0; d < u->D; d += g->nr) {
      float *c = y + r * u->ld_kv + d;
      const float *add = fresh && r >= first ? NULL : c;
      gemm_panel(g, rows, min_size(g->nr, u->D - d), steps - skip,
                 a.a + (r - seen) * a.tile + skip * a.step, a.row, a.step,
                 by_dim + d * steps + skip * g->nr, c, u->ld_kv, add, u->ld_kv, NULL, NULL);
    }
  }
}

/* ---- one head over all its queries ---- */

/* q_at: floats from the start of q (and o, dq, do) to the head's first position; lse: its (T). */
static void head_forward(const attention_unit *u, size_t q_at, float *lse) {
  const train_isa isa = u->ops->isa;
  for (size_t first = 0; first < u->T; first += u->q_block) {
    const size_t m = min_size(u->q_block, u->T - first), at = q_at + first * u->ld_q;
    block_scores(u, first, m, u->x->q + at, u->k_by_time, u->scores);
    const llm_softmax_args softmax = {
        u->scores, (int64_t)u->ld_s, (int64_t)first, (int64_t)(first + m),
        u->scale,  lse + first,      u->inverse,     u->starts ? u->starts + first : NULL};
    softmax_builds[isa](&softmax, 0, (int64_t)m);
    block_times_rows(u, first, m, u->scores, u->x->o + at);
    const llm_scale_rows_args scale = {u->x->o + at, (int64_t)u->ld_q, (int64_t)u->D, u->inverse};
    scale_rows_builds[isa](&scale, 0, (int64_t)m);
  }
}

/* fresh: the first head of its group, dk and dv are still undefined. */
static void head_backward(const attention_unit *u, size_t q_at, size_t kv_at, const float *lse,
                          int fresh) {
  const llm_attention_args *x = u->x;
  const gemm_kernel *g = u->ops->product;
  for (size_t first = 0; first < u->T; first += u->q_block) {
    const size_t m = min_size(u->q_block, u->T - first), at = q_at + first * u->ld_q;
    block_scores(u, first, m, x->q + at, u->k_by_time, u->scores);
    block_scores(u, first, m, x->d_o + at, u->v_by_time, u->gradient);
    const llm_score_gradient_args gradient = {u->scores,
                                              u->gradient,
                                              (int64_t)u->ld_s,
                                              (int64_t)first,
                                              (int64_t)(first + m),
                                              u->scale,
                                              lse + first,
                                              x->o + at,
                                              x->d_o + at,
                                              (int64_t)u->ld_q,
                                              (int64_t)u->D,
                                              u->starts ? u->starts + first : NULL};
    score_gradient_builds[u->ops->isa](&gradient, 0, (int64_t)m);
    block_times_rows(u, first, m, u->gradient, x->dq + at);
    gemm_pack_all(g, u->q_by_dim, m, u->D, x->q + at, u->ld_q, 1);
    gemm_pack_all(g, u->do_by_dim, m, u->D, x->d_o + at, u->ld_q, 1);
    add_transposed(u, first, m, u->gradient, u->q_by_dim, x->dk + kv_at, fresh);
    add_transposed(u, first, m, u->scores, u->do_by_dim, x->dv + kv_at, fresh);
  }
}

/* ---- all units ---- */

typedef struct attention_job {
  attention_unit unit; /* sizes only */
  int backward;
  size_t scratch_floats; /* per thread */
} attention_job;

static void unit_run(const attention_unit *u, size_t batch, size_t kv_head, int backward) {
  const llm_attention_args *x = u->x;
  const gemm_kernel *g = u->ops->product;
  const size_t T = u->T, D = u->D, n_head = (size_t)x->n_head;
  const size_t group = n_head / (size_t)x->n_kv_head;
  const size_t kv_at = batch * T * u->ld_kv + kv_head * D;
  gemm_pack_all(g, u->k_by_time, D, T, x->k + kv_at, 1, u->ld_kv);
  gemm_pack_all(g, u->kv_by_dim, T, D, (backward ? x->k : x->v) + kv_at, u->ld_kv, 1);
  if (backward) gemm_pack_all(g, u->v_by_time, D, T, x->v + kv_at, 1, u->ld_kv);
  for (size_t head = kv_head * group; head < (kv_head + 1) * group; head++) {
    const size_t q_at = batch * T * u->ld_q + head * D;
    float *lse = x->lse + (batch * n_head + head) * T;
    if (backward)
      head_backward(u, q_at, kv_at, lse, head == kv_head * group);
    else
      head_forward(u, q_at, lse);
  }
}

static void attention_unit_run(void *arg, size_t unit, int thread) {
  const attention_job *j = arg;
  const size_t n_kv_head = (size_t)j->unit.x->n_kv_head;
  attention_unit u = j->unit;
  if (u.x->starts) u.starts = u.x->starts + unit / n_kv_head * u.T;
  unit_place(&u, j->backward, u.ops->scratch + (size_t)thread * j->scratch_floats);
  const gemm_kernel *g = u.ops->product;
  if (g->begin) g->begin();
  unit_run(&u, unit / n_kv_head, unit % n_kv_head, j->backward);
  if (g->end) g->end();
}

static llm_status attention_run(llm_ops *ops, const llm_attention_args *args, int backward,
                                llm_error *err) {
  attention_job j = {unit_of(ops, args), backward, 0};
  j.scratch_floats = unit_place(&j.unit, backward, NULL);
  size_t n_threads = (size_t)thread_pool_size(ops->pool);
  llm_status status = ops_scratch(ops, n_threads * j.scratch_floats, err);
  if (status) return status;
  ops_run(ops, (size_t)(args->n_batch * args->n_kv_head), attention_unit_run, &j);
  return LLM_OK;
}

llm_status llm_ops_attention(llm_ops *ops, const llm_attention_args *args, llm_error *err) {
  return attention_run(ops, args, 0, err);
}

llm_status llm_ops_attention_backward(llm_ops *ops, const llm_attention_args *args,
                                      llm_error *err) {
  return attention_run(ops, args, 1, err);
}
