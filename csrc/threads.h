/* threads.h: a pool with one operation, "run this function on every thread". Layer 0; pthreads
 * only. Workers spin briefly for the next job, then park. The caller is thread 0. What a share
 * is, is a fixed function of (share, n_shares); pieces of it may be taken by whoever is done. No
 * result may depend on either (DESIGN rule 6).
 */
#ifndef LLM_THREADS_H
#define LLM_THREADS_H

#include "llm.h"

typedef struct thread_pool thread_pool;

/* job(arg, share, n_shares), 0 <= share < n_shares */
typedef void (*thread_job)(void *arg, int share, int n_shares);

enum { MAX_THREADS = 1024 };

int threads_available(void); /* cores that this process may run on (affinity), 1..MAX_THREADS */

/* n_threads 1..MAX_THREADS. One thread makes a pool without workers. Where there are fewer cores,
 * each core has a thread that takes several shares of a job, all equally many: the number of shares
 * is n_threads, rounded down to a multiple of the cores. */
llm_status thread_pool_new(thread_pool **out, int n_threads, llm_error *err);
/* The same as if there were n_cores cores. */
llm_status thread_pool_new_on(thread_pool **out, int n_threads, int n_cores, llm_error *err);
void thread_pool_free(thread_pool *pool);
int thread_pool_size(const thread_pool *pool); /* most shares of a job */

/* Runs all shares of the job and returns when all are done. Not reentrant. A job has fewer shares
 * for a while where other programs keep a thread from its core (Linux), and a single one in a
 * process that was forked after the pool was made: there are no workers. */
void thread_pool_run(thread_pool *pool, thread_job job, void *arg);

/* The part [*begin, *end) of n items that is a share, in whole multiples of `unit` but for the
 * last item's remainder. */
void thread_share(size_t n, size_t unit, int thread, int n_threads, size_t *begin, size_t *end);

/* The next piece [*begin, *end) of n items dealt as thread_share deals them; 0 when all is taken. A
 * share is taken in rising order, a long piece first, then shorter ones. At first *share is the
 * caller's own; behind its end come pieces of the others', so that no thread waits while there is
 * something to do. A job uses it for one set of items. */
int thread_pool_take(thread_pool *pool, size_t n, size_t unit, int *share, int n_shares,
                     size_t *begin, size_t *end);

/* Memory that the thread of a share will read in the next job, in the order in which it reads. */
enum { MAX_AHEAD = 3 };
typedef struct thread_ahead {
  const char *from[MAX_AHEAD];
  size_t n_bytes[MAX_AHEAD];
} thread_ahead;

/* Called in a job for its own share: while the thread waits for the next, it asks for this memory,
 * up to a part of L2, in place of what the last call named. */
void thread_pool_ahead(thread_pool *pool, int share, const thread_ahead *ahead);

#endif
