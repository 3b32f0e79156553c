/* gguf.c: parsing and indexing a GGUF v3 span (gguf_get.c reads typed values). Layer 1; depends on
 * error and on the type table (llm_type_describe). Source: the GGUF specification of the ggml
 * project; FORMAT.md numbers the rules that the checks below enforce. No count from the file is
 * used before it is bounded by the bytes that are left, by comparison or division, so nothing here
 * can wrap; there is no recursion because arrays of arrays are refused. */
#include "gguf.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "gguf_reader.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "parameter files are mapped as they are: this program needs a little-endian machine"
#endif
#if SIZE_MAX < UINT64_MAX
#error "sizes are computed in 64 bits: this program needs a 64-bit machine"
#endif

enum {
  HEADER_BYTES = 24,
  VERSION = 3,
  MAX_ENTRIES = 1 << 16, /* keys, and tensors: far above any published file */
  MAX_KEY = 255,
  MAX_NAME = 63,       /* of a tensor: ggml's limit */
  MIN_META_BYTES = 14, /* key length and one byte, type, one byte of value */
  MIN_TENSOR_BYTES = 33,
  MIN_ALIGNMENT = 8,
  MAX_ALIGNMENT = 4096,
  DEFAULT_ALIGNMENT = 32
};

struct gguf {
  char *where;
  const uint8_t *span;
  size_t n_bytes;
  size_t n_meta, n_tensors;
  llm_meta *meta;
  llm_tensor *tensors;
  const void **meta_sorted, **tensors_sorted; /* pointers to the entries, by name */
  char *names;                                /* every key and tensor name, each with its NUL */
  size_t alignment;
  const uint8_t *data;
  size_t data_bytes;
};

/* Sorting and searching see both kinds of entries as "a struct that begins with its name". */
_Static_assert(offsetof(llm_meta, key) == 0, "llm_meta begins with its key");
_Static_assert(offsetof(llm_tensor, name) == 0, "llm_tensor begins with its name");

/* ---- header ---- */

/* What a file that is not GGUF seems to be; NULL when nothing comes to mind. */
static const char *foreign_kind(const uint8_t *span, size_t n_bytes) {
  static const struct {
    const char *prefix, *kind;
  } kinds[] = {
      {"PK\003\004", "a zip archive, perhaps a PyTorch checkpoint"},
      {"\x1f\x8b", "gzip data"},
      {"\177ELF", "an executable"},
      {"version https://git-lfs", "a Git LFS pointer in place of the file itself"},
      {"<!DOCTYPE", "a web page"},
      {"<html", "a web page"},
      {"tjgg", "an older ggml file"},
      {"lmgg", "an older ggml file"},
  };
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
    size_t n = strlen(kinds[i].prefix);
    if (n_bytes >= n && memcmp(span, kinds[i].prefix, n) == 0) return kinds[i].kind;
  }
  if (n_bytes > 8 && span[8] == '{') return "a safetensors file";
  return NULL;
}

static llm_status magic_check(const gguf *g, llm_error *err) {
  if (g->n_bytes == 0) return error_set(err, LLM_ERR_FORMAT, "%s: the file is empty", g->where);
  size_t n = g->n_bytes < 4 ? g->n_bytes : 4;
  if (memcmp(g->span, "GGUF", n) != 0) {
    const char *kind = foreign_kind(g->span, g->n_bytes);
    if (kind) return error_set(err, LLM_ERR_FORMAT, "%s: not a GGUF file: %s", g->where, kind);
    char hex[16] = "";
    for (size_t i = 0; i < n; i++) snprintf(hex + 3 * i, 4, " %02x", g->span[i]);
    return error_set(err, LLM_ERR_FORMAT,
                     "%s: not a GGUF file: it begins with the bytes%s, expected \"GGUF\"", g->where,
                     hex);
  }
  if (g->n_bytes < HEADER_BYTES)
    return error_set(err, LLM_ERR_FORMAT,
                     "%s: the file has %zu bytes, the header of a GGUF file has %d", g->where,
                     g->n_bytes, HEADER_BYTES);
  return LLM_OK;
}

static llm_status version_check(reader *r) {
  uint32_t version = 0;
  llm_status status = reader_u32(r, "version", &version);
  if (status) return status;
  if (version == VERSION) return LLM_OK;
  if (version == (uint32_t)VERSION << 24)
    return reader_fail(r, LLM_ERR_UNSUPPORTED,
                       "this is a big-endian GGUF file, expected little-endian");
  if (version == 1 || version == 2)
    return reader_fail(r, LLM_ERR_UNSUPPORTED,
                       "this is GGUF version %u, expected %d: convert it with a current llama.cpp",
                       (unsigned)version, VERSION);
  return reader_fail(r, LLM_ERR_UNSUPPORTED, "GGUF version %u, expected %d", (unsigned)version,
                     VERSION);
}

static llm_status count_check(const reader *r, const char *thing, uint64_t n, size_t min_bytes) {
  size_t most = r->left / min_bytes;
  if (most > MAX_ENTRIES) most = MAX_ENTRIES;
  if (n <= most) return LLM_OK;
  return reader_fail(r, LLM_ERR_FORMAT,
                     "it claims %" PRIu64 " %s, at most %zu are possible in this file", n, thing,
                     most);
}

static llm_status header_read(gguf *g, reader *r) {
  const void *magic;
  uint64_t n_tensors = 0, n_meta = 0;
  llm_status status = magic_check(g, r->err);
  if (status) return status;
  snprintf(r->what, sizeof r->what, "header");
  status = reader_take(r, 4, "magic", &magic);
  if (!status) status = version_check(r);
  if (!status) status = reader_u64(r, "tensor count", &n_tensors);
  if (!status) status = reader_u64(r, "key count", &n_meta);
  if (!status) status = count_check(r, "tensors", n_tensors, MIN_TENSOR_BYTES);
  if (!status) status = count_check(r, "keys", n_meta, MIN_META_BYTES);
  if (status) return status;

  /* Names lie in the file with 8 bytes of length each, so `left` bytes hold them with NULs too. */
  size_t names_bytes = (size_t)n_meta * (MAX_KEY + 1) + (size_t)n_tensors * (MAX_NAME + 1);
  if (names_bytes > r->left) names_bytes = r->left;
  g->n_meta = (size_t)n_meta;
  g->n_tensors = (size_t)n_tensors;
  g->meta = calloc(g->n_meta + 1, sizeof *g->meta);
  g->tensors = calloc(g->n_tensors + 1, sizeof *g->tensors);
  g->meta_sorted = malloc((g->n_meta + 1) * sizeof *g->meta_sorted);
  g->tensors_sorted = malloc((g->n_tensors + 1) * sizeof *g->tensors_sorted);
  g->names = r->names = malloc(names_bytes + 1);
  if (!g->meta || !g->tensors || !g->meta_sorted || !g->tensors_sorted || !g->names)
    return error_nomem(r->err, names_bytes, "the index of a parameter file");
  return LLM_OK;
}

/* ---- metadata ---- */

/* Bytes of one value; 0 for strings and arrays. */
static const uint8_t value_bytes[GGUF_N_TYPES] = {
    [GGUF_UINT8] = 1,  [GGUF_INT8] = 1,  [GGUF_UINT16] = 2,  [GGUF_INT16] = 2,
    [GGUF_UINT32] = 4, [GGUF_INT32] = 4, [GGUF_BOOL] = 1,    [GGUF_FLOAT32] = 4,
    [GGUF_UINT64] = 8, [GGUF_INT64] = 8, [GGUF_FLOAT64] = 8,
};

const char *gguf_value_name(int type) {
  static const char names[GGUF_N_TYPES][8] = {
      [GGUF_UINT8] = "uint8", [GGUF_INT8] = "int8",       [GGUF_UINT16] = "uint16",
      [GGUF_INT16] = "int16", [GGUF_UINT32] = "uint32",   [GGUF_INT32] = "int32",
      [GGUF_BOOL] = "bool",   [GGUF_FLOAT32] = "float32", [GGUF_UINT64] = "uint64",
      [GGUF_INT64] = "int64", [GGUF_FLOAT64] = "float64", [GGUF_STRING] = "string",
      [GGUF_ARRAY] = "array",
  };
  return names[type];
}

static llm_status bools_check(const reader *r, const uint8_t *bytes, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (bytes[i] > 1)
      return reader_fail(r, LLM_ERR_FORMAT, "a bool is %u, expected 0 or 1", bytes[i]);
  return LLM_OK;
}

/* n consecutive values of one type, an array's elements or a single value. */
static llm_status values_read(reader *r, uint32_t type, uint64_t n, llm_meta *m) {
  size_t each = type == GGUF_STRING ? sizeof(uint64_t) : value_bytes[type];
  if (n > r->left / each)
    return reader_fail(r, LLM_ERR_FORMAT,
                       "it claims %" PRIu64 " values of type %s, the file has %zu bytes left", n,
                       gguf_value_name(type), r->left);
  const uint8_t *start = r->at;
  llm_status status = LLM_OK;
  if (type == GGUF_STRING) {
    gguf_string s = {0};
    for (uint64_t i = 0; i < n && !status; i++) status = reader_string(r, "string", &s);
  } else {
    const void *bytes = NULL;
    status = reader_take(r, (size_t)n * each, "value", &bytes);
    if (!status && type == GGUF_BOOL) status = bools_check(r, bytes, (size_t)n);
  }
  m->data = start;
  m->n_bytes = (uint64_t)(r->at - start);
  m->n_elements = n;
  return status;
}

static llm_status array_read(reader *r, llm_meta *m) {
  uint32_t type = 0;
  uint64_t n = 0;
  llm_status status = reader_u32(r, "element type", &type);
  if (!status) status = reader_u64(r, "element count", &n);
  if (status) return status;
  if (type == GGUF_ARRAY)
    return reader_fail(r, LLM_ERR_UNSUPPORTED,
                       "it is an array of arrays, which this version does not read");
  if (type >= GGUF_N_TYPES)
    return reader_fail(r, LLM_ERR_FORMAT, "its element type is %u, expected 0 to %d",
                       (unsigned)type, GGUF_N_TYPES - 1);
  m->element_type = (int32_t)type;
  return values_read(r, type, n, m);
}

static llm_status meta_read(reader *r, llm_meta *m) {
  uint32_t type = 0;
  llm_status status = reader_name(r, "name", MAX_KEY, &m->key);
  if (status) return status;
  snprintf(r->what, sizeof r->what, "key %s", m->key);
  status = reader_u32(r, "type", &type);
  if (status) return status;
  if (type >= GGUF_N_TYPES)
    return reader_fail(r, LLM_ERR_FORMAT, "its type is %u, expected 0 to %d", (unsigned)type,
                       GGUF_N_TYPES - 1);
  m->value_type = (int32_t)type;
  if (type == GGUF_ARRAY) return array_read(r, m);
  status = values_read(r, type, 1, m);
  if (!status && type == GGUF_STRING) { /* the bytes alone, without their length */
    m->data = (const uint8_t *)m->data + sizeof(uint64_t);
    m->n_bytes -= sizeof(uint64_t);
  }
  return status;
}

/* ---- tensors ---- */

/* ggml's types that llm_type_describe does not list, for messages only. */
static const char *ggml_type_name(uint32_t type) {
  static const char names[][9] = {
      [4] = "Q4_2",      [5] = "Q4_3",      [9] = "Q8_1",      [10] = "Q2_K",    [11] = "Q3_K",
      [15] = "Q8_K",     [16] = "IQ2_XXS",  [17] = "IQ2_XS",   [18] = "IQ3_XXS", [19] = "IQ1_S",
      [20] = "IQ4_NL",   [21] = "IQ3_S",    [22] = "IQ2_S",    [23] = "IQ4_XS",  [24] = "I8",
      [25] = "I16",      [26] = "I32",      [27] = "I64",      [28] = "F64",     [29] = "IQ1_M",
      [31] = "Q4_0_4_4", [32] = "Q4_0_4_8", [33] = "Q4_0_8_8", [34] = "TQ1_0",   [35] = "TQ2_0",
      [39] = "MXFP4",    [40] = "NVFP4",
  };
  return type < sizeof names / sizeof *names && *names[type] ? names[type] : NULL;
}

static llm_status type_check(const reader *r, uint32_t type, llm_type_info *info) {
  *info = type <= INT32_MAX ? llm_type_describe((llm_type)type) : (llm_type_info){0};
  if (info->n_per_block) return LLM_OK;
  const char *name = ggml_type_name(type);
  if (name)
    return reader_fail(r, LLM_ERR_UNSUPPORTED, "its type is %s, which this version does not run",
                       name);
  return reader_fail(r, LLM_ERR_UNSUPPORTED,
                     "its type is number %u, which this version does not know", (unsigned)type);
}

/* Every partial product is bounded by what the file can hold before it is formed. */
static llm_status tensor_size(const gguf *g, const reader *r, llm_tensor *t, llm_type_info info) {
  if ((uint64_t)t->dims[0] % info.n_per_block)
    return reader_fail(r, LLM_ERR_FORMAT,
                       "its rows of %" PRId64 " elements are not whole blocks of %zu (%s)",
                       t->dims[0], info.n_per_block, info.name);
  uint64_t most = g->n_bytes / info.bytes_per_block;
  uint64_t n_blocks = (uint64_t)t->dims[0] / info.n_per_block;
  int fits = n_blocks <= most;
  for (int32_t i = 1; i < t->n_dims && fits; i++) {
    fits = (uint64_t)t->dims[i] <= most / n_blocks;
    if (fits) n_blocks *= (uint64_t)t->dims[i];
  }
  if (!fits)
    return reader_fail(r, LLM_ERR_FORMAT,
                       "its shape [%" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64
                       "] of %s needs more bytes than the file's %zu",
                       t->dims[0], t->dims[1], t->dims[2], t->dims[3], info.name, g->n_bytes);
  t->n_bytes = n_blocks * info.bytes_per_block;
  return LLM_OK;
}

static llm_status dims_read(reader *r, llm_tensor *t) {
  uint32_t n_dims = 0;
  llm_status status = reader_u32(r, "number of dimensions", &n_dims);
  if (status) return status;
  if (n_dims < 1 || n_dims > 4)
    return reader_fail(r, LLM_ERR_FORMAT, "it has %u dimensions, expected 1 to 4",
                       (unsigned)n_dims);
  t->n_dims = (int32_t)n_dims;
  for (int i = 0; i < 4; i++) {
    uint64_t dim = 1;
    if (i < t->n_dims) status = reader_u64(r, "dimensions", &dim);
    if (status) return status;
    if (dim < 1 || dim > INT32_MAX)
      return reader_fail(r, LLM_ERR_FORMAT, "dimension %d is %" PRIu64 ", expected 1 to %" PRId32,
                         i, dim, INT32_MAX);
    t->dims[i] = (int64_t)dim;
  }
  return LLM_OK;
}

/* *expected is the offset that the packed sequence gives this tensor; it moves on to the next. It
 * cannot wrap: each tensor is smaller than the file and there are at most MAX_ENTRIES. */
static llm_status tensor_read(const gguf *g, reader *r, llm_tensor *t, uint64_t *expected) {
  uint32_t type = 0;
  uint64_t offset = 0;
  llm_type_info info = {0};
  llm_status status = reader_name(r, "name", MAX_NAME, &t->name);
  if (status) return status;
  snprintf(r->what, sizeof r->what, "tensor %s", t->name);
  status = dims_read(r, t);
  if (!status) status = reader_u32(r, "type", &type);
  if (!status) status = reader_u64(r, "offset", &offset);
  if (!status) status = type_check(r, type, &info);
  if (!status) status = tensor_size(g, r, t, info);
  if (status) return status;
  if (offset != *expected)
    return reader_fail(r, LLM_ERR_FORMAT,
                       "its data is at offset %" PRIu64 ", expected %" PRIu64
                       ": tensors lie packed in order, aligned to %zu bytes",
                       offset, *expected, g->alignment);
  t->type = (llm_type)type;
  uint64_t mask = g->alignment - 1;
  *expected = (offset + t->n_bytes + mask) & ~mask;
  return LLM_OK;
}

/* ---- layout of the data section ---- */

static llm_status alignment_read(gguf *g, reader *r) {
  const llm_meta *m = gguf_find(g, "general.alignment");
  uint32_t alignment = DEFAULT_ALIGNMENT;
  snprintf(r->what, sizeof r->what, "key general.alignment");
  if (m && m->value_type != GGUF_UINT32)
    return reader_fail(r, LLM_ERR_FORMAT, "its type is %s, expected uint32",
                       gguf_value_name(m->value_type));
  if (m) memcpy(&alignment, m->data, sizeof alignment);
  if (alignment < MIN_ALIGNMENT || alignment > MAX_ALIGNMENT || (alignment & (alignment - 1)))
    return reader_fail(r, LLM_ERR_FORMAT, "it is %u, expected a power of two from %d to %d",
                       (unsigned)alignment, MIN_ALIGNMENT, MAX_ALIGNMENT);
  g->alignment = alignment;
  return LLM_OK;
}

/* The data section begins at the next aligned byte and ends with the last tensor, or with its
 * padding. Files without tensors (vocabularies) may stop right after the header. */
static llm_status data_check(gguf *g, reader *r) {
  size_t used = g->n_bytes - r->left;
  size_t padding = (g->alignment - used % g->alignment) % g->alignment;
  if (padding > r->left) padding = r->left;
  g->data = r->at + padding;
  g->data_bytes = r->left - padding;
  size_t offset = 0; /* of the next tensor, while it lies in the section */
  size_t end = 0;    /* of the last tensor */
  for (size_t i = 0; i < g->n_tensors; i++) {
    llm_tensor *t = &g->tensors[i];
    snprintf(r->what, sizeof r->what, "tensor %s", t->name);
    if (offset > g->data_bytes || t->n_bytes > g->data_bytes - offset)
      return reader_fail(r, LLM_ERR_FORMAT,
                         "its %" PRIu64 " bytes at offset %zu reach past the file's %zu bytes "
                         "of tensor data: the file is cut short",
                         t->n_bytes, offset, g->data_bytes);
    t->data = g->data + offset;
    end = offset + (size_t)t->n_bytes;
    offset = end + (g->alignment - end % g->alignment) % g->alignment;
  }
  snprintf(r->what, sizeof r->what, "tensor data");
  if (g->data_bytes != end && g->data_bytes != offset)
    return reader_fail(r, LLM_ERR_FORMAT,
                       "%zu bytes follow the last tensor, expected none or %zu of padding",
                       g->data_bytes - end, offset - end);
  return LLM_OK;
}

/* ---- index ---- */

static int names_compare(const void *a, const void *b) {
  const char *const *const *x = a, *const *const *y = b;
  return strcmp(**x, **y);
}

/* sorted[i] points at entry i of an array of structs that begin with their names. */
static llm_status index_build(const reader *r, const void **sorted, const void *entries, size_t n,
                              size_t entry_bytes, const char *thing) {
  for (size_t i = 0; i < n; i++) sorted[i] = (const char *)entries + i * entry_bytes;
  qsort(sorted, n, sizeof *sorted, names_compare);
  for (size_t i = 1; i < n; i++)
    if (names_compare(&sorted[i - 1], &sorted[i]) == 0)
      return error_set(r->err, LLM_ERR_FORMAT, "%s: %s %s appears twice", r->where, thing,
                       *(const char *const *)sorted[i]);
  return LLM_OK;
}

static const void *index_find(const void *const *sorted, size_t n, const char *name) {
  const char *const *probe = &name;
  const void *const *found = bsearch(&probe, sorted, n, sizeof *sorted, names_compare);
  return found ? *found : NULL;
}

static llm_status body_read(gguf *g, reader *r) {
  llm_status status = LLM_OK;
  for (size_t i = 0; i < g->n_meta && !status; i++) {
    snprintf(r->what, sizeof r->what, "key %zu of %zu", i + 1, g->n_meta);
    status = meta_read(r, &g->meta[i]);
  }
  if (!status) status = index_build(r, g->meta_sorted, g->meta, g->n_meta, sizeof *g->meta, "key");
  if (!status) status = alignment_read(g, r);
  uint64_t offset = 0;
  for (size_t i = 0; i < g->n_tensors && !status; i++) {
    snprintf(r->what, sizeof r->what, "tensor %zu of %zu", i + 1, g->n_tensors);
    status = tensor_read(g, r, &g->tensors[i], &offset);
  }
  if (!status)
    status =
        index_build(r, g->tensors_sorted, g->tensors, g->n_tensors, sizeof *g->tensors, "tensor");
  if (!status) status = data_check(g, r);
  return status;
}

llm_status gguf_parse(gguf **out, const void *span, size_t n_bytes, const char *where,
                      llm_error *err) {
  *out = NULL;
  gguf *g = calloc(1, sizeof *g);
  char *where_copy = malloc(strlen(where) + 1);
  if (!g || !where_copy) {
    free(g);
    free(where_copy);
    return error_nomem(err, sizeof *g, "the index of a parameter file");
  }
  g->where = strcpy(where_copy, where);
  g->span = span;
  g->n_bytes = n_bytes;
  reader r = {.where = g->where, .at = span, .left = n_bytes, .err = err};
  llm_status status = header_read(g, &r);
  if (!status) status = body_read(g, &r);
  if (status) {
    gguf_free(g);
    return status;
  }
  *out = g;
  return error_clear(err);
}

void gguf_free(gguf *g) {
  if (!g) return;
  free(g->where);
  free(g->meta);
  free(g->tensors);
  free(g->meta_sorted);
  free(g->tensors_sorted);
  free(g->names);
  free(g);
}

const char *gguf_where(const gguf *g) { return g->where; }
size_t gguf_n_meta(const gguf *g) { return g->n_meta; }
size_t gguf_n_tensors(const gguf *g) { return g->n_tensors; }
const llm_meta *gguf_meta(const gguf *g, size_t index) { return &g->meta[index]; }
const llm_tensor *gguf_tensor(const gguf *g, size_t index) { return &g->tensors[index]; }

const llm_meta *gguf_find(const gguf *g, const char *key) {
  return index_find(g->meta_sorted, g->n_meta, key);
}

const llm_tensor *gguf_find_tensor(const gguf *g, const char *name) {
  return index_find(g->tensors_sorted, g->n_tensors, name);
}

const void *gguf_span(const gguf *g, uint64_t *n_bytes) {
  *n_bytes = g->n_bytes;
  return g->span;
}

const void *gguf_tensor_data(const gguf *g, uint64_t *n_bytes) {
  *n_bytes = g->data_bytes;
  return g->data;
}
