/* run_json.c: what --json and --embed print. Layer 7. A generation is printed as it goes, so that
 * one continuation at a time is held: the beginning with the first one, then each, then the end. */
#include <inttypes.h>
#include <math.h> /* isfinite only */
#include <stdlib.h>

#include "run.h"

void print_json_string(const char *text, size_t n) {
  putchar('"');
  for (size_t i = 0; i < n;) {
    const unsigned char *s = (const unsigned char *)text + i;
    size_t length = llm_utf8_length(text + i, n - i);
    if (length == 0)
      fputs("\\ufffd", stdout);
    else if (*s == '"' || *s == '\\')
      printf("\\%c", *s);
    else if (*s == '\n')
      fputs("\\n", stdout);
    else if (*s < 0x20 || *s == 0x7f)
      printf("\\u%04x", *s);
    else
      fwrite(s, 1, length, stdout);
    i += length ? length : 1;
  }
  putchar('"');
}

/* ---- tokens with their log-probabilities ---- */

static int is_utf8(const char *text, size_t n) {
  size_t length = 1;
  for (size_t i = 0; i < n && length; i += length) length = llm_utf8_length(text + i, n - i);
  return length != 0;
}

/* The text of one token; its bytes as well where they are no UTF-8. */
static void print_token_text(const llm_tokenizer *tokenizer, int32_t id) {
  char small[256], *text = small;
  size_t n = 0;
  if (llm_tokenizer_decode(tokenizer, &id, 1, 1, small, sizeof small, &n, NULL)) {
    text = malloc(n + 1);
    if (!text || llm_tokenizer_decode(tokenizer, &id, 1, 1, text, n, &n, NULL)) n = 0;
  }
  printf("\"text\": ");
  print_json_string(text, n);
  if (!is_utf8(text, n)) {
    printf(", \"bytes\": [");
    for (size_t i = 0; i < n; i++) printf("%s%d", i ? ", " : "", (unsigned char)text[i]);
    putchar(']');
  }
  if (text != small) free(text);
}

/* Without its closing brace. JSON has no infinity: a probability of 0 is null. */
static void print_scored(const llm_tokenizer *tokenizer, scored_token token) {
  printf("{\"id\": %" PRId32 ", ", token.id);
  print_token_text(tokenizer, token.id);
  if (isfinite(token.logprob))
    printf(", \"logprob\": %.9g", (double)token.logprob);
  else
    printf(", \"logprob\": null");
}

static void print_logprobs(const llm_tokenizer *tokenizer, const choice *out, size_t n_top) {
  printf(", \"logprobs\": [");
  for (size_t i = 0; i < out->n_ids; i++) {
    const scored_token *token = out->scored + i * (1 + n_top);
    if (i) printf(", ");
    print_scored(tokenizer, *token);
    printf(", \"top\": [");
    for (size_t k = 1; k <= n_top; k++) {
      if (k > 1) printf(", ");
      print_scored(tokenizer, token[k]);
      putchar('}');
    }
    printf("]}");
  }
  putchar(']');
}

/* ---- a generation ---- */

static void print_begin(const options *o, const id_list *prompt) {
  printf("{\"prompt_ids\": [");
  print_ids(", ", prompt->ids, prompt->n);
  printf("], ");
  if (o->parallel) printf("\"choices\": [");
}

void print_json_choice(const llm_tokenizer *tokenizer, const options *o, const id_list *prompt,
                       const choice *out, int64_t index) {
  if (index == 0) print_begin(o, prompt);
  if (o->parallel) printf(index ? ", {" : "{");
  printf("\"ids\": [");
  print_ids(", ", out->ids, out->n_ids);
  printf("], \"text\": ");
  print_json_string(out->text.data, out->text.n);
  printf(", \"finish_reason\": \"%s\", \"seed\": %" PRIu64, llm_finish_name(out->finish),
         out->seed);
  if (out->forgot_tokens) printf(", \"forgot_tokens\": %zu", out->forgot_tokens);
  if (o->logprobs >= 0) print_logprobs(tokenizer, out, (size_t)o->logprobs);
  if (o->parallel) putchar('}');
}

void print_json_end(const llm_context *context, const options *o, const timing *t) {
  if (o->parallel) putchar(']');
  printf(", \"n_ctx\": %" PRId64 ", \"kernels\": \"%s\", \"threads\": %d",
         llm_context_n_ctx(context), llm_context_kernels(context),
         (int)llm_context_n_threads(context));
  printf(", \"load_s\": %.6f, \"prefill_s\": %.6f, \"decode_s\": %.6f, \"prefill_tok_s\": %.2f"
         ", \"decode_tok_s\": %.2f}\n",
         t->load, t->prefill, t->decode, rate(t->n_prefilled, t->prefill),
         rate(t->n_decoded, t->decode));
}

/* ---- --embed ---- */

void print_json_embedding(const float *values, size_t n_embd, size_t n_tokens) {
  printf("{\"n_tokens\": %zu, \"embedding\": [", n_tokens);
  for (size_t i = 0; i < n_embd; i++) printf("%s%.9g", i ? ", " : "", (double)values[i]);
  printf("]}\n");
}
