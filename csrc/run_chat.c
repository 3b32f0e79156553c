/* run_chat.c: --chat, a conversation line by line. Layer 7. The list of messages is here;
 * rendering, what the context keeps of it and forgetting are behind llm_chat_start. Answers go to
 * standard output, everything else to standard error. Ctrl-C stops an answer, which stays as far as
 * it went. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "run.h"

typedef struct chat {
  const options *o;
  const llm_model *model;
  llm_context *context;
  llm_sampler *sampler;
  llm_template which;
  llm_message *messages; /* (n); each owns its text */
  size_t n, capacity;
  size_t n_tokens; /* of all answers, and the time that they took */
  double seconds;
} chat;

static const char help[] = "  /reset        begin again, with the system message\n"
                           "  /save FILE    keep the conversation\n"
                           "  /load FILE    go on with one that was kept\n"
                           "  /help         this list\n"
                           "  /quit         or Ctrl-D\n"
                           "A line that ends in \\ goes on in the next. Ctrl-C stops an answer. A "
                           "line that begins with a\n"
                           "space is never a command.\n";

/* ---- messages ---- */

static int ran_out; /* of memory, which ends the conversation: a failure */

static int out_of_memory(void) {
  ran_out = 1;
  fprintf(stderr, "run: out of memory for the conversation\n");
  return 0;
}

/* Copies the text; 0 after a message when there is no memory. */
static int add_message(chat *c, llm_role role, const char *text, size_t n_bytes) {
  if (!grow((void **)&c->messages, &c->capacity, c->n + 1, sizeof *c->messages))
    return out_of_memory();
  char *copy = malloc(n_bytes + 1);
  if (!copy) return out_of_memory();
  if (n_bytes) memcpy(copy, text, n_bytes);
  c->messages[c->n++] = (llm_message){role, copy, n_bytes};
  return 1;
}

static size_t n_system(const chat *c) { return c->n > 0 && c->messages[0].role == LLM_ROLE_SYSTEM; }

/* Takes n messages from index `from` on away. */
static void drop_messages(chat *c, size_t from, size_t n) {
  if (n == 0) return;
  for (size_t i = from; i < from + n; i++) free((void *)c->messages[i].text);
  memmove(c->messages + from, c->messages + from + n, (c->n - from - n) * sizeof *c->messages);
  c->n -= n;
}

/* The ids go too: a session would keep them. */
static void begin_again(chat *c) {
  drop_messages(c, n_system(c), c->n - n_system(c));
  llm_context_truncate(c->context, 0, NULL);
}

/* ---- an answer ---- */

static int is_terminal(void) { return isatty(STDIN_FILENO); }

/* Prints and keeps the answer until its end; 0 when it could not be kept or printed. */
static int print_answer(chat *c, llm_generator *generator, bytes *answer) {
  llm_step step = {0};
  llm_error err;
  size_t forgot_tokens = 0, forgot_turns = 0; /* told behind the answer, not inside */
  while (!step.finish) {
    llm_status status = llm_generator_next(generator, &step, &err);
    if (status && status != LLM_ERR_CANCELLED) failed(&err);
    forgot_tokens += step.forgot_tokens;
    forgot_turns += step.forgot_turns;
    if (interrupted && !step.finish) step.finish = LLM_FINISH_CANCELLED;
    c->n_tokens += step.id >= 0;
    if (!append(answer, step.text, step.n_bytes)) return out_of_memory();
    if (step.n_bytes) fwrite(step.text, 1, step.n_bytes, stdout);
    if (fflush(stdout)) return 0;
  }
  putchar('\n');
  if (fflush(stdout)) return 0;
  if (step.finish == LLM_FINISH_CANCELLED) fprintf(stderr, "[stopped]\n");
  if (step.finish == LLM_FINISH_LENGTH)
    fprintf(stderr, "[cut after %" PRId64 " tokens; -n N allows more]\n", c->o->max_tokens);
  if (step.finish == LLM_FINISH_CONTEXT)
    fprintf(stderr, "[cut: the window is full; --ctx N holds more]\n");
  step.forgot_tokens = forgot_tokens;
  step.forgot_turns = forgot_turns;
  print_forgotten(&step, c->context);
  return 1;
}

/* Answers the last message; where that cannot be done, says why and takes the message back. 0 when
 * the conversation cannot go on. */
static int answer(chat *c) {
  llm_generator_options steps = generator_options(c->o);
  llm_generator *generator;
  llm_error err;
  bytes text = {0};
  double start = now();
  interrupted = 0;
  llm_status status =
      llm_chat_start(&generator, c->context, c->sampler, c->which, c->messages, c->n, &steps, &err);
  if (status) {
    drop_messages(c, c->n - 1, 1);
    if (status == LLM_ERR_CANCELLED)
      fprintf(stderr, "[stopped before the answer; the message is taken back]\n");
    else
      failed(&err);
    interrupted = 0;
    ran_out = status == LLM_ERR_NOMEM;
    return !ran_out;
  }
  int went_on = print_answer(c, generator, &text);
  drop_messages(c, n_system(c), llm_generator_n_forgotten(generator));
  if (went_on) went_on = add_message(c, LLM_ROLE_ASSISTANT, text.data, text.n);
  c->seconds += now() - start;
  llm_generator_free(generator);
  free(text.data);
  interrupted = 0;
  return went_on;
}

/* ---- commands ---- */

static void save(chat *c, const char *path) {
  size_t n = (size_t)llm_context_n_past(c->context);
  llm_error err;
  if (llm_session_save(path, c->model, c->which, c->messages, c->n, llm_context_ids(c->context), n,
                       &err))
    failed(&err);
  else
    fprintf(stderr, "[saved %zu messages, %zu tokens]\n", c->n, n);
}

/* All or nothing: a session that cannot be read leaves the conversation as it is. */
static void load(chat *c, const char *path) {
  llm_session *session;
  llm_error err;
  size_t n, n_ids;
  if (llm_session_load(&session, path, c->model, &err)) {
    failed(&err);
    return;
  }
  const llm_message *messages = llm_session_messages(session, &n);
  const int32_t *ids = llm_session_ids(session, &n_ids);
  if ((int64_t)n_ids > llm_context_n_ctx(c->context)) n_ids = 0; /* read with the next message */
  llm_status status = llm_context_truncate(c->context, 0, &err);
  if (!status && n_ids) status = llm_context_eval(c->context, ids, n_ids, NULL, 0, &err);
  if (status) {
    if (failed(&err) == EXIT_INTERRUPTED) fprintf(stderr, "[stopped]\n");
  } else {
    drop_messages(c, 0, c->n);
    for (size_t i = 0; i < n; i++)
      if (!add_message(c, messages[i].role, messages[i].text, messages[i].n_bytes)) break;
    c->which = llm_session_template(session);
    if (c->n == n) fprintf(stderr, "[loaded %zu messages, %zu tokens]\n", n, n_ids);
  }
  interrupted = 0;
  llm_session_free(session);
}

/* The argument of a command that begins with `name` and a space; NULL: it is another. */
static const char *argument(const char *line, const char *name) {
  size_t n = strlen(name);
  if (strncmp(line, name, n) || line[n] != ' ') return NULL;
  line += n;
  while (*line == ' ') line++;
  return *line ? line : NULL;
}

/* 0: the conversation ends. */
static int command(chat *c, const char *line) {
  const char *path;
  if (!strcmp(line, "/quit") || !strcmp(line, "/exit")) return 0;
  if (!strcmp(line, "/help"))
    fputs(help, stderr);
  else if (!strcmp(line, "/reset")) {
    fprintf(stderr, "[a new conversation]\n");
    begin_again(c);
  } else if ((path = argument(line, "/save")))
    save(c, path);
  else if ((path = argument(line, "/load")))
    load(c, path);
  else if (!strcmp(line, "/save") || !strcmp(line, "/load"))
    fprintf(stderr, "%s needs the name of a file\n", line);
  else
    fprintf(stderr, "no command %s; /help lists them\n", line);
  return 1;
}

/* ---- the loop ---- */

/* A message, lines joined where one ends in a backslash; without its new line. 0: the end, or
 * Ctrl-C. */
static int read_message(bytes *out) {
  char *line = NULL;
  size_t capacity = 0;
  ssize_t n;
  int has_line = 0;
  out->n = 0;
  if (is_terminal()) fputs("> ", stderr);
  let_interrupt_cut(1);
  while (!interrupted && (n = getline(&line, &capacity, stdin)) > 0) {
    if (line[n - 1] == '\n') n--;
    int goes_on = n > 0 && line[n - 1] == '\\';
    if (goes_on) line[n - 1] = '\n';
    if (interrupted && ferror(stdin)) break; /* the part of a line that it cut */
    if (!append(out, line, (size_t)n)) {
      out_of_memory();
      break;
    }
    if ((has_line = !goes_on)) break;
    if (is_terminal()) fputs("... ", stderr);
  }
  let_interrupt_cut(0);
  free(line);
  return has_line || (out->n > 0 && !interrupted);
}

/* Ctrl-C while a message is typed: begins the line again. */
static int was_interrupted(void) {
  if (!interrupted || feof(stdin)) return 0;
  clearerr(stdin);
  interrupted = 0;
  fputs("\n(/quit or Ctrl-D ends)\n", stderr);
  return 1;
}

static int take(chat *c, const char *text, size_t n) {
  if (n == 0) return 1;
  if (text[0] == '/' && strlen(text) == n) return command(c, text);
  return add_message(c, LLM_ROLE_USER, text, n) && answer(c);
}

static int has_template(const llm_model *model) {
  llm_meta meta;
  for (size_t i = 0; i < llm_model_n_meta(model); i++)
    if (!llm_model_meta(model, i, &meta, NULL) && !strcmp(meta.key, "tokenizer.chat_template"))
      return 1;
  return 0;
}

static void print_beginning(const chat *c, int recognised) {
  if (!recognised)
    fprintf(stderr, "run: %s: chatml stands in (--template chooses another)\n",
            has_template(c->model)
                ? "this program does not know the file's chat template"
                : "the file has no chat template, its model may not have learned to converse");
  if (is_terminal())
    fprintf(stderr, "[template %s, window %" PRId64 ", when full: %s; /help lists the commands]\n",
            llm_template_name(c->which), llm_context_n_ctx(c->context),
            on_full_names[context_mode(c->o)]);
}

static llm_template choose_template(const chat *c, int32_t *recognised) {
  *recognised = 1;
  if (c->o->template_name) return llm_template_find(c->o->template_name);
  return llm_model_template(c->model, recognised);
}

int converse(llm_context *context, const llm_model *model, const options *o, bytes first) {
  chat c = {.o = o, .model = model, .context = context};
  bytes line = {0};
  int32_t recognised;
  llm_error err;
  llm_status status =
      llm_sampler_new(&c.sampler, llm_model_config(model)->n_vocab, &o->sampler, &err);
  if (status) return failed(&err);
  c.which = choose_template(&c, &recognised);
  print_beginning(&c, recognised);
  const char *system = o->system;
  int goes_on = !system || add_message(&c, LLM_ROLE_SYSTEM, system, strlen(system));
  if (goes_on && first.n) goes_on = take(&c, first.data, first.n);
  while (goes_on && !ran_out) {
    if (read_message(&line))
      goes_on = take(&c, line.data, line.n);
    else
      goes_on = was_interrupted();
  }
  int exit_status = finish_stdout(ran_out); /* before another call changes errno */
  if (is_terminal()) putc('\n', stderr);
  fprintf(stderr, "[%zu tokens of answers, %.1f tok/s, seed %" PRIu64 "]\n", c.n_tokens,
          rate(c.n_tokens, c.seconds), o->sampler.seed);
  drop_messages(&c, 0, c.n);
  free(c.messages);
  free(line.data);
  llm_sampler_free(c.sampler);
  return exit_status;
}
