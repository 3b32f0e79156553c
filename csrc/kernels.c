/* kernels.c: which kernel sets this machine can run. Layer 2. The tables are filled once, each
 * starting as a copy of the slower one. */
#include "kernels.h"

#include <pthread.h>
#include <string.h>

#include "cpu.h"
#include "error.h"

enum { MAX_SETS = 4 };

static kernels sets[MAX_SETS];
static const char *names[MAX_SETS + 1]; /* ended by NULL */
static int n_sets;
static pthread_once_t filled = PTHREAD_ONCE_INIT;

static void add_set(const char *name, void (*set)(kernels *)) {
  kernels *k = &sets[n_sets];
  if (n_sets) *k = sets[n_sets - 1];
  set(k);
  k->name = name;
  names[n_sets++] = name;
}

static void fill(void) {
  add_set("scalar", kernels_set_scalar);
#if defined(__x86_64__)
  unsigned features = cpu_features();
  if (features & CPU_AVX2) add_set("avx2", kernels_set_avx2);
  if (features & CPU_AVX512) add_set("avx512", kernels_set_avx512);
  if (features & CPU_AMX) add_set("amx", kernels_set_amx);
#elif defined(__aarch64__)
  if (cpu_features() & CPU_DOTPROD) add_set("neon", kernels_set_neon);
#endif
}

const kernels *kernels_find(const char *name) {
  pthread_once(&filled, fill);
  if (!name) return &sets[n_sets - 1];
  for (int i = 0; i < n_sets; i++)
    if (strcmp(name, names[i]) == 0) return &sets[i];
  return NULL;
}

llm_status llm_kernels_check(const char *name, llm_error *err) {
  if (kernels_find(name)) return error_clear(err);
  char here[64] = "";
  for (int i = 0; i < n_sets; i++) strcat(strcat(here, i ? ", " : ""), names[i]);
  return error_set(err, LLM_ERR_ARG,
                   "kernel set \"%s\" is unknown or not on this processor, which has %s", name,
                   here);
}

const char *const *kernels_available(void) {
  pthread_once(&filled, fill);
  return names;
}
