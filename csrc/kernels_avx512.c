/* kernels_avx512.c: AVX-512 with VNNI. Layer 2. */
#include "kernels.h"

#if defined(__x86_64__)
void kernels_set_avx512(kernels *k) { (void)k; }
#endif
