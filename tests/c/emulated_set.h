/* emulated_set.h: the cases of test_kernels.c for a kernel set that this machine cannot run by
 * itself. Before it is included: EMULATED, the set's name; BELOW, that of the set it starts from,
 * without which the test is skipped; and its source, whose kernels_set_X is kernels_set_emulated.
 */
static const kernels *emulated(void) {
  static kernels k;
  k = *kernels_find(BELOW);
  kernels_set_emulated(&k);
  k.name = "emulated " EMULATED;
  return &k;
}

#define EXTRA_TABLE emulated()
#define TEST_NAME   "test_" EMULATED "_emulated"
#define main        test_main
#include "test_kernels.c"
#undef main

int main(int argc, char **argv) {
  if (kernels_find(BELOW)) return test_main(argc, argv);
  puts(TEST_NAME ": skipped, this machine has no " BELOW " kernels");
  return 0;
}
