"""Validation: which tokens are scored, and the unit."""

import math

import numpy as np
import pytest

from llm import evaluate
from llm.errors import CorpusError
from llm.evaluate import Validation

LENGTHS = np.array([1, 2, 3, 0])  # bytes of each id; 3 is a control token


class Uniform:
    """Gives every token one bit's worth of nats; remembers what it was asked."""

    def __init__(self):
        self.seen = []

    def loss(self, tokens, targets, starts):
        assert starts is None
        self.seen.append((tokens.copy(), targets.copy()))
        return math.log(2) * targets.size, targets.size


def test_bits_per_byte_counts_every_token_once_but_the_first():
    tokens = np.array([3, 0, 1, 2, 3, 0, 1, 2, 0], np.int32)
    validation, model = Validation(tokens, LENGTHS, n_ctx=4), Uniform()
    assert validation.bits_per_byte(model) == pytest.approx(8 / (1 + 2 + 3 + 0 + 1 + 2 + 3 + 1))
    [(inputs, targets)] = model.seen
    assert inputs.tolist() == [[3, 0, 1, 2], [3, 0, 1, 2]]
    assert targets.tolist() == [[0, 1, 2, 3], [0, 1, 2, 0]]


def test_a_held_out_part_shorter_than_a_window_is_one_short_window():
    validation = Validation(np.array([3, 0, 1], np.int32), LENGTHS, n_ctx=256)
    assert validation.inputs.tolist() == [[3, 0]]
    assert validation.targets.tolist() == [[0, 1]]


def test_a_long_part_is_sampled_evenly_and_always_alike(monkeypatch):
    monkeypatch.setattr(evaluate, "MAX_WINDOWS", 10)
    tokens = np.arange(1001, dtype=np.int32) % 3
    first, second = (Validation(tokens, LENGTHS, n_ctx=4) for _ in range(2))
    assert first.inputs.shape == (10, 4)
    assert np.array_equal(first.inputs, second.inputs)
    assert first.n_bytes == LENGTHS[first.targets].sum()
    assert first.bytes_per_token == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("tokens", [[3], [3, 3, 3]])
def test_a_part_without_text_is_refused(tokens):
    with pytest.raises(CorpusError, match="held-out part"):
        Validation(np.array(tokens, np.int32), LENGTHS, n_ctx=4)
