"""Parameter files of published sizes, sparse on the disk: every matrix is zeros but for some
planted rows, which are all that a product needs. Holes take no room, but as memory they are bytes.

The first two layers lie behind the others, so that a short run reads what is furthest away.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from models import EOT, byte_vocabulary, provenance
from reference_forward import Decoder

from conftest import ROOT
from llm.config import ALIGNMENT, ModelConfig, layout
from llm.parameter_file import TensorData, Vocabulary, _header, trained_model_metadata

SHAPES = {
    "7B": ModelConfig(32000, 4096, 4096, 32, 32, 32, 11008, tied_output=False),
    "13B": ModelConfig(32000, 4096, 5120, 40, 40, 40, 13824, tied_output=False),
    "70B": ModelConfig(32000, 4096, 8192, 80, 64, 8, 28672, tied_output=False),
}
IDS = [31999, 5, 31999, 17000]  # their embeddings are planted


class Planted:
    """A matrix (n_rows, n_in) of zeros but for `values` (float16) in the rows `rows`. Of what a
    float64 array does it does what reference_forward.py asks for."""

    __array_ufunc__ = None  # x @ self is __rmatmul__

    def __init__(self, n_rows: int, rows, values: np.ndarray):
        self.n_rows, self.rows, self.values = n_rows, list(rows), values

    T = property(lambda self: self)

    def __rmatmul__(self, x: np.ndarray) -> np.ndarray:
        out = np.zeros((len(x), self.n_rows))
        out[:, self.rows] = x @ self.values.T.astype(np.float64)
        return out

    def __getitem__(self, ids) -> np.ndarray:
        return np.array([self.values[self.rows.index(id)] for id in ids], np.float64)


def plant(config: ModelConfig, seed: int = 5) -> dict[str, np.ndarray | Planted]:
    """By GGUF name: norms whole, float32; of matrices the first two and the last two rows. Few of a
    matrix's inputs are not zero behind another matrix, so the rows are large there."""
    rng, out = np.random.default_rng(seed), {}
    for entry in layout(config):
        n, n_in = entry.shape[0], entry.shape[-1]
        if len(entry.shape) == 1:
            out[entry.gguf_name] = rng.uniform(0.5, 1.5, n).astype(np.float32)
            continue
        rows = sorted(set(IDS)) if entry.name == "tok_embd" else [0, 1, n - 2, n - 1]
        scale = 1 if entry.name.endswith(("tok_embd", "wo", "w_down")) else 2 / n_in**0.5
        values = rng.standard_normal((len(rows), n_in), np.float32) * scale
        out[entry.gguf_name] = Planted(n, rows, values.astype(np.float16))
    return out


def vocabulary(n_vocab: int) -> Vocabulary:
    """That of models.py, and tokens that no merge makes."""
    small = byte_vocabulary()
    more = [b"unused %d" % i for i in range(n_vocab - len(small.tokens))]
    return Vocabulary([*small.tokens, *more], small.merges, small.pre, bos=EOT, eos=EOT)


def file_order(config: ModelConfig) -> list:
    """What layout() lists, the first two layers moved behind the last."""
    entries = layout(config)
    early = [e for e in entries if e.name.startswith(("blk.0.", "blk.1."))]
    late = [e for e in entries if e.name in ("out_norm", "output")]
    return [e for e in entries if e not in early and e not in late] + early + late


def header(config: ModelConfig) -> bytes:
    tensors = [
        TensorData(e.gguf_name, e.shape, "F16" if len(e.shape) == 2 else "F32", None)
        for e in file_order(config)
    ]
    metadata = trained_model_metadata(config, vocabulary(config.n_vocab), provenance())
    return _header(metadata, tensors, ALIGNMENT, "0" * 64)


def tensor_begins(config: ModelConfig, at: int) -> tuple[dict[str, int], int]:
    """Where each tensor begins in a file whose data begins at `at`, and where the file ends: added
    up here, not by the code under test."""
    begins = {}
    for entry in file_order(config):
        begins[entry.gguf_name] = at
        at += -(-entry.size * (2 if len(entry.shape) == 2 else 4) // ALIGNMENT) * ALIGNMENT
    return begins, at


def n_file_bytes(config: ModelConfig) -> int:
    return tensor_begins(config, len(header(config)))[1]


def write_big(path: Path, config: ModelConfig, planted: dict) -> dict[str, int]:
    """Returns where each tensor begins."""
    head = header(config)
    begins, end = tensor_begins(config, len(head))
    with open(path, "xb") as file:
        file.truncate(end)
        file.write(head)
        for name, begin in begins.items():
            values = planted[name]
            if isinstance(values, np.ndarray):
                file.seek(begin)
                file.write(values.data)
                continue
            for row, row_values in zip(values.rows, values.values, strict=True):
                file.seek(begin + row * row_values.nbytes)
                file.write(row_values.data)
    return begins


@contextlib.contextmanager
def sparse_file(n_bytes: int) -> Iterator[Path]:
    """A new path on a disk that keeps holes, empty again afterwards; skips where there is none."""
    if sys.maxsize < 2**40:
        pytest.skip("a file of this size needs 64-bit addresses")
    (ROOT / "build").mkdir(exist_ok=True)
    path = ROOT / "build" / f"big-{secrets.token_hex(4)}.gguf"
    try:
        _try_holes(path, n_bytes)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _try_holes(path: Path, n_bytes: int) -> None:
    try:
        with open(path, "x+b") as file:
            file.truncate(n_bytes)
            with mmap.mmap(file.fileno(), n_bytes, prot=mmap.PROT_READ):
                pass
    except (OSError, ValueError) as error:
        pytest.skip(f"no file of {n_bytes} bytes here: {error}")
    if path.stat().st_blocks * 512 > n_bytes // 100:
        pytest.skip("the disk keeps no sparse files")
    path.unlink()


def forget_pages(path: Path, address: int) -> None:
    """Gives back the memory of a file that is mapped at `address`; what is read again comes again.
    So holes fill the same few pages again and again, many times faster than ever new ones."""
    c, n_bytes = ctypes.CDLL(None), path.stat().st_size
    c.madvise(ctypes.c_void_p(address), ctypes.c_size_t(n_bytes), mmap.MADV_DONTNEED)
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def reference_logits(config: ModelConfig, planted: dict, ids, n_layer: int) -> np.ndarray:
    """(T, n_vocab), float64, by the first n_layer layers."""
    keys = {k.removeprefix("llama."): value for k, value in config.to_gguf().items()}
    return Decoder(keys | {"block_count": n_layer}, planted).logits(ids)
