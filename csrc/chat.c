/* chat.c: answers to conversations. Layer 6; depends on generate, chat_template. A conversation is
 * rendered whole each time, and the context keeps what it already holds of the rendering: the
 * longest common beginning. So an answer never depends on what was asked before in another way, a
 * follow-up question costs its own tokens only, and nothing has to be kept in step. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "generate.h"

typedef struct conversation {
  llm_template which;
  size_t n_system;   /* 1: messages[0] is the system message, which is never forgotten */
  size_t n_messages; /* those of [n_system, first) are forgotten */
  size_t first;
  size_t n_prompt;        /* tokens of the rendering; behind them the context holds the answer */
  llm_message messages[]; /* and, behind them, their texts */
} conversation;

typedef struct id_list {
  int32_t *ids;
  size_t n;
} id_list;

/* ---- the conversation ---- */

static llm_status conversation_copy(conversation **out, llm_template which,
                                    const llm_message *messages, size_t n, llm_error *err) {
  uint64_t bytes = sizeof(conversation) + (uint64_t)n * sizeof *messages;
  for (size_t i = 0; i < n; i++) bytes += messages[i].n_bytes;
  conversation *c = malloc(bytes);
  if (!c) return error_nomem(err, bytes, "a conversation");
  char *text = (char *)(c->messages + n);
  for (size_t i = 0; i < n; i++) {
    size_t n_bytes = messages[i].n_bytes;
    if (n_bytes) memcpy(text, messages[i].text, n_bytes);
    c->messages[i] = (llm_message){messages[i].role, text, n_bytes};
    text += n_bytes;
  }
  c->which = which;
  c->n_messages = n;
  c->first = c->n_system = n > 0 && messages[0].role == LLM_ROLE_SYSTEM;
  *out = c;
  return LLM_OK;
}

/* The message that begins the turn *n turns behind the one at `from`, a turn being a user's message
 * and all up to the next. *n becomes what the turns allow. */
static size_t skip_turns(const conversation *c, size_t from, size_t *n) {
  size_t left = *n, at = from;
  for (size_t i = from + 1; i < c->n_messages && left; i++)
    if (c->messages[i].role == LLM_ROLE_USER) at = i, left--;
  *n -= left;
  return at;
}

/* The ids of what is not forgotten, with the call for an answer. */
static llm_status render(const llm_model *model, const conversation *c, id_list *out,
                         llm_error *err) {
  size_t n = c->n_system + c->n_messages - c->first, capacity;
  llm_message *kept = malloc((n + 1) * sizeof *kept);
  *out = (id_list){NULL, 0};
  if (!kept) return error_nomem(err, n * sizeof *kept, "a conversation");
  memcpy(kept, c->messages, c->n_system * sizeof *kept);
  memcpy(kept + c->n_system, c->messages + c->first, (c->n_messages - c->first) * sizeof *kept);
  llm_status status = llm_chat_render(model, c->which, kept, n, 1, NULL, 0, &out->n, err);
  if ((capacity = out->n) > 0) {
    out->ids = malloc(capacity * sizeof *out->ids);
    status = out->ids
                 ? llm_chat_render(model, c->which, kept, n, 1, out->ids, capacity, &out->n, err)
                 : error_nomem(err, capacity * sizeof *out->ids, "a conversation");
  }
  free(kept);
  return status;
}

/* Forgets the fewest turns, but one at least where there is one before the last, that leave a
 * rendering of `limit` tokens at most with n_more behind it. Found by halving: thousands of turns
 * are rendered a few times, not once each. */
static llm_status render_fitting(const llm_model *model, conversation *c, size_t limit,
                                 size_t n_more, id_list *out, size_t *n_turns, llm_error *err) {
  const size_t from = c->first;
  size_t most = SIZE_MAX;
  skip_turns(c, from, &most);
  for (size_t least = most > 0;; free(out->ids)) {
    *n_turns = least + (most - least) / 2;
    c->first = skip_turns(c, from, n_turns);
    llm_status status = render(model, c, out, err);
    if (status || least == most) return status;
    if (out->n + n_more > limit)
      least = *n_turns + 1;
    else
      most = *n_turns;
  }
}

/* ---- the context ---- */

/* Makes the context hold these ids, n > 0, reading again only what differs. */
static llm_status hold(llm_generator *g, const int32_t *ids, size_t n, llm_error *err) {
  llm_context *c = g->context;
  size_t same = context_common_beginning(c, ids, n);
  int slid = c->n_read > c->n_past;
  if (same == n) same = slid ? 0 : n - 1; /* the last token is read again for its logits */
  llm_status status = LLM_OK;
  if (!slid || same == 0) status = llm_context_truncate(c, (int64_t)same, err);
  return status ? status : llm_context_eval(c, ids + same, n - same, g->logits, 1, err);
}

/* make_room: the answer so far stays, token by token. */
static llm_status forget_turns(llm_generator *g, size_t *n_tokens, size_t *n_turns,
                               llm_error *err) {
  llm_context *c = g->context;
  conversation *conv = g->conversation;
  size_t n_answer = c->n_past - conv->n_prompt, n_before = c->n_past;
  id_list prompt;
  *n_tokens = 0;
  llm_status status =
      render_fitting(c->model, conv, context_after_forgetting(c), n_answer, &prompt, n_turns, err);
  int32_t *all = NULL;
  size_t n = prompt.n + n_answer;
  if (!status && *n_turns && !(all = malloc(n * sizeof *all)))
    status = error_nomem(err, n * sizeof *all, "the conversation to be kept");
  if (all) {
    memcpy(all, prompt.ids, prompt.n * sizeof *all);
    memcpy(all + prompt.n, c->ids + conv->n_prompt, n_answer * sizeof *all);
    conv->n_prompt = prompt.n;
    status = hold(g, all, n, err);
    *n_tokens = n_before - n;
  }
  free(all);
  free(prompt.ids);
  return status;
}

/* ---- public ---- */

static llm_status check_fits(const llm_context *c, const conversation *conv, size_t n,
                             llm_error *err) {
  if (n <= c->n_ctx || context_slides(c)) return LLM_OK;
  if (c->options.on_full == LLM_ON_FULL_STOP)
    return error_set_full(
        err, (int64_t)n, (int64_t)c->n_ctx,
        "the conversation has %zu tokens, the context holds %zu: let it forget, or "
        "raise its size",
        n, c->n_ctx);
  return error_set_full(
      err, (int64_t)n, (int64_t)c->n_ctx,
      "the last message%s has %zu tokens, the context holds %zu: shorten it, or raise "
      "the size of the context",
      conv->n_system ? " with the system message" : "", n, c->n_ctx);
}

static llm_status begin(llm_generator *g, llm_error *err) {
  llm_context *c = g->context;
  conversation *conv = g->conversation;
  id_list ids;
  size_t n_all;
  llm_status status = render(c->model, conv, &ids, err);
  n_all = ids.n;
  if (!status && ids.n > c->n_ctx && c->options.on_full == LLM_ON_FULL_FORGET) {
    free(ids.ids);
    status =
        render_fitting(c->model, conv, context_after_forgetting(c), 0, &ids, &g->forgot_turns, err);
    g->forgot_tokens = n_all - ids.n;
  }
  if (!status) status = check_fits(c, conv, ids.n, err);
  if (!status && ids.n == 0) status = error_set(err, LLM_ERR_ARG, "a conversation of no tokens");
  if (!status) status = hold(g, ids.ids, ids.n, err);
  conv->n_prompt = ids.n;
  if (!status) {
    llm_sampler_reset(g->sampler);
    llm_sampler_accept(g->sampler, ids.ids, ids.n);
  }
  free(ids.ids);
  return status;
}

llm_status llm_chat_start(llm_generator **out, llm_context *context, llm_sampler *sampler,
                          llm_template which, const llm_message *messages, size_t n_messages,
                          const llm_generator_options *options, llm_error *err) {
  llm_status status = generator_allocate(out, context, sampler, options, err);
  if (status) return status;
  llm_generator *g = *out;
  if (g->make_room) g->make_room = forget_turns;
  status = conversation_copy(&g->conversation, which, messages, n_messages, err);
  if (!status) status = begin(g, err);
  if (!status) return LLM_OK;
  llm_generator_free(g);
  *out = NULL;
  return status;
}

size_t llm_generator_n_forgotten(const llm_generator *generator) {
  const conversation *c = generator->conversation;
  return c ? c->first - c->n_system : 0;
}
