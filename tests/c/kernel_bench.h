/* kernel_bench.h: the timings of test_kernels.c. Time is the processor time of the thread that took
 * longest, which other programs disturb least; the best of five. Compare figures of one run only:
 * the memory bandwidth of a shared machine drifts. */
#ifndef LLM_TEST_KERNEL_BENCH_H
#define LLM_TEST_KERNEL_BENCH_H

#include <time.h>

#include "kernel_cases.h"
#include "threads.h"

enum {
  BENCH_BYTES = 96 << 20, /* more than a last-level cache */
  BENCH_UNITS = 128,      /* of 16 tokens */
  BENCH_MAX_THREADS = 64
};

typedef struct bench_job {
  const kernels *k;
  matmul_args args;
  llm_type type;
  size_t n_bytes;
  int again; /* attention: the same keys and values, from cache, or 16 tokens together */
  double seconds[BENCH_MAX_THREADS];
  void *scratch[BENCH_MAX_THREADS];
  uint64_t sink[BENCH_MAX_THREADS][8]; /* a cache line each */
} bench_job;

static inline double bench_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Four streams: one alone does not reach the limit of the memory. */
static inline void bench_read(void *arg, int thread, int n_threads) {
  bench_job *job = arg;
  size_t begin, end;
  thread_share(job->n_bytes / 64, 1, thread, n_threads, &begin, &end);
  size_t apart = (end - begin) / 4 * 8;
  const uint64_t *p = (const uint64_t *)job->args.w + begin * 8;
  uint64_t sum[8] = {0};
  double start = bench_now();
  for (size_t i = 0; i < apart; i += 8)
    for (size_t s = 0; s < 4; s++)
      for (size_t j = 0; j < 8; j++) sum[j] += p[s * apart + i + j];
  job->seconds[thread] = bench_now() - start;
  for (size_t j = 0; j < 8; j++) job->sink[thread][0] += sum[j];
}

static inline void bench_matmul(void *arg, int thread, int n_threads) {
  bench_job *job = arg;
  size_t begin, end;
  thread_share(job->args.n_out, 16, thread, n_threads, &begin, &end);
  double start = bench_now();
  job->k->matmul[job->type](&job->args, begin, end, job->scratch[thread]);
  job->seconds[thread] = bench_now() - start;
}

static inline double bench_time(thread_pool *pool, thread_job run, bench_job *job) {
  double best = 1e30;
  for (int i = 0; i < 5; i++) {
    double longest = 0;
    thread_pool_run(pool, run, job);
    for (int t = 0; t < thread_pool_size(pool); t++)
      if (job->seconds[t] > longest) longest = job->seconds[t];
    if (longest < best) best = longest;
  }
  return best;
}

static inline void bench_one(thread_pool *pool, const kernels *k, llm_type type, size_t n_tok,
                             size_t n_in) {
  size_t row_bytes = type_row_bytes(type, n_in);
  size_t n_out = n_tok == 1 ? BENCH_BYTES / row_bytes : 1536;
  bench_job *job = calloc(1, sizeof *job);
  char *w = aligned_new(n_out * row_bytes);
  size_t unit = 256 * row_bytes, n_bytes = n_out * row_bytes; /* random once, then repeated */
  fill_weights(type, ORDINARY, w, 256 * n_in);
  for (size_t i = unit; i < n_bytes; i++) w[i] = w[i - unit];
  act_rows acts = acts_new(ORDINARY, n_tok, n_in);
  float *y = aligned_new(n_tok * n_out * sizeof *y);
  for (int t = 0; t < thread_pool_size(pool); t++)
    job->scratch[t] = aligned_new(k->scratch_bytes(n_in));
  job->k = k, job->type = type, job->n_bytes = n_bytes;
  job->args = (matmul_args){w, n_out, &acts, y, n_out};
  double seconds = bench_time(pool, bench_matmul, job);
  if (n_tok == 1) {
    double read = bench_time(pool, bench_read, job);
    printf("%-7s %-5s n_in %5zu  1 tok, %d threads: %6.2f GB/s of %6.2f read (%.0f %%)\n", k->name,
           llm_type_describe(type).name, n_in, thread_pool_size(pool),
           1e-9 * (double)n_bytes / seconds, 1e-9 * (double)n_bytes / read, 100 * read / seconds);
  } else {
    printf("%-7s %-5s n_in %5zu %2zu tok, %d threads: %7.1f GFLOP/s\n", k->name,
           llm_type_describe(type).name, n_in, n_tok, thread_pool_size(pool),
           2e-9 * (double)(n_out * n_in * n_tok) / seconds);
  }
  fflush(stdout);
  for (int t = 0; t < thread_pool_size(pool); t++) free(job->scratch[t]);
  acts_free(&acts);
  free(y), free(w), free(job);
}

enum { N_Q = 3, DIM = 64 }; /* of attention: query heads of one key head, and their width */

/* n_pos of the n_all keys at k, behind which the values lie. */
static inline attention_args bench_args(llm_type type, const char *k, size_t n_pos, size_t n_all) {
  const size_t bytes = type_row_bytes(type, DIM);
  return (attention_args){.k = k,
                          .v = k + n_all * bytes,
                          .k_type = type,
                          .v_type = type,
                          .k_bytes = bytes,
                          .v_bytes = bytes,
                          .n_q = N_Q,
                          .n_pos = n_pos,
                          .head_dim = DIM,
                          .scale = 0.125f};
}

/* Units of attention: 256 positions and three heads 64 wide, from memory, or the same one again. */
static inline void bench_attention(void *arg, int thread, int n_threads) {
  enum { N_POS = 256 };
  static _Thread_local float q[N_Q * DIM], out[N_Q * (DIM + 2)], scores[N_Q * N_POS];
  bench_job *job = arg;
  size_t bytes = type_row_bytes(job->type, DIM), n = job->n_bytes / (2 * N_POS * bytes);
  for (int i = 0; i < N_Q * DIM; i++) q[i] = (float)(i % 13 - 6);
  double start = bench_now();
  for (size_t i = (size_t)thread; i < n; i += (size_t)n_threads) {
    const char *k = (const char *)job->args.w + (job->again ? 0 : i) * 2 * N_POS * bytes;
    attention_args a = bench_args(job->type, k, N_POS, N_POS);
    a.q = q, a.scores = scores, a.out = out;
    a.max = out + N_Q * DIM, a.sum = a.max + N_Q;
    job->k->attention(&a);
  }
  job->seconds[thread] = bench_now() - start;
}

static inline void bench_attention_of(thread_pool *pool, const kernels *k, llm_type type) {
  bench_job *job = calloc(1, sizeof *job);
  char *w = aligned_new(BENCH_BYTES);
  size_t unit = 256 * type_row_bytes(type, 64);
  fill_weights(type, ORDINARY, w, 256 * 64);
  for (size_t i = unit; i < BENCH_BYTES; i++) w[i] = w[i - unit];
  job->k = k, job->type = type, job->n_bytes = BENCH_BYTES, job->args.w = w;
  for (job->again = 0; job->again < 2; job->again++) {
    double seconds = bench_time(pool, bench_attention, job), read = 0;
    if (!job->again) read = bench_time(pool, bench_read, job);
    printf("%-7s %-5s attention, 3 heads of 64, %d threads: %6.2f GB/s", k->name,
           llm_type_describe(type).name, thread_pool_size(pool), 1e-9 * BENCH_BYTES / seconds);
    if (job->again)
      printf(" from cache\n");
    else
      printf(" of %6.2f read (%.0f %%)\n", 1e-9 * BENCH_BYTES / read, 100 * read / seconds);
  }
  fflush(stdout);
  free(w), free(job);
}

/* 16 tokens behind 496 others, three heads 64 wide: one by one, and together where a set can. */
static inline void bench_tokens(void *arg, int thread, int n_threads) {
  enum { N_POS = 497, N_TOK = ATTENTION_TOKENS, ROW = N_Q * (DIM + 2) };
  static _Thread_local float q[N_TOK * N_Q * DIM], out[N_TOK * ROW];
  bench_job *job = arg;
  const size_t n_all = N_POS + N_TOK - 1;
  for (int i = 0; i < N_TOK * N_Q * DIM; i++) q[i] = (float)(i % 13 - 6);
  attention_args a = bench_args(LLM_TYPE_F16, job->args.w, N_POS, n_all);
  a.q = q, a.scores = job->scratch[thread], a.out = out;
  a.max = out + N_Q * DIM, a.sum = a.max + N_Q;
  double start = bench_now();
  for (size_t i = (size_t)thread; i < BENCH_UNITS; i += (size_t)n_threads) {
    attention_tile tile = {a, N_TOK, n_all, N_Q * DIM, ROW};
    if (job->again) job->k->attention_tile(&tile);
    for (size_t t = 0; !job->again && t < N_TOK; t++) {
      attention_args one = a;
      one.q += t * N_Q * DIM, one.n_pos += t;
      one.out += t * ROW, one.max += t * ROW, one.sum += t * ROW;
      job->k->attention(&one);
    }
  }
  job->seconds[thread] = bench_now() - start;
}

static inline void bench_tokens_of(thread_pool *pool, const kernels *k) {
  bench_job *job = calloc(1, sizeof *job);
  char *w = aligned_new(512 * 2 * 64 * 2);
  fill_weights(LLM_TYPE_F16, ORDINARY, w, 512 * 2 * 64);
  job->k = k, job->args.w = w;
  for (int t = 0; t < thread_pool_size(pool); t++)
    job->scratch[t] = aligned_new(attention_tile_floats(64, 512) * sizeof(float));
  for (job->again = 0; job->again < 1 + (k->attention_tile != NULL); job->again++)
    printf("%-7s F16   attention of 16 tokens behind 496, %s, %d threads: %6.1f GFLOP/s\n", k->name,
           job->again ? "together" : "one by one", thread_pool_size(pool),
           1e-9 * BENCH_UNITS * 16 * 3 * 504.5 * 4 * 64 / bench_time(pool, bench_tokens, job));
  for (int t = 0; t < thread_pool_size(pool); t++) free(job->scratch[t]);
  free(w), free(job);
}

/* only: the name of a type, "attention", or NULL for all. */
static inline int kernel_bench(const kernels *scalar, const kernels *const *tables,
                               const char *only) {
  int n_threads = threads_available() < BENCH_MAX_THREADS ? threads_available() : BENCH_MAX_THREADS;
  for (int threads = 1; threads <= n_threads; threads += threads < n_threads ? n_threads - 1 : 1) {
    thread_pool *pool;
    if (thread_pool_new(&pool, threads, NULL)) return 1;
    for (const kernels *const *k = tables; *k; k++) {
      if (only && strcmp(only, "attention")) continue;
      bench_attention_of(pool, *k, LLM_TYPE_F16);
      bench_attention_of(pool, *k, LLM_TYPE_Q8_0);
      bench_tokens_of(pool, *k);
    }
    for (size_t t = 0; t < N_TYPES; t++) {
      if (only && strcmp(only, llm_type_describe(all_types[t]).name)) continue;
      size_t narrow = 576 / llm_type_describe(all_types[t]).n_per_block; /* whole blocks */
      narrow *= llm_type_describe(all_types[t]).n_per_block;
      bench_one(pool, scalar, all_types[t], 8, narrow);
      for (const kernels *const *k = tables; *k; k++) {
        bench_one(pool, *k, all_types[t], 1, narrow);
        bench_one(pool, *k, all_types[t], 1, 2048);
        bench_one(pool, *k, all_types[t], 4, narrow);
        bench_one(pool, *k, all_types[t], 128, narrow);
        bench_one(pool, *k, all_types[t], 128, 2048);
      }
    }
    thread_pool_free(pool);
  }
  return 0;
}

#endif
