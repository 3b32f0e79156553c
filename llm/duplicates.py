"""Documents that were there before: exact ones by their hash, near ones by MinHash. Layer 2.

Both go into Bloom filters of a fixed size (csrc/train_documents.c): no duplicate stays, and
now and then a document goes that was none; `false_positive_rate` says how often at the end.
"""

from __future__ import annotations

import hashlib

import numpy as np

from llm._train import ffi, lib

N_HASHES = 7
BANDS = lib.LLM_MINHASH_BANDS


def document_key(document: bytes) -> int:
    """64 bits of its SHA-256: what makes two documents the same, and what chooses the held-out."""
    return int.from_bytes(hashlib.sha256(document).digest()[:8], "big")


def minhash_keys(documents: list[bytes]) -> np.ndarray:
    """(n, BANDS) uint64; near duplicates have one of a row in common."""
    offsets = np.zeros(len(documents) + 1, np.uint64)
    np.cumsum([len(document) for document in documents], out=offsets[1:])
    keys = np.empty((len(documents), BANDS), np.uint64)
    text = ffi.from_buffer("uint8_t[]", b"".join(documents))
    spans, room = ffi.from_buffer("uint64_t[]", offsets), ffi.from_buffer("uint64_t[]", keys)
    lib.llm_minhash(text, spans, len(documents), room)
    return keys


class BloomFilter:
    """n_bytes of memory, rounded down to a power of two; pages that stay empty take none."""

    def __init__(self, n_bytes: int, n_keys: int):
        self.n_bits = 8 << (n_bytes.bit_length() - 1)
        self._bits, self._n_keys, self._n_set = np.zeros(self.n_bits // 8, np.uint8), n_keys, 0

    def add(self, keys: np.ndarray) -> np.ndarray:
        """Which documents were there before, in this call too; the others' keys, (n, n_keys)
        uint64, go in."""
        keys = np.ascontiguousarray(keys, np.uint64).reshape(-1, self._n_keys)
        seen = np.zeros(len(keys), np.uint8)
        bits, room = ffi.from_buffer("uint8_t[]", self._bits), ffi.from_buffer("uint8_t[]", seen)
        spans = ffi.from_buffer("uint64_t[]", keys)
        self._n_set += lib.llm_bloom_add(
            bits, self.n_bits, N_HASHES, spans, len(keys), self._n_keys, room
        )
        return seen.astype(bool)

    @property
    def false_positive_rate(self) -> float:
        """The share of new documents that would be taken for old ones now."""
        one = (self._n_set / self.n_bits) ** N_HASHES
        return 1 - (1 - one) ** self._n_keys


class Duplicates:
    """Decides which documents stay; the answer depends on the documents and their order alone."""

    def __init__(self, index_bytes: int, near: bool):
        self.exact = BloomFilter(index_bytes, 1)
        self.near = BloomFilter(index_bytes, BANDS) if near else None

    def keep(self, keys: np.ndarray, bands: np.ndarray | None) -> tuple[np.ndarray, int, int]:
        """(which stay, exact duplicates, near duplicates) of documents by their keys (n) and,
        where near ones go too, minhash_keys."""
        keep = ~self.exact.add(keys)
        n_exact = len(keys) - int(keep.sum())
        if self.near is not None:
            keep[keep] = ~self.near.add(bands[keep])
        return keep, n_exact, len(keys) - n_exact - int(keep.sum())

    def false_positive_rates(self) -> dict[str, float]:
        """At the end, when the filters are fullest."""
        filters = {"exact": self.exact, "near": self.near}
        return {name: f.false_positive_rate for name, f in filters.items() if f is not None}
