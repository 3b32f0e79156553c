/* embed.c: a text as one vector, the mean of its last hidden states after the final norm, of length
 * 1. Layer 6. Sums run in double over rising positions: how the text is cut into passes and how
 * many threads there are changes no bit. */
#include <math.h> /* sqrt only: correctly rounded by IEEE 754 */
#include <stdlib.h>

#include "error.h"
#include "forward.h"

/* sum (n_embd) += the hidden states of the last pass of n tokens, one after the other */
static void add_hidden(llm_context *c, size_t n, double *sum) {
  size_t n_embd = (size_t)c->model->config.n_embd;
  forward_hidden(c, 0, n);
  for (size_t t = 0; t < n; t++)
    for (size_t i = 0; i < n_embd; i++) sum[i] += (double)c->xn[t * n_embd + i];
}

/* dst = sum / |sum|: the mean has the same direction. A sum of zeros stays zero. */
static void normalize(const double *sum, size_t n_embd, float *dst) {
  double square = 0;
  for (size_t i = 0; i < n_embd; i++) square += sum[i] * sum[i];
  double length = sqrt(square);
  for (size_t i = 0; i < n_embd; i++) dst[i] = length > 0 ? (float)(sum[i] / length) : 0;
}

llm_status llm_context_embed(llm_context *context, const int32_t *ids, size_t n_ids, float *dst,
                             llm_error *err) {
  size_t n_embd = (size_t)context->model->config.n_embd;
  if (n_ids == 0) return error_set(err, LLM_ERR_ARG, "a text of no tokens has no embedding");
  if (n_ids > context->n_ctx)
    return error_set_full(err, (int64_t)n_ids, (int64_t)context->n_ctx,
                          "the text has %zu tokens, the context holds %zu", n_ids, context->n_ctx);
  double *sum = calloc(n_embd, sizeof *sum);
  if (!sum) return error_nomem(err, n_embd * sizeof *sum, "an embedding");
  llm_status status = llm_context_truncate(context, 0, err);
  for (size_t i = 0; i < n_ids && !status; i += N_BATCH) {
    size_t n = n_ids - i < N_BATCH ? n_ids - i : N_BATCH;
    status = llm_context_eval(context, ids + i, n, NULL, 0, err);
    if (!status) add_hidden(context, n, sum);
  }
  if (!status) normalize(sum, n_embd, dst);
  free(sum);
  return status;
}
