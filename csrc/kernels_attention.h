/* kernels_attention.h: what the attention of every vector instruction set shares: chunks of
 * positions that stay in L1 while all query heads pass, some side by side. Layer 2. */
#ifndef LLM_KERNELS_ATTENTION_H
#define LLM_KERNELS_ATTENTION_H

#include <math.h>

#include "kernels_simd.h"

enum {
  CHUNK = 64, /* positions */
  SIDE = 3    /* query heads side by side */
};

typedef struct chunk { /* positions from `from` to `to` */
  const attention_args *a;
  size_t from, to;
} chunk;

typedef struct shares { /* of n_q heads from h on: p[j * stride + i] of position from + i */
  const float *p;
  size_t stride, h;
} shares;

/* Adds the chunk to the elements of out from d on, one at a time: those behind the last whole
 * register. A row of Q8_0 has none. */
ALWAYS_INLINE void add_tail(llm_type type, size_t n_q, const chunk *c, const shares *s,
                            size_t first) {
  const attention_args *a = c->a;
  for (size_t j = 0; j < n_q; j++)
    for (size_t d = first; d < a->head_dim; d++) {
      float *out = a->out + (s->h + j) * a->head_dim + d, sum = c->from ? *out : 0;
      for (size_t pos = c->from; pos < c->to; pos++) {
        const char *row = (const char *)a->v + pos * a->v_bytes;
        float v =
            type == LLM_TYPE_F16 ? f16_to_f32(((const uint16_t *)row)[d]) : ((const float *)row)[d];
        sum = fmaf(s->p[j * s->stride + pos - c->from], v, sum);
      }
      *out = sum;
    }
}

/* of(type, n heads, c, h) for all heads h. */
#define FOR_HEADS(of)                                                                              \
  do {                                                                                             \
    size_t h = 0;                                                                                  \
    for (; h + SIDE <= c->a->n_q; h += SIDE) of(type, SIDE, c, h);                                 \
    if (c->a->n_q - h == 2) of(type, 2, c, h);                                                     \
    if (c->a->n_q - h == 1) of(type, 1, c, h);                                                     \
  } while (0)

/* of(type, c) with the type as a constant. */
#define FOR_TYPES(type, of, c)                                                                     \
  if (type == LLM_TYPE_F16)                                                                        \
    of(LLM_TYPE_F16, c);                                                                           \
  else if (type == LLM_TYPE_Q8_0)                                                                  \
    of(LLM_TYPE_Q8_0, c);                                                                          \
  else                                                                                             \
    of(LLM_TYPE_F32, c);

#endif
