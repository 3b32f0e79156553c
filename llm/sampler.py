"""Sampler: from logits to one token, over the compiled module `llm._llm`."""

from __future__ import annotations

import secrets

import numpy as np

from llm._llm import ffi, lib
from llm.binding import new, pointer_to


class Sampler:
    """Picks tokens from logits. temperature 0: arg-max. The seed in use is `.seed`."""

    def __init__(
        self,
        n_vocab: int,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        seed: int | None = None,
    ):
        self.seed = secrets.randbits(32) if seed is None else seed
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed is {self.seed}, expected 0 to 2^64 - 1")
        if not -(2**31) <= top_k < 2**31:
            raise ValueError(f"top_k is {top_k}, expected 0 (off) to 2^31 - 1")
        self.n_vocab = n_vocab
        options = ffi.new("llm_sampler_options *", lib.llm_sampler_default_options())
        options.temperature, options.top_k, options.top_p = temperature, top_k, top_p
        options.seed = self.seed
        self._pointer = new(
            lib.llm_sampler_new, "llm_sampler", lib.llm_sampler_free, n_vocab, options
        )

    def sample(self, logits: np.ndarray) -> int:
        row = np.ascontiguousarray(logits, np.float32)
        if row.shape != (self.n_vocab,):
            raise ValueError(f"logits have shape {row.shape}, expected ({self.n_vocab},)")
        return lib.llm_sampler_sample(self._pointer, pointer_to("float", row))
