/* tokenizer.c: the public calls of llm.h on a loaded tokenizer. Layer 2; depends on gguf and the
 * other tokenizer files. Special tokens are cut out first, the longest at the leftmost place, and
 * what lies between them is encoded piece by piece. SentencePiece's dummy prefix, a space, begins
 * every run of text between control tokens, as sentencepiece encodes such a run alone. */
#include "tokenizer.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "mapfile.h"
#include "tokenizer_parts.h"

void llm_tokenizer_free(llm_tokenizer *t) {
  if (!t) return;
  free(t->text);
  free(t->offsets);
  free(t->types);
  token_table_free(&t->by_bytes);
  free(t->always.items);
  free(t->on_demand.items);
  bpe_free(t->bpe);
  spm_free(t->spm);
  free(t);
}

llm_status llm_tokenizer_open(llm_tokenizer **out, const char *path, llm_error *err) {
  *out = NULL;
  mapfile map = {0};
  gguf *g = NULL;
  llm_status status = mapfile_open(&map, path, err);
  if (!status) status = gguf_parse(&g, map.data, map.n_bytes, path, err);
  if (!status) status = tokenizer_from_gguf(out, g, err);
  gguf_free(g);
  mapfile_close(&map);
  return status;
}

const char *llm_tokenizer_model(const llm_tokenizer *t) { return t->spm ? "llama" : "gpt2"; }

int64_t llm_tokenizer_n_vocab(const llm_tokenizer *t) { return t->n_vocab; }
int64_t llm_tokenizer_n_byte_tokens(const llm_tokenizer *t) { return t->n_byte_tokens; }
int32_t llm_tokenizer_bos(const llm_tokenizer *t) { return t->bos; }
int32_t llm_tokenizer_eos(const llm_tokenizer *t) { return t->eos; }
int32_t llm_tokenizer_add_bos(const llm_tokenizer *t) { return t->add_bos; }
int32_t llm_tokenizer_add_eos(const llm_tokenizer *t) { return t->add_eos; }
int32_t llm_tokenizer_adds_space(const llm_tokenizer *t) { return t->add_space; }

int32_t llm_tokenizer_is_eog(const llm_tokenizer *t, int32_t id) {
  for (int32_t i = 0; i < t->n_eog; i++)
    if (t->eog[i] == id) return 1;
  return 0;
}

int32_t llm_tokenizer_token_type(const llm_tokenizer *t, int32_t id) {
  return id >= 0 && id < t->n_vocab ? t->types[id] : 0;
}

int32_t llm_tokenizer_find(const llm_tokenizer *t, const char *text, size_t n_bytes) {
  int64_t best = -1;
  for (int64_t id = 0; text && id < t->n_vocab; id++) {
    name token = token_bytes(t, id);
    if (token.n_bytes == n_bytes && memcmp(token.bytes, text, n_bytes) == 0 &&
        (best < 0 || token_is_preferred(t, id, best)))
      best = id;
  }
  return (int32_t)best;
}

/* ---- encoding ---- */

typedef struct encoder {
  const llm_tokenizer *t;
  piece_cache cache;
  id_sink sink;
  llm_error *err;
} encoder;

/* The next special token of text[*pos..n), where it begins to *pos; NULL and n: none. */
static const special *next_special(const special_set *set, const uint8_t *text, size_t n,
                                   size_t *pos) {
  for (; set->n && *pos < n; ++*pos) {
    if (!set->begins[text[*pos]]) continue;
    const special *s = special_match(set, text + *pos, n - *pos);
    if (s) return s;
  }
  *pos = n;
  return NULL;
}

/* Text without special tokens. */
static llm_status encode_plain(encoder *e, const uint8_t *text, size_t n_bytes) {
  if (n_bytes == 0) return LLM_OK;
  if (e->t->spm) return spm_encode(e->t->spm, text, n_bytes, &e->cache, &e->sink, e->err);
  return bpe_encode(e->t->bpe, text, n_bytes, &e->cache, &e->sink, e->err);
}

/* Text with user-defined tokens in it. */
static llm_status encode_user_defined(encoder *e, const uint8_t *text, size_t n_bytes) {
  llm_status status = LLM_OK;
  for (size_t begin = 0, pos; begin < n_bytes && !status; begin = pos) {
    pos = begin;
    const special *s = next_special(&e->t->always, text, n_bytes, &pos);
    status = encode_plain(e, text + begin, pos - begin);
    if (status || !s) break;
    id_sink_put(&e->sink, s->id);
    pos += s->n_bytes;
  }
  return status;
}

/* What lies between two control tokens. */
static llm_status encode_run(encoder *e, const uint8_t *text, size_t n_bytes) {
  if (n_bytes == 0 || !e->t->add_space) return encode_user_defined(e, text, n_bytes);
  uint8_t *copy = malloc(n_bytes + 1);
  if (!copy) return error_nomem(e->err, n_bytes + 1, "encoding");
  copy[0] = ' ';
  memcpy(copy + 1, text, n_bytes);
  llm_status status = encode_user_defined(e, copy, n_bytes + 1);
  free(copy);
  return status;
}

static llm_status encode_all(encoder *e, const uint8_t *text, size_t n_bytes, int parse_special) {
  size_t begin = 0, pos = 0;
  while (parse_special && pos < n_bytes) {
    const special *s = next_special(&e->t->on_demand, text, n_bytes, &pos);
    if (!s) break;
    if (token_type_is_hidden(e->t->types[s->id])) {
      llm_status status = encode_run(e, text + begin, pos - begin);
      if (status) return status;
      id_sink_put(&e->sink, s->id);
      begin = pos + s->n_bytes;
    }
    pos += s->n_bytes;
  }
  return encode_run(e, text + begin, n_bytes - begin);
}

/* SentencePiece reads U+2581 and the space as one. *copy: NULL where the text has none of them. */
static llm_status unify_spaces(const uint8_t *text, size_t n_bytes, uint8_t **copy, size_t *n_copy,
                               llm_error *err) {
  static const uint8_t mark[] = {0xe2, 0x96, 0x81};
  *copy = NULL;
  size_t n = 0, pos = 0;
  while (pos + 3 <= n_bytes && memcmp(text + pos, mark, 3)) pos++;
  if (pos + 3 > n_bytes) return LLM_OK;
  uint8_t *out = *copy = malloc(n_bytes);
  if (!out) return error_nomem(err, n_bytes, "encoding");
  memcpy(out, text, n = pos);
  while (pos < n_bytes) {
    int is_mark = n_bytes - pos >= 3 && memcmp(text + pos, mark, 3) == 0;
    out[n++] = is_mark ? ' ' : text[pos];
    pos += is_mark ? 3 : 1;
  }
  *n_copy = n;
  return LLM_OK;
}

/* One text into e->sink; the piece cache lives on. */
static llm_status encode_text(encoder *e, const uint8_t *text, size_t n_bytes, int parse_special) {
  uint8_t *copy = NULL;
  llm_status status = LLM_OK;
  if (n_bytes == 0) return LLM_OK;
  if (e->t->spm) status = unify_spaces(text, n_bytes, &copy, &n_bytes, e->err);
  if (!status) status = encode_all(e, copy ? copy : text, n_bytes, parse_special);
  free(copy);
  return status;
}

static llm_status encode_end(encoder *e, llm_status status, size_t *n_needed) {
  free(e->cache.entries);
  if (status) return status;
  *n_needed = e->sink.n;
  if (e->sink.n > e->sink.capacity)
    return error_set(e->err, LLM_ERR_ARG, "the text has %zu tokens, the buffer holds %zu",
                     e->sink.n, e->sink.capacity);
  return LLM_OK;
}

llm_status llm_tokenizer_encode(const llm_tokenizer *t, const char *text, size_t n_bytes,
                                int32_t parse_special, int32_t *dst, size_t capacity,
                                size_t *n_needed, llm_error *err) {
  *n_needed = 0;
  error_clear(err);
  if ((!text && n_bytes) || (!dst && capacity))
    return error_set(err, LLM_ERR_ARG, "llm_tokenizer_encode: %s is NULL",
                     !text && n_bytes ? "text" : "dst");
  if (n_bytes == 0) return LLM_OK;
  encoder e = {.t = t, .sink = {dst, capacity, 0}, .err = err};
  llm_status status = cache_init(&e.cache, n_bytes, err);
  if (!status) status = encode_text(&e, (const uint8_t *)text, n_bytes, parse_special);
  return encode_end(&e, status, n_needed);
}

llm_status llm_tokenizer_encode_documents(const llm_tokenizer *t, const char *text,
                                          const uint64_t *offsets, uint64_t n_documents,
                                          int32_t first_id, int32_t *dst, size_t capacity,
                                          size_t *n_needed, llm_error *err) {
  *n_needed = 0;
  error_clear(err);
  if ((!text && n_documents) || !offsets || (!dst && capacity))
    return error_set(err, LLM_ERR_ARG, "llm_tokenizer_encode_documents: a pointer is NULL");
  if (first_id < 0 || first_id >= t->n_vocab)
    return error_set(err, LLM_ERR_ARG, "first_id %" PRId32 " is not in the vocabulary", first_id);
  for (uint64_t d = 0; d < n_documents; d++)
    if (offsets[d + 1] < offsets[d])
      return error_set(err, LLM_ERR_ARG, "document %" PRIu64 " ends before it begins", d);
  encoder e = {.t = t, .sink = {dst, capacity, 0}, .err = err};
  llm_status status = cache_init(&e.cache, (size_t)(offsets[n_documents] - offsets[0]), err);
  for (uint64_t d = 0; d < n_documents && !status; d++) {
    id_sink_put(&e.sink, first_id);
    status = encode_text(&e, (const uint8_t *)text + offsets[d],
                         (size_t)(offsets[d + 1] - offsets[d]), 0);
  }
  return encode_end(&e, status, n_needed);
}

/* ---- decoding ---- */

/* The part of a token that fits. Most tokens are short: they are copied as if they were all of
 * TEXT_SLACK bytes where that many fit, which needs no call. */
static void put_bytes(char *dst, size_t room, const uint8_t *bytes, size_t n_bytes) {
  if (n_bytes <= TEXT_SLACK && room >= TEXT_SLACK)
    memcpy(dst, bytes, TEXT_SLACK);
  else
    memcpy(dst, bytes, n_bytes < room ? n_bytes : room);
}

/* 1: the token's first byte is the space that encoding put there. */
static int has_prefix(const llm_tokenizer *t, int32_t id, size_t n_bytes) {
  return n_bytes && t->types[id] != LLM_TOKEN_BYTE && t->text[t->offsets[id]] == ' ';
}

static llm_status decode_ids(const llm_tokenizer *t, const int32_t *ids, size_t n_ids,
                             int32_t render_special, int drops_prefix, char *dst, size_t capacity,
                             size_t *n_needed, llm_error *err) {
  *n_needed = 0;
  error_clear(err);
  if ((!ids && n_ids) || (!dst && capacity))
    return error_set(err, LLM_ERR_ARG, "llm_tokenizer_decode: %s is NULL",
                     !ids && n_ids ? "ids" : "dst");
  size_t n = 0;
  int prefix = drops_prefix;
  for (size_t i = 0; i < n_ids; i++) {
    int32_t id = ids[i];
    if (id < 0 || id >= t->n_vocab)
      return error_set(err, LLM_ERR_ARG,
                       "id %" PRId32 " at position %zu is not in the vocabulary of %" PRId64
                       " tokens",
                       id, i, t->n_vocab);
    int is_hidden = token_type_is_hidden(t->types[id]);
    size_t n_bytes = (size_t)(t->offsets[id + 1] - t->offsets[id]);
    size_t skip = prefix && !is_hidden && has_prefix(t, id, n_bytes);
    if (is_hidden || n_bytes) prefix = is_hidden && drops_prefix;
    if (!render_special && (is_hidden || t->types[id] == LLM_TOKEN_UNUSED)) continue;
    n_bytes -= skip;
    if (n < capacity) put_bytes(dst + n, capacity - n, t->text + t->offsets[id] + skip, n_bytes);
    n += n_bytes;
  }
  *n_needed = n;
  if (n > capacity)
    return error_set(err, LLM_ERR_ARG, "the text has %zu bytes, the buffer holds %zu", n, capacity);
  return LLM_OK;
}

llm_status llm_tokenizer_decode(const llm_tokenizer *t, const int32_t *ids, size_t n_ids,
                                int32_t render_special, char *dst, size_t capacity,
                                size_t *n_needed, llm_error *err) {
  return decode_ids(t, ids, n_ids, render_special, 0, dst, capacity, n_needed, err);
}

llm_status llm_tokenizer_decode_text(const llm_tokenizer *t, const int32_t *ids, size_t n_ids,
                                     int32_t render_special, char *dst, size_t capacity,
                                     size_t *n_needed, llm_error *err) {
  return decode_ids(t, ids, n_ids, render_special, t->add_space, dst, capacity, n_needed, err);
}
