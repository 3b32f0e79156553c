/* test_amx_emulated.c: the cases of test_kernels.c for kernels_amx.c on tiles in memory
 * (emulate_amx.h), where a machine has AVX-512. */
#define _DEFAULT_SOURCE /* as test_kernels.c */
#include <stdio.h>

#if defined(__x86_64__)
#include "emulate_amx.h"
#define kernels_set_amx kernels_set_emulated
#include "../../csrc/kernels_amx.c"

#define EMULATED "amx"
#define BELOW    "avx512"
#include "emulated_set.h"
#else
int main(void) {
  puts("test_amx_emulated: skipped, it is for x86-64");
  return 0;
}
#endif
