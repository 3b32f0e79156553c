/* run_generate.c: continues a prompt, once or several times, as text or as one JSON object.
 * Layer 7. Several continuations read the prompt once: the context is cut back to it and its last
 * token is evaluated again, which gives the bits of a run of their own (DESIGN rule 6). */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "run.h"

typedef struct generation {
  llm_context *context;
  const llm_tokenizer *tokenizer;
  const options *o;
  id_list prompt;
  bytes prompt_text;
  int prompt_is_held; /* 1: the context begins with the whole prompt */
  timing t;
} generation;

/* ---- one continuation ---- */

void print_forgotten(const llm_step *step, const llm_context *context) {
  if (step->forgot_tokens == 0) return;
  fputs("[forgot ", stderr);
  if (step->forgot_turns)
    fprintf(stderr, "%zu turn%s, ", step->forgot_turns, step->forgot_turns > 1 ? "s" : "");
  fprintf(stderr, "%zu tokens; window %" PRId64 "]\n", step->forgot_tokens,
          llm_context_n_ctx(context));
}

static int keep_logprobs(choice *out, const llm_step *step) {
  size_t n = 1 + step->n_top, at = out->n_ids * n;
  if (!grow((void **)&out->scored, &out->scored_capacity, at + n, sizeof *out->scored)) return 0;
  out->scored[at] = (scored_token){step->id, step->logprob};
  for (size_t i = 0; i < step->n_top; i++)
    out->scored[at + 1 + i] = (scored_token){step->top_ids[i], step->top_logprobs[i]};
  return 1;
}

static int keep_step(choice *out, const llm_step *step, int with_logprobs) {
  if (!append(&out->text, step->text, step->n_bytes) ||
      !grow((void **)&out->ids, &out->ids_capacity, out->n_ids + 1, sizeof *out->ids))
    return 0;
  out->finish = step->finish;
  if (step->id < 0) return 1;
  if (with_logprobs && !keep_logprobs(out, step)) return 0;
  out->ids[out->n_ids++] = step->id;
  return 1;
}

/* Steps until the end, printing as it goes unless all is kept for JSON. */
static llm_status run_steps(const generation *g, llm_generator *generator, choice *out,
                            llm_error *err) {
  const options *o = g->o;
  while (!out->finish) {
    llm_step step;
    llm_status status = llm_generator_next(generator, &step, err);
    if (status && status != LLM_ERR_CANCELLED) return status;
    if (interrupted && !step.finish) step.finish = LLM_FINISH_CANCELLED;
    print_forgotten(&step, g->context);
    out->forgot_tokens += step.forgot_tokens;
    if (!keep_step(out, &step, o->logprobs >= 0)) {
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

/* Reads what of the prompt the context does not hold yet. */
static llm_status begin(generation *g, llm_sampler *sampler, llm_generator **generator,
                        llm_error *err) {
  llm_generator_options steps = generator_options(g->o);
  size_t held = g->prompt_is_held ? g->prompt.n - 1 : 0;
  llm_status status = llm_context_truncate(g->context, (int64_t)held, err);
  if (status) return status;
  llm_sampler_accept(sampler, g->prompt.ids, held);
  status = llm_generator_new(generator, g->context, sampler, g->prompt.ids + held,
                             g->prompt.n - held, &steps, err);
  if (status == LLM_ERR_CONTEXT_FULL)
    snprintf(err->message, sizeof err->message,
             "the prompt has %" PRId64 " tokens, the context holds %" PRId64
             ": shorten it, raise --ctx or let it --on-full forget",
             err->found, err->limit);
  return status;
}

/* The frame of a continuation among several, and the prompt before it. */
static void print_head(const generation *g, const choice *out, int64_t index) {
  if (g->o->json) return;
  if (g->o->parallel)
    printf("%s==== %" PRId64 " of %" PRId64 ", seed %" PRIu64 " ====\n", index ? "\n" : "",
           index + 1, g->o->parallel, out->seed);
  if (!g->o->no_echo && g->prompt_text.n) fwrite(g->prompt_text.data, 1, g->prompt_text.n, stdout);
}

static llm_status continue_prompt(generation *g, choice *out, int64_t index, llm_error *err) {
  llm_sampler *sampler = NULL;
  llm_generator *generator = NULL;
  llm_sampler_options sampling = g->o->sampler;
  double start = now(), prefilled;
  sampling.seed = out->seed;
  llm_status status =
      llm_sampler_new(&sampler, llm_tokenizer_n_vocab(g->tokenizer), &sampling, err);
  if (!status) status = begin(g, sampler, &generator, err);
  prefilled = now();
  if (index == 0) {
    int slides = context_mode(g->o) == LLM_ON_FULL_SLIDE; /* reads more than it holds */
    g->t.prefill = prefilled - start;
    g->t.n_prefilled = slides ? g->prompt.n : (size_t)llm_context_n_past(g->context);
  }
  if (status == LLM_ERR_CANCELLED) {
    out->finish = LLM_FINISH_CANCELLED;
    status = LLM_OK;
  } else if (!status) {
    print_head(g, out, index);
    status = run_steps(g, generator, out, err);
  }
  g->t.decode = now() - (index ? start : prefilled);
  g->t.n_decoded = out->n_ids - (index == 0 && out->n_ids); /* the first came out of the prefill */
  g->prompt_is_held = (int64_t)(g->prompt.n + out->n_ids) <= llm_context_n_ctx(g->context);
  llm_generator_free(generator);
  llm_sampler_free(sampler);
  return status;
}

/* ---- all of them ---- */

static void print_summary(const generation *g, const choice *out, int64_t index) {
  putchar('\n');
  if (fflush(stdout)) return; /* finish_stdout says the one line */
  fprintf(stderr, "[%zu + %zu tokens, finish %s, seed %" PRIu64, g->prompt.n, out->n_ids,
          llm_finish_name(out->finish), out->seed);
  if (index == 0) fprintf(stderr, ", prefill %.1f tok/s", rate(g->t.n_prefilled, g->t.prefill));
  fprintf(stderr, ", decode %.1f tok/s]\n", rate(g->t.n_decoded, g->t.decode));
}

static void free_choice(choice *out) {
  free(out->text.data);
  free(out->ids);
  free(out->scored);
}

static llm_status continue_all(generation *g, llm_error *err) {
  int64_t n = g->o->parallel ? g->o->parallel : 1;
  timing total = g->t;
  llm_status status = LLM_OK;
  for (int64_t i = 0; i < n && !status && !ferror(stdout); i++) {
    if (i && interrupted) break;
    choice out = {.seed = g->o->sampler.seed + (uint64_t)i};
    status = continue_prompt(g, &out, i, err);
    if (!status && g->o->json)
      print_json_choice(g->tokenizer, g->o, &g->prompt, &out, i);
    else if (!status)
      print_summary(g, &out, i);
    if (i == 0) total = g->t;
    if (i) total.decode += g->t.decode, total.n_decoded += g->t.n_decoded;
    free_choice(&out);
  }
  if (!status && g->o->json) print_json_end(g->context, g->o, &total);
  return status;
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
  generation g = {.context = context, .tokenizer = tokenizer, .o = o, .prompt_text = prompt};
  llm_error err;
  g.t.load = load_seconds;
  llm_status status = tokenize(tokenizer, prompt, o->special, &g.prompt, &err);
  if (!status && g.prompt.n == 0) status = begin_with_nothing(tokenizer, &g.prompt, &err);
  if (!status) status = continue_all(&g, &err);
  free(g.prompt.ids);
  if (status) return finish_stdout(failed(&err));
  return finish_stdout(interrupted ? EXIT_INTERRUPTED : 0);
}
