/* train_kernels.cu: the trainer's row kernels, once for the C compiler and for CUDA (port.h has the
 * style, llm/ops_numpy.py the formulas). Layer T. Plain C that is also C++: no casts from void, no
 * designated initializers. */
#include "port.h"
#include "train.h"
#ifndef __CUDACC__
#include "train_ops.h"
#endif

enum { CHUNK = 4096 }; /* train.h names it */

PORT_INLINE int64_t port_min(int64_t x, int64_t y) { return x < y ? x : y; }

ROW_KERNEL(embed) {
  const int64_t n = a->n_embd;
  llm_act *x = a->x + row * n;
  const float *source = a->table + a->tokens[row] * n;
  EACH(i, n) x[i] = source[i];
}

/* A token that comes twice is summed in the order of the text: a row owns columns of all tokens of
 * a class. Classes are for the GPU, where a chain of additions is slow and rows are cheap. */
ROW_KERNEL(embed_backward) {
  const int64_t class_ = row % a->n_classes, first = row / a->n_classes * a->n_columns;
  const int64_t width = port_min(a->n_columns, a->n_embd - first);
  for (int64_t begin = 0; begin < a->n_tokens; begin += READ_AHEAD) {
    const int64_t n = port_min(READ_AHEAD, a->n_tokens - begin);
    int32_t tokens[READ_AHEAD]; /* or a GPU waits for each, as it would in the loop that stores */
    for (int64_t j = 0; j < READ_AHEAD; j++) tokens[j] = a->tokens[begin + port_min(j, n - 1)];
    for (int64_t j = 0; j < n; j++) {
      if ((tokens[j] & (a->n_classes - 1)) != class_) continue;
      float *dtable = a->dtable + tokens[j] * a->n_embd + first;
      const llm_act *dx = a->dx + (begin + j) * a->n_embd + first;
      EACH(i, width) dtable[i] += dx[i];
    }
  }
}

ROW_KERNEL(rmsnorm) {
  const int64_t n = a->n;
  llm_act *y = a->y + row * n;
  const llm_act *x = a->x + row * n;
  const float *w = a->w;
  ROW_SUM(square, i, n, x[i] * x[i]);
  const float rstd = 1.0f / sqrtf(square / (float)n + a->eps);
  EACH(i, n) y[i] = x[i] * rstd * w[i];
  ONCE a->rstd[row] = rstd;
}

ROW_KERNEL(rmsnorm_backward) {
  const int64_t n = a->n, end = port_min((row + 1) * a->n_chunk, a->n_total);
  float *dw = a->dw_parts + row * n;
  const float *w = a->w;
  EACH(i, n) dw[i] = 0.0f;
  for (int64_t r = row * a->n_chunk; r < end; r++) {
    llm_act *dx = a->dx + r * n, *dy = a->dy + r * n;
    const llm_act *x = a->x + r * n;
    const float rstd = a->rstd[r];
    ROW_SUM(dot, i, n, dy[i] * w[i] * x[i]);
    const float mean = dot * rstd / (float)n;
    EACH(i, n) {
      const float xhat = x[i] * rstd;
      dw[i] += dy[i] * xhat;
      dx[i] += rstd * (dy[i] * w[i] - xhat * mean);
      dy[i] = xhat * w[i];
    }
  }
}

ROW_KERNEL(sum_rows) {
  const int64_t n = a->n, n_blocks = (n + a->n_columns - 1) / a->n_columns;
  const int64_t first = row % n_blocks * a->n_columns, width = port_min(a->n_columns, n - first);
  const int64_t begin = row / n_blocks * a->n_group, end = port_min(begin + a->n_group, a->n_parts);
  float *sum = a->sum + row / n_blocks * n + first;
  if (a->parts)
    COLUMN_SUM(sum, i, width, part, begin, end, a->parts[part * n + first + i])
  else
    COLUMN_SUM(sum, i, width, part, begin, end, a->act_parts[part * n + first + i])
}

/* The pair of i of a head lies at i * step and `gap` behind it. */
PORT_INLINE void turn_heads(llm_act *x, const float *cos_t, const float *sin_t, int64_t n_head,
                            int64_t half, float direction, int64_t step, int64_t gap) {
  EACH_OF(head, n_head, i, half) {
    llm_act *pair = x + 2 * half * head + step * i;
    const float c = cos_t[i], s = direction * sin_t[i], p = pair[0], q = pair[gap];
    pair[0] = p * c - q * s;
    pair[gap] = p * s + q * c;
  }
}

ROW_KERNEL(rope) {
  const int64_t half = a->head_dim / 2, t = row % a->n_time - (a->starts ? a->starts[row] : 0);
  const float *cos_t = a->cos + t * half, *sin_t = a->sin + t * half;
  llm_act *x = a->x + row * a->n_head * a->head_dim;
  if (a->halves)
    turn_heads(x, cos_t, sin_t, a->n_head, half, a->direction, 1, half);
  else
    turn_heads(x, cos_t, sin_t, a->n_head, half, a->direction, 2, 1);
}

ROW_KERNEL(swiglu) {
  llm_act *h = a->h + row * a->n;
  const llm_act *gate = a->gate + row * a->n, *up = a->up + row * a->n;
  EACH(i, a->n) h[i] = gate[i] / (1.0f + port_exp(-gate[i])) * up[i];
}

ROW_KERNEL(swiglu_backward) {
  llm_act *gate = a->gate + row * a->n, *up = a->up + row * a->n, *dh = a->dh + row * a->n;
  EACH(i, a->n) {
    const float g = gate[i], u = up[i], d = dh[i], s = 1.0f / (1.0f + port_exp(-g));
    gate[i] = d * u * s * (1.0f + g * (1.0f - s));
    up[i] = d * g * s;
    dh[i] = g * s * u;
  }
}

ROW_KERNEL(cross_entropy) {
  const int64_t n = a->n_vocab;
  llm_act *z = a->logits + row * n;
  const int32_t target = a->targets[row];
  if (target < 0) {
    ONCE a->losses[row] = 0.0f;
    if (a->with_gradient) EACH(i, n) z[i] = 0.0f;
    return;
  }
  ROW_MAX(top, i, n, z[i]);
  const float z_target = z[target] - top;
  SYNC;
  EACH(i, n) z[i] = port_exp(z[i] - top);
  ROW_SUM(total, i, n, z[i]);
  ONCE a->losses[row] = (float)port_log((double)total) - z_target;
  if (!a->with_gradient) return;
  const float scale = a->scale, factor = scale / total;
  EACH(i, n) z[i] = z[i] * factor - (i == target ? scale : 0.0f);
}

ROW_KERNEL(sum_squares) {
  const int64_t n = port_min(CHUNK, a->n - row * CHUNK);
  const float *x = a->x + row * CHUNK;
  ROW_SUM(sum, i, n, x[i] * x[i]);
  ONCE a->parts[row] = sum;
}

/* Nesterov: x is the momentum as the next step will see it. */
ROW_KERNEL(muon_momentum) {
  const int64_t n = port_min(CHUNK, a->n - row * CHUNK), first = row * CHUNK;
  float *m = a->m + first, *x = a->x + first;
  const float *g = a->g + first;
  EACH(i, n) {
    const float gi = g[i] * a->grad_scale;
    m[i] = a->momentum * m[i] + gi;
    x[i] = a->momentum * m[i] + gi;
  }
  ROW_SUM(sum, i, n, x[i] * x[i]);
  ONCE a->squares[row] = sum;
}

ROW_KERNEL(muon_update) {
  const int64_t n = port_min(CHUNK, a->n - row * CHUNK), first = row * CHUNK;
  float *p = a->p + first;
  const float *x = a->x + first;
  EACH(i, n) p[i] -= a->rate * x[i];
}

#ifndef __CUDACC__
const port_rows *const muon_momentum_rows = muon_momentum_builds;
const port_rows *const muon_update_rows = muon_update_builds;
#endif

/* new1 = 1 - beta1 and new2 = 1 - beta2, rounded once; rate = lr / (1 - beta1^step), root = 1 /
 * sqrt(1 - beta2^step), shrink = lr * weight_decay. */
ROW_KERNEL(adamw) {
  const int64_t n = port_min(CHUNK, a->n - row * CHUNK), first = row * CHUNK;
  float *p = a->p + first, *m = a->m + first, *v = a->v + first;
  const float *g = a->g + first;
  const uint8_t *decay = a->decay + first;
  EACH(i, n) {
    const float gi = g[i] * a->grad_scale;
    m[i] = a->beta1 * m[i] + a->new1 * gi;
    v[i] = a->beta2 * v[i] + a->new2 * gi * gi;
    p[i] -= a->rate * m[i] / (sqrtf(v[i]) * a->root + a->eps) + a->shrink * (float)decay[i] * p[i];
  }
}

ROW_KERNEL(combine) {
  const int64_t n = port_min(CHUNK, a->n - row * CHUNK), first = row * CHUNK;
  float *out = a->out + first;
  const float *x = a->x + first, *y = a->y + first, of_x = a->a, of_y = a->b;
  EACH(i, n) out[i] = of_x * x[i] + of_y * y[i];
}

/* ---- for the GPU's products ---- */

ROW_KERNEL(round) {
  const int64_t n = port_min(CHUNK, a->n - row * CHUNK), first = row * CHUNK;
  uint16_t *out = a->out_16 + first;
  const float *x = a->x + first;
  EACH(i, n) out[i] = port_bf16(x[i]);
}

ROW_KERNEL(repeat) {
  llm_act *out = a->out + row * a->n;
  const float *x = a->x;
  EACH(i, a->n) out[i] = x[i];
}

ROW_KERNEL(split_heads) {
  const int64_t n = a->head_dim;
  const uint32_t group = (uint32_t)(a->n_head / a->n_kv_head);
  const int64_t batch = row / a->n_time, t = row % a->n_time;
  const llm_act *x = a->x + row * a->n_kv_head * n;
  llm_act *out = a->out;
  EACH(i, a->n_head * n) {
    const uint32_t head = (uint32_t)i / (uint32_t)n, j = (uint32_t)i % (uint32_t)n;
    out[((batch * a->n_head + head) * a->n_time + t) * n + j] = x[head / group * n + j];
  }
}

ROW_KERNEL(join_heads) {
  const int64_t n = a->head_dim, group = a->n_head / a->n_kv_head;
  const int64_t batch = row / a->n_time, t = row % a->n_time, from_head = a->n_time * n;
  llm_act *out = a->out + row * a->n_kv_head * n;
  EACH(i, a->n_kv_head * n) {
    const uint32_t kv_head = (uint32_t)i / (uint32_t)n, j = (uint32_t)i % (uint32_t)n;
    const int64_t head = batch * a->n_head + kv_head * group;
    const float *x = a->x + (head * a->n_time + t) * n + j;
    float sum = x[0];
    for (int64_t g = 1; g < group; g++) sum += x[g * from_head];
    out[i] = sum;
  }
}

PORT_INLINE void put(float *x, uint16_t *x_16, int64_t i, float value) {
  if (x_16)
    x_16[i] = port_bf16(value);
  else
    x[i] = value;
}

/* The first position that the query at t of a sequence sees. */
PORT_INLINE int64_t first_seen(const int32_t *starts, int64_t batch, int64_t n_time, int64_t t) {
  return starts ? starts[batch * n_time + t] : 0;
}

ROW_KERNEL(causal_softmax) {
  const int64_t n = a->first_query + a->n_queries, sequence = row / a->n_queries;
  const int64_t t = a->first_query + row % a->n_queries;
  const int64_t first = first_seen(a->starts, sequence / a->n_head, a->n_time, t);
  const float *s = a->scores + row * n, *seen = s + first, scale = a->scale;
  ROW_MAX(top, i, t + 1 - first, seen[i]);
  const float shift = scale * top;
  ROW_SUM(total, i, t + 1 - first, port_exp(scale * seen[i] - shift));
  ONCE a->lse[sequence * a->n_time + t] = shift + (float)port_log((double)total);
  EACH(i, n) { /* exp again, which costs less than to store it */
    const int hidden = i < first || i > t;
    put(a->scores, a->scores_16, row * n + i,
        hidden ? 0.0f : port_exp(scale * s[i] - shift) / total);
  }
}

ROW_KERNEL(causal_softmax_backward) {
  const int64_t n = a->first_query + a->n_queries, sequence = row / a->n_queries;
  const int64_t t = a->first_query + row % a->n_queries;
  const int64_t batch = sequence / a->n_head, head = sequence % a->n_head;
  const int64_t first = first_seen(a->starts, batch, a->n_time, t);
  const int64_t at = ((batch * a->n_time + t) * a->n_head + head) * a->head_dim;
  const llm_act *d_o = a->d_o + at, *o = a->o + at;
  const float *s = a->scores + row * n, *dp = a->dp + row * n;
  const float scale = a->scale, lse = a->lse[sequence * a->n_time + t];
  ROW_SUM(delta, i, a->head_dim, d_o[i] * o[i]);
  EACH(i, n) {
    const int hidden = i < first || i > t;
    const float p = hidden ? 0.0f : port_exp(scale * s[i] - lse);
    const float ds = hidden ? 0.0f : scale * p * (dp[i] - delta);
    put(a->scores, a->scores_16, row * n + i, p);
    put(a->dp, a->dp_16, row * n + i, ds);
  }
}

#if defined(__CUDACC__) && defined(PORT_BF16) && (!defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800)
#include "train_flash.h"
#endif
