"""From documents to training examples. Layer 2.

The held-out part is chosen by hash, so it stays the same when text is added or reordered. Which
window of tokens a sequence of a step trains on is a pure function of (seed, step, slot): a keyed
permutation of all windows per epoch. Nothing is remembered but the step, so resuming is exact.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import numpy as np

from .errors import CorpusError

HELD_OUT = 0.05
MIN_DOCUMENTS = 400  # fewer are cut into blocks, so that about 5 % of the text is chosen
BLOCK_BYTES = 2048

# ---- the held-out part ----


def hold_out(documents: list[bytes], rule: str, min_bytes: int) -> tuple[list[bytes], list[bytes]]:
    """(training, held-out) documents; about 5 % is held out, at least min_bytes.

    "hash": whole documents, or, where there are few, blocks that end at a blank line; "last": the
    last 5 % of the bytes.
    """
    n_bytes = sum(map(len, documents))
    if n_bytes < 2 * min_bytes:
        raise CorpusError(f"the corpus has {n_bytes} bytes, at least {2 * min_bytes} are needed")
    if rule == "hash":
        split = _hold_out_by_hash(documents, min_bytes)
        if split is not None:
            return split
    return _hold_out_last(documents, max(int(n_bytes * HELD_OUT), min_bytes))


def _hold_out_by_hash(documents: list[bytes], min_bytes: int):
    """None where the text has too few places to cut it at."""
    if len(documents) >= MIN_DOCUMENTS:
        groups = [[document] for document in documents]
    else:
        groups = [blocks_of(document) for document in documents]
    blocks = {block: fraction(block) for group in groups for block in group}
    held, n_held = set(), 0
    for block in sorted(blocks, key=blocks.get):
        if blocks[block] >= HELD_OUT and n_held >= min_bytes:
            break
        held.add(block)
        n_held += len(block)
    if 2 * n_held > sum(map(len, blocks)):  # what occurs twice counts once, on both sides
        return None
    training = [b"".join(block for block in group if block not in held) for group in groups]
    return [text for text in training if text], [b for g in groups for b in g if b in held]


def fraction(block: bytes) -> float:
    """The block's place in [0, 1), by its content alone."""
    return int.from_bytes(hashlib.sha256(block).digest()[:8], "big") / 2**64


def blocks_of(document: bytes) -> list[bytes]:
    """Pieces of at least BLOCK_BYTES that end at a blank line; together they are the document."""
    blocks, start = [], 0
    for match in re.finditer(rb"\n\s*\n", document):
        if match.end() - start >= BLOCK_BYTES:
            blocks.append(document[start : match.end()])
            start = match.end()
    return blocks + [document[start:]] if start < len(document) else blocks


def _hold_out_last(documents: list[bytes], n_held: int) -> tuple[list[bytes], list[bytes]]:
    training, held = list(documents), []
    while n_held > 0:
        last = training.pop()
        cut = max(0, len(last) - n_held)
        while 0 < cut < len(last) and last[cut] & 0xC0 == 0x80:  # inside a character
            cut -= 1
        n_held -= len(last) - cut
        held.insert(0, last[cut:])
        if cut:
            training.append(last[:cut])
    return training, held


# ---- tokens ----


def token_stream(tokenizer, documents: list[bytes], eot: int) -> np.ndarray:
    """All documents' ids in one array, `eot` before each."""
    parts = []
    for document in documents:
        parts += [np.array([eot], np.int32), tokenizer.encode_array(document)]
    return np.concatenate(parts)


def document_starts(tokens: np.ndarray, eot: int) -> np.ndarray:
    """Where in its row the document of each token begins, (B, T) int32: at the last `eot`, or at
    the row's first token."""
    positions = np.arange(tokens.shape[1], dtype=np.int32)
    return np.maximum.accumulate(np.where(tokens == eot, positions, 0), axis=1, dtype=np.int32)


# ---- the order of examples ----


def mix(*values: int) -> int:
    """64 well-stirred bits of some integers (the finalizer of SplitMix64)."""
    state = 0
    for value in values:
        state = (state + value + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return state


def permute(index: int, n: int, key: int) -> int:
    """The image of `index` under a permutation of 0 .. n - 1 that `key` selects: a Feistel network
    over the next power of four, walked until it lands inside."""
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(4):
            left, right = right, left ^ (mix(key, turn, right) & mask)
        index = left << half | right
        if index < n:
            return index


@dataclass(frozen=True)
class Examples:
    """Windows of n_ctx + 1 tokens over a stream, slot_sequences of them in a slot. eot: given, no
    document sees another."""

    tokens: np.ndarray
    n_ctx: int
    seed: int
    n_slots: int  # of a step
    slot_sequences: int
    eot: int | None = None

    def __post_init__(self):
        if len(self.tokens) < self.n_ctx + 1:
            raise CorpusError(
                f"the training part has {len(self.tokens)} tokens, fewer than one window of "
                f"{self.n_ctx + 1}: give more text or a smaller --n-ctx"
            )

    @property
    def n_windows(self) -> int:
        """In an epoch."""
        return max(1, (len(self.tokens) - self.n_ctx) // self.n_ctx)

    def start(self, sequence: int) -> int:
        """Where the window of a sequence, counted from the start of training, begins. The windows
        of each epoch tile the stream from an offset of its own."""
        epoch, index = divmod(sequence, self.n_windows)
        key = mix(self.seed, epoch)
        slack = len(self.tokens) - 1 - self.n_windows * self.n_ctx
        offset = mix(key) % (min(slack, self.n_ctx - 1) + 1)
        return offset + permute(index, self.n_windows, key) * self.n_ctx

    def slot(self, step: int, slot: int) -> tuple:
        """(tokens, targets, starts of the documents or None) of a slot, (slot_sequences, n_ctx)
        int32 each."""
        first = (step * self.n_slots + slot) * self.slot_sequences
        starts = [self.start(first + i) for i in range(self.slot_sequences)]
        windows = np.stack([self.tokens[at : at + self.n_ctx + 1] for at in starts])
        tokens = np.ascontiguousarray(windows[:, :-1])
        documents = None if self.eot is None else document_starts(tokens, self.eot)
        return tokens, np.ascontiguousarray(windows[:, 1:]), documents
