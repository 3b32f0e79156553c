/* kernels_avx512_attention.c: attention of tokens in a row by AVX-512, a token a lane. Layer 2.
 * What a lane adds up is what kernels.h says of one token, in its order; nothing crosses lanes but
 * queries on their way in. Keys and values are expanded once for all heads and tokens, to floats;
 * keys of Q8_0 to integers of 16 bits. */
#include "kernels.h"

#if defined(__x86_64__)
#include "kernels_avx512.h"

enum {
  AT_ONCE = 4,  /* positions that share a load of queries */
  TOGETHER = 8, /* tokens that share a load of values */
};

typedef struct tile {
  const attention_tile *x;
  float *rows;     /* (ATTENTION_ROWS, head_dim) of keys (int16_t if Q8_0), then of values */
  float *q;        /* (n_q, head_dim, 16); beside Q8_0 pairs of integers (n_q, head_dim / 2, 16) */
  float *scales;   /* of rows in Q8_0 (ATTENTION_ROWS, head_dim / 32) */
  float *q_scales; /* of queries beside them (n_q, head_dim / 32, 16) */
  float *shares;   /* p times the scales of values (head_dim / 32, ATTENTION_ROWS, 16) */
  float *scores;   /* (n_q, n_all, 16), then p */
  size_t apart;    /* of scores, from head to head */
  float *out;      /* (n_q, 16, head_dim) */
} tile;

/* num_expf of 16 numbers, none above 0. */
AVX512_INLINE __m512 expf16(__m512 x) {
  const __m512 magic = _mm512_set1_ps(EXPF_MAGIC);
  __m512 shifted = _mm512_fmadd_ps(x, _mm512_set1_ps(EXPF_LOG2E), magic);
  __m512 n = _mm512_sub_ps(shifted, magic);
  __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-EXPF_LN2_HIGH), x);
  r = _mm512_fmadd_ps(n, _mm512_set1_ps(-EXPF_LN2_LOW), r);
  __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(EXPF_P5), r, _mm512_set1_ps(EXPF_P4));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXPF_P3));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXPF_P2));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXPF_P1));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXPF_P0));
  __m512 y = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1));
  __m512i bits = _mm512_sub_epi32(_mm512_castps_si512(shifted), _mm512_castps_si512(magic));
  y = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(y), _mm512_slli_epi32(bits, 23)));
  y = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(EXPF_MIN), _CMP_GE_OQ), y);
  return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x);
}

/* The tokens that see position pos. */
ALWAYS_INLINE __mmask16 seen_by(const tile *t, size_t pos) {
  const size_t n = t->x->first.n_pos;
  return (__mmask16)(pos < n ? 0xffff : 0xffff << (pos - n + 1));
}

/* The row that follows ATTENTION_ROWS further on, while these are multiplied. */
AVX512_INLINE void ask_ahead(const char *row, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64)
    _mm_prefetch(row + ATTENTION_ROWS * bytes + i, _MM_HINT_T1);
}

/* What stands in the rows that are missing from the last group of four makes scores that nothing
 * reads. */

/* n rows from src on as floats. */
AVX512 static void expand_floats(const tile *t, llm_type type, const void *src, size_t bytes,
                                 size_t n) {
  const size_t d = t->x->first.head_dim;
  for (size_t i = 0; i < n; i++) {
    const char *row = (const char *)src + i * bytes;
    ask_ahead(row, bytes);
    for (size_t k = 0; k < d; k += LANES)
      _mm512_storeu_ps(t->rows + i * d + k,
                       type == LLM_TYPE_F32 ? _mm512_loadu_ps((const float *)row + k)
                                            : _mm512_cvtph_ps(_mm256_loadu_si256(
                                                  (const __m256i *)((const uint16_t *)row + k))));
  }
}

/* n rows of Q8_0 from src on: their scales, and the integers as floats or in 16 bits. */
AVX512 static void expand_q8_0(const tile *t, const void *src, size_t bytes, size_t n,
                               int as_floats) {
  const size_t n_blocks = t->x->first.head_dim / QK;
  int16_t *integers = (int16_t *)t->rows;
  float *floats = t->rows, *scale = t->scales;
  for (size_t i = 0; i < n; i++) {
    const char *row = (const char *)src + i * bytes;
    const block_q8_0 *b = (const block_q8_0 *)row;
    ask_ahead(row, bytes);
    for (size_t k = 0; k < n_blocks; k++, b++) {
      *scale++ = _cvtsh_ss(b->d);
      for (size_t at = 0; !as_floats && at < QK; at += 16, integers += 16)
        _mm256_storeu_si256((__m256i *)integers, _mm256_cvtepi8_epi16(load16(b->q + at)));
      for (size_t at = 0; as_floats && at < QK; at += 8, floats += 8)
        _mm256_storeu_ps(floats, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(
                                     _mm_loadl_epi64((const __m128i *)(b->q + at)))));
    }
  }
}

/* Pairs of integers, a token a lane, and scales. */
static void round_queries(const tile *t) {
  const attention_args *a = &t->x->first;
  const size_t n_blocks = a->n_q * a->head_dim / QK;
  int16_t q[QK];
  memset(t->q, 0, n_blocks * QK / 2 * LANES * sizeof *t->q);
  memset(t->q_scales, 0, n_blocks * LANES * sizeof *t->q_scales);
  for (size_t i = 0; i < t->x->n_tok; i++) {
    float *pair = t->q + i;
    for (size_t b = 0; b < n_blocks; b++) {
      t->q_scales[b * LANES + i] = round_query_avx2(a->q + i * t->x->q_apart + b * QK, q);
      for (size_t k = 0; k < QK; k += 2, pair += LANES) memcpy(pair, q + k, sizeof *pair);
    }
  }
}

static void transpose_queries(const tile *t) {
  const attention_args *a = &t->x->first;
  memset(t->q, 0, a->n_q * a->head_dim * LANES * sizeof *t->q);
  for (size_t i = 0; i < t->x->n_tok; i++)
    for (size_t k = 0; k < a->n_q * a->head_dim; k++)
      t->q[k * LANES + i] = a->q[i * t->x->q_apart + k];
}

/* ---- scores ---- */

/* Lanes 0 and 8, added, of the dots of AT_ONCE keys with q; from k and q one further on, lanes 1
 * and 9, and so on. */
AVX512_INLINE void dot_lanes(const float *k, size_t d, const float *q, __m512 out[AT_ONCE]) {
  const float *end = k + d;
  __m512 sum[2][AT_ONCE];
  UNROLL
  for (int i = 0; i < AT_ONCE; i++) sum[0][i] = sum[1][i] = _mm512_setzero_ps();
  for (; k < end; k += LANES, q += LANES * LANES) {
    UNROLL
    for (size_t half = 0; half < 2; half++) {
      const __m512 of_tokens = _mm512_loadu_ps(q + 8 * half * LANES);
      UNROLL
      for (size_t i = 0; i < AT_ONCE; i++)
        sum[half][i] =
            _mm512_fmadd_ps(_mm512_set1_ps(k[i * d + 8 * half]), of_tokens, sum[half][i]);
    }
  }
  UNROLL
  for (int i = 0; i < AT_ONCE; i++) out[i] = _mm512_add_ps(sum[0][i], sum[1][i]);
}

/* Positions from to `to` of a head; lanes are added as kernels.h has it, the upper half to the
 * lower.
 */
AVX512_INLINE void head_scores(const tile *t, const float *q, size_t from, size_t to, float *out) {
  const size_t d = t->x->first.head_dim;
  const __m512 scale = _mm512_set1_ps(t->x->first.scale);
  const float *k = t->rows;
  out += from * LANES;
  for (; from < to; from += AT_ONCE, k += AT_ONCE * d) {
    __m512 sum[4][AT_ONCE];
    for (size_t lane = 0; lane < 8; lane++) {
      __m512 more[AT_ONCE], *all = sum[lane % 4];
      dot_lanes(k + lane, d, q + lane * LANES, more);
      UNROLL
      for (size_t i = 0; i < AT_ONCE; i++)
        all[i] = lane < 4 ? more[i] : _mm512_add_ps(all[i], more[i]);
    }
    for (size_t i = 0; i < AT_ONCE; i++, out += LANES) {
      const __m512 even = _mm512_add_ps(sum[0][i], sum[2][i]);
      const __m512 odd = _mm512_add_ps(sum[1][i], sum[3][i]);
      _mm512_storeu_ps(out, _mm512_mul_ps(_mm512_add_ps(even, odd), scale));
    }
  }
}

/* The same of keys in Q8_0: products of integers, block by block. */
AVX512_INLINE void head_scores_q8_0(const tile *t, size_t h, size_t from, size_t to, float *out) {
  const size_t d = t->x->first.head_dim, n_blocks = d / QK;
  const __m512 scale = _mm512_set1_ps(t->x->first.scale);
  const int16_t *k = (const int16_t *)t->rows;
  const float *key_scale = t->scales;
  out += from * LANES;
  for (; from < to; from += AT_ONCE, k += AT_ONCE * d, key_scale += AT_ONCE * n_blocks) {
    __m512 y[AT_ONCE];
    UNROLL
    for (int i = 0; i < AT_ONCE; i++) y[i] = _mm512_setzero_ps();
    for (size_t b = 0; b < n_blocks; b++) {
      const float *q = t->q + (h * n_blocks + b) * QK / 2 * LANES;
      const __m512 of_tokens = _mm512_loadu_ps(t->q_scales + (h * n_blocks + b) * LANES);
      __m512i sum[2][AT_ONCE];
      UNROLL
      for (int i = 0; i < AT_ONCE; i++) sum[0][i] = sum[1][i] = _mm512_setzero_si512();
      for (size_t pair = 0; pair < QK / 2; pair += 2) {
        UNROLL
        for (size_t j = 0; j < 2; j++, q += LANES) {
          const __m512i of_pair = _mm512_loadu_si512(q);
          UNROLL
          for (size_t i = 0; i < AT_ONCE; i++)
            sum[j][i] = _mm512_dpwssd_epi32(
                sum[j][i], of_pair,
                _mm512_set1_epi32(load_i32(k + i * d + b * QK + 2 * (pair + j))));
        }
      }
      UNROLL
      for (size_t i = 0; i < AT_ONCE; i++) {
        const __m512 by = _mm512_mul_ps(_mm512_set1_ps(key_scale[i * n_blocks + b]), of_tokens);
        const __m512i dot = _mm512_add_epi32(sum[0][i], sum[1][i]);
        y[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), by, y[i]);
      }
    }
    UNROLL
    for (int i = 0; i < AT_ONCE; i++, out += LANES)
      _mm512_storeu_ps(out, _mm512_mul_ps(y[i], scale));
  }
}

/* ---- softmax ---- */

/* p = exp(score - max), 0 where a token does not see; the sums, position by position in 16 lanes as
 * kernels.h has them, are made in as many rows. */
AVX512_INLINE void head_softmax(const tile *t, float *p, float *max, float *sum) {
  __m512 most = _mm512_set1_ps(-INFINITY), rows[LANES];
  memset(rows, 0, sizeof rows);
  for (size_t pos = 0; pos < t->x->n_all; pos++)
    most = _mm512_mask_max_ps(most, seen_by(t, pos), most, _mm512_loadu_ps(p + pos * LANES));
  for (size_t pos = 0; pos < t->x->n_all; pos++, p += LANES) {
    __m512 e = expf16(_mm512_sub_ps(_mm512_loadu_ps(p), most));
    e = _mm512_maskz_mov_ps(seen_by(t, pos), e);
    _mm512_storeu_ps(p, e);
    rows[pos % LANES] = _mm512_add_ps(rows[pos % LANES], e);
  }
  for (size_t n = LANES / 2; n; n /= 2)
    for (size_t i = 0; i < n; i++) rows[i] = _mm512_add_ps(rows[i], rows[i + n]);
  _mm512_storeu_ps(max, most);
  _mm512_storeu_ps(sum, rows[0]);
}

/* ---- values ---- */

/* n positions, whose values begin at v, added to 32 elements of n_tok tokens. */
AVX512_INLINE void add_values(const int n_tok, size_t width, size_t n, const float *v,
                              const float *p, float *out) {
  __m512 sum[TOGETHER][2];
  UNROLL
  for (size_t i = 0; i < (size_t)n_tok; i++) {
    sum[i][0] = _mm512_loadu_ps(out + i * width);
    sum[i][1] = _mm512_loadu_ps(out + i * width + LANES);
  }
  for (size_t pos = 0; pos < n; pos++, p += LANES, v += width) {
    const __m512 low = _mm512_loadu_ps(v), high = _mm512_loadu_ps(v + LANES);
    UNROLL
    for (int i = 0; i < n_tok; i++) {
      const __m512 share = _mm512_set1_ps(p[i]);
      sum[i][0] = _mm512_fmadd_ps(share, low, sum[i][0]);
      sum[i][1] = _mm512_fmadd_ps(share, high, sum[i][1]);
    }
  }
  UNROLL
  for (size_t i = 0; i < (size_t)n_tok; i++) {
    _mm512_storeu_ps(out + i * width, sum[i][0]);
    _mm512_storeu_ps(out + i * width + LANES, sum[i][1]);
  }
}

/* p of n positions times the scales of their values' blocks. */
AVX512 static void scale_shares(const tile *t, const float *p, size_t n) {
  const size_t n_blocks = t->x->first.head_dim / QK;
  for (size_t i = 0; i < n; i++, p += LANES)
    for (size_t b = 0; b < n_blocks; b++)
      _mm512_storeu_ps(
          t->shares + (b * ATTENTION_ROWS + i) * LANES,
          _mm512_mul_ps(_mm512_loadu_ps(p), _mm512_set1_ps(t->scales[i * n_blocks + b])));
}

/* What TOGETHER tokens see all, then what each sees alone. p: of the first position, `apart`
 * floats from one block of values to the next (0: the same of all). */
AVX512_INLINE void head_values(const tile *t, const float *p, size_t apart, size_t from, size_t to,
                               float *out) {
  const size_t width = t->x->first.head_dim;
  for (size_t token = 0; token < t->x->n_tok; token += TOGETHER, out += TOGETHER * width) {
    const size_t all_see = min_size(t->x->first.n_pos + token, to);
    const size_t common = all_see > from ? all_see - from : 0;
    const float *of_tokens = p + token;
    for (size_t d = 0; d < width; d += 2 * LANES, of_tokens += apart) {
      const float *v = t->rows + d;
      add_values(TOGETHER, width, common, v, of_tokens, out + d);
      v += common * width;
      for (size_t i = 1; i < TOGETHER; i++) {
        const size_t see = min_size(t->x->first.n_pos + token + i, to) - from;
        if ((ptrdiff_t)see > (ptrdiff_t)common)
          add_values(1, width, see - common, v, of_tokens + common * LANES + i,
                     out + i * width + d);
      }
    }
  }
}

/* ---- the whole ---- */

AVX512 static void chunk_scores(const tile *t, size_t from, size_t to) {
  const attention_args *a = &t->x->first;
  const char *k = (const char *)a->k + from * a->k_bytes;
  if (a->k_type == LLM_TYPE_Q8_0)
    expand_q8_0(t, k, a->k_bytes, to - from, 0);
  else
    expand_floats(t, a->k_type, k, a->k_bytes, to - from);
  for (size_t h = 0; h < a->n_q; h++) {
    float *out = t->scores + h * t->apart;
    if (a->k_type == LLM_TYPE_Q8_0)
      head_scores_q8_0(t, h, from, to, out);
    else
      head_scores(t, t->q + h * a->head_dim * LANES, from, to, out);
  }
}

AVX512 static void chunk_values(const tile *t, size_t from, size_t to) {
  const attention_args *a = &t->x->first;
  const char *v = (const char *)a->v + from * a->v_bytes;
  const int has_scales = a->v_type == LLM_TYPE_Q8_0;
  if (has_scales)
    expand_q8_0(t, v, a->v_bytes, to - from, 1);
  else
    expand_floats(t, a->v_type, v, a->v_bytes, to - from);
  for (size_t h = 0; h < a->n_q; h++) {
    const float *p = t->scores + h * t->apart + from * LANES;
    if (has_scales) scale_shares(t, p, to - from);
    head_values(t, has_scales ? t->shares : p, has_scales ? ATTENTION_ROWS * LANES : 0, from, to,
                t->out + h * LANES * a->head_dim);
  }
}

AVX512 static void few_heads(const tile *t) {
  const attention_args *a = &t->x->first;
  const size_t d = a->head_dim, n_all = t->x->n_all;
  float max[ATTENTION_HEADS][LANES], sum[ATTENTION_HEADS][LANES];
  if (a->k_type == LLM_TYPE_Q8_0)
    round_queries(t);
  else
    transpose_queries(t);
  memset(t->out, 0, a->n_q * LANES * d * sizeof *t->out);
  for (size_t from = 0, to; from < n_all; from = to) {
    to = min_size(from + ATTENTION_ROWS, n_all);
    chunk_scores(t, from, to);
  }
  for (size_t h = 0; h < a->n_q; h++) head_softmax(t, t->scores + h * t->apart, max[h], sum[h]);
  for (size_t from = 0, to; from < n_all; from = to) {
    to = min_size(from + ATTENTION_ROWS, n_all);
    chunk_values(t, from, to);
  }
  for (size_t i = 0, at = 0; i < t->x->n_tok; i++, at += t->x->out_apart)
    for (size_t h = 0; h < a->n_q; h++) {
      a->max[at + h] = max[h][i];
      a->sum[at + h] = sum[h][i];
      memcpy(a->out + at + h * d, t->out + (h * LANES + i) * d, d * sizeof *a->out);
    }
  LEAVE_AVX();
}

/* A few heads at a time, so that the scratch is the same for any number. */
static void attention_tile_avx512(const attention_tile *all) {
  attention_tile x = *all;
  const size_t d = x.first.head_dim, n_rows = (x.n_all + AT_ONCE - 1) / AT_ONCE * AT_ONCE;
  tile t = {.x = &x, .rows = x.first.scores, .apart = n_rows * LANES};
  t.q = t.rows + ATTENTION_ROWS * d;
  /* Queries in 16 bits take half of the room of floats, which are read no more beside values. */
  t.shares = t.q;
  t.scales = t.q + ATTENTION_HEADS * LANES / 2 * d;
  t.q_scales = t.scales + d;
  t.out = t.q + ATTENTION_HEADS * LANES * d;
  t.scores = t.out + ATTENTION_HEADS * LANES * d;
  for (size_t left = x.first.n_q; left; left -= x.first.n_q) {
    x.first.n_q = min_size(left, ATTENTION_HEADS);
    few_heads(&t);
    x.first.q += x.first.n_q * d;
    x.first.out += x.first.n_q * d;
    x.first.max += x.first.n_q;
    x.first.sum += x.first.n_q;
  }
}

AVX512_SHARED void kernels_set_avx512_attention(kernels *k) {
  k->attention_tile = attention_tile_avx512;
}
#endif
