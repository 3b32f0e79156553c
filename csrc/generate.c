/* generate.c: prefill, then one token a step, with text that is never cut inside a UTF-8 character.
 * Layer 6. A step samples from the logits at hand; the sampled token is evaluated at the beginning
 * of the next step, so that its text goes out first and the last one costs nothing. */
#include <inttypes.h>
#include <math.h> /* NAN only */
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "generate.h"
#include "unicode.h"

enum {
  MAX_HELD = 3,       /* bytes of an incomplete UTF-8 character */
  START_CAPACITY = 64 /* of the text: most tokens are shorter */
};

const char *llm_finish_name(llm_finish finish) {
  switch (finish) {
  case LLM_FINISH_NONE: return "none";
  case LLM_FINISH_STOP: return "stop";
  case LLM_FINISH_LENGTH: return "length";
  case LLM_FINISH_CONTEXT: return "context";
  case LLM_FINISH_CANCELLED: return "cancelled";
  }
  return NULL;
}

/* ---- making room ---- */

/* Of n ids those that stay when a context forgets: BOS where the text begins with it, and the
 * newest. Moved together; returns how many. */
static size_t keep_newest(const llm_context *c, int32_t *ids, size_t n) {
  size_t n_first = n && ids[0] == llm_tokenizer_bos(c->model->tokenizer);
  size_t n_keep = context_after_forgetting(c);
  if (n <= n_keep) return n;
  memmove(ids + n_first, ids + n - (n_keep - n_first), (n_keep - n_first) * sizeof *ids);
  return n_keep;
}

/* Replaces what the context holds by the newest of it and n_more ids behind it, which together are
 * longer than the window; *n_dropped: how many are gone. */
static llm_status read_newest(llm_generator *g, const int32_t *more, size_t n_more,
                              size_t *n_dropped, llm_error *err) {
  llm_context *c = g->context;
  size_t n = c->n_past + n_more, bytes = n * sizeof(int32_t);
  int32_t *ids = malloc(bytes);
  if (!ids) return error_nomem(err, bytes, "the text to be kept");
  memcpy(ids, c->ids, c->n_past * sizeof *ids);
  if (n_more) memcpy(ids + c->n_past, more, n_more * sizeof *ids);
  size_t n_kept = keep_newest(c, ids, n);
  llm_status status = llm_context_truncate(c, 0, err);
  if (!status) status = llm_context_eval(c, ids, n_kept, g->logits, 1, err);
  free(ids);
  *n_dropped = n - n_kept;
  return status;
}

static llm_status drop_oldest(llm_generator *g, size_t *n_tokens, size_t *n_turns, llm_error *err) {
  *n_turns = 0;
  return read_newest(g, NULL, 0, n_tokens, err);
}

/* ---- construction ---- */

llm_generator_options llm_generator_default_options(void) {
  return (llm_generator_options){.max_tokens = -1, .n_top = -1};
}

static llm_status allocate_top(llm_generator *g, int64_t n_top, llm_error *err) {
  int64_t n_vocab = g->context->model->config.n_vocab;
  if (n_top > n_vocab)
    return error_set(err, LLM_ERR_ARG,
                     "%" PRId64 " alternatives asked for in a vocabulary of %" PRId64, n_top,
                     n_vocab);
  g->n_top = n_top;
  if (n_top <= 0) return LLM_OK;
  g->top_ids = malloc((size_t)n_top * sizeof *g->top_ids);
  g->top_logprobs = malloc((size_t)n_top * sizeof *g->top_logprobs);
  return g->top_ids && g->top_logprobs ? LLM_OK : error_nomem(err, (uint64_t)n_top * 8, "a step");
}

llm_status generator_allocate(llm_generator **out, llm_context *context, llm_sampler *sampler,
                              const llm_generator_options *options, llm_error *err) {
  *out = NULL;
  int64_t n_vocab = context->model->config.n_vocab;
  llm_generator_options o = options ? *options : llm_generator_default_options();
  if (llm_sampler_n_vocab(sampler) != n_vocab)
    return error_set(err, LLM_ERR_ARG,
                     "the sampler picks from %" PRId64 " tokens, the model has %" PRId64,
                     llm_sampler_n_vocab(sampler), n_vocab);
  llm_generator *g = calloc(1, sizeof *g);
  size_t logits_bytes = (size_t)n_vocab * sizeof *g->logits;
  if (g) g->logits = malloc(logits_bytes);
  if (g) g->text = malloc(START_CAPACITY);
  if (!g || !g->logits || !g->text) {
    llm_generator_free(g);
    return error_nomem(err, logits_bytes, "a generator");
  }
  g->context = context;
  g->sampler = sampler;
  g->n_left = o.max_tokens;
  g->pending = -1;
  g->text_capacity = START_CAPACITY;
  if (context->options.on_full == LLM_ON_FULL_FORGET) g->make_room = drop_oldest;
  llm_status status = allocate_top(g, o.n_top, err);
  if (!status) status = stop_set_init(&g->stops, o.stop, o.stop_bytes, o.n_stop, err);
  if (status)
    llm_generator_free(g);
  else
    *out = g;
  return status;
}

llm_status llm_generator_new(llm_generator **out, llm_context *context, llm_sampler *sampler,
                             const int32_t *prompt, size_t n_ids,
                             const llm_generator_options *options, llm_error *err) {
  llm_status status = generator_allocate(out, context, sampler, options, err);
  if (status) return status;
  llm_generator *g = *out;
  if (g->make_room && n_ids > context->n_ctx - context->n_past)
    status = read_newest(g, prompt, n_ids, &g->forgot_tokens, err);
  else
    status = llm_context_eval(context, prompt, n_ids, g->logits, 1, err);
  if (status) {
    llm_generator_free(g);
    *out = NULL;
    return status;
  }
  llm_sampler_accept(sampler, prompt, n_ids);
  return LLM_OK;
}

void llm_generator_free(llm_generator *generator) {
  if (!generator) return;
  stop_set_free(&generator->stops);
  free(generator->conversation);
  free(generator->top_ids);
  free(generator->top_logprobs);
  free(generator->logits);
  free(generator->text);
  free(generator);
}

/* ---- text ---- */

/* How many bytes at the end of text begin a UTF-8 character that is not complete yet. */
static size_t incomplete_tail(const char *text, size_t n) {
  for (size_t back = 1; back <= MAX_HELD && back <= n; back++) {
    const uint8_t *lead = (const uint8_t *)text + n - back;
    uint32_t code_point;
    if ((*lead & 0xc0) == 0x80) continue;
    int begins = *lead >= 0xc2 && *lead <= 0xf4; /* a character of several bytes */
    int is_cut =
        begins && utf8_decode(lead, back, &code_point) == back && code_point == UTF8_INVALID;
    return is_cut ? back : 0;
  }
  return 0;
}

/* Appends the bytes of a token behind what was held back. */
static llm_status append_piece(llm_generator *g, int32_t id, llm_error *err) {
  const llm_tokenizer *tokenizer = g->context->model->tokenizer;
  size_t n = 0, room = g->text_capacity - g->n_text;
  llm_status status =
      llm_tokenizer_decode(tokenizer, &id, 1, 0, g->text + g->n_text, room, &n, err);
  if (n > room) {
    char *grown = realloc(g->text, g->n_text + n);
    if (!grown) return error_nomem(err, g->n_text + n, "a piece of text");
    g->text = grown;
    g->text_capacity = g->n_text + n;
    status = llm_tokenizer_decode(tokenizer, &id, 1, 0, g->text + g->n_text, n, &n, err);
  }
  g->n_text += n;
  return status;
}

static void drop_sent(llm_generator *g) {
  if (g->n_sent) memmove(g->text, g->text + g->n_sent, g->n_text - g->n_sent);
  g->n_text -= g->n_sent;
  g->n_sent = 0;
}

/* Ends the text before the first stop string in the bytes from n_old on; what of it came with
 * earlier tokens was held back. */
static void look_for_stops(llm_generator *g, size_t n_old) {
  for (size_t i = n_old; i < g->n_text; i++) {
    size_t n = stop_set_feed(&g->stops, (uint8_t)g->text[i]);
    if (n == 0) continue;
    g->n_text = i + 1 - n;
    g->finish = LLM_FINISH_STOP;
    return;
  }
}

/* Bytes that may go out: no beginning of a stop string, no cut character. */
static size_t sendable(const llm_generator *g) {
  if (g->finish) return g->n_text;
  size_t n = g->n_text - stop_set_held(&g->stops);
  return n - incomplete_tail(g->text, n);
}

/* Hands out what is complete, or everything at the end. */
static void emit(llm_generator *g, int32_t id, llm_step *out) {
  g->n_sent = sendable(g);
  int has_top = id >= 0 && g->n_top >= 0;
  *out = (llm_step){
      .id = id,
      .finish = g->finish,
      .text = g->text,
      .n_bytes = g->n_sent,
      .forgot_tokens = g->forgot_tokens,
      .forgot_turns = g->forgot_turns,
      .logprob = has_top ? g->logprob : NAN,
      .n_top = has_top ? (size_t)g->n_top : 0,
      .top_ids = g->top_ids,
      .top_logprobs = g->top_logprobs,
  };
  g->forgot_tokens = g->forgot_turns = 0;
}

/* ---- a step ---- */

static int is_full(const llm_generator *g, size_t n_more) {
  return !context_slides(g->context) && g->context->n_past + n_more >= g->context->n_ctx;
}

/* Evaluates the token of the last step, making room for it where the context forgets. */
static llm_status evaluate_pending(llm_generator *g, llm_error *err) {
  llm_status status = LLM_OK;
  if (is_full(g, 0)) { /* without make_room where others have filled it since */
    if (g->make_room) status = g->make_room(g, &g->forgot_tokens, &g->forgot_turns, err);
    if (!status && g->forgot_tokens == 0) g->finish = LLM_FINISH_CONTEXT;
  }
  if (!status && !g->finish)
    status = llm_context_eval(g->context, &g->pending, 1, g->logits, 1, err);
  g->pending = -1;
  if (status) g->finish = LLM_FINISH_CANCELLED;
  return status;
}

llm_status llm_generator_next(llm_generator *g, llm_step *out, llm_error *err) {
  llm_status status = error_clear(err);
  drop_sent(g);
  if (!g->finish && g->n_left == 0) g->finish = LLM_FINISH_LENGTH;
  if (!g->finish && g->pending < 0 && is_full(g, 0) && !g->make_room)
    g->finish = LLM_FINISH_CONTEXT;
  if (!g->finish && g->pending >= 0) status = evaluate_pending(g, err);
  if (g->finish) {
    emit(g, -1, out);
    return status;
  }
  int32_t id = llm_sampler_sample(g->sampler, g->logits);
  llm_sampler_accept(g->sampler, &id, 1);
  if (llm_tokenizer_is_eog(g->context->model->tokenizer, id)) {
    g->finish = LLM_FINISH_STOP;
    emit(g, -1, out);
    return LLM_OK;
  }
  size_t n_old = g->n_text;
  if (g->n_top >= 0)
    status = llm_logprobs(g->logits, g->context->model->config.n_vocab, id, (size_t)g->n_top,
                          g->top_ids, g->top_logprobs, &g->logprob, err);
  if (!status) status = append_piece(g, id, err);
  if (status) {
    g->finish = LLM_FINISH_CANCELLED;
    emit(g, -1, out);
    return status;
  }
  g->pending = id;
  if (g->n_left > 0) g->n_left--;
  look_for_stops(g, n_old);
  if (!g->finish && g->n_left == 0) g->finish = LLM_FINISH_LENGTH;
  if (!g->finish && is_full(g, 1) && !g->make_room) g->finish = LLM_FINISH_CONTEXT;
  emit(g, id, out);
  return LLM_OK;
}
