/* test_error.c: what becomes of a message: formatting, what must not reach a terminal, cuts. */
#include "error.h"

#include <errno.h>
#include <string.h>

#include "check.h"

static void expect(const char *quoted, const char *expected) {
  llm_error err;
  CHECK(error_set(&err, LLM_ERR_FORMAT, "%s", quoted) == LLM_ERR_FORMAT);
  CHECK_MSG(err.status == LLM_ERR_FORMAT && !strcmp(err.message, expected), "\"%s\"", err.message);
}

static void test_text(void) {
  expect("tensor x\n\033[2Jy\177", "tensor x??[2Jy?");
  expect("\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80", "\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80");
  expect("a\xc2\x9b"
         "31m",
         "a??31m"); /* U+009B begins an escape sequence */
  expect("\xff \xc0\x80 \xe2\x82", "? ?? ??");
}

static void test_cut(void) {
  llm_error err;
  char text[2 * sizeof err.message];
  for (size_t i = 0; i < sizeof text; i++) text[i] = i % 2 ? '\xa9' : '\xc3';
  text[sizeof text - 1] = 0;
  error_set(&err, LLM_ERR_ARG, "%s", text);
  CHECK(strlen(err.message) == sizeof err.message - 1);
  CHECK(!strcmp(err.message + sizeof err.message - 4, "\xc3\xa9?"));
}

static void test_fields(void) {
  llm_error err;
  CHECK(error_set_errno(&err, ENOENT, "%s", "x.bin") == LLM_ERR_IO && err.sys_errno == ENOENT);
  CHECK(!strcmp(err.message, "x.bin: No such file or directory"));
  CHECK(error_set_full(&err, 9, 8, "full") == LLM_ERR_CONTEXT_FULL);
  CHECK(err.found == 9 && err.limit == 8 && err.sys_errno == 0);
  CHECK(error_nomem(&err, 12, "x") == LLM_ERR_NOMEM && strstr(err.message, "12 bytes for x"));
  CHECK(!error_clear(&err) && !err.status && !*err.message);
  CHECK(error_set(NULL, LLM_ERR_ARG, "x") == LLM_ERR_ARG && !error_clear(NULL));
  CHECK(error_set_errno(NULL, 1, "x") == LLM_ERR_IO);
  CHECK(error_set_full(NULL, 1, 1, "x") == LLM_ERR_CONTEXT_FULL);
}

int main(void) {
  test_text();
  test_cut();
  test_fields();
  return check_report("test_error");
}
