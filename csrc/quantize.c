/* quantize.c: rounding by the rules of the formats, packing, and the public call. Layer 0. The
 * rules are the public gguf package's (gguf/quants.py), operation by operation, so the bits are the
 * same; loops are written for the compiler to vectorise. */
#include "quantize.h"

#include <assert.h>
#include <stdlib.h>

#include "error.h"
#include "threads.h"

/* ---- packing ---- */

static void pack_nibbles(const uint8_t *quants, uint8_t *q) {
  for (int j = 0; j < QK / 2; j++)
    q[j] = (uint8_t)((quants[j] & 15) | (quants[j + QK / 2] & 15) << 4);
}

static void pack_fifth_bits(const uint8_t *quants, uint8_t *high) {
  memset(high, 0, QK / 8);
  for (int j = 0; j < QK; j++) high[j / 8] |= (uint8_t)(quants[j] >> 4 << j % 8);
}

static void pack_k_nibbles(const uint8_t *quants, uint8_t *q) {
  for (int j = 0; j < QK_SUPER / 2; j++) {
    const uint8_t *pair = quants + j / QK * 2 * QK + j % QK;
    q[j] = (uint8_t)((pair[0] & 15) | (pair[QK] & 15) << 4);
  }
}

static void pack_q5_k(const uint8_t *quants, block_q5_k *b) {
  pack_k_nibbles(quants, b->q);
  memset(b->high, 0, sizeof b->high);
  for (int j = 0; j < QK_SUPER; j++) b->high[j % QK] |= (uint8_t)(quants[j] >> 4 << j / QK);
}

static void pack_q6_k(const uint8_t *quants, block_q6_k *b) {
  memset(b->low, 0, sizeof b->low), memset(b->high, 0, sizeof b->high);
  for (int j = 0; j < QK_SUPER; j++) {
    int half = j / 128, at = j % 128;
    b->low[64 * half + at % 64] |= (uint8_t)((quants[j] & 15) << at / 64 * 4);
    b->high[32 * half + at % 32] |= (uint8_t)(quants[j] >> 4 << at / 32 * 2);
  }
}

void pack_quants(llm_type type, const uint8_t *quants, void *block) {
  block_q5_0 *b5_0 = block;
  block_q5_1 *b5_1 = block;
  switch (type) {
  case LLM_TYPE_Q8_0:
    for (int j = 0; j < QK; j++) ((block_q8_0 *)block)->q[j] = (int8_t)(quants[j] - 128);
    return;
  case LLM_TYPE_Q4_0: pack_nibbles(quants, ((block_q4_0 *)block)->q); return;
  case LLM_TYPE_Q4_1: pack_nibbles(quants, ((block_q4_1 *)block)->q); return;
  case LLM_TYPE_Q5_0: pack_nibbles(quants, b5_0->q), pack_fifth_bits(quants, b5_0->high); return;
  case LLM_TYPE_Q5_1: pack_nibbles(quants, b5_1->q), pack_fifth_bits(quants, b5_1->high); return;
  case LLM_TYPE_Q4_K: pack_k_nibbles(quants, ((block_q4_k *)block)->q); return;
  case LLM_TYPE_Q5_K: pack_q5_k(quants, block); return;
  case LLM_TYPE_Q6_K: pack_q6_k(quants, block); return;
  default: assert(!"a quantized type"); return;
  }
}

void pack_k_scales(const uint8_t *scale, const uint8_t *minimum, uint8_t *packed) {
  for (int b = 0; b < 4; b++) {
    packed[b] = (uint8_t)(scale[b] | scale[b + 4] >> 4 << 6);
    packed[b + 4] = (uint8_t)(minimum[b] | minimum[b + 4] >> 4 << 6);
    packed[b + 8] = (uint8_t)((scale[b + 4] & 15) | (minimum[b + 4] & 15) << 4);
  }
}

/* ---- the rules ---- */

static void range(const float *src, float *low, float *high) {
  float least[8], most[8];
  memcpy(least, src, sizeof least), memcpy(most, src, sizeof most);
  for (int j = 8; j < QK; j += 8)
    for (int k = 0; k < 8; k++) {
      least[k] = src[j + k] < least[k] ? src[j + k] : least[k];
      most[k] = src[j + k] > most[k] ? src[j + k] : most[k];
    }
  *low = least[0], *high = most[0];
  for (int k = 1; k < 8; k++) {
    *low = least[k] < *low ? least[k] : *low;
    *high = most[k] > *high ? most[k] : *high;
  }
}

static void quantize_q8_0(const float *src, block_q8_0 *b) {
  float low, high;
  range(src, &low, &high);
  float d = (-low > high ? -low : high) / 127, inverse = inverse_or_0(d);
  b->d = f32_to_f16(d);
  int q[QK];
  for (int j = 0; j < QK; j++) { /* half away from zero; quants have the sign of the element */
    float x = f32_from_bits(f32_bits(src[j] * inverse) & 0x7fffffff);
    int i = (int)x, sign = (int)f32_bits(src[j]) >> 31; /* 0 or -1 */
    i += x - (float)i >= 0.5f;
    q[j] = (i ^ sign) - sign;
  }
  for (int j = 0; j < QK; j++) b->q[j] = (int8_t)q[j];
}

/* The first value of the largest magnitude. */
static float extreme_of(const float *src) {
  float low, high;
  range(src, &low, &high);
  if (high != -low) return high > -low ? high : low;
  for (int j = 0; j < QK; j++)
    if (src[j] == low || src[j] == high) return src[j];
  return 0;
}

/* x >= 0 is cut, not rounded: the rules have added a half. */
static void cut(const float *src, float inverse, float origin, float offset, int max,
                uint8_t *quants) {
  for (int j = 0; j < QK; j++) {
    int i = (int)((src[j] - origin) * inverse + offset);
    quants[j] = (uint8_t)(i > max ? max : i);
  }
}

/* Symmetric: the extreme becomes -half. Quants are 0 to 2 half - 1. */
static uint16_t round_symmetric(const float *src, int half, uint8_t *quants) {
  float d = extreme_of(src) / (float)-half;
  cut(src, inverse_or_0(d), 0, (float)half + 0.5f, 2 * half - 1, quants);
  return f32_to_f16(d);
}

/* From the least value, which becomes 0, to the greatest, which becomes max. */
static uint16_t round_from_minimum(const float *src, int max, uint8_t *quants, uint16_t *m) {
  float low, high;
  range(src, &low, &high);
  float d = (high - low) / (float)max;
  cut(src, inverse_or_0(d), low, 0.5f, max, quants);
  *m = f32_to_f16(low);
  return f32_to_f16(d);
}

static void quantize_block(llm_type type, const float *src, void *dst) {
  uint8_t quants[QK];
  block_q4_0 *q4_0 = dst;
  block_q5_0 *q5_0 = dst;
  block_q4_1 *q4_1 = dst;
  block_q5_1 *q5_1 = dst;
  switch (type) {
  case LLM_TYPE_Q8_0: quantize_q8_0(src, dst); return;
  case LLM_TYPE_Q4_0: q4_0->d = round_symmetric(src, 8, quants); break;
  case LLM_TYPE_Q5_0: q5_0->d = round_symmetric(src, 16, quants); break;
  case LLM_TYPE_Q4_1: q4_1->d = round_from_minimum(src, 15, quants, &q4_1->m); break;
  case LLM_TYPE_Q5_1: q5_1->d = round_from_minimum(src, 31, quants, &q5_1->m); break;
  default: assert(!"a type with blocks of 32"); return;
  }
  pack_quants(type, quants, dst);
}

void quantize(llm_type type, const float *src, size_t n, void *dst) {
  llm_type_info info = llm_type_describe(type);
  assert(info.n_per_block && n % info.n_per_block == 0);
  if (n == 0) return;
  if (type == LLM_TYPE_F32)
    memcpy(dst, src, n * sizeof *src);
  else if (type == LLM_TYPE_F16)
    for (size_t i = 0; i < n; i++) ((uint16_t *)dst)[i] = f32_to_f16(src[i]);
  else if (type == LLM_TYPE_BF16)
    for (size_t i = 0; i < n; i++) ((uint16_t *)dst)[i] = f32_to_bf16(src[i]);
  else if (info.n_per_block == QK_SUPER)
    quantize_fit(type, (float *)src, n, NULL, NULL, dst);
  else
    for (size_t b = 0; b < n / QK; b++)
      quantize_block(type, src + b * QK, (char *)dst + b * info.bytes_per_block);
}

/* ---- the public call ---- */

typedef struct quantize_job {
  llm_type type;
  const float *src, *importance, *feedback;
  size_t n_rows, n_per_row, row_bytes;
  float *scratch; /* (n_threads, n_per_row) where there is feedback */
  char *dst;
} quantize_job;

static void quantize_rows(void *arg, int thread, int n_threads) {
  const quantize_job *job = arg;
  size_t begin, end, n = job->n_per_row;
  thread_share(job->n_rows, 1, thread, n_threads, &begin, &end);
  for (size_t i = begin; i < end; i++) {
    float *row = (float *)job->src + i * n; /* written to only where it is scratch */
    char *dst = job->dst + i * job->row_bytes;
    if (job->feedback) row = memcpy(job->scratch + (size_t)thread * n, row, n * sizeof *row);
    if (type_is_quantized(job->type) && (job->importance || job->feedback))
      quantize_fit(job->type, row, n, job->importance, job->feedback, dst);
    else
      quantize(job->type, row, n, dst);
  }
}

/* The greatest pattern of bits without their signs: from 0x7f800000 on it is no number. */
static uint32_t greatest_magnitude(const float *x, size_t n) {
  uint32_t greatest = 0;
  for (size_t i = 0; i < n; i++) {
    uint32_t bits = f32_bits(x[i]) & 0x7fffffff;
    greatest = bits > greatest ? bits : greatest;
  }
  return greatest;
}

/* The greatest value that does not overflow: of quantized types what a scale in F16 holds, times
 * levels, with room for the search. */
static float greatest_value(llm_type type) {
  switch (type) {
  case LLM_TYPE_F16: return 0x1.ffdffep15f; /* the last below 65520, which rounds to infinity */
  case LLM_TYPE_Q4_1:
  case LLM_TYPE_Q5_1: return 65504.0f; /* the minimum */
  case LLM_TYPE_Q8_0: return 65504.0f * 127;
  case LLM_TYPE_Q4_0: return 65504.0f * 7;
  case LLM_TYPE_Q5_0: return 65504.0f * 15;
  case LLM_TYPE_Q4_K:
  case LLM_TYPE_Q5_K:
  case LLM_TYPE_Q6_K: return 65504.0f * 30;
  default: return 0; /* F32 and BF16 hold all */
  }
}

static llm_status check_values(const quantize_job *job, llm_error *err) {
  const char *name = llm_type_describe(job->type).name;
  uint32_t limit = f32_bits(greatest_value(job->type));
  size_t n = job->n_per_row;
  for (size_t i = 0; limit && i < job->n_rows; i++) {
    uint32_t greatest = greatest_magnitude(job->src + i * n, n);
    if (greatest >= 0x7f800000)
      return error_set(err, LLM_ERR_ARG, "row %zu holds infinity or NaN, which %s cannot", i, name);
    if (greatest > limit)
      return error_set(err, LLM_ERR_ARG, "row %zu holds a value of magnitude %g, %s ends at %g", i,
                       (double)f32_from_bits(greatest), name, (double)f32_from_bits(limit));
  }
  for (size_t i = 0; job->importance && i < n; i++)
    if (!(job->importance[i] > 0 && job->importance[i] <= 0x1.fffffep127f))
      return error_set(err, LLM_ERR_ARG, "the importance of column %zu is %g, expected above 0", i,
                       (double)job->importance[i]);
  return LLM_OK;
}

llm_status llm_quantize(llm_type type, const float *src, size_t n_rows, size_t n_per_row,
                        const float *importance, const float *feedback, int32_t n_threads,
                        void *dst, llm_error *err) {
  enum { WORTH_A_THREAD = 1 << 15 }; /* elements */
  llm_type_info info = llm_type_describe(type);
  if (!info.n_per_block)
    return error_set(err, LLM_ERR_UNSUPPORTED, "quantize: tensor type %d is not known", (int)type);
  if (n_per_row % info.n_per_block)
    return error_set(err, LLM_ERR_ARG, "quantize: rows of %zu elements, but %s has blocks of %zu",
                     n_per_row, info.name, info.n_per_block);
  if (n_threads < 0 || n_threads > MAX_THREADS)
    return error_set(err, LLM_ERR_ARG, "n_threads is %d, expected 0 (all cores) to %d",
                     (int)n_threads, MAX_THREADS);
  if (n_rows == 0 || n_per_row == 0) return error_clear(err);
  quantize_job job = {
      type, src, importance, feedback, n_rows, n_per_row, type_row_bytes(type, n_per_row),
      NULL, dst};
  llm_status status = check_values(&job, err);
  if (status) return status;
  if (n_threads == 0) n_threads = threads_available();
  if (n_rows * n_per_row < WORTH_A_THREAD) n_threads = 1;
  if (feedback) {
    job.scratch = malloc((size_t)n_threads * n_per_row * sizeof *job.scratch);
    if (!job.scratch)
      return error_nomem(err, (size_t)n_threads * n_per_row * sizeof *job.scratch, "rows to round");
  }
  thread_pool *pool;
  status = thread_pool_new(&pool, n_threads, err);
  if (!status) thread_pool_run(pool, quantize_rows, &job);
  if (!status) thread_pool_free(pool);
  free(job.scratch);
  return status ? status : error_clear(err);
}
