/* kernels_panels.c: the loops around panels and tiles (see kernels_panels.h). Layer 2. */
#include "kernels_panels.h"

static size_t panels_for(const panel_kernels *k, size_t n_in) {
  size_t n = k->most_bytes / (n_in / QK * k->block_bytes + 1);
  return n < 2 ? 2 : min_size(n, MAX_PANELS);
}

size_t panels_bytes(const panel_kernels *k, size_t n_in) {
  return panels_for(k, n_in) * (n_in / QK) * k->block_bytes;
}

/* Tokens of the next tile, `most` or 2, of n_tok, of which `left` are left. What reaches past the
 * last token is moved up to end with it, as rows are; 4 tokens are 2 + 2, not 3 + 2. */
static size_t tile_tokens(size_t left, size_t n_tok, size_t most) {
  return left > 2 && n_tok >= most && !(left == 4 && most == 3) ? most : 2;
}

size_t panels_fill(const panel_kernels *k, llm_type type, const matmul_args *m, size_t r, size_t r1,
                   row_group *rows, char *scratch) {
  const size_t n_blocks = m->act->n_in / QK, row_bytes = row_bytes_of(type, m->act->n_in);
  const size_t most = panels_for(k, m->act->n_in);
  size_t n = 0;
  for (; n < most && r + n * k->n_rows < r1; n++) {
    rows[n] = group_at(r + n * k->n_rows, r1, m->n_out, k->n_rows);
    k->fill((const uint8_t *)m->w + rows[n].first * row_bytes, n_blocks, k->less,
            scratch + n * n_blocks * k->block_bytes);
  }
  return n;
}

void panels_matmul(const panel_kernels *k, llm_type type, const matmul_args *m, size_t r0,
                   size_t r1, char *scratch) {
  const size_t n_tok = m->act->n_tok, n_in = m->act->n_in, n_blocks = n_in / QK;
  const size_t panel_bytes = n_blocks * k->block_bytes, most = panels_for(k, n_in);
  tile_args p = {.n_blocks = n_blocks, .ldy = m->ldy, .zero_point = zero_point(type)};
  for (size_t r = r0, n; r < r1; r += n * k->n_rows) {
    row_group rows[MAX_PANELS];
    n = panels_fill(k, type, m, r, r1, rows, scratch);
    for (size_t t = 0, step; t < n_tok; t += step) {
      step = tile_tokens(n_tok - t, n_tok, k->n_tok);
      const size_t first = min_size(t, n_tok - step);
      p.a = m->act->q + first * n_blocks;
      p.y = m->y + first * m->ldy;
      p.wide = scratch + most * panel_bytes;
      if (k->widen) k->widen(p.a, step * n_blocks, scratch + most * panel_bytes);
      for (size_t i = 0; i < n; i += 2) {
        for (size_t j = 0; j < 2; j++) {
          const size_t panel = min_size(i + j, n - 1);
          p.w[j] = scratch + panel * panel_bytes;
          p.rows[j] = rows[panel];
        }
        (step > 2 ? k->multiply : k->multiply_two)(&p);
      }
    }
  }
}
