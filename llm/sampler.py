"""Sampler: from logits to one token, and log-probabilities, over the compiled module `llm._llm`."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import numpy as np

from llm._llm import ffi, lib
from llm.binding import (
    INT64,
    Alone,
    call,
    id_array,
    integer,
    new,
    options_of,
    pointer_to,
    typed,
)


class Sampler:
    """Picks tokens from logits. temperature 0: arg-max. The seed in use is `.seed`.

    In this order: penalties on the last penalty_last_n accepted tokens (repeat_penalty divides,
    presence_penalty and frequency_penalty subtract), logit_bias {id: bias} (-inf bans), top_k,
    top_p, min_p, temperature; csrc/llm.h has the formulas. A stream accepts the prompt and every
    new token by itself. Calls from several threads, and steps of streams, wait for each other."""

    def __init__(
        self,
        n_vocab: int,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        seed: int | None = None,
        min_p: float = 0.0,
        repeat_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        penalty_last_n: int = 64,
        logit_bias: Mapping[int, float] | None = None,
    ):
        self.seed = integer("seed", secrets.randbits(32) if seed is None else seed, 0, 2**64 - 1)
        self.n_vocab = integer("n_vocab", n_vocab, high=INT64)
        biases = typed("logit_bias", {} if logit_bias is None else logit_bias, Mapping)
        bias_ids = id_array(list(biases))
        bias_values = np.array(list(biases.values()), np.float32)
        options = ffi.new("llm_sampler_options *")
        options.temperature, options.top_p = temperature, top_p
        options.top_k = integer("top_k", top_k)
        options.seed, options.min_p = self.seed, min_p
        options.repeat_penalty = repeat_penalty
        options.presence_penalty = presence_penalty
        options.frequency_penalty = frequency_penalty
        options.penalty_last_n = integer("penalty_last_n", penalty_last_n)
        options.n_biases = bias_ids.size
        options.bias_ids = pointer_to("int32_t", bias_ids)
        options.bias_values = pointer_to("float", bias_values)
        made = new(lib.llm_sampler_new, "llm_sampler", lib.llm_sampler_free, self.n_vocab, options)
        self._use = Alone("sampler", made).use

    def sample(self, logits: np.ndarray) -> int:
        row = _row(logits)
        if row.size != self.n_vocab:
            raise ValueError(f"logits have shape {row.shape}, expected ({self.n_vocab},)")
        with self._use() as pointer:
            return lib.llm_sampler_sample(pointer, pointer_to("float", row))

    def accept(self, ids) -> None:
        """Tokens that the penalties look back on, after those of earlier calls."""
        array = id_array(ids)
        if array.size and not (0 <= array.min() and array.max() < self.n_vocab):
            raise ValueError(f"a token id is outside the vocabulary of {self.n_vocab}")
        with self._use() as pointer:
            lib.llm_sampler_accept(pointer, pointer_to("int32_t", array), array.size)

    def reset(self) -> None:
        """Forgets the accepted tokens; the random state goes on."""
        with self._use() as pointer:
            lib.llm_sampler_reset(pointer)


SAMPLING = options_of(Sampler)


def _row(logits: np.ndarray) -> np.ndarray:
    row = np.ascontiguousarray(logits, np.float32)
    if row.ndim != 1 or row.size == 0:
        raise ValueError(f"logits have shape {row.shape}, expected one row")
    return row


def logprob_of(logits: np.ndarray, id: int) -> float:
    """Log-probability of a token under softmax(logits)."""
    row, out = _row(logits), ffi.new("float *")
    call(
        lib.llm_logprobs,
        pointer_to("float", row),
        row.size,
        int(id_array([id])[0]),
        0,
        ffi.NULL,
        ffi.NULL,
        out,
    )
    return out[0]


def top_logprobs(logits: np.ndarray, n: int) -> list[tuple[int, float]]:
    """The n likeliest tokens under softmax(logits) with their log-probabilities, the likeliest
    first, ties to the lowest id."""
    row = _row(logits)
    if integer("n", n, low=0) > row.size:
        raise ValueError(f"the top {n} tokens asked for, the vocabulary has {row.size}")
    ids, values = np.empty(n, np.int32), np.empty(n, np.float32)
    call(
        lib.llm_logprobs,
        pointer_to("float", row),
        row.size,
        -1,
        n,
        pointer_to("int32_t", ids),
        pointer_to("float", values),
        ffi.NULL,
    )
    return list(zip(ids.tolist(), values.tolist(), strict=True))
