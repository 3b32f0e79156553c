/* pretokenize.c: the pre-tokenizers. Layer 2; depends on unicode. The regular expressions are those
 * of GPT-2's encoder.py, of tiktoken's openai_public.py and of the tokenizer.json files that
 * SmolLM2, Llama 3, Qwen2 and Mistral NeMo were published with. Their possessive and lazy
 * spellings, which change the speed of a regular expression and not its matches, are left out. */
#include "pretokenize.h"

#include <string.h>

#include "unicode.h"

/* ---- characters ---- */

enum { NEWLINE = 7 }; /* \r and \n, beside the classes of unicode.h */

/* Sets of classes, a bit each. */
enum {
  SPACES = 1 << UNICODE_SPACE | 1 << NEWLINE,
  LETTERS = 1 << UNICODE_UPPER | 1 << UNICODE_LOWER | 1 << UNICODE_LETTER,
  NUMBERS = 1 << UNICODE_NUMBER,
  OTHERS = 1 << UNICODE_OTHER | 1 << UNICODE_MARK, /* [^\s\p{L}\p{N}] */
  UPPERS = 1 << UNICODE_UPPER | 1 << UNICODE_LETTER | 1 << UNICODE_MARK,
  LOWERS = 1 << UNICODE_LOWER | 1 << UNICODE_LETTER | 1 << UNICODE_MARK
};

static int in(int set, int class) { return set >> class & 1; }

/* ASCII, most of all text, without a call: one digit a character. */
static const char ascii_class[129] =
    "00000000017117000000000000000000"  /* control characters */
    "10000000000000002222222222000000"  /* space, punctuation, digits */
    "04444444444444444444444444400000"  /* @, capitals */
    "05555555555555555555555555500000"; /* `, small letters */

/* Class and length of the character at pos < n. */
static int class_at(const uint8_t *text, size_t n, size_t pos, size_t *length) {
  *length = 1;
  if (text[pos] < 0x80) return ascii_class[text[pos]] - '0';
  uint32_t code_point;
  *length = utf8_decode(text + pos, n - pos, &code_point);
  return (int)unicode_classify(code_point);
}

/* 1 where a character of the set begins at pos. */
static int is_at(const uint8_t *text, size_t n, size_t pos, int set) {
  size_t length;
  return pos < n && in(set, class_at(text, n, pos, &length));
}

/* The end of the run of characters of a set that begins at pos; *last is where its last character
 * begins. */
static size_t run_end(const uint8_t *text, size_t n, size_t pos, int set, size_t *last) {
  size_t length;
  while (pos < n && in(set, class_at(text, n, pos, &length))) {
    *last = pos;
    pos += length;
  }
  return pos;
}

/* The end of the run of ASCII letters that begins at pos, or a place before it less than eight
 * bytes from the end of the text: eight bytes at a time, for most words end within them. */
static size_t letters_end(const uint8_t *text, size_t n, size_t pos) {
  const uint64_t each = 0x0101010101010101u, high = 0x80 * each;
  for (uint64_t bytes; n - pos >= sizeof bytes; pos += sizeof bytes) {
    memcpy(&bytes, text + pos, sizeof bytes);
    uint64_t small = (bytes | 0x20 * each) & ~high; /* the high bit of a sum: from a on, past z */
    uint64_t letters = (small + (0x80 - 'a') * each) & ~(small + (0x7f - 'z') * each) & ~bytes;
    uint64_t others = ~letters & high;
    if (others) return pos + (size_t)__builtin_ctzll(others) / 8; /* little-endian */
  }
  return pos;
}

/* The end of  ?\p{L}+ at pos; pos: the first letter is not ASCII or near the end, or it does not
 * match. Most pieces are such words. */
static size_t word_end(const uint8_t *text, size_t n, size_t pos) {
  size_t begin = pos + (text[pos] == ' '), end = letters_end(text, n, begin), last;
  return end > begin ? run_end(text, n, end, LETTERS, &last) : pos;
}

/* ---- GPT-2 ---- */

/* Length of 's 't 're 've 'm 'll 'd at pos, 0: none. */
static size_t contraction(const uint8_t *text, size_t n, size_t pos) {
  if (n - pos < 2 || text[pos] != '\'') return 0;
  uint8_t a = text[pos + 1];
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
  if (n - pos < 3) return 0;
  uint8_t b = text[pos + 2];
  return ((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

static int set_of(int class) {
  if (in(LETTERS, class)) return LETTERS;
  if (in(NUMBERS, class)) return NUMBERS;
  return in(SPACES, class) ? SPACES : OTHERS;
}

/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 * With numbers_apart, a number counts as the end of the text. */
static size_t gpt2_next(const uint8_t *text, size_t n, size_t pos, int numbers_apart) {
  size_t end = word_end(text, n, pos), length, last = pos;
  if (end > pos) return end;
  length = contraction(text, n, pos);
  if (length) return pos + length;

  int set = set_of(class_at(text, n, pos, &length));
  if (set != SPACES) return run_end(text, n, pos, set, &last);

  end = run_end(text, n, pos, SPACES, &last);
  if (end == n) return end;
  set = set_of(class_at(text, n, end, &length));
  if (numbers_apart && set == NUMBERS) return end;
  /* A space that ends the run goes to what follows; any other white space is on its own. */
  if (last > pos) return last;
  return text[pos] == ' ' ? run_end(text, n, end, set, &last) : end;
}

static size_t gpt2(const uint8_t *text, size_t n, size_t pos) { return gpt2_next(text, n, pos, 0); }

/* First \p{N}, each alone, then GPT-2's expression inside what lies between. */
static size_t smollm(const uint8_t *text, size_t n, size_t pos) {
  size_t length;
  if (class_at(text, n, pos, &length) == UNICODE_NUMBER) return pos + length;
  return gpt2_next(text, n, pos, 1);
}

/* ---- what the later ones share ---- */

enum { WHOLE_TAIL = 1, SLASHES = 2, CONTRACTIONS = 4 }; /* ways in which they differ */

/* Length of (?i:'s|'t|'re|'ve|'m|'ll|'d) at pos, 0: none. */
static size_t contraction_any_case(const uint8_t *text, size_t n, size_t pos) {
  if (pos + 1 >= n || text[pos] != '\'') return 0;
  uint8_t a = text[pos + 1] | 0x20;
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
  if (n - pos < 3) return 0;
  uint8_t b = text[pos + 2];
  if (text[pos + 1] == 0xc5 && b == 0xbf) return 3; /* U+017F, the long s, folds to s */
  b |= 0x20;
  return ((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* \p{N}{1,most} at a number */
static size_t digits_end(const uint8_t *text, size_t n, size_t pos, int most) {
  size_t length;
  for (; most && pos < n && class_at(text, n, pos, &length) == UNICODE_NUMBER; most--)
    pos += length;
  return pos;
}

/*  ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
 * WHOLE_TAIL: \s+$ comes before the second part. SLASHES: [\r\n/]* in the first. */
static size_t others_next(const uint8_t *text, size_t n, size_t pos, int flags) {
  size_t last = pos, length, begin = pos + (text[pos] == ' ');
  size_t end = run_end(text, n, begin, OTHERS, &last);
  if (end > begin) {
    while (end < n &&
           (text[end] == '\r' || text[end] == '\n' || (flags & SLASHES && text[end] == '/')))
      end++;
    return end;
  }
  size_t after_newline = pos;
  for (end = pos; end < n; end += length) {
    int class = class_at(text, n, end, &length);
    if (!in(SPACES, class)) break;
    if (class == NEWLINE) after_newline = end + 1;
    last = end;
  }
  if (end == n && flags & WHOLE_TAIL) return end;
  if (after_newline > pos) return after_newline;
  return end == n || last == pos ? end : last;
}

/* ---- cl100k and those like it ---- */

/* (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,most}| and the others */
static size_t cl100k_next(const uint8_t *text, size_t n, size_t pos, int most, int flags) {
  size_t end = word_end(text, n, pos), length, last;
  if (end > pos) return end;
  length = contraction_any_case(text, n, pos);
  if (length) return pos + length;
  int class = class_at(text, n, pos, &length);
  if (in(LETTERS, class)) return run_end(text, n, pos, LETTERS, &last);
  if (class == UNICODE_NUMBER) return digits_end(text, n, pos, most);
  if (class != NEWLINE && is_at(text, n, pos + length, LETTERS))
    return run_end(text, n, pos + length, LETTERS, &last);
  return others_next(text, n, pos, flags);
}

static size_t cl100k(const uint8_t *text, size_t n, size_t pos) {
  return cl100k_next(text, n, pos, 3, WHOLE_TAIL);
}

static size_t llama3(const uint8_t *text, size_t n, size_t pos) {
  return cl100k_next(text, n, pos, 3, 0);
}

static size_t qwen2(const uint8_t *text, size_t n, size_t pos) {
  return cl100k_next(text, n, pos, 1, 0);
}

/* ---- o200k and those like it ---- */

/* With U for [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}] and L for [\p{Ll}\p{Lm}\p{Lo}\p{M}], the end of what
 * U*L+, else U+L* matches at pos; pos where neither does. *first: it was U*L+. */
static size_t cased_word_end(const uint8_t *text, size_t n, size_t pos, int *first) {
  size_t end = pos, after_both = pos, length, last;
  for (; end < n; end += length) {
    int class = class_at(text, n, end, &length);
    if (!in(UPPERS, class)) break;
    if (in(LOWERS, class)) after_both = end + length;
  }
  /* Where no small letter follows, U* gives back up to a character that is in L too. */
  size_t lower_end = run_end(text, n, end, LOWERS, &last);
  *first = lower_end > end || after_both > pos;
  if (lower_end > end) return lower_end;
  return *first ? after_both : end;
}

/* [^\r\n\p{L}\p{N}]?U*L+(?i:'s|...)?|[^\r\n\p{L}\p{N}]?U+L*(?i:'s|...)?|\p{N}{1,most}| and the
 * others; the contractions with CONTRACTIONS. */
static size_t o200k_next(const uint8_t *text, size_t n, size_t pos, int most, int flags) {
  size_t length, end;
  int first, class = class_at(text, n, pos, &length);
  if (class == UNICODE_NUMBER) return digits_end(text, n, pos, most);
  if (class == NEWLINE) return others_next(text, n, pos, flags);
  if (in(LETTERS, class)) {
    end = cased_word_end(text, n, pos, &first);
  } else {
    end = cased_word_end(text, n, pos + length, &first);
    /* A mark may stand for itself in U*L+, which is tried before U+L* with the mark before it. */
    if (class == UNICODE_MARK && !first) end = cased_word_end(text, n, pos, &first);
    if (end == pos + length && class != UNICODE_MARK) return others_next(text, n, pos, flags);
  }
  return flags & CONTRACTIONS ? end + contraction_any_case(text, n, end) : end;
}

static size_t o200k(const uint8_t *text, size_t n, size_t pos) {
  return o200k_next(text, n, pos, 3, SLASHES | CONTRACTIONS);
}

static size_t tekken(const uint8_t *text, size_t n, size_t pos) {
  return o200k_next(text, n, pos, 1, SLASHES);
}

/* ---- names: the first of each group is the one that messages give ---- */

static const pretokenizer table[] = {
    {"gpt-2", gpt2, 0, 0},
    {"phi-2", gpt2, 0, 0},
    {"smollm", smollm, 0, 0},
    {"llama-bpe", llama3, 1, 1},
    {"llama3", llama3, 1, 1},
    {"llama-v3", llama3, 1, 1},
    {"pixtral", llama3, 1, 1},
    {"dbrx", llama3, 0, 0},
    {"smaug-bpe", llama3, 0, 0},
    {"chatglm-bpe", llama3, 0, 0},
    {"glm4", llama3, 0, 0},
    {"qwen2", qwen2, 0, 0},
    {"deepseek-r1-qwen", qwen2, 0, 0},
    {"stablelm2", qwen2, 0, 0},
    {"cl100k", cl100k, 1, 0}, /* tiktoken's, which no file of llama.cpp names */
    {"gpt-4o", o200k, 0, 0},
    {"llama4", o200k, 0, 0},
    {"o200k", o200k, 1, 0},
    {"tekken", tekken, 1, 1},
};

const pretokenizer *pretokenizer_find(const char *name, size_t n) {
  for (size_t i = 0; i < sizeof table / sizeof *table; i++)
    if (strlen(table[i].name) == n && memcmp(table[i].name, name, n) == 0) return &table[i];
  return NULL;
}

const char *pretokenizer_names(void) {
  return "gpt-2, smollm, llama-bpe, dbrx, qwen2, cl100k, gpt-4o, tekken";
}
