"""`python -m llm convert`: other people's weights as a parameter file. Layer 3.

Hugging Face folders (config.json, safetensors, a tokenizer) and llama2.c checkpoints. Everything is
checked before the first byte is written: every key of the config, every tensor's name and shape,
the tokenizer by the engine itself. Then tensors pass one after the other in pieces of rows.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .convert_config import from_config, llama3_factors, to_gguf
from .convert_llama2c import read_llama2c
from .convert_tensors import Source, Weight, match_tensors
from .convert_tensors import to_gguf as rows_to_gguf
from .convert_tokenizer import tokenizer_entries
from .errors import FormatError, UnsupportedError
from .parameter_file import DATA_SHA256, Entry, TensorData, ValueType, write_parameter_file
from .quantize import TYPES, quantize
from .safetensors_file import PICKLES, pickle_error, read_folder, read_json
from .tokenizer import Tokenizer

_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}  # llama.cpp's numbers for files of one type


def convert(
    source: str | os.PathLike,
    out: str | os.PathLike,
    type_name: str | None = None,
    tokenizer: str | os.PathLike | None = None,
) -> list[str]:
    """Writes `out`; returns notes about what the file does not say. type_name: of every matrix,
    None: as stored. FormatError and UnsupportedError say what the source contradicts, or has that
    does not run; OSError names the file."""
    path = Path(source)
    _check_out(path, Path(out))
    found = _read_source(path, tokenizer)
    kinds = {w.name: _type_of(w, type_name) for w in found.weights}
    entries = [*found.entries[:1], Entry("general.name", found.name, ValueType.STRING)]
    matrices = {kinds[w.name] for w in found.weights if _is_matrix(w)}
    if len(matrices) == 1 and matrices <= set(_FILE_TYPES):
        number = _FILE_TYPES[matrices.pop()]
        entries.append(Entry("general.file_type", number, ValueType.UINT32))
    entries += found.entries[1:]
    entries.append(Entry("two_file.tensor_sha256", DATA_SHA256, ValueType.STRING))
    _check_tokenizer(path, found.entries)
    _write(out, entries, found.weights, kinds)
    return found.notes


def _check_out(source: Path, out: Path) -> None:
    if not source.exists():
        raise FileNotFoundError(2, os.strerror(2), os.fspath(source))
    if out.is_dir():
        raise IsADirectoryError(21, os.strerror(21), os.fspath(out))
    parts = source.iterdir() if source.is_dir() else [source]
    if out.exists() and any(os.path.samefile(part, out) for part in parts):
        raise ValueError(f"{out}: the output is a file of the input")


# ---- sources ----


def _read_source(path: Path, tokenizer: str | os.PathLike | None) -> Source:
    if not path.is_dir():
        if path.suffix in PICKLES[1:]:
            raise pickle_error(path)
        if path.suffix == ".safetensors":
            raise FormatError(f"{path}: name its folder, where config.json and the tokenizer lie")
        return read_llama2c(path, Path(tokenizer) if tokenizer else None)
    if tokenizer is not None:
        raise ValueError("--tokenizer goes with a llama2.c checkpoint; a folder has its own")
    return read_hugging_face(path)


def read_hugging_face(folder: Path) -> Source:
    config = folder / "config.json"
    if not config.exists():
        raise FormatError(f"{folder}: config.json is missing")
    h, notes = from_config(read_json(config), os.fspath(config))
    matched = match_tensors(h, read_folder(folder), os.fspath(folder))
    tokenizer, more_notes = tokenizer_entries(folder, h.n_vocab)
    weights = [
        Weight(named.gguf, named.shape, stored.dtype, lambda n=named, s=stored: rows_to_gguf(n, s))
        for named, stored in matched
    ]
    if h.rope_llama3:
        factors = llama3_factors(h)
        weights.insert(
            1, Weight("rope_freqs.weight", factors.shape, "F32", lambda: iter([factors]))
        )
    name = folder.resolve().name
    return Source(name, [*to_gguf(h), *tokenizer], weights, notes + more_notes)


def _check_tokenizer(source: Path, entries: list[Entry]) -> None:
    """By the engine's own loader, whose message names a temporary file: ours names the source."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "vocabulary")
        write_parameter_file(path, entries, [])
        try:
            Tokenizer.open(path)
        except (FormatError, UnsupportedError) as error:
            raise type(error)(str(error).replace(path, f"{source}: tokenizer")) from error


# ---- types ----

# Where rows are not whole super-blocks: what llama.cpp takes instead.
_FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def _is_matrix(weight: Weight) -> bool:
    return len(weight.shape) == 2 and weight.name != "position_embd.weight"


def _type_of(weight: Weight, wanted: str | None) -> str:
    """Vectors, and positions, which are few and added, stay F32. Embedding and output, on which
    every token depends, are rounded finer; rows that are no whole blocks too."""
    if not _is_matrix(weight):
        return "F32"
    kind, width = wanted or weight.dtype, weight.shape[1]
    if kind not in TYPES:
        raise UnsupportedError(
            f"tensor {weight.name}: type {kind!r}, expected one of {', '.join(TYPES)}"
        )
    if kind in _FILE_TYPES:
        return kind
    if weight.name in ("token_embd.weight", "output.weight"):
        kind = "Q6_K" if kind in _FALLBACK else "Q8_0"
    if width % 256:
        kind = _FALLBACK.get(kind, kind)
    return kind if width % 32 == 0 else "F16"


def _encode(rows: np.ndarray, kind: str, name: str) -> np.ndarray:
    if kind == "F16" and np.abs(rows[np.isfinite(rows)]).max(initial=0) > 65504:
        raise UnsupportedError(f"tensor {name}: a weight over 65504 does not fit F16; take BF16")
    return rows if kind == "F32" else quantize(kind, rows)


# ---- writing ----


def _write(out, entries: list[Entry], weights: list[Weight], kinds: dict[str, str]) -> None:
    from tqdm import tqdm

    total = sum(weight.size for weight in weights)
    with tqdm(total=total, unit=" weights", unit_scale=True, disable=None) as bar:

        def encoded(weight: Weight) -> Iterator[np.ndarray]:
            for rows in weight.pieces():
                yield np.ascontiguousarray(_encode(rows, kinds[weight.name], weight.name))
                bar.update(rows.size)

        tensors = [
            TensorData(w.name, w.shape, kinds[w.name], lambda w=w: encoded(w)) for w in weights
        ]
        write_parameter_file(out, entries, tensors)
