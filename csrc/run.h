/* run.h: what the files of the program share. Layer 7. They see llm.h and this header only. run.c
 * is main and the modes that do not generate, run_options.c reads the command line, run_generate.c
 * continues a prompt, run_chat.c converses, run_json.c prints JSON, run_io.c reads, prints and
 * fails. */
#ifndef LLM_RUN_H
#define LLM_RUN_H

#include <signal.h>
#include <stdint.h>
#include <stdio.h>

#include "llm.h"

enum { EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_INTERRUPTED = 130 /* 128 + SIGINT */ };

/* ---- run_options.c ---- */

typedef struct options {
  const char *path, *prompt, *score_path, *kernels, *system, *template_name;
  int64_t max_tokens, n_ctx, threads, stride;
  int64_t parallel;            /* continuations; 0: one, without a frame */
  int64_t logprobs;            /* alternatives per token; -1: no log-probabilities */
  llm_sampler_options sampler; /* its biases and the stop strings lie in memory never freed */
  size_t n_stop;
  const char **stop;
  size_t *stop_bytes;
  int on_full;      /* llm_on_full; -1: forget in a chat, else stop */
  llm_type kv_type; /* of keys and values */
  int seed_given, special, no_echo, json, info, verify, tokens, embed, chat, long_context;
} options;

/* Ends the program on wrong usage, --help and --version. */
options parse_arguments(int argc, char **argv);
extern const char *const on_full_names[3]; /* by llm_on_full */
llm_on_full context_mode(const options *o);
llm_generator_options generator_options(const options *o);

/* ---- run.c ---- */

extern volatile sig_atomic_t interrupted; /* 1 after Ctrl-C; a second one ends what does not read */
/* Whether Ctrl-C cuts what waits to read or write. Reading it does; what is printed goes on to its
 * end, since stdio drops what a cut write had not written. */
void let_interrupt_cut(int reading);

/* ---- run_io.c ---- */

/* One line on standard error. `format` has one %s, for `what`. */
_Noreturn void usage_error(const char *format, const char *what);
int failed(const llm_error *err);     /* EXIT_FAILED, or EXIT_INTERRUPTED where that cut it, */
int failed_errno(const char *what);   /*   with errno's text */
int failed_to_read(const char *what); /* the same, but EXIT_INTERRUPTED after Ctrl-C */
int finish_stdout(int status);        /* status, or EXIT_FAILED when not all could be written */

/* Room for `needed` elements of `size` bytes; 0: no memory, all is as it was. */
int grow(void **data, size_t *capacity, size_t needed, size_t size);

typedef struct bytes {
  char *data;
  size_t n, capacity;
} bytes;

/* Adds bytes, and a NUL behind them that does not count; 0: no memory, all is as it was. */
int append(bytes *b, const char *data, size_t n);
/* All of a stream; NULL data and errno on failure, or `interrupted`. */
bytes read_all(FILE *stream);

typedef struct id_list {
  int32_t *ids;
  size_t n;
} id_list;

/* Tokens of a text, BOS first where the file asks for it. The caller frees them, failed or not. */
llm_status tokenize(const llm_tokenizer *tokenizer, bytes text, int parse_special, id_list *out,
                    llm_error *err);

double now(void);                      /* seconds of a clock that never goes back */
double rate(size_t n, double seconds); /* per second; 0 where no time passed */
void print_ids(const char *separator, const int32_t *ids, size_t n);
/* A string of the file with control characters and what is not UTF-8 made visible: it goes to a
 * terminal. U+0080 to U+009F are control characters too, and begin escape sequences. */
void print_escaped(const char *text, size_t n);

/* ---- run_generate.c ---- */

/* Continues the prompt on standard output; returns the exit status. */
int generate(llm_context *context, const llm_tokenizer *tokenizer, const options *o, bytes prompt,
             double load_seconds);

/* "[forgot 3 turns, 812 tokens; window 4096]" on standard error, where something was. */
void print_forgotten(const llm_step *step, const llm_context *context);

/* ---- run_chat.c ---- */

/* Answers the first message, where there is one, and then line after line of standard input;
 * returns the exit status. */
int converse(llm_context *context, const llm_model *model, const options *o, bytes first);

/* ---- run_json.c ---- */

typedef struct scored_token {
  int32_t id;
  float logprob;
} scored_token;

/* One continuation. */
typedef struct choice {
  uint64_t seed;
  bytes text; /* kept for --json */
  int32_t *ids;
  size_t n_ids, ids_capacity;
  scored_token *scored; /* with --logprobs N: N + 1 for each id, itself first */
  size_t scored_capacity;
  llm_finish finish;
  size_t forgot_tokens;
} choice;

typedef struct timing {
  double load, prefill, decode;
  size_t n_prefilled, n_decoded; /* tokens read in the time `prefill`, made in `decode` */
} timing;

/* A JSON string; bytes that are not UTF-8 become U+FFFD. */
void print_json_string(const char *text, size_t n);
/* A generation is printed as it goes: its choices by index from 0, then the end. */
void print_json_choice(const llm_tokenizer *tokenizer, const options *o, const id_list *prompt,
                       const choice *out, int64_t index);
void print_json_end(const llm_context *context, const options *o, const timing *t);
void print_json_embedding(const float *values, size_t n_embd, size_t n_tokens);

#endif
