/* tokenizer_load.h: the steps of building a tokenizer that its two kinds share. Layer 2. A loader
 * collects the tokens, settles their types and names, and then lets tokenizer_load_bpe.c or
 * tokenizer_load_spm.c add what encodes. */
#ifndef LLM_TOKENIZER_LOAD_H
#define LLM_TOKENIZER_LOAD_H

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "gguf.h"
#include "tokenizer_parts.h"

enum { MAX_TOKEN_BYTES = 64 * 1024, MAX_SPECIAL_BYTES = 1024 };

typedef struct loader {
  llm_tokenizer *t;
  const char *where; /* opens every message */
  llm_status bad;    /* the status of a fault in the input */
  name *names;       /* (n_vocab): as the source spells them */
  token_table by_name;
  int32_t default_add_bos; /* what an absent add_bos_token means */
  llm_error *err;
} loader;

/* What runs between opening the source and handing the tokenizer over. */
typedef llm_status (*loader_fill)(loader *l, const void *source);

/* Runs `fill`, then what every source ends with; the tokenizer is handed over whole or not. */
llm_status loader_run(llm_tokenizer **out, const char *where, llm_status bad, loader_fill fill,
                      const void *source, llm_error *err);

/* Room for n_vocab tokens of text_bytes together. */
llm_status loader_init(loader *l, int64_t n_vocab, uint64_t text_bytes);
llm_status loader_set_type(loader *l, int64_t id, int32_t type);
llm_status loader_set_name(loader *l, int64_t id, name key); /* the spelling of a token */
/* Once all tokens are there: fills by_name, refuses a spelling that two tokens have. */
llm_status loader_index_names(loader *l);
/* Then: turn markers become control tokens. */
void loader_mark_control(loader *l);
/* Then, where encoding looks tokens up by their bytes: fills by_bytes. */
llm_status loader_index_bytes(loader *l);

/* The id of a spelling; -1: none. */
static inline int32_t loader_find(const loader *l, const char *text) {
  return token_table_find(&l->by_name, (name){(const uint8_t *)text, strlen(text)});
}

typedef struct file_arrays {
  const llm_meta *tokens, *merges, *types, *scores; /* NULL: the file has none */
} file_arrays;

/* The bytes of a token that the file spells so, to dst, which holds spelling.n_bytes. */
typedef llm_status (*spelling_decoder)(loader *l, int64_t id, name spelling, int32_t type,
                                       uint8_t *dst, size_t *n, void *user);

/* All tokens of a file, turn markers as control tokens. */
llm_status loader_read_tokens(loader *l, const file_arrays *a, spelling_decoder decode, void *user);

/* The two kinds: from reading the tokens to what encodes. */
llm_status loader_fill_bpe(loader *l, const gguf *g, const file_arrays *a);
llm_status loader_fill_spm(loader *l, const gguf *g, const file_arrays *a);

#endif
