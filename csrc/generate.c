/* generate.c: prefill, then one token a step, with text that is never cut inside a UTF-8 character.
 * Layer 6. A step samples from the logits at hand; the sampled token is evaluated at the beginning
 * of the next step, so that its text goes out first and the last one costs nothing. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "context.h"
#include "error.h"
#include "unicode.h"

enum {
  MAX_HELD = 3,       /* bytes of an incomplete UTF-8 character */
  START_CAPACITY = 64 /* of the text: most tokens are shorter */
};

struct llm_generator {
  llm_context *context;
  llm_sampler *sampler;
  int64_t n_left; /* tokens still allowed; negative: no limit */
  llm_finish finish;
  int32_t pending;                      /* sampled, not evaluated yet; -1: none */
  float *logits;                        /* (n_vocab) */
  char *text;                           /* held bytes of earlier tokens, then those of this one */
  size_t n_text, text_capacity, n_sent; /* text[0 .. n_sent) went out with the last step */
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

llm_status llm_generator_new(llm_generator **out, llm_context *context, llm_sampler *sampler,
                             const int32_t *prompt, size_t n_ids, int64_t max_tokens,
                             llm_error *err) {
  *out = NULL;
  int64_t n_vocab = context->model->config.n_vocab;
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
  g->n_left = max_tokens;
  g->pending = -1;
  g->text_capacity = START_CAPACITY;
  llm_status status = llm_context_eval(context, prompt, n_ids, g->logits, 1, err);
  if (status) {
    llm_generator_free(g);
    return status;
  }
  llm_sampler_accept(sampler, prompt, n_ids);
  *out = g;
  return LLM_OK;
}

void llm_generator_free(llm_generator *generator) {
  if (!generator) return;
  free(generator->logits);
  free(generator->text);
  free(generator);
}

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

/* Hands out what is complete, or everything at the end. */
static void emit(llm_generator *g, int32_t id, llm_step *out) {
  g->n_sent = g->n_text - (g->finish ? 0 : incomplete_tail(g->text, g->n_text));
  *out = (llm_step){id, g->finish, g->text, g->n_sent};
}

static int context_is_full(const llm_context *c, size_t n_more) {
  return c->n_past + n_more >= c->n_ctx;
}

llm_status llm_generator_next(llm_generator *g, llm_step *out, llm_error *err) {
  llm_status status = error_clear(err);
  drop_sent(g);
  if (!g->finish && g->n_left == 0) g->finish = LLM_FINISH_LENGTH;
  if (!g->finish && g->pending < 0 && context_is_full(g->context, 0))
    g->finish = LLM_FINISH_CONTEXT;
  if (!g->finish && g->pending >= 0) {
    status = llm_context_eval(g->context, &g->pending, 1, g->logits, 1, err);
    if (status) g->finish = LLM_FINISH_CANCELLED; /* the only failure that is left here */
    g->pending = -1;
  }
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
  status = append_piece(g, id, err);
  if (status) return status;
  g->pending = id;
  if (g->n_left > 0 && --g->n_left == 0)
    g->finish = LLM_FINISH_LENGTH;
  else if (context_is_full(g->context, 1))
    g->finish = LLM_FINISH_CONTEXT;
  emit(g, id, out);
  return LLM_OK;
}
