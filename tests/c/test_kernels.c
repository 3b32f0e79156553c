/* test_kernels.c: every kernel set of this machine against the scalar one, bit for bit, and the
 * scalar one against float64. Weights, activations and scratch end at forbidden pages; results lie
 * between guard values.
 *   test_kernels          the tests
 *   test_kernels few      a part of them, for a processor that is emulated: fewer rows, tokens and
 *                         positions, and no float64, which the scalar set met elsewhere
 *   test_kernels digest   a hash of scalar results: any compiler at any level must print the same
 *   test_kernels bench [Q4_K]  GB/s (one token) and GFLOP/s (many) beside a loop that only reads
 * Past 500 lines: the emulated set must meet the same cases, so that they are one file.
 * test_avx512_emulated.c and test_amx_emulated.c include this file and add a table. */
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#endif
#include <math.h>

#include "check.h"
#include "kernel_bench.h"
#include "kernel_cases.h"
#include "numeric.h"

static const kernels *scalar;
static int few;

static uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

/* ---- matrix products ---- */

enum { MAX_ROWS = 75, MAX_TOK = 17, LDY = MAX_ROWS + 3 };

static const uint32_t GUARD = 0x7fb00b1e; /* a NaN that no sum gives */

typedef struct product_case {
  llm_type type;
  case_mode mode;
  size_t n_in;
  char *w;       /* (MAX_ROWS, n_in) */
  act_rows acts; /* MAX_TOK tokens */
  float *y;      /* (MAX_TOK, MAX_ROWS), by the scalar kernel */
} product_case;

static product_case product_case_new(llm_type type, case_mode mode, size_t n_in) {
  product_case c = {type, mode, n_in, .acts = acts_new(mode, MAX_TOK, n_in)};
  c.w = malloc(type_row_bytes(type, MAX_ROWS * n_in));
  fill_weights(type, mode, c.w, MAX_ROWS * n_in);
  c.y = malloc(MAX_TOK * MAX_ROWS * sizeof *c.y);
  matmul_args args = {c.w, MAX_ROWS, &c.acts, c.y, MAX_ROWS};
  scalar->matmul[type](&args, 0, MAX_ROWS, NULL);
  return c;
}

static void product_case_free(product_case *c) {
  acts_free(&c->acts);
  free(c->w);
  free(c->y);
}

/* Tolerance: each of the n roundings of a sum costs at most 2^-24 of the sum of magnitudes, the
 * product of two scales one more; results below 2^-126 are rounded to multiples of 2^-149. */
static void check_against_float64(const product_case *c) {
  size_t n_in = c->n_in;
  float *w = malloc(n_in * sizeof *w);
  for (size_t r = 0; r < MAX_ROWS; r++) {
    const char *row = c->w + r * type_row_bytes(c->type, n_in);
    dequantize(c->type, row, n_in, w);
    for (size_t t = 0; t < MAX_TOK; t++) {
      double sum = 0, magnitude = 0;
      quant_block block = {.minimum = 0};
      for (size_t k = 0; k < n_in; k++) {
        double x = (double)c->acts.x[t * n_in + k];
        if (type_is_quantized(c->type)) {
          const act_block *a = &c->acts.q[(t * n_in + k) / QK];
          x = (double)a->scale * a->q[k % QK];
        }
        sum += (double)w[k] * x;
        if (type_is_quantized(c->type) && k % QK == 0)
          quant_block_get(c->type, row, k / QK, &block);
        /* dequantize rounds d * q + m relative to the larger of the two */
        magnitude += (fabs((double)w[k]) + 2 * fabs((double)block.minimum)) * fabs(x);
      }
      double steps = (double)n_in / (type_is_quantized(c->type) ? 8 : 16) + 8;
      double tolerance = magnitude * steps * 0x1p-24;
      tolerance += (double)n_in * 0x1p-149;
      double y = (double)c->y[t * MAX_ROWS + r];
      CHECK_MSG(fabs(y - sum) <= tolerance, "scalar %s %s n_in %zu row %zu tok %zu: %g, not %g",
                llm_type_describe(c->type).name, mode_names[c->mode], n_in, r, t, y, sum);
    }
  }
  free(w);
}

/* The last n_out rows and n_tok tokens of the case, rows r0 to r1 of those. */
static void check_product(const kernels *k, const product_case *c, const guarded_acts *acts,
                          guarded w_memory, size_t n_out, size_t r0, size_t r1) {
  static float y[MAX_TOK * LDY + 8];
  size_t n_tok = acts->rows.n_tok, row0 = MAX_ROWS - n_out, tok0 = MAX_TOK - n_tok;
  size_t w_bytes = type_row_bytes(c->type, n_out * c->n_in);
  size_t scratch_bytes = k->scratch_bytes(c->n_in);
  guarded scratch = guarded_new(scratch_bytes);
  CHECK(scratch_bytes % 64 == 0);
  for (size_t i = 0; i < sizeof y / sizeof *y; i++) memcpy(&y[i], &GUARD, sizeof GUARD);
  matmul_args args = {w_memory.end - w_bytes, n_out, &acts->rows, y + 4, LDY};
  k->matmul[c->type](&args, r0, r1, scratch_bytes ? scratch.end - scratch_bytes : NULL);
  guarded_free(scratch);
  long wrong = 0, outside = 0;
  for (size_t i = 0; i < sizeof y / sizeof *y; i++) {
    size_t t = (i - 4) / LDY, r = (i - 4) % LDY;
    if (i < 4 || t >= n_tok || r < r0 || r >= r1)
      outside += bits_of(y[i]) != GUARD;
    else
      wrong += bits_of(y[i]) != bits_of(c->y[(tok0 + t) * MAX_ROWS + row0 + r]);
  }
  CHECK_MSG(!wrong && !outside,
            "%s %s %s n_in %zu n_out %zu n_tok %zu rows %zu to %zu: %ld wrong, %ld outside",
            k->name, llm_type_describe(c->type).name, mode_names[c->mode], c->n_in, n_out, n_tok,
            r0, r1, wrong, outside);
}

static void check_products(const kernels *k, const product_case *c) {
  static const size_t tokens[] = {1, 2, 3, 5, 7, 12, 13, 16, 17};
  size_t bytes = type_row_bytes(c->type, MAX_ROWS * c->n_in);
  guarded w = guarded_new(bytes);
  guarded_copy(w, c->w, bytes);
  for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i += few ? 2 : 1) {
    if (c->mode != ORDINARY && i % 3) continue;
    guarded_acts acts = guarded_acts_new(&c->acts, tokens[i]);
    for (size_t n_out = 1; n_out <= MAX_ROWS; n_out += n_out >= 20 ? 11 : few ? 3 : 1) {
      check_product(k, c, &acts, w, n_out, 0, n_out);
      size_t cut = random_u64() % (n_out + 1);
      check_product(k, c, &acts, w, n_out, 0, cut);
      check_product(k, c, &acts, w, n_out, cut, n_out);
    }
    guarded_acts_free(&acts);
  }
  guarded_free(w);
}

static void test_products(const kernels *const *tables) {
  static const size_t odd[] = {1, 2, 7, 15, 16, 17, 31, 33, 48, 63, 65, 100, 129};
  static const size_t whole[] = {32, 64, 96, 128, 160, 192, 224, 256, 288, 512, 576, 1280, 2112};
  for (size_t ty = 0; ty < N_TYPES; ty++) {
    llm_type type = all_types[ty];
    size_t n_per_block = llm_type_describe(type).n_per_block;
    size_t n_odd = type_is_quantized(type) ? 0 : sizeof odd / sizeof *odd;
    for (size_t i = 0; i < n_odd + sizeof whole / sizeof *whole; i++) {
      size_t n_in = i < n_odd ? odd[i] : whole[i - n_odd];
      for (case_mode mode = ORDINARY; mode < N_MODES; mode++) {
        if (n_in % n_per_block) continue;
        if (mode != ORDINARY && n_in != 33 && n_in != (n_per_block == QK_SUPER ? 512 : 160))
          continue;
        product_case c = product_case_new(type, mode, n_in);
        if (!few) check_against_float64(&c);
        for (const kernels *const *k = tables; *k; k++) check_products(*k, &c);
        product_case_free(&c);
      }
    }
  }
}

/* ---- attention ---- */

typedef struct attention_case {
  llm_type k_type, v_type;
  size_t n_q, n_pos, head_dim, gap; /* bytes between positions beyond the row's own */
} attention_case;

/* kf, vf: (n_pos, head_dim) expanded. */
static double attention_float64(const attention_args *a, const float *kf, const float *vf, size_t h,
                                size_t d) {
  double max = -INFINITY, sum = 0, out = 0;
  for (int pass = 0; pass < 2; pass++)
    for (size_t i = 0; i < a->n_pos; i++) {
      double score = 0;
      for (size_t j = 0; j < a->head_dim; j++)
        score += (double)a->q[h * a->head_dim + j] * (double)kf[i * a->head_dim + j];
      score *= (double)a->scale;
      if (pass == 0) {
        max = fmax(max, score);
      } else {
        sum += exp(score - max);
        out += exp(score - max) * (double)vf[i * a->head_dim + d];
      }
    }
  return out / sum;
}

/* Rows of random elements, `bytes` apart, ending at the guard; expanded to `values`. */
static const void *fill_positions(llm_type type, const attention_case *x, size_t bytes,
                                  guarded memory, float *values) {
  char *first = memory.end - ((x->n_pos - 1) * bytes + type_row_bytes(type, x->head_dim));
  for (size_t i = 0; i < x->n_pos; i++) {
    fill_weights(type, ORDINARY, first + i * bytes, x->head_dim);
    dequantize(type, first + i * bytes, x->head_dim, values + i * x->head_dim);
  }
  return first;
}

/* All but the addresses. */
static attention_args attention_of(const attention_case *x) {
  return (attention_args){
      .k_type = x->k_type,
      .v_type = x->v_type,
      .k_bytes = type_row_bytes(x->k_type, x->head_dim) + x->gap,
      .v_bytes = type_row_bytes(x->v_type, x->head_dim) + x->gap,
      .n_q = x->n_q,
      .n_pos = x->n_pos,
      .head_dim = x->head_dim,
      .scale = 1.0f / sqrtf((float)x->head_dim),
  };
}

static void check_attention(const kernels *const *tables, attention_case x) {
  size_t n = x.n_pos * x.head_dim, n_out = x.n_q * x.head_dim;
  size_t k_bytes = type_row_bytes(x.k_type, x.head_dim) + x.gap;
  size_t v_bytes = type_row_bytes(x.v_type, x.head_dim) + x.gap;
  float *kf = malloc(n * 4), *vf = malloc(n * 4), *q = malloc(n_out * 4);
  for (size_t i = 0; i < n_out; i++) q[i] = random_float() * 4;
  guarded gk = guarded_new(x.n_pos * k_bytes), gv = guarded_new(x.n_pos * v_bytes);
  guarded gq = guarded_new(n_out * 4), scores = guarded_new(x.n_q * x.n_pos * 4);
  /* Outputs, then maxima, then sums. */
  size_t out_bytes = (n_out + 2 * x.n_q) * 4;
  guarded out = guarded_new(out_bytes);
  float *expected = malloc(out_bytes), *got = (float *)(out.end - out_bytes);
  attention_args a = attention_of(&x);
  a.out = expected, a.max = expected + n_out, a.sum = a.max + x.n_q;
  a.q = guarded_copy(gq, q, n_out * 4);
  a.k = fill_positions(x.k_type, &x, a.k_bytes, gk, kf);
  a.v = fill_positions(x.v_type, &x, a.v_bytes, gv, vf);
  a.scores = (float *)scores.end - x.n_q * x.n_pos;
  scalar->attention(&a);
  /* Values are within [-1, 1], scores within 20; rounding a query of 4 to 16 bits moves an element
   * by 6e-5 at most, a score by 2e-5 (rms) and by five times as much among millions. */
  double tolerance = x.k_type == LLM_TYPE_Q8_0 ? 3e-4 : 1e-5;
  for (size_t i = 0; i < n_out && !few; i++) {
    double y = attention_float64(&a, kf, vf, i / x.head_dim, i % x.head_dim);
    double found = (double)expected[i] / (double)a.sum[i / x.head_dim];
    CHECK_MSG(fabs(found - y) < tolerance, "scalar attention: %g, not %g", found, y);
  }
  a.out = got, a.max = got + n_out, a.sum = got + n_out + x.n_q;
  for (; *tables; tables++) {
    memset(got, 0xff, out_bytes);
    (*tables)->attention(&a);
    CHECK_MSG(memcmp(got, expected, out_bytes) == 0,
              "%s attention of types %d and %d: n_q %zu n_pos %zu head_dim %zu gap %zu",
              (*tables)->name, (int)x.k_type, (int)x.v_type, x.n_q, x.n_pos, x.head_dim, x.gap);
  }
  guarded all[] = {gk, gv, gq, scores, out};
  for (size_t i = 0; i < 5; i++) guarded_free(all[i]);
  free(kf), free(vf), free(q), free(expected);
}

static void test_attention(const kernels *const *tables) {
  static const llm_type types[][2] = {
      {LLM_TYPE_F32, LLM_TYPE_F32}, {LLM_TYPE_F16, LLM_TYPE_F16},  {LLM_TYPE_Q8_0, LLM_TYPE_Q8_0},
      {LLM_TYPE_F32, LLM_TYPE_F16}, {LLM_TYPE_F32, LLM_TYPE_Q8_0}, {LLM_TYPE_Q8_0, LLM_TYPE_F16}};
  static const size_t dims[] = {1, 2, 8, 15, 16, 20, 32, 40, 48, 64, 80, 96, 100, 128};
  static const size_t positions[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 70, 128, 261};
  for (size_t i = 0; i < sizeof types / sizeof *types; i++)
    for (size_t d = 0; d < sizeof dims / sizeof *dims; d++)
      for (size_t p = few ? 2 : 0; p < sizeof positions / sizeof *positions; p += few ? 3 : 1)
        for (size_t n_q = 1; n_q <= 8; n_q += n_q < 5 ? 1 : 3)
          if ((types[i][0] != LLM_TYPE_Q8_0 && types[i][1] != LLM_TYPE_Q8_0) || dims[d] % QK == 0)
            check_attention(tables, (attention_case){types[i][0], types[i][1], n_q, positions[p],
                                                     dims[d], p % 2 ? 0 : 12});
}

/* Tokens in a row, together and one by one. */
static void check_attention_tile(const kernels *const *tables, attention_case x, size_t n_tok,
                                 size_t n_all) {
  const size_t d = x.head_dim, apart = x.n_q * (d + 2), q_apart = x.n_q * d + 5;
  attention_case seen = x;
  seen.n_pos = n_all;
  size_t k_bytes = type_row_bytes(x.k_type, d) + x.gap;
  size_t v_bytes = type_row_bytes(x.v_type, d) + x.gap, out_bytes = n_tok * apart * 4;
  size_t n_q = ((n_tok - 1) * q_apart + x.n_q * d), n_scores = attention_tile_floats(d, n_all);
  if (n_scores < x.n_q * n_all) n_scores = x.n_q * n_all; /* of one token */
  float *kf = malloc(n_all * d * 4), *vf = malloc(n_all * d * 4), *q = malloc(n_q * 4);
  for (size_t i = 0; i < n_q; i++) q[i] = random_float() * 4;
  guarded gk = guarded_new(n_all * k_bytes), gv = guarded_new(n_all * v_bytes);
  guarded gq = guarded_new(n_q * 4), scores = guarded_new(n_scores * 4);
  guarded out = guarded_new(out_bytes);
  float *expected = malloc(out_bytes), *got = (float *)(out.end - out_bytes);
  attention_args first = attention_of(&x);
  first.q = guarded_copy(gq, q, n_q * 4);
  first.k = fill_positions(x.k_type, &seen, k_bytes, gk, kf);
  first.v = fill_positions(x.v_type, &seen, v_bytes, gv, vf);
  first.scores = (float *)scores.end - n_scores;
  for (size_t i = 0; i < n_tok; i++) {
    attention_args a = first;
    a.n_pos = x.n_pos + i < n_all ? x.n_pos + i : n_all;
    a.q += i * q_apart;
    a.out = expected + i * apart;
    a.max = a.out + x.n_q * d;
    a.sum = a.max + x.n_q;
    scalar->attention(&a);
  }
  first.out = got, first.max = got + x.n_q * d, first.sum = first.max + x.n_q;
  attention_tile tile = {first, n_tok, n_all, q_apart, apart};
  for (; *tables; tables++) {
    if (!(*tables)->attention_tile) continue;
    memset(got, 0xff, out_bytes);
    memset(first.scores, 0xff, n_scores * 4); /* NaN where nothing was written */
    (*tables)->attention_tile(&tile);
    CHECK_MSG(memcmp(got, expected, out_bytes) == 0,
              "%s attention of %zu tokens together, types %d and %d: n_q %zu n_pos %zu of %zu "
              "head_dim %zu gap %zu",
              (*tables)->name, n_tok, (int)x.k_type, (int)x.v_type, x.n_q, x.n_pos, n_all, d,
              x.gap);
  }
  guarded all[] = {gk, gv, gq, scores, out};
  for (size_t i = 0; i < 5; i++) guarded_free(all[i]);
  free(kf), free(vf), free(q), free(expected);
}

static void test_attention_tile(const kernels *const *tables) {
  static const llm_type types[][2] = {
      {LLM_TYPE_F32, LLM_TYPE_F32}, {LLM_TYPE_F16, LLM_TYPE_F16},  {LLM_TYPE_Q8_0, LLM_TYPE_Q8_0},
      {LLM_TYPE_F32, LLM_TYPE_F16}, {LLM_TYPE_F32, LLM_TYPE_Q8_0}, {LLM_TYPE_Q8_0, LLM_TYPE_F16}};
  static const size_t dims[] = {32, 96, 128}, tokens[] = {1, 2, 7, 8, 9, 15, 16};
  static const size_t positions[] = {1, 2, 31, 33, 70, 500};
  for (size_t i = 0; i < sizeof types / sizeof *types; i++)
    for (size_t d = 0; d < sizeof dims / sizeof *dims; d += few ? 3 : 1)
      for (size_t p = few ? 2 : 0; p < sizeof positions / sizeof *positions; p += few ? 3 : 1)
        for (size_t n = 0; n < sizeof tokens / sizeof *tokens; n++) {
          size_t n_q = 1 + (n + p) % 9, all_see = positions[p] + tokens[n] - 1;
          attention_case x = {types[i][0], types[i][1], n_q, positions[p], dims[d], n % 2 ? 0 : 12};
          check_attention_tile(tables, x, tokens[n], all_see);
          check_attention_tile(tables, x, tokens[n], positions[p]); /* a part that all see whole */
        }
}

/* ---- rows ---- */

typedef union row { /* results of any row function, from the same bytes */
  float f[256];
  uint16_t h[512];
  act_block quantized[8];
} row;

/* Ordinary values, then large, tiny and zero ones, halves (ties), and the largest floats. */
static float row_value(int style) {
  switch (style) {
  case 1: return random_float() * 100;
  case 2: return random_float() * 0x1p-101f;
  case 3: return random_u64() % 4 ? 0.0f : -0.0f;
  case 4: return (float)(int)(random_u64() % 255) / 2 - 63.5f;
  case 5: return random_float() * 0x1p62f;
  case 6: return random_u64() % 3 ? random_float() * 0x1p-14f : 0x1p-149f;
  default: return random_float();
  }
}

enum {
  QUANTIZE,
  RMSNORM,
  LAYERNORM,
  SWIGLU,
  GELU,
  GEGLU,
  ADD,
  ROPE,
  ROPE_HALVES,
  HALF,
  N_ROW_FUNCTIONS
};

static int is_rope(int function) { return function == ROPE || function == ROPE_HALVES; }

static void run_row(const kernels *k, int function, const float *x, const float *y, size_t n,
                    row *r) {
  switch (function) {
  case QUANTIZE: k->quantize_row(x, n, r->quantized); break;
  case RMSNORM: k->rmsnorm(r->f, x, y, n, 1e-5f); break;
  case LAYERNORM: k->layernorm(r->f, x, y, x, n, 1e-5f); break;
  case SWIGLU: k->swiglu(r->f, x, y, n); break;
  case GELU: k->gelu(r->f, x, n); break;
  case GEGLU: k->geglu(r->f, x, y, n); break;
  case ADD: k->add(r->f, x, n); break;
  case ROPE: k->rope(r->f, x, y, n / 2); break;
  case ROPE_HALVES: k->rope_halves(r->f, x, y, n / 2); break;
  case HALF: k->f32_to_f16(r->h, x, n); break;
  }
}

static void check_row(const kernels *const *tables, int function, int style, size_t n) {
  static const char *const names[] = {"quantize_row", "rmsnorm",   "layernorm", "swiglu",
                                      "gelu",         "geglu",     "add",       "rope",
                                      "rope_halves",  "f32_to_f16"};
  size_t used = is_rope(function) ? n / 2 : n;
  guarded gx = guarded_new(used * 4), gy = guarded_new(used * 4);
  float *x = (float *)gx.end - used, *y = (float *)gy.end - used;
  for (size_t i = 0; i < used; i++) x[i] = row_value(style), y[i] = row_value(0);
  row start, expected, found;
  for (size_t i = 0; i < 256; i++) start.f[i] = random_float();
  expected = start;
  run_row(scalar, function, x, y, n, &expected);
  for (; *tables; tables++) {
    found = start;
    run_row(*tables, function, x, y, n, &found);
    CHECK_MSG(memcmp(&found, &expected, sizeof found) == 0, "%s %s: n %zu style %d",
              (*tables)->name, names[function], n, style);
  }
  guarded_free(gx), guarded_free(gy);
}

static void test_rows(const kernels *const *tables) {
  for (int function = 0; function < N_ROW_FUNCTIONS; function++)
    for (int style = 0; style < 7; style++)
      for (size_t n = 1; n <= 256; n += n < 70 ? 1 : 31)
        if (function != QUANTIZE || n % QK == 0) check_row(tables, function, style, n);
  for (size_t n = 32; n <= 256; n += 32)
    for (int style = 0; style < 7; style++) check_row(tables, QUANTIZE, style, n);
}

static void test_rows_float64(void) {
  float x[40], w[40], y[40];
  for (int i = 0; i < 40; i++) x[i] = random_float(), w[i] = random_float() * 9;
  double sum = 0;
  for (int i = 0; i < 40; i++) sum += (double)x[i] * (double)x[i];
  scalar->rmsnorm(y, x, w, 40, 1e-5f);
  for (int i = 0; i < 40; i++) { /* a handful of roundings */
    double expected = (double)x[i] / sqrt(sum / 40 + 1e-5) * (double)w[i];
    CHECK(fabs((double)y[i] - expected) <= fabs(expected) * 8 * 0x1p-24);
  }
  double mean = 0, variance = 0;
  for (int i = 0; i < 40; i++) mean += (double)x[i] / 40;
  for (int i = 0; i < 40; i++) variance += ((double)x[i] - mean) * ((double)x[i] - mean) / 40;
  scalar->layernorm(y, x, w, x, 40, 1e-5f);
  for (int i = 0; i < 40; i++) { /* x - mean and + b may cancel: a few roundings of the largest */
    double expected = ((double)x[i] - mean) / sqrt(variance + 1e-5) * (double)w[i] + (double)x[i];
    CHECK(fabs((double)y[i] - expected) <= 40 * 0x1p-24);
  }
  for (int i = 0; i < 40; i++) {
    double g = (double)w[i], u = sqrt(2 / acos(-1)) * (g + 0.044715 * g * g * g);
    double expected = g / 2 * (1 + tanh(u)); /* 1 + tanh cancels where tanh is near -1 */
    scalar->gelu(y, w + i, 1);
    CHECK(fabs((double)y[0] - expected) <= fabs(expected) * 64 * 0x1p-24 + fabs(g) * 0x1p-50);
    scalar->geglu(y + 1, w + i, x + i, 1);
    CHECK(bits_of(y[1]) == bits_of(y[0] * x[i]));
  }
  float z[8] = {1, 2, 3, 4, 5, 6, 7, 8}, c[4] = {0.5f, 1, 0, -1}, s[4] = {0.25f, 0, 1, 0};
  scalar->rope_halves(z, c, s, 4);
  const float turned[8] = {-0.75f, 2, -7, -4, 2.75f, 6, 3, -8};
  CHECK(!memcmp(z, turned, sizeof z));
  scalar->swiglu(y, w, x, 40);
  for (int i = 0; i < 40; i++) {
    double expected = (double)w[i] / (1 + exp(-(double)w[i])) * (double)x[i];
    CHECK(fabs((double)y[i] - expected) <= fabs(expected) * 8 * 0x1p-24);
  }
}

static void test_quantize_row_rule(void) {
  float x[64];
  act_block a[2];
  for (int style = 0; style < 7; style++)
    for (int repeat = 0; repeat < 50; repeat++) {
      for (int i = 0; i < 64; i++) x[i] = row_value(style);
      scalar->quantize_row(x, 64, a);
      for (int b = 0; b < 2; b++) {
        int total = 0, half = 0;
        for (int i = 0; i < 32; i++) {
          int q = a[b].q[i];
          total += q;
          if (i < 16) half += q;
          CHECK(q >= -127 && q <= 127);
          /* half a step, and the rounding of scale and inverse */
          double scale = (double)a[b].scale, error = fabs(scale * q - (double)x[b * 32 + i]);
          CHECK(error <= scale * (0.5 + 127 * 0x1p-22) + (double)ACT_TINY);
        }
        CHECK(a[b].sum == total && a[b].sum_of_half == half);
        CHECK(bits_of(a[b].scaled_sum) == bits_of(a[b].scale * (float)total));
      }
    }
}

static void test_dequantize(const kernels *const *tables) {
  for (size_t ty = 0; ty < N_TYPES; ty++)
    for (case_mode mode = ORDINARY; mode < N_MODES; mode++) {
      size_t step = llm_type_describe(all_types[ty]).n_per_block;
      for (size_t n = step; n <= (step < QK_SUPER ? 192 : 512); n += step) {
        size_t bytes = type_row_bytes(all_types[ty], n);
        guarded src = guarded_new(bytes), dst = guarded_new(n * 4);
        float expected[512], *found = (float *)dst.end - n;
        fill_weights(all_types[ty], mode, src.end - bytes, n);
        dequantize(all_types[ty], src.end - bytes, n, expected);
        for (const kernels *const *k = tables; *k; k++) {
          (*k)->dequantize(all_types[ty], src.end - bytes, n, found);
          CHECK_MSG(memcmp(found, expected, n * 4) == 0, "%s dequantize %s n %zu", (*k)->name,
                    llm_type_describe(all_types[ty]).name, n);
        }
        guarded_free(src), guarded_free(dst);
      }
    }
}

/* Alone, so that a machine with the scalar set only still checks its values. */
static void test_tables(void) {
  const char *const *names = kernels_available();
  CHECK(strcmp(names[0], "scalar") == 0);
  for (; *names; names++) {
    const kernels *k = kernels_find(*names);
    CHECK(k && strcmp(k->name, *names) == 0);
    for (size_t t = 0; k && t < N_TYPES; t++) CHECK(k->matmul[all_types[t]]);
    if (!names[1]) CHECK(kernels_find(NULL) == k);
  }
  CHECK(!kernels_find("sse9") && !kernels_find(""));
}

/* ---- digest ---- */

static uint64_t digest = 0xcbf29ce484222325;

static void digest_add(const void *data, size_t n_bytes) { /* FNV-1a */
  for (size_t i = 0; i < n_bytes; i++)
    digest = (digest ^ ((const uint8_t *)data)[i]) * 0x100000001b3;
}

static int print_digest(void) {
  for (size_t ty = 0; ty < N_TYPES; ty++)
    for (case_mode mode = ORDINARY; mode < N_MODES; mode++) {
      product_case c = product_case_new(all_types[ty], mode, 256);
      digest_add(c.y, MAX_TOK * MAX_ROWS * sizeof *c.y);
      product_case_free(&c);
    }
  for (int function = 0; function < N_ROW_FUNCTIONS; function++)
    for (int style = 0; style < 7; style++) {
      float x[256], y[256];
      row r;
      for (int i = 0; i < 256; i++) x[i] = row_value(style), y[i] = r.f[i] = row_value(0);
      run_row(scalar, function, x, y, 256, &r);
      digest_add(&r, sizeof r);
    }
  float q[8 * 64], k[50 * 64], v[50 * 64], scores[8 * 50], out[8 * 66];
  for (int i = 0; i < 8 * 64; i++) q[i] = random_float();
  for (int i = 0; i < 50 * 64; i++) k[i] = random_float(), v[i] = random_float();
  attention_args a = {.out = out,
                      .max = out + 8 * 64,
                      .sum = out + 8 * 65,
                      .q = q,
                      .k = k,
                      .v = v,
                      .k_bytes = 256,
                      .v_bytes = 256,
                      .n_q = 8,
                      .n_pos = 50,
                      .head_dim = 64,
                      .scale = 0.125f,
                      .scores = scores};
  scalar->attention(&a);
  digest_add(out, sizeof out);
  for (int i = 0; i < 20000; i++) {
    double s, c, e, l;
    num_sincos((double)random_float() * 1e4, &s, &c);
    e = num_exp((double)random_float() * 100);
    l = num_log((double)(i + 1));
    digest_add(&s, 8), digest_add(&c, 8), digest_add(&e, 8), digest_add(&l, 8);
  }
  printf("%016llx\n", (unsigned long long)digest);
  return 0;
}

#ifndef EXTRA_TABLE
#define EXTRA_TABLE NULL /* a kernel set that this machine cannot run by itself */
#define TEST_NAME   "test_kernels"
#endif

#if defined(__x86_64__)
extern int avx2_small_l1;
#endif

int main(int argc, char **argv) {
  const kernels *tables[8];
  size_t n = 0;
  scalar = kernels_find("scalar");
  for (const char *const *name = kernels_available() + 1; *name; name++)
    tables[n++] = kernels_find(*name);
  tables[n] = NULL;
  if (argc > 1 && strcmp(argv[1], "digest") == 0) return print_digest();
  if (argc > 1 && strcmp(argv[1], "bench") == 0) return kernel_bench(scalar, tables, argv[2]);
  few = argc > 1 && strcmp(argv[1], "few") == 0;
  if (EXTRA_TABLE) tables[0] = EXTRA_TABLE, tables[1] = NULL;
  test_tables();
  test_products(tables);
  test_attention(tables);
#if defined(__x86_64__)
  avx2_small_l1 = !avx2_small_l1; /* what another processor would take */
  test_products(tables);
  test_attention(tables);
#endif
  test_attention_tile(tables);
  test_rows(tables);
  test_rows_float64();
  test_quantize_row_rule();
  test_dequantize(tables);
  return check_report(TEST_NAME);
}
