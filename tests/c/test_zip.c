/* test_zip.c: symbols through a model and back, several blocks at once, their bytes beside a slow
 * encoder's; what decoding makes of damaged bytes: an error or other symbols, the same alone and
 * beside sound blocks. Symbols and coded bytes are allocations of their exact size, so that the
 * address sanitizer sees one step too far. The archive around the blocks is tested by test_zip.py.
 */
#include "coder.h"
#include "context.h"
#include "tiny_model.h"

enum { N_CTX = 600, MANY = 700, N_SHORT = 48 };

typedef struct settings {
  int64_t window, n_overlap, n_lanes;
  int n_threads;
  const char *kernels;
  llm_cancel_check cancel_check;
} settings;

static int n_asked; /* by the cancel check */

/* Not every second: a window's beginning may take two passes, which are repeated together. */
static int cancels_every_third(void *user) { return ++*(int *)user % 3 == 0; }

static llm_status make(llm_zip **out, const llm_model *model, settings s, llm_error *err) {
  llm_context_options o = llm_context_default_options();
  o.n_ctx = s.window;
  o.n_threads = s.n_threads;
  o.kernels = s.kernels;
  o.cancel_check = s.cancel_check;
  o.cancel_user = &n_asked;
  return llm_zip_new(out, model, &o, s.n_overlap, s.n_lanes, err);
}

static llm_zip *new_zip(const llm_model *model, settings s) {
  llm_zip *z;
  CHECK(!make(&z, model, s, NULL));
  return z;
}

/* ---- both ways ---- */

/* A token where the vocabulary has the byte, else the byte escaped. */
static void spell(const llm_model *model, const char *text, size_t n, int32_t *symbols) {
  for (size_t i = 0; i < n; i++) {
    int32_t id = llm_tokenizer_find(llm_model_tokenizer(model), text + i, 1);
    symbols[i] = id < 0 ? -1 - (unsigned char)text[i] : id;
  }
}

/* Goes on after every cancelled call. Returns the coded bytes. */
static uint8_t *encode(llm_zip *z, int32_t *symbols, size_t n, size_t *n_coded) {
  llm_zip_block b = {symbols, n, 0, malloc(8 * n + 8), 0, 8 * n + 8};
  llm_status status;
  size_t before;
  do {
    before = b.n_done;
    status = llm_zip_encode(z, &b, NULL);
  } while (status == LLM_ERR_CANCELLED || (!status && b.n_done < n && b.n_done > before));
  CHECK(!status && b.n_done == n && b.n_coded <= b.capacity);
  *n_coded = b.n_coded;
  return realloc(b.coded, b.n_coded);
}

static void put_escaped(encoder *e, const int32_t *symbols, size_t n, uint64_t total) {
  encoder_put(e, (interval){total - CODER_ESCAPE, CODER_ESCAPE, total});
  encoder_put(e, (interval){n - 1, 1, 256});
  for (size_t i = 0; i < n; i++) encoder_put(e, (interval){(uint64_t)(-1 - symbols[i]), 1, 256});
}

/* The same as ZIP.md has it, by one call of llm_context_eval for each token. */
static uint8_t *encode_slowly(const llm_model *model, settings s, const int32_t *symbols, size_t n,
                              size_t *n_coded) {
  llm_context_options o = {.n_ctx = s.window, .n_threads = 1, .kv_type = LLM_TYPE_F16};
  llm_context *c;
  CHECK(!llm_context_new(&c, model, &o, NULL));
  uint8_t *coded = malloc(8 * n + 8);
  encoder e = encoder_begin(coded, 8 * n + 8);
  int32_t held[N_CTX], next = TINY_EOS; /* there is no BOS */
  size_t window = (size_t)s.window, overlap = (size_t)s.n_overlap, n_held = 0;
  for (size_t at = 0, run; at < n;) {
    float logits[TINY_VOCAB];
    if (n_held == window) {
      memmove(held, held + window - overlap, overlap * sizeof *held);
      n_held = overlap;
      CHECK(!llm_context_truncate(c, 0, NULL));
      CHECK(!overlap || !llm_context_eval(c, held, overlap, NULL, 0, NULL));
    }
    held[n_held++] = next;
    CHECK(!llm_context_eval(c, &next, 1, logits, 1, NULL));
    float max = logits_max(logits, TINY_VOCAB);
    uint64_t total = logits_weight(logits, max, 0, TINY_VOCAB) + CODER_ESCAPE;
    for (; at < n && symbols[at] < 0; at += run) {
      for (run = 1; run < 256 && at + run < n && symbols[at + run] < 0; run++) {}
      put_escaped(&e, symbols + at, run, total);
    }
    if (at == n) break;
    next = symbols[at++];
    size_t id = (size_t)next;
    encoder_put(&e, (interval){logits_weight(logits, max, 0, id),
                               logits_weight(logits, max, id, id + 1), total});
  }
  encoder_end(&e);
  llm_context_free(c);
  *n_coded = e.n;
  return coded;
}

/* Until all are done; an error ends it but for a cancelled call. */
static llm_status decode(llm_zip *z, llm_zip_block *blocks, size_t n, llm_error *err) {
  llm_status status;
  size_t left = SIZE_MAX, before;
  do {
    before = left;
    status = llm_zip_decode(z, blocks, n, err);
    left = 0;
    for (size_t i = 0; i < n; i++) left += blocks[i].n_symbols - blocks[i].n_done;
  } while (status == LLM_ERR_CANCELLED || (!status && left && left < before));
  CHECK(status || !left);
  return status;
}

static llm_zip_block to_decode(const uint8_t *coded, size_t n_coded, size_t n_symbols) {
  llm_zip_block b = {
      malloc(n_symbols * sizeof(int32_t)), n_symbols, 0, malloc(n_coded), n_coded, 0};
  memcpy(b.coded, coded, n_coded);
  return b;
}

static void free_block(llm_zip_block *b) {
  free(b->symbols);
  free(b->coded);
}

typedef struct text {
  const char *bytes;
  size_t n;
} text;

static char all_bytes[256], long_run[MANY], long_text[MANY];
#define LITERAL(s)                                                                                 \
  { s, sizeof s - 1 }
static const text texts[] = {
    LITERAL(""),       LITERAL("x"),
    LITERAL("\xff"),   {long_run, MANY},
    {all_bytes, 256},  LITERAL("h\xc3\xa9\0h\xe6\xbc h\xed\xa0\x80"),
    {long_text, MANY}, LITERAL(" in and out "),
};
enum { N_TEXTS = sizeof texts / sizeof *texts };

static void fill_texts(void) {
  for (int i = 0; i < 256; i++) all_bytes[i] = (char)i;
  for (int i = 0; i < MANY; i++) long_run[i] = (char)(0x80 + i % 100); /* no token spells these */
  for (int i = 0; i < MANY; i++) long_text[i] = (char)('!' + i * i % 90);
}

/* Encoded as the settings say, decoded with other threads, kernels and lanes, several at once. */
static void check_round_trip(const llm_model *model, settings s) {
  llm_zip_block blocks[N_TEXTS];
  int32_t *symbols[N_TEXTS];
  settings other = {s.window, s.n_overlap, 3, 2, NULL, cancels_every_third};
  llm_zip *plain = new_zip(model, s), *z = new_zip(model, other);
  size_t n_lanes = (size_t)llm_zip_n_lanes(z);
  for (size_t i = 0; i < N_TEXTS; i++) {
    size_t n, n_again, n_slow;
    symbols[i] = malloc(texts[i].n * sizeof(int32_t));
    spell(model, texts[i].bytes, texts[i].n, symbols[i]);
    uint8_t *coded = encode(plain, symbols[i], texts[i].n, &n);
    uint8_t *again = encode(z, symbols[i], texts[i].n, &n_again);
    uint8_t *slow = encode_slowly(model, s, symbols[i], texts[i].n, &n_slow);
    CHECK(n == n_again && memcmp(coded, again, n) == 0);
    CHECK_MSG(n == n_slow && memcmp(coded, slow, n) == 0, "text %zu is coded otherwise: window %d",
              i, (int)s.window);
    blocks[i] = to_decode(coded, n, texts[i].n);
    free(coded);
    free(again);
    free(slow);
  }
  for (size_t i = 0; i < N_TEXTS; i += n_lanes)
    CHECK(!decode(z, blocks + i, N_TEXTS - i < n_lanes ? N_TEXTS - i : n_lanes, NULL));
  for (size_t i = 0; i < N_TEXTS; i++) {
    CHECK_MSG(memcmp(blocks[i].symbols, symbols[i], texts[i].n * sizeof(int32_t)) == 0,
              "text %zu comes out different: window %d", i, (int)s.window);
    free_block(&blocks[i]);
    free(symbols[i]);
  }
  llm_zip_free(plain);
  llm_zip_free(z);
}

static void test_round_trips(void) {
  const char *const names[] = {"llama", "gemma3", "gpt2"}; /* gpt2: lanes share its positions */
  for (int i = 0; i < 3; i++) {
    tiny_model t = tiny_open(&(tiny_shape){LLM_TYPE_F32, 1, 32, 2, 2, 48, N_CTX, 0, names[i]});
    check_round_trip(t.model, (settings){N_CTX, 550, 1, 1, "scalar", NULL});
    check_round_trip(t.model, (settings){5, 2, 64, 1, "scalar", NULL});
    check_round_trip(t.model, (settings){1, 0, 1, 1, NULL, NULL});
    tiny_close(&t);
  }
}

/* ---- damage ---- */

static long n_refused, n_decoded;

typedef struct damage_test {
  llm_zip *alone, *together;
  int32_t *symbols; /* (N_SHORT) of a text, */
  uint8_t *coded;   /* (n_coded) sound */
  size_t n_coded;
} damage_test;

/* Decodes n bytes as so many symbols, alone and beside two sound blocks, which nothing may harm. */
static void check_bytes(const damage_test *d, const uint8_t *bytes, size_t n, size_t n_symbols) {
  llm_error err;
  llm_zip_block one = to_decode(bytes, n, n_symbols);
  llm_zip_block three[] = {to_decode(d->coded, d->n_coded, N_SHORT), to_decode(bytes, n, n_symbols),
                           to_decode(d->coded, d->n_coded, N_SHORT)};
  llm_status status = decode(d->alone, &one, 1, &err);
  CHECK(status ? status == LLM_ERR_FORMAT && strstr(err.message, "no encoder wrote")
               : one.n_done == n_symbols);
  CHECK(decode(d->together, three, 3, NULL) == status);
  CHECK(one.n_done == three[1].n_done && one.n_done <= n_symbols);
  CHECK(memcmp(one.symbols, three[1].symbols, one.n_done * sizeof(int32_t)) == 0);
  for (size_t i = 0; i < one.n_done; i++)
    CHECK(one.symbols[i] >= -256 && one.symbols[i] < TINY_VOCAB);
  for (int i = 0; i < 3; i += 2)
    CHECK(memcmp(three[i].symbols, d->symbols, three[i].n_done * sizeof(int32_t)) == 0);
  n_refused += status != LLM_OK;
  n_decoded += status == LLM_OK;
  free_block(&one);
  for (int i = 0; i < 3; i++) free_block(&three[i]);
}

/* Every third bit flipped, so that each byte is; each length; other numbers of symbols. */
static void check_changes(const damage_test *d) {
  uint8_t *flipped = malloc(d->n_coded);
  for (size_t bit = 0; bit < 8 * d->n_coded; bit += 3) {
    memcpy(flipped, d->coded, d->n_coded);
    flipped[bit / 8] ^= (uint8_t)(1 << bit % 8);
    check_bytes(d, flipped, d->n_coded, N_SHORT);
  }
  free(flipped);
  for (size_t n = 0; n < d->n_coded; n++) check_bytes(d, d->coded, n, N_SHORT);
  for (size_t n = 0; n < 2 * N_SHORT; n++) check_bytes(d, d->coded, d->n_coded, n);
}

/* Escapes lie at the top of the range: the first bytes are often the largest. */
static void check_random_bytes(const damage_test *d) {
  uint64_t state = 1;
  for (int round = 0; round < 200; round++) {
    uint8_t bytes[32];
    for (int i = 0; i < 32; i++)
      bytes[i] = i < round % 8 ? 255 : (uint8_t)(128 + 128 * tiny_random(&state));
    check_bytes(d, bytes, (size_t)round % 33, N_SHORT);
  }
}

/* With NaN for all its weights, most of what it expects is escapes. */
static void test_damage(int sound) {
  tiny_model t = tiny_open(&(tiny_shape){LLM_TYPE_F32, 1, 32, 2, 1, 32, N_CTX, 0, NULL});
  const char *bytes = "all\xe4\xb8\xadtokens\x80,\xff\xfe then runs of\0\1\2\3\4\5\6\7\x8: the end";
  if (!sound) {
    unsigned char *data = t.bytes + ((const unsigned char *)t.model->tok_embd.data - t.bytes);
    memset(data, 255, sizeof(float) * 32 * TINY_VOCAB);
  }
  damage_test d = {new_zip(t.model, (settings){20, 5, 1, 1, "scalar", NULL}),
                   new_zip(t.model, (settings){20, 5, 3, 1, NULL, NULL}),
                   malloc(N_SHORT * sizeof(int32_t)), NULL, 0};
  spell(t.model, bytes, N_SHORT, d.symbols);
  d.coded = encode(d.alone, d.symbols, N_SHORT, &d.n_coded);
  check_bytes(&d, d.coded, d.n_coded, N_SHORT);
  check_changes(&d);
  check_random_bytes(&d);
  llm_zip_free(d.alone);
  llm_zip_free(d.together);
  free(d.symbols);
  free(d.coded);
  tiny_close(&t);
}

/* Runs of escapes that go past the block's end, and bytes behind the end of the range. */
static void test_surely_damaged(const llm_model *model) {
  llm_zip *z = new_zip(model, (settings){20, 5, 1, 1, NULL, NULL});
  int32_t symbols[] = {1, 2, -1, -2, -3, -4, 3};
  llm_error err;
  size_t n;
  uint8_t *coded = encode(z, symbols, 7, &n);
  for (size_t n_symbols = 1; n_symbols <= 7; n_symbols++) {
    llm_zip_block b = to_decode(coded, n, n_symbols);
    int inside = n_symbols > 2 && n_symbols < 6;
    CHECK(decode(z, &b, 1, &err) == (inside ? LLM_ERR_FORMAT : LLM_OK));
    CHECK(b.n_done == (inside ? 2 : n_symbols) && (!inside || strstr(err.message, "at symbol 2")));
    free_block(&b);
  }
  memset(coded, 255, n);
  llm_zip_block b = to_decode(coded, n, 7);
  CHECK(n >= 8 && decode(z, &b, 1, &err) == LLM_ERR_FORMAT && b.n_done == 0);
  free_block(&b);
  free(coded);
  llm_zip_free(z);
}

/* ---- refused ---- */

static void test_settings(const llm_model *model) {
  const struct {
    settings s;
    const char *message;
  } list[] = {
      {{0, 0, 1, 1, NULL, NULL}, "a window of 0"},
      {{-1, 0, 1, 1, NULL, NULL}, "a window of -1"},
      {{N_CTX + 1, 0, 1, 1, NULL, NULL}, "a window of 601 tokens, expected 1 to 600"},
      {{INT64_MAX, 0, 1, 1, NULL, NULL}, "a window of"},
      {{8, 8, 1, 1, NULL, NULL}, "an overlap of 8, expected 0 to 7"},
      {{8, INT64_MIN, 1, 1, NULL, NULL}, "an overlap of"},
      {{8, 0, 0, 1, NULL, NULL}, "0 blocks at once"},
      {{8, 0, 65, 1, NULL, NULL}, "65 blocks at once, expected 1 to 64"},
      {{8, 0, INT64_MIN, 1, NULL, NULL}, "blocks at once"},
      {{8, 0, 1, -1, NULL, NULL}, "n_threads is -1"},
      {{8, 0, 1, 1, "abacus", NULL}, "abacus"},
  };
  for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
    llm_zip *z;
    llm_error err;
    CHECK(make(&z, model, list[i].s, &err) == LLM_ERR_ARG && !z);
    CHECK_MSG(strstr(err.message, list[i].message), "%s", err.message);
  }
}

static void test_arguments(const llm_model *model) {
  llm_zip *z = new_zip(model, (settings){8, 0, 2, 1, NULL, NULL});
  int32_t good[] = {1, -256, TINY_VOCAB - 1}, bad[] = {-257, TINY_VOCAB, INT32_MIN, INT32_MAX};
  llm_zip_block none[3] = {{0}};
  llm_error err;
  size_t n;
  CHECK(!llm_zip_decode(z, none, 0, NULL) && !llm_zip_decode(z, none, 2, NULL));
  CHECK(llm_zip_decode(z, none, 3, &err) == LLM_ERR_ARG && strstr(err.message, "3 blocks at once"));
  for (int i = 0; i < 4; i++) {
    int32_t symbols[] = {1, bad[i]};
    llm_zip_block b = {symbols, 2, 0, NULL, 0, 0};
    CHECK(llm_zip_encode(z, &b, &err) == LLM_ERR_ARG && strstr(err.message, "symbol 1 is"));
  }
  uint8_t *coded = encode(z, good, 3, &n);
  for (size_t capacity = 0; capacity <= n; capacity++) {
    llm_zip_block b = {good, 3, 0, malloc(capacity), 0, capacity};
    CHECK(llm_zip_encode(z, &b, &err) == (capacity < n ? LLM_ERR_ARG : LLM_OK));
    CHECK(b.n_coded == n && (capacity == n || strstr(err.message, "do not fit")));
    CHECK(capacity < n || memcmp(b.coded, coded, n) == 0);
    free(b.coded);
  }
  free(coded);
  llm_zip_free(z);
}

int main(void) {
  fill_texts();
  test_round_trips();
  test_damage(1);
  test_damage(0);
  CHECK(n_refused > 100 && n_decoded > 100);
  tiny_model t = tiny_open(&(tiny_shape){LLM_TYPE_F32, 1, 32, 2, 1, 32, N_CTX, 0, NULL});
  test_surely_damaged(t.model);
  test_settings(t.model);
  test_arguments(t.model);
  tiny_close(&t);
  return check_report("test_zip");
}
