/* gguf_sample.h: a small parameter file with every kind of value, for the tests of the reader. The
 * writer notes where each field lies, so that a malformed file is the good one with one field
 * replaced. Files are parsed from an allocation of their exact size: the address sanitizer then
 * sees a read past the end. */
#ifndef LLM_TEST_GGUF_SAMPLE_H
#define LLM_TEST_GGUF_SAMPLE_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "gguf.h"

enum { CAPACITY = 1 << 14 };

enum field { /* places in the good file */
             AT_MAGIC,
             AT_VERSION,
             AT_N_TENSORS,
             AT_N_META,
             AT_KEY_LENGTH, /* of the key "a.string" */
             AT_KEY_LAST,   /* its last character */
             AT_STRING_TYPE,
             AT_STRING_LENGTH,
             AT_STRINH_LAST, /* the last character of the key "a.strinh" */
             AT_ALIGNMENT_TYPE,
             AT_ALIGNMENT,
             AT_BOOL,
             AT_BOOLS,
             AT_INTS_TYPE,
             AT_INTS_COUNT,
             AT_STRINGS_COUNT,
             AT_STRINGS_SECOND, /* the length of the second string */
             AT_NAME_LENGTH,    /* of the tensor "t.one" */
             AT_NAME_LAST,
             AT_NAME_TWO, /* the tensor "t.two" from its third character */
             AT_N_DIMS,
             AT_DIM_0,
             AT_DIM_1,
             AT_TYPE,
             AT_OFFSET,
             AT_Q_DIM_0, /* of the Q4_0 tensor */
             AT_Q_DIM_1,
             AT_Q_OFFSET,
             AT_DATA,
             AT_END, /* of the last tensor */
             N_FIELDS
};

typedef struct sample {
  unsigned char bytes[CAPACITY];
  size_t n;
  size_t at[N_FIELDS];
} sample;

static inline void put(sample *s, const void *data, size_t n) {
  if (s->n + n > CAPACITY) abort();
  memcpy(s->bytes + s->n, data, n);
  s->n += n;
}

static inline void put_u32(sample *s, uint32_t x) { put(s, &x, sizeof x); }
static inline void put_u64(sample *s, uint64_t x) { put(s, &x, sizeof x); }
static inline void put_string(sample *s, const char *text) {
  put_u64(s, strlen(text));
  put(s, text, strlen(text));
}

static inline void put_key(sample *s, const char *key, uint32_t type) {
  put_string(s, key);
  put_u32(s, type);
}

static inline void put_array(sample *s, const char *key, uint32_t type, uint64_t n) {
  put_key(s, key, GGUF_ARRAY);
  put_u32(s, type);
  put_u64(s, n);
}

static inline void put_padding(sample *s, size_t alignment) {
  while (s->n % alignment) put(s, "", 1);
}

static inline void put_numbers(sample *s) {
  put_key(s, "v.u8", GGUF_UINT8), put(s, "\xff", 1);
  put_key(s, "v.i8", GGUF_INT8), put(s, "\xff", 1);
  put_key(s, "v.u16", GGUF_UINT16), put(s, "\xff\xff", 2);
  put_key(s, "v.i16", GGUF_INT16), put(s, "\xfe\xff", 2);
  put_key(s, "v.u32", GGUF_UINT32), put_u32(s, UINT32_MAX);
  put_key(s, "v.i32", GGUF_INT32), put_u32(s, (uint32_t)-3);
  put_key(s, "v.u64", GGUF_UINT64), put_u64(s, UINT64_MAX);
  put_key(s, "v.i64", GGUF_INT64), put_u64(s, (uint64_t)-4);
  float f = 1e-5f, not_finite = NAN;
  double d = 10000.0;
  put_key(s, "v.f32", GGUF_FLOAT32), put(s, &f, sizeof f);
  put_key(s, "v.f64", GGUF_FLOAT64), put(s, &d, sizeof d);
  put_key(s, "v.nan", GGUF_FLOAT32), put(s, &not_finite, sizeof not_finite);
}

enum { N_META = 19, N_TENSORS = 3 };

static inline void put_meta(sample *s) {
  put_u64(s, strlen("a.string"));
  s->at[AT_KEY_LENGTH] = s->n - 8;
  put(s, "a.string", 8);
  s->at[AT_KEY_LAST] = s->n - 1;
  s->at[AT_STRING_TYPE] = s->n;
  put_u32(s, GGUF_STRING);
  s->at[AT_STRING_LENGTH] = s->n;
  put_string(s, "hello");
  put_key(s, "a.strinh", GGUF_STRING);
  s->at[AT_STRINH_LAST] = s->n - 5;
  put_string(s, "");
  put_string(s, "general.alignment");
  s->at[AT_ALIGNMENT_TYPE] = s->n;
  put_u32(s, GGUF_UINT32);
  s->at[AT_ALIGNMENT] = s->n;
  put_u32(s, 32);
  put_key(s, "a.bool", GGUF_BOOL);
  s->at[AT_BOOL] = s->n;
  put(s, "\001", 1);
  put_array(s, "a.bools", GGUF_BOOL, 3);
  s->at[AT_BOOLS] = s->n;
  put(s, "\001\000\001", 3);
  put_array(s, "a.ints", GGUF_INT32, 3);
  s->at[AT_INTS_TYPE] = s->n - 12;
  s->at[AT_INTS_COUNT] = s->n - 8;
  put_u32(s, 1), put_u32(s, 2), put_u32(s, (uint32_t)-1);
  put_array(s, "a.empty", GGUF_UINT8, 0);
  put_array(s, "a.strings", GGUF_STRING, 3);
  s->at[AT_STRINGS_COUNT] = s->n - 8;
  put_string(s, "x");
  s->at[AT_STRINGS_SECOND] = s->n;
  put_string(s, "yz"), put_string(s, "");
  put_numbers(s);
}

static inline void put_tensors(sample *s) {
  s->at[AT_NAME_LENGTH] = s->n;
  put_string(s, "t.one");
  s->at[AT_NAME_LAST] = s->n - 1;
  s->at[AT_N_DIMS] = s->n;
  put_u32(s, 2);
  s->at[AT_DIM_0] = s->n;
  put_u64(s, 4);
  s->at[AT_DIM_1] = s->n;
  put_u64(s, 3);
  s->at[AT_TYPE] = s->n;
  put_u32(s, LLM_TYPE_F32);
  s->at[AT_OFFSET] = s->n;
  put_u64(s, 0); /* 48 bytes, padded to 64 */

  put_string(s, "t.two");
  s->at[AT_NAME_TWO] = s->n - 3;
  put_u32(s, 2);
  s->at[AT_Q_DIM_0] = s->n;
  put_u64(s, 32);
  s->at[AT_Q_DIM_1] = s->n;
  put_u64(s, 2);
  put_u32(s, LLM_TYPE_Q4_0);
  s->at[AT_Q_OFFSET] = s->n;
  put_u64(s, 64); /* 36 bytes, padded to 64 */

  put_string(s, "t.end"), put_u32(s, 1), put_u64(s, 3);
  put_u32(s, LLM_TYPE_F16), put_u64(s, 128); /* 6 bytes, padded to 32 */
}

static inline void sample_fill(sample *s) {
  memset(s, 0, sizeof *s);
  put(s, "GGUF", 4);
  s->at[AT_VERSION] = s->n;
  put_u32(s, 3);
  s->at[AT_N_TENSORS] = s->n;
  put_u64(s, N_TENSORS);
  s->at[AT_N_META] = s->n;
  put_u64(s, N_META);
  put_meta(s);
  put_tensors(s);
  put_padding(s, 32);
  s->at[AT_DATA] = s->n;
  for (int i = 0; i < 134; i++) put(s, &(unsigned char){(unsigned char)i}, 1);
  s->at[AT_END] = s->n;
  put_padding(s, 32);
}

/* ---- parsing and walking ---- */

typedef struct opened {
  void *span;
  gguf *g;
  llm_status status;
  llm_error err;
} opened;

static inline opened open_bytes(const void *bytes, size_t n) {
  opened o = {.span = malloc(n ? n : 1)};
  memcpy(o.span, bytes, n);
  o.status = gguf_parse(&o.g, o.span, n, "x.gguf", &o.err);
  CHECK(o.status == o.err.status && (o.status == LLM_OK) == (o.g != NULL));
  return o;
}

static inline void close_bytes(opened *o) {
  gguf_free(o->g);
  free(o->span);
}

#endif
