"""Tensors of safetensors files, read row by row and written. Layer 1.

The format (huggingface.co/docs/safetensors): the header's length in 8 bytes, a JSON header, the
data. Files are read by plain reads, never mapped, so that memory holds what is in work alone. Every
size of a header is hostile until it was compared with the file; Python's integers do not overflow.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .atomic import atomic_file
from .errors import FormatError, UnsupportedError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MAX_HEADER = 100 << 20
_ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2}
_ITEM_BYTES |= {"I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
_STORED = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # what converts
_PIECE_BYTES = 16 << 20  # of float32 in work at a time


class StoredTensor(NamedTuple):
    """Where a tensor lies."""

    path: Path
    name: str
    dtype: str  # safetensors' name
    shape: tuple[int, ...]
    offset: int  # from the beginning of the file

    def check_dtype(self) -> None:
        if self.dtype not in _STORED:
            raise UnsupportedError(
                f"{self.path}: tensor {self.name} has dtype {self.dtype}, expected F32, F16 or BF16"
            )

    def read(self, first: int, n: int) -> np.ndarray:
        """n elements as float32, counted from `first`; check_dtype() passed."""
        stored = np.dtype(_STORED[self.dtype])
        values = np.fromfile(self.path, stored, n, offset=self.offset + first * stored.itemsize)
        if values.size != n:
            raise FormatError(f"{self.path}: the file became shorter while it was read")
        if self.dtype == "BF16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32)

    def pieces(self, row_multiple: int = 1) -> Iterator[np.ndarray]:
        """All rows in order, float32 (rows, row length), a few megabytes at a time and always a
        multiple of `row_multiple` of them; a vector is one row."""
        n_rows, width = (1, *self.shape)[-2:] if self.shape else (1, 1)
        step = max(1, _PIECE_BYTES // (4 * width * row_multiple)) * row_multiple
        for row in range(0, n_rows, step):
            n = min(step, n_rows - row)
            yield self.read(row * width, n * width).reshape(n, width)


# ---- JSON of others ----


def _no_repeats(pairs):
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a name appears twice")
    return out


def read_json(path: Path, text: bytes | None = None) -> dict:
    """An object; FormatError for what is not one."""
    raw = path.read_bytes() if text is None else text
    try:
        out = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not JSON: {error}") from error
    if not isinstance(out, dict):
        raise FormatError(f"{path}: expected a JSON object, found {type(out).__name__}")
    return out


# ---- one file ----


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of one file, each checked to lie inside it and outside the others."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, _MAX_HEADER):
            if is_pickle(start):
                raise pickle_error(path)
            raise FormatError(f"{path}: a header of {length} bytes in a file of {size}")
        header = read_json(path, file.read(length))
    header.pop("__metadata__", None)
    base = 8 + length
    found = [_entry(path, name, entry, base) for name, entry in header.items()]
    end = base
    for tensor in sorted(found, key=lambda t: t.offset):
        if tensor.offset != end:
            fault = "overlaps another" if tensor.offset < end else "leaves a gap before it"
            raise FormatError(f"{path}: tensor {tensor.name} at byte {tensor.offset} {fault}")
        end += math.prod(tensor.shape) * _ITEM_BYTES[tensor.dtype]
    if end != size:
        raise FormatError(f"{path}: the tensors end at byte {end}, the file has {size}")
    return {tensor.name: tensor for tensor in found}


def _is_size(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _entry(path: Path, name: str, entry, base: int) -> StoredTensor:
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, span = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    lists = isinstance(shape, list) and isinstance(span, list) and len(span) == 2
    if not lists or len(shape) > 8 or not all(map(_is_size, [*shape, *span])):
        raise FormatError(f"{path}: tensor {name}: expected dtype, shape and data_offsets")
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise UnsupportedError(f"{path}: tensor {name} has dtype {dtype}")
    expected = math.prod(shape) * _ITEM_BYTES[dtype]
    if span[1] - span[0] != expected:
        raise FormatError(
            f"{path}: tensor {name} takes {span[1] - span[0]} bytes, its shape {shape} of {dtype} "
            f"needs {expected}"
        )
    return StoredTensor(path, name, dtype, tuple(shape), base + span[0])


# ---- a folder ----


def read_folder(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of model.safetensors, or of the shards that the index names."""
    if (folder / SINGLE).exists():
        return read_header(folder / SINGLE)
    if (folder / INDEX).exists():
        return _read_shards(folder)
    for path in sorted(folder.iterdir()):
        if path.suffix in PICKLES:
            raise pickle_error(path)
    raise FormatError(f"{folder}: neither {SINGLE} nor {INDEX}")


def is_pickle(start: bytes) -> bool:
    """By the first bytes of a file that cannot be what its name says: a zip archive, or pickle's
    protocol 2 and up."""
    return start[:2] == b"PK" or start[:1] == b"\x80"


def pickle_error(path: Path) -> UnsupportedError:
    return UnsupportedError(
        f"{path}: a pickle, which is a program that loading it would run: it is never loaded. Get "
        "the model as safetensors, or save it so with save_pretrained"
    )


def _read_shards(folder: Path) -> dict[str, StoredTensor]:
    where = folder / INDEX
    weight_map = read_json(where).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{where}: weight_map is missing")
    shards = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or shard != os.path.basename(shard) or not shard:
            raise FormatError(f"{where}: tensor {name} is in {shard!r}, expected a file name")
        if shard not in shards:
            if not (folder / shard).is_file():
                raise FormatError(f"{where}: the shard {shard} is missing from the folder")
            shards[shard] = read_header(folder / shard)
        if name not in shards[shard]:
            raise FormatError(f"{where}: tensor {name} is not in its shard {shard}")
    for shard, tensors in shards.items():
        for name in tensors:
            if weight_map.get(name) != shard:
                raise FormatError(f"{where}: tensor {name} of {shard} is not in the index")
    return {name: shards[shard][name] for name, shard in weight_map.items()}


# ---- writing ----


class NewTensor(NamedTuple):
    name: str
    dtype: str
    shape: Sequence[int]
    pieces: Iterable[np.ndarray]  # the values in order, as they are stored


def write_safetensors(path: Path, tensors: Sequence[NewTensor]) -> None:
    """One file that appears whole or not at all."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for tensor in tensors:
        end = offset + math.prod(tensor.shape) * _ITEM_BYTES[tensor.dtype]
        entry = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        header[tensor.name], offset = entry, end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic_file(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            for piece in tensor.pieces:
                file.write(np.ascontiguousarray(piece).data)
