/* cpu.c: feature bits by CPUID and XGETBV (Intel SDM volume 1, chapters 14 and 15), on ARM from the
 * system. Layer 0. Asked directly: the compilers' __builtin_cpu_supports differ in the names they
 * know. */
#define _GNU_SOURCE /* syscall */
#include "cpu.h"

#include <stdatomic.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <stdint.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

static uint64_t saved_registers(void) { /* XCR0: register files that the system saves */
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
}

/* Linux gives 8 KB of tiles to a process that asks, for all its threads; twice is fine. */
static int may_use_tiles(void) {
#if defined(__linux__)
  enum { ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18 };
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
#else
  return 0;
#endif
}

static unsigned ask_features(void) {
  enum { YMM = 0x06, ZMM = 0xe6, TILES = 0x60000 };                      /* of XCR0 */
  enum { FMA = 1 << 12, OSXSAVE = 1 << 27, F16C = 1 << 29 };             /* leaf 1, ecx */
  enum { AVX2 = 1 << 5 };                                                /* leaf 7, ebx */
  const uint32_t avx512_ebx = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
  const uint32_t avx512_ecx = 1u << 1 | 1u << 11;                        /* VBMI, VNNI */
  const uint32_t amx_edx = 1u << 22 | 1u << 24 | 1u << 25;               /* BF16, TILE, INT8 */
  uint32_t eax, ebx, ecx, edx, ecx1;
  if (!__get_cpuid(1, &eax, &ebx, &ecx1, &edx) || !(ecx1 & OSXSAVE)) return 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return 0;
  uint32_t n_subleaves = eax, edx7 = edx;
  uint64_t saved = saved_registers();
  unsigned features = 0;
  if ((saved & YMM) == YMM && (ecx1 & FMA) && (ecx1 & F16C) && (ebx & AVX2)) features |= CPU_AVX2;
  if (!features || (saved & ZMM) != ZMM) return features;
  if ((ebx & avx512_ebx) != avx512_ebx || (ecx & avx512_ecx) != avx512_ecx) return features;
  features |= CPU_AVX512;
  if (n_subleaves >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & 1 << 5))
    features |= CPU_AVX512_BF16;
  if ((features & CPU_AVX512_BF16) && (edx7 & amx_edx) == amx_edx && (saved & TILES) == TILES &&
      may_use_tiles())
    features |= CPU_AMX;
  return features;
}

/* Intel says it in leaf 4, AMD in another of the same form; the first subleaf is L1 data. */
unsigned cpu_l1_bytes(void) {
  static const uint32_t leaves[] = {4, 0x8000001d};
  for (int i = 0; i < 2; i++) {
    uint32_t eax, ebx, ecx, edx;
    if (!__get_cpuid_count(leaves[i], 0, &eax, &ebx, &ecx, &edx) || (eax & 0xff) != 0x21) continue;
    uint32_t line = (ebx & 0xfff) + 1, parts = (ebx >> 12 & 0x3ff) + 1, ways = (ebx >> 22) + 1;
    return line * parts * ways * (ecx + 1);
  }
  return 0;
}
#elif defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

static int has_dotprod(void) {
#if defined(__linux__)
  enum { ASIMDDP = 1 << 20 }; /* asm/hwcap.h */
  return (getauxval(AT_HWCAP) & ASIMDDP) != 0;
#elif defined(__APPLE__)
  int has = 0;
  size_t size = sizeof has;
  return !sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, NULL, 0) && has;
#else
  return 0;
#endif
}

static unsigned ask_features(void) { return has_dotprod() ? CPU_DOTPROD : 0; }
unsigned cpu_l1_bytes(void) { return 0; }
#else
static unsigned ask_features(void) { return 0; }
unsigned cpu_l1_bytes(void) { return 0; }
#endif

/* Asked once: a virtual machine leaves to its host, for tens of microseconds, at each CPUID. */
unsigned cpu_features(void) {
  enum { ASKED = 1 << 30 };
  static atomic_uint known;
  unsigned features = atomic_load_explicit(&known, memory_order_relaxed);
  if (!features) {
    features = ask_features() | ASKED;
    atomic_store_explicit(&known, features, memory_order_relaxed);
  }
  return features & ~ASKED;
}
