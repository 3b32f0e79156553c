/* tokenizer_train.c: learning merges (Sennrich et al. 2016). Trainer; depends on pretokenize, hash.
 * Distinct pieces ("words") are counted first; then their symbols lie in one array, a linked list
 * for each word, and every position hangs in the list of the pair that begins there. A merge visits
 * exactly the places where its pair stands and moves their neighbours to other lists, so learning
 * costs O(places log pairs) however long a word is. */
#include "tokenizer_train.h"

#include <inttypes.h>
#include <stdlib.h>

#include "error.h"
#include "hash.h"
#include "pretokenize.h"

#define NONE UINT32_MAX

enum {
  LONGEST_TOKEN = 256, /* bytes; what is longer is a run of one character or a copied line */
  LEAST_COUNT = 2      /* a pair that occurs once is no regularity */
};

typedef struct word {
  uint64_t offset, count; /* where in the text; how often */
  uint64_t head;          /* its first 8 bytes, most often all: the text is not looked at again */
  uint32_t n_bytes, hash;
} word;

typedef struct position { /* one symbol of one word; NONE ends every list */
  int32_t id;
  uint32_t word;
  uint32_t prev, next;           /* symbols of the word */
  uint32_t pair;                 /* of this symbol and the next; NONE at the end of a word */
  uint32_t list_prev, list_next; /* positions of that pair */
} position;

typedef struct pair {
  uint64_t ids;         /* left << 32 | right */
  uint64_t count;       /* in the whole text */
  uint32_t first, last; /* its positions, in rising order */
} pair;

typedef struct candidate {
  uint64_t count, ids; /* the count may have fallen since */
  uint32_t pair;
} candidate;

typedef struct learner {
  const uint8_t *text;
  word *words;
  uint32_t *word_slots; /* index + 1, 0 is free; a power of two, at most half full */
  size_t n_words, words_capacity, n_word_slots;
  position *positions;
  size_t n_positions; /* bytes of all words */
  size_t most_bytes;  /* of them */
  pair *pairs;
  uint32_t *pair_slots; /* like word_slots */
  size_t n_pairs, pairs_capacity, n_pair_slots;
  candidate *heap; /* the best first */
  size_t n_heap, heap_capacity;
  uint32_t *token_bytes; /* of what merge m makes: its length */
  size_t n_merges, token_capacity;
  llm_status failed; /* sticky, looked at once a step: LLM_ERR_NOMEM, or _ARG: too many pairs */
} learner;

/* ---- growing ---- */

/* Room for one more element; 0: out of memory. */
static int make_room(learner *l, void **array, size_t *capacity, size_t n, size_t each) {
  if (n < *capacity) return 1;
  size_t wanted = *capacity ? *capacity * 2 : 1024;
  void *grown = wanted <= SIZE_MAX / each ? realloc(*array, wanted * each) : NULL;
  if (!grown) {
    l->failed = LLM_ERR_NOMEM;
    return 0;
  }
  *array = grown;
  *capacity = wanted;
  return 1;
}

/* An empty table of twice the slots in place of the old one; the caller fills it again. */
static int double_slots(learner *l, uint32_t **slots, size_t *n_slots) {
  size_t wanted = *n_slots ? *n_slots * 2 : 4096;
  uint32_t *grown = calloc(wanted, sizeof *grown);
  if (!grown) {
    l->failed = LLM_ERR_NOMEM;
    return 0;
  }
  free(*slots);
  *slots = grown;
  *n_slots = wanted;
  return 1;
}

/* ---- words ---- */

static uint32_t *word_slot(const learner *l, const word *key) {
  size_t mask = l->n_word_slots - 1, i = key->hash & mask;
  for (; l->word_slots[i]; i = (i + 1) & mask) {
    const word *other = &l->words[l->word_slots[i] - 1];
    if (other->head != key->head || other->n_bytes != key->n_bytes || other->hash != key->hash)
      continue;
    if (key->n_bytes <= 8 ||
        memcmp(l->text + other->offset + 8, l->text + key->offset + 8, key->n_bytes - 8) == 0)
      break;
  }
  return &l->word_slots[i];
}

/* Forgets the rarest words until half of the room is free: those seen once, then twice ... */
static void forget_rare_words(learner *l) {
  for (uint64_t least = 2; l->n_positions > l->most_bytes / 2; least++) {
    size_t n_kept = 0;
    l->n_positions = 0;
    for (size_t i = 0; i < l->n_words; i++) {
      if (l->words[i].count < least) continue;
      l->n_positions += l->words[i].n_bytes;
      l->words[n_kept++] = l->words[i];
    }
    l->n_words = n_kept;
  }
  memset(l->word_slots, 0, l->n_word_slots * sizeof *l->word_slots);
  for (size_t i = 0; i < l->n_words; i++) *word_slot(l, &l->words[i]) = (uint32_t)i + 1;
}

/* Counts one occurrence. */
static void add_word(learner *l, uint64_t offset, size_t n_bytes) {
  if (n_bytes > l->most_bytes / 2) return; /* one such word would drive out the rest */
  if (n_bytes > l->most_bytes - l->n_positions) forget_rare_words(l);
  if (l->n_words * 2 >= l->n_word_slots) {
    if (!double_slots(l, &l->word_slots, &l->n_word_slots)) return;
    for (size_t i = 0; i < l->n_words; i++) *word_slot(l, &l->words[i]) = (uint32_t)i + 1;
  }
  const uint8_t *bytes = l->text + offset;
  word key = {offset, 0, key_head(bytes, n_bytes), (uint32_t)n_bytes,
              (uint32_t)hash_bytes(bytes, n_bytes)};
  uint32_t *slot = word_slot(l, &key);
  if (!*slot) {
    if (!make_room(l, (void **)&l->words, &l->words_capacity, l->n_words, sizeof key)) return;
    l->words[l->n_words++] = key;
    *slot = (uint32_t)l->n_words;
    l->n_positions += n_bytes;
  }
  l->words[*slot - 1].count++;
}

/* ---- pairs ---- */

static uint32_t *pair_slot(const learner *l, uint64_t ids) {
  size_t mask = l->n_pair_slots - 1, i = (size_t)hash_mix(0, ids) & mask;
  while (l->pair_slots[i] && l->pairs[l->pair_slots[i] - 1].ids != ids) i = (i + 1) & mask;
  return &l->pair_slots[i];
}

/* The index of a pair, new or not; NONE: out of memory. */
static uint32_t pair_find(learner *l, uint64_t ids) {
  if (l->n_pairs * 2 >= l->n_pair_slots) {
    if (!double_slots(l, &l->pair_slots, &l->n_pair_slots)) return NONE;
    for (size_t i = 0; i < l->n_pairs; i++) *pair_slot(l, l->pairs[i].ids) = (uint32_t)i + 1;
  }
  uint32_t *slot = pair_slot(l, ids);
  if (*slot) return *slot - 1;
  if (l->n_pairs >= NONE - 1) l->failed = LLM_ERR_ARG;
  if (l->failed ||
      !make_room(l, (void **)&l->pairs, &l->pairs_capacity, l->n_pairs, sizeof *l->pairs))
    return NONE;
  l->pairs[l->n_pairs++] = (pair){ids, 0, NONE, NONE};
  *slot = (uint32_t)l->n_pairs;
  return *slot - 1;
}

/* Hangs position i into the list of the pair that begins there, at its end. */
static void link_pair(learner *l, uint32_t i) {
  position *p = &l->positions[i];
  p->pair = NONE;
  if (p->next == NONE) return;
  uint64_t ids = (uint64_t)(uint32_t)p->id << 32 | (uint32_t)l->positions[p->next].id;
  p->pair = pair_find(l, ids);
  if (p->pair == NONE) return;
  pair *q = &l->pairs[p->pair];
  p->list_prev = q->last;
  p->list_next = NONE;
  if (q->last == NONE)
    q->first = i;
  else
    l->positions[q->last].list_next = i;
  q->last = i;
  q->count += l->words[p->word].count;
}

static void unlink_pair(learner *l, uint32_t i) {
  position *p = &l->positions[i];
  if (p->pair == NONE) return;
  pair *q = &l->pairs[p->pair];
  if (p->list_prev == NONE)
    q->first = p->list_next;
  else
    l->positions[p->list_prev].list_next = p->list_next;
  if (p->list_next == NONE)
    q->last = p->list_prev;
  else
    l->positions[p->list_next].list_prev = p->list_prev;
  q->count -= l->words[p->word].count;
  p->pair = NONE;
}

/* Merges the pair at every place, from the left. Lists of pairs with the new id grow in rising
 * order because the places are visited in rising order. */
static void merge_everywhere(learner *l, uint32_t index, int32_t new_id) {
  uint32_t i;
  while (!l->failed && (i = l->pairs[index].first) != NONE) {
    position *p = &l->positions[i];
    uint32_t before = p->prev, after = l->positions[p->next].next;
    unlink_pair(l, i);
    unlink_pair(l, p->next);
    if (before != NONE) unlink_pair(l, before);
    p->id = new_id;
    p->next = after;
    if (after != NONE) l->positions[after].prev = i;
    if (before != NONE) link_pair(l, before);
    link_pair(l, i);
  }
}

/* ---- the heap ---- */

static int comes_before(candidate a, candidate b) {
  return a.count != b.count ? a.count > b.count : a.ids < b.ids;
}

static void heap_push(learner *l, uint32_t index) {
  candidate c = {l->pairs[index].count, l->pairs[index].ids, index};
  if (c.count < LEAST_COUNT ||
      !make_room(l, (void **)&l->heap, &l->heap_capacity, l->n_heap, sizeof *l->heap))
    return;
  size_t i = l->n_heap++;
  for (; i > 0 && comes_before(c, l->heap[(i - 1) / 2]); i = (i - 1) / 2)
    l->heap[i] = l->heap[(i - 1) / 2];
  l->heap[i] = c;
}

static candidate heap_pop(learner *l) {
  candidate top = l->heap[0], c = l->heap[--l->n_heap];
  size_t i = 0, child;
  for (; (child = 2 * i + 1) < l->n_heap; i = child) {
    if (child + 1 < l->n_heap && comes_before(l->heap[child + 1], l->heap[child])) child++;
    if (!comes_before(l->heap[child], c)) break;
    l->heap[i] = l->heap[child];
  }
  l->heap[i] = c;
  return top;
}

/* The pair to merge next; NONE: none is left. */
static uint32_t best_pair(learner *l) {
  while (l->n_heap) {
    candidate c = heap_pop(l);
    if (l->pairs[c.pair].count == c.count) return c.pair;
    heap_push(l, c.pair); /* fallen: back with the true count */
  }
  return NONE;
}

/* ---- steps ---- */

static void count_words(learner *l, const pretokenizer *pre, const uint64_t *offsets,
                        uint64_t n_documents) {
  for (uint64_t d = 0; d < n_documents; d++) {
    const uint8_t *document = l->text + offsets[d];
    size_t n = (size_t)(offsets[d + 1] - offsets[d]);
    for (size_t pos = 0, end; pos < n && !l->failed; pos = end) {
      end = pre->next(document, n, pos);
      if (end - pos < 2) continue; /* no pair in it */
      add_word(l, offsets[d] + pos, end - pos);
    }
  }
}

static void lay_out(learner *l) {
  l->positions = malloc((l->n_positions + 1) * sizeof *l->positions); /* never of no bytes */
  if (!l->positions) {
    l->failed = LLM_ERR_NOMEM;
    return;
  }
  uint32_t i = 0;
  for (uint32_t w = 0; w < l->n_words; w++) {
    const uint8_t *bytes = l->text + l->words[w].offset;
    uint32_t n_bytes = l->words[w].n_bytes;
    for (uint32_t k = 0; k < n_bytes; k++, i++)
      l->positions[i] = (position){.id = bytes[k],
                                   .word = w,
                                   .prev = k ? i - 1 : NONE,
                                   .next = k + 1 < n_bytes ? i + 1 : NONE};
  }
  for (i = 0; i < l->n_positions && !l->failed; i++) link_pair(l, i);
  for (i = 0; i < l->n_pairs && !l->failed; i++) heap_push(l, i);
}

static uint32_t token_bytes(const learner *l, uint32_t id) {
  return id < 256 ? 1 : l->token_bytes[id - 256];
}

/* Two merges never make the same bytes: how the string between two borders is cut into tokens
 * depends on that string alone, so one string has one last merge. */
static void learn(learner *l, size_t n_wanted, int32_t *merges) {
  uint32_t index;
  while (l->n_merges < n_wanted && !l->failed && (index = best_pair(l)) != NONE) {
    uint32_t left = (uint32_t)(l->pairs[index].ids >> 32), right = (uint32_t)l->pairs[index].ids;
    uint32_t n_bytes = token_bytes(l, left) + token_bytes(l, right);
    if (n_bytes > LONGEST_TOKEN) continue; /* its count never rises: it will not come back */
    if (!make_room(l, (void **)&l->token_bytes, &l->token_capacity, l->n_merges, sizeof n_bytes))
      return;
    size_t m = l->n_merges++, n_before = l->n_pairs;
    l->token_bytes[m] = n_bytes;
    merges[2 * m] = (int32_t)left;
    merges[2 * m + 1] = (int32_t)right;
    merge_everywhere(l, index, (int32_t)(256 + m));
    for (size_t i = n_before; i < l->n_pairs; i++) heap_push(l, (uint32_t)i);
  }
}

static llm_status check_arguments(const char *pre, const uint8_t *text, const uint64_t *offsets,
                                  uint64_t n_documents, int64_t n_vocab, llm_error *err) {
  if (!pretokenizer_find(pre, strlen(pre)))
    return error_set(err, LLM_ERR_ARG, "unknown pre-tokenizer \"%s\", expected one of %s", pre,
                     pretokenizer_names());
  if (n_vocab < 256 || n_vocab > INT32_MAX)
    return error_set(err, LLM_ERR_ARG, "n_vocab is %" PRId64 ", expected 256 to %d", n_vocab,
                     INT32_MAX);
  for (uint64_t d = 0; d < n_documents; d++)
    if (offsets[d + 1] < offsets[d])
      return error_set(err, LLM_ERR_ARG, "document %" PRIu64 " ends before it begins", d);
  if (!text && n_documents && offsets[n_documents])
    return error_set(err, LLM_ERR_ARG, "llm_bpe_train: text is NULL");
  return LLM_OK;
}

llm_status llm_bpe_train(const char *pre, const uint8_t *text, const uint64_t *offsets,
                         uint64_t n_documents, int64_t n_vocab, uint32_t most_bytes,
                         int32_t *merges, int64_t *n_merges, llm_error *err) {
  *n_merges = 0;
  error_clear(err);
  llm_status status = check_arguments(pre, text, offsets, n_documents, n_vocab, err);
  if (status) return status;

  learner l = {.text = text, .most_bytes = most_bytes};
  count_words(&l, pretokenizer_find(pre, strlen(pre)), offsets, n_documents);
  if (!l.failed) lay_out(&l);
  if (!l.failed) learn(&l, (size_t)n_vocab - 256, merges);
  if (!l.failed)
    *n_merges = (int64_t)l.n_merges;
  else if (l.failed == LLM_ERR_NOMEM)
    error_set(err, l.failed, "out of memory after %zu distinct words of %zu bytes and %zu merges",
              l.n_words, l.n_positions, l.n_merges);
  else
    error_set(err, l.failed, "the words of the text have 2^32 distinct pairs or more");
  free(l.words);
  free(l.word_slots);
  free(l.positions);
  free(l.pairs);
  free(l.pair_slots);
  free(l.heap);
  free(l.token_bytes);
  return l.failed;
}
