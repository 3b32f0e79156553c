/* tokenizer.h: building a tokenizer from the keys of a parameter file. Layer 2. The public calls
 * are in llm.h. */
#ifndef LLM_TOKENIZER_H
#define LLM_TOKENIZER_H

#include "gguf.h"

/* Reads tokenizer.ggml.*; refuses a model or pre-tokenizer that it does not run by name. */
llm_status tokenizer_from_gguf(llm_tokenizer **out, const gguf *g, llm_error *err);

#endif
