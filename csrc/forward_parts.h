/* forward_parts.h: what forward.c and forward_attention.c use of each other. Layer 5. */
#ifndef LLM_FORWARD_PARTS_H
#define LLM_FORWARD_PARTS_H

#include "forward.h"

/* ---- forward.c ---- */

/* row(c, t, arg) for all t < n_rows, by all threads where there are several: a single row is not
 * worth waking anybody. */
void for_rows(llm_context *c, size_t n_rows, void (*row)(llm_context *c, size_t t, const void *arg),
              const void *arg);

/* Row t of the input x (n wide) in the form that the coming products read. */
void prepare_row(llm_context *c, size_t t, const float *x, size_t n);

/* ---- forward_attention.c ---- */

/* Norms and turns q and k of token t and puts k and v into the cache of the layer that arg points
 * at; where the window slides, k is turned when it is read. */
void place_and_store_row(llm_context *c, size_t t, const void *arg);

/* att = softmax(scale * q k^T) v of n_tok tokens, prepared for the product with wo. */
void attention(llm_context *c, size_t layer, size_t n_tok);

/* out (d) of query head h from the n parts of its key/value head, `apart` floats apart: p v of the
 * n_q heads, then their maxima, then their sums, each of one part (kernels.h).
 * M = largest maximum; share = num_expf(maximum - M); out = sum of share * (p v), divided by the
 * sum of share * sum, both in rising order from +0, each product and each sum rounded. */
void merge_head(const float *parts, size_t n, size_t apart, size_t h, size_t n_q, size_t d,
                float *restrict out);

#endif
