/* generate.h: what a generator holds, between generate.c, which steps it, and chat.c, which starts
 * one on a conversation. Layer 6. */
#ifndef LLM_GENERATE_H
#define LLM_GENERATE_H

#include "context.h"
#include "stop.h"

/* Makes room in a full context, `pending` not evaluated yet: drops old text and reads what is kept
 * again. *n_tokens and *n_turns say what was dropped; no tokens: nothing can be dropped. */
typedef llm_status (*make_room)(llm_generator *g, size_t *n_tokens, size_t *n_turns,
                                llm_error *err);

struct llm_generator {
  llm_context *context;
  llm_sampler *sampler;
  int64_t n_left; /* tokens still allowed; negative: no limit */
  llm_finish finish;
  int32_t pending; /* sampled, not evaluated yet; -1: none */
  float *logits;   /* (n_vocab) of the last position */
  stop_set stops;

  char *text; /* held bytes of earlier tokens, then those of this one */
  size_t n_text, text_capacity;
  size_t n_sent; /* text[0 .. n_sent) went out with the last step */

  int64_t n_top; /* alternatives of each token; negative: no log-probabilities */
  float logprob;
  int32_t *top_ids;    /* (n_top) */
  float *top_logprobs; /* (n_top) */

  size_t forgot_tokens, forgot_turns; /* to be reported with the next step */
  make_room make_room;                /* where the context forgets; else NULL */

  struct conversation *conversation; /* chat.c's, one allocation, freed with the generator */
};

/* A generator whose context has been given its prompt by the caller, who fills in logits. */
llm_status generator_allocate(llm_generator **out, llm_context *context, llm_sampler *sampler,
                              const llm_generator_options *options, llm_error *err);

#endif
