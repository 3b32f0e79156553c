"""Shard sets: folders of token files and a manifest, read through the page cache. Layer 2.

A shard is a header of 64 bytes and its tokens, uint16 where the vocabulary has at most 65,536, else
uint32; the manifest is JSON and carries a hash of itself. Opening a set looks at each shard's size
and header, never at its tokens: ten terabytes open in a moment. Shards follow each other without a
gap: a window may begin in one and end in the next.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .atomic import atomic_file, file_sha256
from .errors import FormatError

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.gguf"
MAGIC, VERSION = b"llmshard", 1
HEADER = struct.Struct("<8sIIQII32s")  # and: token bytes, n_tokens, n_vocab, eot, SHA-256 of tokens
KIND = "two-file-llm shard set"
OPEN_MAPS = 64  # shards that are mapped at a time


def token_type(n_vocab: int) -> np.dtype:
    return np.dtype("<u2" if n_vocab <= 1 << 16 else "<u4")


# ---- writing ----


class ShardWriter:
    def __init__(self, file: BinaryIO, n_vocab: int, eot: int):
        self.n_tokens, self._file, self._sizes = 0, file, (n_vocab, eot)
        self._type, self._digest = token_type(n_vocab), hashlib.sha256()
        file.write(bytes(HEADER.size))

    def write(self, ids: np.ndarray) -> None:
        raw = ids.astype(self._type)
        self._digest.update(raw)
        self._file.write(raw)
        self.n_tokens += len(ids)

    def finish(self) -> str:
        """Writes the header; returns the SHA-256 of the tokens."""
        self._file.seek(0)
        digest, size = self._digest.digest(), self._type.itemsize
        self._file.write(HEADER.pack(MAGIC, VERSION, size, self.n_tokens, *self._sizes, digest))
        return digest.hex()


@contextmanager
def shard_writer(path: Path, n_vocab: int, eot: int, record: dict) -> Iterator[ShardWriter]:
    """A shard that appears whole or not at all; `record` becomes its entry in the manifest."""
    with atomic_file(path) as file:
        writer = ShardWriter(file, n_vocab, eot)
        yield writer
        record.update(file=path.name, n_tokens=writer.n_tokens, sha256=writer.finish())


def write_manifest(folder: Path, content: dict) -> None:
    content = {"kind": KIND, "version": VERSION, **content}
    content["sha256"] = manifest_hash(content)
    with atomic_file(folder / MANIFEST) as file:
        file.write(json.dumps(content, indent=1).encode("utf-8"))


def manifest_hash(content: dict) -> str:
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode("utf-8")).hexdigest()


# ---- reading ----


class TokenStream:
    """The tokens of shards one after the other: len() and slices, which are int32 copies."""

    def __init__(self, folder: Path, shards: list[dict], n_vocab: int):
        self._paths = [folder / shard["file"] for shard in shards]
        self._ends = list(accumulate(shard["n_tokens"] for shard in shards))
        self._n_vocab = n_vocab
        self._map = lru_cache(OPEN_MAPS)(self._map_shard)

    def _map_shard(self, index: int) -> np.ndarray:
        path, kind = self._paths[index], token_type(self._n_vocab)
        begin = self._ends[index - 1] if index else 0
        shape = (self._ends[index] - begin,)
        try:
            with open(path, "rb") as file:
                pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            pages.madvise(mmap.MADV_RANDOM)  # or each window reads megabytes ahead
            return np.frombuffer(pages, kind, *shape, HEADER.size)
        except ValueError as error:  # it has become shorter
            raise FormatError(f"{path}: changed while it was read") from error

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, step = part.indices(len(self))
        if step != 1:
            raise ValueError("a token stream gives slices of step 1")
        out, at = np.empty(max(0, stop - start), np.int32), start
        while at < stop:
            index = bisect_right(self._ends, at)
            begin = self._ends[index - 1] if index else 0
            end = min(stop, self._ends[index])
            tokens = self._map(index)[at - begin : end - begin]
            if tokens.max() >= self._n_vocab:
                where = at - begin + int(np.argmax(tokens >= self._n_vocab))
                raise FormatError(
                    f"{self._paths[index]}: damaged: token {where} is {tokens.max()}, "
                    f"the vocabulary has {self._n_vocab}"
                )
            out[at - start : end - start] = tokens
            at = end
        return out


class ShardSet:
    """An open shard set: `train` and `held_out` are its TokenStreams, eot the id before each
    document. FormatError names the file that is damaged, missing or another one than it was."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        content = read_manifest(self.folder / MANIFEST)
        self.content, self.sha256 = content, content["sha256"]
        self.n_vocab, self.eot = content["n_vocab"], content["eot"]
        self.name = content["corpus"]["name"]
        shards = content["train"] + content["held_out"]
        self.n_bytes = sum(shard["n_bytes"] for shard in shards)
        self.n_documents = sum(shard["n_documents"] for shard in shards)
        for shard in shards:
            self._check_shard(shard)
        tokenizer = content["tokenizer"]
        need_file(self.tokenizer_path)
        if file_sha256(self.tokenizer_path) != tokenizer["file_sha256"]:
            raise FormatError(f"{self.tokenizer_path}: not the tokenizer of the shards")
        self.train = TokenStream(self.folder, content["train"], self.n_vocab)
        self.held_out = TokenStream(self.folder, content["held_out"], self.n_vocab)

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / TOKENIZER

    def _check_shard(self, shard: dict) -> None:
        path, kind = self.folder / shard["file"], token_type(self.n_vocab)
        need_file(path)
        with open(path, "rb") as file:
            header, size = file.read(HEADER.size), os.fstat(file.fileno()).st_size
        expected = HEADER.size + shard["n_tokens"] * kind.itemsize
        if size != expected:
            raise FormatError(f"{path}: {size:,} bytes, expected {expected:,}")
        wanted = HEADER.pack(
            MAGIC,
            VERSION,
            kind.itemsize,
            shard["n_tokens"],
            self.n_vocab,
            self.eot,
            bytes.fromhex(shard["sha256"]),
        )
        if header[:8] != MAGIC:
            raise FormatError(f"{path}: not a shard: begins with {header[:8]!r}")
        if header != wanted:
            raise FormatError(f"{path}: not the shard that {MANIFEST} tells of: another header")

    def verify(self, progress: Callable[[int], None] = lambda n_bytes: None) -> None:
        """Reads every token and compares the hashes."""
        for shard in self.content["train"] + self.content["held_out"]:
            path, digest = self.folder / shard["file"], hashlib.sha256()
            with open(path, "rb") as file:
                file.seek(HEADER.size)
                while chunk := file.read(1 << 22):
                    digest.update(chunk)
                    progress(len(chunk))
            if digest.hexdigest() != shard["sha256"]:
                raise FormatError(f"{path}: the tokens have another SHA-256 than {MANIFEST} says")


def read_manifest(path: Path) -> dict:
    try:
        content = json.loads(path.read_bytes())
        if content["kind"] != KIND:
            raise ValueError(f"kind {content['kind']!r}")
        if content["version"] != VERSION:
            raise FormatError(f"{path}: version {content['version']}, expected {VERSION}")
        if content["sha256"] != manifest_hash(content):
            raise ValueError("it does not have the hash that it carries")
        check_content(content)
    except FileNotFoundError:
        raise FormatError(f"{path}: missing: no finished shard set in this folder") from None
    except FormatError:
        raise
    except KeyError as error:
        raise FormatError(f"{path}: damaged or no manifest: it lacks {error}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"{path}: damaged or no manifest: {error}") from error
    return content


def shard_files(folder: Path) -> list[Path]:
    """What reads of a shard set depend on."""
    content = read_manifest(folder / MANIFEST)
    shards = [shard["file"] for shard in content["train"] + content["held_out"]]
    return [folder / name for name in (MANIFEST, TOKENIZER, *shards)]


def need_file(path: Path) -> None:
    """A pipe would never end."""
    if not path.is_file():
        raise FormatError(f"{path}: {'no regular file' if path.exists() else 'missing'}")


def check_content(content: dict) -> None:
    """ValueError for what write_manifest is never given: anyone can make a hash."""

    def number(place: dict, name: str, end: int = 1 << 63) -> int:
        if type(place[name]) is not int or not 0 <= place[name] < end:
            raise ValueError(f"{name} is {place[name]!r}")
        return place[name]

    number(content, "eot", number(content, "n_vocab", 1 << 32))
    tokenizer = content["tokenizer"]
    for text in (content["corpus"]["name"], tokenizer["file_sha256"], tokenizer["fingerprint"]):
        if not isinstance(text, str):
            raise ValueError(f"{text!r} is no text")
    for shard in content["train"] + content["held_out"]:
        for name in ("n_tokens", "n_documents", "n_bytes"):
            number(shard, name)
        if not re.fullmatch(r"[\w-][\w.-]*", shard["file"]):  # of this folder, and no other
            raise ValueError(f"{shard['file']!r} is no name of a shard")
        if not re.fullmatch("[0-9a-f]{64}", shard["sha256"]):
            raise ValueError(f"{shard['sha256']!r} is no SHA-256")
