/* test_amx_emulated.c: the cases of test_kernels.c for kernels_amx.c on tiles in memory
 * (emulate_amx.h), where a machine has AVX-512. */
#define _DEFAULT_SOURCE /* as test_kernels.c */
#include <stdio.h>

#if defined(__x86_64__)
#include "emulate_amx.h"
#define kernels_set_amx kernels_set_emulated
#include "../../csrc/kernels_amx.c"

static const kernels *emulated(void) {
  static kernels k;
  k = *kernels_find("avx512");
  kernels_set_emulated(&k);
  k.name = "emulated amx";
  return &k;
}

#define EXTRA_TABLE emulated()
#define TEST_NAME   "test_amx_emulated"
#define main        test_main
#include "test_kernels.c"
#undef main

int main(int argc, char **argv) {
  if (kernels_find("avx512")) return test_main(argc, argv);
  puts("test_amx_emulated: skipped, this machine has no AVX-512");
  return 0;
}
#else
int main(void) {
  puts("test_amx_emulated: skipped, it is for x86-64");
  return 0;
}
#endif
