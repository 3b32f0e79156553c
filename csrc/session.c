/* session.c: a conversation in a file, to go on with it later. Layer 6. The messages as text, the
 * token ids that the context held (an answer's are the model's own), and a fingerprint of the
 * parameter file, with which alone they mean anything. Keys and values are not kept: reading the
 * ids again gives the same bits (DESIGN rule 6).
 *
 *   two-file session 1\n
 *   model <64 hex digits>\n
 *   template <name>\n
 *   messages <n>\n        then for each: <role> <number of bytes>\n<bytes>\n
 *   ids <n>\n             then each in decimal, \n
 *   end\n                                                                                       */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "chat_template.h"
#include "error.h"
#include "mapfile.h"
#include "model.h"
#include "sha256.h"

struct llm_session {
  llm_template which;
  llm_message *messages; /* (n_messages) pointing into text */
  size_t n_messages, n_ids;
  int32_t *ids; /* (n_ids) */
  char *text;
};

/* ---- the fingerprint ---- */

enum { N_SAMPLES = 64, SAMPLE_BYTES = 4096 }; /* of the weights: a file may be 140 GB */

llm_status llm_model_fingerprint(const llm_model *model, char hex[65], llm_error *err) {
  uint64_t n_span, n_data;
  const char *span = gguf_span(model->file, &n_span),
             *data = gguf_tensor_data(model->file, &n_data);
  const size_t size = 64 + 20 + N_SAMPLES * SAMPLE_BYTES;
  char *buffer = calloc(size + 65, 1);
  if (!buffer) return error_nomem(err, size, "a fingerprint");
  sha256_hex(span, (size_t)(n_span - n_data), buffer); /* keys, tokenizer, table of tensors */
  snprintf(buffer + 64, 21, "%020" PRIu64, n_span);
  char *sample = buffer + 84;
  for (uint64_t i = 0; i < N_SAMPLES; i++, sample += SAMPLE_BYTES) {
    uint64_t at = n_data <= SAMPLE_BYTES ? 0 : (n_data - SAMPLE_BYTES) / (N_SAMPLES - 1) * i;
    memcpy(sample, data + at, n_data < SAMPLE_BYTES ? (size_t)n_data : SAMPLE_BYTES);
  }
  sha256_hex(buffer, size, hex);
  free(buffer);
  return error_clear(err);
}

/* ---- writing: a temporary file in the same folder, synced, renamed ---- */

static const char first_line[] = "two-file session 1\n";

static void write_all(FILE *f, const char *hex, llm_template which, const llm_message *messages,
                      size_t n_messages, const int32_t *ids, size_t n_ids) {
  fprintf(f, "%smodel %s\ntemplate %s\nmessages %zu\n", first_line, hex, llm_template_name(which),
          n_messages);
  for (size_t i = 0; i < n_messages; i++) {
    fprintf(f, "%s %zu\n", chat_role_names[messages[i].role], messages[i].n_bytes);
    if (messages[i].n_bytes) fwrite(messages[i].text, 1, messages[i].n_bytes, f);
    fputc('\n', f);
  }
  fprintf(f, "ids %zu\n", n_ids);
  for (size_t i = 0; i < n_ids; i++) fprintf(f, "%" PRId32 "\n", ids[i]);
  fputs("end\n", f);
}

static void sync_folder(const char *path) {
  char *copy = strdup(path);
  int fd = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY) : -1;
  if (fd >= 0) {
    fsync(fd);
    close(fd);
  }
  free(copy);
}

/* 1 where the file holds something else: a typing mistake must not cost a parameter file. */
static int holds_other(const char *path) {
  char begin[sizeof first_line - 1];
  FILE *f = fopen(path, "rb");
  size_t n = f ? fread(begin, 1, sizeof begin, f) : 0;
  if (f) fclose(f);
  return memcmp(begin, first_line, n) != 0;
}

static llm_status refuse(const char *path, const char *expected, llm_error *err) {
  error_set(err, LLM_ERR_IO, "%s is there and is no %s", path, expected);
  if (err) err->sys_errno = EEXIST;
  return LLM_ERR_IO;
}

/* The temporary file under its name: 0, or errno. */
static int finish(FILE *f, const char *temporary, const char *path) {
  int failed = fflush(f) || ferror(f) || fsync(fileno(f)) ? errno ? errno : EIO : 0;
  if (fclose(f) && !failed) failed = errno;
  if (!failed && rename(temporary, path)) failed = errno;
  return failed;
}

llm_status llm_session_save(const char *path, const llm_model *model, llm_template which,
                            const llm_message *messages, size_t n_messages, const int32_t *ids,
                            size_t n_ids, llm_error *err) {
  char hex[65];
  if (!llm_template_name(which))
    return error_set(err, LLM_ERR_ARG, "llm_session_save: template %d is unknown", (int)which);
  for (size_t i = 0; i < n_messages; i++)
    if ((unsigned)messages[i].role >= CHAT_N_ROLES)
      return error_set(err, LLM_ERR_ARG, "message %zu has role %d, which is none", i,
                       (int)messages[i].role);
  struct stat old; /* a device would be replaced by a file */
  if (!stat(path, &old) && !S_ISREG(old.st_mode)) return refuse(path, "regular file", err);
  if (holds_other(path)) return refuse(path, "session", err);
  llm_status status = llm_model_fingerprint(model, hex, err);
  if (status) return status;
  size_t n = strlen(path) + sizeof ".XXXXXX";
  char *temporary = malloc(n);
  if (!temporary) return error_nomem(err, n, "the name of a file");
  snprintf(temporary, n, "%s.XXXXXX", path);
  int fd = mkstemp(temporary), failed;
  FILE *f = fd < 0 ? NULL : fdopen(fd, "wb");
  if (!f) {
    failed = errno;
    if (fd >= 0) close(fd);
  } else {
    errno = 0;
    write_all(f, hex, which, messages, n_messages, ids, n_ids);
    failed = finish(f, temporary, path);
  }
  if (failed && fd >= 0) unlink(temporary);
  if (!failed) sync_folder(path);
  free(temporary);
  return failed ? error_set_errno(err, failed, "%s", path) : error_clear(err);
}

/* ---- reading ---- */

typedef struct reader {
  const char *path, *text;
  size_t n, at, line;
  llm_error *err;
} reader;

static llm_status bad(const reader *r, const char *expected) {
  return error_set(r->err, LLM_ERR_FORMAT, "%s, line %zu: no session file: expected %s", r->path,
                   r->line + 1, expected);
}

/* "<word> <rest>\n": *rest is what follows the word, NUL-terminated, shorter than size. */
static llm_status read_line(reader *r, const char *word, char *rest, size_t size) {
  const char *from = r->text + r->at, *end = memchr(from, '\n', r->n - r->at);
  size_t n_word = strlen(word), n = end ? (size_t)(end - from) : 0;
  if (!end || n < n_word + 1 || memcmp(from, word, n_word) || from[n_word] != ' ' ||
      n - n_word - 1 >= size)
    return bad(r, word);
  memcpy(rest, from + n_word + 1, n - n_word - 1);
  rest[n - n_word - 1] = 0;
  r->at += n + 1;
  r->line++;
  return LLM_OK;
}

/* A count of things that take at least min_bytes each in the rest of the file. */
static llm_status parse_count(const reader *r, const char *digits, size_t min_bytes, size_t *out) {
  char *end;
  errno = 0;
  unsigned long long n = strtoull(digits, &end, 10);
  if (errno || *end || digits[0] < '0' || digits[0] > '9' || n > (r->n - r->at) / min_bytes)
    return bad(r, "a count that the file can hold");
  *out = (size_t)n;
  return LLM_OK;
}

static llm_status read_count(reader *r, const char *word, size_t min_bytes, size_t *out) {
  char digits[24];
  llm_status status = read_line(r, word, digits, sizeof digits);
  return status ? status : parse_count(r, digits, min_bytes, out);
}

static llm_status read_message(reader *r, llm_message *out) {
  for (int role = 0; role < CHAT_N_ROLES; role++) {
    size_t n = strlen(chat_role_names[role]);
    if (r->n - r->at <= n || memcmp(r->text + r->at, chat_role_names[role], n)) continue;
    out->role = (llm_role)role;
    llm_status status = read_count(r, chat_role_names[role], 1, &out->n_bytes);
    if (status) return status;
    out->text = r->text + r->at;
    if (r->n - r->at <= out->n_bytes || out->text[out->n_bytes] != '\n')
      return bad(r, "the text of a message and a new line");
    for (size_t i = 0; i <= out->n_bytes; i++) r->line += out->text[i] == '\n';
    r->at += out->n_bytes + 1;
    return LLM_OK;
  }
  return bad(r, "a role");
}

static llm_status read_ids(reader *r, const llm_model *model, llm_session *s) {
  llm_status status = read_count(r, "ids", 2, &s->n_ids);
  if (status) return status;
  s->ids = malloc((s->n_ids + 1) * sizeof *s->ids);
  if (!s->ids) return error_nomem(r->err, s->n_ids * sizeof *s->ids, "a session");
  for (size_t i = 0; i < s->n_ids; i++) {
    int64_t id = 0;
    size_t begin = r->at;
    for (; r->at < r->n && r->text[r->at] >= '0' && r->text[r->at] <= '9' && id < INT32_MAX;
         r->at++)
      id = 10 * id + (r->text[r->at] - '0');
    if (r->at == begin || r->at == r->n || r->text[r->at] != '\n' || id >= model->config.n_vocab)
      return bad(r, "a token id of the vocabulary");
    s->ids[i] = (int32_t)id;
    r->at++;
    r->line++;
  }
  return r->n - r->at == 4 && !memcmp(r->text + r->at, "end\n", 4) ? LLM_OK : bad(r, "end");
}

static llm_status read_session(reader *r, const llm_model *model, llm_session *s) {
  char text[65], hex[65];
  llm_status status = read_line(r, "two-file", text, sizeof text);
  if (!status && strcmp(text, "session 1")) return bad(r, "two-file session 1");
  if (!status) status = read_line(r, "model", text, sizeof text);
  if (!status) status = llm_model_fingerprint(model, hex, r->err);
  if (!status && strcmp(text, hex))
    return error_set(r->err, LLM_ERR_FORMAT, "%s was saved with another parameter file than %s",
                     r->path, gguf_where(model->file));
  if (!status) status = read_line(r, "template", text, sizeof text);
  s->which = status ? LLM_TEMPLATE_AUTO : llm_template_find(text);
  if (!status && s->which == LLM_TEMPLATE_AUTO && strcmp(text, llm_template_name(s->which)))
    return bad(r, "a template that this program has");
  if (!status) status = read_count(r, "messages", 4, &s->n_messages);
  if (!status && !(s->messages = calloc(s->n_messages + 1, sizeof *s->messages)))
    status = error_nomem(r->err, s->n_messages * sizeof *s->messages, "a session");
  for (size_t i = 0; i < s->n_messages && !status; i++) status = read_message(r, &s->messages[i]);
  return status ? status : read_ids(r, model, s);
}

llm_status llm_session_load(llm_session **out, const char *path, const llm_model *model,
                            llm_error *err) {
  mapfile map;
  *out = NULL;
  llm_status status = mapfile_open(&map, path, err);
  if (status) return status;
  llm_session *s = calloc(1, sizeof *s);
  if (s) s->text = malloc(map.n_bytes + 1);
  if (!s || !s->text) {
    status = error_nomem(err, map.n_bytes, "a session");
  } else {
    if (map.n_bytes) memcpy(s->text, map.data, map.n_bytes);
    reader r = {path, s->text, map.n_bytes, 0, 0, err};
    status = read_session(&r, model, s);
  }
  mapfile_close(&map);
  if (status) {
    llm_session_free(s);
    return status;
  }
  *out = s;
  return error_clear(err);
}

void llm_session_free(llm_session *session) {
  if (!session) return;
  free(session->messages);
  free(session->ids);
  free(session->text);
  free(session);
}

llm_template llm_session_template(const llm_session *session) { return session->which; }

const llm_message *llm_session_messages(const llm_session *session, size_t *n) {
  *n = session->n_messages;
  return session->messages;
}

const int32_t *llm_session_ids(const llm_session *session, size_t *n) {
  *n = session->n_ids;
  return session->ids;
}
