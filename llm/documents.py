"""Files to documents: text, Markdown, JSON lines and Parquet, plain or compressed. Layer 2.

A document is bytes of valid UTF-8, without a leading byte order mark. Files are read as streams, so
memory does not grow with them: a text of more than part_bytes comes in parts that end at a line.
What is not text raises NotText, what is damaged or cannot be read another CorpusError, each of one
line that begins with the file's name; a bad record of a file goes to `skip` and nothing else does.
"""

from __future__ import annotations

import glob
import io
import json
import lzma
import os
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from .errors import CorpusError

FORMATS = {".txt": "text", ".md": "text", ".jsonl": "jsonl", ".parquet": "parquet"}
COMPRESSIONS = (".gz", ".xz", ".zst")
FIELDS = ("text", "content", "raw_content", "body", "document", "article", "markdown")
PART_BYTES = 16 << 20
LONGEST_RECORD = 64 << 20  # bytes of a line of JSON
ZERO_BYTE = b"\0"


class NotText(CorpusError):
    """A file that can be read but is not UTF-8 text."""


class Source(NamedTuple):
    """A file, or the bytes start .. end - 1 of one that is not compressed."""

    path: str
    start: int = 0
    end: int | None = None


def format_of(path: str) -> tuple[str | None, str]:
    """("text", "jsonl", "parquet" or None, compression suffix or "") by the file's name."""
    stem, suffix = os.path.splitext(path.lower())
    compression = suffix if suffix in COMPRESSIONS else ""
    return FORMATS.get(os.path.splitext(stem)[1] if compression else suffix), compression


# ---- which files ----


def find_files(paths: list[str], skip: Callable[[str], None]) -> list[str]:
    """Files as they are named, folders and patterns in the order of names; each file once. What a
    folder holds but FORMATS does not know goes to `skip`."""
    found: dict[str, None] = {}
    for path in paths:
        if not path:
            raise CorpusError("an empty path: name a file or a folder of text")
        if os.path.isdir(path):
            found.update(dict.fromkeys(_walk(path, skip)))
        elif not os.path.lexists(path) and glob.has_magic(path):
            matches = sorted(glob.glob(path, recursive=True))
            if not matches:
                raise CorpusError(f"{path}: no file has such a name")
            found.update(dict.fromkeys(m for m in matches if not os.path.isdir(m)))
        else:
            found[path] = None
    return list(found)


def _walk(folder: str, skip: Callable[[str], None]) -> Iterator[str]:
    def stop(error: OSError):
        raise CorpusError(f"{error.filename}: cannot read the folder: {error.strerror}")

    for parent, folders, names in os.walk(folder, onerror=stop):
        folders.sort()
        for path in (os.path.join(parent, name) for name in sorted(names)):
            if format_of(path)[0]:
                yield path
            else:
                skip(f"{path}: not {', '.join(FORMATS)}, nor one of them in .gz, .xz, .zst")


# ---- reading one ----


def read_documents(
    source: Source,
    field: str | None,
    skip: Callable[[str], None],
    part_bytes: int | None = PART_BYTES,
) -> Iterator[bytes]:
    """The documents of a file of any name (an unknown one is text). field: of a record; None: the
    one string that a record has, or the first of FIELDS. part_bytes None: texts come whole."""
    path = source.path
    kind, compression = format_of(path)
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):  # a pipe or a device may never end
            raise CorpusError(f"{path}: neither a file nor a folder")
        if not compression and source.end is None:
            source = Source(path, source.start, found.st_size)
        with _open(path, compression) as file:
            if source.start:
                if kind == "jsonl" and field is None:
                    field = _first_field(file, path)
                file.seek(source.start)
            if kind == "jsonl":
                yield from _records(file, source, field, skip)
            elif kind == "parquet":
                yield from _table(file, path, field, skip)
            else:
                yield from _texts(file, source, part_bytes)
    except EOFError as error:
        raise CorpusError(f"{path}: truncated or damaged: {error}") from error
    except OSError as error:
        raise CorpusError(f"{path}: cannot read: {error.strerror or error}") from error


def _open(path: str, compression: str) -> BinaryIO:
    if not compression:
        return open(path, "rb", 1 << 16)
    return io.BufferedReader(_Frames(path, *_decompressor(compression)), 1 << 20)


def _decompressor(compression: str) -> tuple[Callable, type[Exception], bytes]:
    """(maker of one, what it raises, what may lie between two streams)."""
    if compression == ".gz":
        return lambda: zlib.decompressobj(wbits=31), zlib.error, b"\0"
    if compression == ".xz":
        return lzma.LZMADecompressor, lzma.LZMAError, b"\0"
    zstandard = need("zstandard")
    return zstandard.ZstdDecompressor().decompressobj, zstandard.ZstdError, b""


def need(module: str):
    """An optional package of the extra [data]."""
    try:
        return __import__(module, fromlist=["_"])
    except ModuleNotFoundError as error:
        name = module.split(".")[0]
        raise CorpusError(
            f"reading this needs the package {name}: pip install 'two-file-llm[data]'"
        ) from error


class _Frames(io.RawIOBase):
    """Compressed streams one after the other. Unlike the readers of the packages, it finds the last
    one cut short, and what is none behind another. What it meets it raises as EOFError."""

    def __init__(self, path: str, new: Callable, error: type[Exception], padding: bytes):
        self._new, self._error, self._padding = new, error, padding
        self._file = open(path, "rb")
        self._frame, self._out, self._pending = None, b"", b""
        self._n_frames = 0

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer) -> int:
        while not self._out:
            data = self._pending or self._file.read(1 << 14)  # which may swell a lot
            self._pending = b""
            if not data:
                if self._frame is not None or not self._n_frames:
                    raise EOFError("it ends early")
                return 0
            if self._frame is None and self._n_frames:
                data = data.lstrip(self._padding)
                if not data:
                    continue
            self._frame = self._frame or self._new()
            try:
                self._out = self._frame.decompress(data)
            except self._error as error:
                raise EOFError(str(error)) from error
            if self._frame.eof:
                self._pending, self._frame = self._frame.unused_data, None
                self._n_frames += 1
        n = min(len(buffer), len(self._out))
        buffer[:n], self._out = self._out[:n], self._out[n:]
        return n


def _texts(file: BinaryIO, source: Source, part_bytes: int | None) -> Iterator[bytes]:
    path, start, end = source
    at, rest = start, b""
    while end is None or at < end:
        size = -1 if part_bytes is None else part_bytes - len(rest)
        if end is not None:
            size = end - at - len(rest) if size < 0 else min(size, end - at - len(rest))
        more = file.read(size)
        data = rest + more if rest else more
        if not data:
            return
        cut = len(data)
        if part_bytes is not None and cut == part_bytes:
            cut = data.rfind(b"\n") + 1 or character_border(data)
        part, rest = data[:cut], data[cut:]
        check_text(part, path, at)
        if at == 0:
            part = part.removeprefix(b"\xef\xbb\xbf")
        at += cut
        yield part


def character_border(data: bytes) -> int:
    """Where the last character of UTF-8 begins, at most 4 bytes before the end."""
    for back in range(1, min(4, len(data) - 1) + 1):
        if data[-back] & 0xC0 != 0x80:
            return len(data) - back
    return len(data)


def check_text(data: bytes, path: str, offset: int = 0) -> None:
    """NotText unless it is UTF-8 without zero bytes."""
    if ZERO_BYTE in data:
        raise NotText(f"{path}: binary (a zero byte at {offset + data.index(ZERO_BYTE)})")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        where = f"byte 0x{data[error.start]:02x} at {offset + error.start}"
        raise NotText(f"{path}: not UTF-8 ({where})") from error


# ---- records ----


def _records(file: BinaryIO, source: Source, field: str | None, skip) -> Iterator[bytes]:
    path, at, end = source
    number = 0
    while end is None or at < end:
        line = file.readline(LONGEST_RECORD + 1)
        if not line:
            return
        number += 1
        where = f"{path}: line {number}" + (f" from byte {source.start}" if source.start else "")
        at += len(line)
        if len(line) > LONGEST_RECORD:
            raise CorpusError(f"{where}: longer than {LONGEST_RECORD >> 20} MiB")
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except UnicodeDecodeError:
            skip(f"{where}: not UTF-8")
            continue
        except (ValueError, RecursionError):
            if number == 1 and not source.start:
                raise NotText(f"{where}: not JSON") from None
            skip(f"{where}: not JSON")
            continue
        if isinstance(record, dict):
            if field is None:
                field = guess_field(record, where)
            elif number == 1 and not source.start and field not in record:
                raise _no_field(where, field, record)
            record = record.get(field)
        if not isinstance(record, str):
            skip(f"{where}: no text")
            continue
        try:
            yield record.encode("utf-8")
        except UnicodeEncodeError:
            skip(f"{where}: half a surrogate pair")


def _first_field(file: BinaryIO, path: str) -> str | None:
    """The field that a file's first record chooses, for all parts of it."""
    while line := file.readline(LONGEST_RECORD + 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            return guess_field(record, path)
    return None


def _no_field(where: str, field: str, known) -> CorpusError:
    names = ", ".join(name[:40] for name in list(known)[:12]) or "none"
    choose = f"there are: {names}; name one: llm data --field"
    what = f"field {field!r} is no text" if field in known else f"no field {field!r}"
    return CorpusError(f"{where}: {what}; {choose}")


def guess_field(record: dict, where: str) -> str:
    texts = [name for name, value in record.items() if isinstance(value, str)]
    for name in FIELDS:
        if name in texts:
            return name
    if len(texts) != 1:
        raise _no_field(where, "text", record)
    return texts[0]


def _table(file: BinaryIO, path: str, field: str | None, skip) -> Iterator[bytes]:
    parquet, pyarrow = need("pyarrow.parquet"), need("pyarrow")
    with tempfile.TemporaryFile() as plain:
        if not path.lower().endswith(".parquet"):  # compressed once more; the format needs seeks
            while chunk := file.read(1 << 20):
                plain.write(chunk)
            file = plain
        try:
            table = parquet.ParquetFile(file)
            texts = {
                column.name: ""
                for column in table.schema_arrow
                if column.type in (pyarrow.string(), pyarrow.large_string())
            }
            name = guess_field(texts, path) if field is None else field
            if name not in texts:
                raise _no_field(path, name, texts)
            row = 0
            for batch in table.iter_batches(batch_size=256, columns=[name]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    if text is None:
                        skip(f"{path}: row {row}: no text")
                    else:
                        yield text.encode("utf-8")
        except UnicodeDecodeError as error:
            raise NotText(f"{path}: not UTF-8 ({error.reason})") from error
        except pyarrow.ArrowException as error:
            reason = str(error).splitlines()[0] if str(error) else "no reason given"
            raise CorpusError(f"{path}: truncated or damaged: {reason}") from error
