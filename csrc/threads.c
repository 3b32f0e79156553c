/* threads.c: see threads.h. One generation counter announces a job, one counter of busy workers its
 * end; both are atomics that a waiting thread spins on for up to MAX_SPINS before it sleeps on a
 * condition. A sleeper counts itself before its last look at the counter, a waker moves the counter
 * before it looks for sleepers (sequentially consistent both), so no wake-up is lost. There are
 * never more threads than cores: they would wait for each other's turn at every job. Where another
 * program keeps a core busy, one thread less takes part. */
#define _GNU_SOURCE /* sched_getaffinity */
#include "threads.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "error.h"

enum {
  MIN_SPINS = 200,
  MAX_SPINS = 10000,       /* over 100 us, longer than sampling and the gaps of a layer */
  AHEAD_STEP = 256,        /* bytes asked for between two looks at a counter */
  AHEAD_BYTES = 256 << 10, /* of L2, which the rest of a pass needs too */
  ACTIVE_BITS = 11         /* of `announced` hold the number of threads that take part */
};

/* Nanoseconds. */
enum {
  LONG_WAIT = 300000,      /* for a worker: worth asking why */
  JUDGED_AFTER = 10000000, /* that such waits were counted */
  SHORT_REST = 100000000,  /* of a thread that is left out, the first time; then twice as long */
  LONG_REST = 1600000000
};

typedef struct worker {
  _Alignas(64) struct thread_pool *pool; /* a line that no other thread writes */
  pthread_t id;
  int thread, spins;
  thread_ahead ahead; /* what is left of it */
  size_t may_ask;     /* for so many bytes of it */
  long kernel_id;
  int64_t delayed;    /* ready to run, but without a core, when last asked */
  atomic_uint served; /* the last job done */
} worker;

typedef struct front {
  _Alignas(64) atomic_size_t taken; /* pieces of a share that threads have asked for in this job */
} front;

struct thread_pool {
  front *fronts;  /* n_shares of them */
  int n_started;  /* workers that exist; the caller is one thread more */
  int n_shares;   /* of a job that all threads take part in, the same number for each thread */
  int n_active;   /* threads that take part */
  int n_forks;    /* of the process that the workers live in: fork copies the pool without them */
  thread_job job; /* NULL tells the workers to leave */
  void *arg;
  int64_t since, lost;        /* waits for threads without a core: counted since, altogether */
  int64_t rest, rested_until; /* how long a thread is left out, and until when */
  _Alignas(64) atomic_uint announced; /* a counter of jobs, then n_active */
  _Alignas(64) atomic_int busy;
  _Alignas(64) atomic_int sleepers; /* threads asleep, or about to be, on `wake` */
  pthread_mutex_t mutex;
  pthread_cond_t wake, again; /* again: for those left out */
  worker workers[];
};

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void spin_pause(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

/* Counted in the child, by every fork: asking for the process at each job is a system call. */
static int n_forks;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void count_fork(void) { n_forks++; }

static void count_forks(void) { pthread_atfork(NULL, NULL, count_fork); }

static int is_orphan(const thread_pool *pool) { /* in a forked process */
  return pool->n_started > 0 && pool->n_forks != n_forks;
}

/* Asks for the next lines; 0 when there are none. */
static int fetch_ahead(worker *w) {
  for (int i = 0; i < MAX_AHEAD && w->may_ask; i++) {
    size_t left = w->ahead.n_bytes[i], n = left < AHEAD_STEP ? left : AHEAD_STEP;
    if (n == 0) continue;
    for (size_t k = 0; k < n; k += 64) __builtin_prefetch(w->ahead.from[i] + k, 0, 2);
    w->ahead.from[i] += n;
    w->ahead.n_bytes[i] -= n;
    w->may_ask -= AHEAD_STEP;
    return 1;
  }
  return 0;
}

void thread_pool_ahead(thread_pool *pool, int share, const thread_ahead *ahead) {
  int each = pool->n_shares / (pool->n_started + 1);
  worker *w = &pool->workers[share / each];
  if (share % each) return; /* the thread begins with the first of its shares */
  w->ahead = *ahead;
  w->may_ask = AHEAD_BYTES;
}

/* A condition on one of the two counters. */
typedef int (*pool_condition)(thread_pool *pool, unsigned seen);

static int job_arrived(thread_pool *pool, unsigned seen) { return pool->announced != seen; }

static int workers_done(thread_pool *pool, unsigned seen) {
  (void)seen;
  return pool->busy == 0;
}

/* spins: how long this thread waits awake, learned from what the last waits needed. Where another
 * program has the core that is waited for, or both threads share one, waiting awake keeps the
 * others from ever getting done. 0: in vain. */
static int wait_awake(worker *w, pool_condition holds, unsigned seen) {
  for (int i = 0; i < w->spins; i++) {
    if (holds(w->pool, seen)) {
      w->spins = w->spins + w->spins / 4 < MAX_SPINS ? w->spins + w->spins / 4 : MAX_SPINS;
      return 1;
    }
    if (!fetch_ahead(w)) spin_pause();
  }
  w->spins = w->spins / 2 > MIN_SPINS ? w->spins / 2 : MIN_SPINS;
  return 0;
}

static void wait_asleep(thread_pool *pool, pool_condition holds, unsigned seen) {
  pthread_mutex_lock(&pool->mutex);
  pool->sleepers++;
  while (!holds(pool, seen)) pthread_cond_wait(&pool->wake, &pool->mutex);
  pool->sleepers--;
  pthread_mutex_unlock(&pool->mutex);
}

static void pool_wake(thread_pool *pool) {
#if defined(__aarch64__) /* without it a sleeper was missed under QEMU */
  atomic_thread_fence(memory_order_seq_cst);
#endif
  if (pool->sleepers == 0) return;
  pthread_mutex_lock(&pool->mutex);
  pthread_cond_broadcast(&pool->wake);
  pthread_mutex_unlock(&pool->mutex);
}

static void run_shares(thread_pool *pool, int thread) {
  int each = pool->n_shares / (pool->n_started + 1);
  for (int i = thread * each; i < (thread + 1) * each; i++)
    pool->job(pool->arg, i, pool->n_active * each);
}

/* How long a thread has been ready to run without a core, in nanoseconds; 0 where nobody knows. */
static int64_t delay_of(const worker *w) {
  char text[64] = "", *rest = text; /* time with a core, time without, ... */
#if defined(__linux__)
  snprintf(text, sizeof text, "/proc/self/task/%ld/schedstat", w->kernel_id);
  int file = open(text, O_RDONLY | O_CLOEXEC);
  ssize_t n = read(file, text, sizeof text - 1);
  text[n < 0 ? 0 : n] = '\0';
  close(file);
  strtoll(text, &rest, 10);
#else
  (void)w;
#endif
  return strtoll(rest, NULL, 10);
}

static int is_left_out(const worker *w) {
  return w->thread >= (int)(w->pool->announced % (1u << ACTIVE_BITS));
}

/* Until this thread takes part again; the job that it takes part in has been announced. */
static void wait_left_out(worker *w) {
  pthread_mutex_lock(&w->pool->mutex);
  while (is_left_out(w)) pthread_cond_wait(&w->pool->again, &w->pool->mutex);
  pthread_mutex_unlock(&w->pool->mutex);
}

static void *worker_main(void *arg) {
  worker *w = arg;
  thread_pool *pool = w->pool;
#if defined(__linux__)
  w->kernel_id = syscall(SYS_gettid);
#endif
  for (unsigned seen = 0;; seen = w->served) {
    if (!wait_awake(w, job_arrived, seen)) wait_asleep(pool, job_arrived, seen);
    if (is_left_out(w)) wait_left_out(w);
    unsigned announced = pool->announced; /* the next comes when this thread is done */
    if (!pool->job) return NULL;
    run_shares(pool, w->thread);
    w->served = announced;
    if (--pool->busy == 0) pool_wake(pool);
  }
}

static void clear_fronts(thread_pool *pool) {
  for (int i = 0; i < pool->n_shares; i++)
    atomic_store_explicit(&pool->fronts[i].taken, 0, memory_order_relaxed);
}

static void pool_start(thread_pool *pool, thread_job job, void *arg) {
  clear_fronts(pool);
  pool->job = job;
  pool->arg = arg;
  if (pool->n_active == 1) return; /* nobody needs to know */
  pool->busy = pool->n_active - 1;
  pool->announced =
      (((pool->announced >> ACTIVE_BITS) + 1) << ACTIVE_BITS) + (unsigned)pool->n_active;
  pool_wake(pool);
}

/* ---- threads without a core ---- */

/* Where another program keeps a core busy, every job ends up waiting for the thread that shares it:
 * two threads would be slower than one. The last thread, whichever was late, is left out for a
 * while: the system moves the others to the cores that are free. Then it is tried again. */

static void let_all_take_part(thread_pool *pool, int64_t now) {
  pool->n_active = pool->n_started + 1;
  pool->since = now;
  pool->lost = 0;
}

static void wake_left_out(thread_pool *pool) {
  pthread_mutex_lock(&pool->mutex);
  pthread_cond_broadcast(&pool->again);
  pthread_mutex_unlock(&pool->mutex);
}

/* The wait for `late` began at start. One of n threads is worth an nth of the time, or less where
 * all wait for memory: a thread that costs a part in n + 1 is better left out. */
static void note_delay(thread_pool *pool, worker *late, int64_t start, int64_t now) {
  int64_t delayed = delay_of(late), more = delayed - late->delayed, age = now - pool->since;
  pool->lost += more < now - start ? more : now - start;
  late->delayed = delayed;
  if (age < JUDGED_AFTER) return;
  if (pool->lost * (pool->n_active + 1) > age) {
    int again = now - pool->rested_until < SHORT_REST;
    if (!again)
      pool->rest = SHORT_REST;
    else if (pool->rest < LONG_REST)
      pool->rest *= 2;
    pool->rested_until = now + pool->rest;
    pool->n_active--;
  }
  pool->since = now;
  pool->lost = 0;
}

static void await_workers(thread_pool *pool) {
  if (wait_awake(&pool->workers[0], workers_done, 0)) return;
  worker *late = NULL;
  for (int i = 1; i < pool->n_active; i++)
    if (pool->workers[i].served != pool->announced) late = &pool->workers[i];
  int64_t start = now_ns();
  wait_asleep(pool, workers_done, 0);
  int64_t end = now_ns();
  if (late && end - start > LONG_WAIT) note_delay(pool, late, start, end);
}

int threads_available(void) {
  long n = 0;
#if defined(__linux__)
  for (int capacity = MAX_THREADS; n <= 0 && capacity <= 64 * MAX_THREADS; capacity *= 2) {
    cpu_set_t *set = CPU_ALLOC(capacity);
    if (!set) break;
    size_t size = CPU_ALLOC_SIZE(capacity);
    if (sched_getaffinity(0, size, set) == 0) n = CPU_COUNT_S(size, set);
    CPU_FREE(set);
  }
#endif
  if (n <= 0) n = sysconf(_SC_NPROCESSORS_ONLN);
  return n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : (int)n;
}

llm_status thread_pool_new(thread_pool **out, int n_threads, llm_error *err) {
  return thread_pool_new_on(out, n_threads, threads_available(), err);
}

llm_status thread_pool_new_on(thread_pool **out, int n_threads, int n_cores, llm_error *err) {
  *out = NULL;
  pthread_once(&once, count_forks);
  if (n_threads < 1 || n_threads > MAX_THREADS)
    return error_set(err, LLM_ERR_ARG, "threads: found %d, expected 1 to %d", n_threads,
                     MAX_THREADS);
  int n_real = n_threads < n_cores ? n_threads : n_cores;
  size_t n_bytes = sizeof(thread_pool) + (size_t)n_real * sizeof(worker);
  n_bytes = (n_bytes + 63) / 64 * 64;
  thread_pool *pool = aligned_alloc(64, n_bytes);
  if (!pool) return error_nomem(err, n_bytes, "a thread pool");
  memset(pool, 0, n_bytes);
  pool->n_shares = n_threads / n_real * n_real;
  pool->fronts = aligned_alloc(64, (size_t)pool->n_shares * sizeof(front));
  if (!pool->fronts) {
    free(pool);
    return error_nomem(err, (uint64_t)n_threads * sizeof(front), "a thread pool");
  }
  pool->n_forks = n_forks;
  pthread_mutex_init(&pool->mutex, NULL);
  pthread_cond_init(&pool->wake, NULL);
  pthread_cond_init(&pool->again, NULL);
  for (int i = 0; i < n_real; i++) {
    worker *w = &pool->workers[i];
    w->pool = pool;
    w->thread = i;
    w->spins = MAX_SPINS;
    if (i == 0) continue;
    int failure = pthread_create(&w->id, NULL, worker_main, w);
    if (failure) {
      thread_pool_free(pool);
      return error_set_errno(err, failure, "cannot start thread %d of %d", i + 1, n_real);
    }
    pool->n_started++;
  }
  let_all_take_part(pool, now_ns());
  *out = pool;
  return error_clear(err);
}

void thread_pool_free(thread_pool *pool) {
  if (!pool) return;
  if (!is_orphan(pool)) {
    let_all_take_part(pool, 0);
    pool_start(pool, NULL, NULL);
    wake_left_out(pool);
    for (int i = 0; i < pool->n_started; i++) pthread_join(pool->workers[i + 1].id, NULL);
    pthread_cond_destroy(&pool->wake); /* waits for sleepers, dead ones too */
    pthread_cond_destroy(&pool->again);
    pthread_mutex_destroy(&pool->mutex);
  }
  free(pool->fronts);
  free(pool);
}

int thread_pool_size(const thread_pool *pool) { return pool->n_shares; }

void thread_pool_run(thread_pool *pool, thread_job job, void *arg) {
  if (is_orphan(pool)) {
    clear_fronts(pool);
    job(arg, 0, 1);
    return;
  }
  int64_t now = pool->n_active <= pool->n_started ? now_ns() : 0;
  int all_again = now > pool->rested_until;
  if (all_again) let_all_take_part(pool, now);
  pool_start(pool, job, arg);
  if (all_again) wake_left_out(pool);
  run_shares(pool, 0);
  if (pool->n_active > 1) await_workers(pool);
}

void thread_share(size_t n, size_t unit, int thread, int n_threads, size_t *begin, size_t *end) {
  size_t n_units = (n + unit - 1) / unit;
  *begin = n_units * (size_t)thread / (size_t)n_threads * unit;
  *end = n_units * ((size_t)thread + 1) / (size_t)n_threads * unit;
  if (*begin > n) *begin = n;
  if (*end > n) *end = n;
}

/* A piece is seven eighths of what the pieces before have left of the share, n >> 3k units: streams
 * of weights stay long, and what is left for others when a thread is slower is an eighth. */
int thread_pool_take(thread_pool *pool, size_t n, size_t unit, int *share, int n_shares,
                     size_t *begin, size_t *end) {
  for (int tried = 0; tried < n_shares; tried++) {
    size_t k = atomic_fetch_add_explicit(&pool->fronts[*share].taken, 1, memory_order_relaxed);
    size_t first, last;
    thread_share(n, unit, *share, n_shares, &first, &last);
    size_t n_units = (last - first + unit - 1) / unit;
    size_t left = 3 * k < 8 * sizeof n_units ? n_units >> 3 * k : 0;
    if (left) {
      *begin = first + (n_units - left) * unit;
      *end = *begin + (left - left / 8) * unit;
      if (*end > last) *end = last;
      return 1;
    }
    *share = (*share + 1) % n_shares;
  }
  return 0;
}
