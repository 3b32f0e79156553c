/* chat_template.c: recognising the chat template of a file. Layer 6. The Jinja text is searched for
 * marks, more of them than llama.cpp asks for, because the variants of a family differ in their
 * default system message, in spaces and in what they trim. What is taken over from the text (a
 * default system message, a date) becomes plain text, never a control token.
 *
 * A template may hold a date (Llama 3.1) or ask for today's (3.2); both give the date that stands
 * in its text, so that the same file and conversation give the same ids on any day. The first
 * Llama 3 texts ask for an answer in any case; they are rendered as add_generation_prompt says. */
#include "chat_template.h"

#include <string.h>

#include "model.h"

enum { MAX_TEMPLATE_BYTES = 64 * 1024 }; /* a longer one is unknown */

static const char *const family_names[] = {"auto",    "chatml", "llama2", "llama3",
                                           "mistral", "gemma",  "zephyr"};
enum { N_FAMILIES = sizeof family_names / sizeof *family_names };

const char *llm_template_name(llm_template which) {
  return (int)which >= 0 && (int)which < N_FAMILIES ? family_names[which] : NULL;
}

llm_template llm_template_find(const char *name) {
  for (int i = 1; name && i < N_FAMILIES; i++)
    if (!strcmp(name, family_names[i])) return (llm_template)i;
  return LLM_TEMPLATE_AUTO;
}

const char *const chat_role_names[CHAT_N_ROLES] = {"system", "user", "assistant"};

/* ---- formats ---- */

#define CHATML_OPEN(role) "<|im_start|>" role "\n"
#define CHATML_FIELDS                                                                              \
  .family = LLM_TEMPLATE_CHATML, .begin = CHAT_BOS,                                                \
  .open = {CHATML_OPEN("system"), CHATML_OPEN("user"), CHATML_OPEN("assistant")},                  \
  .close = {"<|im_end|>\n", "<|im_end|>\n", "<|im_end|>\n"}, .opens_answer = 1

static const chat_format chatml = {CHATML_FIELDS}, qwen3 = {CHATML_FIELDS, .thinks = 1};

/* The whole text of a first turn is trimmed, the system's with the user's. */
static const chat_format llama2 = {
    .family = LLM_TEMPLATE_LLAMA2,
    .system = CHAT_SYSTEM_FIRST_USER,
    .begin = "",
    .open = {"<<SYS>>\n", CHAT_BOS "[INST] ", " "},
    .close = {"\n<</SYS>>", " [/INST]", " " CHAT_EOS},
    .system_end = "\n\n",
    .alternates = 1,
    .trims = {0, 1, 1},
    .trims_jointly = 1,
};

#define LLAMA3_OPEN(role) "<|start_header_id|>" role "<|end_header_id|>\n\n"
#define LLAMA3_FIELDS                                                                              \
  .family = LLM_TEMPLATE_LLAMA3, .begin = CHAT_BOS,                                                \
  .open = {LLAMA3_OPEN("system"), LLAMA3_OPEN("user"), LLAMA3_OPEN("assistant")},                  \
  .close = {"<|eot_id|>", "<|eot_id|>", "<|eot_id|>"}, .opens_answer = 1, .trims = {1, 1, 1}

static const chat_format llama3 = {LLAMA3_FIELDS};

#define KNOWLEDGE_DATE "Cutting Knowledge Date: December 2023\n"

/* The dates stand there without a system message too. */
static const chat_format llama31 = {
    LLAMA3_FIELDS,
    .first_system = LLAMA3_OPEN("system") KNOWLEDGE_DATE "Today Date: " CHAT_DATE "\n\n",
    .has_default_system = 1,
};

#define MISTRAL_FIELDS                                                                             \
  .family = LLM_TEMPLATE_MISTRAL, .begin = CHAT_BOS, .system_end = "\n\n", .alternates = 1

static const chat_format mistral_old = {
    MISTRAL_FIELDS,
    .system = CHAT_SYSTEM_REFUSED,
    .open = {"", "[INST] ", ""},
    .close = {"", " [/INST]", CHAT_EOS},
};
static const chat_format mistral_oldest = {
    MISTRAL_FIELDS,
    .system = CHAT_SYSTEM_REFUSED,
    .open = {"", "[INST] ", ""},
    .close = {"", " [/INST]", CHAT_EOS " "},
};
static const chat_format mistral_v1 = {
    MISTRAL_FIELDS,
    .system = CHAT_SYSTEM_FIRST_USER,
    .open = {"", " [INST] ", " "},
    .close = {"", " [/INST]", CHAT_EOS},
};
static const chat_format mistral_v3 = {
    MISTRAL_FIELDS,
    .system = CHAT_SYSTEM_LAST_USER,
    .open = {"", "[INST] ", " "},
    .close = {"", "[/INST]", CHAT_EOS},
    .trims = {0, 0, 1},
};
static const chat_format mistral_v3_tekken = {
    MISTRAL_FIELDS,
    .system = CHAT_SYSTEM_LAST_USER,
    .open = {"", "[INST]", ""},
    .close = {"", "[/INST]", CHAT_EOS},
};
static const chat_format mistral_v7 = {
    .family = LLM_TEMPLATE_MISTRAL,
    .begin = CHAT_BOS,
    .open = {"[SYSTEM_PROMPT] ", "[INST] ", " "},
    .close = {"[/SYSTEM_PROMPT]", "[/INST]", CHAT_EOS},
};

#define GEMMA_FIELDS                                                                               \
  .family = LLM_TEMPLATE_GEMMA, .begin = CHAT_BOS,                                                 \
  .open = {"", "<start_of_turn>user\n", "<start_of_turn>model\n"},                                 \
  .close = {"", "<end_of_turn>\n", "<end_of_turn>\n"}, .system_end = "\n\n", .opens_answer = 1,    \
  .alternates = 1, .trims = {0, 1, 1}

static const chat_format gemma = {GEMMA_FIELDS, .system = CHAT_SYSTEM_REFUSED};
static const chat_format gemma3 = {GEMMA_FIELDS, .system = CHAT_SYSTEM_FIRST_USER};

static const chat_format zephyr = {
    .family = LLM_TEMPLATE_ZEPHYR,
    .begin = CHAT_BOS,
    .open = {"<|system|>\n", "<|user|>\n", "<|assistant|>\n"},
    .close = {CHAT_EOS "\n", CHAT_EOS "\n", CHAT_EOS "\n"},
    .opens_answer = 1,
};

/* What a caller gets by a family's name. */
static const chat_format *const families[N_FAMILIES] = {&chatml,     &chatml, &llama2, &llama3,
                                                        &mistral_v1, &gemma3, &zephyr};

/* ---- variants and their marks ---- */

#define NEXT "\1" /* between marks */

/* Every mark stands in the text and no counter-mark does. In a mark \n stands for a line end and
 * for Jinja's escape of one, and ' for either quote. */
typedef struct variant {
  const chat_format *format;
  const char *marks, *counter; /* NULL: none */
} variant;

#define CHATML_ANSWER  "'<|im_start|>assistant\n'"
#define CHATML_COUNTER "<think>" NEXT "| trim" NEXT "|trim" NEXT ".strip("

static const variant variants[] = {
    /* Qwen 3 */
    {&qwen3,
     CHATML_ANSWER NEXT
     "loop.last or (not loop.last and reasoning_content)" NEXT
     "'\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n')" NEXT
     "enable_thinking is defined and enable_thinking is false",
     NULL},
    /* SmolLM 2, Qwen 2, most fine-tunes */
    {&chatml,
     CHATML_ANSWER NEXT
     "'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'",
     CHATML_COUNTER},
    /* Qwen 2.5 */
    {&chatml,
     CHATML_ANSWER NEXT
     "'<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n'" NEXT
     "(message.role == 'assistant' and not message.tool_calls)",
     CHATML_COUNTER},
    /* Qwen 3 2507, without thoughts */
    {&chatml,
     CHATML_ANSWER NEXT "'<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n'" NEXT
                        "'<|im_start|>' + message.role + '\n' + content }}",
     CHATML_COUNTER},
    /* chat, without the default system message that some copies carry */
    {&llama2,
     "bos_token + '[INST] ' + content.strip() + ' [/INST]'" NEXT
     "'<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content']" NEXT
     "content.strip() + ' ' + eos_token" NEXT "roles must alternate",
     "true == true"},
    {&llama3,
     "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | "
     "trim "
     "+ '<|eot_id|>'",
     "Knowledge Date" NEXT "Today Date"},
    /* 3.1 to 3.3 */
    {&llama31,
     "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | "
     "trim "
     "+ '<|eot_id|>'" NEXT "'" KNOWLEDGE_DATE "'" NEXT "'Today Date: ' + date_string + '\n\n'" NEXT
     "set system_message = messages[0]['content']|trim",
     NULL},
    /* 7B v0.1 */
    {&mistral_oldest,
     "'[INST] ' + message['content'] + ' [/INST]'" NEXT "message['content'] + eos_token + ' '" NEXT
     "Only user and assistant roles are supported!",
     "system_message" NEXT "<<SYS>>"},
    /* 7B v0.2, 8x7B, as first published */
    {&mistral_old,
     "'[INST] ' + message['content'] + ' [/INST]'" NEXT "message['content'] + eos_token" NEXT
     "Only user and assistant roles are supported!",
     "system_message" NEXT "<<SYS>>" NEXT "eos_token + "},
    /* the same models later */
    {&mistral_v1,
     "' [INST] ' + system_message + '\n\n' + message['content'] + ' [/INST]'" NEXT
     "' ' + message['content'] + eos_token" NEXT "loop.first and system_message is defined",
     NULL},
    /* 7B v0.3, Large 2407 */
    {&mistral_v3,
     "'[INST] ' + system_message + '\n\n' + message['content'] + '[/INST]'" NEXT
     "' ' + message['content']|trim + eos_token" NEXT "loop.last and system_message is defined",
     NULL},
    /* Nemo */
    {&mistral_v3_tekken,
     "'[INST]' + system_message + '\n\n' + message['content'] + '[/INST]'" NEXT
     "{{- message['content'] + eos_token" NEXT "loop.last and system_message is defined",
     NULL},
    /* Large 2411 */
    {&mistral_v7,
     "'[SYSTEM_PROMPT] ' + message['content'] + '[/SYSTEM_PROMPT]'" NEXT
     "'[INST] ' + message['content'] + '[/INST]'" NEXT "' ' + message['content'] + eos_token",
     "system_message"},
    /* 1 and 2 */
    {&gemma,
     "'<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n'" NEXT
     "'<start_of_turn>model\n'" NEXT "System role not supported",
     NULL},
    {&gemma3,
     "'<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else '')" NEXT
     "messages[0]['content'] + '\n\n'" NEXT "{{ message['content'] | trim }}" NEXT
     "'<end_of_turn>\n'",
     NULL},
    /* and TinyLlama: the line end stands outside the expression */
    {&zephyr,
     "'<|user|>\n' + message['content'] + eos_token }}\n" NEXT
     "'<|system|>\n' + message['content'] + eos_token }}\n" NEXT "'<|assistant|>' }}\n",
     "| trim" NEXT ".strip("},
    {&zephyr,
     "'<|user|>\n' + message['content'] + eos_token + '\n'" NEXT
     "'<|system|>\n' + message['content'] + eos_token + '\n'" NEXT "'<|assistant|>\n' }}",
     "| trim" NEXT ".strip("},
};

/* ---- searching the text ---- */

/* How many bytes of s[0..n) the mark takes; 0: it does not stand there. */
static size_t mark_at(const char *s, size_t n, const char *mark) {
  size_t at = 0;
  for (; *mark && *mark != *NEXT; mark++, at++) {
    if (*mark == '\n' && at + 1 < n && s[at] == '\\' && s[at + 1] == 'n')
      at++;
    else if (at >= n || (s[at] != *mark && !(*mark == '\'' && s[at] == '"')))
      return 0;
  }
  return at;
}

/* What follows the first place of a mark; data is NULL where there is none. */
static gguf_string after(gguf_string s, const char *mark) {
  for (size_t at = 0; at < s.n_bytes; at++) {
    size_t n = mark_at(s.data + at, s.n_bytes - at, mark);
    if (n) return (gguf_string){s.data + at + n, s.n_bytes - at - n};
  }
  return (gguf_string){NULL, 0};
}

static int has(gguf_string s, const char *mark) { return after(s, mark).data != NULL; }

/* The first plain text between two marks: no quote, backslash or brace of Jinja's stands in it. */
static gguf_string between(gguf_string s, const char *before, const char *behind) {
  for (gguf_string rest = after(s, before); rest.data; rest = after(rest, before)) {
    size_t n = 0;
    for (; n < rest.n_bytes && !strchr("'\"\\{}", rest.data[n]); n++)
      if (mark_at(rest.data + n, rest.n_bytes - n, behind)) return (gguf_string){rest.data, n};
    if (mark_at(rest.data + n, rest.n_bytes - n, behind)) return (gguf_string){rest.data, n};
    rest = (gguf_string){rest.data + n, rest.n_bytes - n}; /* so that the search stays linear */
  }
  return (gguf_string){NULL, 0};
}

/* Whether all of the marks stand there, or none does. */
static int all_are(gguf_string s, const char *marks, int there) {
  for (const char *m = marks; m; m = strchr(m, *NEXT)) {
    m += *m == *NEXT;
    if (has(s, m) != there) return 0;
  }
  return 1;
}

static int is_variant(gguf_string s, const variant *v) {
  return all_are(s, v->marks, 1) && all_are(s, v->counter, 0);
}

/* What the variant's text says beside its marks; 0: it does not say it. */
static int take_over(gguf_string s, chat_format *f) {
  if (!has(s, "bos_token")) f->begin[0] = 0;
  if (f->family == LLM_TEMPLATE_CHATML) {
    f->default_system = between(s, "<|im_start|>system\n", "<|im_end|>");
    f->has_default_system = f->default_system.data != NULL;
  }
  if (f->first_system) f->date = between(s, "set date_string = '", "'");
  return !f->first_system || f->date.data;
}

static int recognise(const llm_model *model, chat_format *f) {
  gguf_string s = {"", 0};
  if (gguf_get_string(model->file, "tokenizer.chat_template", 0, &s, NULL)) return 0;
  if (s.n_bytes > MAX_TEMPLATE_BYTES || memchr(s.data, 0, s.n_bytes)) return 0;
  for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) {
    *f = *variants[i].format;
    if (is_variant(s, &variants[i]) && take_over(s, f)) return 1;
  }
  return 0;
}

chat_format chat_format_of(const llm_model *model, llm_template which) {
  chat_format f;
  if (recognise(model, &f) && (which == LLM_TEMPLATE_AUTO || which == f.family)) return f;
  f = *families[which];
  if (f.family == LLM_TEMPLATE_CHATML || f.family == LLM_TEMPLATE_ZEPHYR) f.begin[0] = 0;
  return f;
}

llm_template llm_model_template(const llm_model *model, int32_t *recognised) {
  chat_format f;
  int known = recognise(model, &f);
  if (recognised) *recognised = known;
  return known ? f.family : LLM_TEMPLATE_CHATML;
}
