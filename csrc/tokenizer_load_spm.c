/* tokenizer_load_spm.c: building a SentencePiece tokenizer from a parameter file. Layer 2; depends
 * on tokenizer_load, tokenizer_spm. The file spells spaces as U+2581 and byte tokens as <0x0A>; in
 * memory both are the bytes that they stand for. */
#include <math.h>

#include "tokenizer_load.h"

static int is_space_mark(const uint8_t *p, size_t n) {
  return n >= 3 && p[0] == 0xe2 && p[1] == 0x96 && p[2] == 0x81;
}

/* ---- byte tokens ---- */

static int hex_digit(uint8_t c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

/* <0x00> to <0xFF>; -1: another spelling. */
static int spelled_byte(name s) {
  if (s.n_bytes != 6 || memcmp(s.bytes, "<0x", 3) || s.bytes[5] != '>') return -1;
  int high = hex_digit(s.bytes[3]), low = hex_digit(s.bytes[4]);
  return high < 0 || low < 0 ? -1 : high << 4 | low;
}

/* user: int32_t byte_token[256] */
static llm_status decode_spelling(loader *l, int64_t id, name spelling, int32_t type, uint8_t *dst,
                                  size_t *n_bytes, void *user) {
  int32_t *byte_token = user;
  size_t n = 0;
  if (type == LLM_TOKEN_BYTE) {
    int byte = spelled_byte(spelling);
    if (byte < 0)
      return error_set(l->err, l->bad,
                       "%s: byte token %" PRId64 " is \"%.*s\", expected <0x00> to <0xFF>",
                       l->where, id, gguf_quoted(spelling.n_bytes), (const char *)spelling.bytes);
    byte_token[byte] = (int32_t)id;
    dst[0] = (uint8_t)byte;
    *n_bytes = 1;
    return LLM_OK;
  }
  for (size_t pos = 0; pos < spelling.n_bytes;) {
    int is_mark = is_space_mark(spelling.bytes + pos, spelling.n_bytes - pos);
    dst[n++] = is_mark ? ' ' : spelling.bytes[pos];
    pos += is_mark ? 3 : 1;
  }
  *n_bytes = n;
  return LLM_OK;
}

/* ---- what the vocabulary must have ---- */

/* Each symbol that merges is looked up by its bytes: a long token would make that quadratic. */
static llm_status check_lengths(const loader *l) {
  const llm_tokenizer *t = l->t;
  for (int64_t id = 0; id < t->n_vocab; id++)
    if (t->offsets[id + 1] - t->offsets[id] > MAX_SPECIAL_BYTES)
      return error_set(l->err, l->bad, "%s: token %" PRId64 " has %" PRIu64 " bytes, at most %d",
                       l->where, id, t->offsets[id + 1] - t->offsets[id], MAX_SPECIAL_BYTES);
  return LLM_OK;
}

static llm_status read_unknown(loader *l, const gguf *g, const spm_vocabulary *v) {
  llm_tokenizer *t = l->t;
  int64_t unknown = -1;
  llm_status status =
      gguf_get_int(g, "tokenizer.ggml.unknown_token_id", 0, 0, t->n_vocab - 1, &unknown, l->err);
  for (int64_t id = 0; unknown < 0 && id < t->n_vocab; id++)
    if (t->types[id] == LLM_TOKEN_UNKNOWN) unknown = id;
  t->unknown = (int32_t)unknown;

  for (int byte = 0; byte < 256; byte++) t->n_byte_tokens += v->byte_token[byte] >= 0;
  if (status) return status;
  if (t->n_byte_tokens != 0 && t->n_byte_tokens != 256)
    return error_set(l->err, l->bad, "%s: %" PRId32 " byte tokens, expected all 256 or none",
                     l->where, t->n_byte_tokens);
  if (t->n_byte_tokens == 0 && unknown < 0)
    return error_set(l->err, l->bad,
                     "%s: the vocabulary has neither byte tokens nor an unknown token", l->where);
  return LLM_OK;
}

static llm_status read_flags(loader *l, const gguf *g) {
  int32_t removes = 0;
  l->t->add_space = 1;
  llm_status status =
      gguf_get_bool(g, "tokenizer.ggml.add_space_prefix", 0, &l->t->add_space, l->err);
  if (!status)
    status = gguf_get_bool(g, "tokenizer.ggml.remove_extra_whitespaces", 0, &removes, l->err);
  if (!status && removes)
    return error_set(l->err, LLM_ERR_UNSUPPORTED,
                     "%s: key tokenizer.ggml.remove_extra_whitespaces is true; this program keeps "
                     "every space",
                     l->where);
  return status;
}

static llm_status read_scores(const loader *l, const llm_meta *scores, float **out) {
  size_t n = (size_t)l->t->n_vocab;
  float *values = *out = malloc(n * sizeof *values);
  if (!values) return error_nomem(l->err, n * sizeof *values, "the scores of a vocabulary");
  memcpy(values, scores->data, n * sizeof *values); /* may be unaligned in the file */
  for (size_t id = 0; id < n; id++)
    if (!isfinite(values[id]))
      return error_set(l->err, l->bad, "%s: the score of token %zu is %g", l->where, id,
                       (double)values[id]);
  return LLM_OK;
}

llm_status loader_fill_spm(loader *l, const gguf *g, const file_arrays *a) {
  if (!a->scores)
    return error_set(l->err, l->bad, "%s: key tokenizer.ggml.scores is missing", l->where);
  llm_tokenizer *t = l->t;
  spm_vocabulary v = {.scores = NULL};
  for (int byte = 0; byte < 256; byte++) v.byte_token[byte] = -1;
  llm_status status = loader_read_tokens(l, a, decode_spelling, v.byte_token);
  if (!status) status = check_lengths(l);
  if (!status) status = loader_index_bytes(l);
  if (!status) status = read_unknown(l, g, &v);
  if (!status) status = read_flags(l, g);
  if (!status) status = read_scores(l, a->scores, &v.scores);
  if (status) {
    free(v.scores);
    return status;
  }
  l->default_add_bos = 1;
  v.n_vocab = t->n_vocab;
  v.by_bytes = &t->by_bytes;
  v.text = t->text;
  v.offsets = t->offsets;
  v.types = t->types;
  v.unknown = t->unknown;
  return spm_new(&t->spm, &v, l->err);
}
