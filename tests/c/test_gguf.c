/* test_gguf.c: every rule of FORMAT.md that gguf.c enforces, by a named malformed file each; every
 * truncation and every bit flip of a small file's header; bombs and very many keys. */
#include "gguf_sample.h"

/* Reads every byte that the index points at, for the sanitizers' eyes. */
static unsigned walk(const gguf *g) {
  unsigned sum = 0;
  uint64_t n_data;
  const unsigned char *data = gguf_tensor_data(g, &n_data);
  for (uint64_t i = 0; i < n_data; i++) sum += data[i];
  for (size_t i = 0; i < gguf_n_meta(g); i++) {
    const llm_meta *m = gguf_meta(g, i);
    for (uint64_t j = 0; j < m->n_bytes; j++) sum += ((const unsigned char *)m->data)[j];
    if (m->value_type == GGUF_ARRAY && m->element_type == GGUF_STRING) {
      const char *cursor = m->data;
      for (uint64_t j = 0; j < m->n_elements; j++) gguf_next_string(&cursor);
      CHECK(cursor == (const char *)m->data + m->n_bytes);
    }
    CHECK(gguf_find(g, m->key) == m);
  }
  for (size_t i = 0; i < gguf_n_tensors(g); i++) {
    const llm_tensor *t = gguf_tensor(g, i);
    for (uint64_t j = 0; j < t->n_bytes; j++) sum += ((const unsigned char *)t->data)[j];
    CHECK(gguf_find_tensor(g, t->name) == t);
  }
  return sum;
}

static void expect(const char *name, const void *bytes, size_t n, llm_status status,
                   const char *fragment) {
  opened o = open_bytes(bytes, n);
  CHECK_MSG(o.status == status, "%s: %s \"%s\", expected %s", name, llm_status_name(o.status),
            o.err.message, llm_status_name(status));
  if (status)
    CHECK_MSG(strstr(o.err.message, fragment) && !strncmp(o.err.message, "x.gguf: ", 8),
              "%s: message \"%s\", expected \"x.gguf: ...%s...\"", name, o.err.message, fragment);
  close_bytes(&o);
}

/* ---- the good file ---- */

static void test_good(const sample *s) {
  opened o = open_bytes(s->bytes, s->n);
  CHECK_MSG(!o.status, "%s", o.err.message);
  if (o.status) return;
  CHECK(gguf_n_meta(o.g) == N_META && gguf_n_tensors(o.g) == N_TENSORS);
  CHECK(!strcmp(gguf_where(o.g), "x.gguf"));
  const llm_tensor *t = gguf_find_tensor(o.g, "t.two");
  CHECK(t == gguf_tensor(o.g, 1) && t->type == LLM_TYPE_Q4_0 && t->n_dims == 2);
  CHECK(t->dims[0] == 32 && t->dims[1] == 2 && t->dims[2] == 1 && t->dims[3] == 1);
  uint64_t n_data;
  const unsigned char *data = gguf_tensor_data(o.g, &n_data);
  CHECK(data == (unsigned char *)o.span + s->at[AT_DATA] && n_data == 160);
  CHECK(t->n_bytes == 36 && t->data == data + 64 && data[64] == 64);
  CHECK(!gguf_find(o.g, "a.strin") && !gguf_find_tensor(o.g, "a.string"));
  CHECK(walk(o.g) != 0);
  close_bytes(&o);
}

/* The last tensor's padding may be missing; files without tensors may end anywhere up to theirs. */
static void test_endings(const sample *s) {
  sample v;
  expect("no last padding", s->bytes, s->at[AT_END], LLM_OK, "");
  for (size_t i = 1; i < s->n - s->at[AT_END]; i++)
    expect("D2_half_padding", s->bytes, s->at[AT_END] + i, LLM_ERR_FORMAT,
           "follow the last tensor");
  memset(&v, 0, sizeof v);
  put(&v, "GGUF", 4), put_u32(&v, 3), put_u64(&v, 0), put_u64(&v, 0);
  expect("nothing at all", v.bytes, v.n, LLM_OK, "");
  expect("nothing, padded", v.bytes, 32, LLM_OK, "");
  expect("D2_after_nothing", v.bytes, 33, LLM_ERR_FORMAT, "1 bytes follow the last tensor");
}

/* ---- one malformed file per rule ---- */

typedef struct malformed {
  const char *name; /* the rule of FORMAT.md and the fault */
  enum field at;
  int n_bytes; /* of the replaced value */
  uint64_t value;
  llm_status status;
  const char *fragment;
} malformed;

#define BAD     LLM_ERR_FORMAT
#define NOT_RUN LLM_ERR_UNSUPPORTED

static const malformed cases[] = {
    {"H1_magic", AT_MAGIC, 1, 'X', BAD, "not a GGUF file: it begins with the bytes 58 47 55 46"},
    {"H1_zip", AT_MAGIC, 4, 0x04034b50, BAD, "not a GGUF file: a zip archive"},
    {"H1_ggjt", AT_MAGIC, 4, 0x67676a74, BAD, "an older ggml file"},
    {"H2_version_0", AT_VERSION, 4, 0, NOT_RUN, "GGUF version 0, expected 3"},
    {"H2_version_1", AT_VERSION, 4, 1, NOT_RUN, "GGUF version 1, expected 3: convert it"},
    {"H2_version_2", AT_VERSION, 4, 2, NOT_RUN, "GGUF version 2, expected 3: convert it"},
    {"H2_version_4", AT_VERSION, 4, 4, NOT_RUN, "GGUF version 4, expected 3"},
    {"H2_big_endian", AT_VERSION, 4, 0x03000000, NOT_RUN, "big-endian"},
    {"H3_tensor_bomb", AT_N_TENSORS, 8, 1ull << 40, BAD, "claims 1099511627776 tensors, at most"},
    {"H3_tensor_negative", AT_N_TENSORS, 8, UINT64_MAX, BAD, "tensors, at most"},
    {"H3_tensor_wrap", AT_N_TENSORS, 8, (UINT64_MAX / sizeof(llm_tensor)) + 2, BAD, "at most"},
    {"H4_key_bomb", AT_N_META, 8, 1ull << 40, BAD, "claims 1099511627776 keys, at most"},
    {"H4_key_negative", AT_N_META, 8, UINT64_MAX, BAD, "keys, at most"},
    {"H4_key_wrap", AT_N_META, 8, (UINT64_MAX / sizeof(llm_meta)) + 2, BAD, "at most"},
    {"K1_key_length_wrap", AT_KEY_LENGTH, 8, UINT64_MAX, BAD,
     "its name claims 1844674407370955161"},
    {"K1_key_length_past", AT_KEY_LENGTH, 8, CAPACITY, BAD, "its name claims 16384 bytes"},
    {"K1_string_wrap", AT_STRING_LENGTH, 8, UINT64_MAX, BAD, "key a.string: its string claims"},
    {"K1_string_past", AT_STRING_LENGTH, 8, CAPACITY, BAD, "key a.string: its string claims"},
    {"K1_array_string", AT_STRINGS_SECOND, 8, UINT64_MAX, BAD, "key a.strings: its string claims"},
    {"K2_key_empty", AT_KEY_LENGTH, 8, 0, BAD, "key 1 of 19: its name has 0 bytes"},
    {"K2_key_long", AT_KEY_LENGTH, 8, 256, BAD, "its name has 256 bytes, expected 1 to 255"},
    {"K2_key_nul", AT_KEY_LAST, 1, 0, BAD, "byte 0x00 at position 7"},
    {"K2_key_escape", AT_KEY_LAST, 1, 0x1b, BAD, "byte 0x1b at position 7"},
    {"K2_key_not_ascii", AT_KEY_LAST, 1, 0xe9, BAD, "byte 0xe9"},
    {"K2_key_space", AT_KEY_LAST, 1, ' ', BAD, "byte 0x20"},
    {"K3_key_twice", AT_STRINH_LAST, 1, 'g', BAD, "key a.string appears twice"},
    {"K4_type_13", AT_STRING_TYPE, 4, 13, BAD, "key a.string: its type is 13, expected 0 to 12"},
    {"K4_type_negative", AT_STRING_TYPE, 4, UINT32_MAX, BAD, "its type is 4294967295"},
    {"K4_element_13", AT_INTS_TYPE, 4, 13, BAD, "key a.ints: its element type is 13"},
    {"K5_bool_2", AT_BOOL, 1, 2, BAD, "key a.bool: a bool is 2, expected 0 or 1"},
    {"K5_bools_255", AT_BOOLS, 1, 255, BAD, "key a.bools: a bool is 255"},
    {"K6_array_of_arrays", AT_INTS_TYPE, 4, GGUF_ARRAY, NOT_RUN, "an array of arrays"},
    {"K7_count_bomb", AT_INTS_COUNT, 8, 1ull << 40, BAD,
     "claims 1099511627776 values of type int32"},
    {"K7_count_wrap", AT_INTS_COUNT, 8, (1ull << 62) + 1, BAD, "key a.ints: it claims"},
    {"K7_strings_bomb", AT_STRINGS_COUNT, 8, 1ull << 61, BAD, "key a.strings: it claims"},
    {"K8_alignment_i32", AT_ALIGNMENT_TYPE, 4, GGUF_INT32, BAD,
     "its type is int32, expected uint32"},
    {"K9_alignment_0", AT_ALIGNMENT, 4, 0, BAD, "it is 0, expected a power of two"},
    {"K9_alignment_4", AT_ALIGNMENT, 4, 4, BAD, "it is 4, expected a power of two from 8 to 4096"},
    {"K9_alignment_48", AT_ALIGNMENT, 4, 48, BAD, "it is 48"},
    {"K9_alignment_8192", AT_ALIGNMENT, 4, 8192, BAD, "it is 8192"},
    {"K9_alignment_2_31", AT_ALIGNMENT, 4, 1u << 31, BAD, "it is 2147483648"},
    {"T1_name_empty", AT_NAME_LENGTH, 8, 0, BAD, "tensor 1 of 3: its name has 0 bytes"},
    {"T1_name_64", AT_NAME_LENGTH, 8, 64, BAD, "its name has 64 bytes, expected 1 to 63"},
    {"T1_name_wrap", AT_NAME_LENGTH, 8, UINT64_MAX, BAD, "tensor 1 of 3: its name claims"},
    {"T1_name_nul", AT_NAME_LAST, 1, 0, BAD, "byte 0x00"},
    {"T2_name_twice", AT_NAME_TWO, 3, 'e' << 16 | 'n' << 8 | 'o', BAD,
     "tensor t.one appears twice"},
    {"T3_dims_0", AT_N_DIMS, 4, 0, BAD, "tensor t.one: it has 0 dimensions, expected 1 to 4"},
    {"T3_dims_5", AT_N_DIMS, 4, 5, BAD, "it has 5 dimensions"},
    {"T3_dims_bomb", AT_N_DIMS, 4, UINT32_MAX, BAD, "it has 4294967295 dimensions"},
    {"T4_dim_0", AT_DIM_0, 8, 0, BAD, "dimension 0 is 0, expected 1 to 2147483647"},
    {"T4_dim_1_0", AT_DIM_1, 8, 0, BAD, "dimension 1 is 0"},
    {"T4_dim_negative", AT_DIM_1, 8, UINT64_MAX, BAD, "dimension 1 is 18446744073709551615"},
    {"T4_dim_2_31", AT_DIM_0, 8, 1ull << 31, BAD, "dimension 0 is 2147483648"},
    {"T5_type_q2_k", AT_TYPE, 4, 10, NOT_RUN, "tensor t.one: its type is Q2_K, which this version"},
    {"T5_type_removed", AT_TYPE, 4, 4, NOT_RUN, "its type is Q4_2"},
    {"T5_type_36", AT_TYPE, 4, 36, NOT_RUN, "its type is number 36"},
    {"T5_type_unknown", AT_TYPE, 4, 1000, NOT_RUN, "its type is number 1000"},
    {"T5_type_negative", AT_TYPE, 4, UINT32_MAX, NOT_RUN, "its type is number 4294967295"},
    {"T6_half_block", AT_Q_DIM_0, 8, 48, BAD,
     "rows of 48 elements are not whole blocks of 32 (Q4_0)"},
    {"T6_half_super_block", AT_TYPE, 4, LLM_TYPE_Q4_K, BAD,
     "rows of 4 elements are not whole blocks of 256 (Q4_K)"},
    {"T7_too_big", AT_DIM_1, 8, INT32_MAX, BAD,
     "its shape [4, 2147483647, 1, 1] of F32 needs more"},
    {"T7_first_dim", AT_DIM_0, 8, INT32_MAX, BAD, "needs more bytes than the file's"},
    {"T7_blocks", AT_Q_DIM_1, 8, INT32_MAX, BAD, "tensor t.two: its shape"},
    {"T8_offset_gap", AT_Q_OFFSET, 8, 96, BAD, "its data is at offset 96, expected 64"},
    {"T8_offset_overlap", AT_Q_OFFSET, 8, 32, BAD, "its data is at offset 32, expected 64"},
    {"T8_offset_unaligned", AT_Q_OFFSET, 8, 48, BAD, "its data is at offset 48, expected 64"},
    {"T8_offset_past", AT_Q_OFFSET, 8, UINT64_MAX - 31, BAD, "expected 64"},
    {"T8_offset_first", AT_OFFSET, 8, 32, BAD, "its data is at offset 32, expected 0"},
    {"T8_other_size", AT_DIM_1, 8, 5, BAD, "tensor t.two: its data is at offset 64, expected 96"},
    {"T8_alignment", AT_ALIGNMENT, 4, 128, BAD,
     "tensor t.two: its data is at offset 64, expected 128"},
};

static void test_cases(const sample *good) {
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    sample s = *good;
    memcpy(s.bytes + s.at[cases[i].at], &cases[i].value, (size_t)cases[i].n_bytes);
    expect(cases[i].name, s.bytes, s.n, cases[i].status, cases[i].fragment);
  }
}

/* Faults that replacing a field does not make. */
static void test_other_cases(const sample *good) {
  expect("H1_empty", "", 0, BAD, "the file is empty");
  expect("H1_magic_only", "GGUF", 4, BAD, "the file has 4 bytes, the header of a GGUF file has 24");
  expect("H1_23_bytes", good->bytes, 23, BAD, "the file has 23 bytes");
  expect("H1_one_byte", "G", 1, BAD, "the file has 1 bytes");
  expect("H1_web_page", "<!DOCTYPE html><html>", 21, BAD, "a web page");
  expect("H1_lfs", "version https://git-lfs.github.com/spec/v1\n", 43, BAD, "a Git LFS pointer");
  expect("H1_safetensors", "\x10\0\0\0\0\0\0\0{\"a\":1}", 15, BAD, "a safetensors file");
  expect("D1_cut", good->bytes, good->at[AT_END] - 1, BAD,
         "tensor t.end: its 6 bytes at offset 128 reach past the file's 133 bytes of tensor data");
  sample s = *good;
  put(&s, "x", 1);
  expect("D2_trailing", s.bytes, s.n, BAD, "27 bytes follow the last tensor, expected none or 26");
}

/* A product that wraps past 2^64 in every order of multiplication, in four dimensions. */
static void test_wrapping_shapes(void) {
  static const uint64_t shapes[][4] = {
      {1u << 30, 1u << 30, 1u << 4, 1},             /* 2^64 elements */
      {1u << 30, 1u << 30, 1u << 2, 4},             /* the same in steps */
      {INT32_MAX, INT32_MAX, INT32_MAX, INT32_MAX}, /* as large as dims allow */
      {1u << 30, 1u << 30, 1, 1},               /* 2^60 elements: 2^62 bytes, 2^64 with F32 x 4 */
      {1u << 16, 1u << 16, 1u << 15, 1u << 15}, /* 2^62 elements: 2^64 bytes */
  };
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
    sample s = {.n = 0};
    put(&s, "GGUF", 4), put_u32(&s, 3), put_u64(&s, 1), put_u64(&s, 0);
    put_string(&s, "t"), put_u32(&s, 4);
    for (int d = 0; d < 4; d++) put_u64(&s, shapes[i][d]);
    put_u32(&s, LLM_TYPE_F32), put_u64(&s, 0);
    put_padding(&s, 32);
    expect("T7_wrap", s.bytes, s.n, BAD, "needs more bytes than the file's");
  }
}

/* ---- every truncation, every flipped bit ---- */

static void test_truncations(const sample *good) {
  for (size_t n = 0; n < good->n; n++) {
    opened o = open_bytes(good->bytes, n);
    CHECK_MSG((o.status == LLM_OK) == (n == good->at[AT_END]), "%zu bytes: %s", n, o.err.message);
    CHECK(o.status == LLM_OK || o.status == LLM_ERR_FORMAT);
    close_bytes(&o);
  }
}

static void test_bit_flips(const sample *good) {
  int n_accepted = 0;
  for (size_t bit = 0; bit < good->at[AT_DATA] * 8; bit++) {
    sample s = *good;
    s.bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
    opened o = open_bytes(s.bytes, s.n);
    CHECK_MSG(o.status == LLM_OK || o.status == LLM_ERR_FORMAT || o.status == LLM_ERR_UNSUPPORTED,
              "bit %zu: %s", bit, o.err.message);
    if (o.g) CHECK(walk(o.g) != 0);
    n_accepted += o.g != NULL;
    close_bytes(&o);
  }
  CHECK(n_accepted > 100); /* names, numbers and strings may change */
}

/* ---- many keys: no quadratic step, names in any order ---- */

static void test_many_keys(void) {
  enum { N = 65536, EACH = 8 + 8 + 4 + 1 };
  size_t n = 24 + (size_t)N * EACH;
  unsigned char *bytes = calloc(n, 1), *p = bytes + 24;
  memcpy(bytes, "GGUF\3", 5);
  memcpy(bytes + 16, &(uint64_t){N}, 8);
  for (unsigned i = 0; i < N; i++, p += EACH) {
    char key[16];
    p[0] = 8;
    snprintf(key, sizeof key, "k%07d", (int)(i * 40503 % N)); /* odd factor: a permutation */
    memcpy(p + 8, key, 8);
  }
  opened o = open_bytes(bytes, n);
  CHECK_MSG(!o.status, "%s", o.err.message);
  CHECK(o.g && gguf_find(o.g, "k0065535") && gguf_find(o.g, "k0000000"));
  close_bytes(&o);
  memcpy(p - EACH + 8, bytes + 24 + 8, 8);
  expect("K3_far_apart", bytes, n, BAD, "key k0000000 appears twice");
  memcpy(bytes + 16, &(uint64_t){N + 1}, 8);
  expect("H4_cap", bytes, n, BAD, "claims 65537 keys, at most 65536");
  free(bytes);
}

int main(void) {
  static sample good;
  sample_fill(&good);
  test_good(&good);
  test_endings(&good);
  test_cases(&good);
  test_other_cases(&good);
  test_wrapping_shapes();
  test_truncations(&good);
  test_bit_flips(&good);
  test_many_keys();
  gguf_free(NULL);
  return check_report("test_gguf");
}
