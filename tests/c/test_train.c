/* test_train.c: the trainer's C operations where Python does not look: guard floats around every
 * output, strides, each instruction set and number of threads bit for bit, and double precision as
 * the judge. tests/test_ops.py compares every operation with NumPy. */
#include "train_ops.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "port.h"

enum { GUARD = 8 };
static const float GUARD_VALUE = 12345.0f;

/* n floats between guards */
static float *guarded(size_t n) {
  float *p = malloc((n + 2 * GUARD) * sizeof *p);
  for (size_t i = 0; i < n + 2 * GUARD; i++) p[i] = GUARD_VALUE;
  return p + GUARD;
}

static void release(float *p, size_t n, const char *what) {
  for (int i = 1; i <= GUARD; i++)
    CHECK_MSG(p[-i] == GUARD_VALUE && p[n + (size_t)i - 1] == GUARD_VALUE, "%s: guard %d", what, i);
  free(p - GUARD);
}

static float *random_floats(size_t n) {
  static uint32_t state = 1;
  float *p = guarded(n);
  for (size_t i = 0; i < n; i++) {
    state = state * 1664525u + 1013904223u;
    p[i] = (float)(state >> 8) / 8388608.0f - 1.0f;
  }
  return p;
}

/* In place of the kernels' names: those whose products round. */
static const char *const BF16 = "avx512, rounding", *const AMX = "amx, rounding";

static int rounds(const char *kernels) { return kernels == BF16 || kernels == AMX; }

#ifndef AMX_PRODUCT
#define AMX_PRODUCT NULL /* in the place of AMX's, on machines that have none */
#define TEST_NAME   "test_train"
#endif

static llm_ops *new_ops(int n_threads, const char *kernels) {
  const gemm_kernel *product = kernels == AMX ? AMX_PRODUCT : NULL;
  const char *name = kernels == BF16 || product ? "avx512" : kernels == AMX ? "amx" : kernels;
  llm_ops *ops;
  llm_error err;
  if (llm_ops_new(&ops, n_threads, name, rounds(kernels), &err)) return NULL;
  if (product) ops->product = product, ops->kernels = "amx";
  return ops;
}

/* To the nearest bfloat16, where the products do. */
static float rounded(float x, const char *kernels) {
  if (!rounds(kernels)) return x;
  const uint32_t bits = port_bits(x);
  return port_float((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u);
}

/* ---- products ---- */

/* scale: the factors of the product and of what is added. */
static double exact(const llm_gemm_args *x, int64_t i, int64_t j, double *size, const char *kernels,
                    const float *scale) {
  double sum = x->add ? (double)scale[1] * x->add[i * x->ld_add + j] : 0;
  *size = fabs(sum);
  for (int64_t p = 0; p < x->k; p++) {
    double a = x->a_trans ? x->a[p * x->lda + i] : x->a[i * x->lda + p];
    double b = x->b_trans ? x->b[j * x->ldb + p] : x->b[p * x->ldb + j];
    a = rounded((float)a, kernels), b = rounded((float)b, kernels);
    sum += scale[0] * a * b;
    *size += fabs(scale[0] * a * b);
  }
  return sum;
}

/* What AMX makes of elements [p, end) of k: 32 at a time, even and odd ones by themselves (Intel
 * SDM, TDPBF16PS). */
static float amx_sum(const llm_gemm_args *x, int64_t i, int64_t j, int64_t p, int64_t end) {
  float sum = 0;
  for (; p < end; p += 32) {
    float parts[2] = {0, 0};
    for (int64_t q = p; q < p + 32 && q < end; q++) {
      const float a = x->a_trans ? x->a[q * x->lda + i] : x->a[i * x->lda + q];
      const float b = x->b_trans ? x->b[j * x->ldb + q] : x->b[q * x->ldb + j];
      parts[q & 1] = fmaf(rounded(a, AMX), rounded(b, AMX), parts[q & 1]);
    }
    sum += parts[0] + parts[1];
  }
  return sum;
}

/* An element as the product must have it to the bit: blocks of k in turn. */
static float amx_element(const llm_gemm_args *x, int64_t i, int64_t j, size_t max_kc,
                         const float *scale) {
  const size_t k = (size_t)x->k, n_blocks = (k + max_kc - 1) / max_kc;
  const size_t block = round_up((k + n_blocks - 1) / n_blocks, 32);
  float c = 0;
  for (size_t p = 0; p < k; p += block) {
    const float sum = amx_sum(x, i, j, (int64_t)p, (int64_t)min_size(p + block, k)) * scale[0];
    c = p ? c + sum : x->add ? fmaf(x->add[i * x->ld_add + j], scale[1], sum) : sum;
  }
  return c;
}

static void check_gemm(llm_ops *ops, const char *kernels, int64_t m, int64_t n, int64_t k, int form,
                       int with_add, int scaled) {
  const int a_trans = form & 1, b_trans = form >> 1;
  llm_gemm_args x = {.m = m, .n = n, .k = k, .a_trans = a_trans, .b_trans = b_trans};
  x.lda = (a_trans ? m : k) + 3;
  x.ldb = (b_trans ? k : n) + 5;
  x.ldc = n + 2;
  x.ld_add = n + 1;
  /* the last row ends where the matrix does: nothing may be read or written past it */
  const size_t n_a = (size_t)((a_trans ? k - 1 : m - 1) * x.lda + (a_trans ? m : k));
  const size_t n_b = (size_t)((b_trans ? n - 1 : k - 1) * x.ldb + (b_trans ? k : n));
  const size_t n_c = (size_t)((m - 1) * x.ldc + n), n_add = (size_t)((m - 1) * x.ld_add + n);
  float *a = random_floats(n_a), *b = random_floats(n_b), *add = random_floats(n_add);
  x.a = a, x.b = b, x.c = guarded(n_c), x.add = with_add ? add : NULL;
  llm_error err;
  const float scale[2] = {scaled ? 0.3f : 1, scaled ? -1.7f : 1};
  if (scaled) {
    const size_t n_scratch = gemm_serial(ops->product, &x, scale, NULL);
    float *scratch = aligned_alloc(64, round_up(n_scratch * sizeof *scratch, 64));
    CHECK(gemm_serial(ops->product, &x, scale, scratch) == n_scratch);
    free(scratch);
  } else {
    CHECK(llm_ops_gemm(ops, &x, &err) == LLM_OK);
  }
  for (int64_t i = 0; i < m; i++) {
    for (int64_t j = 0; j < n; j++) {
      double size, expected = exact(&x, i, j, &size, kernels, scale);
      CHECK_MSG(fabs(x.c[i * x.ldc + j] - expected) <= 1.5e-6 * size, /* k under 1200 */
                "gemm %s m %d n %d k %d form %d at %d, %d: %g, expected %g", kernels, (int)m,
                (int)n, (int)k, form, (int)i, (int)j, x.c[i * x.ldc + j], expected);
      if (kernels != AMX) continue;
      const float bits = amx_element(&x, i, j, ops->product->max_kc, scale);
      CHECK_MSG(port_bits(x.c[i * x.ldc + j]) == port_bits(bits),
                "gemm amx m %d n %d k %d form %d at %d, %d: %a, the reference says %a", (int)m,
                (int)n, (int)k, form, (int)i, (int)j, x.c[i * x.ldc + j], bits);
    }
    for (int64_t j = n; j < x.ldc && i + 1 < m; j++)
      CHECK_MSG(x.c[i * x.ldc + j] == GUARD_VALUE, "gemm wrote between rows");
  }
  release(a, n_a, "a");
  release(b, n_b, "b");
  release(add, n_add, "add");
  release(x.c, n_c, "c");
}

static void test_gemm(const char *kernels) {
  static const int64_t sizes[][3] = {{1, 1, 1},    {3, 40, 2},    {12, 32, 7},  {13, 31, 9},
                                     {50, 70, 33}, {25, 17, 800}, {9, 49, 64},  {20, 60, 1100},
                                     {70, 16, 65}, {97, 65, 31},  {3, 1060, 33}};
  for (int n_threads = 1; n_threads <= 3; n_threads += 2) {
    llm_ops *ops = new_ops(n_threads, kernels);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
      for (int form = 0; form < 4; form++)
        for (int i = 0; i < 4; i++)
          check_gemm(ops, kernels, sizes[s][0], sizes[s][1], sizes[s][2], form, i & 1, i >> 1);
    llm_ops_free(ops);
  }
}

/* ---- attention ---- */

enum { BATCH = 2, TIME = 53, HEADS = 4, KV_HEADS = 2, DIM = 10 };
enum { N_Q = BATCH * TIME * HEADS * DIM, N_KV = BATCH * TIME * KV_HEADS * DIM };
enum { N_LSE = BATCH * HEADS * TIME };

/* o of one query in double */
static void exact_attention(const llm_attention_args *x, int64_t batch, int64_t t, int64_t head,
                            double *o) {
  const int64_t kv_head = head / (HEADS / KV_HEADS);
  const int64_t start = x->starts ? x->starts[batch * TIME + t] : 0;
  const float *q = x->q + ((batch * TIME + t) * HEADS + head) * DIM;
  double p[TIME], total = 0;
  for (int64_t s = start; s <= t; s++) {
    const float *k = x->k + ((batch * TIME + s) * KV_HEADS + kv_head) * DIM;
    double dot = 0;
    for (int d = 0; d < DIM; d++) dot += (double)q[d] * k[d];
    total += p[s] = exp(dot / sqrt(DIM));
  }
  for (int d = 0; d < DIM; d++) {
    o[d] = 0;
    for (int64_t s = start; s <= t; s++)
      o[d] += p[s] / total * x->v[((batch * TIME + s) * KV_HEADS + kv_head) * DIM + d];
  }
}

/* Forward and backward of fixed inputs; results in the caller's buffers. */
static void run_attention(int n_threads, const char *kernels, llm_attention_args *x) {
  llm_ops *ops = new_ops(n_threads, kernels);
  llm_error err;
  CHECK(llm_ops_attention(ops, x, &err) == LLM_OK);
  CHECK(llm_ops_attention_backward(ops, x, &err) == LLM_OK);
  llm_ops_free(ops);
}

static void test_attention(const char *kernels, const int32_t *starts) {
  float *q = random_floats(N_Q), *k = random_floats(N_KV), *v = random_floats(N_KV);
  float *d_o = random_floats(N_Q), *first[5] = {0};
  const double tolerance = rounds(kernels) ? 1e-2 : 2e-6; /* values up to 1 */
  static const size_t sizes[5] = {N_Q, N_LSE, N_Q, N_KV, N_KV};
  for (int n_threads = 1; n_threads <= 3; n_threads++) {
    float *out[5];
    for (int i = 0; i < 5; i++) out[i] = guarded(sizes[i]);
    llm_attention_args x = {.n_batch = BATCH,
                            .n_time = TIME,
                            .n_head = HEADS,
                            .n_kv_head = KV_HEADS,
                            .head_dim = DIM,
                            .starts = starts,
                            .q = q,
                            .k = k,
                            .v = v,
                            .o = out[0],
                            .lse = out[1],
                            .d_o = d_o,
                            .dq = out[2],
                            .dk = out[3],
                            .dv = out[4]};
    run_attention(n_threads, kernels, &x);
    for (int64_t unit = 0; n_threads == 1 && unit < N_LSE; unit++) {
      const int64_t batch = unit / (TIME * HEADS), t = unit / HEADS % TIME, head = unit % HEADS;
      double o[DIM];
      exact_attention(&x, batch, t, head, o);
      for (int d = 0; d < DIM; d++)
        CHECK_MSG(fabs(o[d] - x.o[((batch * TIME + t) * HEADS + head) * DIM + d]) < tolerance,
                  "attention %s: time %d head %d", kernels, (int)t, (int)head);
    }
    for (int i = 0; i < 5; i++) {
      if (n_threads == 1) {
        first[i] = out[i];
        continue;
      }
      CHECK_MSG(!memcmp(first[i], out[i], sizes[i] * sizeof(float)),
                "attention %s: output %d differs on %d threads", kernels, i, n_threads);
      release(out[i], sizes[i], "attention");
    }
  }
  for (int i = 0; i < 5; i++) release(first[i], sizes[i], "attention");
  release(q, N_Q, "q"), release(k, N_KV, "k"), release(v, N_KV, "v"), release(d_o, N_Q, "do");
}

/* ---- exp ---- */

static void test_exp(void) {
  for (uint64_t bits = 0; bits <= 0xffffffffu; bits += 4099) { /* NaNs and infinities among them */
    float x = port_float((uint32_t)bits), expected = num_expf(x), found = port_exp(x);
    CHECK_MSG(port_bits(found) == port_bits(expected), "exp(%g) is %g, expected %g", x, found,
              expected);
  }
}

/* ---- row kernels give the same bits on every instruction set ---- */

static void row_kernels(llm_ops *ops, float *x, float *y, float *z, float *rows) {
  enum { N_ROWS = 66, N = 41 };
  float w[N];
  int32_t targets[N_ROWS];
  for (int i = 0; i < N; i++) w[i] = 0.5f + 0.01f * (float)i;
  for (int i = 0; i < N_ROWS; i++) targets[i] = i % 7 ? i % N : -1;
  llm_rmsnorm_args norm = {y, rows, x, w, N, 1e-5f};
  llm_ops_rmsnorm(ops, &norm, N_ROWS);
  float parts[2 * N];
  llm_rmsnorm_backward_args norm_backward = {z, y, parts, x, w, rows, N_ROWS, N, N_ROWS / 2};
  llm_ops_rmsnorm_backward(ops, &norm_backward, 2);
  for (int i = 0; i < 2 * N; i++) x[i] += parts[i]; /* compared with x */
  llm_swiglu_backward_args swiglu = {x, y, z, N};
  llm_ops_swiglu_backward(ops, &swiglu, N_ROWS);
  llm_cross_entropy_args loss = {rows, z, targets, N, 0.1f, 1};
  llm_ops_cross_entropy(ops, &loss, N_ROWS);
}

static void test_row_kernels(const char *const *sets) {
  enum { N = 66 * 41, N_ROWS = 66 };
  float *inputs[3], *first[4] = {0};
  for (int i = 0; i < 3; i++) inputs[i] = random_floats(N);
  for (; *sets; sets++) {
    llm_ops *ops = new_ops(2, *sets);
    if (!ops) continue;
    float *out[4];
    for (int i = 0; i < 4; i++) {
      out[i] = guarded(i < 3 ? N : N_ROWS);
      if (i < 3) memcpy(out[i], inputs[i], N * sizeof(float));
    }
    row_kernels(ops, out[0], out[1], out[2], out[3]);
    for (int i = 0; i < 4; i++) {
      size_t n = i < 3 ? N : N_ROWS;
      if (!first[i]) {
        first[i] = out[i];
        continue;
      }
      CHECK_MSG(!memcmp(first[i], out[i], n * sizeof(float)),
                "row kernels: %s differs at output %d", *sets, i);
      release(out[i], n, "row kernels");
    }
    llm_ops_free(ops);
  }
  for (int i = 0; i < 4; i++) release(first[i], i < 3 ? N : N_ROWS, "row kernels");
  for (int i = 0; i < 3; i++) release(inputs[i], N, "inputs");
}

static void test_handle(void) {
  llm_ops *ops;
  llm_error err;
  CHECK(llm_ops_new(&ops, 0, NULL, 0, &err) == LLM_ERR_ARG && !ops);
  CHECK(llm_ops_new(&ops, 1, "sse9", 0, &err) == LLM_ERR_ARG && !ops);
  CHECK(strstr(err.message, "\"sse9\"") != NULL);
  CHECK(llm_ops_new(&ops, 1, "scalar", 1, &err) == LLM_ERR_ARG && !ops);
  CHECK(strstr(err.message, "precision bf16") != NULL);
  CHECK(llm_ops_new(&ops, 1, "amx", 0, &err) == LLM_ERR_ARG && !ops);
  ops = new_ops(1, AMX);
  CHECK(!ops || !strcmp(llm_ops_kernels(ops), "amx"));
  llm_ops_free(ops);
  llm_ops_free(NULL);
}

int main(void) {
  const char *const sets[] = {"scalar", "avx2", "avx512", BF16, AMX, NULL};
  int32_t starts[BATCH * TIME];
  for (int i = 0; i < BATCH * TIME; i++) starts[i] = i % TIME / 21 * 21; /* documents of 21 */
  test_handle();
  test_exp();
  for (const char *const *set = sets; *set; set++) {
    llm_ops *ops = new_ops(1, *set);
    if (!ops) printf("test_train: this machine has no products of \"%s\": skipped\n", *set);
    if (!ops) continue;
    llm_ops_free(ops);
    test_gemm(*set);
    test_attention(*set, NULL);
    test_attention(*set, starts);
  }
  test_row_kernels(sets);
  return check_report(TEST_NAME);
}
