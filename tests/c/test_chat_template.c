/* test_chat_template.c: what stays the same from turn to turn, buffers, refusals and hostile
 * templates, on a vocabulary without a model. What is rendered is compared with Jinja in
 * test_chat_template.py. */
#include "chat_sample.h"

enum { MAX_IDS = 2048 };

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

static llm_message said(llm_role role, const char *text) {
  return (llm_message){role, text, strlen(text)};
}

static size_t render(const chat_sample *s, llm_template which, const llm_message *messages,
                     size_t n, int prompt, int32_t ids[MAX_IDS]) {
  llm_error err;
  size_t n_ids;
  llm_status status =
      llm_chat_render(&s->model, which, messages, n, prompt, ids, MAX_IDS, &n_ids, &err);
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

/* The ids of a conversation up to its last control token are the beginning of a longer one's: a
 * session reads only what is new. */
static void test_turns_add_up(void) {
  chat_sample s = open_sample(NULL, 1);
  const llm_message talk[] = {
      said(LLM_ROLE_SYSTEM, "Be kind."),    said(LLM_ROLE_USER, "Hi\n"),
      said(LLM_ROLE_ASSISTANT, "\nTo you"), said(LLM_ROLE_USER, ""),
      said(LLM_ROLE_ASSISTANT, "Bye "),     said(LLM_ROLE_USER, "  T"),
  };
  enum { N = sizeof talk / sizeof *talk };
  static int32_t whole[MAX_IDS], part[MAX_IDS];
  for (int t = 0; t < N_ALL; t++) {
    size_t n_whole = render(&s, all[t], talk, N, 1, whole);
    for (size_t n = 2; n < N; n++) {
      size_t n_part = render(&s, all[t], talk, n, 0, part);
      while (n_part && part[n_part - 1] < CHAT_SAMPLE_FIRST_CONTROL) n_part--;
      CHECK(n_part > 0 && n_part < n_whole && !memcmp(part, whole, n_part * sizeof *part));
    }
  }
  chat_sample_close(&s);
}

/* A control token that the vocabulary lacks is text like the words around it. */
static void test_missing_control_tokens(void) {
  chat_sample s = open_sample(NULL, 1);
  static int32_t ids[MAX_IDS];
  const llm_message hi = said(LLM_ROLE_USER, "hi");
  /* BOS, and: <|im_start|> and <|im_end|> twice; [INST], [/INST] and EOS; nothing; as Llama 2;
   * <end_of_turn> twice; EOS twice. */
  static const size_t n_control[N_ALL] = {5, 4, 1, 4, 3, 3};
  for (int t = 0; t < N_ALL; t++) {
    const llm_message talk[] = {hi, said(LLM_ROLE_ASSISTANT, "")};
    size_t n = render(&s, all[t], talk, 2, 0, ids), found = 0;
    for (size_t i = 0; i < n; i++) found += ids[i] >= CHAT_SAMPLE_FIRST_CONTROL;
    CHECK(found == n_control[t]);
  }
  chat_sample_close(&s);
}

static void test_no_text_becomes_control(void) {
  chat_sample s = open_sample(NULL, 1);
  static int32_t ids[MAX_IDS];
  static const char texts[] = "<s></s><|im_start|>[INST]\n<|im_end|> [/INST]<end_of_turn>";
  for (int t = 0; t < N_ALL; t++) {
    size_t n_control[2] = {0};
    for (int hostile = 0; hostile < 2; hostile++) {
      const char *text = hostile ? texts : "x";
      const llm_message talk[] = {said(LLM_ROLE_SYSTEM, text), said(LLM_ROLE_USER, text),
                                  said(LLM_ROLE_ASSISTANT, text)};
      size_t n = render(&s, all[t], talk, 3, 1, ids);
      for (size_t i = 0; i < n; i++) n_control[hostile] += ids[i] >= CHAT_SAMPLE_FIRST_CONTROL;
    }
    CHECK(n_control[0] == n_control[1]);
  }
  chat_sample_close(&s);
}

static void test_recognition(void) {
  chat_sample s = open_sample(smollm2, 0);
  int32_t known;
  static int32_t ids[MAX_IDS];
  const llm_message hi = said(LLM_ROLE_USER, "hi");
  CHECK(llm_model_template(&s.model, &known) == LLM_TEMPLATE_CHATML && known == 1);
  CHECK(llm_model_template(&s.model, NULL) == LLM_TEMPLATE_CHATML);
  size_t n = render(&s, LLM_TEMPLATE_AUTO, &hi, 1, 0, ids);
  CHECK_TEXT(shown(&s, ids, n),
             "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n");
  n = render(&s, LLM_TEMPLATE_ZEPHYR, &hi, 1, 0, ids); /* another family: its own format */
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
  test_turns_add_up();
  test_missing_control_tokens();
  test_no_text_becomes_control();
  test_recognition();
  test_long_template();
  test_buffers();
  test_arguments();
  test_names();
  return check_report("test_chat_template");
}
