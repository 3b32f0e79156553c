/* train_flash.h: causal attention whose scores never leave the chip, forward and backward, by the
 * tensor cores of sm_80 and later. Layer T. Part of train_kernels.cu where activations are bfloat16
 * (port_tensor.h has the instructions). After FlashAttention 2
 * (Dao 2023), but no atomics: the gradient of the queries has a kernel of its own, which computes
 * the probabilities once more, and every sum has one order.
 *
 * A block of four warps holds ROWS rows, 16 a warp, in registers as operands A of 16 x 16 x 8
 * products, and goes over tiles of N rows of the other side in shared memory, the next of which
 * is on its way. D is head_dim rounded up: what lies beyond is zero. Rows of a product lie in lanes
 * of four: lane l has rows l / 4 and l / 4 + 8 and of each 8 columns 2 (l % 4) and the next. */
#ifndef LLM_TRAIN_FLASH_H
#define LLM_TRAIN_FLASH_H

#include "port_tensor.h"

enum { FLASH_THREADS = 128, ROWS = 64 };
#define UNROLLED(i, n) UNROLL for (int i = 0; i < (n); i++)
#define FLASH_LOG2E    1.44269504f
#define FLASH_INFINITY port_float(0x7f800000u)

PORT_INLINE float port_low(uint32_t pair) { return port_float(pair << 16); }
PORT_INLINE float port_high(uint32_t pair) { return port_float(pair & 0xffff0000u); }

/* Rows are 16 bytes apart in the banks, so that eight of them are read at once. */
template <int D, int N> struct alignas(16) flash_tile { llm_act row[N][D + 8]; };

/* Where (batch, head) begins in (n_batch, n_time, n_head, head_dim), and its rows' distance. */
struct flash_matrix {
  int64_t at, step;
};
PORT_INLINE flash_matrix flash_place(const llm_flash_args *a, int64_t batch, int64_t head,
                                     int64_t n_head) {
  const int64_t step = n_head * a->head_dim;
  return {batch * a->n_time * step + head * a->head_dim, step};
}

/* Rows that come to a tile, N at a time: this thread's part of each SWEEP of them. */
template <int D> struct flash_source {
  static const int ACROSS = D / 8, SWEEP = FLASH_THREADS / ACROSS;
  const llm_act *next;
  int64_t step;
  int row, column, left; /* of `next`: its place in the tile, and rows from it to the end */
  PORT_METHOD flash_source(const llm_flash_args *a, const llm_act *x, flash_matrix m, int64_t first)
      : step(m.step), row((int)threadIdx.x / ACROSS), column((int)threadIdx.x % ACROSS * 8) {
    next = x + m.at + (first + row) * step + column;
    left = column < a->head_dim ? (int)(a->n_time - first) - row : 0;
  }
};

/* Starts to bring the next N rows into a tile; zeros behind the last one. */
template <int D, int N>
PORT_INLINE void flash_bring(flash_tile<D, N> *tile, flash_source<D> *from) {
  enum { SWEEP = flash_source<D>::SWEEP };
  UNROLLED(i, N / SWEEP)
  port_bring_16(&tile->row[from->row + i * SWEEP][from->column],
                from->next + i * SWEEP * from->step, i * SWEEP < from->left);
  from->next += N * from->step;
  from->left -= N;
}

/* Of N floats, for which no alignment is known. */
template <int N> PORT_INLINE void flash_bring_vector(float *out, const float *x, int64_t n) {
  const int i = (int)threadIdx.x;
  if (i < N) port_bring_4(out + i, i < n ? x + i : x, i < n);
}

/* Of this warp's rows, from `first` on: what this lane holds of operand A number k. */
PORT_INLINE uint32_t flash_word(const llm_flash_args *a, const llm_act *x, flash_matrix m,
                                int64_t first, int k, int i) {
  const int lane = (int)threadIdx.x % 32, column = 16 * k + i / 2 * 8 + lane % 4 * 2;
  const int64_t row = first + lane / 4 + i % 2 * 8;
  const bool inside = row < a->n_time && column < a->head_dim;
  return inside ? port_word(x + m.at + row * m.step + column) : 0;
}

template <int D>
PORT_INLINE void flash_hold(const llm_flash_args *a, uint32_t (&out)[D / 16][4], const llm_act *x,
                            flash_matrix m, int64_t first) {
  UNROLLED(k, D / 16) UNROLLED(i, 4) out[k][i] = flash_word(a, x, m, first, k, i);
}

template <int D>
PORT_INLINE void flash_store(const llm_flash_args *a, llm_act *out, flash_matrix m, int64_t first,
                             const float (&x)[D / 8][4], float scale_0, float scale_1) {
  const int lane = (int)threadIdx.x % 32;
  UNROLLED(n, D / 8) UNROLLED(half, 2) {
    const int64_t row = first + lane / 4 + half * 8;
    const int column = 8 * n + lane % 4 * 2;
    if (row >= a->n_time || column >= a->head_dim) continue;
    const float scale = half ? scale_1 : scale_0;
    port_put_word(out + m.at + row * m.step + column,
                  port_pair(x[n][2 * half] * scale, x[n][2 * half + 1] * scale));
  }
}

/* s = rows tile^T: N columns. */
template <int D, int N>
PORT_INLINE void flash_scores(float (&s)[N / 8][4], const uint32_t (&rows)[D / 16][4],
                              const flash_tile<D, N> *tile) {
  const int lane = (int)threadIdx.x % 32;
  UNROLLED(n, N / 8) UNROLLED(i, 4) s[n][i] = 0.0f;
  UNROLLED(k, D / 16) UNROLLED(n, N / 16) {
    uint32_t b[4];
    port_matrices(b, &tile->row[16 * n + lane / 16 * 8 + lane % 8][16 * k + lane / 8 % 2 * 8]);
    port_product(s[2 * n], rows[k], b[0], b[1]);
    port_product(s[2 * n + 1], rows[k], b[2], b[3]);
  }
}

/* out += p tile, p rounded to bfloat16. */
template <int D, int N>
PORT_INLINE void flash_add(float (&out)[D / 8][4], const float (&p)[N / 8][4],
                           const flash_tile<D, N> *tile) {
  const int lane = (int)threadIdx.x % 32;
  UNROLLED(k, N / 16) {
    const float *x = p[2 * k], *y = p[2 * k + 1];
    const uint32_t rows[4] = {port_pair(x[0], x[1]), port_pair(x[2], x[3]), port_pair(y[0], y[1]),
                              port_pair(y[2], y[3])};
    UNROLLED(n, D / 16) {
      uint32_t b[4];
      port_matrices_turned(
          b, &tile->row[16 * k + lane / 8 % 2 * 8 + lane % 8][16 * n + lane / 16 * 8]);
      port_product(out[2 * n], rows, b[0], b[1]);
      port_product(out[2 * n + 1], rows, b[2], b[3]);
    }
  }
}

template <int N> PORT_INLINE void flash_zero(float (&x)[N][4]) {
  UNROLLED(n, N) UNROLLED(i, 4) x[n][i] = 0.0f;
}

/* Of a row's four lanes. */
PORT_INLINE float flash_row_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
PORT_INLINE float flash_row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

/* A block's queries and the keys that any of them sees; the longest of a head begin first. */
struct flash_queries {
  int64_t batch, head, first, own, begin, end; /* begin, end: tiles of keys */
  int64_t seen_by_all;                         /* keys from here on, up to the first query */
  int64_t starts[2];                           /* of this lane's two rows */
};
template <int N>
PORT_INLINE flash_queries flash_queries_of(const llm_flash_args *a, int64_t block) {
  const int64_t n_tiles = (a->n_time + ROWS - 1) / ROWS;
  flash_queries q;
  q.batch = block / n_tiles / a->n_head;
  q.head = block / n_tiles % a->n_head;
  q.first = (n_tiles - 1 - block % n_tiles) * ROWS;
  q.own = q.first + (int64_t)threadIdx.x / 32 * 16;
  const int64_t last = port_min(q.first + ROWS, a->n_time) - 1;
  q.begin = first_seen(a->starts, q.batch, a->n_time, q.first) / N;
  q.end = last / N + 1;
  q.seen_by_all = first_seen(a->starts, q.batch, a->n_time, last);
  UNROLLED(half, 2) {
    const int64_t t = q.own + (int64_t)threadIdx.x % 32 / 4 + half * 8;
    q.starts[half] = first_seen(a->starts, q.batch, a->n_time, port_min(t, last));
  }
  return q;
}

/* -infinity where a query does not see a key. */
template <int N>
PORT_INLINE void flash_hide(const flash_queries *q, float (&s)[N / 8][4], int64_t key) {
  if (key + N - 1 <= q->first && key >= q->seen_by_all) return;
  const int lane = (int)threadIdx.x % 32;
  UNROLLED(n, N / 8) UNROLLED(i, 4) {
    const int64_t t = q->own + lane / 4 + i / 2 * 8, at = key + 8 * n + lane % 4 * 2 + i % 2;
    if (at > t || at < q->starts[i / 2]) s[n][i] = -FLASH_INFINITY;
  }
}

template <int D, int N> PORT_INLINE void flash_forward(const llm_flash_args *a, int64_t block) {
  __shared__ flash_tile<D, N> k[2], v[2];
  const flash_queries q = flash_queries_of<N>(a, block);
  const int64_t kv_head = q.head / (a->n_head / a->n_kv_head);
  const flash_matrix own = flash_place(a, q.batch, q.head, a->n_head);
  const flash_matrix other = flash_place(a, q.batch, kv_head, a->n_kv_head);
  const float scale = a->scale * FLASH_LOG2E;
  uint32_t rows[D / 16][4];
  float o[D / 8][4], s[N / 8][4], top[2] = {-FLASH_INFINITY, -FLASH_INFINITY}, sum[2] = {0, 0};
  flash_source<D> from_k(a, a->k, other, q.begin * N), from_v(a, a->v, other, q.begin * N);
  flash_bring(&k[q.begin % 2], &from_k);
  flash_bring(&v[q.begin % 2], &from_v);
  flash_hold<D>(a, rows, a->q, own, q.own);
  flash_zero(o);
  for (int64_t tile = q.begin; tile < q.end; tile++) {
    port_arrived();
    __syncthreads(); /* all threads' parts are there, and nobody reads the other tile any more */
    if (tile + 1 < q.end) {
      flash_bring(&k[(tile + 1) % 2], &from_k);
      flash_bring(&v[(tile + 1) % 2], &from_v);
    }
    flash_scores<D, N>(s, rows, &k[tile % 2]);
    flash_hide<N>(&q, s, tile * N);
    UNROLLED(half, 2) {
      float most = top[half];
      UNROLLED(n, N / 8) most = fmaxf(most, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
      most = flash_row_max(most);
      const float shift = most == -FLASH_INFINITY ? 0.0f : most * scale; /* none seen yet */
      const float shrink = port_exp2(fmaf(top[half], scale, -shift));
      sum[half] *= shrink;
      top[half] = most;
      UNROLLED(n, N / 8) UNROLLED(e, 2) {
        float *x = &s[n][2 * half + e];
        sum[half] += *x = port_exp2(fmaf(*x, scale, -shift));
      }
      UNROLLED(n, D / 8) UNROLLED(e, 2) o[n][2 * half + e] *= shrink;
    }
    flash_add<D, N>(o, s, &v[tile % 2]);
  }
  UNROLLED(half, 2) {
    const int64_t t = q.own + (int64_t)threadIdx.x % 32 / 4 + half * 8;
    sum[half] = flash_row_sum(sum[half]);
    if (threadIdx.x % 4 == 0 && t < a->n_time)
      a->lse[(q.batch * a->n_head + q.head) * a->n_time + t] =
          a->scale * top[half] + (float)port_log((double)sum[half]);
  }
  flash_store<D>(a, a->o, own, q.own, o, 1.0f / sum[0], 1.0f / sum[1]);
  __syncthreads(); /* before the next block's first tile comes */
}

/* dq, and delta = sum of d_o o of each query. */
template <int D, int N> PORT_INLINE void flash_backward_q(const llm_flash_args *a, int64_t block) {
  __shared__ flash_tile<D, N> k[2], v[2];
  const flash_queries q = flash_queries_of<N>(a, block);
  const int64_t kv_head = q.head / (a->n_head / a->n_kv_head);
  const flash_matrix own = flash_place(a, q.batch, q.head, a->n_head);
  const flash_matrix other = flash_place(a, q.batch, kv_head, a->n_kv_head);
  const float scale = a->scale * FLASH_LOG2E;
  uint32_t rows[D / 16][4], d_rows[D / 16][4];
  float dq[D / 8][4], s[N / 8][4], dp[N / 8][4], delta[2] = {0, 0}, lse[2];
  flash_source<D> from_k(a, a->k, other, q.begin * N), from_v(a, a->v, other, q.begin * N);
  flash_bring(&k[q.begin % 2], &from_k);
  flash_bring(&v[q.begin % 2], &from_v);
  ROLLED for (int n = 0; n < D / 16; n++) UNROLLED(i, 4) { /* once: registers are for the rest */
    const uint32_t o = flash_word(a, a->o, own, q.own, n, i);
    const uint32_t d_o = flash_word(a, a->d_o, own, q.own, n, i);
    delta[i % 2] += port_low(o) * port_low(d_o) + port_high(o) * port_high(d_o);
  }
  UNROLLED(half, 2) {
    const int64_t t = q.own + (int64_t)threadIdx.x % 32 / 4 + half * 8;
    const int64_t at = (q.batch * a->n_head + q.head) * a->n_time + t;
    delta[half] = flash_row_sum(delta[half]);
    lse[half] = t < a->n_time ? a->lse[at] * FLASH_LOG2E : 0.0f;
    if (threadIdx.x % 4 == 0 && t < a->n_time) a->delta[at] = delta[half];
  }
  flash_hold<D>(a, rows, a->q, own, q.own);
  flash_hold<D>(a, d_rows, a->d_o, own, q.own);
  flash_zero(dq);
  for (int64_t tile = q.begin; tile < q.end; tile++) {
    port_arrived();
    __syncthreads();
    if (tile + 1 < q.end) {
      flash_bring(&k[(tile + 1) % 2], &from_k);
      flash_bring(&v[(tile + 1) % 2], &from_v);
    }
    flash_scores<D, N>(s, rows, &k[tile % 2]);
    flash_scores<D, N>(dp, d_rows, &v[tile % 2]);
    flash_hide<N>(&q, s, tile * N);
    UNROLLED(n, N / 8)
    UNROLLED(i, 4)
    s[n][i] = port_exp2(fmaf(s[n][i], scale, -lse[i / 2])) * (dp[n][i] - delta[i / 2]);
    flash_add<D, N>(dq, s, &k[tile % 2]);
  }
  flash_store<D>(a, a->dq, own, q.own, dq, a->scale, a->scale);
  __syncthreads();
}

/* dk, dv or both of ROWS keys: scores are turned, a row is a key and a column a query. Wide heads
 * would not fit in registers with both. */
enum { FLASH_DK = 1, FLASH_DV = 2 };
template <int D, int N, int WHICH>
PORT_INLINE void flash_backward_kv(const llm_flash_args *a, int64_t block) {
  __shared__ flash_tile<D, N> q[2], d_o[2];
  __shared__ float lse[2][N], delta[2][N];
  const int lane = (int)threadIdx.x % 32;
  const int n_group = (int)(a->n_head / a->n_kv_head);
  const int64_t n_keys = (a->n_time + ROWS - 1) / ROWS;
  const int64_t batch = block / n_keys / a->n_kv_head, kv_head = block / n_keys % a->n_kv_head;
  const int64_t first = block % n_keys * ROWS, own = first + (int64_t)threadIdx.x / 32 * 16;
  const int64_t last = port_min(first + ROWS, a->n_time) - 1, begin = first / N;
  int64_t end = begin; /* tiles of queries; behind a document's end nobody sees its keys */
  while (end * N < a->n_time && first_seen(a->starts, batch, a->n_time, end * N) <= last) end++;
  const int n = (int)(end - begin);
  const flash_matrix m = flash_place(a, batch, kv_head, a->n_kv_head);
  const float scale = a->scale * FLASH_LOG2E;
  uint32_t k[D / 16][4], v[D / 16][4];
  float dk[D / 8][4], dv[D / 8][4], s[N / 8][4], dp[N / 8][4];
  const auto bring = [&](int i) {
    const int64_t head = kv_head * n_group + i / n, t = (begin + i % n) * N;
    const int64_t at = (batch * a->n_head + head) * a->n_time + t;
    const flash_matrix of_head = flash_place(a, batch, head, a->n_head);
    flash_source<D> from_q(a, a->q, of_head, t), from_d_o(a, a->d_o, of_head, t);
    flash_bring(&q[i % 2], &from_q);
    flash_bring(&d_o[i % 2], &from_d_o);
    flash_bring_vector<N>(lse[i % 2], a->lse + at, a->n_time - t);
    if (WHICH & FLASH_DK) flash_bring_vector<N>(delta[i % 2], a->delta + at, a->n_time - t);
  };
  bring(0);
  flash_hold<D>(a, k, a->k, m, own);
  flash_hold<D>(a, v, a->v, m, own);
  flash_zero(dk);
  flash_zero(dv);
  for (int i = 0; i < n * n_group; i++) {
    const int64_t t = (begin + i % n) * N;
    port_arrived();
    __syncthreads();
    if (i + 1 < n * n_group) bring(i + 1);
    flash_scores<D, N>(s, k, &q[i % 2]);
    if (WHICH & FLASH_DK) flash_scores<D, N>(dp, v, &d_o[i % 2]);
    const int64_t last_query = port_min(t + N, a->n_time) - 1;
    const bool hides = t < last || first_seen(a->starts, batch, a->n_time, last_query) > first;
    UNROLLED(j, N / 8) UNROLLED(e, 4) {
      const float shift = lse[i % 2][8 * j + lane % 4 * 2 + e % 2] * FLASH_LOG2E;
      s[j][e] = port_exp2(fmaf(s[j][e], scale, -shift));
    }
    if (hides) {
      UNROLLED(j, N / 8) UNROLLED(e, 4) {
        const int64_t query = port_min(t + 8 * j + lane % 4 * 2 + e % 2, last_query);
        const int64_t key = own + lane / 4 + e / 2 * 8;
        if (key > query || key < first_seen(a->starts, batch, a->n_time, query)) s[j][e] = 0.0f;
      }
    }
    if (WHICH & FLASH_DK) {
      UNROLLED(j, N / 8) UNROLLED(e, 4) {
        const float dp_mean = delta[i % 2][8 * j + lane % 4 * 2 + e % 2];
        dp[j][e] = s[j][e] * (dp[j][e] - dp_mean);
      }
    }
    if (WHICH & FLASH_DV) flash_add<D, N>(dv, s, &d_o[i % 2]);
    if (WHICH & FLASH_DK) flash_add<D, N>(dk, dp, &q[i % 2]);
  }
  if (WHICH & FLASH_DK) flash_store<D>(a, a->dk, m, own, dk, a->scale, a->scale);
  if (WHICH & FLASH_DV) flash_store<D>(a, a->dv, m, own, dv, 1.0f, 1.0f);
  __syncthreads();
}

TENSOR_KERNEL(flash_forward_64, FLASH_THREADS) { flash_forward<64, 64>(a, block); }
TENSOR_KERNEL(flash_backward_q_64, FLASH_THREADS) { flash_backward_q<64, 32>(a, block); }
TENSOR_KERNEL(flash_backward_kv_64, FLASH_THREADS) {
  flash_backward_kv<64, 32, FLASH_DK | FLASH_DV>(a, block);
}

TENSOR_KERNEL(flash_forward_128, FLASH_THREADS) { flash_forward<128, 32>(a, block); }
TENSOR_KERNEL(flash_backward_q_128, FLASH_THREADS) { flash_backward_q<128, 16>(a, block); }
TENSOR_KERNEL(flash_backward_k_128, FLASH_THREADS) {
  flash_backward_kv<128, 16, FLASH_DK>(a, block);
}
TENSOR_KERNEL(flash_backward_v_128, FLASH_THREADS) {
  flash_backward_kv<128, 32, FLASH_DV>(a, block);
}

#endif
