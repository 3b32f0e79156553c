/* stop.h: finding stop strings in text that arrives piece by piece. Layer 6. */
#ifndef LLM_STOP_H
#define LLM_STOP_H

#include "llm.h"

typedef struct stop_string {
  const uint8_t *bytes; /* (n) */
  size_t *border;       /* (n + 1) longest proper prefix of bytes[0..i) that is also its suffix */
  size_t n, matched;    /* matched < n: the text so far ends with bytes[0..matched) */
} stop_string;

typedef struct stop_set {
  stop_string *items; /* (n) */
  size_t n;
} stop_set;

/* Copies the strings; LLM_ERR_ARG for an empty one. */
llm_status stop_set_init(stop_set *set, const char *const *strings, const size_t *n_bytes, size_t n,
                         llm_error *err);
void stop_set_free(stop_set *set);

/* Takes the next byte of the text; returns the length of the longest stop string that ends with it,
 * 0: none. */
size_t stop_set_feed(stop_set *set, uint8_t byte);

/* How many bytes at the end of the text may be the beginning of a stop string. */
size_t stop_set_held(const stop_set *set);

#endif
