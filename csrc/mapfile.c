/* mapfile.c: opening and mapping a whole file for reading. Layer 0; depends on error and POSIX. The
 * mapping is private and read-only; a file that is cut while it is mapped raises SIGBUS on access,
 * which only a program (run*.c), never the library, may handle. */
#define _DEFAULT_SOURCE /* madvise */
#include "mapfile.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "error.h"

static const char *file_kind(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a pipe";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

static llm_status descriptor_map(mapfile *out, int fd, const char *path, llm_error *err) {
  struct stat info;
  if (fstat(fd, &info)) return error_set_errno(err, errno, "%s: cannot read its size", path);
  if (!S_ISREG(info.st_mode))
    return error_set(err, LLM_ERR_FORMAT, "%s is %s, expected a regular file", path,
                     file_kind(info.st_mode));
  if (info.st_size == 0) return error_clear(err); /* mmap refuses a length of 0 */
  void *data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
  if (data == MAP_FAILED) return error_set_errno(err, errno, "%s: cannot map the file", path);
#ifdef MADV_HUGEPAGE
  /* Only a wish: large pages come from the disk in large reads, several times faster than 4 KiB. */
  (void)madvise(data, (size_t)info.st_size, MADV_HUGEPAGE);
#endif
  *out = (mapfile){data, (size_t)info.st_size};
  return error_clear(err);
}

llm_status mapfile_open(mapfile *out, const char *path, llm_error *err) {
  *out = (mapfile){NULL, 0};
  /* O_NONBLOCK: a pipe without a writer is refused rather than waited for. */
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd < 0) return error_set_errno(err, errno, "%s: cannot open the file", path);
  llm_status status = descriptor_map(out, fd, path, err);
  close(fd);
  return status;
}

void mapfile_close(mapfile *map) {
  if (map->data) munmap((void *)map->data, map->n_bytes);
  *map = (mapfile){NULL, 0};
}
