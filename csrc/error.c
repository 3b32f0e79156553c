/* error.c: status names and message formatting. Layer 0; depends on unicode. */
#define _POSIX_C_SOURCE 200809L /* strerror_r */
#include "error.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "unicode.h"

const char *llm_version(void) { return "0.1.0"; }

const char *llm_status_name(llm_status status) {
  switch (status) {
  case LLM_OK: return "LLM_OK";
  case LLM_ERR_ARG: return "LLM_ERR_ARG";
  case LLM_ERR_IO: return "LLM_ERR_IO";
  case LLM_ERR_FORMAT: return "LLM_ERR_FORMAT";
  case LLM_ERR_UNSUPPORTED: return "LLM_ERR_UNSUPPORTED";
  case LLM_ERR_NOMEM: return "LLM_ERR_NOMEM";
  case LLM_ERR_CONTEXT_FULL: return "LLM_ERR_CONTEXT_FULL";
  case LLM_ERR_CANCELLED: return "LLM_ERR_CANCELLED";
  }
  return NULL;
}

/* Escape sequences from a hostile file must not reach a terminal; a quotation may be cut inside a
 * UTF-8 character. */
static void message_clean(char *message) {
  size_t n = strlen(message), length;
  for (size_t i = 0; i < n; i += length) {
    uint32_t c;
    length = utf8_decode((const uint8_t *)message + i, n - i, &c);
    if (c < 0x20 || (c >= 0x7f && c < 0xa0) || c == UTF8_INVALID) memset(message + i, '?', length);
  }
}

static void message_format(llm_error *err, llm_status status, const char *format, va_list args) {
  memset(err, 0, sizeof *err);
  err->status = status;
  vsnprintf(err->message, sizeof err->message, format, args);
}

llm_status error_set(llm_error *err, llm_status status, const char *format, ...) {
  if (!err) return status;
  va_list args;
  va_start(args, format);
  message_format(err, status, format, args);
  va_end(args);
  message_clean(err->message);
  return status;
}

llm_status error_set_errno(llm_error *err, int sys_errno, const char *format, ...) {
  if (!err) return LLM_ERR_IO;
  va_list args;
  va_start(args, format);
  message_format(err, LLM_ERR_IO, format, args);
  va_end(args);
  err->sys_errno = sys_errno;
  char text[128] = "unknown error";
  if (strerror_r(sys_errno, text, sizeof text) != 0) snprintf(text, sizeof text, "%d", sys_errno);
  size_t used = strlen(err->message);
  snprintf(err->message + used, sizeof err->message - used, ": %s", text);
  message_clean(err->message);
  return LLM_ERR_IO;
}

llm_status error_set_full(llm_error *err, int64_t found, int64_t limit, const char *format, ...) {
  if (!err) return LLM_ERR_CONTEXT_FULL;
  va_list args;
  va_start(args, format);
  message_format(err, LLM_ERR_CONTEXT_FULL, format, args);
  va_end(args);
  err->found = found;
  err->limit = limit;
  message_clean(err->message);
  return LLM_ERR_CONTEXT_FULL;
}

llm_status error_clear(llm_error *err) {
  if (err) memset(err, 0, sizeof *err);
  return LLM_OK;
}

llm_status error_nomem(llm_error *err, uint64_t n_bytes, const char *what) {
  return error_set(err, LLM_ERR_NOMEM, "cannot allocate %" PRIu64 " bytes for %s", n_bytes, what);
}
