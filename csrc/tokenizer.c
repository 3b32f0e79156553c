/* tokenizer.c: the public calls of llm.h on a loaded tokenizer. Layer 2; depends on tokenizer_bpe,
 * tokenizer_special. Special tokens are cut out first, the longest at the leftmost place, and what
 * lies between them is encoded piece by piece. */
#include "tokenizer.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
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
  free(t);
}

int64_t llm_tokenizer_n_vocab(const llm_tokenizer *t) { return t->n_vocab; }
int64_t llm_tokenizer_n_byte_tokens(const llm_tokenizer *t) { return t->n_byte_tokens; }
int32_t llm_tokenizer_bos(const llm_tokenizer *t) { return t->bos; }
int32_t llm_tokenizer_eos(const llm_tokenizer *t) { return t->eos; }
int32_t llm_tokenizer_add_bos(const llm_tokenizer *t) { return t->add_bos; }

int32_t llm_tokenizer_is_eog(const llm_tokenizer *t, int32_t id) {
  for (int32_t i = 0; i < t->n_eog; i++)
    if (t->eog[i] == id) return 1;
  return 0;
}

int32_t llm_tokenizer_token_type(const llm_tokenizer *t, int32_t id) {
  return id >= 0 && id < t->n_vocab ? t->types[id] : 0;
}

int32_t llm_tokenizer_find(const llm_tokenizer *t, const char *text, size_t n_bytes) {
  if (!text || n_bytes > UINT32_MAX) return -1;
  return token_table_find(&t->by_bytes, (name){(const uint8_t *)text, n_bytes});
}

static llm_status encode_all(const llm_tokenizer *t, const uint8_t *text, size_t n_bytes,
                             const special_set *set, id_sink *sink, llm_error *err) {
  size_t begin = 0;
  for (size_t pos = 0; set->n && pos < n_bytes;) {
    const special *s =
        set->begins[text[pos]] ? special_match(set, text + pos, n_bytes - pos) : NULL;
    if (!s) {
      pos++;
      continue;
    }
    llm_status status = bpe_encode(t->bpe, text + begin, pos - begin, sink, err);
    if (status) return status;
    id_sink_put(sink, s->id);
    begin = pos += s->n_bytes;
  }
  return bpe_encode(t->bpe, text + begin, n_bytes - begin, sink, err);
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
  id_sink sink = {dst, capacity, 0};
  llm_status status = encode_all(t, (const uint8_t *)text, n_bytes,
                                 parse_special ? &t->on_demand : &t->always, &sink, err);
  if (status) return status;
  *n_needed = sink.n;
  if (sink.n > capacity)
    return error_set(err, LLM_ERR_ARG, "the text has %zu tokens, the buffer holds %zu", sink.n,
                     capacity);
  return LLM_OK;
}

llm_status llm_tokenizer_decode(const llm_tokenizer *t, const int32_t *ids, size_t n_ids,
                                int32_t render_special, char *dst, size_t capacity,
                                size_t *n_needed, llm_error *err) {
  *n_needed = 0;
  error_clear(err);
  if ((!ids && n_ids) || (!dst && capacity))
    return error_set(err, LLM_ERR_ARG, "llm_tokenizer_decode: %s is NULL",
                     !ids && n_ids ? "ids" : "dst");
  size_t n = 0;
  for (size_t i = 0; i < n_ids; i++) {
    int32_t id = ids[i];
    if (id < 0 || id >= t->n_vocab)
      return error_set(err, LLM_ERR_ARG,
                       "id %" PRId32 " at position %zu is not in the vocabulary of %" PRId64
                       " tokens",
                       id, i, t->n_vocab);
    if (!render_special && (token_type_is_hidden(t->types[id]) || t->types[id] == LLM_TOKEN_UNUSED))
      continue;
    size_t n_bytes = (size_t)(t->offsets[id + 1] - t->offsets[id]);
    if (n < capacity) {
      size_t fit = n_bytes < capacity - n ? n_bytes : capacity - n;
      memcpy(dst + n, t->text + t->offsets[id], fit);
    }
    n += n_bytes;
  }
  *n_needed = n;
  if (n > capacity)
    return error_set(err, LLM_ERR_ARG, "the text has %zu bytes, the buffer holds %zu", n, capacity);
  return LLM_OK;
}
