/* gguf.h: an index over the bytes of a GGUF v3 file. Layer 1. It never opens a file and trusts
 * nothing: every count, length, type and offset is checked in 64 bits before use, without recursion
 * and without asserts on input (FORMAT.md lists the rules, one test each). Strings and tensor data
 * stay where they are in the span; keys and names are copied with a NUL. */
#ifndef LLM_GGUF_H
#define LLM_GGUF_H

#include <string.h>

#include "llm.h"

typedef struct gguf gguf;

enum gguf_value_type { /* gguf_metadata_value_type of the specification */
                       GGUF_UINT8 = 0,
                       GGUF_INT8,
                       GGUF_UINT16,
                       GGUF_INT16,
                       GGUF_UINT32,
                       GGUF_INT32,
                       GGUF_FLOAT32,
                       GGUF_BOOL,
                       GGUF_STRING,
                       GGUF_ARRAY,
                       GGUF_UINT64,
                       GGUF_INT64,
                       GGUF_FLOAT64,
                       GGUF_N_TYPES
};

/* "uint32" for GGUF_UINT32; type in [0, GGUF_N_TYPES). */
const char *gguf_value_name(int type);

typedef struct gguf_string {
  const char *data; /* no NUL */
  size_t n_bytes;
} gguf_string;

/* Equal to a C string. */
static inline int gguf_string_is(gguf_string s, const char *text) {
  return s.n_bytes == strlen(text) && memcmp(s.data, text, s.n_bytes) == 0;
}
/* Bytes of a string that a message quotes with "%.*s": not all of a long one. */
static inline int gguf_quoted(size_t n_bytes) { return n_bytes < 64 ? (int)n_bytes : 64; }

/* The span must outlive the index. `where` (a file name) opens every message. */
llm_status gguf_parse(gguf **out, const void *span, size_t n_bytes, const char *where,
                      llm_error *err);
void gguf_free(gguf *g);
const char *gguf_where(const gguf *g);

size_t gguf_n_meta(const gguf *g);
const llm_meta *gguf_meta(const gguf *g, size_t index);
const llm_meta *gguf_find(const gguf *g, const char *key); /* NULL: absent */

size_t gguf_n_tensors(const gguf *g);
const llm_tensor *gguf_tensor(const gguf *g, size_t index);
const llm_tensor *gguf_find_tensor(const gguf *g, const char *name);
/* All of the file's bytes. */
const void *gguf_span(const gguf *g, uint64_t *n_bytes);
/* The data section, from the first tensor's first byte to the last one's last padding. */
const void *gguf_tensor_data(const gguf *g, uint64_t *n_bytes);

/* Typed reading. An absent key gives LLM_ERR_FORMAT when `required`, else LLM_OK with *out
 * untouched (callers set the default first). A present key of the wrong type or out of range always
 * fails. Integers: any integer type whose value lies in [min, max]. */
llm_status gguf_get_int(const gguf *g, const char *key, int required, int64_t min, int64_t max,
                        int64_t *out, llm_error *err);
llm_status gguf_get_float(const gguf *g, const char *key, int required, double min, double max,
                          float *out, llm_error *err); /* FLOAT32 or FLOAT64, finite */
llm_status gguf_get_bool(const gguf *g, const char *key, int required, int32_t *out,
                         llm_error *err);
llm_status gguf_get_string(const gguf *g, const char *key, int required, gguf_string *out,
                           llm_error *err);
/* An array of exactly this element type; *out is its entry, NULL when absent and not required. */
llm_status gguf_get_array(const gguf *g, const char *key, int required, int element_type,
                          const llm_meta **out, llm_error *err);
/* Walks an array of strings: *cursor starts at meta->data and moves past one string. The array was
 * checked by gguf_parse. */
gguf_string gguf_next_string(const char **cursor);

#endif
