/* test_proof.c: files whose hash and proof block hold, and each damage that proof.c looks for, by
 * its message; then blocks with bits flipped or bytes replaced, which are refused or hold. Not
 * tested: kernel sets that differ from the scalar one, since none does. */
#include "context.h"
#include "sha256.h"
#include "tiny_model.h"

/* The first probe is as long as the model's context lets it be. */
enum { N_CTX = 12, N_NEW = 3, N_LONG = N_CTX + 1 - N_NEW, N_SHORT = 2, N_PROBES = 2 };
enum { N_PROMPT = N_LONG + N_SHORT, N_GREEDY = N_PROBES * N_NEW };

/* Each array has room for one more; that of the new ids for those of a probe. */
typedef struct block {
  const char *hash; /* NULL: none */
  int has_proof, n_new;
  int32_t prompt[N_PROMPT + 1], lengths[N_PROBES + 1], greedy[N_GREEDY + N_NEW];
  char digests[N_PROBES + 1][80];
  uint64_t n_prompt, n_lengths, n_greedy, n_digests;
  const char *missing, *text, *unsigned_ids; /* a key that is left out or of this type */
} block;

static const char *const keys[] = {
    "two_file.proof.n_new",      "two_file.proof.prompt_ids",    "two_file.proof.prompt_lengths",
    "two_file.proof.greedy_ids", "two_file.proof.logits_sha256",
};
enum { NEW, PROMPT, LENGTHS, GREEDY, DIGESTS, N_KEYS };

static block good;
static char good_hash[65];

/* ---- the file ---- */

static int is(const char *key, const char *name) { return name && strcmp(key, name) == 0; }

/* 0 where the damage asks for something else in the key's place. */
static int as_usual(tiny_file *f, const block *b, const char *key) {
  if (is(key, b->text)) tiny_text(f, key, "text");
  return !is(key, b->text) && !is(key, b->missing);
}

static void put_ids(tiny_file *f, const block *b, const char *key, const int32_t *ids, uint64_t n) {
  if (!as_usual(f, b, key)) return;
  tiny_array(f, key, is(key, b->unsigned_ids) ? GGUF_UINT32 : GGUF_INT32, n);
  tiny_put(&f->keys, ids, n * sizeof *ids);
}

static void put_keys(tiny_file *f, const block *b) {
  if (b->hash) tiny_text(f, "two_file.tensor_sha256", b->hash);
  if (!b->has_proof) return;
  put_ids(f, b, keys[PROMPT], b->prompt, b->n_prompt);
  put_ids(f, b, keys[LENGTHS], b->lengths, b->n_lengths);
  put_ids(f, b, keys[GREEDY], b->greedy, b->n_greedy);
  if (as_usual(f, b, keys[NEW])) tiny_int(f, keys[NEW], b->n_new);
  if (!as_usual(f, b, keys[DIGESTS])) return;
  tiny_array(f, keys[DIGESTS], GGUF_STRING, b->n_digests);
  for (uint64_t i = 0; i < b->n_digests; i++) tiny_string(&f->keys, b->digests[i]);
}

/* The file's n bytes; the block's are [*begin, *end) of them. */
static unsigned char *write_file(const block *b, size_t *n, size_t *begin, size_t *end) {
  const tiny_shape shape = {LLM_TYPE_F32, 1, 32, 2, 1, 32, N_CTX, 0, NULL};
  tiny_file more = {0};
  put_keys(&more, b);
  unsigned char *bytes = tiny_write_with(&shape, &more, n);
  *begin = 0;
  while (more.keys.n && memcmp(bytes + *begin, more.keys.data, more.keys.n)) ++*begin;
  *end = *begin + more.keys.n;
  free(more.keys.data);
  return bytes;
}

static tiny_model open_file(const block *b) {
  size_t n, begin, end;
  tiny_model t = {write_file(b, &n, &begin, &end), NULL};
  llm_error err;
  if (model_from_span(&t.model, t.bytes, n, "proved", &err)) {
    fprintf(stderr, "%s\n", err.message);
    abort();
  }
  return t;
}

static llm_status verify(const llm_model *model, llm_verify_report *report, llm_error *err) {
  llm_context_options o = llm_context_default_options();
  o.n_threads = 1;
  return llm_model_verify(model, &o, report, err);
}

/* ---- what holds ---- */

/* The hash and digests of the good block, and what they must be: the data section, and the rows of
 * logits before each new token, here evaluated at once. */
static void check_probe(llm_context *c, int probe, const int32_t *prompt) {
  float rows[N_NEW][TINY_VOCAB];
  int32_t ids[N_CTX], *greedy = good.greedy + probe * N_NEW;
  size_t n = (size_t)good.lengths[probe];
  char hex[65];
  CHECK(!llm_proof_compute(c->model, prompt, n, N_NEW, greedy, good.digests[probe], NULL));
  memcpy(ids, prompt, n * sizeof *ids);
  memcpy(ids + n, greedy, (N_NEW - 1) * sizeof *ids);
  CHECK(!llm_context_truncate(c, 0, NULL));
  CHECK(!llm_context_eval(c, ids, n + N_NEW - 1, rows[0], N_NEW, NULL));
  sha256_hex(rows, sizeof rows, hex);
  CHECK(strcmp(hex, good.digests[probe]) == 0);
  for (int i = 0; i < N_NEW; i++)
    for (int id = 0; id < TINY_VOCAB; id++) CHECK(rows[i][id] <= rows[i][greedy[i]]);
}

static void fill_good(void) {
  good = (block){.hash = good_hash,
                 .n_new = N_NEW,
                 .lengths = {N_LONG, N_SHORT, 1},
                 .n_prompt = N_PROMPT,
                 .n_lengths = N_PROBES,
                 .n_greedy = N_GREEDY,
                 .n_digests = N_PROBES};
  for (int i = 0; i < N_PROMPT; i++) good.prompt[i] = i * 31 % TINY_VOCAB;
  tiny_model t = open_file(&good);
  llm_context_options o = {.n_threads = 1, .kv_type = LLM_TYPE_F32, .kernels = "scalar"};
  llm_context *c;
  uint64_t n_bytes;
  const void *data = gguf_tensor_data(t.model->file, &n_bytes);
  sha256_hex(data, (size_t)n_bytes, good_hash);
  CHECK(!llm_context_new(&c, t.model, &o, NULL));
  check_probe(c, 0, good.prompt);
  check_probe(c, 1, good.prompt + N_LONG);
  good.has_proof = 1;
  llm_context_free(c);
  tiny_close(&t);
}

static void check_holds(const block *b, int has_hash, int has_proof) {
  tiny_model t = open_file(b);
  llm_verify_report report;
  llm_error err = {0};
  CHECK_MSG(!verify(t.model, &report, &err), "%s", err.message);
  CHECK(report.has_hash == has_hash && report.has_proof == has_proof);
  CHECK(report.n_probes == (has_proof ? N_PROBES : 0) && report.max_logprob_diff <= 1e-3);
  CHECK(report.kernels[0]);
  tiny_close(&t);
}

static void test_holds(void) {
  block b = good;
  check_holds(&b, 1, 1);
  b.hash = NULL;
  check_holds(&b, 0, 1);
  b.hash = good_hash;
  b.has_proof = 0;
  check_holds(&b, 1, 0);
}

/* ---- what does not ---- */

static void check_refused(const block *b, llm_status expected, const char *message) {
  tiny_model t = open_file(b);
  llm_verify_report report;
  llm_error err = {0};
  llm_status status = verify(t.model, &report, &err);
  CHECK_MSG(status == expected && strstr(err.message, message),
            "status %d, \"%s\"; expected \"%s\"", (int)status, err.message, message);
  tiny_close(&t);
}

/* The good block without its hash, changed by a statement. */
#define REFUSED(message, ...)                                                                      \
  do {                                                                                             \
    block b = good;                                                                                \
    b.hash = NULL;                                                                                 \
    __VA_ARGS__;                                                                                   \
    check_refused(&b, LLM_ERR_FORMAT, message);                                                    \
  } while (0)

static void test_keys(void) {
  for (int i = 0; i < N_KEYS; i++) {
    char missing[96], text[96], unsigned_ids[96];
    snprintf(missing, sizeof missing, "key %s is missing", keys[i]);
    snprintf(text, sizeof text, "key %s: its type is string, expected", keys[i]);
    snprintf(unsigned_ids, sizeof unsigned_ids, "key %s: its type is array of uint32", keys[i]);
    if (i != NEW) REFUSED(missing, b.missing = keys[i]);
    REFUSED(text, b.text = keys[i]);
    if (i != NEW && i != DIGESTS) REFUSED(unsigned_ids, b.unsigned_ids = keys[i]);
  }
  block b = good; /* n_new is what says that there is a block */
  b.missing = keys[NEW];
  check_holds(&b, 1, 0);
  b.hash = NULL;
  check_refused(&b, LLM_ERR_UNSUPPORTED, "neither a hash nor a proof block");
}

static void test_lengths(void) {
  const char *range = "two_file.proof.n_new is", *sums = "lengths in the proof block do not fit";
  REFUSED(range, b.n_new = 0);
  REFUSED(range, b.n_new = -1); /* 2^32 - 1 */
  REFUSED(sums, b.n_prompt--);
  REFUSED(sums, b.n_prompt++);
  REFUSED(sums, b.n_lengths--);
  REFUSED(sums, b.n_lengths++);
  REFUSED(sums, b.n_lengths++, b.n_digests++);
  REFUSED(sums, b.n_greedy--);
  REFUSED(sums, b.n_greedy++);
  REFUSED(sums, b.n_greedy -= N_NEW);
  REFUSED(sums, b.n_digests--);
  REFUSED(sums, b.n_digests++);
  REFUSED(sums, b.n_prompt = b.n_lengths = b.n_greedy = b.n_digests = 0);
  REFUSED(sums, b.n_prompt++, b.lengths[0]++); /* longer than the context */
  /* Sums that are right, in 64 bits or in 32, but not of lengths. */
  REFUSED(sums, b.n_lengths = b.n_digests = 3, b.n_greedy += N_NEW, b.lengths[2] = 0);
  REFUSED(sums, b.n_lengths = b.n_digests = 3, b.n_greedy += N_NEW, b.lengths[1]++,
          b.lengths[2] = -1);
  REFUSED(sums, b.lengths[0] = -1, b.lengths[1] = N_PROMPT + 1);
  REFUSED(sums, b.n_lengths = b.n_digests = 3, b.lengths[0] = b.lengths[1] = INT32_MAX,
          b.lengths[2] = N_PROMPT + 2);
  const int32_t numbers[] = {INT32_MIN, -1, 0, 1, N_SHORT, N_NEW, N_LONG, N_LONG + 1, INT32_MAX};
  enum { N = sizeof numbers / sizeof *numbers };
  for (int i = 0; i < N * N * N; i++) {
    int32_t x = numbers[i % N], y = numbers[i / N % N], n_new = numbers[i / N / N];
    if (x != N_LONG || y != N_SHORT || n_new != N_NEW)
      REFUSED("", b.lengths[0] = x, b.lengths[1] = y, b.n_new = n_new);
  }
}

static void test_contents(void) {
  const char *first = "probe 0 of the proof block", *second = "probe 1 of the proof block";
  const int32_t bad[] = {-1, TINY_VOCAB, INT32_MIN, INT32_MAX};
  for (int i = 0; i < 4; i++) {
    REFUSED("the proof block names token", b.prompt[0] = bad[i]);
    REFUSED("the proof block names token", b.prompt[N_PROMPT - 1] = bad[i]);
    REFUSED("the proof block names token", b.greedy[N_GREEDY - 1] = bad[i]);
  }
  REFUSED(first, b.prompt[0] ^= 1);
  REFUSED(second, b.prompt[N_LONG] ^= 1);
  REFUSED(first, b.greedy[N_NEW - 1] ^= 1);
  REFUSED(second, b.greedy[N_NEW] ^= 1);
  REFUSED(first, b.lengths[0] = N_SHORT, b.lengths[1] = N_LONG);
  REFUSED(first, b.digests[0][0] ^= 1);
  REFUSED(second, b.digests[1][63] ^= 1);
  REFUSED(second, b.digests[1][63] = 0);
  REFUSED(second, b.digests[1][0] = 0);
  REFUSED(second, strcat(b.digests[1], "0"));
}

static void test_hash(void) {
  char other[300], expected[96];
  memset(other, 'x', sizeof other);
  other[sizeof other - 1] = 0;
  REFUSED("the weights are not the ones", b.hash = "");
  REFUSED("the weights are not the ones", b.hash = good_hash + 1);
  snprintf(expected, sizeof expected, "SHA-256 %s, expected xxx", good_hash);
  REFUSED(expected, b.hash = other);
  tiny_file f = {0};
  tiny_int(&f, "two_file.tensor_sha256", 1);
  tiny_shape shape = {LLM_TYPE_F32, 1, 32, 2, 1, 32, N_CTX, 0, NULL};
  tiny_model t;
  size_t n;
  llm_verify_report report;
  llm_error err;
  t.bytes = tiny_write_with(&shape, &f, &n);
  CHECK(!model_from_span(&t.model, t.bytes, n, "number", NULL));
  CHECK(verify(t.model, &report, &err) == LLM_ERR_FORMAT && strstr(err.message, "its type is"));
  free(f.keys.data);
  tiny_close(&t);
}

/* One byte of the weights, then NaN for all. */
static void test_weights(const char *hash, const char *message) {
  block b = good;
  b.hash = hash;
  tiny_model t = open_file(&b);
  uint64_t n_bytes;
  llm_verify_report report;
  llm_error err;
  const unsigned char *data = gguf_tensor_data(t.model->file, &n_bytes);
  unsigned char *weights = t.bytes + (data - t.bytes);
  weights[2] ^= 1;
  CHECK(verify(t.model, &report, &err) == LLM_ERR_FORMAT && strstr(err.message, message));
  memset(weights, 255, n_bytes);
  CHECK(verify(t.model, &report, &err) == LLM_ERR_FORMAT && strstr(err.message, message));
  tiny_close(&t);
}

static int stop(void *user) { return user == NULL; }

static void test_arguments(void) {
  tiny_model t = open_file(&good);
  llm_context_options o = llm_context_default_options();
  llm_verify_report report;
  llm_error err;
  int32_t ids[N_CTX + 1] = {0};
  char hex[65];
  CHECK(!llm_model_verify(t.model, NULL, &report, NULL) && report.n_probes == N_PROBES);
  o.kernels = "scalar";
  CHECK(!llm_model_verify(t.model, &o, &report, NULL) && strcmp(report.kernels, "scalar") == 0);
  CHECK(report.max_logprob_diff == 0);
  o.cancel_check = stop;
  CHECK(llm_model_verify(t.model, &o, &report, &err) == LLM_ERR_CANCELLED);
  o.kernels = "abacus";
  CHECK(llm_model_verify(t.model, &o, &report, &err) == LLM_ERR_ARG);
  CHECK(!report.has_hash && !report.has_proof && !report.n_probes);
  const size_t n_new[] = {0, N_CTX + 1, SIZE_MAX};
  for (int i = 0; i < 3; i++)
    CHECK(llm_proof_compute(t.model, good.prompt, 1, n_new[i], ids, hex, &err) == LLM_ERR_ARG &&
          strstr(err.message, "new tokens, expected 1 to 12"));
  CHECK(llm_proof_compute(t.model, good.prompt, 0, 1, ids, hex, NULL) == LLM_ERR_ARG);
  CHECK(llm_proof_compute(t.model, good.prompt, N_LONG + 1, N_NEW, ids, hex, NULL) == LLM_ERR_ARG);
  ids[0] = TINY_VOCAB;
  CHECK(llm_proof_compute(t.model, ids, 1, 1, ids + 1, hex, NULL) == LLM_ERR_ARG);
  tiny_close(&t);
}

/* ---- any damage ---- */

static long n_held, n_refused;

static void check_bytes(const unsigned char *bytes, size_t n) {
  llm_model *model;
  llm_verify_report r;
  llm_error err;
  if (model_from_span(&model, bytes, n, "damaged", &err)) {
    CHECK(!model && err.message[0]);
    return;
  }
  llm_status status = verify(model, &r, &err);
  if (status)
    CHECK_MSG((status == LLM_ERR_FORMAT || status == LLM_ERR_UNSUPPORTED) && err.message[0],
              "status %d: %s", (int)status, err.message);
  else /* a type of the same meaning, or a key of another name */
    CHECK((r.has_hash || r.has_proof) && r.n_probes == (r.has_proof ? N_PROBES : 0));
  n_held += !status;
  n_refused += status != LLM_OK;
  llm_model_free(model);
}

static void test_any_damage(void) {
  uint64_t state = 1;
  size_t n, begin, end;
  unsigned char *bytes = write_file(&good, &n, &begin, &end), *changed = malloc(n);
  for (size_t bit = 8 * begin; bit < 8 * end; bit++) {
    bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
    check_bytes(bytes, n);
    bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
  }
  for (int round = 0; round < 1000; round++) {
    memcpy(changed, bytes, n);
    for (int i = 0; i <= round % 5; i++) {
      size_t at = begin + (size_t)((float)(end - begin) * (0.5f + 0.4999f * tiny_random(&state)));
      changed[at] = (unsigned char)(128 + 128 * tiny_random(&state));
    }
    check_bytes(changed, n);
  }
  CHECK(n_held > 10 && n_refused > 1000);
  free(bytes);
  free(changed);
}

int main(void) {
  fill_good();
  test_holds();
  test_keys();
  test_lengths();
  test_contents();
  test_hash();
  test_weights(good_hash, "the weights are not the ones");
  test_weights(NULL, "probe 0 of the proof block");
  test_arguments();
  test_any_damage();
  return check_report("test_proof");
}
