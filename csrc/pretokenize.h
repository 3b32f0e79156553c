/* pretokenize.h: cutting text into the pieces inside which a byte-level BPE merges. Layer 2; needs
 * unicode only, so that the trainer's merge learning shares it. Each named pre-tokenizer is a
 * hand-written function that cuts exactly where the published regular expression does. */
#ifndef LLM_PRETOKENIZE_H
#define LLM_PRETOKENIZE_H

#include <stddef.h>
#include <stdint.h>

typedef struct pretokenizer {
  char name[20];
  /* The end of the piece that begins at pos < n; pos itself must be where a piece ends. Any bytes
   * are allowed: what is not UTF-8 counts as a character that is no letter, number or space. */
  size_t (*next)(const uint8_t *text, size_t n, size_t pos);
  /* What files with this name mean besides, as llama.cpp has it: */
  uint8_t takes_whole; /* a piece that is a token is that token, whatever the merges would make */
  uint8_t adds_bos;    /* where the file does not say, BOS comes first */
} pretokenizer;

/* By a name of tokenizer.ggml.pre, n bytes long; NULL: not run here. */
const pretokenizer *pretokenizer_find(const char *name, size_t n);

/* "gpt-2, smollm, ...": for messages; without the names that mean the same as one of these. */
const char *pretokenizer_names(void);

#endif
