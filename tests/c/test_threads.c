/* test_threads.c: every share of every job runs once, jobs do not overlap, and sleeping, crowded
 * and failing pools behave. Run it under the thread sanitizer too. */
#define _DEFAULT_SOURCE /* usleep */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "threads.h"

enum { MOST = 67 };

typedef struct counts {
  long runs[MOST]; /* each thread writes its own */
  int n_threads;   /* at most */
  int n_last;      /* of the last job: fewer where a thread gets no core */
  int bad;
} counts;

static void count(void *arg, int thread, int n_threads) {
  counts *c = arg;
  if (n_threads < 1 || n_threads > c->n_threads || thread < 0 || thread >= n_threads) {
    c->bad = 1;
    return;
  }
  c->runs[thread]++;
  if (thread == 0) c->n_last = n_threads;
}

static void test_pool(int n_threads, int n_cores, int n_runs, useconds_t pause) {
  int n_shares = n_threads < n_cores ? n_threads : n_threads / n_cores * n_cores;
  counts c = {.n_threads = n_shares};
  thread_pool *pool;
  llm_error err;
  CHECK_MSG(thread_pool_new_on(&pool, n_threads, n_cores, &err) == LLM_OK, "%d threads: %s",
            n_threads, err.message);
  if (!pool) return;
  CHECK(thread_pool_size(pool) == n_shares);
  long expected[MOST] = {0};
  for (int i = 0; i < n_runs; i++) {
    thread_pool_run(pool, count, &c);
    /* all are back: plain reads are safe, and each count is exact after each run */
    for (int t = 0; t < c.n_last; t++) expected[t]++;
    for (int t = 0; t < n_shares; t++)
      CHECK_MSG(c.runs[t] == expected[t], "share %d of %d ran %ld times, not %ld", t, c.n_last,
                c.runs[t], expected[t]);
    if (pause) usleep(pause);
  }
  CHECK(!c.bad);
  thread_pool_free(pool);
}

/* A core for each thread, there or not. */
static void test_runs(int n_threads, int n_runs, useconds_t pause) {
  test_pool(n_threads, n_threads, n_runs, pause);
}

static void test_few_cores(void) {
  for (int n_cores = 1; n_cores <= 4; n_cores++)
    for (int n_threads = 1; n_threads <= 9; n_threads++) test_pool(n_threads, n_cores, 20, 0);
}

static void test_share(void) {
  for (size_t n = 0; n < 70; n++)
    for (size_t unit = 1; unit <= 16; unit *= 2)
      for (int n_threads = 1; n_threads <= 9; n_threads++) {
        size_t next = 0;
        for (int t = 0; t < n_threads; t++) {
          size_t begin, end;
          thread_share(n, unit, t, n_threads, &begin, &end);
          CHECK_MSG(begin == next && begin <= end, "share %d of %d", t, n_threads);
          CHECK(begin == end || begin % unit == 0);
          CHECK(end == n || end % unit == 0);
          next = end;
        }
        CHECK_MSG(next == n, "%zu items in units of %zu over %d threads", n, unit, n_threads);
      }
}

/* ---- taking pieces: each item once, in whole units, whoever is slow ---- */

enum { MOST_ITEMS = 300 };

typedef struct items {
  thread_pool *pool;
  size_t n, unit;
  int slow;                     /* this share sleeps before its first piece; -1: none */
  atomic_int taken[MOST_ITEMS]; /* how often */
  atomic_int bad, foreign;      /* foreign: pieces taken of another's share */
} items;

static void take_all(void *arg, int thread, int n_threads) {
  items *all = arg;
  size_t begin, end, own_begin, own_end;
  int share = thread;
  thread_share(all->n, all->unit, thread, n_threads, &own_begin, &own_end);
  if (thread == all->slow) usleep(2000);
  while (thread_pool_take(all->pool, all->n, all->unit, &share, n_threads, &begin, &end)) {
    if (begin >= end || end > all->n || begin % all->unit || (end % all->unit && end != all->n))
      all->bad++;
    if (begin < own_begin || begin >= own_end) all->foreign++;
    for (size_t i = begin; i < end && i < all->n; i++) all->taken[i]++;
  }
  static const char memory[1000];
  thread_pool_ahead(all->pool, thread,
                    &(thread_ahead){{memory, memory + 7, NULL}, {sizeof memory, 1, 0}});
}

static void check_taken(items *all) {
  for (size_t i = 0; i < all->n; i++) {
    CHECK_MSG(all->taken[i] == 1, "item %zu of %zu was taken %d times", i, all->n, all->taken[i]);
    all->taken[i] = 0;
  }
  CHECK(!all->bad);
}

static void test_take(void) {
  for (int n_threads = 1; n_threads <= 9; n_threads++) {
    static items all;
    llm_error err;
    all.slow = -1;
    CHECK(thread_pool_new_on(&all.pool, n_threads, n_threads > 6 ? 3 : 6, &err) == LLM_OK);
    for (all.unit = 1; all.unit <= 16; all.unit *= 4)
      for (all.n = 0; all.n < MOST_ITEMS; all.n += 7) {
        thread_pool_run(all.pool, take_all, &all);
        check_taken(&all);
      }
    thread_pool_free(all.pool);
  }
}

/* What a slow thread has not begun is done by the others. */
static void test_take_from_slow(void) {
  static items all = {.n = 256, .unit = 16, .slow = 1};
  llm_error err;
  CHECK(thread_pool_new_on(&all.pool, 2, 2, &err) == LLM_OK);
  thread_pool_run(all.pool, take_all, &all);
  check_taken(&all);
  CHECK_MSG(all.foreign > 0, "nobody helped");
  thread_pool_free(all.pool);
}

static void test_refusals(void) {
  static const int bad[] = {0, -1, 1025, -2147483647 - 1, 2147483647};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    thread_pool *pool = (thread_pool *)&bad;
    llm_error err;
    CHECK(thread_pool_new(&pool, bad[i], &err) == LLM_ERR_ARG && !pool);
    CHECK(strstr(err.message, "1 to 1024"));
  }
  thread_pool_free(NULL);
}

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#endif

/* 1,024 stacks do not fit a gigabyte of addresses: the ones that started must end again. */
static void test_no_room(void) {
#ifndef SANITIZED /* sanitizers need the addresses themselves */
  struct rlimit limit, small;
  getrlimit(RLIMIT_AS, &limit);
  small = limit;
  small.rlim_cur = 1u << 30;
  if (setrlimit(RLIMIT_AS, &small) || getrlimit(RLIMIT_AS, &small)) return;
  if (small.rlim_cur != 1u << 30) return; /* an emulated system keeps no limit */
  thread_pool *pool;
  llm_error err;
  CHECK(thread_pool_new_on(&pool, 1024, 1024, &err) == LLM_ERR_IO && !pool);
  CHECK(strstr(err.message, "of 1024") && err.sys_errno != 0);
  setrlimit(RLIMIT_AS, &limit);
#endif
}

/* A forked process has the pool without its workers: jobs run alone, freeing waits for nobody. */
static void test_fork(void) {
  thread_pool *pool;
  llm_error err;
  CHECK(thread_pool_new_on(&pool, 4, 4, &err) == LLM_OK);
  if (!pool) return;
  usleep(2000); /* the workers park: the child inherits a condition with sleepers */
  pid_t child = fork();
  if (child == 0) {
    alarm(20); /* a hang ends in a signal */
    counts c = {.n_threads = 1};
    for (int i = 0; i < 3; i++) thread_pool_run(pool, count, &c);
    thread_pool_free(pool);
    _exit(c.bad || c.runs[0] != 3);
  }
  int status = -1;
  CHECK(child > 0 && waitpid(child, &status, 0) == child);
  CHECK_MSG(status == 0, "the forked process ended with status %#x", (unsigned)status);
  counts c = {.n_threads = 4};
  thread_pool_run(pool, count, &c);
  CHECK(!c.bad && c.n_last == 4 && c.runs[3] == 1);
  thread_pool_free(pool);
}

/* ---- threads that share their cores with other programs ---- */

static atomic_int quiet;

static void *keep_busy(void *unused) {
  while (!quiet) continue;
  return unused;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A tenth of a millisecond of work. */
static void work(void *arg, int thread, int n_threads) {
  for (double end = now() + 1e-4; now() < end;) continue;
  count(arg, thread, n_threads);
}

/* Whether a job has n shares within some seconds. */
static int comes_to(thread_pool *pool, counts *c, int n) {
  double end = now() + 20;
  do thread_pool_run(pool, work, c);
  while (c->n_last != n && now() < end);
  return c->n_last == n;
}

/* Whether the system counts for how long a thread had a core and for how long it had none. */
static int system_counts(void) {
  long long ran = 0;
  FILE *f = fopen("/proc/self/schedstat", "r");
  if (f && fscanf(f, "%lld", &ran) != 1) ran = 0;
  if (f) fclose(f);
  return ran > 0;
}

/* A thread without a core is left out for a while, then tried again. */
static void test_busy_cores(void) {
  enum { MOST_BUSY = 256 };
  int n_busy = 3 * threads_available() < MOST_BUSY ? 3 * threads_available() : MOST_BUSY;
  pthread_t others[MOST_BUSY];
  counts c = {.n_threads = 3};
  thread_pool *pool;
  if (!system_counts() || n_busy < 2 * threads_available()) return; /* some cores would stay free */
  CHECK(thread_pool_new_on(&pool, 3, 3, NULL) == LLM_OK);
  for (int i = 0; i < n_busy; i++) CHECK(!pthread_create(&others[i], NULL, keep_busy, NULL));
  CHECK_MSG(comes_to(pool, &c, 1), "a job still has %d shares on busy cores", c.n_last);
  CHECK_MSG(comes_to(pool, &c, 3), "left out threads do not come back");
  quiet = 1;
  for (int i = 0; i < n_busy; i++) pthread_join(others[i], NULL);
  CHECK(!c.bad);
  thread_pool_free(pool);
}

int main(void) {
  CHECK(threads_available() >= 1);
  test_share();
  test_take();
  test_take_from_slow();
  test_refusals();
  test_runs(1, 100, 0);
  test_runs(2, 20000, 0);
  test_runs(3, 2000, 0);
  test_runs(MOST, 100, 0);
  test_few_cores();
  test_runs(2, 100, 1000);                                      /* the workers park in between */
  for (int i = 0; i < 200; i++) test_runs(i % 4 + 1, i % 3, 0); /* made and ended, unused too */
  test_busy_cores();
  test_no_room();
  test_fork();
  return check_report("test_threads");
}
