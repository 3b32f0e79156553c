"""`python -m llm zip IN OUT --model FILE` and `unzip`. Layer 12. zip.py does the work; OUT appears
whole or not at all; - is standard input or output, which get what was checked, too.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from .atomic import atomic_file
from .errors import FormatError, UnsupportedError

if TYPE_CHECKING:
    from .zip import Sizes


def add_arguments(command: ArgumentParser, run: Callable[[Namespace], int]) -> None:
    command.set_defaults(command=run)
    command.add_argument("input", metavar="IN", help="-: standard input")
    command.add_argument("output", metavar="OUT", help="-: standard output")
    command.add_argument("--model", metavar="FILE", required=True, help="the parameter file")
    command.add_argument("--threads", type=int, default=0, help="0: one per core")
    command.add_argument(
        "--portable",
        action="store_true",
        help="compute with the scalar kernels, the specification of the others; slow",
    )


def add_zip(command: ArgumentParser) -> None:
    add_arguments(command, run_zip)
    command.add_argument("--block", type=int, help="bytes that are coded alone (32768)")
    command.add_argument(
        "--window",
        type=int,
        help="tokens that the model looks back on (2048, or what it was trained on)",
    )


def add_unzip(command: ArgumentParser) -> None:
    add_arguments(command, run_unzip)
    command.add_argument("--lanes", type=int, help="blocks that are read at once (8)")


@contextmanager
def source_file(path: str) -> Iterator[BinaryIO]:
    """What can seek: a pipe is read to its end first."""
    if path == "-":
        refuse_closed(sys.stdin, "standard input")
    with open(0 if path == "-" else path, "rb", closefd=path != "-") as file:
        if file.seekable():
            yield file
            return
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(file, copy)
            copy.seek(0)
            yield copy


@contextmanager
def target_file(path: str) -> Iterator[BinaryIO]:
    if path != "-":
        with atomic_file(path) as file:
            yield file
        return
    with tempfile.TemporaryFile() as copy:
        yield copy
        copy.seek(0)
        shutil.copyfileobj(copy, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def refuse_closed(stream, name: str) -> None:
    if getattr(stream, "name", None) == os.devnull:  # which main() opens in its place
        raise OSError(errno.EBADF, "closed by the caller", name)


def check_paths(options: Namespace) -> None:
    if options.output == "-":
        refuse_closed(sys.stdout, "standard output")
    for name, path in (("IN", options.input), ("the parameter file", options.model)):
        both_exist = path != "-" and os.path.exists(path) and os.path.exists(options.output)
        if both_exist and os.path.samefile(options.output, path):
            raise ValueError(f"{options.output}: OUT is {name}")
    if os.path.isdir(options.output):
        raise ValueError(f"{options.output}: OUT is a folder")


def engine_options(options: Namespace) -> dict:
    """What zip.py takes, without what was not given."""
    kernels = "scalar" if options.portable else None
    given = {"n_threads": options.threads, "kernels": kernels}
    for flag, name in (("block", "block_bytes"), ("window", "window"), ("lanes", "lanes")):
        if getattr(options, flag, None) is not None:
            given[name] = getattr(options, flag)
    for name, value in given.items():
        if isinstance(value, int) and not 0 <= value < 1 << 31:
            raise ValueError(f"{name} is {value}, expected 0 to {(1 << 31) - 1}")
    return given


def bar(total: int, title: str):
    from tqdm import tqdm

    shown = tqdm(total=total, unit="B", unit_scale=True, desc=title, disable=None)
    return shown, lambda n_bytes: shown.update(int(n_bytes) - shown.n)


def run_zip(options: Namespace) -> int:
    from .engine import Model
    from .zip import compress

    check_paths(options)
    with source_file(options.input) as source, Model(options.model) as model:
        shown, progress = bar(os.fstat(source.fileno()).st_size, "zip")
        with shown, target_file(options.output) as target:
            sizes = compress(model, source, target, progress, **engine_options(options))
    said = sys.stderr if options.output == "-" else sys.stdout
    print(table(sizes, os.path.getsize(options.model)), file=said)
    return 0


def table(sizes: Sizes, n_model: int) -> str:
    """Bytes, bits per byte of text, and the archive with the file that reads it."""
    rows = [
        ("text", sizes.n_bytes),
        ("xz -9e", sizes.n_xz),
        ("this archive", sizes.n_archive),
        ("with the parameter file", sizes.n_archive + n_model),
    ]
    width, n_bytes = len(f"{rows[-1][1]:,}"), sizes.n_bytes
    return "\n".join(
        f"{a:<24}{b:>{width},} bytes" + (f" {8 * b / n_bytes:>12,.3f} bits/byte" if n_bytes else "")
        for a, b in rows
    )


def run_unzip(options: Namespace) -> int:
    from .engine import Model
    from .zip import decompress, read_header

    check_paths(options)
    with source_file(options.input) as source, Model(options.model) as model:
        try:
            header = read_header(source)
            source.seek(0)
            shown, progress = bar(header.n_bytes, "unzip")
            with shown, target_file(options.output) as target:
                decompress(model, source, target, progress, **engine_options(options))
        except (FormatError, UnsupportedError) as error:
            raise type(error)(f"{options.input}: {error}") from None
    print(f"{header.n_bytes:,} bytes, as they were", file=sys.stderr)
    return 0
