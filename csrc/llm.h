/* llm.h: the public interface of the engine, and the only header of it that the program (run*.c)
 * and the bindings see.
 *
 * Past 500 lines on purpose: one header is the whole interface, and half of it is contracts.
 *
 * Depends on nothing but C11. The text between the two "cffi" marker lines is handed to cffi's
 * cdef() as it stands, so it holds plain declarations: no macros, conditionals or attributes.
 *
 * Conventions. Functions that can fail return llm_status and fill a caller-owned llm_error (which
 * may be NULL). Constructors take `out` first; *out is NULL after a failure. Every *_free accepts
 * NULL. The library never prints, never exits, installs no signal handlers and reads no environment
 * variable. Variable-length results come as (dst, capacity, *n_needed): *n_needed is always set to
 * the full length, and LLM_ERR_ARG is returned when it is greater than capacity (nothing is written
 * past capacity; dst may be NULL when capacity is 0).
 *
 * Threads: llm_model and llm_tokenizer are read-only after construction and may be shared. An
 * llm_context, llm_sampler or llm_generator is one timeline: one thread at a time.
 */
#ifndef LLM_H
#define LLM_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */

typedef enum llm_status {
  LLM_OK = 0,
  LLM_ERR_ARG = 1,          /* the caller passed something out of range */
  LLM_ERR_IO = 2,           /* the operating system said no: see sys_errno */
  LLM_ERR_FORMAT = 3,       /* the file contradicts its format */
  LLM_ERR_UNSUPPORTED = 4,  /* a valid file that this program does not run */
  LLM_ERR_NOMEM = 5,        /* an allocation failed */
  LLM_ERR_CONTEXT_FULL = 6, /* more tokens than the context holds: see found and limit */
  LLM_ERR_CANCELLED = 7     /* the cancel check asked to stop */
} llm_status;

typedef struct llm_error {
  llm_status status;
  int32_t sys_errno;  /* errno for LLM_ERR_IO, else 0 */
  int64_t found;      /* LLM_ERR_CONTEXT_FULL: tokens that were to be held, */
  int64_t limit;      /*   and tokens that the context can hold; else 0 */
  char message[1024]; /* one line, UTF-8, no newline: what, where, found, expected */
} llm_error;

const char *llm_version(void);
const char *llm_status_name(llm_status status); /* "LLM_ERR_ARG"; NULL outside the enum */

/* ---- tensor types: the numbers are GGUF's ggml_type ---- */

typedef enum llm_type {
  LLM_TYPE_F32 = 0,
  LLM_TYPE_F16 = 1,
  LLM_TYPE_Q4_0 = 2,
  LLM_TYPE_Q4_1 = 3,
  LLM_TYPE_Q5_0 = 6,
  LLM_TYPE_Q5_1 = 7,
  LLM_TYPE_Q8_0 = 8,
  LLM_TYPE_Q4_K = 12,
  LLM_TYPE_Q5_K = 13,
  LLM_TYPE_Q6_K = 14,
  LLM_TYPE_BF16 = 30
} llm_type;

/* Block geometry. n_per_block is 0 for a type that is not in the table. */
typedef struct llm_type_info {
  const char *name;   /* "Q4_1" */
  size_t n_per_block; /* elements in one block */
  size_t bytes_per_block;
} llm_type_info;

llm_type_info llm_type_describe(llm_type type);

/* Expands n elements (a whole number of blocks, else LLM_ERR_ARG) of `src` to float32. */
llm_status llm_dequantize(llm_type type, const void *src, size_t n, float *dst, llm_error *err);

/* Rounds rows of n_per_row elements (whole blocks, else LLM_ERR_ARG) to the type's blocks. Without
 * importance and feedback: F16 and BF16 to nearest even, types of 32 elements by the rules of the
 * public gguf package, bit for bit, super-blocks by a search for the least squared error. With
 * importance (n_per_row), above 0: all quantized types by a search for the least sum of importance
 * * error^2. With feedback (n_per_row, n_per_row): columns in order, and the error e of column j
 * goes on to the columns behind it, row[k] -= e * feedback[j][k], k > j (Frantar et al. 2022,
 * "GPTQ"). Values that the type cannot hold, infinity and NaN, are LLM_ERR_ARG for quantized types.
 * The result does not depend on n_threads; 0: all cores. */
llm_status llm_quantize(llm_type type, const float *src, size_t n_rows, size_t n_per_row,
                        const float *importance, const float *feedback, int32_t n_threads,
                        void *dst, llm_error *err);

/* ---- model: one parameter file, memory-mapped and never written ---- */

typedef struct llm_model llm_model;

typedef struct llm_config {
  char architecture[32];
  int64_t n_vocab, n_ctx_train, n_embd, n_layer, n_ff;
  int64_t n_head, n_kv_head, head_dim, rope_dim;
  int64_t sliding_window;     /* positions that a local layer sees; 0: every layer sees all */
  float rope_theta, norm_eps; /* rope_theta and rope_dim: 0 where positions are learned vectors */
  int32_t tied_output;        /* 1: the output matrix is the token embedding */
} llm_config;

typedef struct llm_tensor {
  const char *name; /* NUL-terminated, lives as long as the model */
  llm_type type;
  int32_t n_dims;
  int64_t dims[4];  /* fastest first, as GGUF lists them; unused ones are 1 */
  const void *data; /* inside the mapping */
  uint64_t n_bytes;
} llm_tensor;

/* One metadata entry. Numbers and bools: `data` points at the value in the file (unaligned, little
 * endian). Strings: `data` points at the bytes, n_bytes long, no NUL. Arrays: value_type is 9,
 * element_type and n_elements say of what, `data` points at the first element (strings in their
 * file form, a uint64 length before each), n_bytes covers them all. */
typedef struct llm_meta {
  const char *key;                  /* NUL-terminated, lives as long as the model */
  int32_t value_type, element_type; /* GGUF's gguf_metadata_value_type */
  uint64_t n_elements, n_bytes;
  const void *data;
} llm_meta;

llm_status llm_model_open(llm_model **out, const char *path, llm_error *err);
/* After the last call on its contexts and generators, and the last use of its tensors. Contexts and
 * generators may be freed later: freeing them does not touch the model. */
void llm_model_free(llm_model *model);
const llm_config *llm_model_config(const llm_model *model);
uint64_t llm_model_n_params(const llm_model *model);
uint64_t llm_model_file_bytes(const llm_model *model);
size_t llm_model_n_tensors(const llm_model *model);
llm_status llm_model_tensor(const llm_model *model, size_t index, llm_tensor *out, llm_error *err);
size_t llm_model_n_meta(const llm_model *model);
llm_status llm_model_meta(const llm_model *model, size_t index, llm_meta *out, llm_error *err);

/* ---- tokenizer ---- */

typedef struct llm_tokenizer llm_tokenizer;

/* GGUF's tokenizer.ggml.token_type */
typedef enum llm_token_type {
  LLM_TOKEN_NORMAL = 1,
  LLM_TOKEN_UNKNOWN = 2,
  LLM_TOKEN_CONTROL = 3,
  LLM_TOKEN_USER_DEFINED = 4,
  LLM_TOKEN_UNUSED = 5,
  LLM_TOKEN_BYTE = 6
} llm_token_type;

/* What a byte-level BPE is made of. Token i is the raw bytes text[offsets[i] .. offsets[i+1]);
 * `types` holds n_vocab llm_token_type values or is NULL (all normal); merge m joins the tokens
 * merges[2m] and merges[2m+1] and has rank m. With n_merges LLM_BPE_BY_RANK the ids of the normal
 * tokens are ranks, as in tiktoken's files: any neighbours that make a token merge, the lowest id
 * first, and a piece that is a token is taken whole. Everything is copied. */
enum { LLM_BPE_BY_RANK = -1 };

typedef struct llm_bpe_spec {
  const char *pre; /* name of the pre-tokenizer as in tokenizer.ggml.pre: "gpt-2", "qwen2" */
  int64_t n_vocab;
  const uint8_t *text;
  const uint64_t *offsets; /* n_vocab + 1 */
  const int32_t *types;
  int64_t n_merges;      /* LLM_BPE_BY_RANK: none */
  const int32_t *merges; /* 2 * n_merges */
} llm_bpe_spec;

llm_status llm_tokenizer_new_bpe(llm_tokenizer **out, const llm_bpe_spec *spec, llm_error *err);
/* That of a parameter file, without its model: files that hold a vocabulary only will do. */
llm_status llm_tokenizer_open(llm_tokenizer **out, const char *path, llm_error *err);
void llm_tokenizer_free(llm_tokenizer *tokenizer);
const llm_tokenizer *llm_model_tokenizer(const llm_model *model); /* borrowed; never NULL */

/* "gpt2": byte-level BPE; "llama": SentencePiece's BPE. As in tokenizer.ggml.model. */
const char *llm_tokenizer_model(const llm_tokenizer *tokenizer);
int64_t llm_tokenizer_n_vocab(const llm_tokenizer *tokenizer);
int64_t llm_tokenizer_n_byte_tokens(const llm_tokenizer *tokenizer); /* single bytes it can spell */
int32_t llm_tokenizer_bos(const llm_tokenizer *tokenizer);           /* -1: the file names none */
int32_t llm_tokenizer_eos(const llm_tokenizer *tokenizer);
int32_t llm_tokenizer_add_bos(const llm_tokenizer *tokenizer); /* 1: the file asks for BOS first */
int32_t llm_tokenizer_add_eos(const llm_tokenizer *tokenizer); /* 1: and EOS last */
/* 1: SentencePiece's dummy prefix: encoding puts a space before the text, and before what follows a
 * control token. */
int32_t llm_tokenizer_adds_space(const llm_tokenizer *tokenizer);
int32_t llm_tokenizer_is_eog(const llm_tokenizer *tokenizer, int32_t id);     /* ends generation */
int32_t llm_tokenizer_token_type(const llm_tokenizer *tokenizer, int32_t id); /* 0: no such id */

/* The id of the token whose bytes are exactly these: control, user-defined and byte tokens too; of
 * several a control token before the others. -1: none. */
int32_t llm_tokenizer_find(const llm_tokenizer *tokenizer, const char *text, size_t n_bytes);

/* Any bytes to ids; text may hold NULs and invalid UTF-8. parse_special = 1 turns the text of
 * control tokens into those tokens; 0 treats it as plain text. User-defined tokens are found either
 * way. No BOS or EOS is added here. Bytes that a byte-level vocabulary cannot spell are dropped, as
 * Hugging Face's tokenizers does; SentencePiece gives its unknown token where it has no byte
 * tokens. The result is at most n_bytes ids; where llm_tokenizer_adds_space is 1, n_bytes + 1, with
 * parse_special 2 n_bytes + 1. */
llm_status llm_tokenizer_encode(const llm_tokenizer *tokenizer, const char *text, size_t n_bytes,
                                int32_t parse_special, int32_t *dst, size_t capacity,
                                size_t *n_needed, llm_error *err);

/* Many documents in one call, first_id before each; document d is text[offsets[d] ..
 * offsets[d + 1]). The ids are those of llm_tokenizer_encode on each alone with parse_special 0;
 * their number adds up likewise, plus one for each document. */
llm_status llm_tokenizer_encode_documents(const llm_tokenizer *tokenizer, const char *text,
                                          const uint64_t *offsets, uint64_t n_documents,
                                          int32_t first_id, int32_t *dst, size_t capacity,
                                          size_t *n_needed, llm_error *err);

/* Ids to bytes, not NUL-terminated, possibly cut inside a UTF-8 character at either end. Control
 * tokens give their text when render_special = 1, else nothing. Every id gives the same bytes
 * wherever it stands: this is how a text goes on, id by id. */
llm_status llm_tokenizer_decode(const llm_tokenizer *tokenizer, const int32_t *ids, size_t n_ids,
                                int32_t render_special, char *dst, size_t capacity,
                                size_t *n_needed, llm_error *err);

/* The same for a whole text: without the spaces that llm_tokenizer_adds_space speaks of. */
llm_status llm_tokenizer_decode_text(const llm_tokenizer *tokenizer, const int32_t *ids,
                                     size_t n_ids, int32_t render_special, char *dst,
                                     size_t capacity, size_t *n_needed, llm_error *err);

/* Length of the UTF-8 character that begins at text[0..n): 1 to 4, or 0 where none is whole and
 * valid. */
size_t llm_utf8_length(const char *text, size_t n);

/* ---- context: one timeline of tokens with its key/value cache ---- */

typedef struct llm_context llm_context;

/* Asked before every layer of every pass; a non-zero answer ends the call with LLM_ERR_CANCELLED.
 */
typedef int (*llm_cancel_check)(void *user);

/* What makes room in a full window.
 * STOP    nothing: an evaluation that does not fit fails, a generator finishes.
 * FORGET  a generator drops the oldest text (of a chat: the oldest whole turns, never the system
 *         message) until a quarter of the window is free, and reads what is kept again: the result
 *         equals a fresh run on that text. llm_context_eval alone still fails.
 * SLIDE   each new token takes the place of the oldest but for the first n_sink (Xiao et al. 2023,
 *         "Efficient Streaming Language Models with Attention Sinks"): endless text. Keys are kept
 *         unrotated and are rotated by their place in the window when they are read, so nothing
 *         drifts. */
typedef enum llm_on_full {
  LLM_ON_FULL_STOP = 0,
  LLM_ON_FULL_FORGET = 1,
  LLM_ON_FULL_SLIDE = 2
} llm_on_full;

typedef struct llm_context_options {
  int64_t n_ctx;                 /* 0: the trained length, at most 4096 */
  int32_t allow_long_context;    /* 1: n_ctx may be greater than the trained length */
  int32_t n_threads;             /* 0: one per available core */
  int32_t kv_type;               /* LLM_TYPE_F16, F32 or Q8_0 */
  int32_t on_full;               /* llm_on_full */
  int64_t n_sink;                /* first tokens that a sliding window keeps, below n_ctx */
  const char *kernels;           /* "scalar", "avx2", "avx512", "amx", "neon"; NULL: the best */
  llm_cancel_check cancel_check; /* may be NULL */
  void *cancel_user;
} llm_context_options;

/* LLM_ERR_ARG, with the names of this processor's sets, where `name` is none of them. */
llm_status llm_kernels_check(const char *name, llm_error *err);

llm_context_options llm_context_default_options(void);
llm_status llm_context_new(llm_context **out, const llm_model *model,
                           const llm_context_options *options, llm_error *err);
void llm_context_free(llm_context *context);
int64_t llm_context_n_ctx(const llm_context *context);
int64_t llm_context_n_past(const llm_context *context); /* tokens held */
/* The tokens held, (n_past) in the order of the text; until the next call on the context. */
const int32_t *llm_context_ids(const llm_context *context);
int32_t llm_context_n_threads(const llm_context *context);
const char *llm_context_kernels(const llm_context *context);

/* What a model needs to run well on this machine. Sizes in bytes; those that 64 bits do not hold
 * are UINT64_MAX or near it. */
typedef struct llm_needs {
  uint64_t file_bytes, kv_bytes, scratch_bytes; /* of memory; kv_bytes: of a full window */
  uint64_t total_bytes;                         /* their sum */
  uint64_t machine_bytes;                       /* memory that the machine has; 0: unknown */
  uint64_t token_bytes;                         /* of weights that every token reads */
  double bytes_per_second;  /* that all threads read, measured in about 0.1 s as decoding reads: a
                               buffer as large as the weights (at most 512 MiB), again and again */
  double seconds_per_token; /* token_bytes at that rate: the least for one token after the other.
                               Where total_bytes > machine_bytes the disk sets the pace instead. */
  int64_t n_ctx;
  int32_t n_threads;
  char kernels[16];
} llm_needs;

/* For a context of these options (NULL: the defaults), which is not made. */
llm_status llm_model_needs(const llm_model *model, const llm_context_options *options,
                           llm_needs *out, llm_error *err);

/* Appends n_ids >= 1 tokens and writes the logits of the last n_rows of them, (n_rows, n_vocab)
 * float32 row-major, 0 <= n_rows <= n_ids (logits may be NULL when n_rows is 0). On any failure
 * the context holds what it held before; where text slid out of the window by then, what was read
 * so far. LLM_ERR_CONTEXT_FULL when they do not all fit. */
llm_status llm_context_eval(llm_context *context, const int32_t *ids, size_t n_ids, float *logits,
                            size_t n_rows, llm_error *err);

/* Shown each input of a weight matrix before the product: x (n_tok, n_in), until it returns; weight
 * is the llm_tensor.data of the matrix, or lies inside it. Called on the evaluating thread. NULL:
 * no observer, as in a new context. For calibration: it changes no result. */
typedef void (*llm_input_observer)(void *user, const void *weight, const float *x, size_t n_tok,
                                   size_t n_in);
void llm_context_observe(llm_context *context, llm_input_observer observer, void *user);

/* Forgets every token from position n_keep on. */
llm_status llm_context_truncate(llm_context *context, int64_t n_keep, llm_error *err);

/* ---- sampler ---- */

typedef struct llm_sampler llm_sampler;

/* The steps, in this order; l is a token's logit, c how often it stands among the last
 * penalty_last_n accepted tokens (llm_sampler_accept), p its probability under what is left:
 *   repetition           where c > 0: l / repeat_penalty for l > 0, else l * repeat_penalty
 *                        (CTRL, Keskar et al. 2019, with the sign rule of Hugging Face)
 *   presence, frequency  where c > 0: l - presence_penalty - c * frequency_penalty (OpenAI's API)
 *   logit bias           l + bias; minus infinity bans the token
 *   top-k                keeps the k likeliest, ties to the lower id
 *   top-p                keeps the likeliest until their sum reaches top_p (Holtzman et al. 2019)
 *   min-p                keeps p >= min_p * the largest p (Nguyen et al. 2024)
 *   temperature          draws from softmax(l / temperature), or takes the likeliest where it is 0
 */
typedef struct llm_sampler_options {
  float temperature; /* 0: arg-max, ties to the lowest id; else >= 0, finite */
  int32_t top_k;     /* 0: off */
  float top_p;       /* (0, 1]; 1: off */
  uint64_t seed;
  float min_p;              /* [0, 1]; 0: off */
  float repeat_penalty;     /* above 0, finite; 1: off */
  float presence_penalty;   /* finite; 0: off */
  float frequency_penalty;  /* finite; 0: off */
  int32_t penalty_last_n;   /* 0 (no penalties) to 2^20 */
  size_t n_biases;          /* pairs of id and bias, copied; those of one id add up */
  const int32_t *bias_ids;  /* (n_biases) in the vocabulary */
  const float *bias_values; /* (n_biases) finite, or -inf */
} llm_sampler_options;

/* temperature 0.8, top_k 40, top_p 0.95, penalty_last_n 64, the rest off */
llm_sampler_options llm_sampler_default_options(void);
llm_status llm_sampler_new(llm_sampler **out, int64_t n_vocab, const llm_sampler_options *options,
                           llm_error *err);
void llm_sampler_free(llm_sampler *sampler);
int64_t llm_sampler_n_vocab(const llm_sampler *sampler);
/* Picks an id from (n_vocab) logits, left unchanged. NaN counts as minus infinity; where every
 * token is at minus infinity, by logits or by bans, all are equally likely. */
int32_t llm_sampler_sample(llm_sampler *sampler, const float *logits);
/* Tokens that the penalties look back on: the prompt and what was sampled. A generator feeds both.
 * Ids outside the vocabulary are passed over. */
void llm_sampler_accept(llm_sampler *sampler, const int32_t *ids, size_t n_ids);
/* Forgets the accepted tokens; the random state goes on. */
void llm_sampler_reset(llm_sampler *sampler);

/* Log-probabilities of the raw distribution softmax(logits), before any option of a sampler: that
 * of `id` where logprob is not NULL, and the n_top likeliest ids with theirs, the likeliest first,
 * ties to the lowest id. NaN counts as minus infinity; all at minus infinity are equally likely. */
llm_status llm_logprobs(const float *logits, int64_t n_vocab, int32_t id, size_t n_top,
                        int32_t *top_ids, float *top_logprobs, float *logprob, llm_error *err);

/* ---- generation: prefill, then one token a call ---- */

typedef struct llm_generator llm_generator;

typedef enum llm_finish {
  LLM_FINISH_NONE = 0, /* not finished */
  LLM_FINISH_STOP = 1, /* an end-of-generation token or a stop string */
  LLM_FINISH_LENGTH = 2,
  LLM_FINISH_CONTEXT = 3,  /* the context is full */
  LLM_FINISH_CANCELLED = 4 /* a step failed, for one because the cancel check asked to stop */
} llm_finish;

const char *llm_finish_name(llm_finish finish); /* "stop"; NULL outside the enum */

typedef struct llm_step {
  int32_t id;        /* the new token; -1 when the step only reports the end */
  llm_finish finish; /* NONE until the last step */
  const char *text;  /* bytes that became complete, valid UTF-8 where the model wrote any; */
  size_t n_bytes;    /*   valid until the next call. At the end whatever was held back. */
  /* What was forgotten before this token (LLM_ON_FULL_FORGET): tokens, whole turns of a chat. */
  size_t forgot_tokens, forgot_turns;
  /* Of the raw distribution, where asked for: the token's log-probability (else NaN) and the n_top
   * likeliest tokens; until the next call. */
  float logprob;
  size_t n_top;
  const int32_t *top_ids;
  const float *top_logprobs;
} llm_step;

/* Text that may begin a stop string, or that ends inside a UTF-8 character (at most 3 bytes), is
 * held back until the next token decides. */
typedef struct llm_generator_options {
  int64_t max_tokens;       /* negative: no limit but the context */
  size_t n_stop;            /* stop strings: the text ends before the first that appears */
  const char *const *stop;  /* (n_stop) any bytes; copied */
  const size_t *stop_bytes; /* (n_stop) their lengths, 1 or more */
  int64_t n_top; /* log-probability of each token with so many alternatives; negative: none */
} llm_generator_options;

/* No limit, no stop strings, no log-probabilities. */
llm_generator_options llm_generator_default_options(void);

/* Evaluates the prompt (n_ids >= 1) on top of what the context holds. The context and the sampler,
 * of one n_vocab, are borrowed for the generator's life. A prompt that does not fit gives
 * LLM_ERR_CONTEXT_FULL with both counts; a context that forgets keeps BOS and the prompt's end. */
llm_status llm_generator_new(llm_generator **out, llm_context *context, llm_sampler *sampler,
                             const int32_t *prompt, size_t n_ids,
                             const llm_generator_options *options, llm_error *err);
void llm_generator_free(llm_generator *generator);
/* One step; after a finish it repeats the finish with id -1 and no text. A failure is a finish;
 * *out is filled in any case. */
llm_status llm_generator_next(llm_generator *generator, llm_step *out, llm_error *err);

/* ---- chat templates ---- */

typedef enum llm_role { LLM_ROLE_SYSTEM = 0, LLM_ROLE_USER = 1, LLM_ROLE_ASSISTANT = 2 } llm_role;

typedef struct llm_message {
  llm_role role;
  const char *text; /* any bytes */
  size_t n_bytes;
} llm_message;

typedef enum llm_template {
  LLM_TEMPLATE_AUTO = 0, /* the file's, or ChatML where that is unknown */
  LLM_TEMPLATE_CHATML = 1,
  LLM_TEMPLATE_LLAMA2 = 2,
  LLM_TEMPLATE_LLAMA3 = 3,
  LLM_TEMPLATE_MISTRAL = 4,
  LLM_TEMPLATE_GEMMA = 5,
  LLM_TEMPLATE_ZEPHYR = 6
} llm_template;

const char *llm_template_name(llm_template which); /* "chatml"; NULL outside the enum */
llm_template llm_template_find(const char *name);  /* LLM_TEMPLATE_AUTO: no such name */
/* What the file's tokenizer.chat_template was recognised as, LLM_TEMPLATE_CHATML with *recognised =
 * 0 where it is unknown or absent. The template is never executed. */
llm_template llm_model_template(const llm_model *model, int32_t *recognised);

/* The ids of a conversation; add_generation_prompt = 1 appends what asks for the assistant's
 * answer. A family that is the file's own is rendered as the file has it (its default system
 * message, its spaces). Control ids come from the template alone: no text becomes one. BOS stands
 * first where the template or the file asks for it. LLM_ERR_ARG for a conversation that the
 * template refuses. */
llm_status llm_chat_render(const llm_model *model, llm_template which, const llm_message *messages,
                           size_t n_messages, int32_t add_generation_prompt, int32_t *dst,
                           size_t capacity, size_t *n_needed, llm_error *err);

/* Starts the assistant's answer to a conversation. What the context holds of its rendering stays,
 * the rest is evaluated: a context serves one conversation after the other, best one. The answer is
 * stepped by llm_generator_next. A conversation that does not fit gives LLM_ERR_CONTEXT_FULL with
 * both counts; a context that forgets (LLM_ON_FULL_FORGET) drops the oldest whole turns instead,
 * then and whenever the window fills up during the answer; steps report it. */
llm_status llm_chat_start(llm_generator **out, llm_context *context, llm_sampler *sampler,
                          llm_template which, const llm_message *messages, size_t n_messages,
                          const llm_generator_options *options, llm_error *err);
/* How many of these messages, counted behind the system message, are forgotten by now. */
size_t llm_generator_n_forgotten(const llm_generator *generator);

/* A conversation in a file. */
typedef struct llm_session llm_session;

/* SHA-256 in hex over the keys, the table of tensors, the size of the file and 64 samples of its
 * weights: tells parameter files apart in milliseconds. llm_model_verify checks every byte. */
llm_status llm_model_fingerprint(const llm_model *model, char hex[65], llm_error *err);
/* Messages and the ids that the context holds (llm_context_ids). The file appears whole or not at
 * all, and takes the place of no file but a session. */
llm_status llm_session_save(const char *path, const llm_model *model, llm_template which,
                            const llm_message *messages, size_t n_messages, const int32_t *ids,
                            size_t n_ids, llm_error *err);
/* LLM_ERR_FORMAT where it was saved with another parameter file. Evaluating the ids in an empty
 * context rebuilds what was held, bit for bit where nothing had slid out of the window. */
llm_status llm_session_load(llm_session **out, const char *path, const llm_model *model,
                            llm_error *err);
void llm_session_free(llm_session *session);
llm_template llm_session_template(const llm_session *session);
const llm_message *llm_session_messages(const llm_session *session, size_t *n); /* its own */
const int32_t *llm_session_ids(const llm_session *session, size_t *n);

/* ---- compression: the model's distribution drives an arithmetic coder ---- */

typedef struct llm_zip llm_zip;

/* Options: n_ctx is the window, 1 to the trained length; kv_type is F16 and on_full stop whatever
 * they say. A block is coded alone; where it is longer than the window, the model forgets and reads
 * its last n_overlap tokens again, 0 <= n_overlap < n_ctx. n_lanes: most blocks that are decoded in
 * one pass, 1 to 64 (fewer where the model's positions are learned: llm_zip_n_lanes); it changes no
 * result, nor does any other option than n_ctx. The model is borrowed. */
llm_status llm_zip_new(llm_zip **out, const llm_model *model, const llm_context_options *options,
                       int64_t n_overlap, int64_t n_lanes, llm_error *err);
void llm_zip_free(llm_zip *zip);
int64_t llm_zip_n_lanes(const llm_zip *zip);
const char *llm_zip_kernels(const llm_zip *zip);

/* The caller's memory. A symbol is a token's id, or -1 - b for the byte b. */
typedef struct llm_zip_block {
  int32_t *symbols; /* (n_symbols) */
  size_t n_symbols;
  size_t n_done;  /* 0 begins the block; the calls count up to n_symbols */
  uint8_t *coded; /* (capacity) when encoding, (n_coded) when decoding */
  size_t n_coded, capacity;
} llm_zip_block;

/* One pass of a block, the same block until it is done. 8 bytes a symbol and 8 are room enough,
 * else LLM_ERR_ARG. After LLM_ERR_CANCELLED it can go on. */
llm_status llm_zip_encode(llm_zip *zip, llm_zip_block *block, llm_error *err);
/* One token of each block that is not done, the same n_blocks blocks until all are.
 * LLM_ERR_FORMAT for bytes that were surely not coded so; other damage gives other symbols. */
llm_status llm_zip_decode(llm_zip *zip, llm_zip_block *blocks, size_t n_blocks, llm_error *err);

/* ---- scores, embeddings and proof ---- */

typedef struct llm_score {
  double nats; /* sum of -ln p over the scored tokens */
  int64_t n_scored;
  int64_t n_windows;
} llm_score;

/* Scores a text of n_ids tokens, each once but the first: in one window when it fits the context,
 * else in windows of n_ctx that begin `stride` tokens apart (1 to n_ctx - 1; 0: half overlap) and
 * score what the window before did not reach, so that every token past the first window has at
 * least n_ctx - stride tokens before it. Starts from an empty context and leaves it holding the
 * last window. nats_each, when not NULL, gets n_ids values, NaN for the first. */
llm_status llm_score_text(llm_context *context, const int32_t *ids, size_t n_ids, int64_t stride,
                          float *nats_each, llm_score *out, llm_error *err);

/* The embedding of a text of n_ids >= 1 tokens, (n_embd): the mean of its last hidden states after
 * the final norm, scaled to length 1 (zeros stay zeros). Starts from an empty context and leaves it
 * holding the text; LLM_ERR_CONTEXT_FULL with both counts where that does not hold it. */
llm_status llm_context_embed(llm_context *context, const int32_t *ids, size_t n_ids, float *dst,
                             llm_error *err);

/* Greedy continuation of a probe with the scalar kernels, F32 cache, and the SHA-256 of all logits
 * rows that decided it (n_new rows of n_vocab little-endian floats): one entry of the proof block.
 */
llm_status llm_proof_compute(const llm_model *model, const int32_t *prompt, size_t n_prompt,
                             size_t n_new, int32_t *ids_out, char hex[65], llm_error *err);

typedef struct llm_verify_report {
  int32_t has_hash, has_proof; /* 0: the file carries none */
  int64_t n_probes;
  double max_logprob_diff; /* active kernels against scalar, over the probes' rows */
  char kernels[16];        /* the active set */
} llm_verify_report;

/* Checks the hash of the tensor data and replays the proof block. LLM_ERR_FORMAT names the first
 * mismatch; LLM_ERR_UNSUPPORTED when the file carries neither. */
llm_status llm_model_verify(const llm_model *model, const llm_context_options *options,
                            llm_verify_report *report, llm_error *err);

/* cffi: end */

#endif
