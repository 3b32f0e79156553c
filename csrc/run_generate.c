/* run_generate.c: continues a prompt, as text or as one JSON object. Layer 7. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "run.h"

typedef struct output {
  bytes text; /* kept for --json */
  size_t text_capacity;
  int32_t *ids;
  size_t n_ids, ids_capacity;
  llm_finish finish;
} output;

static int grow(void **data, size_t *capacity, size_t needed, size_t size) {
  if (needed <= *capacity) return 1;
  size_t wanted = 2 * needed + 64;
  void *grown = realloc(*data, wanted * size);
  if (!grown) return 0;
  *data = grown;
  *capacity = wanted;
  return 1;
}

static int keep_step(output *out, const llm_step *step) {
  if (!grow((void **)&out->text.data, &out->text_capacity, out->text.n + step->n_bytes + 1, 1) ||
      !grow((void **)&out->ids, &out->ids_capacity, out->n_ids + 1, sizeof *out->ids))
    return 0;
  if (step->n_bytes) memcpy(out->text.data + out->text.n, step->text, step->n_bytes);
  out->text.n += step->n_bytes;
  if (step->id >= 0) out->ids[out->n_ids++] = step->id;
  out->finish = step->finish;
  return 1;
}

typedef struct timing {
  double load, prefill, decode;
} timing;

static double rate(size_t n, double seconds) { return seconds > 0 ? (double)n / seconds : 0; }

static void print_json(const llm_context *context, const options *o, const id_list *prompt,
                       const output *out, const timing *t) {
  printf("{\"prompt_ids\": [");
  print_ids(", ", prompt->ids, prompt->n);
  printf("], \"ids\": [");
  print_ids(", ", out->ids, out->n_ids);
  printf("], \"text\": ");
  print_json_string(out->text.data, out->text.n);
  printf(", \"finish_reason\": \"%s\", \"n_ctx\": %" PRId64 ", \"seed\": %" PRIu64
         ", \"kernels\": \"%s\", \"threads\": %d",
         llm_finish_name(out->finish), llm_context_n_ctx(context), o->sampler.seed,
         llm_context_kernels(context), (int)llm_context_n_threads(context));
  /* The first new token comes out of the prefill: decoding made the others. */
  size_t decoded = out->n_ids ? out->n_ids - 1 : 0;
  printf(", \"load_s\": %.6f, \"prefill_s\": %.6f, \"decode_s\": %.6f, \"prefill_tok_s\": %.2f"
         ", \"decode_tok_s\": %.2f}\n",
         t->load, t->prefill, t->decode, rate(prompt->n, t->prefill), rate(decoded, t->decode));
}

/* Steps until the end, printing as it goes unless all is kept for JSON. */
static llm_status run_steps(llm_generator *generator, const options *o, output *out,
                            llm_error *err) {
  while (!out->finish) {
    llm_step step;
    llm_status status = llm_generator_next(generator, &step, err);
    if (status && status != LLM_ERR_CANCELLED) return status;
    if (interrupted && !step.finish) step.finish = LLM_FINISH_CANCELLED;
    if (!keep_step(out, &step)) {
      snprintf(err->message, sizeof err->message, "out of memory for the generated text");
      return err->status = LLM_ERR_NOMEM;
    }
    if (o->json) continue;
    if (step.n_bytes) fwrite(step.text, 1, step.n_bytes, stdout);
    out->text.n = 0;
    if (fflush(stdout)) break; /* reported by finish_stdout */
  }
  return LLM_OK;
}

/* A model continues something: nothing at all is BOS or EOS, where the file has one. */
static llm_status begin_with_nothing(const llm_tokenizer *tokenizer, id_list *ids, llm_error *err) {
  int32_t bos = llm_tokenizer_bos(tokenizer);
  ids->ids[0] = bos >= 0 ? bos : llm_tokenizer_eos(tokenizer);
  ids->n = 1;
  if (ids->ids[0] >= 0) return LLM_OK;
  snprintf(err->message, sizeof err->message,
           "the prompt has no tokens, and the file names none to begin with");
  return err->status = LLM_ERR_ARG;
}

int generate(llm_context *context, const llm_tokenizer *tokenizer, const options *o, bytes prompt,
             double load_seconds) {
  id_list ids = {NULL, 0};
  output out = {0};
  timing t = {.load = load_seconds};
  llm_sampler *sampler = NULL;
  llm_generator *generator = NULL;
  llm_generator_options steps = llm_generator_default_options();
  llm_error err;
  steps.max_tokens = o->max_tokens;
  llm_status status = tokenize(tokenizer, prompt, o->special, &ids, &err);
  if (!status && ids.n == 0) status = begin_with_nothing(tokenizer, &ids, &err);
  if (!status)
    status = llm_sampler_new(&sampler, llm_tokenizer_n_vocab(tokenizer), &o->sampler, &err);
  double start = now();
  if (!status)
    status = llm_generator_new(&generator, context, sampler, ids.ids, ids.n, &steps, &err);
  if (status == LLM_ERR_CONTEXT_FULL)
    snprintf(err.message, sizeof err.message,
             "the prompt has %" PRId64 " tokens, the context holds %" PRId64
             ": shorten it or raise --ctx",
             err.found, err.limit);
  t.prefill = now() - start;
  start = now();
  if (status == LLM_ERR_CANCELLED) {
    out.finish = LLM_FINISH_CANCELLED;
    status = LLM_OK;
  } else if (!status) {
    if (!o->json && !o->no_echo && prompt.n) fwrite(prompt.data, 1, prompt.n, stdout);
    status = run_steps(generator, o, &out, &err);
  }
  t.decode = now() - start;
  if (!status && o->json) print_json(context, o, &ids, &out, &t);
  if (!status && !o->json) {
    putchar('\n');
    if (!fflush(stdout)) /* else finish_stdout says the one line */
      fprintf(stderr,
              "[%zu + %zu tokens, finish %s, seed %" PRIu64
              ", prefill %.1f tok/s, decode %.1f tok/s]\n",
              ids.n, out.n_ids, llm_finish_name(out.finish), o->sampler.seed,
              rate(ids.n, t.prefill), rate(out.n_ids ? out.n_ids - 1 : 0, t.decode));
  }
  llm_generator_free(generator);
  llm_sampler_free(sampler);
  free(out.text.data);
  free(out.ids);
  free(ids.ids);
  return finish_stdout(status ? failed(&err) : 0);
}
