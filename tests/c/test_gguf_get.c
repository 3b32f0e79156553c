/* test_gguf_get.c: typed reading of keys: each type, absent keys, wrong types, values out of range.
 */
#include "gguf_sample.h"

#define BAD LLM_ERR_FORMAT

static void expect_int(const gguf *g, const char *key, int64_t expected) {
  int64_t value = 0;
  llm_error err;
  llm_status status = gguf_get_int(g, key, 1, INT64_MIN, INT64_MAX, &value, &err);
  CHECK_MSG(!status && value == expected, "%s: %lld %s", key, (long long)value, err.message);
}

static void test_integers(const gguf *g) {
  int64_t value = 7;
  llm_error err;
  expect_int(g, "v.u8", 255);
  expect_int(g, "v.i8", -1);
  expect_int(g, "v.u16", 65535);
  expect_int(g, "v.i16", -2);
  expect_int(g, "v.u32", UINT32_MAX);
  expect_int(g, "v.i32", -3);
  expect_int(g, "v.i64", -4);
  CHECK(gguf_get_int(g, "none", 0, 0, 9, &value, &err) == LLM_OK && value == 7);
  CHECK(gguf_get_int(g, "none", 1, 0, 9, &value, &err) == BAD);
  CHECK(strstr(err.message, "x.gguf: key none is missing"));
  CHECK(gguf_get_int(g, "v.u8", 0, 0, 254, &value, &err) == BAD);
  CHECK(strstr(err.message, "key v.u8 is 255, expected 0 to 254"));
  CHECK(gguf_get_int(g, "v.i8", 0, 0, 254, &value, &err) == BAD);
  CHECK(gguf_get_int(g, "v.u64", 0, INT64_MIN, INT64_MAX, &value, &err) == BAD);
  CHECK(strstr(err.message, "key v.u64 is 18446744073709551615"));
  CHECK(gguf_get_int(g, "v.f32", 0, 0, 9, &value, &err) == BAD);
  CHECK(strstr(err.message, "its type is float32, expected an integer"));
  CHECK(gguf_get_int(g, "a.bool", 0, 0, 9, &value, &err) == BAD);
  CHECK(gguf_get_int(g, "a.ints", 0, 0, 9, &value, &err) == BAD);
  CHECK(strstr(err.message, "its type is array of int32, expected an integer"));
  CHECK(gguf_get_int(g, "a.string", 0, 0, 9, &value, NULL) == BAD && value == 7);
}

static void test_floats(const gguf *g) {
  float value = 7;
  llm_error err;
  CHECK(!gguf_get_float(g, "v.f32", 1, 0, 1, &value, &err) && value == 1e-5f);
  CHECK(!gguf_get_float(g, "v.f64", 1, 0, 1e6, &value, &err) && value == 10000.0f);
  CHECK(gguf_get_float(g, "v.f64", 1, 0, 1, &value, &err) == BAD);
  CHECK(strstr(err.message, "key v.f64 is 10000, expected 0 to 1"));
  CHECK(gguf_get_float(g, "v.nan", 1, -INFINITY, INFINITY, &value, &err) == BAD);
  CHECK(gguf_get_float(g, "v.u8", 1, 0, 1, &value, &err) == BAD);
  CHECK(strstr(err.message, "its type is uint8, expected float32 or float64"));
  CHECK(!gguf_get_float(g, "none", 0, 0, 1, &value, &err) && value == 10000.0f);
  CHECK(gguf_get_float(g, "none", 1, 0, 1, &value, &err) == BAD);
}

static void test_others(const gguf *g) {
  int32_t flag = 7;
  gguf_string s = {0};
  const llm_meta *m;
  llm_error err;
  CHECK(!gguf_get_bool(g, "a.bool", 1, &flag, &err) && flag == 1);
  CHECK(gguf_get_bool(g, "v.u8", 1, &flag, &err) == BAD);
  CHECK(gguf_get_bool(g, "none", 1, &flag, &err) == BAD &&
        !gguf_get_bool(g, "none", 0, &flag, &err));
  CHECK(!gguf_get_string(g, "a.string", 1, &s, &err));
  CHECK(s.n_bytes == 5 && !memcmp(s.data, "hello", 5));
  CHECK(!gguf_get_string(g, "a.strinh", 1, &s, &err) && s.n_bytes == 0);
  CHECK(gguf_get_string(g, "a.strings", 1, &s, &err) == BAD);
  CHECK(gguf_get_string(g, "none", 1, &s, &err) == BAD);
  CHECK(!gguf_get_array(g, "a.strings", 1, GGUF_STRING, &m, &err) && m->n_elements == 3);
  const char *cursor = m->data;
  gguf_string first = gguf_next_string(&cursor), second = gguf_next_string(&cursor);
  CHECK(first.n_bytes == 1 && *first.data == 'x' && second.n_bytes == 2 && *second.data == 'y');
  CHECK(gguf_get_array(g, "a.ints", 1, GGUF_UINT32, &m, &err) == BAD && !m);
  CHECK(strstr(err.message, "its type is array of int32, expected array of uint32"));
  CHECK(gguf_get_array(g, "a.string", 1, GGUF_STRING, &m, &err) == BAD);
  CHECK(strstr(err.message, "its type is string, expected array of string"));
  CHECK(!gguf_get_array(g, "none", 0, GGUF_STRING, &m, &err) && !m);
  CHECK(!gguf_get_array(g, "a.empty", 1, GGUF_UINT8, &m, &err) && m->n_elements == 0);
}

int main(void) {
  static sample good;
  sample_fill(&good);
  opened o = open_bytes(good.bytes, good.n);
  CHECK_MSG(!o.status, "%s", o.err.message);
  if (o.g) {
    test_integers(o.g);
    test_floats(o.g);
    test_others(o.g);
  }
  close_bytes(&o);
  return check_report("test_gguf_get");
}
