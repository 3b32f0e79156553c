/* fuzz_chat.c: any bytes as a chat template and as messages. The first byte chooses vocabulary,
 * family and generation prompt; then two bytes say how long the template is, which is followed by
 * messages: a byte for the role, one for the length, the text. Whatever they hold, the control
 * ids are those of the same conversation without texts. Built with libFuzzer by `make fuzz`, or
 * with replay.c over saved files. */
#include "../c/chat_sample.h"

enum { HAS_CONTROLS = 1, ADD_BOS = 2, PROMPT = 4, MAX_MESSAGES = 16 };

typedef struct input {
  const uint8_t *data;
  size_t n;
} input;

static int next_byte(input *in) {
  if (!in->n) return 0;
  in->n--;
  return *in->data++;
}

static input next_bytes(input *in, size_t n) {
  input out = {in->data, n < in->n ? n : in->n};
  in->data += out.n;
  in->n -= out.n;
  return out;
}

static int32_t *render(const chat_sample *s, llm_template which, const llm_message *messages,
                       size_t n, int prompt, size_t *n_ids) {
  size_t needed;
  llm_error err;
  llm_status status =
      llm_chat_render(&s->model, which, messages, n, prompt, NULL, 0, &needed, &err);
  if (status && !needed) return NULL;
  int32_t *ids = malloc((needed ? needed : 1) * sizeof *ids);
  if (llm_chat_render(&s->model, which, messages, n, prompt, ids, needed, n_ids, &err)) abort();
  if (*n_ids != needed) abort();
  return ids;
}

static size_t keep_control(int32_t *ids, size_t n) {
  size_t n_kept = 0;
  for (size_t i = 0; i < n; i++)
    if (ids[i] >= CHAT_SAMPLE_FIRST_CONTROL) ids[n_kept++] = ids[i];
  return n_kept;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
  input in = {data, n_bytes};
  int flags = next_byte(&in);
  llm_template which = (llm_template)(flags >> 3 & 7); /* 7 is refused */
  size_t n_jinja = (size_t)next_byte(&in) << 8;
  n_jinja |= (size_t)next_byte(&in);
  input jinja = next_bytes(&in, n_jinja);
  chat_sample s = {.controls = {"<s>", "</s>"},
                   .add_bos = flags & ADD_BOS,
                   .jinja = jinja.data,
                   .n_jinja = jinja.n};
  static const char *const more[] = {"<|im_start|>", "<|im_end|>",      "<|eot_id|>",
                                     "[INST]",       "<start_of_turn>", "<|user|>"};
  for (int i = 0; i < 6 && flags & HAS_CONTROLS; i++) s.controls[i + 2] = more[i];
  if (!s.jinja) s.jinja = "";
  chat_sample_open(&s);

  llm_message messages[MAX_MESSAGES], empty[MAX_MESSAGES];
  size_t n = 0, n_ids, n_empty;
  for (; n < MAX_MESSAGES && in.n; n++) {
    llm_role role = (llm_role)(next_byte(&in) & 3); /* 3 is refused */
    input text = next_bytes(&in, (size_t)next_byte(&in));
    messages[n] = (llm_message){role, (const char *)text.data, text.n};
    empty[n] = (llm_message){role, NULL, 0};
  }
  int32_t known;
  llm_model_template(&s.model, &known);
  int prompt = (flags & PROMPT) != 0;
  int32_t *ids = render(&s, which, messages, n, prompt, &n_ids);
  int32_t *plain = render(&s, which, empty, n, prompt, &n_empty);
  if (!ids != !plain) abort();
  if (ids) {
    n_ids = keep_control(ids, n_ids);
    if (n_ids != keep_control(plain, n_empty) || memcmp(ids, plain, n_ids * sizeof *ids)) abort();
  }
  free(ids);
  free(plain);
  chat_sample_close(&s);
  return 0;
}
