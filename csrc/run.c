/* run.c: the run file. Arguments, printing, timing and signals; everything else is behind llm.h,
 * the only project header here. The one main. Exit status: 0, 1 for a failure, 2 for wrong usage.
 * Over 500 lines on purpose: a reader follows one program up from main(), and its parts
 * (arguments, printing, one function per mode) share nothing that a header would name. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <inttypes.h>
#include <math.h> /* isfinite only */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "llm.h"

enum { EXIT_FAILED = 1, EXIT_USAGE = 2 };

static const char help_text[] =
    "usage: run FILE [PROMPT | -] [options]\n"
    "\n"
    "Continues PROMPT with the language model in FILE, a GGUF parameter file.\n"
    "With - the prompt is read from standard input, byte for byte.\n"
    "Text goes to standard output, everything else to standard error.\n"
    "\n"
    "generation\n"
    "  -n, --max-tokens N   stop after N tokens (default: until the end or a full context)\n"
    "      --temp X         temperature; 0 always takes the likeliest token (default 0.8)\n"
    "      --top-k N        sample among the N likeliest tokens; 0: off (default 40)\n"
    "      --top-p X        sample among the likeliest tokens of total probability X (default "
    "0.95)\n"
    "      --seed N         seed of the sampler (default: random; printed)\n"
    "      --ctx N          context in tokens (default: the trained length, at most 4096)\n"
    "      --allow-long-context   let --ctx exceed the trained length\n"
    "      --special        turn the text of control tokens in the prompt into those tokens\n"
    "      --no-echo        print the continuation without the prompt\n"
    "      --json           print one JSON object instead of text\n"
    "machine\n"
    "      --threads N      threads (default: all cores)\n"
    "      --kernels NAME   scalar, avx2 or avx512 (default: the best here, or $LLM_KERNELS)\n"
    "      --kv TYPE        f16 or f32 keys and values (default f16)\n"
    "instead of generating\n"
    "      --info           describe FILE\n"
    "      --verify         check the weights' hash and replay the proof block\n"
    "      --tokens         print the prompt's token ids\n"
    "      --perplexity TEXTFILE   score a text: nats per token, bits per byte\n"
    "  -h, --help           this text\n"
    "      --version        the version\n"
    "\n"
    "examples\n"
    "  run weights/weights.bin \"In the beginning\"\n"
    "  echo -n \"Once upon a time\" | run weights/weights.bin - --temp 0 -n 50\n";

typedef struct options {
  const char *path, *prompt, *score_path, *kernels;
  int64_t max_tokens, n_ctx, threads;
  llm_sampler_options sampler;
  int seed_given, special, no_echo, json, info, verify, tokens, long_context, kv_f32;
} options;

/* ---- failing ---- */

static _Noreturn void usage_error(const char *format, const char *what) {
  fprintf(stderr, "run: ");
  fprintf(stderr, format, what);
  fprintf(stderr, " (see run --help)\n");
  exit(EXIT_USAGE);
}

static int failed(const llm_error *err) {
  fprintf(stderr, "run: %s\n", err->message);
  return EXIT_FAILED;
}

static int failed_errno(const char *what) {
  fprintf(stderr, "run: %s: %s\n", what, strerror(errno));
  return EXIT_FAILED;
}

/* Standard output may be a closed pipe or a full disk. */
static int finish_stdout(int status) {
  if (fflush(stdout) || ferror(stdout)) return failed_errno("standard output");
  return status;
}

/* ---- signals: Ctrl-C ends a generation in good order, a second one ends the program ---- */

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number) {
  if (interrupted) _exit(128 + signal_number);
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

static void install_signals(void) {
  struct sigaction action = {0};
  sigemptyset(&action.sa_mask);
  action.sa_handler = on_interrupt;
  sigaction(SIGINT, &action, NULL);
  action.sa_handler = on_bus_error;
  sigaction(SIGBUS, &action, NULL);
}

static int cancel_check(void *user) {
  (void)user;
  return interrupted;
}

/* ---- arguments ---- */

static const char *next_value(int argc, char **argv, int *i) {
  if (*i + 1 >= argc) usage_error("%s needs a value", argv[*i]);
  return argv[++*i];
}

static int64_t parse_int(const char *name, const char *text, int64_t min, int64_t max) {
  char *end, message[200];
  errno = 0;
  long long value = strtoll(text, &end, 10);
  if (errno || end == text || *end || value < min || value > max) {
    snprintf(message, sizeof message,
             "%s takes an integer from %" PRId64 " to %" PRId64 ", not %%s", name, min, max);
    usage_error(message, text);
  }
  return value;
}

static uint64_t parse_seed(const char *text) {
  char *end;
  errno = 0;
  unsigned long long value = strtoull(text, &end, 10);
  if (errno || end == text || *end || text[0] == '-')
    usage_error("--seed takes an integer from 0 to 2^64 - 1, not %s", text);
  return value;
}

static float parse_float(const char *name, const char *text, double min, double max) {
  char *end, message[200];
  double value = strtod(text, &end);
  if (end == text || *end || !(value >= min && value <= max)) {
    snprintf(message, sizeof message, "%s takes a number from %g to %g, not %%s", name, min, max);
    usage_error(message, text);
  }
  return (float)value;
}

static int is(const char *argument, const char *name) { return !strcmp(argument, name); }

/* Options that take a value; 0 when the argument is none of them. */
static int parse_valued(options *o, int argc, char **argv, int *i) {
  const char *a = argv[*i];
  if (is(a, "-n") || is(a, "--max-tokens"))
    o->max_tokens = parse_int(a, next_value(argc, argv, i), 0, INT64_MAX);
  else if (is(a, "--temp"))
    o->sampler.temperature = parse_float(a, next_value(argc, argv, i), 0, 1000);
  else if (is(a, "--top-k"))
    o->sampler.top_k = (int32_t)parse_int(a, next_value(argc, argv, i), 0, INT32_MAX);
  else if (is(a, "--top-p"))
    o->sampler.top_p = parse_float(a, next_value(argc, argv, i), 1e-6, 1);
  else if (is(a, "--ctx"))
    o->n_ctx = parse_int(a, next_value(argc, argv, i), 1, INT32_MAX);
  else if (is(a, "--threads"))
    o->threads = parse_int(a, next_value(argc, argv, i), 1, 1024);
  else if (is(a, "--perplexity"))
    o->score_path = next_value(argc, argv, i);
  else if (is(a, "--kernels"))
    o->kernels = next_value(argc, argv, i);
  else if (is(a, "--seed")) {
    o->sampler.seed = parse_seed(next_value(argc, argv, i));
    o->seed_given = 1;
  } else if (is(a, "--kv")) {
    const char *type = next_value(argc, argv, i);
    if (!is(type, "f16") && !is(type, "f32")) usage_error("--kv takes f16 or f32, not %s", type);
    o->kv_f32 = is(type, "f32");
  } else
    return 0;
  return 1;
}

static int parse_flag(options *o, const char *a) {
  const struct {
    const char *name;
    int *flag;
  } flags[] = {
      {"--special", &o->special},
      {"--no-echo", &o->no_echo},
      {"--json", &o->json},
      {"--info", &o->info},
      {"--verify", &o->verify},
      {"--tokens", &o->tokens},
      {"--allow-long-context", &o->long_context},
  };
  for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
    if (is(a, flags[i].name)) return *flags[i].flag = 1;
  return 0;
}

static options parse_arguments(int argc, char **argv) {
  options o = {.max_tokens = -1, .sampler = llm_sampler_default_options()};
  int literal = 0; /* after --, everything is a file or a prompt */
  for (int i = 1; i < argc; i++) {
    char *a = argv[i];
    if (literal || a[0] != '-' || is(a, "-")) {
      if (!o.path)
        o.path = a;
      else if (!o.prompt)
        o.prompt = a;
      else
        usage_error("one prompt, please: \"%s\" is a second one; put the prompt in quotes", a);
    } else if (is(a, "--"))
      literal = 1;
    else if (is(a, "-h") || is(a, "--help")) {
      fputs(help_text, stdout);
      exit(finish_stdout(0));
    } else if (is(a, "--version")) {
      puts(llm_version());
      exit(finish_stdout(0));
    } else if (!parse_valued(&o, argc, argv, &i) && !parse_flag(&o, a))
      usage_error("unknown option %s", a);
  }
  if (o.info + o.verify + o.tokens + (o.score_path != NULL) > 1)
    usage_error("%s exclude each other", "--info, --verify, --tokens and --perplexity");
  if (o.json && (o.info || o.verify || o.tokens || o.score_path))
    usage_error("%s", "--json goes with generating alone");
  if (!o.kernels) o.kernels = getenv("LLM_KERNELS");
  if (o.kernels && !*o.kernels) o.kernels = NULL;
  return o;
}

/* ---- reading ---- */

typedef struct bytes {
  char *data;
  size_t n;
} bytes;

enum { MAX_INPUT = 256 << 20 }; /* bytes of a prompt or text: an endless stream must end here */

/* All of a stream; NULL data and errno on failure. */
static bytes read_all(FILE *stream) {
  bytes b = {NULL, 0};
  size_t capacity = 0;
  do {
    if (b.n == capacity) {
      capacity = capacity ? 2 * capacity : 1 << 16;
      char *grown = realloc(b.data, capacity);
      if (!grown) {
        free(b.data);
        errno = ENOMEM;
        return (bytes){NULL, 0};
      }
      b.data = grown;
    }
    b.n += fread(b.data + b.n, 1, capacity - b.n, stream);
  } while (!feof(stream) && !ferror(stream) && b.n <= MAX_INPUT);
  if (ferror(stream) || b.n > MAX_INPUT) {
    if (!ferror(stream)) errno = EFBIG;
    free(b.data);
    return (bytes){NULL, 0};
  }
  return b;
}

typedef struct id_list {
  int32_t *ids;
  size_t n;
} id_list;

/* Tokens of a text, BOS first where the file asks for it. */
static llm_status tokenize(const llm_tokenizer *tokenizer, bytes text, int parse_special,
                           id_list *out, llm_error *err) {
  size_t bos = llm_tokenizer_add_bos(tokenizer) ? 1 : 0, n = 0;
  size_t capacity = text.n + 1; /* no token spells less than a byte */
  out->ids = malloc((capacity + bos) * sizeof *out->ids);
  if (!out->ids) {
    *err = (llm_error){.status = LLM_ERR_NOMEM};
    snprintf(err->message, sizeof err->message, "out of memory for %zu tokens", capacity);
    return LLM_ERR_NOMEM;
  }
  if (bos) out->ids[0] = llm_tokenizer_bos(tokenizer);
  llm_status status = llm_tokenizer_encode(tokenizer, text.data, text.n, parse_special,
                                           out->ids + bos, capacity, &n, err);
  out->n = n + bos;
  return status;
}

/* ---- printing ---- */

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Length of the valid UTF-8 character at s[0..n), 0 if there is none. */
static size_t utf8_length(const unsigned char *s, size_t n) {
  if (s[0] < 0x80) return 1;
  size_t length = s[0] >= 0xc2 && s[0] < 0xe0   ? 2
                  : s[0] >= 0xe0 && s[0] < 0xf0 ? 3
                  : s[0] >= 0xf0 && s[0] < 0xf5 ? 4
                                                : 0;
  if (!length || length > n) return 0;
  for (size_t i = 1; i < length; i++)
    if ((s[i] & 0xc0) != 0x80) return 0;
  if (s[0] == 0xe0 && s[1] < 0xa0) return 0; /* overlong */
  if (s[0] == 0xed && s[1] > 0x9f) return 0; /* surrogate */
  if (s[0] == 0xf0 && s[1] < 0x90) return 0;
  if (s[0] == 0xf4 && s[1] > 0x8f) return 0;
  return length;
}

/* A JSON string; bytes that are not UTF-8 become U+FFFD. */
static void print_json_string(const char *text, size_t n) {
  putchar('"');
  for (size_t i = 0; i < n;) {
    const unsigned char *s = (const unsigned char *)text + i;
    size_t length = utf8_length(s, n - i);
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

static void print_ids(const char *separator, const int32_t *ids, size_t n) {
  for (size_t i = 0; i < n; i++) printf("%s%" PRId32, i ? separator : "", ids[i]);
}

/* A string of the file with control characters and what is not UTF-8 made visible: it goes to a
 * terminal. U+0080 to U+009F are control characters too, and begin escape sequences. */
static void print_escaped(const char *text, size_t n) {
  for (size_t i = 0, length; i < n; i += length) {
    const unsigned char *s = (const unsigned char *)text + i;
    length = utf8_length(s, n - i);
    int is_control = *s < 0x20 || *s == 0x7f || (*s == 0xc2 && length == 2 && s[1] < 0xa0);
    if (length && !is_control) {
      fwrite(s, 1, length, stdout);
      continue;
    }
    length = 1; /* what follows a control character's first byte is escaped as no UTF-8 */
    printf("\\x%02x", *s);
  }
}

/* ---- --info ---- */

static void print_meta(const llm_model *model, const char *key, const char *label) {
  llm_meta meta;
  for (size_t i = 0; i < llm_model_n_meta(model); i++) {
    if (llm_model_meta(model, i, &meta, NULL) || strcmp(meta.key, key)) continue;
    if (meta.value_type != 8) return; /* only strings are shown as they are */
    printf("%-14s ", label);
    print_escaped(meta.data, (size_t)meta.n_bytes);
    putchar('\n');
  }
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

static int show_info(const llm_model *model, const options *o,
                     const llm_context_options *context_options) {
  const llm_config *c = llm_model_config(model);
  const llm_tokenizer *t = llm_model_tokenizer(model);
  llm_context *context;
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
  printf("%-14s trained %" PRId64 " tokens, rope_theta %g, norm_eps %g, %s output\n", "context",
         c->n_ctx_train, c->rope_theta, c->norm_eps, c->tied_output ? "tied" : "untied");
  printf("%-14s %" PRId64 " tokens, %" PRId64 " of 256 single bytes, BOS %d%s, EOS %d\n",
         "vocabulary", c->n_vocab, llm_tokenizer_n_byte_tokens(t), (int)llm_tokenizer_bos(t),
         llm_tokenizer_add_bos(t) ? " (added)" : "", (int)llm_tokenizer_eos(t));
  if (llm_context_new(&context, model, context_options, &err)) return failed(&err);
  printf("%-14s %" PRId64 " tokens take %.1f MB of keys and values (%s)\n", "running",
         llm_context_n_ctx(context), (double)llm_context_kv_bytes(context) / 1e6,
         o->kv_f32 ? "F32" : "F16");
  printf("%-14s %s, %d threads\n", "kernels", llm_context_kernels(context),
         (int)llm_context_n_threads(context));
  llm_context_free(context);
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

/* ---- --perplexity ---- */

static int score(llm_context *context, const llm_tokenizer *tokenizer, const options *o) {
  FILE *file = fopen(o->score_path, "rb");
  if (!file) return failed_errno(o->score_path);
  bytes text = read_all(file);
  if (!text.data) {
    int status = failed_errno(o->score_path);
    fclose(file);
    return status;
  }
  fclose(file);
  id_list ids = {NULL, 0};
  llm_score result;
  llm_error err;
  double start = now();
  llm_status status = tokenize(tokenizer, text, o->special, &ids, &err);
  if (!status) status = llm_score_text(context, ids.ids, ids.n, NULL, &result, &err);
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

/* ---- generation ---- */

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

static int generate(llm_context *context, const llm_tokenizer *tokenizer, const options *o,
                    bytes prompt, double load_seconds) {
  id_list ids = {NULL, 0};
  output out = {0};
  timing t = {.load = load_seconds};
  llm_sampler *sampler = NULL;
  llm_generator *generator = NULL;
  llm_error err;
  llm_status status = tokenize(tokenizer, prompt, o->special, &ids, &err);
  if (!status && ids.n == 0) status = begin_with_nothing(tokenizer, &ids, &err);
  if (!status)
    status = llm_sampler_new(&sampler, llm_tokenizer_n_vocab(tokenizer), &o->sampler, &err);
  double start = now();
  if (!status)
    status = llm_generator_new(&generator, context, sampler, ids.ids, ids.n, o->max_tokens, &err);
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

/* ---- main ---- */

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
  int status = o->score_path ? score(context, tokenizer, o)
                             : generate(context, tokenizer, o, prompt, now() - start);
  llm_context_free(context);
  return status;
}

static int run(options *o) {
  bytes prompt = {NULL, 0};
  llm_model *model;
  llm_error err;
  double start = now();
  int from_stdin = o->prompt && is(o->prompt, "-");
  llm_context_options context_options = llm_context_default_options();
  context_options.n_ctx = o->n_ctx;
  context_options.allow_long_context = o->long_context;
  context_options.n_threads = (int32_t)o->threads;
  context_options.kv_type = o->kv_f32 ? LLM_TYPE_F32 : LLM_TYPE_F16;
  context_options.kernels = o->kernels;
  context_options.cancel_check = cancel_check;

  if (llm_model_open(&model, o->path, &err)) return failed(&err);
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
      return failed_errno("standard input");
    }
  } else if (o->prompt)
    prompt = (bytes){(char *)o->prompt, strlen(o->prompt)};

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
  if (argc < 2) {
    fputs(help_text, stderr);
    return EXIT_USAGE;
  }
  options o = parse_arguments(argc, argv);
  if (!o.path) usage_error("%s", "no parameter file given; make train or make model creates one");
  if (!o.seed_given) o.sampler.seed = random_seed();
  install_signals();
  return run(&o);
}
