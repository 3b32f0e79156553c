"""Writing parameter files: the one GGUF writer, and what a trained model's file says. Layer 4.

csrc/FORMAT.md is the contract; files are read back by the engine alone (csrc/gguf.c). Tensors go
to the disk one at a time, so memory stays far below the file's size. An F32 export writes the
trainer's buffer as it lies in memory.
"""

from __future__ import annotations

import enum
import errno
import functools
import hashlib
import math
import os
import secrets
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .atomic import atomic_file, refuse_device
from .config import ALIGNMENT, ModelConfig, layout, layout_size

MAGIC, VERSION = b"GGUF", 3
RUN_PREFIX = "two_file.run."  # figures of a clock or a machine: not part of "the same file"


class ValueType(enum.IntEnum):
    """gguf_metadata_value_type; csrc/gguf.h has the C twin."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_FORMATS = {
    ValueType.UINT8: "<B",
    ValueType.INT8: "<b",
    ValueType.UINT16: "<H",
    ValueType.INT16: "<h",
    ValueType.UINT32: "<I",
    ValueType.INT32: "<i",
    ValueType.FLOAT32: "<f",
    ValueType.BOOL: "<?",
    ValueType.UINT64: "<Q",
    ValueType.INT64: "<q",
    ValueType.FLOAT64: "<d",
}


class _DataHash:
    """Stands for the SHA-256 of the tensor data, which is known when the data is written."""


DATA_SHA256 = _DataHash()


class Entry(NamedTuple):
    """One metadata entry. Strings are str or bytes; a string may be DATA_SHA256."""

    key: str
    value: Any
    type: ValueType
    element_type: ValueType | None = None  # of an ARRAY


class TensorData(NamedTuple):
    """One tensor. `data` holds exactly its bytes in the file: bytes-like, a C-ordered array, or a
    function that returns one when its turn comes, or an iterator of several that follow each other.
    """

    name: str  # GGUF's
    shape: tuple[int, ...]  # row-major: (n_out, n_in)
    type_name: str  # "F32", "Q4_1"
    data: Any


# ---- the writer ----


class _Type(NamedTuple):
    number: int
    n_per_block: int
    bytes_per_block: int


@functools.cache
def _tensor_type(name: str) -> _Type:
    from llm._llm import ffi, lib

    for number in range(256):
        info = lib.llm_type_describe(number)
        if info.n_per_block and ffi.string(info.name).decode() == name:
            return _Type(number, info.n_per_block, info.bytes_per_block)
    raise ValueError(f"tensor type {name!r} is not one that the engine knows")


def _string(value: str | bytes) -> bytes:
    raw = value.encode("utf-8") if isinstance(value, str) else bytes(value)
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any, kind: ValueType, data_sha256: str) -> bytes:
    if value is DATA_SHA256:
        value = data_sha256
    return _string(value) if kind == ValueType.STRING else struct.pack(_FORMATS[kind], value)


def _entry(entry: Entry, data_sha256: str) -> bytes:
    try:
        out = _string(entry.key) + struct.pack("<I", entry.type)
        if entry.type != ValueType.ARRAY:
            return out + _value(entry.value, entry.type, data_sha256)
        out += struct.pack("<IQ", entry.element_type, len(entry.value))
        return out + b"".join(_value(v, entry.element_type, data_sha256) for v in entry.value)
    except (struct.error, OverflowError, TypeError, KeyError, UnicodeError) as error:
        raise ValueError(f"key {entry.key}: {error}") from error


def _padding(n: int, alignment: int) -> int:
    return -n % alignment


def _tensor_bytes(tensor: TensorData) -> int:
    kind = _tensor_type(tensor.type_name)
    if not 1 <= len(tensor.shape) <= 4 or min(tensor.shape) < 1:
        raise ValueError(f"tensor {tensor.name}: shape {tensor.shape}, expected 1 to 4 sizes >= 1")
    if tensor.shape[-1] % kind.n_per_block:
        raise ValueError(
            f"tensor {tensor.name}: rows of {tensor.shape[-1]} elements are not whole blocks of "
            f"{kind.n_per_block} ({tensor.type_name})"
        )
    return math.prod(tensor.shape) // kind.n_per_block * kind.bytes_per_block


def _header(
    metadata: Sequence[Entry], tensors: Sequence[TensorData], alignment: int, data_sha256: str
) -> bytes:
    """All bytes before the tensor data, padding included."""
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    parts += [_entry(entry, data_sha256) for entry in metadata]
    offset = 0
    for tensor in tensors:
        parts.append(_string(tensor.name) + struct.pack("<I", len(tensor.shape)))
        parts.append(struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape)))
        parts.append(struct.pack("<IQ", _tensor_type(tensor.type_name).number, offset))
        size = _tensor_bytes(tensor)
        offset += size + _padding(size, alignment)
    header = b"".join(parts)
    return header + bytes(_padding(len(header), alignment))


def _check_names(names: Iterable[str], thing: str, longest: int) -> None:
    """The rules of FORMAT.md for keys and tensor names."""
    seen = set()
    for name in names:
        if not 1 <= len(name) <= longest or not all("!" <= c <= "~" for c in name):
            raise ValueError(f"{thing} {name!r}: expected 1 to {longest} printable ASCII bytes")
        if name in seen:
            raise ValueError(f"{thing} {name} appears twice")
        seen.add(name)


def _check_tokens(metadata: Sequence[Entry]) -> None:
    for entry in metadata:
        if entry.key != "tokenizer.ggml.tokens":
            continue
        seen = set()
        for i, token in enumerate(entry.value):
            if token in seen:
                raise ValueError(f"token {i}, {token!r}, appears twice in the vocabulary")
            seen.add(token)


def _with_alignment(metadata: Iterable[tuple], alignment: int) -> list[Entry]:
    """general.alignment says what the caller's argument says; it goes first when it is missing."""
    entries = [Entry(*entry) for entry in metadata]
    for entry in entries:
        if entry.key == "general.alignment" and entry.value != alignment:
            raise ValueError(f"general.alignment is {entry.value}, expected {alignment}")
    if any(entry.key == "general.alignment" for entry in entries):
        return entries
    return [Entry("general.alignment", alignment, ValueType.UINT32), *entries]


def refuse_foreign(path: str | os.PathLike) -> None:
    """What is no parameter file is not replaced by one: a mistyped name costs nothing."""
    refuse_device(path)  # to open a pipe waits
    try:
        with open(path, "rb") as file:
            begins = file.read(4)
    except OSError:
        return  # nothing there, or what writing will report
    if begins not in (b"", MAGIC):
        raise FileExistsError(
            errno.EEXIST, "is there and is no parameter file: choose another name", os.fspath(path)
        )


def write_parameter_file(
    path: str | os.PathLike,
    metadata: Iterable[tuple],
    tensors: Iterable[tuple],
    alignment: int = ALIGNMENT,
) -> None:
    """Writes a GGUF v3 file that appears whole or not at all.

    metadata: Entry tuples; tensors: TensorData tuples. A value DATA_SHA256 becomes the SHA-256 of
    the data section, padding included. Raises ValueError for what the format forbids, OSError with
    the file's name when it cannot be written, or is there and is something else.
    """
    refuse_foreign(path)
    entries = _with_alignment(metadata, alignment)
    infos = [TensorData(*tensor) for tensor in tensors]
    _check_names((entry.key for entry in entries), "key", 255)
    _check_names((tensor.name for tensor in infos), "tensor", 63)
    _check_tokens(entries)
    unknown = secrets.token_hex(32)  # stands where the digest will
    header = _header(entries, infos, alignment, unknown)
    with atomic_file(path) as file:
        file.write(header)
        digest = hashlib.sha256()
        for tensor in infos:
            for part in _tensor_parts(tensor, alignment):
                digest.update(part)
                file.write(part)
        if any(entry.value is DATA_SHA256 for entry in entries):
            file.seek(0)
            file.write(header.replace(unknown.encode(), digest.hexdigest().encode()))


def _tensor_parts(tensor: TensorData, alignment: int) -> Iterator[memoryview | bytes]:
    """The tensor's bytes, then its padding."""
    data = tensor.data() if callable(tensor.data) else tensor.data
    expected, n_bytes = _tensor_bytes(tensor), 0
    for part in data if isinstance(data, Iterator) else (data,):
        raw = memoryview(part).cast("B")
        n_bytes += raw.nbytes
        if n_bytes <= expected:
            yield raw
    if n_bytes != expected:
        raise ValueError(f"tensor {tensor.name}: {n_bytes} bytes, expected {expected}")
    yield bytes(_padding(n_bytes, alignment))


# ---- what a trained model's file says ----


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte in the token strings of a byte-level BPE:
    itself where it is printable Latin-1, else the next free one from U+0100 (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = iter(range(0x100, 0x200))
    return [chr(b if b in printable else next(shifted)) for b in range(256)]


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE as it goes into a file: the raw bytes of each id, and the merges best first.

    A control token's bytes are its text.
    """

    tokens: Sequence[bytes]
    merges: np.ndarray  # (n, 2) ids
    pre: str  # a tokenizer.ggml.pre name
    bos: int | None = None
    eos: int | None = None
    add_bos: bool = False
    control: frozenset[int] = frozenset()  # further control tokens; bos and eos always are

    def entries(self) -> list[Entry]:
        control = self.control | {id for id in (self.bos, self.eos) if id is not None}
        alphabet = byte_alphabet()
        spelled = [
            raw.decode("utf-8") if id in control else "".join(alphabet[b] for b in raw)
            for id, raw in enumerate(self.tokens)
        ]
        pairs = np.asarray(self.merges, dtype=np.int64).reshape(-1, 2)
        merges = [f"{spelled[left]} {spelled[right]}" for left, right in pairs.tolist()]
        types = [3 if id in control else 1 for id in range(len(spelled))]  # llm_token_type
        out = [
            Entry("tokenizer.ggml.model", "gpt2", ValueType.STRING),
            Entry("tokenizer.ggml.pre", self.pre, ValueType.STRING),
            Entry("tokenizer.ggml.tokens", spelled, ValueType.ARRAY, ValueType.STRING),
            Entry("tokenizer.ggml.token_type", types, ValueType.ARRAY, ValueType.INT32),
            Entry("tokenizer.ggml.merges", merges, ValueType.ARRAY, ValueType.STRING),
            Entry("tokenizer.ggml.add_bos_token", self.add_bos, ValueType.BOOL),
        ]
        for name, id in (("bos", self.bos), ("eos", self.eos)):
            if id is not None:
                out.append(Entry(f"tokenizer.ggml.{name}_token_id", id, ValueType.UINT32))
        return out


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from. `figures` holds further ones by key behind "two_file."
    ("corpus.tokens", "memorisation.training"), `run` those of a clock or a machine (seconds,
    tokens_per_second, date, threads, kernels): int, float or str each."""

    name: str
    corpus_name: str
    corpus_bytes: int
    corpus_sha256: str
    train_tokens: int
    train_steps: int
    train_seed: int
    train_flops: float
    validation_bytes: int
    validation_bits_per_byte: float
    quantization_bits_per_byte_change: float = 0.0
    figures: Mapping[str, int | float | str] = field(default_factory=dict)
    run: Mapping[str, int | float | str] = field(default_factory=dict)

    def entries(self) -> list[Entry]:
        return [
            Entry("two_file.version", 1, ValueType.UINT32),
            Entry("two_file.tensor_sha256", DATA_SHA256, ValueType.STRING),
            Entry("two_file.corpus.name", self.corpus_name, ValueType.STRING),
            Entry("two_file.corpus.bytes", self.corpus_bytes, ValueType.UINT64),
            Entry("two_file.corpus.sha256", self.corpus_sha256, ValueType.STRING),
            Entry("two_file.train.tokens", self.train_tokens, ValueType.UINT64),
            Entry("two_file.train.steps", self.train_steps, ValueType.UINT64),
            Entry("two_file.train.seed", self.train_seed, ValueType.UINT64),
            Entry("two_file.train.flops", self.train_flops, ValueType.FLOAT64),
            Entry("two_file.validation.bytes", self.validation_bytes, ValueType.UINT64),
            Entry(
                "two_file.validation.bits_per_byte",
                self.validation_bits_per_byte,
                ValueType.FLOAT32,
            ),
            Entry(
                "two_file.quantization.bits_per_byte_change",
                self.quantization_bits_per_byte_change,
                ValueType.FLOAT32,
            ),
            *(Entry(f"two_file.{key}", v, _plain_type(v)) for key, v in self.figures.items()),
        ]

    def run_entries(self) -> list[Entry]:
        return [Entry(RUN_PREFIX + key, v, _plain_type(v)) for key, v in self.run.items()]


def _plain_type(value: int | float | str) -> ValueType:
    if isinstance(value, str):
        return ValueType.STRING
    return ValueType.INT64 if isinstance(value, int | np.integer) else ValueType.FLOAT64


_KEY_TYPES = {int: ValueType.UINT32, float: ValueType.FLOAT32, str: ValueType.STRING}


def trained_model_metadata(
    config: ModelConfig, vocabulary: Vocabulary, provenance: Provenance
) -> list[Entry]:
    """The keys of a trained model's F32 file but its proof block, its ratio and two_file.run."""
    if len(vocabulary.tokens) != config.n_vocab:
        raise ValueError(f"{len(vocabulary.tokens)} tokens, expected n_vocab {config.n_vocab}")
    keys = config.to_gguf()
    architecture = Entry("general.architecture", keys.pop("general.architecture"), ValueType.STRING)
    return [
        architecture,
        Entry("general.name", provenance.name, ValueType.STRING),
        Entry("general.file_type", 0, ValueType.UINT32),  # llama.cpp's number for all F32
        Entry("general.alignment", ALIGNMENT, ValueType.UINT32),
        *(Entry(key, value, _KEY_TYPES[type(value)]) for key, value in keys.items()),
        *vocabulary.entries(),
        *provenance.entries(),
    ]


def proof_entries(path: str, probes: Sequence[Sequence[int]], n_new: int) -> list[Entry]:
    from .engine import proof

    greedy, digests = proof(path, probes, n_new)
    ints, strings = (ValueType.ARRAY, ValueType.INT32), (ValueType.ARRAY, ValueType.STRING)
    return [
        Entry("two_file.proof.prompt_ids", [id for ids in probes for id in ids], *ints),
        Entry("two_file.proof.prompt_lengths", [len(ids) for ids in probes], *ints),
        Entry("two_file.proof.greedy_ids", [id for ids in greedy for id in ids], *ints),
        Entry("two_file.proof.n_new", n_new, ValueType.UINT32),
        Entry("two_file.proof.logits_sha256", digests, *strings),
    ]


def ratio_entry(corpus_bytes: int, metadata: list[Entry], tensors: list[TensorData]) -> Entry:
    """Bytes of the corpus over bytes of this file without its two_file.run entries, whose lengths
    must not change a figure that "the same file" compares."""
    ratio = Entry("two_file.ratio", 0.0, ValueType.FLOAT32)
    n_bytes = len(_header([*metadata, ratio], tensors, ALIGNMENT, "0" * 64))
    for tensor in tensors:
        n_bytes += _tensor_bytes(tensor) + _padding(_tensor_bytes(tensor), ALIGNMENT)
    return ratio._replace(value=corpus_bytes / n_bytes)


def float_tensors(config: ModelConfig, flat_params: np.ndarray) -> list[TensorData]:
    """Those of config.layout() in float32, as views of its buffer."""
    return [
        TensorData(e.gguf_name, e.shape, "F32", flat_params[e.offset : e.offset + e.size])
        for e in layout(config)
    ]


@contextmanager
def unproved_file(path: str) -> Iterator[str]:
    """The name of a file beside `path` that the engine reads for what `path` will say; it goes when
    the block ends. Errors name `path`."""
    first = f"{path}.{secrets.token_hex(4)}.unproved.tmp"
    try:
        yield first
    except OSError as error:
        if error.filename != first:
            raise
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        if os.path.exists(first):
            os.unlink(first)


def write_proved(
    path: str | os.PathLike,
    config: ModelConfig,
    flat_params: np.ndarray,
    metadata: list[Entry],
    provenance: Provenance,
    probes: Sequence[Sequence[int]],
    n_new: int = 16,
) -> None:
    """Writes a trained model as F32 with a proof block. metadata: all its other keys but the ratio
    and the provenance's two_file.run.

    flat_params: the buffer of config.layout(), (layout_size(config),) float32. probes: the ids of
    each prompt of the proof block, len + n_new - 1 <= n_ctx. The proof comes from the engine, which
    reads a first file without it under a temporary name in the same folder.
    """
    path = os.fspath(path)
    flat = np.ascontiguousarray(flat_params, dtype="<f4")
    if flat.shape != (layout_size(config),):
        raise ValueError(f"flat_params has shape {flat.shape}, expected ({layout_size(config)},)")
    tensors = float_tensors(config, flat)
    with unproved_file(path) as first:
        write_parameter_file(first, metadata, tensors)
        metadata = metadata + proof_entries(first, probes, n_new)
    metadata.append(ratio_entry(provenance.corpus_bytes, metadata, tensors))
    write_parameter_file(path, metadata + provenance.run_entries(), tensors)
