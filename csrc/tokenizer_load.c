/* tokenizer_load.c: building a tokenizer from the keys of a parameter file: what both kinds share.
 * Layer 2; depends on gguf, tokenizer_parts. Tokens are joined by name, the spelling that the
 * source gives them, in one hash table: 49,152 tokens load in a few milliseconds. */
#include "tokenizer_load.h"

#include "tokenizer.h"

/* ---- tokens ---- */

llm_status loader_init(loader *l, int64_t n_vocab, uint64_t text_bytes) {
  llm_tokenizer *t = l->t;
  t->n_vocab = n_vocab;
  size_t n = (size_t)n_vocab;
  t->text = malloc((size_t)text_bytes + TEXT_SLACK);
  t->offsets = calloc(n + 1, sizeof *t->offsets);
  t->types = malloc(n);
  l->names = malloc(n * sizeof *l->names);
  if (!t->text || !t->offsets || !t->types || !l->names)
    return error_nomem(l->err, text_bytes + n * (sizeof *t->offsets + sizeof *l->names),
                       "a vocabulary");
  return token_table_init(&l->by_name, n, l->err);
}

llm_status loader_set_type(loader *l, int64_t id, int32_t type) {
  if (type < LLM_TOKEN_NORMAL || type > LLM_TOKEN_BYTE)
    return error_set(l->err, l->bad,
                     "%s: the type of token %" PRId64 " is %" PRId32 ", expected %d to %d",
                     l->where, id, type, LLM_TOKEN_NORMAL, LLM_TOKEN_BYTE);
  l->t->types[id] = (uint8_t)type;
  return LLM_OK;
}

llm_status loader_set_name(loader *l, int64_t id, name key) {
  if (key.n_bytes > MAX_TOKEN_BYTES)
    return error_set(l->err, l->bad, "%s: token %" PRId64 " has %zu bytes, expected at most %d",
                     l->where, id, key.n_bytes, MAX_TOKEN_BYTES);
  l->names[id] = key;
  return LLM_OK;
}

enum { AHEAD = 16 }; /* names whose places in a table are asked for before they are looked at */

llm_status loader_index_names(loader *l) {
  const int64_t n = l->t->n_vocab;
  for (int64_t id = 0; id < n; id++) {
    const name key = l->names[id];
    if (id + AHEAD < n) token_table_prefetch(&l->by_name, l->names[id + AHEAD]);
    token_slot *slot = token_table_slot(&l->by_name, key);
    if (slot->id_plus_1)
      return error_set(l->err, l->bad, "%s: tokens %" PRId32 " and %" PRId64 " are both \"%.*s\"",
                       l->where, slot->id_plus_1 - 1, id, gguf_quoted(key.n_bytes),
                       (const char *)key.bytes);
    token_slot_set(slot, key, (int32_t)id);
  }
  return LLM_OK;
}

/* ---- turn markers ---- */

/* Spellings that begin or end a turn in the chat formats of published models. Files that call them
 * user-defined or normal tokens exist; here they are control tokens whatever the file says, so that
 * the text of a user cannot become one (llama.cpp does the same with those that end a turn). */
static const struct {
  char text[20];
  uint8_t ends_generation;
} markers[] = {
    {"<|im_start|>", 0},      {"<|im_end|>", 1},
    {"<|endoftext|>", 1},     {"<|begin_of_text|>", 0},
    {"<|end_of_text|>", 1},   {"<|start_header_id|>", 0},
    {"<|end_header_id|>", 0}, {"<|eot_id|>", 1},
    {"<|eom_id|>", 1},        {"<start_of_turn>", 0},
    {"<end_of_turn>", 1},     {"<|system|>", 0},
    {"<|user|>", 0},          {"<|assistant|>", 0},
    {"<|end|>", 1},           {"<|start_of_role|>", 0},
    {"<|end_of_role|>", 0},   {"<end_of_utterance>", 1},
    {"<|fim_prefix|>", 0},    {"<|fim_middle|>", 0},
    {"<|fim_suffix|>", 0},    {"[INST]", 0},
    {"[/INST]", 0},           {"[SYSTEM_PROMPT]", 0},
    {"[/SYSTEM_PROMPT]", 0},  {"<|endofprompt|>", 0},
};
enum { N_MARKERS = sizeof markers / sizeof *markers };

void loader_mark_control(loader *l) {
  for (size_t i = 0; i < N_MARKERS; i++) {
    int32_t id = loader_find(l, markers[i].text);
    if (id >= 0) l->t->types[id] = LLM_TOKEN_CONTROL;
  }
}

static void add_eog(llm_tokenizer *t, int64_t id) {
  if (id >= 0 && !llm_tokenizer_is_eog(t, (int32_t)id)) t->eog[t->n_eog++] = (int32_t)id;
}

/* What ends a turn whatever the keys say. "</s>" is also an HTML tag (of Gemma, for one). */
static void add_named_eog(loader *l) {
  for (size_t i = 0; i < N_MARKERS; i++)
    if (markers[i].ends_generation) add_eog(l->t, loader_find(l, markers[i].text));
  int32_t id = loader_find(l, "</s>");
  if (id >= 0 && l->t->types[id] == LLM_TOKEN_CONTROL) add_eog(l->t, id);
}

/* ---- reading ---- */

llm_status loader_read_tokens(loader *l, const file_arrays *a, spelling_decoder decode,
                              void *user) {
  llm_status status = loader_init(l, (int64_t)a->tokens->n_elements, a->tokens->n_bytes);
  if (status) return status;
  llm_tokenizer *t = l->t;
  const char *cursor = a->tokens->data;
  for (int64_t id = 0; !status && id < t->n_vocab; id++) {
    gguf_string s = gguf_next_string(&cursor);
    name spelling = {(const uint8_t *)s.data, s.n_bytes};
    int32_t type = LLM_TOKEN_NORMAL;
    size_t n_bytes = 0;
    if (a->types) memcpy(&type, (const char *)a->types->data + 4 * id, 4); /* may be unaligned */
    status = loader_set_type(l, id, type);
    if (!status) status = loader_set_name(l, id, spelling);
    uint64_t at = t->offsets[id];
    if (!status) status = decode(l, id, spelling, type, t->text + at, &n_bytes, user);
    t->offsets[id + 1] = at + n_bytes;
  }
  if (!status) status = loader_index_names(l);
  if (!status) loader_mark_control(l);
  return status;
}

/* ---- by bytes ---- */

llm_status loader_index_bytes(loader *l) {
  llm_tokenizer *t = l->t;
  llm_status status = token_table_init(&t->by_bytes, (size_t)t->n_vocab, l->err);
  for (int64_t id = 0; !status && id < t->n_vocab; id++) {
    if (id + AHEAD < t->n_vocab) token_table_prefetch(&t->by_bytes, token_bytes(t, id + AHEAD));
    token_slot *slot = token_table_slot(&t->by_bytes, token_bytes(t, id));
    int32_t other = slot->id_plus_1 - 1;
    if (other < 0 || token_is_preferred(t, id, other))
      token_slot_set(slot, token_bytes(t, id), (int32_t)id);
  }
  return status;
}

/* ---- what every source begins and ends with ---- */

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

llm_status loader_run(llm_tokenizer **out, const char *where, llm_status bad, loader_fill fill,
                      const void *source, llm_error *err) {
  *out = NULL;
  llm_status status = error_clear(err);
  llm_tokenizer *t = calloc(1, sizeof *t);
  if (!t) return error_nomem(err, sizeof *t, "a tokenizer");
  t->bos = t->eos = t->unknown = -1;
  loader l = {.t = t, .where = where, .bad = bad, .err = err};
  status = fill(&l, source);
  if (!status) status = check_special_lengths(&l);
  if (!status) status = special_sets_init(t, err);
  if (!status) add_named_eog(&l);
  free(l.names);
  token_table_free(&l.by_name);
  if (status)
    llm_tokenizer_free(t);
  else
    *out = t;
  return status;
}

/* ---- from a file ---- */

static llm_status get_arrays(const loader *l, const gguf *g, file_arrays *a) {
  const struct {
    const char *key;
    int required, element_type;
    const llm_meta **out;
  } wanted[] = {{"tokenizer.ggml.tokens", 1, GGUF_STRING, &a->tokens},
                {"tokenizer.ggml.merges", 0, GGUF_STRING, &a->merges},
                {"tokenizer.ggml.token_type", 0, GGUF_INT32, &a->types},
                {"tokenizer.ggml.scores", 0, GGUF_FLOAT32, &a->scores}};
  llm_status status = LLM_OK;
  for (size_t i = 0; !status && i < sizeof wanted / sizeof *wanted; i++)
    status = gguf_get_array(g, wanted[i].key, wanted[i].required, wanted[i].element_type,
                            wanted[i].out, l->err);
  if (status) return status;

  uint64_t n = a->tokens->n_elements;
  if (n < 1 || n > INT32_MAX)
    return error_set(l->err, l->bad, "%s: %" PRIu64 " tokens, expected 1 to %d", l->where, n,
                     INT32_MAX);
  const llm_meta *parallel[] = {a->types, a->scores};
  for (int i = 0; i < 2; i++)
    if (parallel[i] && parallel[i]->n_elements != n)
      return error_set(l->err, l->bad, "%s: key %s has %" PRIu64 " elements for %" PRIu64 " tokens",
                       l->where, parallel[i]->key, parallel[i]->n_elements, n);
  return LLM_OK;
}

/* Absent ids stay "none": no default is assumed. */
static llm_status read_special_ids(loader *l, const gguf *g) {
  static const char *const keys[] = {
      "tokenizer.ggml.bos_token_id",     "tokenizer.ggml.eos_token_id",
      "tokenizer.ggml.eot_token_id",     "tokenizer.ggml.eom_token_id",
      "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.padding_token_id"};
  enum { BOS, EOS, EOT, EOM, N_IDS = sizeof keys / sizeof *keys };
  _Static_assert(N_MARKERS + 4 <= MAX_EOG, "room for what ends a turn");
  llm_tokenizer *t = l->t;
  int64_t ids[N_IDS];
  llm_status status = LLM_OK;
  for (int i = 0; !status && i < N_IDS; i++) {
    ids[i] = -1;
    status = gguf_get_int(g, keys[i], 0, 0, t->n_vocab - 1, &ids[i], l->err);
  }
  if (status) return status;
  t->bos = (int32_t)ids[BOS];
  t->eos = (int32_t)ids[EOS];
  for (int i = EOS; i <= EOM; i++) add_eog(t, ids[i]);

  t->add_bos = l->default_add_bos && t->bos >= 0;
  const struct {
    const char *key, *id_key;
    int32_t *out, id;
  } adds[] = {{"tokenizer.ggml.add_bos_token", keys[BOS], &t->add_bos, t->bos},
              {"tokenizer.ggml.add_eos_token", keys[EOS], &t->add_eos, t->eos}};
  for (int i = 0; !status && i < 2; i++) {
    status = gguf_get_bool(g, adds[i].key, 0, adds[i].out, l->err);
    if (!status && *adds[i].out && adds[i].id < 0)
      return error_set(l->err, l->bad, "%s: key %s is true, but %s is missing", l->where,
                       adds[i].key, adds[i].id_key);
  }
  return status;
}

static llm_status fill_from_gguf(loader *l, const void *source) {
  const gguf *g = source;
  static const struct {
    const char *model;
    llm_status (*fill)(loader *l, const gguf *g, const file_arrays *a);
  } kinds[] = {{"gpt2", loader_fill_bpe}, {"llama", loader_fill_spm}};
  gguf_string model = {"", 0};
  file_arrays arrays = {0};
  llm_status status = gguf_get_string(g, "tokenizer.ggml.model", 1, &model, l->err);
  if (status) return status;
  size_t kind = 0, n_kinds = sizeof kinds / sizeof *kinds;
  while (kind < n_kinds && !gguf_string_is(model, kinds[kind].model)) kind++;
  if (kind == n_kinds)
    return error_set(l->err, LLM_ERR_UNSUPPORTED,
                     "%s: unsupported tokenizer model \"%.*s\"; this program has gpt2, llama",
                     l->where, gguf_quoted(model.n_bytes), model.data);
  status = get_arrays(l, g, &arrays);
  if (!status) status = kinds[kind].fill(l, g, &arrays);
  if (!status) status = read_special_ids(l, g);
  return status;
}

llm_status tokenizer_from_gguf(llm_tokenizer **out, const gguf *g, llm_error *err) {
  return loader_run(out, gguf_where(g), LLM_ERR_FORMAT, fill_from_gguf, g, err);
}
