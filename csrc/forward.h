/* forward.h: one pass of the decoder over T >= 1 tokens. Layer 5. */
#ifndef LLM_FORWARD_H
#define LLM_FORWARD_H

#include "context.h"

/* Appends n_ids tokens, 1 <= n_ids <= N_BATCH, already checked to fit and to be in the vocabulary,
 * and leaves their final hidden states in c->x, (n_ids, n_embd). LLM_ERR_CANCELLED, with n_past
 * unchanged, is the only failure. */
llm_status forward_tokens(llm_context *c, const int32_t *ids, size_t n_ids, llm_error *err);

/* One pass over tokens of several texts that share the cache, (n_ids) rows in lanes: those of one
 * text in order, each behind what its text has in the cache. Not for a window that slides. What the
 * context itself holds is overwritten and not counted. */
llm_status forward_lanes(llm_context *c, const int32_t *ids, const lane_row *lanes, size_t n_ids,
                         llm_error *err);

/* The rows [first_row, first_row + n_rows) of the last pass after the final norm, into c->xn. */
void forward_hidden(llm_context *c, size_t first_row, size_t n_rows);

/* Logits (n_rows, n_vocab) of the rows [first_row, first_row + n_rows) of the last pass. */
void forward_logits(llm_context *c, size_t first_row, size_t n_rows, float *logits);

#endif
