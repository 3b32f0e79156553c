"""How well a model predicts text that it never trained on. Layer 4."""

from __future__ import annotations

import math

import numpy as np

from .data import document_starts
from .distributed import Group
from .errors import CorpusError

MAX_WINDOWS = 128  # bounds the time of a validation
BATCH = 4


class Validation:
    """Fixed windows of the held-out tokens; bits per byte of any model over them.

    tokens: the held-out stream; token_bytes: the length in bytes of each id's text, 0 for control
    tokens. Windows do not overlap and each starts from nothing; where there are more than
    MAX_WINDOWS, evenly spread ones are taken. The bytes counted are those of the scored tokens.
    eot: given, no document sees another.
    """

    def __init__(
        self, tokens: np.ndarray, token_bytes: np.ndarray, n_ctx: int, eot: int | None = None
    ):
        n_ctx = min(n_ctx, len(tokens) - 1)
        if n_ctx < 1:
            raise CorpusError(f"the held-out part has {len(tokens)} tokens, at least 2 are needed")
        n_windows = (len(tokens) - 1) // n_ctx
        n_used = min(n_windows, MAX_WINDOWS)
        starts = np.arange(n_used) * n_windows // n_used * n_ctx
        self.windows = np.stack([tokens[at : at + n_ctx + 1] for at in starts])
        self.inputs = np.ascontiguousarray(self.windows[:, :-1])
        self.targets = np.ascontiguousarray(self.windows[:, 1:])
        self.starts = None if eot is None else document_starts(self.inputs, eot)
        self._count(token_bytes)

    def _count(self, token_bytes: np.ndarray) -> None:
        scored = self.targets[self.targets >= 0]
        self.n_bytes = int(token_bytes[scored].sum())
        self.n_tokens = scored.size
        if self.n_bytes == 0:
            raise CorpusError("the held-out part has no text: add text, or lower --n-ctx")

    @property
    def bytes_per_token(self) -> float:
        return self.n_bytes / self.n_tokens

    def bits_per_byte(self, model, group: Group | None = None) -> float:
        """group: ranks that hold the same model; each takes some of the batches, and all return
        what one alone would."""
        rank, size = (group.rank, group.size) if group else (0, 1)
        batches = range(0, len(self.inputs), BATCH)
        own = [self._nats(model, slice(at, at + BATCH)) for at in batches[rank::size]]
        shared = group.share(own) if group else [own]
        nats = sum(shared[i % size][i // size] for i in range(len(batches)))
        return nats / math.log(2) / self.n_bytes

    def _nats(self, model, batch: slice) -> float:
        starts = None if self.starts is None else self.starts[batch]
        return model.loss(self.inputs[batch], self.targets[batch], starts)[0]
