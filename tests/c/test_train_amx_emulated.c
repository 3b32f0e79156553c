/* test_train_amx_emulated.c: the cases of test_train.c, AMX's products among them on tiles in
 * memory (emulate_amx.h), where a machine has AVX-512 with bfloat16. */
#include <stdio.h>

#if defined(__x86_64__)
#include "emulate_amx.h"
#define gemm_amx gemm_emulated
#include "../../csrc/train_gemm_amx.c"
#undef BF16

#define AMX_PRODUCT &gemm_emulated
#define TEST_NAME   "test_train_amx_emulated"
#define main        test_main
#include "test_train.c"
#undef main

int main(void) {
  if (llm_ops_can_round()) return test_main();
  puts("test_train_amx_emulated: skipped, this machine has no bfloat16 products");
  return 0;
}
#else
int main(void) {
  puts("test_train_amx_emulated: skipped, it is for x86-64");
  return 0;
}
#endif
