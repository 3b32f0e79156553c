/* kernels_avx512_panels.h: panels of 16 rows as AVX-512 fills them; AMX's tiles read them too.
 * Layer 2. */
#ifndef LLM_KERNELS_AVX512_PANELS_H
#define LLM_KERNELS_AVX512_PANELS_H

#include "kernels_avx512.h"
#include "kernels_panels.h"

enum { STEPS = 8, PANELS_BYTES = 512 << 10 }; /* that are unpacked at a time */

/* A block of 16 rows: in each step four elements of every row, a dword a row. */
typedef struct panel_block {
  uint8_t quants[STEPS][4 * PANEL_ROWS];
  float scale[PANEL_ROWS], second[PANEL_ROWS]; /* second: the minimum, or Q6_K's other scale */
} panel_block;

/* 16 rows unpacked; `less` is taken off the quants, which are unsigned: 0, or the zero point. */
#define DECLARE_FILL(name, type)                                                                   \
  AVX512_SHARED void fill_##name##_avx512(const uint8_t *w, size_t n_blocks, int less, void *panel);
FOR_QUANTIZED_TYPES(DECLARE_FILL)

#endif
