/* test_chat_template.c: rendering by turns, answers as ids, buffers and hostile templates, on a
 * vocabulary without a model. What is rendered is compared with Jinja in test_chat_template.py. */
#include "chat_template.h"

#include "chat_sample.h"

enum { MAX_IDS = 2048, MAX_MESSAGES = 12 };

static const char smollm2[] =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

static chat_sample open_sample(const char *jinja, int add_bos) {
  chat_sample s = {.controls = {"<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]",
                                "<end_of_turn>"},
                   .add_bos = add_bos,
                   .jinja = jinja,
                   .n_jinja = jinja ? strlen(jinja) : 0};
  chat_sample_open(&s);
  return s;
}

static chat_message said(llm_role role, const char *text) {
  return (chat_message){{role, text, strlen(text)}, NULL, 0};
}

static size_t render(const chat_sample *s, llm_template which, const chat_message *messages,
                     size_t n, int prompt, int32_t ids[MAX_IDS], size_t *ends) {
  llm_error err;
  chat_format f = chat_format_of(&s->model, which);
  size_t n_ids;
  llm_status status =
      chat_render(&s->model, &f, messages, n, prompt, ids, MAX_IDS, &n_ids, ends, &err);
  CHECK_MSG(status == LLM_OK, "%s", err.message);
  return n_ids;
}

static const char *shown(const chat_sample *s, const int32_t *ids, size_t n) {
  static char text[4 * MAX_IDS];
  size_t n_bytes;
  CHECK(
      !llm_tokenizer_decode(s->model.tokenizer, ids, n, 1, text, sizeof text - 1, &n_bytes, NULL));
  text[n_bytes] = 0;
  return text;
}

#define CHECK_TEXT(got, want)                                                                      \
  do {                                                                                             \
    const char *got_text = (got);                                                                  \
    CHECK_MSG(!strcmp(got_text, want), "got %s", got_text);                                        \
  } while (0)

static const llm_template all[] = {LLM_TEMPLATE_CHATML,  LLM_TEMPLATE_LLAMA2, LLM_TEMPLATE_LLAMA3,
                                   LLM_TEMPLATE_MISTRAL, LLM_TEMPLATE_GEMMA,  LLM_TEMPLATE_ZEPHYR};
enum { N_ALL = sizeof all / sizeof *all };

/* What stands before ends[i] does not depend on what follows message i. */
static void test_spans(void) {
  chat_sample s = open_sample(NULL, 1);
  const chat_message talk[] = {
      said(LLM_ROLE_SYSTEM, "Be kind."),    said(LLM_ROLE_USER, "Hi\n"),
      said(LLM_ROLE_ASSISTANT, "\nTo you"), said(LLM_ROLE_USER, ""),
      said(LLM_ROLE_ASSISTANT, "Bye "),     said(LLM_ROLE_USER, "  T"),
  };
  enum { N = sizeof talk / sizeof *talk };
  static int32_t whole[MAX_IDS], part[MAX_IDS];
  for (int t = 0; t < N_ALL; t++) {
    size_t ends[N], part_ends[N];
    size_t n_whole = render(&s, all[t], talk, N, 1, whole, ends);
    CHECK(ends[N - 1] <= n_whole);
    for (size_t n = 2; n < N; n++) {
      size_t n_part = render(&s, all[t], talk, n, 0, part, part_ends);
      CHECK(part_ends[n - 1] == n_part);
      for (size_t i = 0; i + 1 < n; i++) CHECK(part_ends[i] == ends[i]);
      CHECK(ends[n - 1] <= n_part && ends[n - 1] >= ends[n - 2]);
      CHECK(!memcmp(part, whole, ends[n - 1] * sizeof *part));
    }
  }
  chat_sample_close(&s);
}

static void test_where_turns_end(void) {
  chat_sample s = open_sample(NULL, 1);
  const chat_message talk[] = {said(LLM_ROLE_SYSTEM, "S"), said(LLM_ROLE_USER, "a"),
                               said(LLM_ROLE_ASSISTANT, "b"), said(LLM_ROLE_USER, "c")};
  static int32_t ids[MAX_IDS];
  size_t ends[4];
  render(&s, LLM_TEMPLATE_CHATML, talk, 4, 1, ids, ends);
  CHECK_TEXT(shown(&s, ids, ends[0]), "<s><|im_start|>system\nS<|im_end|>\n");
  CHECK_TEXT(shown(&s, ids + ends[1], ends[2] - ends[1]), "<|im_start|>assistant\nb<|im_end|>\n");
  /* The system's text stands in the user's turn. */
  render(&s, LLM_TEMPLATE_MISTRAL, talk, 4, 1, ids, ends);
  CHECK_TEXT(shown(&s, ids, ends[0]), "<s>");
  CHECK_TEXT(shown(&s, ids, ends[1]), "<s> [INST] S\n\na [/INST]");
  CHECK_TEXT(shown(&s, ids + ends[1], ends[2] - ends[1]), " b</s>");
  /* EOS is a control token, the line end behind it is not. */
  render(&s, LLM_TEMPLATE_ZEPHYR, talk, 4, 0, ids, ends);
  CHECK_TEXT(shown(&s, ids, ends[0]), "<s><|system|>\nS</s>");
  CHECK_TEXT(shown(&s, ids + ends[1], ends[2] - ends[1]), "\n<|assistant|>\nb</s>");
  CHECK_TEXT(shown(&s, ids + ends[2], ends[3] - ends[2]), "\n<|user|>\nc</s>\n");
  /* Llama 3's control tokens are not in the vocabulary: one text, which belongs to the last. */
  size_t n = render(&s, LLM_TEMPLATE_LLAMA3, talk, 4, 0, ids, ends);
  CHECK(ends[0] == 1 && ends[1] == 1 && ends[2] == 1 && ends[3] == n);
  chat_sample_close(&s);
}

/* A context that holds a rendered question and the model's answer holds the beginning of what the
 * next question is rendered to. */
static void test_own_answers(void) {
  chat_sample s = open_sample(NULL, 1);
  /* Not as the tokenizer would cut it, with a control token inside. */
  const int32_t answer[] = {'\n', '\n', 'T', CHAT_SAMPLE_FIRST_CONTROL + 2, ' ', '['};
  enum { N_ANSWER = sizeof answer / sizeof *answer };
  chat_message talk[] = {said(LLM_ROLE_SYSTEM, "S"), said(LLM_ROLE_USER, "a"),
                         said(LLM_ROLE_ASSISTANT, "not used"), said(LLM_ROLE_USER, "b")};
  talk[2].ids = answer;
  talk[2].n_ids = N_ANSWER;
  static int32_t held[MAX_IDS], next[MAX_IDS];
  static const char *const closed[N_ALL] = {
      "<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n",
      "</s><s>[INST] b [/INST]",
      "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nb<|eot_id|><|start_header_id|>"
      "assistant<|end_header_id|>\n\n",
      "</s> [INST] b [/INST]",
      "<end_of_turn>\n<start_of_turn>user\nb<end_of_turn>\n<start_of_turn>model\n",
      "</s>\n<|user|>\nb</s>\n<|assistant|>\n",
  };
  for (int t = 0; t < N_ALL; t++) {
    size_t n_held = render(&s, all[t], talk, 2, 1, held, NULL);
    memcpy(held + n_held, answer, sizeof answer);
    n_held += N_ANSWER;
    size_t n_next = render(&s, all[t], talk, 4, 1, next, NULL);
    CHECK(n_next > n_held && !memcmp(held, next, n_held * sizeof *held));
    CHECK_TEXT(shown(&s, next + n_held, n_next - n_held), closed[t]);
  }
  talk[1].ids = answer; /* only answers come as ids */
  chat_format f = chat_format_of(&s.model, LLM_TEMPLATE_CHATML);
  size_t n;
  llm_error err;
  CHECK(chat_render(&s.model, &f, talk, 4, 1, next, MAX_IDS, &n, NULL, &err) == LLM_ERR_ARG);
  CHECK(strstr(err.message, "message 1: ids for the user"));
  chat_sample_close(&s);
}

static void test_recognition(void) {
  chat_sample s = open_sample(smollm2, 0);
  int32_t known;
  static int32_t ids[MAX_IDS];
  const chat_message hi = said(LLM_ROLE_USER, "hi");
  CHECK(llm_model_template(&s.model, &known) == LLM_TEMPLATE_CHATML && known == 1);
  CHECK(llm_model_template(&s.model, NULL) == LLM_TEMPLATE_CHATML);
  size_t n = render(&s, LLM_TEMPLATE_AUTO, &hi, 1, 0, ids, NULL);
  CHECK_TEXT(shown(&s, ids, n),
             "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n");
  n = render(&s, LLM_TEMPLATE_ZEPHYR, &hi, 1, 0, ids, NULL); /* another family: its own format */
  CHECK_TEXT(shown(&s, ids, n), "<|user|>\nhi</s>\n");
  chat_sample_close(&s);
  for (size_t cut = 0; cut < sizeof smollm2 - 1; cut++) { /* no crash, and no half templates */
    s = (chat_sample){.controls = {"<s>", "</s>"}, .jinja = smollm2, .n_jinja = cut};
    chat_sample_open(&s);
    CHECK(llm_model_template(&s.model, &known) == LLM_TEMPLATE_CHATML);
    CHECK(known == 0 || strlen(smollm2) - cut < 30);
    chat_sample_close(&s);
  }
}

/* Marks that begin all over a long text must not make the search quadratic. */
static void test_long_template(void) {
  enum { N = 64 * 1024 };
  char *jinja = malloc(N);
  static const char unit[] = "<|im_start|>system\n";
  for (size_t i = 0; i < N; i++) jinja[i] = unit[i % (sizeof unit - 1)];
  memcpy(jinja + N - strlen(smollm2), smollm2, strlen(smollm2));
  chat_sample s = {.controls = {"<s>", "</s>"}, .jinja = jinja, .n_jinja = N};
  chat_sample_open(&s);
  int32_t known;
  llm_model_template(&s.model, &known);
  CHECK(known == 1);
  chat_sample_close(&s);
  free(jinja);
}

static void test_buffers(void) {
  chat_sample s = open_sample(smollm2, 1);
  const llm_message talk[] = {{LLM_ROLE_USER, "Hi\0there", 8}, {LLM_ROLE_ASSISTANT, NULL, 0}};
  int32_t ids[MAX_IDS], exact[MAX_IDS];
  size_t n, again;
  llm_error err;
  CHECK(!llm_chat_render(&s.model, LLM_TEMPLATE_AUTO, talk, 2, 1, ids, MAX_IDS, &n, &err));
  CHECK(n > 40 && ids[0] == CHAT_SAMPLE_FIRST_CONTROL);
  for (size_t capacity = 0; capacity < n; capacity++) {
    for (size_t i = 0; i < n; i++) exact[i] = -7;
    CHECK(llm_chat_render(&s.model, LLM_TEMPLATE_AUTO, talk, 2, 1, capacity ? exact : NULL,
                          capacity, &again, &err) == LLM_ERR_ARG);
    CHECK(again == n && exact[capacity] == -7);
  }
  CHECK(!llm_chat_render(&s.model, LLM_TEMPLATE_AUTO, talk, 2, 1, exact, n, &again, &err));
  CHECK(!memcmp(ids, exact, n * sizeof *ids) && !err.message[0]);
  chat_sample_close(&s);
}

static void test_arguments(void) {
  chat_sample s = open_sample(smollm2, 1);
  const struct {
    int which;
    llm_message messages[3];
    size_t n;
    const char *fragment;
  } cases[] = {
      {LLM_TEMPLATE_AUTO, {{0}}, 0, "no messages"},
      {99, {{LLM_ROLE_USER, "a", 1}}, 1, "template 99"},
      {-1, {{LLM_ROLE_USER, "a", 1}}, 1, "template -1"},
      {LLM_TEMPLATE_AUTO, {{(llm_role)3, "a", 1}}, 1, "role 3"},
      {LLM_TEMPLATE_AUTO, {{LLM_ROLE_USER, NULL, 1}}, 1, "message 0: the text is NULL"},
      {LLM_TEMPLATE_GEMMA, {{LLM_ROLE_SYSTEM, "a", 1}}, 1, "a system message alone"},
      {LLM_TEMPLATE_GEMMA, {{LLM_ROLE_ASSISTANT, "a", 1}}, 1, "message 0 is the assistant's"},
      {LLM_TEMPLATE_LLAMA2,
       {{LLM_ROLE_SYSTEM, "a", 1}, {LLM_ROLE_USER, "a", 1}, {LLM_ROLE_USER, "a", 1}},
       3,
       "message 2 is the user's, expected the assistant's"},
      {LLM_TEMPLATE_MISTRAL,
       {{LLM_ROLE_USER, "a", 1}, {LLM_ROLE_SYSTEM, "a", 1}},
       2,
       "message 1 is the system's"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    int32_t ids[MAX_IDS];
    size_t n = 1;
    llm_error err;
    llm_status status = llm_chat_render(&s.model, (llm_template)cases[i].which, cases[i].messages,
                                        cases[i].n, 1, ids, MAX_IDS, &n, &err);
    CHECK_MSG(status == LLM_ERR_ARG && n == 0 && strstr(err.message, cases[i].fragment),
              "case %zu: %s", i, err.message);
  }
  chat_sample_close(&s);
}

static void test_names(void) {
  for (int i = 0; i < N_ALL; i++) CHECK(llm_template_find(llm_template_name(all[i])) == all[i]);
  CHECK(llm_template_find("auto") == LLM_TEMPLATE_AUTO);
  CHECK(llm_template_find("ChatML") == LLM_TEMPLATE_AUTO);
  CHECK(llm_template_find(NULL) == LLM_TEMPLATE_AUTO);
  CHECK(!llm_template_name((llm_template)(N_ALL + 1)) && !llm_template_name((llm_template)-1));
}

int main(void) {
  test_spans();
  test_where_turns_end();
  test_own_answers();
  test_recognition();
  test_long_template();
  test_buffers();
  test_arguments();
  test_names();
  return check_report("test_chat_template");
}
