/* gguf_get.c: typed reading of metadata from the index that gguf.c built. Layer 1; depends on
 * gguf.h and error. Callers never look at a value's bytes before one of these checked its type and
 * range.
 */
#include "gguf.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "error.h"

static llm_status key_missing(const gguf *g, const char *key, llm_error *err) {
  return error_set(err, LLM_ERR_FORMAT, "%s: key %s is missing", gguf_where(g), key);
}

static llm_status key_wrong_type(const gguf *g, const llm_meta *m, const char *expected,
                                 llm_error *err) {
  if (m->value_type == GGUF_ARRAY)
    return error_set(err, LLM_ERR_FORMAT, "%s: key %s: its type is array of %s, expected %s",
                     gguf_where(g), m->key, gguf_value_name(m->element_type), expected);
  return error_set(err, LLM_ERR_FORMAT, "%s: key %s: its type is %s, expected %s", gguf_where(g),
                   m->key, gguf_value_name(m->value_type), expected);
}

/* An integer of any width as an int64. 0 when the type is no integer. */
static int integer_value(const llm_meta *m, int64_t *out) {
  union {
    uint8_t u8;
    int8_t i8;
    uint16_t u16;
    int16_t i16;
    uint32_t u32;
    int32_t i32;
    int64_t i64;
  } v = {0};
  if (m->n_bytes <= sizeof v) memcpy(&v, m->data, (size_t)m->n_bytes);
  switch (m->value_type) {
  case GGUF_UINT8: *out = v.u8; return 1;
  case GGUF_INT8: *out = v.i8; return 1;
  case GGUF_UINT16: *out = v.u16; return 1;
  case GGUF_INT16: *out = v.i16; return 1;
  case GGUF_UINT32: *out = v.u32; return 1;
  case GGUF_INT32: *out = v.i32; return 1;
  case GGUF_UINT64:
  case GGUF_INT64: *out = v.i64; return 1;
  default: return 0;
  }
}

llm_status gguf_get_int(const gguf *g, const char *key, int required, int64_t min, int64_t max,
                        int64_t *out, llm_error *err) {
  const llm_meta *m = gguf_find(g, key);
  int64_t value = 0;
  if (!m) return required ? key_missing(g, key, err) : LLM_OK;
  if (!integer_value(m, &value)) return key_wrong_type(g, m, "an integer", err);
  if (m->value_type == GGUF_UINT64 && value < 0) /* wrapped */
    return error_set(err, LLM_ERR_FORMAT, "%s: key %s is %" PRIu64 ", expected at most %" PRId64,
                     gguf_where(g), key, (uint64_t)value, max);
  if (value < min || value > max)
    return error_set(err, LLM_ERR_FORMAT,
                     "%s: key %s is %" PRId64 ", expected %" PRId64 " to %" PRId64, gguf_where(g),
                     key, value, min, max);
  *out = value;
  return LLM_OK;
}

llm_status gguf_get_float(const gguf *g, const char *key, int required, double min, double max,
                          float *out, llm_error *err) {
  const llm_meta *m = gguf_find(g, key);
  double value;
  float single;
  if (!m) return required ? key_missing(g, key, err) : LLM_OK;
  if (m->value_type == GGUF_FLOAT32) {
    memcpy(&single, m->data, sizeof single);
    value = single;
  } else if (m->value_type == GGUF_FLOAT64) {
    memcpy(&value, m->data, sizeof value);
  } else {
    return key_wrong_type(g, m, "float32 or float64", err);
  }
  if (!isfinite(value) || value < min || value > max)
    return error_set(err, LLM_ERR_FORMAT, "%s: key %s is %g, expected %g to %g", gguf_where(g), key,
                     value, min, max);
  *out = (float)value;
  return LLM_OK;
}

llm_status gguf_get_bool(const gguf *g, const char *key, int required, int32_t *out,
                         llm_error *err) {
  const llm_meta *m = gguf_find(g, key);
  if (!m) return required ? key_missing(g, key, err) : LLM_OK;
  if (m->value_type != GGUF_BOOL) return key_wrong_type(g, m, "bool", err);
  *out = *(const uint8_t *)m->data;
  return LLM_OK;
}

llm_status gguf_get_string(const gguf *g, const char *key, int required, gguf_string *out,
                           llm_error *err) {
  const llm_meta *m = gguf_find(g, key);
  if (!m) return required ? key_missing(g, key, err) : LLM_OK;
  if (m->value_type != GGUF_STRING) return key_wrong_type(g, m, "string", err);
  *out = (gguf_string){m->data, (size_t)m->n_bytes};
  return LLM_OK;
}

llm_status gguf_get_array(const gguf *g, const char *key, int required, int element_type,
                          const llm_meta **out, llm_error *err) {
  const llm_meta *m = gguf_find(g, key);
  *out = NULL;
  if (!m) return required ? key_missing(g, key, err) : LLM_OK;
  if (m->value_type != GGUF_ARRAY || m->element_type != element_type) {
    char expected[32];
    snprintf(expected, sizeof expected, "array of %s", gguf_value_name(element_type));
    return key_wrong_type(g, m, expected, err);
  }
  *out = m;
  return LLM_OK;
}

gguf_string gguf_next_string(const char **cursor) {
  uint64_t n;
  memcpy(&n, *cursor, sizeof n);
  gguf_string s = {*cursor + sizeof n, (size_t)n};
  *cursor = s.data + s.n_bytes;
  return s;
}
