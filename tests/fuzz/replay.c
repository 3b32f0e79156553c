/* replay.c: a plain main for the fuzz targets, without libFuzzer: runs each file, and each file of
 * each folder, named on the command line. Inputs are copied to allocations of their exact size. */
#define _POSIX_C_SOURCE 200809L
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static long n_files;

static void replay_file(const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file || fseek(file, 0, SEEK_END)) {
    perror(path);
    exit(1);
  }
  size_t n_bytes = (size_t)ftell(file);
  uint8_t *data = malloc(n_bytes ? n_bytes : 1);
  rewind(file);
  if (!data || fread(data, 1, n_bytes, file) != n_bytes) {
    perror(path);
    exit(1);
  }
  fclose(file);
  LLVMFuzzerTestOneInput(data, n_bytes);
  free(data);
  n_files++;
}

static void replay(const char *path) {
  DIR *folder = opendir(path);
  if (!folder) {
    replay_file(path);
    return;
  }
  for (struct dirent *entry; (entry = readdir(folder));) {
    char inside[4096];
    if (entry->d_name[0] == '.') continue;
    snprintf(inside, sizeof inside, "%s/%s", path, entry->d_name);
    replay_file(inside);
  }
  closedir(folder);
}

int main(int argc, char **argv) {
  for (int i = 1; i < argc; i++) replay(argv[i]);
  printf("%s: %ld files\n", argv[0], n_files);
  return n_files == 0;
}
