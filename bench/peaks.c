/* peaks.c: the arithmetic limits of prefill: products of bytes (VNNI, or AVX2's three instructions
 * for it), of fp32 (FMA) and of bf16, on registers alone, in 512 bits where there are any; and of
 * bf16 by AMX tiles, where Linux gives them ("amx").
 *
 *   peaks THREADS    prints one "name GOP/s" a line, a multiplication and an addition as two, of
 *                    what this processor has; the best of several passes
 *
 * Stands alone: C11 with gcc's or clang's intrinsics, and POSIX. */
#define _GNU_SOURCE /* syscall */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

enum { N_STEPS = 1 << 20, N_SUMS = 12, N_PASSES = 20, MAX_THREADS = 256 };

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* Twelve independent sums hide the latency; the empty asm keeps each step. */
#define DEFINE_LOOP(name, targets, type, zero, step)                                               \
  __attribute__((target(targets))) static void name(void) {                                        \
    type x = zero(), a = x, b = x, c = x, d = x, e = x, f = x, g = x, h = x, i = x, j = x, k = x,  \
         l = x;                                                                                    \
    __asm__("" : "+v"(x));                                                                         \
    for (int n = 0; n < N_STEPS; n++) {                                                            \
      a = step(a, x), b = step(b, x), c = step(c, x), d = step(d, x);                              \
      e = step(e, x), f = step(f, x), g = step(g, x), h = step(h, x);                              \
      i = step(i, x), j = step(j, x), k = step(k, x), l = step(l, x);                              \
      __asm__("" : "+v"(a), "+v"(b), "+v"(c), "+v"(d), "+v"(e), "+v"(f));                          \
      __asm__("" : "+v"(g), "+v"(h), "+v"(i), "+v"(j), "+v"(k), "+v"(l));                          \
    }                                                                                              \
    __asm__ volatile("" ::"v"(a), "v"(b), "v"(c), "v"(d), "v"(e), "v"(f));                         \
    __asm__ volatile("" ::"v"(g), "v"(h), "v"(i), "v"(j), "v"(k), "v"(l));                         \
  }

#define FMA_256(sum, x)  _mm256_fmadd_ps(x, x, sum)
#define FMA_512(sum, x)  _mm512_fmadd_ps(x, x, sum)
#define INT8_256(sum, x) _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(sum, x), x))
#define VNNI_512(sum, x) _mm512_dpbusd_epi32(sum, x, x)
#define BF16_512(sum, x) _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)x)

DEFINE_LOOP(fma_256, "avx2,fma", __m256, _mm256_setzero_ps, FMA_256)
DEFINE_LOOP(fma_512, "avx512f", __m512, _mm512_setzero_ps, FMA_512)
DEFINE_LOOP(int8_256, "avx2", __m256i, _mm256_setzero_si256, INT8_256)
DEFINE_LOOP(vnni_512, "avx512f,avx512vnni", __m512i, _mm512_setzero_si512, VNNI_512)
/* Tiles of 16 rows of 64 bytes: four of sums, two of either side. A product is 16,384 operations,
 * so there are fewer of them. */
enum { FEWER = 64, TILE_OPS = 2 * 16 * 16 * 32 };
__attribute__((target("amx-tile,amx-bf16"))) static void amx_bf16(void) {
  static const struct {
    unsigned char palette, start, zeros[14];
    unsigned short row_bytes[16];
    unsigned char rows[16];
  } config = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
  _tile_loadconfig(&config);
  for (int n = 0; n < N_STEPS / FEWER * N_SUMS / 4; n++) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
}

/* Asks Linux for the tiles. */
static int have_amx(void) {
#if defined(__linux__)
  enum { ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18, BF16_AND_TILE = 1 << 22 | 1 << 24 };
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return 0;
  return (edx & BF16_AND_TILE) == BF16_AND_TILE &&
         syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
#else
  return 0;
#endif
}

DEFINE_LOOP(bf16_512, "avx512f,avx512bf16", __m512, _mm512_setzero_ps, BF16_512)
#endif

typedef struct peak {
  const char *name;
  int there, ops; /* of one instruction */
  void (*loop)(void);
} peak;

static void *pass(void *loop) {
  (*(void (**)(void))loop)();
  return NULL;
}

/* All threads run the loop; the time is from the first start to the last end. */
static double gops(peak *p, int n_threads) {
  double best = 1e9;
  for (int n = 0; n < N_PASSES; n++) {
    pthread_t threads[MAX_THREADS];
    double start = now();
    for (int t = 1; t < n_threads; t++)
      if (pthread_create(&threads[t], NULL, pass, &p->loop)) exit(1);
    p->loop();
    for (int t = 1; t < n_threads; t++) pthread_join(threads[t], NULL);
    double seconds = now() - start;
    if (seconds < best) best = seconds;
  }
  return 1e-9 * N_STEPS * N_SUMS * (double)p->ops * n_threads / best;
}

int main(int argc, char **argv) {
  int n_threads = argc == 2 ? atoi(argv[1]) : 0;
  if (n_threads < 1 || n_threads > MAX_THREADS) {
    fprintf(stderr, "usage: peaks THREADS\n");
    return 2;
  }
#if defined(__x86_64__)
  int wide = __builtin_cpu_supports("avx512f");
  peak peaks[] = {
      {"fma", !wide && __builtin_cpu_supports("fma"), 16, fma_256},
      {"fma", wide, 32, fma_512},
      {"int8", !wide && __builtin_cpu_supports("avx2"), 64, int8_256},
      {"int8", wide && __builtin_cpu_supports("avx512vnni"), 128, vnni_512},
      {"bf16", wide && __builtin_cpu_supports("avx512bf16"), 64, bf16_512},
      {"amx", have_amx(), TILE_OPS / FEWER, amx_bf16},
  };
  for (size_t i = 0; i < sizeof peaks / sizeof *peaks; i++)
    if (peaks[i].there) printf("%s %.1f\n", peaks[i].name, gops(&peaks[i], n_threads));
#endif
  return 0;
}
