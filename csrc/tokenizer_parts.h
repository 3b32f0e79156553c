/* tokenizer_parts.h: what a tokenizer holds, between tokenizer_load.c, which fills it, and
 * tokenizer.c, which answers the public calls from it. Layer 2. */
#ifndef LLM_TOKENIZER_PARTS_H
#define LLM_TOKENIZER_PARTS_H

#include "tokenizer_bpe.h"
#include "tokenizer_spm.h"
#include "tokenizer_table.h"

typedef struct special {
  const uint8_t *bytes;
  size_t n_bytes;
  int32_t id;
} special;

/* Tokens that are found in a text as they stand, before anything is merged. */
typedef struct special_set {
  special *items; /* (n), sorted by their bytes */
  size_t n;
  uint8_t begins[256]; /* 1: some item begins with this byte */
} special_set;

enum {
  MAX_EOG = 32,
  TEXT_SLACK = 16 /* bytes that may be read past the last token */
};

struct llm_tokenizer {
  int64_t n_vocab;
  uint8_t *text;        /* token i is text[offsets[i] .. offsets[i + 1]), raw bytes */
  uint64_t *offsets;    /* (n_vocab + 1) */
  uint8_t *types;       /* (n_vocab) llm_token_type */
  token_table by_bytes; /* where encoding needs it; of tokens alike the preferred one */
  bpe *bpe;             /* one of these, the other NULL */
  spm *spm;
  special_set always;    /* user-defined tokens: matched in every text, as llama.cpp does */
  special_set on_demand; /* those and the control and unknown tokens: where parse_special is set */
  int32_t bos, eos, unknown;           /* -1: none */
  int32_t add_bos, add_eos, add_space; /* add_space: SentencePiece's dummy prefix */
  int32_t n_byte_tokens;
  int32_t eog[MAX_EOG], n_eog;
};

/* The bytes of a token. */
static inline name token_bytes(const llm_tokenizer *t, int64_t id) {
  return (name){t->text + t->offsets[id], (size_t)(t->offsets[id + 1] - t->offsets[id])};
}

/* 1: of two tokens of the same bytes, these give `id` rather than `other`: a control token before
 * others, the earlier one before its like. */
int token_is_preferred(const llm_tokenizer *t, int64_t id, int64_t other);

/* 1 where only parse_special may produce the token and only render_special shows it. */
int token_type_is_hidden(int32_t type);

/* Fills both sets from text and types. */
llm_status special_sets_init(llm_tokenizer *t, llm_error *err);
/* The longest item that text[0..n) begins with; NULL: none. */
const special *special_match(const special_set *set, const uint8_t *text, size_t n);

#endif
