"""Rounding of weights to the types of a parameter file, and whole files to smaller ones. Layer 3.

csrc/quantize.c does the rounding; parameter_file.py writes.
"""

from __future__ import annotations

import numpy as np

from llm._llm import ffi, lib

from .binding import call, pointer_to

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
    """The bytes of a tensor in a type, (n,) uint8: rows (..., n_per_row) of floats, rounded along the
    last axis. importance (n_per_row), feedback (n_per_row, n_per_row): see llm_quantize."""
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
