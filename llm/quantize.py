"""Rounding of weights to the types of a parameter file, and whole files to smaller ones. Layer 5.

csrc/quantize.c does the rounding, parameter_file.py the writing. Which matrix gets which type
follows llama.cpp: its fallbacks for rows that are not whole super-blocks and its mixtures Q4_K_M,
Q4_K_S and Q5_K_M, by layer and place. Embedding and output, which every token passes, stay finer.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from llm._llm import ffi, lib

from .atomic import make_folder_of
from .binding import call, pointer_to, split_strings
from .context import Context
from .engine import Model
from .errors import counted
from .parameter_file import (
    ALIGNMENT,
    DATA_SHA256,
    RUN_PREFIX,
    Entry,
    TensorData,
    ValueType,
    proof_entries,
    ratio_entry,
    refuse_foreign,
    unproved_file,
    write_parameter_file,
)

TYPES = {
    ffi.string(lib.llm_type_describe(number).name).decode(): number
    for number in ffi.typeof("llm_type").elements
}


def quantize(
    type_name: str,
    rows: np.ndarray,
    importance: np.ndarray | None = None,
    feedback: np.ndarray | None = None,
    threads: int = 0,
) -> np.ndarray:
    """The bytes of a tensor in a type, (n,) uint8: rows (..., n_per_row), rounded along the last
    axis. importance (n_per_row), feedback (n_per_row, n_per_row): see llm_quantize."""
    if type_name not in TYPES:
        raise ValueError(f"tensor type {type_name} is none of {', '.join(TYPES)}")
    rows = np.ascontiguousarray(rows, np.float32)
    kind, n_per_row = lib.llm_type_describe(TYPES[type_name]), rows.shape[-1]
    out = np.empty(rows.size // kind.n_per_block * kind.bytes_per_block, np.uint8)
    columns, products = (
        None if array is None else np.ascontiguousarray(array, np.float32)
        for array in (importance, feedback)
    )
    for array, shape in ((columns, (n_per_row,)), (products, (n_per_row, n_per_row))):
        if array is not None and array.shape != shape:
            raise ValueError(f"an array of shape {array.shape} for rows of {n_per_row}")
    call(
        lib.llm_quantize,
        TYPES[type_name],
        pointer_to("float", rows),
        rows.size // max(n_per_row, 1),
        n_per_row,
        ffi.NULL if columns is None else pointer_to("float", columns),
        ffi.NULL if products is None else pointer_to("float", products),
        threads,
        pointer_to("uint8_t", out),
    )
    return out


# ---- which tensor gets which type ----

# general.file_type: llama.cpp's llama_ftype
RECIPES = {
    "F32": 0,
    "F16": 1,
    "BF16": 32,
    "Q8_0": 7,
    "Q6_K": 18,
    "Q5_K_M": 17,
    "Q5_K": 16,
    "Q5_1": 9,
    "Q5_0": 8,
    "Q4_K_M": 15,
    "Q4_K_S": 14,
    "Q4_K": 14,
    "Q4_1": 3,
    "Q4_0": 2,
}
FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # of rows that are no super-blocks
FINER = {"Q6_K": "Q8_0", "Q8_0": "Q8_0", "F16": "F16", "BF16": "BF16", "F32": "F32"}


def n_per_block(type_name: str) -> int:
    return lib.llm_type_describe(TYPES[type_name]).n_per_block


def fitting(type_name: str, n_per_row: int) -> str:
    """The type, or what stands in for it where rows are not whole blocks of it."""
    for kind in (type_name, FALLBACKS.get(type_name, "F16"), "F16"):
        if n_per_row % n_per_block(kind) == 0:
            return kind
    raise AssertionError("F16 fits any row")


def stand_ins(wanted: dict[str, str], types: dict[str, str]) -> str | None:
    """What is said of the tensors whose rows are no whole blocks of the type that they should have
    had, by name; None: there are none."""
    others = {name: kind for name, kind in wanted.items() if types[name] != kind}
    if not others:
        return None
    blocks = " or ".join(str(n) for n in sorted({n_per_block(kind) for kind in others.values()}))
    pairs = sorted({f"{types[name]} for {kind}" for name, kind in others.items()})
    whose = f"{counted(len(others), 'tensor')} whose width is no multiple of {blocks}"
    return f"{', '.join(pairs)}: {whose}"


def _gets_more_bits(layer: int, n_layer: int) -> bool:
    """The first and the last eighth, and every third layer between."""
    eighth = n_layer // 8
    return layer < eighth or layer >= 7 * n_layer // 8 or (layer - eighth) % 3 == 2


def recipe_type(recipe: str, name: str, n_layer: int) -> str:
    """The type that a recipe gives a matrix of a layer, before fallbacks."""
    base, _, size = recipe.partition("_K_")
    if not size:
        return recipe
    base += "_K"
    place = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if place is None:
        return base
    layer, part = int(place[1]), place[2]
    if size == "S":
        few = {"attn_v": 4, "ffn_down": n_layer // 8}.get(part, 0)
        return "Q5_K" if layer < few else base
    if part == "attn_qkv":
        return {"Q4_K": "Q5_K", "Q5_K": "Q6_K"}[base]
    finer = part in ("attn_v", "ffn_down") and _gets_more_bits(layer, n_layer)
    return "Q6_K" if finer else base


def wanted(
    model: Model, recipe: str, embedding: str | None = None, output: str | None = None
) -> dict[str, str]:
    """The type that each tensor is to have, by name, before fallbacks. Vectors, and the positions
    of GPT-2, stay as they are."""
    for name in (recipe, embedding, output):
        if name is not None and name not in RECIPES:
            raise ValueError(f"type {name!r} is none of {', '.join(RECIPES)}")
    finer = FINER.get(recipe, "Q6_K")
    own = {"token_embd.weight": embedding or finer, "output.weight": output or finer}
    if "output.weight" not in model.tensors and output is not None:
        own["token_embd.weight"] = output  # one matrix for both
    out = {}
    for name in model.tensors:
        shape = model.tensors.shape(name)
        if len(shape) == 1 or name == "position_embd.weight":
            out[name] = model.tensors.type_name(name)
        else:
            kind = own.get(name) or recipe_type(recipe, name, model.config.n_layer)
            out[name] = recipe_type(kind, "", 0)
    return out


def plan(model: Model, recipe: str, **types: str | None) -> dict[str, str]:
    """The type of each tensor by name; types: those of wanted()."""
    kinds = wanted(model, recipe, **types)
    return {name: fitting(kind, model.tensors.shape(name)[-1]) for name, kind in kinds.items()}


# ---- tensors ----

SLAB = 1 << 24  # elements that are expanded at a time

# Rounds rows of a tensor by other means than quantize(): (name, rows, type name) -> bytes or None.
Rounding = Callable[[str, np.ndarray, str], "np.ndarray | None"]


def _rounded(model: Model, name: str, type_name: str, rounding: Rounding | None) -> np.ndarray:
    """A tensor's bytes in another type, slab by slab, so that memory stays small."""
    source = TYPES[model.tensors.type_name(name)]
    raw = np.frombuffer(model.tensors.raw(name), np.uint8)
    if TYPES[type_name] == source:
        return raw
    shape = model.tensors.shape(name)
    n_per_row, n_rows = shape[-1], math.prod(shape[:-1])
    row_bytes, step, parts = raw.size // n_rows, max(1, SLAB // n_per_row), []
    for at in range(0, n_rows, step):
        part = raw[at * row_bytes : (at + step) * row_bytes]
        if source == TYPES["F32"] and raw.ctypes.data % 4 == 0:
            rows = part.view(np.float32).reshape(-1, n_per_row)
        else:
            rows = np.empty((part.size // row_bytes, n_per_row), np.float32)
            call(
                lib.llm_dequantize,
                source,
                pointer_to("char", part),
                rows.size,
                pointer_to("float", rows),
            )
        try:
            done = rounding(name, rows, type_name) if rounding else None
            parts.append(quantize(type_name, rows) if done is None else done)
        except ValueError as error:
            raise ValueError(f"tensor {name}: {error}") from error
    return np.concatenate(parts)


# ---- metadata ----

_OWN = re.compile(r"two_file\.(version|tensor_sha256|ratio|proof\..*|quantization\..*)")

_NEW = ("general.alignment", "general.file_type", "general.quantization_version")


def kept_entries(model: Model) -> list[Entry]:
    """Every key but those that speak of the bytes of one file, as it lies there."""
    out = []
    for key in model.metadata:
        if _OWN.fullmatch(key) or key in _NEW:
            continue
        kind, element = model.metadata.value_type(key)
        raw, value = model.metadata.raw(key), None
        if kind == ValueType.STRING:
            value = raw
        elif element == ValueType.STRING:
            value = split_strings(raw)
        else:
            value = model.metadata[key]
        array = ValueType(element) if kind == ValueType.ARRAY else None
        out.append(Entry(key, value, ValueType(kind), array))
    return out


def _probes(metadata: Mapping) -> list[np.ndarray]:
    """The prompts of a file's proof block."""
    ids = metadata.get("two_file.proof.prompt_ids", [])
    ends = np.cumsum(metadata.get("two_file.proof.prompt_lengths", [])).tolist()
    return [ids[a:b] for a, b in zip([0, *ends], ends, strict=False)]


# ---- bits per byte ----


def bits_per_byte(path: str | os.PathLike, text: bytes) -> float:
    """Of a text of at least two tokens, each in a window of at most 1,024 tokens."""
    with Model(path) as model:
        ids, n_bytes = model.tokenize(text), len(text)
        if len(ids) < 2:
            raise ValueError("the text to measure on has less than two tokens")
        if not model.tokenizer.add_bos:
            n_bytes -= len(model.tokenizer.decode_bytes(ids[:1]))  # not scored
        n_ctx = min(1024, len(ids), model.config.n_ctx_train)
        _, nats = Context(model, n_ctx=n_ctx).score(ids, stride=n_ctx * 3 // 4)
        return nats / math.log(2) / max(1, n_bytes)


# ---- files ----


@dataclass(frozen=True)
class Quantized:
    """What quantize_file did. types: by tensor; wanted: before fallbacks. bits_per_byte: of the
    text, before and after; None: not measured."""

    bytes_before: int
    bytes_after: int
    types: dict[str, str]
    wanted: dict[str, str]
    bits_per_byte: tuple[float, float] | None


def check_paths(source: str, target: str) -> None:
    same = os.path.realpath(source) == os.path.realpath(target)
    if same or (os.path.exists(target) and os.path.samefile(source, target)):
        raise ValueError(f"{target} is the file to read: write to another one")


def quantize_file(
    source: str | os.PathLike,
    target: str | os.PathLike,
    recipe: str,
    *,
    text: bytes | None = None,
    calibration: bytes | None = None,
    embedding: str | None = None,
    output: str | None = None,
    progress: Callable[[str, int], None] = lambda name, n_bytes: None,
) -> Quantized:
    """Writes `source` with its matrices in other types to `target`, which appears whole or not at
    all. text: what the change in bits per byte is measured on; calibration: a text that the
    rounding serves (calibrate.py). progress(name, bytes read) is called after each tensor, and
    progress(what begins, 0) for the long parts between."""
    source, target = os.fspath(source), os.fspath(target)
    check_paths(source, target)
    refuse_foreign(target)
    with Model(source) as model:
        chosen = {"embedding": embedding, "output": output}
        types = plan(model, recipe, **chosen)
        make_folder_of(target)
        rounding = None
        if calibration is not None:
            from .calibrate import calibrated_rounding

            rounding = calibrated_rounding(
                model, calibration, types, lambda what: progress(what, 0)
            )
        metadata = _new_metadata(model, recipe, text, calibration)
        probes = _probes(model.metadata)
        n_new = model.metadata.get("two_file.proof.n_new", 0)

        def tensor(name: str) -> TensorData:
            def data():
                raw = _rounded(model, name, types[name], rounding)
                progress(name, len(model.tensors.raw(name)))
                return raw

            return TensorData(name, model.tensors.shape(name), types[name], data)

        tensors = [tensor(name) for name in model.tensors]
        with unproved_file(target) as first:
            write_parameter_file(first, metadata, tensors)
            measured = None
            if text is not None:
                progress("bits per byte before", 0)
                before = bits_per_byte(source, text)
                progress("bits per byte after", 0)
                measured = (before, bits_per_byte(first, text))
                stated = model.metadata.get("two_file.quantization.bits_per_byte_change", 0.0)
                metadata.append(_change(stated + measured[1] - measured[0]))
            if probes:
                metadata += proof_entries(first, probes, n_new)
            _finish(model, first, target, metadata)
        before, after = os.path.getsize(source), os.path.getsize(target)
        return Quantized(before, after, types, wanted(model, recipe, **chosen), measured)


def _change(value: float) -> Entry:
    return Entry("two_file.quantization.bits_per_byte_change", value, ValueType.FLOAT32)


def _new_metadata(
    model: Model, recipe: str, text: bytes | None, calibration: bytes | None
) -> list[Entry]:
    out = kept_entries(model)
    at = 1 if out and out[0].key == "general.architecture" else 0
    out[at:at] = [
        Entry("general.file_type", RECIPES[recipe], ValueType.UINT32),
        Entry("general.quantization_version", 2, ValueType.UINT32),
        Entry("general.alignment", ALIGNMENT, ValueType.UINT32),
    ]
    out.append(Entry("two_file.version", 1, ValueType.UINT32))
    out.append(Entry("two_file.tensor_sha256", DATA_SHA256, ValueType.STRING))
    out.append(Entry("two_file.quantization.type", recipe, ValueType.STRING))
    for name, content in (("text", text), ("calibration", calibration)):
        if content is not None:
            digest = hashlib.sha256(content).hexdigest()
            out.append(Entry(f"two_file.quantization.{name}_sha256", digest, ValueType.STRING))
    return out


def _finish(model: Model, first: str, target: str, metadata: list[Entry]) -> None:
    """The file under its name, with the figures that needed the first one."""
    with Model(first) as written:

        def tensor(name: str) -> TensorData:
            kind, shape = written.tensors.type_name(name), written.tensors.shape(name)
            return TensorData(name, shape, kind, lambda: written.tensors.raw(name))

        tensors = [tensor(name) for name in written.tensors]
        run = [e for e in metadata if e.key.startswith(RUN_PREFIX)]
        metadata = [e for e in metadata if not e.key.startswith(RUN_PREFIX)]
        corpus_bytes = model.metadata.get("two_file.corpus.bytes")
        if corpus_bytes is not None:
            metadata.append(ratio_entry(corpus_bytes, metadata, tensors))
        write_parameter_file(target, metadata + run, tensors)
