/* zip.c: blocks of text through the arithmetic coder, with the model's next-token distribution as
 * its frequencies (Delétang et al. 2023, "Language Modeling Is Compression"). Layer 6. coder.c
 * codes, llm/zip.py cuts texts into blocks and frames them.
 *
 * A block is coded alone, as the sequence: start token, its tokens. A window holds n_ctx tokens of
 * it; when it is full the model forgets and reads the last n_overlap again. Encoding knows all
 * tokens and reads many in one pass; decoding reads one token of each of several blocks in one
 * pass, so that each weight is fetched once for all of them. The bits of the logits depend on
 * neither (DESIGN rule 6): that is what makes decoding possible.
 *
 * Bytes that no token spells are escaped in runs: the escape, n - 1 of 256, n bytes of 256 each.
 * The model does not see them. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "coder.h"
#include "context.h"
#include "error.h"
#include "forward.h"

enum { MAX_LANES = 64, ENCODE_ROWS = 128, RUN = 256 }; /* 128 x 49,152 logits are 24 MiB */

typedef struct lane {
  encoder out;
  decoder in;
  int32_t *ids;  /* (window) the tokens that it holds */
  size_t n_held; /* of them */
  int32_t next;  /* to be read */
} lane;

struct llm_zip {
  llm_context *c;
  size_t window, n_overlap, n_lanes, n_rows, n_vocab;
  int32_t start;
  lane *lanes;
  lane_row *rows;  /* (n_pass) of one pass, */
  int32_t *ids;    /* and its tokens */
  size_t n_pass;   /* most tokens of a pass */
  int32_t *wanted; /* (n_rows) the token that each row codes; -1: none */
  interval *parts; /* (n_rows) its interval */
  float *logits;   /* (n_rows, n_vocab) */
};

/* ---- construction ---- */

static llm_status allocate(llm_zip *z, llm_error *err) {
  z->n_rows = z->window < ENCODE_ROWS ? z->window : ENCODE_ROWS;
  if (z->n_rows < z->n_lanes) z->n_rows = z->n_lanes;
  z->n_pass = z->window * z->n_lanes < N_BATCH ? z->window * z->n_lanes : N_BATCH;
  z->lanes = calloc(z->n_lanes, sizeof *z->lanes);
  z->rows = calloc(z->n_pass, sizeof *z->rows);
  z->ids = calloc(z->n_pass, sizeof *z->ids);
  z->wanted = calloc(z->n_rows, sizeof *z->wanted);
  z->parts = calloc(z->n_rows, sizeof *z->parts);
  z->logits = malloc(z->n_rows * z->n_vocab * sizeof *z->logits);
  if (!z->lanes || !z->rows || !z->ids || !z->wanted || !z->parts || !z->logits)
    return error_nomem(err, z->n_rows * z->n_vocab * sizeof *z->logits, "the logits of a zip");
  for (size_t i = 0; i < z->n_lanes; i++) {
    z->lanes[i].ids = malloc(z->window * sizeof *z->lanes[i].ids);
    if (!z->lanes[i].ids) return error_nomem(err, z->window * sizeof(int32_t), "a window");
  }
  return LLM_OK;
}

static llm_status resolve(llm_zip *z, const llm_model *model, llm_context_options *o,
                          int64_t n_overlap, int64_t n_lanes, llm_error *err) {
  int64_t trained = model->config.n_ctx_train;
  if (o->n_ctx < 1 || o->n_ctx > trained)
    return error_set(err, LLM_ERR_ARG, "a window of %" PRId64 " tokens, expected 1 to %" PRId64,
                     o->n_ctx, trained);
  if (n_overlap < 0 || n_overlap >= o->n_ctx)
    return error_set(err, LLM_ERR_ARG, "an overlap of %" PRId64 ", expected 0 to %" PRId64,
                     n_overlap, o->n_ctx - 1);
  if (n_lanes < 1 || n_lanes > MAX_LANES)
    return error_set(err, LLM_ERR_ARG, "%" PRId64 " blocks at once, expected 1 to %d", n_lanes,
                     MAX_LANES);
  /* The cache of a model with learned positions cannot be longer than these. */
  if (model->arch->rope == ROPE_NONE && n_lanes > trained / o->n_ctx) n_lanes = trained / o->n_ctx;
  z->window = (size_t)o->n_ctx;
  z->n_overlap = (size_t)n_overlap;
  z->n_lanes = (size_t)n_lanes;
  z->n_vocab = (size_t)model->config.n_vocab;
  const llm_tokenizer *tokenizer = llm_model_tokenizer(model);
  z->start = llm_tokenizer_bos(tokenizer);
  if (z->start < 0) z->start = llm_tokenizer_eos(tokenizer);
  if (z->start < 0) z->start = 0;
  o->n_ctx *= n_lanes;
  o->allow_long_context = 1;
  o->on_full = LLM_ON_FULL_STOP;
  o->kv_type = LLM_TYPE_F16;
  return LLM_OK;
}

llm_status llm_zip_new(llm_zip **out, const llm_model *model, const llm_context_options *options,
                       int64_t n_overlap, int64_t n_lanes, llm_error *err) {
  *out = NULL;
  llm_context_options own = *options;
  llm_zip *z = calloc(1, sizeof *z);
  if (!z) return error_nomem(err, sizeof *z, "a zip");
  llm_status status = resolve(z, model, &own, n_overlap, n_lanes, err);
  if (!status) status = llm_context_new(&z->c, model, &own, err);
  if (!status) status = allocate(z, err);
  if (status) {
    llm_zip_free(z);
    return status;
  }
  *out = z;
  return error_clear(err);
}

void llm_zip_free(llm_zip *zip) {
  if (!zip) return;
  for (size_t i = 0; zip->lanes && i < zip->n_lanes; i++) free(zip->lanes[i].ids);
  free(zip->lanes);
  free(zip->rows);
  free(zip->ids);
  free(zip->wanted);
  free(zip->parts);
  free(zip->logits);
  llm_context_free(zip->c);
  free(zip);
}

int64_t llm_zip_n_lanes(const llm_zip *zip) { return (int64_t)zip->n_lanes; }
const char *llm_zip_kernels(const llm_zip *zip) { return zip->c->kernels->name; }

/* ---- windows ---- */

static void set_row(llm_zip *z, size_t row, size_t lane, size_t position, int32_t id) {
  z->rows[row] = (lane_row){lane * z->window, position};
  z->ids[row] = id;
}

/* Makes room in a window that is full: its last n_overlap tokens, read again. A failure leaves the
 * window full, so that the next call begins here. */
static llm_status make_room(llm_zip *z, size_t index, llm_error *err) {
  lane *l = &z->lanes[index];
  if (l->n_held < z->window) return LLM_OK;
  const int32_t *kept = l->ids + z->window - z->n_overlap;
  for (size_t done = 0, n; done < z->n_overlap; done += n) {
    n = z->n_overlap - done < z->n_pass ? z->n_overlap - done : z->n_pass;
    for (size_t i = 0; i < n; i++) set_row(z, i, index, done + i, kept[done + i]);
    llm_status status = forward_lanes(z->c, z->ids, z->rows, n, err);
    if (status) return status;
  }
  memmove(l->ids, kept, z->n_overlap * sizeof *kept);
  l->n_held = z->n_overlap;
  return LLM_OK;
}

static void begin(llm_zip *z, lane *l) {
  l->n_held = 0;
  l->next = z->start;
}

/* ---- encoding ---- */

typedef struct measure_job {
  llm_zip *z;
  size_t n_rows;
} measure_job;

static void measure_thread(void *arg, int thread, int n_threads) {
  const measure_job *job = arg;
  llm_zip *z = job->z;
  size_t first, end;
  thread_share(job->n_rows, 1, thread, n_threads, &first, &end);
  for (size_t r = first; r < end; r++) {
    const float *logits = z->logits + r * z->n_vocab;
    float max = logits_max(logits, z->n_vocab);
    size_t id = z->wanted[r] < 0 ? z->n_vocab : (size_t)z->wanted[r];
    interval *p = &z->parts[r];
    p->begin = logits_weight(logits, max, 0, id);
    p->size = id < z->n_vocab ? logits_weight(logits, max, id, id + 1) : 0;
    p->total = p->begin + p->size + CODER_ESCAPE;
    if (id < z->n_vocab) p->total += logits_weight(logits, max, id + 1, z->n_vocab);
  }
}

static void put_byte(encoder *e, uint64_t byte) { encoder_put(e, (interval){byte, 1, 256}); }

/* The escaped bytes at the head of n symbols; returns how many. */
static size_t put_escaped(encoder *e, const int32_t *symbols, size_t n, uint64_t total) {
  size_t done = 0;
  while (done < n && symbols[done] < 0) {
    size_t run = 0;
    while (run < RUN && done + run < n && symbols[done + run] < 0) run++;
    encoder_put(e, (interval){total - CODER_ESCAPE, CODER_ESCAPE, total});
    put_byte(e, run - 1);
    for (size_t end = done + run; done < end; done++) put_byte(e, (uint64_t)(-1 - symbols[done]));
  }
  return done;
}

static llm_status check_symbols(const llm_zip *z, const llm_zip_block *b, llm_error *err) {
  for (size_t i = 0; i < b->n_symbols; i++)
    if (b->symbols[i] < -256 || b->symbols[i] >= (int64_t)z->n_vocab)
      return error_set(err, LLM_ERR_ARG, "symbol %zu is %d: no token and no byte", i,
                       (int)b->symbols[i]);
  return LLM_OK;
}

/* The next pass: the tokens to be read, and what each row is to code. Returns their number, and the
 * number of symbols that they code. */
static size_t gather(llm_zip *z, const llm_zip_block *b, size_t *n_symbols) {
  const lane *l = &z->lanes[0];
  size_t room = z->window - l->n_held, n = 0, at = b->n_done;
  int32_t next = l->next;
  for (; n < room && n < z->n_rows && at < b->n_symbols; n++) {
    set_row(z, n, 0, l->n_held + n, next);
    while (at < b->n_symbols && b->symbols[at] < 0) at++;
    next = z->wanted[n] = at < b->n_symbols ? b->symbols[at++] : -1;
  }
  *n_symbols = at - b->n_done;
  return n;
}

llm_status llm_zip_encode(llm_zip *zip, llm_zip_block *block, llm_error *err) {
  lane *l = &zip->lanes[0];
  size_t n_symbols;
  llm_status status = block->n_done ? LLM_OK : check_symbols(zip, block, err);
  if (status) return status;
  if (block->n_done == 0) {
    begin(zip, l);
    l->out = encoder_begin(block->coded, block->capacity);
  }
  status = make_room(zip, 0, err);
  if (status) return status;
  size_t n = gather(zip, block, &n_symbols);
  if (n) status = forward_lanes(zip->c, zip->ids, zip->rows, n, err);
  if (status) return status;
  if (n) forward_logits(zip->c, 0, n, zip->logits);
  measure_job job = {zip, n};
  thread_pool_run(zip->c->pool, measure_thread, &job);
  const int32_t *at = block->symbols + block->n_done, *end = at + n_symbols;
  for (size_t r = 0; r < n; r++) {
    at += put_escaped(&l->out, at, (size_t)(end - at), zip->parts[r].total);
    if (at < end) encoder_put(&l->out, zip->parts[r]), at++;
    l->ids[l->n_held++] = zip->ids[r];
    l->next = zip->wanted[r];
  }
  block->n_done += n_symbols;
  if (block->n_done == block->n_symbols) encoder_end(&l->out);
  block->n_coded = l->out.n;
  if (block->n_coded > block->capacity)
    return error_set(err, LLM_ERR_ARG, "%zu coded bytes do not fit %zu", block->n_coded,
                     block->capacity);
  return error_clear(err);
}

/* ---- decoding ---- */

typedef struct decode_job {
  llm_zip *z;
  llm_zip_block *blocks;
  size_t active[MAX_LANES], n_active; /* row r of the pass belongs to lane active[r] */
  int bad[MAX_LANES];                 /* by row */
} decode_job;

/* Below 256; 256 for bytes that no encoder wrote. */
static uint64_t take_byte(decoder *d) {
  uint64_t byte = decoder_peek(d, 256);
  if (byte < 256) decoder_take(d, (interval){byte, 1, 256});
  return byte;
}

/* A run of escaped bytes; 0 for one that cannot be. */
static int take_escaped(decoder *d, llm_zip_block *b, uint64_t total) {
  decoder_take(d, (interval){total - CODER_ESCAPE, CODER_ESCAPE, total});
  uint64_t n = take_byte(d) + 1;
  if (n > RUN || n > b->n_symbols - b->n_done) return 0;
  for (; n; n--) {
    uint64_t byte = take_byte(d);
    if (byte > 255) return 0;
    b->symbols[b->n_done++] = -1 - (int32_t)byte;
  }
  return 1;
}

/* Up to and with the next token. */
static int take_symbols(const llm_zip *z, const float *logits, lane *l, llm_zip_block *b) {
  float max = logits_max(logits, z->n_vocab);
  interval part = {.total = logits_weight(logits, max, 0, z->n_vocab) + CODER_ESCAPE};
  while (b->n_done < b->n_symbols) {
    uint64_t at = decoder_peek(&l->in, part.total);
    if (at >= part.total) return 0;
    if (at < part.total - CODER_ESCAPE) {
      l->next = (int32_t)logits_find(logits, max, z->n_vocab, at, &part);
      decoder_take(&l->in, part);
      b->symbols[b->n_done++] = l->next;
      return 1;
    }
    if (!take_escaped(&l->in, b, part.total)) return 0;
  }
  return 1;
}

static void decode_thread(void *arg, int thread, int n_threads) {
  decode_job *job = arg;
  size_t first, end;
  thread_share(job->n_active, 1, thread, n_threads, &first, &end);
  for (size_t r = first; r < end; r++) {
    size_t i = job->active[r];
    const float *logits = job->z->logits + r * job->z->n_vocab;
    job->bad[r] = !take_symbols(job->z, logits, &job->z->lanes[i], &job->blocks[i]);
  }
}

/* One token of every block that is not done, each in its lane. */
llm_status llm_zip_decode(llm_zip *zip, llm_zip_block *blocks, size_t n_blocks, llm_error *err) {
  if (n_blocks > zip->n_lanes)
    return error_set(err, LLM_ERR_ARG, "%zu blocks at once, expected at most %zu", n_blocks,
                     zip->n_lanes);
  decode_job job = {.z = zip, .blocks = blocks};
  for (size_t i = 0; i < n_blocks; i++) {
    lane *l = &zip->lanes[i];
    if (blocks[i].n_done == blocks[i].n_symbols) continue;
    if (blocks[i].n_done == 0) {
      begin(zip, l);
      l->in = decoder_begin(blocks[i].coded, blocks[i].n_coded);
    }
    llm_status status = make_room(zip, i, err);
    if (status) return status;
    job.active[job.n_active++] = i;
  }
  if (!job.n_active) return error_clear(err);
  for (size_t r = 0; r < job.n_active; r++) {
    const lane *l = &zip->lanes[job.active[r]];
    set_row(zip, r, job.active[r], l->n_held, l->next);
  }
  llm_status status = forward_lanes(zip->c, zip->ids, zip->rows, job.n_active, err);
  if (status) return status;
  forward_logits(zip->c, 0, job.n_active, zip->logits);
  for (size_t r = 0; r < job.n_active; r++) {
    lane *l = &zip->lanes[job.active[r]];
    l->ids[l->n_held++] = zip->ids[r];
  }
  thread_pool_run(zip->c->pool, decode_thread, &job);
  for (size_t r = 0; r < job.n_active; r++)
    if (job.bad[r])
      return error_set(err, LLM_ERR_FORMAT, "coded bytes that no encoder wrote, at symbol %zu",
                       blocks[job.active[r]].n_done);
  return error_clear(err);
}
