/* run_io.c: the program's reading, printing and failing. Layer 7. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "run.h"

/* ---- failing ---- */

_Noreturn void usage_error(const char *format, const char *what) {
  fprintf(stderr, "run: ");
  fprintf(stderr, format, what);
  fprintf(stderr, " (see run --help)\n");
  exit(EXIT_USAGE);
}

int failed(const llm_error *err) {
  if (err->status == LLM_ERR_CANCELLED) return EXIT_INTERRUPTED;
  fprintf(stderr, "run: %s\n", err->message);
  return EXIT_FAILED;
}

int failed_errno(const char *what) {
  fprintf(stderr, "run: %s: %s\n", what, strerror(errno));
  return EXIT_FAILED;
}

int failed_to_read(const char *what) { return interrupted ? EXIT_INTERRUPTED : failed_errno(what); }

/* Standard output may be a closed pipe or a full disk. */
int finish_stdout(int status) {
  if (fflush(stdout) || ferror(stdout)) return failed_errno("standard output");
  return status;
}

/* ---- memory that grows ---- */

int grow(void **data, size_t *capacity, size_t needed, size_t size) {
  if (needed <= *capacity) return 1;
  size_t wanted = 2 * needed + 64;
  void *grown = realloc(*data, wanted * size);
  if (!grown) return 0;
  *data = grown;
  *capacity = wanted;
  return 1;
}

int append(bytes *b, const char *data, size_t n) {
  if (!grow((void **)&b->data, &b->capacity, b->n + n + 1, 1)) return 0;
  if (n) memcpy(b->data + b->n, data, n);
  b->n += n;
  b->data[b->n] = 0;
  return 1;
}

/* ---- reading ---- */

enum { MAX_INPUT = 256 << 20 }; /* bytes of a prompt or text: an endless stream must end here */

bytes read_all(FILE *stream) {
  char block[1 << 16];
  bytes b = {0};
  int has_memory = 1;
  let_interrupt_cut(1);
  while (has_memory && !interrupted && !feof(stream) && !ferror(stream) && b.n <= MAX_INPUT)
    has_memory = append(&b, block, fread(block, 1, sizeof block, stream));
  let_interrupt_cut(0);
  if (has_memory && !interrupted && !ferror(stream) && b.n <= MAX_INPUT) return b;
  if (!ferror(stream)) errno = has_memory ? EFBIG : ENOMEM;
  free(b.data);
  return (bytes){0};
}

llm_status tokenize(const llm_tokenizer *tokenizer, bytes text, int parse_special, id_list *out,
                    llm_error *err) {
  size_t bos = llm_tokenizer_add_bos(tokenizer) ? 1 : 0, n = 0;
  size_t capacity = 2 * text.n + 1; /* no token spells less than a byte; see llm.h */
  out->ids = malloc((capacity + bos) * sizeof *out->ids);
  if (!out->ids) {
    *err = (llm_error){.status = LLM_ERR_NOMEM};
    snprintf(err->message, sizeof err->message, "out of memory for %zu tokens", capacity);
    return LLM_ERR_NOMEM;
  }
  if (bos) out->ids[0] = llm_tokenizer_bos(tokenizer);
  llm_status status = llm_tokenizer_encode(tokenizer, text.data, text.n, parse_special,
                                           out->ids + bos, capacity, &n, err);
  out->n = n + bos;
  return status;
}

/* ---- printing ---- */

double rate(size_t n, double seconds) { return seconds > 0 ? (double)n / seconds : 0; }

double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void print_ids(const char *separator, const int32_t *ids, size_t n) {
  for (size_t i = 0; i < n; i++) printf("%s%" PRId32, i ? separator : "", ids[i]);
}

void print_escaped(const char *text, size_t n) {
  for (size_t i = 0, length; i < n; i += length) {
    const unsigned char *s = (const unsigned char *)text + i;
    length = llm_utf8_length((const char *)s, n - i);
    int is_control = *s < 0x20 || *s == 0x7f || (*s == 0xc2 && length == 2 && s[1] < 0xa0);
    if (length && !is_control) {
      fwrite(s, 1, length, stdout);
      continue;
    }
    length = 1; /* what follows a control character's first byte is escaped as no UTF-8 */
    printf("\\x%02x", *s);
  }
}
