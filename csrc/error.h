/* error.h: filling an llm_error. Layer 0. Nothing here allocates or prints. */
#ifndef LLM_ERROR_H
#define LLM_ERROR_H

#include "llm.h"

/* Formats the message (cut at the buffer's end) and returns `status`, so that a failure reads
 * `return error_set(err, LLM_ERR_FORMAT, "...", ...)`. err may be NULL. Control characters and what
 * is not UTF-8 become '?': messages quote hostile files and go to terminals. */
llm_status error_set(llm_error *err, llm_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* LLM_ERR_IO with errno's text appended: "<formatted>: No such file or directory". */
llm_status error_set_errno(llm_error *err, int sys_errno, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* LLM_ERR_CONTEXT_FULL with both counts. */
llm_status error_set_full(llm_error *err, int64_t found, int64_t limit, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* LLM_OK, and clears *err. */
llm_status error_clear(llm_error *err);

/* "LLM_ERR_NOMEM: cannot allocate <n> bytes for <what>". */
llm_status error_nomem(llm_error *err, uint64_t n_bytes, const char *what);

#endif
