/* tokenizer_load_bpe.c: building a byte-level BPE from a parameter file or an llm_bpe_spec. Layer
 * 2; depends on tokenizer_load, tokenizer_bpe. In a file tokens and merges are spelled in GPT-2's
 * byte-to-unicode alphabet, in a spec they are raw bytes and ids. */
#include "tokenizer_load.h"
#include "unicode.h"

typedef struct bpe_loader {
  loader *l;
  uint8_t byte_text[256][2];
  name byte_names[256];            /* of the single bytes, in byte_text */
  uint8_t joined[MAX_TOKEN_BYTES]; /* the name that a merge makes */
  int32_t likely_product;          /* merges usually make the tokens in order */
} bpe_loader;

static llm_status bpe_loader_new(bpe_loader **out, loader *l) {
  bpe_loader *b = *out = calloc(1, sizeof *b);
  if (!b) return error_nomem(l->err, sizeof *b, "loading a tokenizer");
  b->l = l;
  return LLM_OK;
}

/* ---- merges ---- */

/* From now on a piece that is a token is that token at once. */
static llm_status take_whole(loader *l) {
  llm_status status = l->t->by_bytes.slots ? LLM_OK : loader_index_bytes(l);
  if (!status) bpe_take_whole(l->t->bpe, (whole_tokens){&l->t->by_bytes, l->t->types});
  return status;
}

static llm_status begin_merges(bpe_loader *b, const char *pre, size_t pre_bytes,
                               uint64_t n_merges) {
  loader *l = b->l;
  llm_tokenizer *t = l->t;
  const pretokenizer *found = pretokenizer_find(pre, pre_bytes);
  if (!found)
    return error_set(l->err, LLM_ERR_UNSUPPORTED,
                     "%s: unsupported pre-tokenizer \"%.*s\"; this program has %s", l->where,
                     gguf_quoted(pre_bytes), pre, pretokenizer_names());
  if (n_merges > INT32_MAX)
    return error_set(l->err, l->bad, "%s: %" PRIu64 " merges, expected at most %d", l->where,
                     n_merges, INT32_MAX);
  int32_t byte_token[256];
  for (int byte = 0; byte < 256; byte++) {
    int32_t id = token_table_find(&l->by_name, b->byte_names[byte]);
    byte_token[byte] = id >= 0 && token_type_is_hidden(t->types[id]) ? -1 : id;
    t->n_byte_tokens += byte_token[byte] >= 0;
  }
  llm_status status = bpe_new(&t->bpe, found, byte_token, (size_t)n_merges, l->err);
  if (!status && found->takes_whole) status = take_whole(l);
  l->default_add_bos = found->adds_bos;
  return status;
}

/* 1: the token is `first` and `second` together. */
static int is_joined(name token, name first, name second) {
  return token.n_bytes == first.n_bytes + second.n_bytes &&
         memcmp(token.bytes, first.bytes, first.n_bytes) == 0 &&
         memcmp(token.bytes + first.n_bytes, second.bytes, second.n_bytes) == 0;
}

static int32_t find_joined(bpe_loader *b, name first, name second) {
  name key = {b->joined, first.n_bytes + second.n_bytes};
  if (key.n_bytes > MAX_TOKEN_BYTES) return -1;
  memcpy(b->joined, first.bytes, first.n_bytes);
  memcpy(b->joined + first.n_bytes, second.bytes, second.n_bytes);
  return token_table_find(&b->l->by_name, key);
}

/* first and second: the names of left and right. */
static llm_status add_merge(bpe_loader *b, uint64_t index, int32_t left, int32_t right, name first,
                            name second) {
  const loader *l = b->l;
  const llm_tokenizer *t = l->t;
  int32_t product = b->likely_product;
  if (product >= t->n_vocab || !is_joined(l->names[product], first, second))
    product = find_joined(b, first, second);
  b->likely_product = product + 1;
  const char *fault = NULL;
  if (product < 0)
    fault = "makes no token of the vocabulary";
  else if (token_type_is_hidden(t->types[product]))
    fault = "makes a control token, which plain text must not become";
  else if (!bpe_add_merge(t->bpe, left, right, product, (int64_t)index))
    fault = "repeats an earlier merge";
  if (!fault) return LLM_OK;
  return error_set(l->err, l->bad, "%s: merge %" PRIu64 " of \"%.*s\" and \"%.*s\" %s", l->where,
                   index, gguf_quoted(first.n_bytes), (const char *)first.bytes,
                   gguf_quoted(second.n_bytes), (const char *)second.bytes, fault);
}

/* ---- ranks ---- */

/* Where ids are ranks, any neighbours that make a token merge, the lowest id first. What happens
 * inside the bytes of one token before it is made does not depend on what stands around it, so the
 * last two parts are always the same: one merge a token says all. It is found by merging the
 * token's bytes with the merges of shorter tokens. Tokens that end in more than two parts are never
 * made. */
static llm_status add_ranked_merges(loader *l) {
  llm_tokenizer *t = l->t;
  sized_token *order = malloc((size_t)t->n_vocab * sizeof *order);
  if (!order) return error_nomem(l->err, (size_t)t->n_vocab * sizeof *order, "ranks");
  size_t n = 0;
  for (int32_t id = 0; id < t->n_vocab; id++)
    if (t->types[id] == LLM_TOKEN_NORMAL && l->names[id].n_bytes > 1)
      order[n++] = (sized_token){(uint32_t)l->names[id].n_bytes, id};
  qsort(order, n, sizeof *order, sized_token_compare);

  llm_status status = LLM_OK;
  for (size_t i = 0; !status && i < n; i++) {
    name whole = l->names[order[i].id];
    int32_t parts[2];
    id_sink sink = {parts, 2, 0};
    status = bpe_merge_piece(t->bpe, whole.bytes, whole.n_bytes, &sink, l->err);
    if (status || sink.n != 2) continue;
    /* bytes that have no token were dropped */
    if (l->names[parts[0]].n_bytes + l->names[parts[1]].n_bytes != whole.n_bytes) continue;
    bpe_add_merge(t->bpe, parts[0], parts[1], order[i].id, order[i].id);
  }
  free(order);
  return status;
}

/* ---- from a spec ---- */

static llm_status check_spec(const loader *l, const llm_bpe_spec *s) {
  const char *fault = NULL;
  if (s->n_vocab < 1 || s->n_vocab > INT32_MAX)
    fault = "n_vocab is not 1 to 2^31 - 1";
  else if (s->n_merges < LLM_BPE_BY_RANK)
    fault = "n_merges is negative";
  else if (!s->pre || !s->offsets || (!s->merges && s->n_merges > 0))
    fault = "pre, offsets or merges is NULL";
  else if (s->offsets[0] != 0 || (!s->text && s->offsets[s->n_vocab]))
    fault = "the tokens do not begin at text[0]";
  for (int64_t i = 0; !fault && i < s->n_vocab; i++)
    if (s->offsets[i + 1] < s->offsets[i]) fault = "the offsets of the tokens fall";
  for (int64_t i = 0; !fault && i < 2 * s->n_merges; i++)
    if (s->merges[i] < 0 || s->merges[i] >= s->n_vocab) fault = "a merge names no token";
  return fault ? error_set(l->err, l->bad, "%s: %s", l->where, fault) : LLM_OK;
}

static llm_status read_spec_tokens(bpe_loader *b, const llm_bpe_spec *s) {
  loader *l = b->l;
  llm_status status = loader_init(l, s->n_vocab, s->offsets[s->n_vocab]);
  if (status) return status;
  llm_tokenizer *t = l->t;
  memcpy(t->offsets, s->offsets, ((size_t)s->n_vocab + 1) * sizeof *t->offsets);
  if (s->text) memcpy(t->text, s->text, (size_t)s->offsets[s->n_vocab]);
  for (int byte = 0; byte < 256; byte++) {
    b->byte_text[byte][0] = (uint8_t)byte;
    b->byte_names[byte] = (name){b->byte_text[byte], 1};
  }
  for (int64_t id = 0; !status && id < s->n_vocab; id++) {
    status = loader_set_type(l, id, s->types ? s->types[id] : LLM_TOKEN_NORMAL);
    size_t n_bytes = (size_t)(t->offsets[id + 1] - t->offsets[id]);
    if (!status) status = loader_set_name(l, id, (name){t->text + t->offsets[id], n_bytes});
  }
  if (!status) status = loader_index_names(l);
  if (!status) loader_mark_control(l);
  return status;
}

static llm_status fill_from_spec(loader *l, const void *source) {
  const llm_bpe_spec *s = source;
  bpe_loader *b = NULL;
  int by_rank = 0;
  llm_status status = check_spec(l, s);
  if (!status) status = bpe_loader_new(&b, l);
  if (!status) status = read_spec_tokens(b, s);
  if (!status) {
    by_rank = s->n_merges == LLM_BPE_BY_RANK;
    uint64_t n_merges = (uint64_t)(by_rank ? s->n_vocab : s->n_merges);
    status = begin_merges(b, s->pre, strlen(s->pre), n_merges);
  }
  for (int64_t m = 0; !status && m < s->n_merges; m++) {
    int32_t left = s->merges[2 * m], right = s->merges[2 * m + 1];
    status = add_merge(b, (uint64_t)m, left, right, l->names[left], l->names[right]);
  }
  if (!status && by_rank) status = add_ranked_merges(l);
  if (!status && by_rank) status = take_whole(l); /* as tiktoken does */
  free(b);
  return status;
}

llm_status llm_tokenizer_new_bpe(llm_tokenizer **out, const llm_bpe_spec *spec, llm_error *err) {
  return loader_run(out, "llm_bpe_spec", LLM_ERR_ARG, fill_from_spec, spec, err);
}

/* ---- from a file ---- */

/* GPT-2's alphabet: the printable bytes of Latin-1 stand for themselves, the other 68 in rising
 * order for U+0100 and up. */
enum { N_ALPHABET = 256 + 68 };

static int is_printable(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
}

/* byte_of[code point] is the byte, -1 where the alphabet has none. */
static void fill_alphabet(bpe_loader *b, int16_t byte_of[N_ALPHABET]) {
  for (int i = 0; i < N_ALPHABET; i++) byte_of[i] = -1;
  for (int byte = 0, n_others = 0; byte < 256; byte++) {
    int code_point = is_printable(byte) ? byte : 256 + n_others++;
    byte_of[code_point] = (int16_t)byte;
    uint8_t *text = b->byte_text[byte];
    int is_ascii = code_point < 0x80;
    text[0] = (uint8_t)(is_ascii ? code_point : 0xc0 | code_point >> 6);
    text[1] = (uint8_t)(0x80 | (code_point & 0x3f));
    b->byte_names[byte] = (name){text, is_ascii ? 1 : 2};
  }
}

/* Special tokens are spelled plainly, and so is a token with a character outside the alphabet, as
 * Hugging Face's decoder has it. user: byte_of */
static llm_status decode_spelling(loader *l, int64_t id, name spelling, int32_t type, uint8_t *dst,
                                  size_t *n_bytes, void *user) {
  (void)l, (void)id;
  const int16_t *byte_of = user;
  size_t n = 0, pos = 0;
  int is_plain = type != LLM_TOKEN_NORMAL && type != LLM_TOKEN_BYTE;
  while (!is_plain && pos < spelling.n_bytes) {
    uint32_t code_point = spelling.bytes[pos];
    pos += code_point < 0x80 /* most are */
               ? 1
               : utf8_decode(spelling.bytes + pos, spelling.n_bytes - pos, &code_point);
    is_plain = code_point >= N_ALPHABET || byte_of[code_point] < 0;
    if (!is_plain) dst[n++] = (uint8_t)byte_of[code_point];
  }
  if (is_plain) memcpy(dst, spelling.bytes, n = spelling.n_bytes);
  *n_bytes = n;
  return LLM_OK;
}

/* Merges of a file are read some at a time: what a step will look at in the tables is asked for by
 * the step before it, for all of them. */
enum { MERGE_BATCH = 16 };

typedef struct file_merge {
  name first, second;
  int32_t left, right;
} file_merge;

static llm_status read_merge(const bpe_loader *b, uint64_t index, const char **cursor,
                             file_merge *m) {
  gguf_string s = gguf_next_string(cursor);
  const char *space = s.n_bytes ? memchr(s.data, ' ', s.n_bytes) : NULL;
  if (!space)
    return error_set(b->l->err, b->l->bad,
                     "%s: merge %" PRIu64 " is \"%.*s\", expected two tokens and a space between",
                     b->l->where, index, gguf_quoted(s.n_bytes), s.data);
  m->first = (name){(const uint8_t *)s.data, (size_t)(space - s.data)};
  m->second = (name){(const uint8_t *)space + 1, s.n_bytes - m->first.n_bytes - 1};
  token_table_prefetch(&b->l->by_name, m->first);
  token_table_prefetch(&b->l->by_name, m->second);
  return LLM_OK;
}

static llm_status find_half(const bpe_loader *b, uint64_t index, name half, int32_t *id) {
  *id = token_table_find(&b->l->by_name, half);
  if (*id >= 0) return LLM_OK;
  return error_set(b->l->err, b->l->bad, "%s: merge %" PRIu64 " names \"%.*s\", which is no token",
                   b->l->where, index, gguf_quoted(half.n_bytes), (const char *)half.bytes);
}

static llm_status read_batch(bpe_loader *b, uint64_t from, size_t n, const char **cursor) {
  file_merge merges[MERGE_BATCH];
  llm_status status = LLM_OK;
  for (size_t i = 0; !status && i < n; i++) status = read_merge(b, from + i, cursor, &merges[i]);
  for (size_t i = 0; !status && i < n; i++) {
    file_merge *m = &merges[i];
    status = find_half(b, from + i, m->first, &m->left);
    if (!status) status = find_half(b, from + i, m->second, &m->right);
    if (!status) bpe_prefetch_merge(b->l->t->bpe, m->left, m->right);
  }
  for (size_t i = 0; !status && i < n; i++) {
    const file_merge *m = &merges[i];
    status = add_merge(b, from + i, m->left, m->right, m->first, m->second);
  }
  return status;
}

static llm_status read_merges(bpe_loader *b, const gguf *g, const llm_meta *merges) {
  const uint64_t n = merges->n_elements;
  gguf_string pre = {"", 0};
  llm_status status = gguf_get_string(g, "tokenizer.ggml.pre", 1, &pre, b->l->err);
  if (!status) status = begin_merges(b, pre.data, pre.n_bytes, n);
  const char *cursor = merges->data;
  for (uint64_t m = 0; !status && m < n; m += MERGE_BATCH)
    status = read_batch(b, m, n - m < MERGE_BATCH ? (size_t)(n - m) : MERGE_BATCH, &cursor);
  return status;
}

llm_status loader_fill_bpe(loader *l, const gguf *g, const file_arrays *a) {
  if (!a->merges)
    return error_set(l->err, l->bad, "%s: key tokenizer.ggml.merges is missing", l->where);
  bpe_loader *b = NULL;
  llm_status status = bpe_loader_new(&b, l);
  if (status) return status;
  int16_t byte_of[N_ALPHABET];
  fill_alphabet(b, byte_of);
  status = loader_read_tokens(l, a, decode_spelling, byte_of);
  if (!status) status = read_merges(b, g, a->merges);
  free(b);
  return status;
}
