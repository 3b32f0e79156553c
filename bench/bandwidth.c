/* bandwidth.c: the read-bandwidth limit of decoding. Each thread sums its part of a buffer as large
 * as the parameter file, again and again, because decoding reads every weight once a token.
 *
 *   bandwidth MIB THREADS SECONDS    prints the best pass in GB/s (1e9 bytes a second)
 *
 * One long stream and four streams a thread take turns, since which is faster depends on where the
 * pages lie; they are large where the system has such. Stands alone: C11 and POSIX.
 */
#define _DEFAULT_SOURCE /* madvise */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { N_STREAMS = 4, LINE = 8, MAX_THREADS = 256, LARGE_PAGE = 2 << 20 }; /* LINE: in words */

static pthread_barrier_t barrier;
static uint64_t *buffer;
static size_t words_per_stream;
static double seconds;
static volatile int done;
static volatile uint64_t sink;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint64_t sum_one(const uint64_t *part) {
  uint64_t sum[LINE] = {0}, total = 0;
  for (size_t i = 0; i < words_per_stream * N_STREAMS; i += LINE)
    for (int k = 0; k < LINE; k++) sum[k] += part[i + (size_t)k];
  for (int k = 0; k < LINE; k++) total += sum[k];
  return total;
}

static uint64_t sum_four(const uint64_t *part) {
  uint64_t sum[N_STREAMS][LINE] = {{0}}, total = 0;
  for (size_t i = 0; i < words_per_stream; i += LINE)
    for (size_t s = 0; s < N_STREAMS; s++)
      for (size_t k = 0; k < LINE; k++) sum[s][k] += part[s * words_per_stream + i + k];
  for (int s = 0; s < N_STREAMS; s++)
    for (int k = 0; k < LINE; k++) total += sum[s][k];
  return total;
}

typedef struct worker {
  int index;
  double best; /* seconds of the fastest pass; thread 0 keeps it */
} worker;

static void *work(void *arg) {
  worker *w = arg;
  const uint64_t *part = buffer + (size_t)w->index * N_STREAMS * words_per_stream;
  double end = now() + seconds;
  for (int n = 0; !done; n++) {
    pthread_barrier_wait(&barrier);
    double start = now();
    sink = n % 2 ? sum_four(part) : sum_one(part);
    pthread_barrier_wait(&barrier);
    if (w->index == 0) {
      double pass = now() - start;
      if (pass < w->best) w->best = pass;
      if (n > 0 && now() > end) done = 1;
    }
    pthread_barrier_wait(&barrier);
  }
  return NULL;
}

int main(int argc, char **argv) {
  size_t mib = argc == 4 ? strtoul(argv[1], NULL, 10) : 0;
  int n_threads = argc == 4 ? atoi(argv[2]) : 0;
  seconds = argc == 4 ? atof(argv[3]) : 0;
  if (mib < 1 || n_threads < 1 || n_threads > MAX_THREADS || !(seconds > 0)) {
    fprintf(stderr, "usage: bandwidth MIB THREADS SECONDS\n");
    return 2;
  }
  words_per_stream = (mib << 20) / sizeof *buffer / (size_t)n_threads / N_STREAMS / LINE * LINE;
  size_t n_bytes = words_per_stream * N_STREAMS * (size_t)n_threads * sizeof *buffer;
  size_t n_whole = (n_bytes + LARGE_PAGE - 1) / LARGE_PAGE * LARGE_PAGE;
  buffer = aligned_alloc(LARGE_PAGE, n_whole);
  if (!buffer) {
    fprintf(stderr, "bandwidth: no memory for %zu MiB\n", mib);
    return 1;
  }
#ifdef MADV_HUGEPAGE
  (void)madvise(buffer, n_whole, MADV_HUGEPAGE);
#endif
  memset(buffer, 1, n_bytes);
  pthread_barrier_init(&barrier, NULL, (unsigned)n_threads);
  pthread_t threads[MAX_THREADS];
  worker workers[MAX_THREADS];
  for (int t = 0; t < n_threads; t++) {
    workers[t] = (worker){t, 1e9};
    if (t > 0 && pthread_create(&threads[t], NULL, work, &workers[t])) {
      fprintf(stderr, "bandwidth: cannot start %d threads\n", n_threads);
      return 1;
    }
  }
  work(&workers[0]);
  for (int t = 1; t < n_threads; t++) pthread_join(threads[t], NULL);
  printf("%.3f\n", (double)n_bytes / workers[0].best * 1e-9);
  return 0;
}
