/* kernels_panels.h: quantized weights times many tokens, what is the same for every vector
 * instruction set. Layer 2.
 *
 * Rows are unpacked, as many at a time as a register has lanes, into panels, one form for several
 * types; tiles of two panels and a few tokens are multiplied. The file of an instruction set says
 * how a panel is filled and a tile multiplied. */
#ifndef LLM_KERNELS_PANELS_H
#define LLM_KERNELS_PANELS_H

#include "kernels_simd.h"

enum { MAX_PANELS = 8 };

/* Two panels (the last odd one meets itself) and the tokens of the tile. */
typedef struct tile_args {
  const void *w[2];
  const act_block *a; /* of the first token */
  const void *wide;   /* what panel_kernels.widen made of the tokens */
  row_group rows[2];
  size_t n_blocks, ldy;
  int zero_point; /* of the weights */
  float *y;
} tile_args;

/* Rows unpacked into a panel, `less` taken off each quant. */
typedef void (*panel_fill)(const uint8_t *rows, size_t n_blocks, int less, void *panel);

typedef struct panel_kernels {
  size_t n_rows, block_bytes; /* of a panel; of n_rows rows' block in it */
  size_t most_bytes;          /* unpacked at a time, where two panels are no more */
  size_t n_tok;               /* of a tile, 2 at least */
  int less;
  panel_fill fill;
  void (*widen)(const act_block *a, size_t n, void *wide); /* or NULL */
  void (*multiply)(const tile_args *p), (*multiply_two)(const tile_args *p);
} panel_kernels;

/* Bytes of scratch for panels; what widen writes lies behind. */
size_t panels_bytes(const panel_kernels *k, size_t n_in);
/* Fills panels one behind another with the rows from r on, as many as fit; how many it filled. */
size_t panels_fill(const panel_kernels *k, llm_type type, const matmul_args *m, size_t r, size_t r1,
                   row_group *rows, char *scratch);
/* n_out is n_rows at least, n_tok 2 at least. */
void panels_matmul(const panel_kernels *k, llm_type type, const matmul_args *m, size_t r0,
                   size_t r1, char *scratch);

#endif
