/* test_quant.c: half-precision conversion over all 65,536 patterns, and expansion of every block
 * format against digests of what the public gguf package (0.19, numpy 2) gives. */
#include <math.h>
#include <stdlib.h>

#include "check.h"
#include "quant.h"

static float float_of_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

static uint32_t bits_of_float(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

/* ---- half precision ---- */

static float f16_by_definition(unsigned h) {
  int exponent = h >> 10 & 31, fraction = h & 1023;
  float x = exponent == 31 ? (fraction ? NAN : INFINITY)
            : exponent     ? ldexpf((float)(1024 + fraction), exponent - 25)
                           : ldexpf((float)fraction, -24);
  return h & 0x8000 ? -x : x;
}

static void test_f16(void) {
  for (unsigned h = 0; h < 0x10000; h++) {
    float x = f16_to_f32((uint16_t)h), expected = f16_by_definition(h);
    if (isnan(expected)) {
      CHECK_MSG(isnan(x) && isnan(f16_to_f32(f32_to_f16(x))), "f16 %04x is NaN", h);
      CHECK_MSG(bits_of_float(x) == ((h & 0x8000u) << 16 | 0x7fc00000 | (h & 0x3ffu) << 13),
                "f16 %04x: NaN keeps its bits and becomes quiet, found %08x", h, bits_of_float(x));
      continue;
    }
    CHECK_MSG(bits_of_float(x) == bits_of_float(expected), "f16_to_f32(%04x) = %g", h, (double)x);
    CHECK_MSG(f32_to_f16(x) == h, "f32_to_f16(%g) = %04x", (double)x, f32_to_f16(x));
  }
}

/* Around the middle of each pair of neighbours: nearest, ties to the even pattern. */
static void test_f16_rounding(void) {
  for (unsigned h = 0; h < 0x7c00; h++) {
    uint16_t next = (uint16_t)(h + 1);
    /* infinity stands where 65536 would be */
    float high = next == 0x7c00 ? 65536.0f : f16_to_f32(next);
    float middle = (f16_to_f32((uint16_t)h) + high) / 2; /* exact in float32 */
    uint16_t even = h & 1 ? next : (uint16_t)h;
    CHECK_MSG(f32_to_f16(middle) == even, "tie over %04x gave %04x", h, f32_to_f16(middle));
    CHECK(f32_to_f16(nextafterf(middle, 0)) == h);
    CHECK(f32_to_f16(nextafterf(middle, INFINITY)) == next);
    CHECK(f32_to_f16(-middle) == (even | 0x8000));
  }
  CHECK(f32_to_f16(INFINITY) == 0x7c00 && f32_to_f16(-3e38f) == 0xfc00);
  CHECK(f32_to_f16(float_of_bits(1)) == 0 && f32_to_f16(-float_of_bits(1)) == 0x8000);
}

/* ---- types ---- */

static void test_types(void) {
  static const struct {
    llm_type type;
    const char *name;
    size_t n_per_block, bytes;
  } expected[] = {
      {LLM_TYPE_F32, "F32", 1, 4},       {LLM_TYPE_F16, "F16", 1, 2},
      {LLM_TYPE_BF16, "BF16", 1, 2},     {LLM_TYPE_Q8_0, "Q8_0", 32, 34},
      {LLM_TYPE_Q4_0, "Q4_0", 32, 18},   {LLM_TYPE_Q4_1, "Q4_1", 32, 20},
      {LLM_TYPE_Q5_0, "Q5_0", 32, 22},   {LLM_TYPE_Q5_1, "Q5_1", 32, 24},
      {LLM_TYPE_Q4_K, "Q4_K", 256, 144}, {LLM_TYPE_Q5_K, "Q5_K", 256, 176},
      {LLM_TYPE_Q6_K, "Q6_K", 256, 210},
  };
  uint64_t known = 0;
  for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
    llm_type_info info = llm_type_describe(expected[i].type);
    CHECK(info.name && strcmp(info.name, expected[i].name) == 0);
    CHECK(info.n_per_block == expected[i].n_per_block);
    CHECK(info.bytes_per_block == expected[i].bytes);
    CHECK(type_row_bytes(expected[i].type, 768) == 768 / info.n_per_block * info.bytes_per_block);
    known |= 1ull << expected[i].type;
  }
  for (int type = -1; type < 64; type++)
    CHECK((llm_type_describe((llm_type)type).n_per_block != 0) == (type >= 0 && known >> type & 1));
}

/* ---- blocks ---- */

static uint64_t fnv_1a(const void *data, size_t n_bytes) {
  uint64_t fnv = 0xcbf29ce484222325;
  for (size_t i = 0; i < n_bytes; i++) fnv = (fnv ^ ((const uint8_t *)data)[i]) * 0x100000001b3;
  return fnv;
}

/* Any bits (but scales that are finite and small) against digests of what the gguf package expands
 * them to: FNV-1a over gguf.quants.dequantize(bytes, type) of 16 blocks of bytes
 * arange(n) * 2654435761 % 2**32 >> 11, the high byte of each float16 & 0xbb. */
static void test_expansion(void) {
  static const struct {
    llm_type type;
    size_t half_at; /* of the first float16 in a block */
    uint64_t fnv;
  } cases[] = {
      {LLM_TYPE_Q8_0, 0, 0x0f26959f277ceed4}, {LLM_TYPE_Q4_0, 0, 0x81bef502abbc3b25},
      {LLM_TYPE_Q4_1, 0, 0x37f6ca5d0c58bdf5}, {LLM_TYPE_Q5_0, 0, 0x2556e086db1eb444},
      {LLM_TYPE_Q5_1, 0, 0xc9f4497e1c2b4d89}, {LLM_TYPE_Q4_K, 0, 0xb874d9bae5183275},
      {LLM_TYPE_Q5_K, 0, 0xc7da8523ea50a847}, {LLM_TYPE_Q6_K, 208, 0x02cd52a10899a722},
  };
  static uint8_t src[16 * sizeof(block_q6_k)];
  static float dst[16 * QK_SUPER];
  for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
    llm_type_info info = llm_type_describe(cases[c].type);
    size_t size = info.bytes_per_block, n = 16 * info.n_per_block;
    for (size_t i = 0; i < 16 * size; i++) src[i] = (uint8_t)((uint32_t)i * 2654435761u >> 11);
    for (uint8_t *b = src + cases[c].half_at; b < src + 16 * size; b += size) {
      b[1] &= 0xbb;
      if (type_has_minimum(cases[c].type)) b[3] &= 0xbb;
    }
    dequantize(cases[c].type, src, n, dst);
    uint64_t fnv = fnv_1a(dst, n * sizeof *dst);
    CHECK_MSG(fnv == cases[c].fnv, "%s: digest %016llx, gguf's is %016llx", info.name,
              (unsigned long long)fnv, (unsigned long long)cases[c].fnv);
  }
}

static void test_odd_addresses(void) {
  uint8_t src[24];
  float dst[5];
  for (size_t i = 0; i < sizeof src; i++) src[i] = (uint8_t)(i * 37 + 11);
  for (int at = 0; at < 2; at++) { /* the last value at an odd address */
    dequantize(LLM_TYPE_F16, src + at, 5, dst);
    CHECK(dst[4] == f16_by_definition(src[at + 8] | src[at + 9] << 8) || isnan(dst[4]));
    dequantize(LLM_TYPE_BF16, src + at, 5, dst);
    CHECK(bits_of_float(dst[4]) == (uint32_t)(src[at + 8] | src[at + 9] << 8) << 16);
    dequantize(LLM_TYPE_F32, src + at, 5, dst);
    CHECK(memcmp(dst, src + at, 20) == 0);
  }
}

static void test_public_expansion(void) {
  block_q8_0 block = {.d = 0x3c00, .q = {-128, 1, 127}};
  float dst[32];
  llm_error err;
  CHECK(llm_dequantize(LLM_TYPE_Q8_0, &block, 32, dst, &err) == LLM_OK && dst[0] == -128);
  CHECK(llm_dequantize(LLM_TYPE_Q8_0, &block, 31, dst, &err) == LLM_ERR_ARG);
  CHECK(strstr(err.message, "31") && strstr(err.message, "Q8_0"));
  CHECK(llm_dequantize((llm_type)10, &block, 32, dst, &err) == LLM_ERR_UNSUPPORTED);
  CHECK(strstr(err.message, "10"));
  CHECK(llm_dequantize(LLM_TYPE_F32, dst, 0, NULL, NULL) == LLM_OK);
}

int main(void) {
  test_f16();
  test_f16_rounding();
  test_types();
  test_expansion();
  test_odd_addresses();
  test_public_expansion();
  return check_report("test_quant");
}
