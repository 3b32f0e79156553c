/* mapfile.h: a read-only memory map of a whole regular file. Layer 0. */
#ifndef LLM_MAPFILE_H
#define LLM_MAPFILE_H

#include "llm.h"

typedef struct mapfile {
  const void *data; /* NULL when the file is empty */
  size_t n_bytes;
} mapfile;

llm_status mapfile_open(mapfile *out, const char *path, llm_error *err);
void mapfile_close(mapfile *map);

#endif
