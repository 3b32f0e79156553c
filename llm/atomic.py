"""Files that appear whole or not at all: written aside, synced, renamed; hashes. Layer 0.

Until the block ends well the old file under the name, if any, stands untouched; any failure,
Ctrl-C included, removes the temporary file.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

# Linux keeps what one call writes in memory in pages as large, up to 2 MiB. A parameter file that
# lies in such pages is mapped by ./run in next to no time, in 4 KiB pages it takes 10 ms (92 MB).
WRITE_BYTES = 8 << 20


@contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file, open for writing, that takes the name `path` when the block ends.

    An error of the operating system (a full disk, say) is an OSError that names `path`.
    """
    path = os.fspath(path)
    refuse_device(path)
    temporary = f"{path}.{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "xb", buffering=WRITE_BYTES) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(os.path.dirname(path) or ".")
    except OSError as error:
        _remove(temporary)
        if error.filename in (None, temporary):  # of our file, not of one that the block read
            raise OSError(error.errno, error.strerror, path) from error
        raise
    except BaseException:
        _remove(temporary)
        raise


def refuse_device(path: str | os.PathLike) -> None:
    """A file would take the place of /dev/null, or of a pipe, for all programs."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # nothing there, or what opening will report
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "is there and is no regular file", os.fspath(path))


def make_folder_of(path: str | os.PathLike) -> None:
    """Makes the folder that a file will lie in, where there is none."""
    folder = os.path.dirname(os.fspath(path)) or "."
    try:
        os.makedirs(folder, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder) from error


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # never made, or already renamed


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: str | os.PathLike) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
