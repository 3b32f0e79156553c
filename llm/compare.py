"""What makes two parameter files "the same file", as csrc/FORMAT.md defines it. Layer 4."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from .engine import Model
from .errors import counted
from .parameter_file import RUN_PREFIX

MEASURED = 5  # tensors whose values are compared, beside their bytes: all of 70 B take long


def compare_files(
    a: str | os.PathLike, b: str | os.PathLike, all_values: bool = False
) -> list[str]:
    """How two parameter files differ, one line each; empty for "the same file": equal tensors and
    equal metadata outside two_file.run. Values are compared of the first MEASURED tensors that
    differ, or of all; a last line counts the others."""
    with Model(a) as one, Model(b) as two:
        measured = len(one.tensors) if all_values else MEASURED
        return [*_metadata_differences(one, two), *_tensor_differences(one, two, measured)]


def _only_in(a: Iterable[str], b: Iterable[str], thing: str) -> list[str]:
    a, b = list(a), list(b)
    return [
        f"{thing} {name} is only in the {place} file"
        for names, others, place in ((a, set(b), "first"), (b, set(a), "second"))
        for name in names
        if name not in others
    ]


def _metadata_differences(one, two) -> list[str]:
    keys_a, keys_b = (
        [key for key in model.metadata if not key.startswith(RUN_PREFIX)] for model in (one, two)
    )
    out = _only_in(keys_a, keys_b, "key")
    for key in keys_a:
        if key not in two.metadata:
            continue
        if one.metadata.value_type(key) != two.metadata.value_type(key):
            out.append(f"key {key} has another type")
        elif one.metadata.raw(key) != two.metadata.raw(key):
            out.append(
                f"key {key}: {_shown(one.metadata[key])} against {_shown(two.metadata[key])}"
            )
    return out


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _tensor_differences(one, two, measured: int) -> list[str]:
    names_a, names_b = list(one.tensors), list(two.tensors)
    out = _only_in(names_a, names_b, "tensor")
    if not out and names_a != names_b:
        out.append("the tensors are in another order")
    n_alike = 0  # of one shape: their values can be compared
    for name in names_a:
        if name in two.tensors and (line := _difference(one.tensors, two.tensors, name)):
            alike = one.tensors.shape(name) == two.tensors.shape(name)
            n_alike += alike
            values = alike and n_alike <= measured
            line += _largest(one.tensors[name], two.tensors[name]) if values else ""
            out.append(f"tensor {name}: {line}")
    if n_alike > measured:
        out.append(f"values of {counted(n_alike - measured, 'more tensor')}: --all compares them")
    return out


def _difference(one, two, name: str) -> str:
    kind_a, kind_b = (f"{t.type_name(name)} {t.shape(name)}" for t in (one, two))
    if kind_a != kind_b:
        return f"{kind_a} against {kind_b}"
    raw_a, raw_b = (np.frombuffer(t.raw(name), np.uint8) for t in (one, two))
    n_different = np.count_nonzero(raw_a != raw_b)
    return f"{n_different} of {raw_a.size} bytes differ" if n_different else ""


def _largest(a: np.ndarray, b: np.ndarray) -> str:
    with np.errstate(invalid="ignore", over="ignore"):
        largest = np.abs(np.subtract(a, b, dtype=np.float32)).max()
        return f", values by {largest:.3g} at most, the largest is {np.abs(a).max():.3g}"
