/* run.c: the program. main, signals, and the modes that do not generate. Layer 7: what the engine
 * does is behind llm.h. Exit status: 0, 1 for a failure, 2 for wrong usage, 130 where Ctrl-C cut
 * work or the reading of its input short. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <inttypes.h>
#include <math.h> /* exp only */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "run.h"

/* ---- signals: Ctrl-C ends a text or its reading in good order, a second one the program ---- */

volatile sig_atomic_t interrupted;
/* While it reads, a second one too only cuts: the first may have come just before the wait. */
static volatile sig_atomic_t is_reading;

static void on_interrupt(int signal_number) {
  if (interrupted && !is_reading) _exit(128 + signal_number);
  interrupted = 1;
}

/* A mapped file that is cut or replaced while it is read ends in SIGBUS. */
static void on_bus_error(int signal_number) {
  static const char text[] = "run: the parameter file changed or could not be read while in use\n";
  (void)signal_number;
  ssize_t ignored = write(STDERR_FILENO, text, sizeof text - 1);
  (void)ignored;
  _exit(EXIT_FAILED);
}

void let_interrupt_cut(int reading) {
  struct sigaction old, action = {.sa_handler = on_interrupt, .sa_flags = reading ? 0 : SA_RESTART};
  if (!sigaction(SIGINT, NULL, &old) && old.sa_handler == SIG_IGN) return; /* a script's "&" */
  sigaction(SIGINT, &action, NULL);
  is_reading = reading;
}

static void install_signals(void) {
  struct sigaction action = {.sa_handler = on_bus_error};
  let_interrupt_cut(0);
  sigaction(SIGBUS, &action, NULL);
  action.sa_handler = SIG_IGN; /* a file that may not grow is an error of write, with one line */
  sigaction(SIGXFSZ, &action, NULL);
}

static int cancel_check(void *user) {
  (void)user;
  return interrupted;
}

/* ---- --info ---- */

enum { META_FLOAT32 = 6, META_STRING = 8 }; /* GGUF's types of values */

static int find_meta(const llm_model *model, const char *key, int32_t value_type, llm_meta *out) {
  for (size_t i = 0; i < llm_model_n_meta(model); i++)
    if (!llm_model_meta(model, i, out, NULL) && !strcmp(out->key, key))
      return out->value_type == value_type;
  return 0;
}

static void print_meta(const llm_model *model, const char *key, const char *label) {
  llm_meta meta;
  if (!find_meta(model, key, META_STRING, &meta)) return;
  printf("%-14s ", label);
  print_escaped(meta.data, (size_t)meta.n_bytes);
  putchar('\n');
}

/* What a file was rounded to and what that cost, where it says so. */
static void print_quantization(const llm_model *model) {
  llm_meta meta;
  float change;
  if (!find_meta(model, "two_file.quantization.type", META_STRING, &meta)) return;
  print_meta(model, "two_file.quantization.type", "quantized");
  if (!find_meta(model, "two_file.quantization.bits_per_byte_change", META_FLOAT32, &meta)) return;
  memcpy(&change, meta.data, sizeof change);
  printf("%-14s %+.4f bits per byte by rounding\n", "", (double)change);
}

static void print_types(const llm_model *model) {
  uint64_t bytes_of[64] = {0};
  llm_tensor tensor;
  for (size_t i = 0; i < llm_model_n_tensors(model); i++)
    if (!llm_model_tensor(model, i, &tensor, NULL)) bytes_of[tensor.type & 63] += tensor.n_bytes;
  printf("%-14s", "tensors");
  for (int type = 0; type < 64; type++)
    if (bytes_of[type])
      printf(" %s %.1f MB", llm_type_describe((llm_type)type).name, (double)bytes_of[type] / 1e6);
  putchar('\n');
}

static void print_bytes(uint64_t n, const char *after) {
  if (n >= 1000000000)
    printf("%.2f GB%s", (double)n / 1e9, after);
  else
    printf("%.2f MB%s", (double)n / 1e6, after);
}

static void print_needs(const llm_needs *n, llm_type kv_type) {
  printf("%-14s ", "memory");
  print_bytes(n->total_bytes, ": the file, ");
  print_bytes(n->kv_bytes, " of keys and values of ");
  printf("%" PRId64 " tokens (%s), ", n->n_ctx, llm_type_describe(kv_type).name);
  print_bytes(n->scratch_bytes, " of scratch");
  if (n->machine_bytes) {
    fputs("; the machine has ", stdout);
    print_bytes(n->machine_bytes, "");
  }
  printf("\n%-14s %.3g s a token or more: ", "speed", n->seconds_per_token);
  print_bytes(n->token_bytes, " of weights");
  printf(" at %.1f GB/s, measured on %d threads (%s kernels)\n", n->bytes_per_second / 1e9,
         (int)n->n_threads, n->kernels);
  if (n->machine_bytes && n->total_bytes > n->machine_bytes)
    printf("%-14s it does not fit: the disk sets the pace, %.3g s a token at 1 GB/s\n", "",
           (double)n->token_bytes / 1e9);
}

static int show_info(const llm_model *model, const options *o,
                     const llm_context_options *context_options) {
  const llm_config *c = llm_model_config(model);
  const llm_tokenizer *t = llm_model_tokenizer(model);
  llm_needs needs;
  llm_error err;
  print_meta(model, "general.name", "name");
  printf("%-14s %s\n", "architecture", c->architecture);
  printf("%-14s %" PRIu64 " (%.1f M), file of %" PRIu64 " bytes\n", "parameters",
         llm_model_n_params(model), (double)llm_model_n_params(model) / 1e6,
         llm_model_file_bytes(model));
  print_types(model);
  printf("%-14s n_layer %" PRId64 ", n_embd %" PRId64 ", n_head %" PRId64 ", n_kv_head %" PRId64
         ", head_dim %" PRId64 ", n_ff %" PRId64 "\n",
         "shape", c->n_layer, c->n_embd, c->n_head, c->n_kv_head, c->head_dim, c->n_ff);
  printf("%-14s trained %" PRId64 " tokens, ", "context", c->n_ctx_train);
  if (c->sliding_window) printf("local layers see %" PRId64 ", ", c->sliding_window);
  if (c->rope_dim)
    printf("rope_theta %g, ", c->rope_theta);
  else
    printf("learned positions, ");
  printf("norm_eps %g, %s output\n", c->norm_eps, c->tied_output ? "tied" : "untied");
  printf("%-14s %" PRId64 " tokens, %" PRId64 " of 256 single bytes, BOS %d%s, EOS %d\n",
         "vocabulary", c->n_vocab, llm_tokenizer_n_byte_tokens(t), (int)llm_tokenizer_bos(t),
         llm_tokenizer_add_bos(t) ? " (added)" : "", (int)llm_tokenizer_eos(t));
  if (llm_model_needs(model, context_options, &needs, &err)) return failed(&err);
  print_needs(&needs, o->kv_type);
  print_quantization(model);
  print_meta(model, "two_file.corpus.name", "corpus");
  print_meta(model, "two_file.tensor_sha256", "tensor sha256");
  return finish_stdout(0);
}

/* ---- --verify ---- */

static int verify(const llm_model *model, const llm_context_options *context_options) {
  llm_verify_report report;
  llm_error err;
  double start = now();
  if (llm_model_verify(model, context_options, &report, &err)) return failed(&err);
  printf("%s: %s; %s; %s kernels differ from scalar by %g nats at most (%.2f s)\n", "verified",
         report.has_hash ? "the weights have the recorded SHA-256" : "no hash recorded",
         report.has_proof ? "every probe gives the recorded logits" : "no proof block recorded",
         report.kernels, report.max_logprob_diff, now() - start);
  return finish_stdout(0);
}

/* ---- --tokens ---- */

static int show_tokens(const llm_tokenizer *tokenizer, const options *o, bytes prompt) {
  id_list ids;
  llm_error err;
  llm_status status = tokenize(tokenizer, prompt, o->special, &ids, &err);
  if (!status) {
    print_ids(" ", ids.ids, ids.n);
    putchar('\n');
  }
  free(ids.ids);
  return finish_stdout(status ? failed(&err) : 0);
}

/* ---- --perplexity ---- */

static int score(llm_context *context, const llm_tokenizer *tokenizer, const options *o) {
  let_interrupt_cut(1); /* opening may wait too */
  FILE *file = fopen(o->score_path, "rb");
  if (!file) {
    let_interrupt_cut(0);
    return failed_to_read(o->score_path);
  }
  bytes text = read_all(file);
  if (!text.data) {
    int status = failed_to_read(o->score_path);
    fclose(file);
    return status;
  }
  fclose(file);
  id_list ids = {NULL, 0};
  llm_score result;
  llm_error err;
  double start = now();
  llm_status status = tokenize(tokenizer, text, o->special, &ids, &err);
  if (!status) status = llm_score_text(context, ids.ids, ids.n, o->stride, NULL, &result, &err);
  free(ids.ids);
  free(text.data);
  if (status) return failed(&err);
  printf("nats_per_token %.6f\nbits_per_byte %.6f\ntokens_scored %" PRId64 "\n",
         result.nats / (double)result.n_scored,
         result.nats / 0.69314718055994530942 / (double)text.n, result.n_scored);
  fprintf(stderr, "perplexity %.4f, %" PRId64 " windows of %" PRId64 " tokens, %.1f tokens/s\n",
          exp(result.nats / (double)result.n_scored), result.n_windows, llm_context_n_ctx(context),
          (double)ids.n / (now() - start));
  return finish_stdout(0);
}

/* ---- --embed ---- */

static int embed(llm_context *context, const llm_model *model, const options *o, bytes text) {
  size_t n_embd = (size_t)llm_model_config(model)->n_embd;
  float *values = malloc(n_embd * sizeof *values);
  if (!values) return failed_errno("an embedding");
  id_list ids = {NULL, 0};
  llm_error err;
  llm_status status = tokenize(llm_model_tokenizer(model), text, o->special, &ids, &err);
  if (!status) status = llm_context_embed(context, ids.ids, ids.n, values, &err);
  if (!status) print_json_embedding(values, n_embd, ids.n);
  free(ids.ids);
  free(values);
  return finish_stdout(status ? failed(&err) : 0);
}

/* ---- main ---- */

static uint64_t random_seed(void) {
  uint64_t seed = (uint64_t)(now() * 1e9) ^ ((uint64_t)getpid() << 32);
  FILE *random = fopen("/dev/urandom", "rb");
  if (random) {
    if (fread(&seed, sizeof seed, 1, random) != 1) seed ^= 1;
    fclose(random);
  }
  return seed & 0xffffffff; /* short enough to type again */
}

static int run_with_context(const llm_model *model, const options *o,
                            const llm_context_options *context_options, bytes prompt,
                            double start) {
  const llm_tokenizer *tokenizer = llm_model_tokenizer(model);
  llm_context *context;
  llm_error err;
  if (llm_context_new(&context, model, context_options, &err)) return failed(&err);
  int status;
  if (o->score_path)
    status = score(context, tokenizer, o);
  else if (o->embed)
    status = embed(context, model, o, prompt);
  else if (o->chat)
    status = converse(context, model, o, prompt);
  else
    status = generate(context, tokenizer, o, prompt, now() - start);
  llm_context_free(context);
  return status;
}

static int run(options *o) {
  bytes prompt = {0};
  llm_model *model;
  llm_error err;
  double start = now();
  int from_stdin = o->prompt && !strcmp(o->prompt, "-");
  llm_context_options context_options = llm_context_default_options();
  context_options.n_ctx = o->n_ctx;
  context_options.allow_long_context = o->long_context;
  context_options.n_threads = (int32_t)o->threads;
  context_options.kv_type = (int32_t)o->kv_type;
  context_options.on_full = (int32_t)context_mode(o);
  if (o->n_ctx > 0 && context_options.n_sink >= o->n_ctx) context_options.n_sink = o->n_ctx - 1;
  context_options.kernels = o->kernels;
  context_options.cancel_check = cancel_check;

  if (llm_model_open(&model, o->path, &err)) {
    fprintf(stderr, "run: %s%s\n", err.message,
            err.sys_errno == ENOENT ? "; make train or make model creates one" : "");
    return EXIT_FAILED;
  }
  int64_t trained = llm_model_config(model)->n_ctx_train;
  if (o->n_ctx > trained && !o->long_context) {
    fprintf(stderr,
            "run: --ctx %" PRId64 " is longer than the %" PRId64
            " tokens that the model was trained on; --allow-long-context permits it\n",
            o->n_ctx, trained);
    llm_model_free(model);
    return EXIT_FAILED;
  }
  if (from_stdin) {
    prompt = read_all(stdin);
    if (!prompt.data) {
      llm_model_free(model);
      return failed_to_read("standard input");
    }
  } else if (o->prompt) {
    struct stat info;
    prompt = (bytes){.data = (char *)o->prompt, .n = strlen(o->prompt)};
    if (!o->chat && !stat(o->prompt, &info) && S_ISREG(info.st_mode))
      fprintf(stderr, "run: %s is taken as the prompt; - < %s reads the file of that name\n",
              o->prompt, o->prompt);
  }

  int status;
  if (o->info)
    status = show_info(model, o, &context_options);
  else if (o->verify)
    status = verify(model, &context_options);
  else if (o->tokens)
    status = show_tokens(llm_model_tokenizer(model), o, prompt);
  else
    status = run_with_context(model, o, &context_options, prompt, start);
  if (from_stdin) free(prompt.data);
  llm_model_free(model);
  return status;
}

int main(int argc, char **argv) {
  static options o; /* so that what it holds to the end is no leak */
  o = parse_arguments(argc, argv);
  if (!o.seed_given) o.sampler.seed = random_seed();
  install_signals();
  return run(&o);
}
