/* threads.h: a pool with one operation, "run this function on every thread". Layer 0; pthreads
 * only. Workers spin briefly for the next job, then park. The caller is thread 0. Which thread does
 * what is a fixed function of (thread, n_threads), and no result may depend on it (DESIGN rule 6).
 */
#ifndef LLM_THREADS_H
#define LLM_THREADS_H

#include "llm.h"

typedef struct thread_pool thread_pool;

/* job(arg, thread, n_threads), 0 <= thread < n_threads */
typedef void (*thread_job)(void *arg, int thread, int n_threads);

enum { MAX_THREADS = 1024 };

int threads_available(void); /* cores that this process may run on (affinity), 1..MAX_THREADS */

/* n_threads 1..MAX_THREADS. One thread makes a pool without workers. */
llm_status thread_pool_new(thread_pool **out, int n_threads, llm_error *err);
void thread_pool_free(thread_pool *pool);
int thread_pool_size(const thread_pool *pool);

/* Runs the job on all threads and returns when all are done. Not reentrant. In a process that was
 * forked after the pool was made there are no workers: the job runs as (arg, 0, 1). */
void thread_pool_run(thread_pool *pool, thread_job job, void *arg);

/* The share [*begin, *end) of n items that a thread takes, in whole multiples of `unit` but for the
 * last item's remainder. */
void thread_share(size_t n, size_t unit, int thread, int n_threads, size_t *begin, size_t *end);

#endif
