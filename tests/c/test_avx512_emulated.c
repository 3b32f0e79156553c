/* test_avx512_emulated.c: the cases of test_kernels.c for kernels_avx512*.c on machines that
 * cannot run it, through SIMDe's emulation. Skipped where SIMDe's headers (libsimde-dev), AVX2 or
 * gcc are missing, and under the address sanitizer, where it takes minutes to compile. */
#define _DEFAULT_SOURCE /* as test_kernels.c */
#include <stdio.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) &&                             \
    !defined(__SANITIZE_ADDRESS__)
#if __has_include(<simde/x86/avx512.h>)
#define CAN_EMULATE 1
#endif
#endif

#ifdef CAN_EMULATE
#pragma GCC target("avx2,fma,f16c")
#pragma GCC optimize("O1") /* a minute less to compile */
#define LLM_EMULATE_AVX512
#define kernels_set_avx512 kernels_set_emulated
#include "../../csrc/kernels_avx512.c"
#include "../../csrc/kernels_avx512_attention.c"
#include "../../csrc/kernels_avx512_panels.c"
#include "../../csrc/kernels_avx512_quant.c"

#define EMULATED "avx512"
#define BELOW    "avx2"
#include "emulated_set.h"
#else
int main(void) {
  puts("test_avx512_emulated: skipped, it needs gcc on x86-64 without the address sanitizer "
       "and SIMDe (libsimde-dev)");
  return 0;
}
#endif
