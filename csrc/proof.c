/* proof.c: the proof block of a parameter file (FORMAT.md), computed and replayed. Layer 6. The
 * scalar kernels give the same bits on every machine, so a digest of logits taken where the file
 * was made can be checked wherever it is run. */
#include <inttypes.h>
#include <math.h> /* fabs and isnan only */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "context.h"
#include "error.h"
#include "logprobs.h"
#include "sha256.h"

enum { HEX = 64 };

/* The kernel sets agree bit for bit by construction (kernels.h); the allowance is for sets to come
 * that round differently. In nats. */
static const double LOGPROB_TOLERANCE = 1e-3;

/* ---- one probe ---- */

/* Continues a prompt by given ids (forced) or greedily, and keeps the row of logits before each:
 * rows (n_new, n_vocab). ids (n_new) is read when forced, else written. */
static llm_status probe_run(const llm_model *model, llm_context_options options,
                            const int32_t *prompt, size_t n_prompt, size_t n_new, int forced,
                            int32_t *ids, float *rows, llm_error *err) {
  llm_context *c;
  llm_sampler *greedy = NULL;
  llm_sampler_options sampling = llm_sampler_default_options();
  size_t n_vocab = (size_t)model->config.n_vocab;
  options.n_ctx = (int64_t)(n_prompt + n_new - 1); /* the last new token is not evaluated */
  llm_status status = llm_context_new(&c, model, &options, err);
  if (status) return status;
  sampling.temperature = 0;
  status = llm_sampler_new(&greedy, model->config.n_vocab, &sampling, err);
  if (!status) status = llm_context_eval(c, prompt, n_prompt, rows, 1, err);
  for (size_t i = 0; i < n_new && !status; i++) {
    if (!forced) ids[i] = llm_sampler_sample(greedy, rows + i * n_vocab);
    if (i + 1 < n_new) status = llm_context_eval(c, ids + i, 1, rows + (i + 1) * n_vocab, 1, err);
  }
  llm_sampler_free(greedy);
  llm_context_free(c);
  return status;
}

static llm_context_options scalar_options(const llm_context_options *base) {
  llm_context_options o = llm_context_default_options();
  if (base) {
    o.n_threads = base->n_threads;
    o.cancel_check = base->cancel_check;
    o.cancel_user = base->cancel_user;
  }
  o.kernels = "scalar";
  o.kv_type = LLM_TYPE_F32;
  return o;
}

static float *rows_new(const llm_model *model, size_t n_new, llm_error *err) {
  uint64_t bytes = (uint64_t)model->config.n_vocab * n_new * sizeof(float);
  float *rows = malloc(bytes);
  if (!rows) error_nomem(err, bytes, "the logits of a probe");
  return rows;
}

/* Digest over little-endian floats: DESIGN rules out big-endian machines at the file's door. */
static void rows_digest(const llm_model *model, const float *rows, size_t n_new,
                        char hex[HEX + 1]) {
  sha256_hex(rows, (size_t)model->config.n_vocab * n_new * sizeof(float), hex);
}

llm_status llm_proof_compute(const llm_model *model, const int32_t *prompt, size_t n_prompt,
                             size_t n_new, int32_t *ids_out, char hex[65], llm_error *err) {
  if (n_new < 1 || n_new > (size_t)model->config.n_ctx_train)
    return error_set(err, LLM_ERR_ARG, "%zu new tokens, expected 1 to %" PRId64, n_new,
                     model->config.n_ctx_train);
  float *rows = rows_new(model, n_new, err);
  if (!rows) return LLM_ERR_NOMEM;
  llm_status status =
      probe_run(model, scalar_options(NULL), prompt, n_prompt, n_new, 0, ids_out, rows, err);
  if (!status) rows_digest(model, rows, n_new, hex);
  free(rows);
  return status ? status : error_clear(err);
}

/* ---- the block in the file ---- */

typedef struct proof_block {
  int32_t *prompt_ids, *lengths, *greedy_ids; /* copied: the file's arrays are unaligned */
  size_t n_prompt_ids, n_probes, n_greedy_ids, n_new;
  int32_t *replayed_ids; /* (n_new) scratch */
  const char *digests;   /* cursor into the array of strings */
} proof_block;

static void proof_free(proof_block *p) {
  free(p->prompt_ids);
  free(p->lengths);
  free(p->greedy_ids);
  free(p->replayed_ids);
}

static llm_status copy_i32(const gguf *g, const char *key, int32_t **out, size_t *n,
                           llm_error *err) {
  const llm_meta *meta;
  llm_status status = gguf_get_array(g, key, 1, GGUF_INT32, &meta, err);
  if (status) return status;
  *n = (size_t)meta->n_elements;
  *out = malloc(*n * sizeof **out + 1);
  if (!*out) return error_nomem(err, meta->n_bytes, "a proof block");
  memcpy(*out, meta->data, *n * sizeof **out);
  return LLM_OK;
}

static llm_status check_sums(const llm_model *model, const proof_block *p, size_t n_digests,
                             llm_error *err) {
  uint64_t total = 0;
  int fits = p->n_probes > 0 && n_digests == p->n_probes;
  for (size_t i = 0; i < p->n_probes && fits; i++) {
    fits = p->lengths[i] > 0 &&
           (uint64_t)p->lengths[i] + p->n_new <= (uint64_t)model->config.n_ctx_train + 1;
    total += (uint64_t)p->lengths[i];
  }
  if (!fits || total != p->n_prompt_ids || p->n_greedy_ids / p->n_new != p->n_probes ||
      p->n_greedy_ids % p->n_new)
    return error_set(err, LLM_ERR_FORMAT, "%s: the lengths in the proof block do not fit together",
                     gguf_where(model->file));
  return LLM_OK;
}

static llm_status check_token_ids(const llm_model *model, const int32_t *ids, size_t n,
                                  llm_error *err) {
  for (size_t i = 0; i < n; i++)
    if (ids[i] < 0 || ids[i] >= model->config.n_vocab)
      return error_set(err, LLM_ERR_FORMAT, "%s: the proof block names token %d of %" PRId64,
                       gguf_where(model->file), (int)ids[i], model->config.n_vocab);
  return LLM_OK;
}

static llm_status proof_read(const llm_model *model, proof_block *p, llm_error *err) {
  const gguf *g = model->file;
  const llm_meta *digests = NULL;
  int64_t n_new = 0;
  memset(p, 0, sizeof *p);
  llm_status status = gguf_get_int(g, "two_file.proof.n_new", 1, 1, INT32_MAX, &n_new, err);
  p->n_new = (size_t)n_new;
  if (!status)
    status = copy_i32(g, "two_file.proof.prompt_ids", &p->prompt_ids, &p->n_prompt_ids, err);
  if (!status)
    status = copy_i32(g, "two_file.proof.prompt_lengths", &p->lengths, &p->n_probes, err);
  if (!status)
    status = copy_i32(g, "two_file.proof.greedy_ids", &p->greedy_ids, &p->n_greedy_ids, err);
  if (!status)
    status = gguf_get_array(g, "two_file.proof.logits_sha256", 1, GGUF_STRING, &digests, err);
  if (status) return status;
  p->digests = digests->data;
  status = check_sums(model, p, (size_t)digests->n_elements, err);
  if (!status) status = check_token_ids(model, p->prompt_ids, p->n_prompt_ids, err);
  if (!status) status = check_token_ids(model, p->greedy_ids, p->n_greedy_ids, err);
  return status;
}

/* ---- verification ---- */

static llm_status verify_hash(const llm_model *model, llm_verify_report *report, llm_error *err) {
  gguf_string expected;
  report->has_hash = gguf_find(model->file, "two_file.tensor_sha256") != NULL;
  if (!report->has_hash) return LLM_OK;
  llm_status status = gguf_get_string(model->file, "two_file.tensor_sha256", 1, &expected, err);
  if (status) return status;
  uint64_t n_bytes;
  char hex[HEX + 1];
  const void *data = gguf_tensor_data(model->file, &n_bytes);
  sha256_hex(data, (size_t)n_bytes, hex);
  if (gguf_string_is(expected, hex)) return LLM_OK;
  return error_set(err, LLM_ERR_FORMAT,
                   "%s: the weights are not the ones that were written: SHA-256 %s, expected %.*s",
                   gguf_where(model->file), hex, gguf_quoted(expected.n_bytes), expected.data);
}

/* Scalar against the file, then the active kernels against scalar. */
static llm_status verify_probe(const llm_model *model, const llm_context_options *options,
                               const proof_block *p, size_t index, const int32_t *prompt,
                               gguf_string digest, float *rows, float *active_rows,
                               llm_verify_report *report, llm_error *err) {
  size_t n_vocab = (size_t)model->config.n_vocab, n_prompt = (size_t)p->lengths[index];
  int32_t *greedy = p->greedy_ids + index * p->n_new, *replayed = p->replayed_ids;
  llm_context_options scalar = scalar_options(options), active = scalar;
  active.kernels = options ? options->kernels : NULL;
  char hex[HEX + 1];
  llm_status status = probe_run(model, scalar, prompt, n_prompt, p->n_new, 0, replayed, rows, err);
  if (status) return status;
  rows_digest(model, rows, p->n_new, hex);
  if (memcmp(replayed, greedy, p->n_new * sizeof *greedy) || !gguf_string_is(digest, hex))
    return error_set(err, LLM_ERR_FORMAT,
                     "%s: probe %zu of the proof block does not give what it records",
                     gguf_where(model->file), index);
  status = probe_run(model, active, prompt, n_prompt, p->n_new, 1, greedy, active_rows, err);
  if (status) return status;
  for (size_t i = 0; i < p->n_new; i++) {
    double a = logprob_nats(rows + i * n_vocab, n_vocab, greedy[i]);
    double diff = fabs(logprob_nats(active_rows + i * n_vocab, n_vocab, greedy[i]) - a);
    if (diff > report->max_logprob_diff || isnan(diff)) report->max_logprob_diff = diff;
  }
  if (report->max_logprob_diff <= LOGPROB_TOLERANCE) return LLM_OK;
  return error_set(err, LLM_ERR_FORMAT,
                   "%s: kernel set %s differs from scalar by %g nats on probe %zu",
                   gguf_where(model->file), report->kernels, report->max_logprob_diff, index);
}

static llm_status verify_proof(const llm_model *model, const llm_context_options *options,
                               llm_verify_report *report, llm_error *err) {
  report->has_proof = gguf_find(model->file, "two_file.proof.n_new") != NULL;
  if (!report->has_proof) return LLM_OK;
  proof_block p;
  llm_status status = proof_read(model, &p, err);
  float *rows = NULL, *active_rows = NULL;
  if (!status) {
    rows = rows_new(model, p.n_new, err);
    active_rows = rows_new(model, p.n_new, err);
    p.replayed_ids = malloc(p.n_new * sizeof *p.replayed_ids);
    if (!rows || !active_rows || !p.replayed_ids)
      status = error_nomem(err, p.n_new * sizeof *p.replayed_ids, "a proof block");
  }
  const int32_t *prompt = p.prompt_ids;
  for (size_t i = 0; i < p.n_probes && !status; i++) {
    gguf_string digest = gguf_next_string(&p.digests);
    status = verify_probe(model, options, &p, i, prompt, digest, rows, active_rows, report, err);
    prompt += p.lengths[i];
    report->n_probes++;
  }
  free(rows);
  free(active_rows);
  proof_free(&p);
  return status;
}

llm_status llm_model_verify(const llm_model *model, const llm_context_options *options,
                            llm_verify_report *report, llm_error *err) {
  memset(report, 0, sizeof *report);
  const char *name = options ? options->kernels : NULL;
  llm_status status = llm_kernels_check(name, err);
  if (status) return status;
  snprintf(report->kernels, sizeof report->kernels, "%s", kernels_find(name)->name);
  status = verify_hash(model, report, err);
  if (!status) status = verify_proof(model, options, report, err);
  if (status) return status;
  if (!report->has_hash && !report->has_proof)
    return error_set(err, LLM_ERR_UNSUPPORTED,
                     "%s carries neither a hash nor a proof block: nothing to verify it against",
                     gguf_where(model->file));
  return error_clear(err);
}
