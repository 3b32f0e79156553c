"""`python -m llm export`: a parameter file as a folder that Hugging Face's transformers loads with
the same logits. Layer 6.

Weights keep the bits that they have (F32, F16, BF16); rounded types are expanded to F32, which is
exact. What a config.json cannot say is refused. The folder appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .atomic import make_folder_of
from .convert_config import from_gguf, to_config
from .convert_tensors import PAIRS, Named, named_tensors, to_hf
from .engine import Model
from .errors import LlmError, UnsupportedError
from .export_tokenizer import special_ids, write_tokenizer
from .safetensors_file import SINGLE, NewTensor, write_safetensors

_STORED = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_PIECE_BYTES = 16 << 20


def export(path: str | os.PathLike, folder: str | os.PathLike) -> list[str]:
    """Returns notes for the user. folder: a new one, or an empty one."""
    out = Path(folder)
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out}: the folder is not empty")
    with Model(path) as model:
        temporary = Path(f"{os.path.normpath(out)}.{secrets.token_hex(4)}.tmp")
        try:
            make_folder_of(temporary)
            temporary.mkdir()
            notes = _write(model, temporary)
            os.replace(temporary, out)
        except LlmError as error:
            raise type(error)(f"{os.fspath(path)}: {error}") from error
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(out)) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return notes


def _write(model: Model, folder: Path) -> list[str]:
    h = from_gguf(model.metadata, model.tensors)
    named = named_tensors(h)
    _check_names(named, model)
    notes = write_tokenizer(folder, model.metadata, model.tokenizer)
    kinds = {model.tensors.type_name(name) for name in model.tensors}
    if kinds - set(_STORED):
        notes.append(f"{', '.join(sorted(kinds - set(_STORED)))} became F32, without a change")
    ids = special_ids(model.metadata)
    _write_json(folder / "config.json", to_config(h) | ids)
    _write_json(folder / "generation_config.json", {k: v for k, v in ids.items() if v is not None})
    write_safetensors(folder / SINGLE, [_new_tensor(model, n) for n in named])
    return notes


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _check_names(named: list[Named], model: Model) -> None:
    """Some biases without the others, say, are no family's."""
    wanted = {n.gguf for n in named} | {"rope_freqs.weight"}
    for name in [*model.tensors, *(n.gguf for n in named)]:
        if name not in model.tensors or name not in wanted:
            state = "has no place" if name in model.tensors else "is missing"
            raise UnsupportedError(f"tensor {name} {state} in a model of Hugging Face's")


def _new_tensor(model: Model, named: Named) -> NewTensor:
    kind = model.tensors.type_name(named.gguf)
    pieces = to_hf(named, _pieces(model, named, kind))
    return NewTensor(named.hf, kind if kind in _STORED else "F32", named.hf_shape, pieces)


def _pieces(model: Model, named: Named, kind: str) -> Iterator[np.ndarray]:
    """Rows as they are stored, whole heads at a time."""
    if kind in _STORED:
        values = np.frombuffer(model.tensors.raw(named.gguf), _STORED[kind]).reshape(named.shape)
    else:
        values = model.tensors[named.gguf]
    if values.ndim == 1:
        yield values
        return
    multiple = named.head_dim if named.change == PAIRS else 1
    step = max(1, _PIECE_BYTES // (values.itemsize * values.shape[1] * multiple)) * multiple
    for row in range(0, len(values), step):
        yield values[row : row + step]
