/* score.h: log-probabilities of known tokens. Layer 6. */
#ifndef LLM_SCORE_H
#define LLM_SCORE_H

#include "context.h"

/* -ln p of `id` under softmax(logits), in double from a sum in rising order: the same on any
 * machine. */
double score_nats(const float *logits, size_t n_vocab, int32_t id);

#endif
