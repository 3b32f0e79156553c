/* gguf_reader.c: the bounds-checked cursor of gguf_reader.h. Layer 1; depends on error. A length is
 * compared with the bytes that are left before it is used, never added to a position. */
#include "gguf_reader.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "error.h"

llm_status reader_fail(const reader *r, llm_status status, const char *format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  return error_set(r->err, status, "%s: %s: %s", r->where, r->what, text);
}

llm_status reader_take(reader *r, size_t n, const char *part, const void **out) {
  if (n > r->left)
    return reader_fail(r, LLM_ERR_FORMAT, "the file ends after %zu of the %zu bytes of its %s",
                       r->left, n, part);
  *out = r->at;
  r->at += n;
  r->left -= n;
  return LLM_OK;
}

static llm_status reader_copy(reader *r, void *out, size_t n, const char *part) {
  const void *bytes = NULL;
  llm_status status = reader_take(r, n, part, &bytes);
  if (!status) memcpy(out, bytes, n);
  return status;
}

llm_status reader_u32(reader *r, const char *part, uint32_t *out) {
  return reader_copy(r, out, sizeof *out, part);
}

llm_status reader_u64(reader *r, const char *part, uint64_t *out) {
  return reader_copy(r, out, sizeof *out, part);
}

llm_status reader_string(reader *r, const char *part, gguf_string *out) {
  uint64_t n;
  if (r->left < sizeof n) return reader_u64(r, part, &n); /* which says so */
  memcpy(&n, r->at, sizeof n);
  const size_t left = r->left - sizeof n;
  if (n > left)
    return reader_fail(r, LLM_ERR_FORMAT, "its %s claims %" PRIu64 " bytes, the file has %zu left",
                       part, n, left);
  *out = (gguf_string){(const char *)r->at + sizeof n, (size_t)n};
  r->at += sizeof n + n;
  r->left = left - (size_t)n;
  return LLM_OK;
}

llm_status reader_name(reader *r, const char *part, size_t max, const char **out) {
  gguf_string s = {0};
  llm_status status = reader_string(r, part, &s);
  if (status) return status;
  if (s.n_bytes < 1 || s.n_bytes > max)
    return reader_fail(r, LLM_ERR_FORMAT, "its %s has %zu bytes, expected 1 to %zu", part,
                       s.n_bytes, max);
  for (size_t i = 0; i < s.n_bytes; i++) {
    unsigned char c = (unsigned char)s.data[i];
    if (c <= 0x20 || c >= 0x7f)
      return reader_fail(r, LLM_ERR_FORMAT,
                         "its %s has byte 0x%02x at position %zu, expected printable ASCII", part,
                         (unsigned)c, i);
  }
  memcpy(r->names, s.data, s.n_bytes);
  r->names[s.n_bytes] = '\0';
  *out = r->names;
  r->names += s.n_bytes + 1;
  return LLM_OK;
}
