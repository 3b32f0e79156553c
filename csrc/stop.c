/* stop.c: Knuth, Morris and Pratt's matcher (1977), one state per stop string. Layer 6. A byte
 * costs amortised constant time per string, and the states say exactly how much text must be held
 * back. */
#include "stop.h"

#include <stdlib.h>
#include <string.h>

#include "error.h"

static llm_status stop_string_init(stop_string *s, const char *text, size_t n, llm_error *err) {
  if (n == 0) return error_set(err, LLM_ERR_ARG, "a stop string is empty");
  uint8_t *bytes = malloc(n);
  s->bytes = bytes;
  s->border = malloc((n + 1) * sizeof *s->border);
  if (!s->bytes || !s->border)
    return error_nomem(err, n + (n + 1) * sizeof *s->border, "a stop string");
  memcpy(bytes, text, n);
  s->n = n;
  s->border[0] = s->border[1] = 0;
  for (size_t i = 1, length = 0; i < n; i++) {
    while (length && bytes[i] != bytes[length]) length = s->border[length];
    length += bytes[i] == bytes[length];
    s->border[i + 1] = length;
  }
  return LLM_OK;
}

llm_status stop_set_init(stop_set *set, const char *const *strings, const size_t *n_bytes, size_t n,
                         llm_error *err) {
  *set = (stop_set){NULL, n};
  if (n == 0) return LLM_OK;
  set->items = calloc(n, sizeof *set->items);
  if (!set->items) {
    set->n = 0;
    return error_nomem(err, (uint64_t)n * sizeof *set->items, "stop strings");
  }
  llm_status status = LLM_OK;
  for (size_t i = 0; i < n && !status; i++)
    status = stop_string_init(&set->items[i], strings[i], n_bytes[i], err);
  return status;
}

void stop_set_free(stop_set *set) {
  for (size_t i = 0; i < set->n; i++) {
    free((void *)set->items[i].bytes);
    free(set->items[i].border);
  }
  free(set->items);
  *set = (stop_set){NULL, 0};
}

size_t stop_set_feed(stop_set *set, uint8_t byte) {
  size_t longest = 0;
  for (size_t i = 0; i < set->n; i++) {
    stop_string *s = &set->items[i];
    while (s->matched && s->bytes[s->matched] != byte) s->matched = s->border[s->matched];
    s->matched += s->bytes[s->matched] == byte;
    if (s->matched < s->n) continue;
    if (s->n > longest) longest = s->n;
    s->matched = s->border[s->n];
  }
  return longest;
}

size_t stop_set_held(const stop_set *set) {
  size_t held = 0;
  for (size_t i = 0; i < set->n; i++)
    if (set->items[i].matched > held) held = set->items[i].matched;
  return held;
}
