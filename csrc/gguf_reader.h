/* gguf_reader.h: a cursor over the header of a parameter file that cannot leave it. Layer 1, for
 * gguf.c. Every failure is LLM_ERR_FORMAT with a message "<where>: <what>: <reason>". */
#ifndef LLM_GGUF_READER_H
#define LLM_GGUF_READER_H

#include "gguf.h"

typedef struct reader {
  const char *where;
  const uint8_t *at; /* the unread rest */
  size_t left;
  char *names;    /* where the next name is copied: the owner made room for all */
  char what[320]; /* the entry being read, for messages */
  llm_error *err;
} reader;

llm_status reader_fail(const reader *r, llm_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* n bytes, not copied. `part` names them in a message, here and below. */
llm_status reader_take(reader *r, size_t n, const char *part, const void **out);
llm_status reader_u32(reader *r, const char *part, uint32_t *out);
llm_status reader_u64(reader *r, const char *part, uint64_t *out);
/* A uint64 length and that many bytes, not copied. */
llm_status reader_string(reader *r, const char *part, gguf_string *out);
/* A key or a tensor name: 1 to max bytes of printable ASCII without spaces, copied with a NUL. */
llm_status reader_name(reader *r, const char *part, size_t max, const char **out);

#endif
