/* check.h: the whole test framework of tests/c. CHECK counts and goes on; a test's main ends with
 * `return check_report("test_x");`. Failures print file, line and the expression or a message. */
#ifndef LLM_TEST_CHECK_H
#define LLM_TEST_CHECK_H

#include <stdio.h>

static long check_count, check_failures;

enum { CHECK_PRINTED = 20 }; /* failures printed before the rest is only counted */

#define CHECK_MSG(cond, ...)                                                                       \
  do {                                                                                             \
    check_count++;                                                                                 \
    if (!(cond) && ++check_failures <= CHECK_PRINTED) {                                            \
      fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);                                              \
      fprintf(stderr, __VA_ARGS__);                                                                \
      fputc('\n', stderr);                                                                         \
    }                                                                                              \
  } while (0)

#define CHECK(cond) CHECK_MSG(cond, "failed: %s", #cond)

/* Prints "name: N checks, M failed" and returns the exit code. No checks at all is a failure. */
static inline int check_report(const char *name) {
  printf("%s: %ld checks, %ld failed\n", name, check_count, check_failures);
  return check_failures != 0 || check_count == 0;
}

#endif
