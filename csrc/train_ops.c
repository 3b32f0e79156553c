/* train_ops.c: the trainer's handle: see train.h and train_ops.h. Layer T. */
#include "train_ops.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "cpu.h"
#include "error.h"

#if defined(__x86_64__)
#include <immintrin.h>
enum { FLUSH_SUBNORMALS = 0x8040 }; /* flush to zero, subnormals are zero */
static unsigned float_mode(void) { return _mm_getcsr(); }
static void set_float_mode(unsigned mode) { _mm_setcsr(mode); }
#else
enum { FLUSH_SUBNORMALS = 0 };
static unsigned float_mode(void) { return 0; }
static void set_float_mode(unsigned mode) { (void)mode; }
#endif

static const char *const ISA_NAMES[] = {"scalar", "avx2", "avx512"};

static train_isa best_isa(void) {
  unsigned features = cpu_features();
  return features & CPU_AVX512 ? ISA_AVX512 : features & CPU_AVX2 ? ISA_AVX2 : ISA_SCALAR;
}

static llm_status find_isa(train_isa *out, const char *name, llm_error *err) {
  train_isa best = best_isa();
  *out = best;
  if (!name) return error_clear(err);
  for (int isa = ISA_SCALAR; isa <= (int)best; isa++) {
    *out = (train_isa)isa;
    if (!strcmp(name, ISA_NAMES[isa])) return error_clear(err);
  }
  return error_set(err, LLM_ERR_ARG, "kernels \"%s\": unknown, or not on this machine (best: %s)",
                   name, ISA_NAMES[best]);
}

/* "amx" is AVX-512 with products of its own, which round: without rounding it is not known. */
static int wants_amx(const char *kernels, int32_t rounds) {
  return rounds && (!kernels || !strcmp(kernels, "amx")) && (cpu_features() & CPU_AMX);
}

int32_t llm_ops_can_round(void) { return (cpu_features() & CPU_AVX512_BF16) != 0; }

llm_status llm_ops_new(llm_ops **out, int32_t n_threads, const char *kernels, int32_t rounds,
                       llm_error *err) {
  *out = NULL;
  const int amx = wants_amx(kernels, rounds);
  train_isa isa;
  llm_status status = find_isa(&isa, amx ? NULL : kernels, err);
  if (status) return status;
  if (rounds && !(llm_ops_can_round() && isa == ISA_AVX512))
    return error_set(err, LLM_ERR_ARG, "precision bf16: not with %s kernels on this machine",
                     ISA_NAMES[isa]);
  llm_ops *ops = calloc(1, sizeof *ops);
  if (!ops) return error_nomem(err, sizeof *ops, "the trainer's operations");
  ops->isa = isa;
  ops->kernels = amx ? "amx" : ISA_NAMES[isa];
  ops->gemm = ops->product = &gemm_kernels[isa];
#if defined(__x86_64__)
  if (rounds) ops->product = amx ? &gemm_amx : &gemm_bf16;
#endif
  status = thread_pool_new(&ops->pool, n_threads, err);
  if (status) {
    llm_ops_free(ops);
    return status;
  }
  *out = ops;
  return LLM_OK;
}

void llm_ops_free(llm_ops *ops) {
  if (!ops) return;
  thread_pool_free(ops->pool);
  free(ops->scratch);
  free(ops);
}

const char *llm_ops_kernels(const llm_ops *ops) { return ops->kernels; }

int32_t llm_ops_threads_available(void) { return threads_available(); }

llm_status ops_scratch(llm_ops *ops, size_t n, llm_error *err) {
  if (n <= ops->scratch_floats) return error_clear(err);
  free(ops->scratch);
  ops->scratch_floats = 0;
  size_t n_bytes = round_up(n * sizeof(float), 64);
  ops->scratch = aligned_alloc(64, n_bytes);
  if (!ops->scratch) return error_nomem(err, n_bytes, "an operation's scratch");
  ops->scratch_floats = n;
  return error_clear(err);
}

typedef struct units_job {
  unit_job job;
  void *arg;
  size_t n_units;
  atomic_size_t next;
} units_job;

static void run_units(void *arg, int thread, int n_threads) {
  (void)n_threads;
  units_job *j = arg;
  unsigned mode = float_mode();
  set_float_mode(mode | FLUSH_SUBNORMALS);
  size_t unit;
  while ((unit = atomic_fetch_add(&j->next, 1)) < j->n_units) j->job(j->arg, unit, thread);
  set_float_mode(mode); /* thread 0 is the caller's */
}

void ops_run(llm_ops *ops, size_t n_units, unit_job job, void *arg) {
  units_job j = {job, arg, n_units, 0};
  thread_pool_run(ops->pool, run_units, &j);
}

size_t ops_unit(const llm_ops *ops, size_t n_items, size_t multiple, size_t most) {
  enum { UNITS_PER_THREAD = 4 };
  const size_t n_units = UNITS_PER_THREAD * (size_t)thread_pool_size(ops->pool);
  const size_t unit = round_up((n_items + n_units - 1) / n_units, multiple);
  return unit < most ? unit : most;
}

typedef struct rows_job {
  port_rows run;
  const void *args;
  size_t n_rows, unit;
} rows_job;

static void run_rows(void *arg, size_t unit, int thread) {
  (void)thread;
  const rows_job *j = arg;
  const size_t begin = unit * j->unit;
  j->run(j->args, (int64_t)begin, (int64_t)min_size(begin + j->unit, j->n_rows));
}

void ops_run_rows(llm_ops *ops, const port_rows *builds, const void *args, int64_t n_rows) {
  const size_t n = (size_t)n_rows, unit = ops_unit(ops, n, 1, SIZE_MAX);
  rows_job j = {builds[ops->isa], args, n, unit};
  ops_run(ops, n ? (n + unit - 1) / unit : 0, run_rows, &j);
}
