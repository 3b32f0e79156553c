/* tokenizer_load.c: building a tokenizer from the keys of a parameter file or from an llm_bpe_spec.
 * Layer 2; depends on gguf, tokenizer_parts. Tokens and merges are joined by name: in a file the
 * name is the token's spelling (GPT-2's byte-to-unicode alphabet), in a spec its raw bytes.
 * Everything is looked up in one hash table: 49,152 tokens load in a few milliseconds. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "tokenizer.h"
#include "tokenizer_parts.h"
#include "unicode.h"

enum { MAX_TOKEN_BYTES = 64 * 1024, MAX_SPECIAL_BYTES = 1024 };

typedef struct loader {
  llm_tokenizer *t;
  const char *where; /* opens every message */
  llm_status bad;    /* the status of a fault in the input */
  name *names;       /* (n_vocab) */
  token_table by_name;
  uint8_t byte_text[256][2];
  name byte_names[256];            /* of the single bytes, in byte_text */
  uint8_t joined[MAX_TOKEN_BYTES]; /* the name that a merge makes */
  int32_t likely_product;          /* merges usually make the tokens in order */
  llm_error *err;
} loader;

/* ---- names ---- */

static int name_equal(name a, name b) {
  return a.n_bytes == b.n_bytes && memcmp(a.bytes, b.bytes, a.n_bytes) == 0;
}

/* -1: no such token. */
static int32_t name_find(const loader *l, name key) { return token_table_find(&l->by_name, key); }

/* ---- steps that both sources share ---- */

static llm_status loader_init(loader *l, int64_t n_vocab, uint64_t text_bytes) {
  llm_tokenizer *t = l->t;
  t->n_vocab = n_vocab;
  t->bos = t->eos = -1;
  size_t n = (size_t)n_vocab;
  t->text = malloc((size_t)text_bytes + 1); /* never of no bytes */
  t->offsets = calloc(n + 1, sizeof *t->offsets);
  t->types = malloc(n);
  l->names = malloc(n * sizeof *l->names);
  if (t->text && t->offsets && t->types && l->names)
    return token_table_init(&l->by_name, n, l->err);
  return error_nomem(l->err, text_bytes + n * (sizeof *t->offsets + sizeof *l->names),
                     "a vocabulary");
}

static llm_status set_type(loader *l, int64_t id, int32_t type) {
  if (type < LLM_TOKEN_NORMAL || type > LLM_TOKEN_BYTE)
    return error_set(l->err, l->bad,
                     "%s: the type of token %" PRId64 " is %" PRId32 ", expected %d to %d",
                     l->where, id, type, LLM_TOKEN_NORMAL, LLM_TOKEN_BYTE);
  l->t->types[id] = (uint8_t)type;
  return LLM_OK;
}

static llm_status set_name(loader *l, int64_t id, name key) {
  if (key.n_bytes > MAX_TOKEN_BYTES)
    return error_set(l->err, l->bad, "%s: token %" PRId64 " has %zu bytes, expected at most %d",
                     l->where, id, key.n_bytes, MAX_TOKEN_BYTES);
  l->names[id] = key;
  token_slot *slot = token_table_slot(&l->by_name, key);
  if (slot->id_plus_1)
    return error_set(l->err, l->bad, "%s: tokens %" PRId32 " and %" PRId64 " are both \"%.*s\"",
                     l->where, slot->id_plus_1 - 1, id, gguf_quoted(key.n_bytes),
                     (const char *)key.bytes);
  token_slot_set(slot, key, (int32_t)id);
  return LLM_OK;
}

static llm_status begin_merges(loader *l, const char *pre, size_t pre_bytes, uint64_t n_merges) {
  llm_tokenizer *t = l->t;
  pretokenizer next = pretokenizer_find(pre, pre_bytes);
  if (!next)
    return error_set(l->err, LLM_ERR_UNSUPPORTED,
                     "%s: unsupported pre-tokenizer \"%.*s\"; this program has %s", l->where,
                     gguf_quoted(pre_bytes), pre, pretokenizer_names());
  if (n_merges > INT32_MAX)
    return error_set(l->err, l->bad, "%s: %" PRIu64 " merges, expected at most %d", l->where,
                     n_merges, INT32_MAX);
  int32_t byte_token[256];
  for (int byte = 0; byte < 256; byte++) {
    int32_t id = name_find(l, l->byte_names[byte]);
    byte_token[byte] = id >= 0 && token_type_is_hidden(t->types[id]) ? -1 : id;
    t->n_byte_tokens += byte_token[byte] >= 0;
  }
  return bpe_new(&t->bpe, next, byte_token, (size_t)n_merges, l->err);
}

static llm_status add_merge(loader *l, uint64_t index, int32_t left, int32_t right) {
  name a = l->names[left], b = l->names[right], key = {l->joined, a.n_bytes + b.n_bytes};
  int32_t product = -1;
  if (key.n_bytes <= MAX_TOKEN_BYTES) {
    memcpy(l->joined, a.bytes, a.n_bytes);
    memcpy(l->joined + a.n_bytes, b.bytes, b.n_bytes);
    product = l->likely_product;
    if (product >= l->t->n_vocab || !name_equal(l->names[product], key))
      product = name_find(l, key);
    l->likely_product = product + 1;
  }
  const char *fault = NULL;
  if (product < 0)
    fault = "makes no token of the vocabulary";
  else if (token_type_is_hidden(l->t->types[product]))
    fault = "makes a control token, which plain text must not become";
  else if (!bpe_add_merge(l->t->bpe, left, right, product))
    fault = "repeats an earlier merge";
  if (!fault) return LLM_OK;
  return error_set(l->err, l->bad, "%s: merge %" PRIu64 " of \"%.*s\" and \"%.*s\" %s", l->where,
                   index, gguf_quoted(a.n_bytes), (const char *)a.bytes, gguf_quoted(b.n_bytes),
                   (const char *)b.bytes, fault);
}

static void add_eog(llm_tokenizer *t, int64_t id) {
  if (id >= 0 && !llm_tokenizer_is_eog(t, (int32_t)id)) t->eog[t->n_eog++] = (int32_t)id;
}

/* Control tokens that end a turn whatever the keys say, as in llama.cpp. */
static void add_named_eog(loader *l) {
  static const char *const names[] = {"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<end_of_turn>",
                                      "</s>"};
  _Static_assert(sizeof names / sizeof *names + 3 <= MAX_EOG, "eos, eot, eom and these");
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    int32_t id = name_find(l, (name){(const uint8_t *)names[i], strlen(names[i])});
    if (id >= 0 && l->t->types[id] == LLM_TOKEN_CONTROL) add_eog(l->t, id);
  }
}

/* Special tokens are looked for at every byte of a text: a long one would make that quadratic. */
static llm_status check_special_lengths(const loader *l) {
  const llm_tokenizer *t = l->t;
  for (int64_t id = 0; id < t->n_vocab; id++) {
    uint64_t n = t->offsets[id + 1] - t->offsets[id];
    if (n <= MAX_SPECIAL_BYTES) continue;
    if (t->types[id] != LLM_TOKEN_USER_DEFINED && !token_type_is_hidden(t->types[id])) continue;
    return error_set(l->err, l->bad,
                     "%s: token %" PRId64 " is a special token of %" PRIu64 " bytes, at most %d",
                     l->where, id, n, MAX_SPECIAL_BYTES);
  }
  return LLM_OK;
}

/* Which of several tokens that spell the same bytes find() gives. */
static int preference(int32_t type) {
  static const int order[] = {
      [LLM_TOKEN_CONTROL] = 5, [LLM_TOKEN_UNKNOWN] = 4, [LLM_TOKEN_USER_DEFINED] = 3,
      [LLM_TOKEN_NORMAL] = 2,  [LLM_TOKEN_UNUSED] = 1,  [LLM_TOKEN_BYTE] = 0};
  return order[type];
}

static llm_status index_bytes(llm_tokenizer *t, llm_error *err) {
  llm_status status = token_table_init(&t->by_bytes, (size_t)t->n_vocab, err);
  for (int64_t id = 0; !status && id < t->n_vocab; id++) {
    name key = {t->text + t->offsets[id], (size_t)(t->offsets[id + 1] - t->offsets[id])};
    token_slot *slot = token_table_slot(&t->by_bytes, key);
    int32_t other = slot->id_plus_1 - 1;
    if (other < 0 || preference(t->types[id]) > preference(t->types[other]))
      token_slot_set(slot, key, (int32_t)id);
  }
  return status;
}

/* Runs one of the two sources and hands the tokenizer over, or nothing. */
static llm_status load(llm_tokenizer **out, const char *where, llm_status bad,
                       llm_status (*fill)(loader *l, const void *source), const void *source,
                       llm_error *err) {
  *out = NULL;
  loader *l = calloc(1, sizeof *l);
  llm_tokenizer *t = calloc(1, sizeof *t);
  llm_status status = error_clear(err);
  if (!l || !t) {
    status = error_nomem(err, sizeof *l + sizeof *t, "a tokenizer");
  } else {
    l->t = t;
    l->where = where;
    l->bad = bad;
    l->err = err;
    status = fill(l, source);
    if (!status) status = check_special_lengths(l);
    if (!status) status = special_sets_init(t, err);
    if (!status) status = index_bytes(t, err);
    if (!status) add_named_eog(l);
    free(l->names);
    token_table_free(&l->by_name);
  }
  free(l);
  if (status)
    llm_tokenizer_free(t);
  else
    *out = t;
  return status;
}

/* ---- from a spec ---- */

static llm_status check_spec(const loader *l, const llm_bpe_spec *s) {
  const char *fault = NULL;
  if (s->n_vocab < 1 || s->n_vocab > INT32_MAX)
    fault = "n_vocab is not 1 to 2^31 - 1";
  else if (s->n_merges < 0)
    fault = "n_merges is negative";
  else if (!s->pre || !s->offsets || (!s->merges && s->n_merges))
    fault = "pre, offsets or merges is NULL";
  else if (s->offsets[0] != 0 || (!s->text && s->offsets[s->n_vocab]))
    fault = "the tokens do not begin at text[0]";
  for (int64_t i = 0; !fault && i < s->n_vocab; i++)
    if (s->offsets[i + 1] < s->offsets[i]) fault = "the offsets of the tokens fall";
  for (int64_t i = 0; !fault && i < 2 * s->n_merges; i++)
    if (s->merges[i] < 0 || s->merges[i] >= s->n_vocab) fault = "a merge names no token";
  return fault ? error_set(l->err, l->bad, "%s: %s", l->where, fault) : LLM_OK;
}

static llm_status fill_from_spec(loader *l, const void *source) {
  const llm_bpe_spec *s = source;
  llm_status status = check_spec(l, s);
  if (!status) status = loader_init(l, s->n_vocab, s->offsets[s->n_vocab]);
  if (status) return status;

  llm_tokenizer *t = l->t;
  memcpy(t->offsets, s->offsets, ((size_t)s->n_vocab + 1) * sizeof *t->offsets);
  if (s->text) memcpy(t->text, s->text, (size_t)s->offsets[s->n_vocab]);
  for (int byte = 0; byte < 256; byte++) {
    l->byte_text[byte][0] = (uint8_t)byte;
    l->byte_names[byte] = (name){l->byte_text[byte], 1};
  }
  for (int64_t id = 0; !status && id < s->n_vocab; id++) {
    status = set_type(l, id, s->types ? s->types[id] : LLM_TOKEN_NORMAL);
    size_t n_bytes = (size_t)(t->offsets[id + 1] - t->offsets[id]);
    if (!status) status = set_name(l, id, (name){t->text + t->offsets[id], n_bytes});
  }
  if (!status) status = begin_merges(l, s->pre, strlen(s->pre), (uint64_t)s->n_merges);
  for (int64_t m = 0; !status && m < s->n_merges; m++)
    status = add_merge(l, (uint64_t)m, s->merges[2 * m], s->merges[2 * m + 1]);
  return status;
}

llm_status llm_tokenizer_new_bpe(llm_tokenizer **out, const llm_bpe_spec *spec, llm_error *err) {
  return load(out, "llm_bpe_spec", LLM_ERR_ARG, fill_from_spec, spec, err);
}

/* ---- from a file ---- */

/* GPT-2's alphabet: the printable bytes of Latin-1 stand for themselves, the other 68 in rising
 * order for U+0100 and up. */
enum { N_ALPHABET = 256 + 68 };

static int is_printable(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
}

/* byte_of[code point] is the byte, -1 where the alphabet has none. */
static void fill_alphabet(loader *l, int16_t byte_of[N_ALPHABET]) {
  for (int i = 0; i < N_ALPHABET; i++) byte_of[i] = -1;
  for (int byte = 0, n_others = 0; byte < 256; byte++) {
    int code_point = is_printable(byte) ? byte : 256 + n_others++;
    byte_of[code_point] = (int16_t)byte;
    uint8_t *text = l->byte_text[byte];
    int is_ascii = code_point < 0x80;
    text[0] = (uint8_t)(is_ascii ? code_point : 0xc0 | code_point >> 6);
    text[1] = (uint8_t)(0x80 | (code_point & 0x3f));
    l->byte_names[byte] = (name){text, is_ascii ? 1 : 2};
  }
}

/* The bytes that a token stands for; dst holds spelling.n_bytes. Special tokens are spelled
 * plainly, and so is a token with a character outside the alphabet, as Hugging Face's decoder has
 * it. */
static size_t decode_spelling(name spelling, int type, const int16_t *byte_of, uint8_t *dst) {
  size_t n = 0, pos = 0;
  int is_plain = type != LLM_TOKEN_NORMAL && type != LLM_TOKEN_BYTE;
  while (!is_plain && pos < spelling.n_bytes) {
    uint32_t code_point;
    pos += utf8_decode(spelling.bytes + pos, spelling.n_bytes - pos, &code_point);
    is_plain = code_point >= N_ALPHABET || byte_of[code_point] < 0;
    if (!is_plain) dst[n++] = (uint8_t)byte_of[code_point];
  }
  if (!is_plain) return n;
  memcpy(dst, spelling.bytes, spelling.n_bytes);
  return spelling.n_bytes;
}

typedef struct file_arrays {
  const llm_meta *tokens, *merges, *types;
} file_arrays;

static llm_status get_arrays(const loader *l, const gguf *g, file_arrays *a) {
  const llm_meta *scores = NULL;
  gguf_string model = {"", 0};
  llm_status status = gguf_get_string(g, "tokenizer.ggml.model", 1, &model, l->err);
  if (!status && !gguf_string_is(model, "gpt2"))
    return error_set(l->err, LLM_ERR_UNSUPPORTED,
                     "%s: unsupported tokenizer model \"%.*s\"; this program has gpt2", l->where,
                     gguf_quoted(model.n_bytes), model.data);
  const struct {
    const char *key;
    int required, element_type;
    const llm_meta **out;
  } wanted[] = {{"tokenizer.ggml.tokens", 1, GGUF_STRING, &a->tokens},
                {"tokenizer.ggml.merges", 1, GGUF_STRING, &a->merges},
                {"tokenizer.ggml.token_type", 0, GGUF_INT32, &a->types},
                {"tokenizer.ggml.scores", 0, GGUF_FLOAT32, &scores}};
  for (size_t i = 0; !status && i < sizeof wanted / sizeof *wanted; i++)
    status = gguf_get_array(g, wanted[i].key, wanted[i].required, wanted[i].element_type,
                            wanted[i].out, l->err);
  if (status) return status;

  uint64_t n = a->tokens->n_elements;
  if (n < 1 || n > INT32_MAX)
    return error_set(l->err, l->bad, "%s: %" PRIu64 " tokens, expected 1 to %d", l->where, n,
                     INT32_MAX);
  const llm_meta *parallel[] = {a->types, scores};
  for (int i = 0; i < 2; i++)
    if (parallel[i] && parallel[i]->n_elements != n)
      return error_set(l->err, l->bad, "%s: key %s has %" PRIu64 " elements for %" PRIu64 " tokens",
                       l->where, parallel[i]->key, parallel[i]->n_elements, n);
  return LLM_OK;
}

static llm_status read_tokens(loader *l, const file_arrays *a) {
  llm_status status = loader_init(l, (int64_t)a->tokens->n_elements, a->tokens->n_bytes);
  if (status) return status;
  int16_t byte_of[N_ALPHABET];
  fill_alphabet(l, byte_of);
  llm_tokenizer *t = l->t;
  const char *cursor = a->tokens->data;
  for (int64_t id = 0; !status && id < t->n_vocab; id++) {
    gguf_string s = gguf_next_string(&cursor);
    name spelling = {(const uint8_t *)s.data, s.n_bytes};
    int32_t type = LLM_TOKEN_NORMAL;
    if (a->types) memcpy(&type, (const char *)a->types->data + 4 * id, 4); /* may be unaligned */
    status = set_type(l, id, type);
    if (!status) status = set_name(l, id, spelling);
    uint64_t at = t->offsets[id];
    t->offsets[id + 1] = at + decode_spelling(spelling, type, byte_of, t->text + at);
  }
  return status;
}

static llm_status read_merges(loader *l, const gguf *g, const llm_meta *merges) {
  gguf_string pre = {"", 0};
  llm_status status = gguf_get_string(g, "tokenizer.ggml.pre", 1, &pre, l->err);
  if (!status) status = begin_merges(l, pre.data, pre.n_bytes, merges->n_elements);
  const char *cursor = merges->data;
  for (uint64_t m = 0; !status && m < merges->n_elements; m++) {
    gguf_string s = gguf_next_string(&cursor);
    const char *space = s.n_bytes ? memchr(s.data, ' ', s.n_bytes) : NULL;
    if (!space)
      return error_set(l->err, l->bad,
                       "%s: merge %" PRIu64 " is \"%.*s\", expected two tokens and a space between",
                       l->where, m, gguf_quoted(s.n_bytes), s.data);
    name halves[2] = {{(const uint8_t *)s.data, (size_t)(space - s.data)},
                      {(const uint8_t *)space + 1, s.n_bytes - (size_t)(space - s.data) - 1}};
    int32_t ids[2];
    for (int i = 0; i < 2; i++) {
      ids[i] = name_find(l, halves[i]);
      if (ids[i] < 0)
        return error_set(l->err, l->bad, "%s: merge %" PRIu64 " names \"%.*s\", which is no token",
                         l->where, m, gguf_quoted(halves[i].n_bytes),
                         (const char *)halves[i].bytes);
    }
    status = add_merge(l, m, ids[0], ids[1]);
  }
  return status;
}

/* Absent ids stay "none": no default is assumed. */
static llm_status read_special_ids(loader *l, const gguf *g) {
  static const char *const keys[] = {
      "tokenizer.ggml.bos_token_id",     "tokenizer.ggml.eos_token_id",
      "tokenizer.ggml.eot_token_id",     "tokenizer.ggml.eom_token_id",
      "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.padding_token_id"};
  enum { BOS, EOS, EOT, EOM, N_IDS = sizeof keys / sizeof *keys };
  llm_tokenizer *t = l->t;
  int64_t ids[N_IDS];
  llm_status status = LLM_OK;
  for (int i = 0; !status && i < N_IDS; i++) {
    ids[i] = -1;
    status = gguf_get_int(g, keys[i], 0, 0, t->n_vocab - 1, &ids[i], l->err);
  }
  if (!status) status = gguf_get_bool(g, "tokenizer.ggml.add_bos_token", 0, &t->add_bos, l->err);
  if (status) return status;
  t->bos = (int32_t)ids[BOS];
  t->eos = (int32_t)ids[EOS];
  for (int i = EOS; i <= EOM; i++) add_eog(t, ids[i]);
  if (t->add_bos && t->bos < 0)
    return error_set(l->err, l->bad,
                     "%s: key tokenizer.ggml.add_bos_token is true, but %s is missing", l->where,
                     keys[BOS]);
  return LLM_OK;
}

static llm_status fill_from_gguf(loader *l, const void *source) {
  const gguf *g = source;
  file_arrays arrays = {0};
  llm_status status = get_arrays(l, g, &arrays);
  if (!status) status = read_tokens(l, &arrays);
  if (!status) status = read_merges(l, g, arrays.merges);
  if (!status) status = read_special_ids(l, g);
  return status;
}

llm_status tokenizer_from_gguf(llm_tokenizer **out, const gguf *g, llm_error *err) {
  return load(out, gguf_where(g), LLM_ERR_FORMAT, fill_from_gguf, g, err);
}
