"""`python -m llm convert`: other people's weights as a parameter file. Layer 6.

Hugging Face folders (config.json, safetensors, a tokenizer) and llama2.c checkpoints. Everything is
checked before the first byte is written: every key of the config, every tensor's name and shape,
the tokenizer by the engine's own loader. Then tensors pass one after the other in pieces of rows.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .atomic import make_folder_of
from .convert_config import from_config, llama3_factors, to_gguf
from .convert_llama2c import TOKENIZER, read_llama2c
from .convert_tensors import Source, Weight, match_tensors
from .convert_tensors import to_gguf as rows_to_gguf
from .convert_tokenizer import tokenizer_entries
from .errors import FormatError, UnsupportedError
from .parameter_file import DATA_SHA256, Entry, TensorData, ValueType, write_parameter_file
from .quantize import FINER, RECIPES, fitting, quantize, recipe_type, stand_ins
from .safetensors_file import PICKLES, pickle_error, read_folder, read_json
from .tokenizer import Tokenizer


def convert(
    source: str | os.PathLike,
    out: str | os.PathLike,
    type_name: str | None = None,
    tokenizer: str | os.PathLike | None = None,
) -> list[str]:
    """Writes `out`; returns notes: what the file does not say, which types stand in. type_name: of
    the matrices, one of RECIPES; None: as stored. FormatError and UnsupportedError say what the
    source contradicts, or has that does not run; OSError names the file."""
    path = Path(source)
    _check_out(path, Path(out), tokenizer)
    found = _read_source(path, tokenizer)
    wanted = _types(found, type_name)
    kinds = {w.name: fitting(wanted[w.name], w.shape[-1]) for w in found.weights}
    entries = [*found.entries[:1], Entry("general.name", found.name, ValueType.STRING)]
    matrices = {kinds[w.name] for w in found.weights if _is_matrix(w)}
    recipe = type_name or (matrices.pop() if len(matrices) == 1 else None)
    if recipe in RECIPES:
        entries.append(Entry("general.file_type", RECIPES[recipe], ValueType.UINT32))
    entries += found.entries[1:]
    entries.append(Entry("two_file.tensor_sha256", DATA_SHA256, ValueType.STRING))
    _check_tokenizer(path, found.entries)
    make_folder_of(out)
    _write(out, entries, found.weights, kinds)
    instead = stand_ins(wanted, kinds)
    return [*found.notes, instead] if instead else found.notes


def _check_out(source: Path, out: Path, tokenizer: str | os.PathLike | None) -> None:
    if not source.exists():
        raise FileNotFoundError(2, os.strerror(2), os.fspath(source))
    if out.is_dir():
        raise IsADirectoryError(21, os.strerror(21), os.fspath(out))
    beside = tokenizer or source.parent / TOKENIZER
    parts = source.iterdir() if source.is_dir() else (source, beside)
    if out.exists() and any(os.path.exists(p) and os.path.samefile(p, out) for p in parts):
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


def _is_matrix(weight: Weight) -> bool:
    """Vectors, and positions, which are few and added, stay F32."""
    return len(weight.shape) == 2 and weight.name != "position_embd.weight"


def _types(found: Source, recipe: str | None) -> dict[str, str]:
    """The type that each tensor should have, by name."""
    if recipe is not None and recipe not in RECIPES:
        raise UnsupportedError(f"type {recipe!r}, expected one of {', '.join(RECIPES)}")
    n_layer = next(entry.value for entry in found.entries if entry.key.endswith(".block_count"))
    out = {}
    for weight in found.weights:
        if not _is_matrix(weight):
            out[weight.name] = "F32"
        elif recipe is None:
            out[weight.name] = weight.dtype
        else:
            kind = recipe_type(recipe, weight.name, n_layer)
            if weight.name in ("token_embd.weight", "output.weight"):
                kind = FINER.get(recipe, "Q6_K")
            out[weight.name] = kind
    return out


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
