/* logprobs.h: what is said of a token's probability under softmax(logits), and how logits that are
 * not numbers are read. Layer 1. The list of the top ones is public: llm_logprobs. */
#ifndef LLM_LOGPROBS_H
#define LLM_LOGPROBS_H

#include <float.h>
#include <math.h> /* INFINITY only */
#include <stddef.h>
#include <stdint.h>

/* NaN counts as minus infinity, the largest numbers stand in for infinity. */
static inline float logit_tame(double logit) {
  if (!(logit >= -(double)FLT_MAX)) return -INFINITY;
  return logit > (double)FLT_MAX ? FLT_MAX : (float)logit;
}

/* -ln p of `id`, in double from a sum in rising order: the same on any machine. */
double logprob_nats(const float *logits, size_t n_vocab, int32_t id);

#endif
