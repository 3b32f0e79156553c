/* emulate_amx.h: AMX's tiles in memory, for machines and sanitizers that cannot see into them: what
 * kernels_amx.c and train_gemm_amx.c use, after Intel SDM volume 2. Ends the program where a
 * processor would raise a fault or where tiles of one configuration meet another. */
#ifndef LLM_TEST_EMULATE_AMX_H
#define LLM_TEST_EMULATE_AMX_H

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_TILES = 8, TILE_ROWS = 16, TILE_BYTES = 64 };

typedef struct tile_shapes { /* of LDTILECFG */
  uint8_t palette, start_row, zeros[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
} tile_shapes;

static _Thread_local tile_shapes shapes; /* palette 0: not configured */
static _Thread_local uint8_t tiles[N_TILES][TILE_ROWS][TILE_BYTES];

#define AMX_CHECK(cond)                                                                            \
  do {                                                                                             \
    if (!(cond)) fprintf(stderr, "%s:%d: tiles: %s\n", __FILE__, __LINE__, #cond), abort();        \
  } while (0)

static inline void tiles_configure(const void *config) {
  AMX_CHECK(!shapes.palette); /* the last one was released */
  memcpy(&shapes, config, sizeof shapes);
  AMX_CHECK(shapes.palette == 1 && !shapes.start_row);
  for (int i = 0; i < 16; i++) {
    AMX_CHECK(shapes.row_bytes[i] <= (i < N_TILES ? TILE_BYTES : 0));
    AMX_CHECK(shapes.rows[i] <= (i < N_TILES ? TILE_ROWS : 0));
  }
}

static inline void tiles_release(void) {
  AMX_CHECK(shapes.palette);
  memset(&shapes, 0, sizeof shapes);
}

static inline void tile_clear(int t) {
  AMX_CHECK(shapes.palette);
  memset(tiles[t], 0, sizeof tiles[t]);
}

static inline void tile_load(int t, const void *from, size_t step) {
  tile_clear(t);
  for (size_t r = 0; r < shapes.rows[t]; r++)
    memcpy(tiles[t][r], (const char *)from + r * step, shapes.row_bytes[t]);
}

static inline void tile_store(int t, void *to, size_t step) {
  AMX_CHECK(shapes.palette);
  for (size_t r = 0; r < shapes.rows[t]; r++)
    memcpy((char *)to + r * step, tiles[t][r], shapes.row_bytes[t]);
}

/* c (M, N) += a (M, K) b: b's row k has the elements of each column that go with dword k of a. */
static inline void tiles_fit(int c, int a, int b) {
  AMX_CHECK(shapes.palette && c != a && c != b && a != b);
  AMX_CHECK(shapes.rows[c] == shapes.rows[a] && shapes.row_bytes[c] == shapes.row_bytes[b]);
  AMX_CHECK(shapes.row_bytes[a] == 4 * shapes.rows[b]);
}

static inline void tile_dot_bytes(int c, int a, int b) {
  tiles_fit(c, a, b);
  for (int m = 0; m < shapes.rows[c]; m++) {
    int32_t sums[TILE_BYTES / 4];
    memcpy(sums, tiles[c][m], sizeof sums);
    for (int k = 0; k < shapes.row_bytes[a]; k++)
      for (int n = 0; n < TILE_BYTES / 4; n++)
        sums[n] += (int8_t)tiles[a][m][k] * (int8_t)tiles[b][k / 4][4 * n + k % 4];
    memcpy(tiles[c][m], sums, shapes.row_bytes[c]);
  }
}

static inline float tile_bf16(const uint8_t *bytes) {
  const uint32_t bits = (uint32_t)bytes[1] << 24 | (uint32_t)bytes[0] << 16;
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

/* Even and odd elements by themselves, then both, then what is there. */
static inline void tile_dot_bf16(int c, int a, int b) {
  tiles_fit(c, a, b);
  for (int m = 0; m < shapes.rows[c]; m++)
    for (int n = 0; n < shapes.row_bytes[c]; n += 4) {
      float sum, parts[2] = {0, 0};
      memcpy(&sum, &tiles[c][m][n], sizeof sum);
      for (int k = 0; k < shapes.row_bytes[a] / 2; k++)
        parts[k & 1] = fmaf(tile_bf16(&tiles[a][m][2 * k]),
                            tile_bf16(&tiles[b][k / 2][n + k % 2 * 2]), parts[k & 1]);
      sum += parts[0] + parts[1];
      memcpy(&tiles[c][m][n], &sum, sizeof sum);
    }
}

#undef _tile_loadconfig /* these may be macros already */
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbssd
#undef _tile_dpbf16ps
#define _tile_loadconfig tiles_configure
#define _tile_release    tiles_release
#define _tile_zero       tile_clear
#define _tile_loadd      tile_load
#define _tile_stored     tile_store
#define _tile_dpbssd     tile_dot_bytes
#define _tile_dpbf16ps   tile_dot_bf16

#endif
