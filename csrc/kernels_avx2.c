/* kernels_avx2.c: AVX2, FMA and F16C. Layer 2. */
#include "kernels.h"

#if defined(__x86_64__)
void kernels_set_avx2(kernels *k) { (void)k; }
#endif
