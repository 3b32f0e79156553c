/* tokenizer_spm.c: SentencePiece's BPE. Layer 2. Of all neighbours that make a token the pair with
 * the highest score merges first, the leftmost among equals, until no pair makes one; what is no
 * token then is spelled in byte tokens (Kudo and Richardson 2018; sentencepiece's bpe_model.cc).
 * Text is cut before the first space of a run where no token has that space after that byte: the
 * result is the same, and words seen before come from a cache. */
#include "tokenizer_spm.h"

#include "tokenizer_heap.h"
#include "unicode.h"

enum { SHORT_WORD = 32 /* bytes up to which the stack holds what merging needs */ };

struct spm {
  spm_vocabulary v;
  size_t max_bytes;           /* of the longest token that text can become */
  uint8_t joins_space[256];   /* 1: some such token has a space after this byte */
  struct replacement *unused; /* (n_vocab): what becomes of an UNUSED token; NULL: there are none */
  int32_t *instead;
};

struct replacement { /* instead[begin .. begin + n); n 0: nothing, it is unknown text */
  uint32_t begin, n;
};

/* ---- tokens ---- */

/* Only these come from plain text by merging. */
static int is_mergeable(const spm *s, int32_t id) {
  int type = s->v.types[id];
  return type == LLM_TOKEN_NORMAL || type == LLM_TOKEN_USER_DEFINED || type == LLM_TOKEN_UNUSED;
}

static size_t token_bytes(const spm *s, int64_t id) {
  return (size_t)(s->v.offsets[id + 1] - s->v.offsets[id]);
}

/* -1: the bytes are no token, or one that text must not become. */
static int32_t find(const spm *s, const uint8_t *bytes, size_t n) {
  if (n > s->max_bytes) return -1;
  int32_t id = token_table_find(s->v.by_bytes, (name){bytes, n});
  return id >= 0 && is_mergeable(s, id) ? id : -1;
}

/* Higher scores are lower ranks. */
static uint32_t rank_of(const spm *s, int32_t id) {
  float score = s->v.scores[id] + 0.0f; /* no negative zero */
  uint32_t bits;
  memcpy(&bits, &score, sizeof bits);
  uint32_t rising = bits >> 31 ? ~bits : bits | 0x80000000u;
  return ~rising;
}

/* ---- merging one word ---- */

#define NONE UINT32_MAX

typedef struct symbol { /* a linked list over the characters; NONE ends it */
  uint32_t begin, n_bytes, prev, next;
  int32_t id, product; /* product: of the merge with the next symbol; -1: none */
} symbol;

typedef struct word {
  const spm *s;
  const uint8_t *text;
  int32_t banned; /* the one token that is not made; -1 */
  symbol *symbols;
  merge_heap heap; /* what went stale is skipped on its turn */
} word;

/* Notes the merge of symbol i with the one after it. */
static void consider(word *w, uint32_t i) {
  symbol *a = &w->symbols[i];
  a->product = -1;
  if (a->next == NONE) return;
  int32_t id = find(w->s, w->text + a->begin, (size_t)a->n_bytes + w->symbols[a->next].n_bytes);
  if (id < 0 || id == w->banned) return;
  a->product = id;
  heap_push(&w->heap, (uint64_t)rank_of(w->s, id) << 32 | i);
}

static void merge_at(word *w, uint32_t i) {
  symbol *a = &w->symbols[i], *gone = &w->symbols[a->next];
  a->id = a->product;
  a->n_bytes += gone->n_bytes;
  a->next = gone->next;
  gone->product = -1;
  if (a->next != NONE) w->symbols[a->next].prev = i;
  consider(w, i);
  if (a->prev != NONE) consider(w, a->prev);
}

/* Every merge takes one symbol away and adds at most two candidates for the one it used up. */
enum { BYTES_EACH = 2 * sizeof(uint64_t) + sizeof(symbol) };

/* Merges the n_bytes >= 1 of w->text; `memory` holds n_bytes times BYTES_EACH. The result is the
 * list from symbol 0 on. */
static void merge_word(word *w, size_t n_bytes, void *memory) {
  w->heap = (merge_heap){memory, 0};
  w->symbols = (symbol *)((uint64_t *)memory + 2 * n_bytes);
  uint32_t n = 0, code_point;
  for (size_t pos = 0, length; pos < n_bytes; pos += length, n++) {
    length = utf8_decode(w->text + pos, n_bytes - pos, &code_point);
    w->symbols[n] = (symbol){(uint32_t)pos, (uint32_t)length, n - 1, n + 1, -1, -1};
    w->symbols[n].id = find(w->s, w->text + pos, length);
  }
  w->symbols[n - 1].next = NONE;
  for (uint32_t i = 0; i < n; i++) consider(w, i);
  while (w->heap.n) {
    uint64_t key = heap_pop(&w->heap);
    const symbol *a = &w->symbols[(uint32_t)key];
    if (a->product >= 0 && rank_of(w->s, a->product) == key >> 32) merge_at(w, (uint32_t)key);
  }
}

/* ---- from symbols to ids ---- */

typedef struct emitter {
  const spm *s;
  id_sink *out;
  int after_unknown; /* a run of unknown characters is one unknown token */
} emitter;

static void emit(emitter *e, int32_t id) {
  int is_unknown = id == e->s->v.unknown;
  if (id >= 0 && !(is_unknown && e->after_unknown)) id_sink_put(e->out, id);
  e->after_unknown = is_unknown;
}

static void emit_symbol(emitter *e, const word *w, const symbol *a) {
  const spm *s = e->s;
  if (a->id >= 0 && s->v.types[a->id] != LLM_TOKEN_UNUSED) {
    emit(e, a->id);
  } else if (a->id >= 0 && s->unused[a->id].n) {
    const struct replacement *r = &s->unused[a->id];
    for (uint32_t i = 0; i < r->n; i++) emit(e, s->instead[r->begin + i]);
  } else if (s->v.byte_token[0] >= 0) {
    for (uint32_t i = 0; i < a->n_bytes; i++) emit(e, s->v.byte_token[w->text[a->begin + i]]);
  } else {
    emit(e, s->v.unknown);
  }
}

static llm_status encode_word(emitter *e, const uint8_t *text, size_t n_bytes, llm_error *err) {
  uint64_t on_stack[SHORT_WORD * BYTES_EACH / sizeof(uint64_t)];
  void *memory = on_stack;
  if (n_bytes >= NONE)
    return error_set(err, LLM_ERR_ARG, "one word has %zu bytes, expected less than %u", n_bytes,
                     NONE);
  if (n_bytes > SHORT_WORD && !(memory = malloc(n_bytes * BYTES_EACH)))
    return error_nomem(err, (uint64_t)n_bytes * BYTES_EACH, "merging one long word");
  word w = {.s = e->s, .text = text, .banned = -1};
  merge_word(&w, n_bytes, memory);
  for (uint32_t i = 0; i != NONE; i = w.symbols[i].next) emit_symbol(e, &w, &w.symbols[i]);
  if (memory != on_stack) free(memory);
  return LLM_OK;
}

/* ---- a text ---- */

/* The end of a run of spaces and what follows up to the next space that begins a word. */
static size_t word_end(const spm *s, const uint8_t *text, size_t n, size_t pos) {
  while (pos < n && text[pos] == ' ') pos++;
  while (pos < n) {
    const uint8_t *space = memchr(text + pos, ' ', n - pos);
    if (!space) return n;
    pos = (size_t)(space - text);
    if (!s->joins_space[text[pos - 1]]) return pos;
    while (pos < n && text[pos] == ' ') pos++;
  }
  return n;
}

static llm_status encode_cached(emitter *e, const uint8_t *text, size_t n_bytes,
                                const piece_cache *cache, llm_error *err) {
  int hit;
  cached *entry = cache_entry(cache, text, n_bytes, &hit);
  if (!entry) return encode_word(e, text, n_bytes, err);
  if (!hit) {
    int32_t ids[CACHED_BYTES]; /* no id spells less than a byte */
    id_sink sink = {ids, CACHED_BYTES, 0};
    emitter alone = {e->s, &sink, 0};
    llm_status status = encode_word(&alone, text, n_bytes, err);
    if (status) return status;
    for (size_t i = 0; i < sink.n; i++) emit(e, ids[i]);
    cache_fill(entry, n_bytes, ids, sink.n);
    return LLM_OK;
  }
  for (size_t i = 0; i < entry->n_ids; i++) emit(e, entry->ids[i]);
  return LLM_OK;
}

llm_status spm_encode(const spm *s, const uint8_t *text, size_t n_bytes, const piece_cache *cache,
                      id_sink *out, llm_error *err) {
  llm_status status = LLM_OK;
  emitter e = {s, out, 0};
  for (size_t pos = 0; pos < n_bytes && !status;) {
    size_t end = word_end(s, text, n_bytes, pos);
    status = encode_cached(&e, text + pos, end - pos, cache, err);
    pos = end;
  }
  return status;
}

/* ---- construction ---- */

static void measure_tokens(spm *s) {
  for (int32_t id = 0; id < s->v.n_vocab; id++) {
    if (!is_mergeable(s, id)) continue;
    size_t n = token_bytes(s, id);
    const uint8_t *bytes = s->v.text + s->v.offsets[id];
    if (n > s->max_bytes) s->max_bytes = n;
    for (size_t i = 1; i < n; i++)
      if (bytes[i] == ' ') s->joins_space[bytes[i - 1]] = 1;
  }
}

/* An UNUSED token is put together like any other, so that longer ones can be made of it, but what
 * stays one at the end is taken apart into the two it was made of, and these the same way. */
static llm_status replace_unused(spm *s, llm_error *err) {
  size_t n = 0, n_bytes = 0;
  for (int32_t id = 0; id < s->v.n_vocab; id++) {
    if (s->v.types[id] != LLM_TOKEN_UNUSED) continue;
    n++;
    n_bytes += token_bytes(s, id);
  }
  if (n == 0) return LLM_OK;
  if (n_bytes >= NONE) return error_set(err, LLM_ERR_FORMAT, "unused tokens of %zu bytes", n_bytes);
  sized_token *order = malloc(n * sizeof *order);
  void *memory = malloc((s->max_bytes + 1) * BYTES_EACH);
  s->unused = calloc((size_t)s->v.n_vocab, sizeof *s->unused);
  s->instead = malloc((n_bytes + 1) * sizeof *s->instead);
  int has_memory = order && memory && s->unused && s->instead;
  if (has_memory) {
    size_t k = 0;
    for (int32_t id = 0; id < s->v.n_vocab; id++)
      if (s->v.types[id] == LLM_TOKEN_UNUSED)
        order[k++] = (sized_token){(uint32_t)token_bytes(s, id), id};
    qsort(order, n, sizeof *order, sized_token_compare); /* parts are shorter: they come first */
  }
  id_sink sink = {s->instead, n_bytes, 0};
  for (size_t i = 0; has_memory && i < n; i++) {
    if (order[i].n_bytes == 0) continue;
    word w = {.s = s, .text = s->v.text + s->v.offsets[order[i].id], .banned = order[i].id};
    merge_word(&w, order[i].n_bytes, memory);
    uint32_t second = w.symbols[0].next;
    if (second == NONE || w.symbols[second].next != NONE) continue; /* one character, or stuck */
    emitter e = {s, &sink, 0};
    uint32_t begin = (uint32_t)sink.n;
    emit_symbol(&e, &w, &w.symbols[0]);
    emit_symbol(&e, &w, &w.symbols[second]);
    s->unused[order[i].id] = (struct replacement){begin, (uint32_t)sink.n - begin};
  }
  free(order);
  free(memory);
  return has_memory ? LLM_OK : error_nomem(err, n_bytes * BYTES_EACH, "unused tokens");
}

llm_status spm_new(spm **out, const spm_vocabulary *vocabulary, llm_error *err) {
  spm *s = *out = calloc(1, sizeof *s);
  if (!s) {
    free(vocabulary->scores);
    return error_nomem(err, sizeof *s, "a tokenizer");
  }
  s->v = *vocabulary;
  measure_tokens(s);
  llm_status status = replace_unused(s, err);
  if (!status) return LLM_OK;
  spm_free(s);
  *out = NULL;
  return status;
}

void spm_free(spm *s) {
  if (!s) return;
  free(s->v.scores);
  free(s->unused);
  free(s->instead);
  free(s);
}
