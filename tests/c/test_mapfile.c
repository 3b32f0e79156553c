/* test_mapfile.c: mapping a file, and every kind of path that is not one (FORMAT.md, rule F1). */
#define _XOPEN_SOURCE 700 /* mkdtemp, P_tmpdir */
#include "mapfile.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"

static char folder[256];

static const char *path_in_folder(const char *name) {
  static char path[512];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  return path;
}

static void write_file(const char *path, const char *text) {
  FILE *f = fopen(path, "wb");
  CHECK(f && fputs(text, f) >= 0);
  if (f) fclose(f);
}

static void expect(const char *path, llm_status status, int sys_errno, const char *fragment) {
  mapfile map = {"", 1};
  llm_error err;
  CHECK(mapfile_open(&map, path, &err) == status && err.status == status);
  CHECK_MSG(err.sys_errno == sys_errno, "%s: errno %d", err.message, (int)err.sys_errno);
  CHECK_MSG(strstr(err.message, fragment) && strstr(err.message, path), "\"%s\", expected \"%s\"",
            err.message, fragment);
  CHECK(!map.data && map.n_bytes == 0);
}

static void test_good(void) {
  const char *path = path_in_folder("good");
  mapfile map;
  llm_error err;
  write_file(path, "five!");
  CHECK(!mapfile_open(&map, path, &err) && err.status == LLM_OK);
  CHECK(map.n_bytes == 5 && map.data && !memcmp(map.data, "five!", 5));
  unlink(path); /* the mapping outlives the name */
  CHECK(!memcmp(map.data, "five!", 5));
  mapfile_close(&map);
  CHECK(!map.data);
  mapfile_close(&map);

  path = path_in_folder("empty");
  write_file(path, "");
  CHECK(!mapfile_open(&map, path, &err) && !map.data && map.n_bytes == 0);
  mapfile_close(&map);
  unlink(path);
}

static void test_bad(void) {
  expect(path_in_folder("missing"), LLM_ERR_IO, ENOENT, "No such file");
  expect(folder, LLM_ERR_FORMAT, 0, "is a directory, expected a regular file");
  expect("/dev/null", LLM_ERR_FORMAT, 0, "is a device");

  const char *path = path_in_folder("pipe");
  CHECK(!mkfifo(path, 0600));
  expect(path, LLM_ERR_FORMAT, 0, "is a pipe"); /* without a writer: must not wait for one */
  unlink(path);

  path = path_in_folder("forbidden");
  write_file(path, "x");
  CHECK(!chmod(path, 0));
  if (geteuid() != 0) /* root may read everything */
    expect(path, LLM_ERR_IO, EACCES, "Permission denied");
  unlink(path);
}

int main(void) {
  const char *base = getenv("TMPDIR");
  snprintf(folder, sizeof folder, "%s/mapfile-XXXXXX", base ? base : P_tmpdir);
  CHECK(mkdtemp(folder) != NULL);
  test_good();
  test_bad();
  CHECK(!rmdir(folder));
  return check_report("test_mapfile");
}
