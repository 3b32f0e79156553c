/* score.c: how well the model predicts a text. Layer 6. The text is read in passes of a few tokens,
 * so that the logits of a whole window never exist at once; the cut changes no bit. Windows as in
 * Hugging Face's "Perplexity of fixed-length models". */
#include <inttypes.h>
#include <math.h> /* NAN only */
#include <stdlib.h>

#include "context.h"
#include "error.h"
#include "logprobs.h"

enum { SCORE_ROWS = 64 }; /* tokens a pass: 64 x 49,152 logits are 12 MiB */

typedef struct window {
  const int32_t *ids; /* of the whole text */
  size_t begin, end;  /* the window in it */
  size_t score_from;  /* the first token of the text that this window scores */
  float *logits;      /* (SCORE_ROWS, n_vocab) */
  double *nats;       /* (SCORE_ROWS) */
} window;

typedef struct rows_job {
  const window *w;
  size_t n_vocab, first, n_rows; /* rows of logits; row r predicts text token first + r + 1 */
} rows_job;

static void rows_thread(void *arg, int thread, int n_threads) {
  const rows_job *job = arg;
  size_t begin, end;
  thread_share(job->n_rows, 1, thread, n_threads, &begin, &end);
  for (size_t r = begin; r < end; r++)
    job->w->nats[r] = logprob_nats(job->w->logits + r * job->n_vocab, job->n_vocab,
                                   job->w->ids[job->first + r + 1]);
}

static llm_status score_window(llm_context *c, const window *w, float *nats_each, llm_score *out,
                               llm_error *err) {
  size_t n_vocab = (size_t)c->model->config.n_vocab;
  llm_context_truncate(c, 0, NULL);
  for (size_t i = w->begin; i < w->end; i += SCORE_ROWS) {
    size_t n = w->end - i < SCORE_ROWS ? w->end - i : SCORE_ROWS;
    size_t n_rows = i + n < w->end ? n : n - 1; /* the window's last token predicts nothing */
    size_t wanted = i + n_rows + 1 > w->score_from ? n : 0;
    llm_status status = llm_context_eval(c, w->ids + i, n, w->logits, wanted, err);
    if (status) return status;
    if (!wanted) continue;
    rows_job job = {w, n_vocab, i, n_rows};
    thread_pool_run(c->pool, rows_thread, &job);
    for (size_t r = 0; r < n_rows; r++) {
      if (i + r + 1 < w->score_from) continue;
      out->nats += w->nats[r];
      out->n_scored++;
      if (nats_each) nats_each[i + r + 1] = (float)w->nats[r];
    }
  }
  out->n_windows++;
  return LLM_OK;
}

llm_status llm_score_text(llm_context *context, const int32_t *ids, size_t n_ids, int64_t stride,
                          float *nats_each, llm_score *out, llm_error *err) {
  *out = (llm_score){0};
  if (n_ids < 2)
    return error_set(err, LLM_ERR_ARG, "a text of %zu tokens has nothing to score", n_ids);
  if (context->n_ctx < 2)
    return error_set(err, LLM_ERR_ARG, "a context of %zu tokens predicts nothing", context->n_ctx);
  size_t n_vocab = (size_t)context->model->config.n_vocab, n_ctx = context->n_ctx;
  if (stride < 0 || (uint64_t)stride >= n_ctx)
    return error_set(err, LLM_ERR_ARG,
                     "stride is %" PRId64 ", expected 1 to %zu (0: half the context)", stride,
                     n_ctx - 1);
  window w = {.ids = ids, .score_from = 1};
  w.logits = malloc(SCORE_ROWS * n_vocab * sizeof *w.logits);
  w.nats = malloc(SCORE_ROWS * sizeof *w.nats);
  llm_status status = LLM_OK;
  if (!w.logits || !w.nats)
    status = error_nomem(err, SCORE_ROWS * n_vocab * sizeof *w.logits, "the logits of a score");
  if (nats_each) nats_each[0] = NAN;
  while (!status && w.end < n_ids) {
    w.end = w.begin + n_ctx < n_ids ? w.begin + n_ctx : n_ids;
    status = score_window(context, &w, nats_each, out, err);
    w.score_from = w.end;
    w.begin += stride ? (size_t)stride : (n_ctx + 1) / 2;
  }
  free(w.logits);
  free(w.nats);
  return status ? status : error_clear(err);
}
