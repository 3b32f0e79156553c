/* needs.c: what a model would need to run well, and the rate at which this machine reads memory.
 * Layer 6. Nothing of the model is touched: the file may be larger than memory. Decoding reads
 * every weight once a token, so bytes over bandwidth is the least time that a token takes. */
#define _DEFAULT_SOURCE /* madvise, sysconf's names */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "context.h"
#include "error.h"
#include "quant.h"

/* The buffer is as large as what a token reads, within bounds: weights that fit the caches are read
 * from there. */
enum { MIN_BUFFER = 16 << 20, MAX_BUFFER = 512 << 20, LARGE_PAGE = 2 << 20 };
enum { N_STREAMS = 4, LINE = 8, MIN_PASSES = 3 };       /* LINE: words of a cache line */
typedef uint64_t pair __attribute__((vector_size(16))); /* by words the loop measures itself */
static const double READ_SECONDS = 0.05;

/* ---- bandwidth ---- */

typedef struct read_job {
  uint64_t *buffer;
  size_t n_words;
  volatile uint64_t *sums; /* (n_threads): what was read is used */
} read_job;

static void fill_thread(void *arg, int thread, int n_threads) {
  const read_job *job = arg;
  size_t begin, end;
  thread_share(job->n_words, LINE, thread, n_threads, &begin, &end);
  memset(job->buffer + begin, 1, (end - begin) * sizeof *job->buffer);
}

/* Several streams keep more of the memory's banks busy than one. */
static void read_thread(void *arg, int thread, int n_threads) {
  const read_job *job = arg;
  pair a = {0}, b = {0}, c = {0}, d = {0};
  size_t begin, end;
  thread_share(job->n_words, N_STREAMS * LINE, thread, n_threads, &begin, &end);
  size_t n = (end - begin) / N_STREAMS / LINE * LINE / 2; /* of a stream, whole lines */
  const pair *p = (const pair *)(const void *)(job->buffer + begin);
  for (const pair *stop = p + n; p < stop; p += 4)
    for (size_t at = 0; at < N_STREAMS * n; at += n)
      a += p[at], b += p[at + 1], c += p[at + 2], d += p[at + 3];
  a += b + c + d;
  job->sums[thread] = a[0] + a[1];
}

static double seconds_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static size_t buffer_bytes(uint64_t n_bytes) {
  if (n_bytes < MIN_BUFFER) return MIN_BUFFER;
  return n_bytes > MAX_BUFFER ? MAX_BUFFER : (size_t)n_bytes / LARGE_PAGE * LARGE_PAGE;
}

/* Large pages are quickly filled, and a mapped file has them where it can. */
static uint64_t *buffer_new(size_t n_bytes) {
  void *buffer = aligned_alloc(LARGE_PAGE, n_bytes);
#ifdef MADV_HUGEPAGE
  if (buffer) (void)madvise(buffer, n_bytes, MADV_HUGEPAGE);
#endif
  return buffer;
}

/* Bytes a second of the fastest pass. */
static double best_rate(thread_pool *pool, read_job *job) {
  double best = 0, start = seconds_now(), from = start;
  thread_pool_run(pool, fill_thread, job);
  for (int pass = 0; pass < MIN_PASSES || from - start < READ_SECONDS; pass++) {
    from = seconds_now();
    thread_pool_run(pool, read_thread, job);
    double rate = (double)(job->n_words * sizeof *job->buffer) / (seconds_now() - from);
    if (rate > best) best = rate;
  }
  return best;
}

static llm_status measure_bandwidth(size_t n_bytes, int n_threads, double *bytes_per_second,
                                    llm_error *err) {
  thread_pool *pool = NULL;
  read_job job = {.buffer = buffer_new(n_bytes), .n_words = n_bytes / sizeof(uint64_t)};
  job.sums = calloc((size_t)n_threads, sizeof *job.sums);
  llm_status status = LLM_OK;
  if (!job.buffer || !job.sums)
    status = error_nomem(err, n_bytes, "a buffer to measure the memory with");
  if (!status) status = thread_pool_new(&pool, n_threads, err);
  if (!status) *bytes_per_second = best_rate(pool, &job);
  thread_pool_free(pool);
  free((void *)job.sums);
  free(job.buffer);
  return status;
}

/* ---- sizes ---- */

/* Of the embedding, and of learned positions, a token reads one row; tied, all as the output. */
static uint64_t token_bytes(const llm_model *m) {
  const weight *rows[] = {m->config.tied_output ? &m->pos_embd : &m->tok_embd, &m->pos_embd};
  uint64_t n_bytes = 0;
  for (size_t i = 0; i < gguf_n_tensors(m->file); i++) {
    const llm_tensor *t = gguf_tensor(m->file, i);
    int one_row = t->data == rows[0]->data || t->data == rows[1]->data;
    n_bytes += one_row ? type_row_bytes(t->type, (size_t)t->dims[0]) : t->n_bytes;
  }
  return n_bytes;
}

static uint64_t add(uint64_t a, uint64_t b) { return a > UINT64_MAX - b ? UINT64_MAX : a + b; }

static uint64_t machine_bytes(void) {
#ifdef _SC_PHYS_PAGES
  long pages = sysconf(_SC_PHYS_PAGES), page_bytes = sysconf(_SC_PAGESIZE);
  if (pages > 0 && page_bytes > 0) return (uint64_t)pages * (uint64_t)page_bytes;
#endif
  return 0;
}

llm_status llm_model_needs(const llm_model *model, const llm_context_options *options,
                           llm_needs *out, llm_error *err) {
  llm_context plan;
  *out = (llm_needs){0};
  llm_status status = context_plan(&plan, model, options, err);
  if (status) return status;
  out->n_ctx = (int64_t)plan.n_ctx;
  out->n_threads = plan.options.n_threads;
  strncpy(out->kernels, plan.kernels->name, sizeof out->kernels - 1);
  out->file_bytes = model->map.n_bytes;
  out->kv_bytes = plan.kv_bytes;
  out->scratch_bytes = plan.arena_bytes;
  out->total_bytes = add(add(out->file_bytes, out->kv_bytes), out->scratch_bytes);
  out->machine_bytes = machine_bytes();
  out->token_bytes = token_bytes(model);
  status = measure_bandwidth(buffer_bytes(out->token_bytes), out->n_threads, &out->bytes_per_second,
                             err);
  if (status) return status;
  out->seconds_per_token = (double)out->token_bytes / out->bytes_per_second;
  return error_clear(err);
}
