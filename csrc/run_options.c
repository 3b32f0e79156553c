/* run_options.c: the command line and its help. Layer 7. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <float.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "run.h"

enum { CHAT_MAX_TOKENS = 1024 }; /* of an answer: small models may not find an end */

static const char help_text[] =
    "usage: run FILE [PROMPT | -] [options]\n"
    "\n"
    "Continues PROMPT with the language model in FILE, a GGUF parameter file.\n"
    "With - the prompt is read from standard input, byte for byte.\n"
    "Text goes to standard output, everything else to standard error.\n"
    "\n"
    "generation\n"
    "  -n, --max-tokens N   stop after N tokens (default: until the end or a full context;\n"
    "                       in a chat 1024 an answer)\n"
    "      --temp X         temperature; 0 always takes the likeliest token (default 0.8)\n"
    "      --top-k N        sample among the N likeliest tokens; 0: off (default 40)\n"
    "      --top-p X        sample among the likeliest tokens of total probability X (default "
    "0.95)\n"
    "      --min-p X        drop tokens less likely than X times the likeliest; 0: off (default "
    "0)\n"
    "      --repeat-penalty X      divide the logits of tokens seen lately by X (default 1: off)\n"
    "      --presence-penalty X    lower them by X (default 0)\n"
    "      --frequency-penalty X   lower them by X for each time seen (default 0)\n"
    "      --logit-bias ID=X       add X to the logit of a token; -inf bans it; repeatable\n"
    "      --seed N         seed of the sampler (default: random; printed)\n"
    "      --stop TEXT      end before TEXT appears; repeatable\n"
    "      --ctx N          context in tokens (default: the trained length, at most 4096)\n"
    "      --allow-long-context   let --ctx exceed the trained length\n"
    "      --on-full MODE   when the context is full: stop (default), forget the oldest text\n"
    "                       (default of --chat: whole turns), or slide for endless text\n"
    "      --special        turn the text of control tokens in the prompt into those tokens\n"
    "      --no-echo        print the continuation without the prompt\n"
    "  -p, --parallel N     N continuations with seeds that count up; the prompt is read once\n"
    "      --json           print one JSON object instead of text\n"
    "      --logprobs N     with --json: each token's log-probability and its N likeliest\n"
    "chat\n"
    "      --chat           converse line by line; PROMPT is the first message; /help lists more\n"
    "      --system TEXT    the system message\n"
    "      --template NAME  chatml, llama2, llama3, mistral, gemma or zephyr (default: the "
    "file's)\n"
    "machine\n"
    "      --threads N      threads (default: all cores)\n"
    "      --kernels NAME   scalar, avx2, avx512, amx or neon (default: the best here, or\n"
    "                       $LLM_KERNELS)\n"
    "      --kv TYPE        f16, f32 or q8_0 keys and values (default f16)\n"
    "instead of generating\n"
    "      --info           describe FILE\n"
    "      --verify         check the weights' hash and replay the proof block\n"
    "      --tokens         print the prompt's token ids\n"
    "      --perplexity TEXTFILE   score a text: nats per token, bits per byte\n"
    "      --stride N       with --perplexity: tokens between windows (default: half the context)\n"
    "      --embed          print the prompt's embedding as JSON\n"
    "  -h, --help           this text\n"
    "      --version        the version\n"
    "\n"
    "examples\n"
    "  run weights/weights.bin \"In the beginning\"\n"
    "  run weights/SmolLM2-135M-Instruct.Q4_1.gguf --chat --temp 0.2\n"
    "  echo -n \"Once upon a time\" | run weights/weights.bin - --temp 0 -n 50\n";

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

/* ID=BIAS, kept for the life of the program. */
static void add_bias(llm_sampler_options *o, const char *text) {
  static int32_t *ids;
  static float *values;
  char *id_end, *end;
  errno = 0;
  long id = strtol(text, &id_end, 10);
  double bias = *id_end == '=' ? strtod(id_end + 1, &end) : 0;
  if (errno || id_end == text || *id_end != '=' || end == id_end + 1 || *end || id < 0 ||
      id > INT32_MAX || !(bias <= FLT_MAX))
    usage_error("--logit-bias takes ID=NUMBER, such as 42=-1.5 or 42=-inf, not %s", text);
  ids = realloc(ids, (o->n_biases + 1) * sizeof *ids);
  values = realloc(values, (o->n_biases + 1) * sizeof *values);
  if (!ids || !values) usage_error("out of memory at --logit-bias %s", text);
  ids[o->n_biases] = (int32_t)id;
  values[o->n_biases++] = (float)bias;
  o->bias_ids = ids;
  o->bias_values = values;
}

/* Kept for the life of the program. */
static void add_stop(options *o, const char *text) {
  if (!*text) usage_error("%s takes a text", "--stop");
  o->stop = realloc(o->stop, (o->n_stop + 1) * sizeof *o->stop);
  o->stop_bytes = realloc(o->stop_bytes, (o->n_stop + 1) * sizeof *o->stop_bytes);
  if (!o->stop || !o->stop_bytes) usage_error("out of memory at --stop %s", text);
  o->stop[o->n_stop] = text;
  o->stop_bytes[o->n_stop++] = strlen(text);
}

static llm_type parse_kv_type(const char *text) {
  static const llm_type types[] = {LLM_TYPE_F16, LLM_TYPE_F32, LLM_TYPE_Q8_0};
  for (size_t i = 0; i < sizeof types / sizeof *types; i++)
    if (!strcasecmp(text, llm_type_describe(types[i]).name)) return types[i];
  usage_error("--kv takes f16, f32 or q8_0, not %s", text);
}

const char *const on_full_names[3] = {"stop", "forget", "slide"};

static int parse_on_full(const char *text) {
  for (int i = 0; i < 3; i++)
    if (!strcmp(text, on_full_names[i])) return i;
  usage_error("--on-full takes stop, forget or slide, not %s", text);
}

static const char *parse_template(const char *text) {
  if (llm_template_find(text) != LLM_TEMPLATE_AUTO) return text;
  usage_error("--template takes chatml, llama2, llama3, mistral, gemma or zephyr, not %s", text);
}

llm_on_full context_mode(const options *o) {
  if (o->on_full >= 0) return (llm_on_full)o->on_full;
  return o->chat ? LLM_ON_FULL_FORGET : LLM_ON_FULL_STOP;
}

llm_generator_options generator_options(const options *o) {
  llm_generator_options steps = llm_generator_default_options();
  steps.max_tokens = o->max_tokens;
  steps.n_top = o->logprobs;
  steps.n_stop = o->n_stop;
  steps.stop = o->stop;
  steps.stop_bytes = o->stop_bytes;
  return steps;
}

static int is(const char *argument, const char *name) { return !strcmp(argument, name); }

/* Options of the sampler that take a value. */
static int parse_sampling(llm_sampler_options *o, int argc, char **argv, int *i) {
  const char *a = argv[*i];
  if (is(a, "--temp"))
    o->temperature = parse_float(a, next_value(argc, argv, i), 0, 1000);
  else if (is(a, "--top-k"))
    o->top_k = (int32_t)parse_int(a, next_value(argc, argv, i), 0, INT32_MAX);
  else if (is(a, "--top-p"))
    o->top_p = parse_float(a, next_value(argc, argv, i), 1e-6, 1);
  else if (is(a, "--min-p"))
    o->min_p = parse_float(a, next_value(argc, argv, i), 0, 1);
  else if (is(a, "--repeat-penalty"))
    o->repeat_penalty = parse_float(a, next_value(argc, argv, i), 1e-3, 1000);
  else if (is(a, "--presence-penalty"))
    o->presence_penalty = parse_float(a, next_value(argc, argv, i), -1000, 1000);
  else if (is(a, "--frequency-penalty"))
    o->frequency_penalty = parse_float(a, next_value(argc, argv, i), -1000, 1000);
  else if (is(a, "--logit-bias"))
    add_bias(o, next_value(argc, argv, i));
  else
    return 0;
  return 1;
}

/* Options that take a value; 0 when the argument is none of them. */
static int parse_valued(options *o, int argc, char **argv, int *i) {
  const char *a = argv[*i];
  if (is(a, "-n") || is(a, "--max-tokens"))
    o->max_tokens = parse_int(a, next_value(argc, argv, i), 0, INT64_MAX);
  else if (is(a, "--ctx"))
    o->n_ctx = parse_int(a, next_value(argc, argv, i), 1, INT32_MAX);
  else if (is(a, "--threads"))
    o->threads = parse_int(a, next_value(argc, argv, i), 1, 1024);
  else if (is(a, "-p") || is(a, "--parallel"))
    o->parallel = parse_int(a, next_value(argc, argv, i), 1, 1000000);
  else if (is(a, "--logprobs"))
    o->logprobs = parse_int(a, next_value(argc, argv, i), 0, INT32_MAX);
  else if (is(a, "--stride"))
    o->stride = parse_int(a, next_value(argc, argv, i), 1, INT32_MAX);
  else if (is(a, "--perplexity"))
    o->score_path = next_value(argc, argv, i);
  else if (is(a, "--kernels"))
    o->kernels = next_value(argc, argv, i);
  else if (is(a, "--seed")) {
    o->sampler.seed = parse_seed(next_value(argc, argv, i));
    o->seed_given = 1;
  } else if (is(a, "--kv"))
    o->kv_type = parse_kv_type(next_value(argc, argv, i));
  else if (is(a, "--stop"))
    add_stop(o, next_value(argc, argv, i));
  else if (is(a, "--on-full"))
    o->on_full = parse_on_full(next_value(argc, argv, i));
  else if (is(a, "--system"))
    o->system = next_value(argc, argv, i);
  else if (is(a, "--template"))
    o->template_name = parse_template(next_value(argc, argv, i));
  else
    return 0;
  return 1;
}

static int parse_flag(options *o, const char *a) {
  const struct {
    const char *name;
    int *flag;
  } flags[] = {
      {"--special", &o->special}, {"--no-echo", &o->no_echo},
      {"--json", &o->json},       {"--info", &o->info},
      {"--verify", &o->verify},   {"--tokens", &o->tokens},
      {"--embed", &o->embed},     {"--allow-long-context", &o->long_context},
      {"--chat", &o->chat},
  };
  for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
    if (is(a, flags[i].name)) return *flags[i].flag = 1;
  return 0;
}

options parse_arguments(int argc, char **argv) {
  options o = {.max_tokens = -1,
               .logprobs = -1,
               .on_full = -1,
               .kv_type = LLM_TYPE_F16,
               .sampler = llm_sampler_default_options()};
  if (argc < 2) {
    fputs(help_text, stderr);
    exit(EXIT_USAGE);
  }
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
    } else if (!parse_valued(&o, argc, argv, &i) && !parse_sampling(&o.sampler, argc, argv, &i) &&
               !parse_flag(&o, a))
      usage_error("unknown option %s", a);
  }
  if (!o.path) usage_error("%s", "no parameter file given; make train or make model creates one");
  if (o.info + o.verify + o.tokens + o.embed + o.chat + (o.score_path != NULL) > 1)
    usage_error("%s exclude each other",
                "--info, --verify, --tokens, --embed, --perplexity and --chat");
  if ((o.system || o.template_name) && !o.chat)
    usage_error("%s", "--system and --template go with --chat");
  if (o.chat && o.prompt && is(o.prompt, "-"))
    usage_error("%s", "--chat reads its messages from standard input by itself, without -");
  if (o.parallel && o.chat) usage_error("%s", "--parallel goes with generating, not with --chat");
  if ((o.tokens || o.embed) && !o.prompt)
    usage_error("%s needs a text: a prompt, or -", o.embed ? "--embed" : "--tokens");
  if (o.stride && !o.score_path) usage_error("%s", "--stride goes with --perplexity");
  if (o.logprobs >= 0 && !o.json) usage_error("%s", "--logprobs goes with --json");
  if (o.json && o.info)
    usage_error("%s", "--info has no JSON: python -m llm inspect FILE --json does");
  if (o.json && (o.verify || o.tokens || o.score_path || o.chat))
    usage_error("%s", "--json goes with generating alone");
  if (o.chat && o.max_tokens < 0) o.max_tokens = CHAT_MAX_TOKENS;
  if (!o.kernels) o.kernels = getenv("LLM_KERNELS");
  if (o.kernels && !*o.kernels) o.kernels = NULL;
  llm_error err;
  if (llm_kernels_check(o.kernels, &err)) usage_error("%s", err.message);
  return o;
}
