"""The memorisation meter: a model that learned its text by heart, one that cannot have, and greedy
continuation itself as the specification."""

import numpy as np
import pytest

from llm.config import ModelConfig
from llm.data import Examples
from llm.memorisation import N_WINDOWS, measure_memorisation, repeated, seen_windows, spread
from llm.model import Transformer, init_params
from llm.ops_c import OpsC
from llm.optim import AdamW

CONFIG = ModelConfig(n_vocab=48, n_ctx=32, n_embd=32, n_layer=1, n_head=2, n_kv_head=2, n_ff=64)
RANDOM = np.random.default_rng(1).integers(0, 48, 2000, dtype=np.int32)  # nothing to learn but it
HELD_OUT = np.random.default_rng(2).integers(0, 48, (20, 33), dtype=np.int32)


class Counts:
    """Predicts id + 1 after every id, modulo the vocabulary."""

    def logits(self, tokens):
        return np.eye(48)[(tokens + 1) % 48]


def test_repeated_counts_up_to_the_first_difference():
    windows = np.arange(12, dtype=np.int32)[None, :].repeat(4, axis=0)
    windows[1, 9] = 40  # in the continuation
    windows[2, 2] = 40  # in the prompt: no matter
    windows[3, 4] = 40  # at once
    assert repeated(Counts(), windows, n_prompt=4).tolist() == [8, 5, 8, 0]


def trained(tokens, n_steps):
    """A model after n_steps on one window after the other of `tokens`, and its examples."""
    model = Transformer(CONFIG, OpsC(1), init_params(CONFIG, 1))
    optimizer = AdamW(CONFIG, weight_decay=0.0, ops=model.ops)
    examples = Examples(tokens, 32, seed=1, n_slots=1, slot_sequences=4)
    for step in range(n_steps):
        model.loss_and_grad(*examples.slot(step, 0))
        optimizer.step(model.params, model.grads, 0.01, 1.0)
    return model, examples


@pytest.fixture(scope="module")
def by_heart():
    return trained(RANDOM[:200], 400)


def test_a_model_that_learned_by_heart_is_told_from_one_that_did_not(by_heart):
    model, examples = by_heart
    found = measure_memorisation(model, examples, 400, HELD_OUT)
    assert found.verbatim(found.training) > 0.8
    assert found.verbatim(found.held_out) == 0
    assert found.held_out.mean() < 1 < 12 < found.training.mean()
    assert (found.n_prompt, found.n_tokens) == (16, 16)

    model, examples = trained(RANDOM, 3)
    found = measure_memorisation(model, examples, 3, HELD_OUT)
    assert found.verbatim(found.training) == 0
    assert found.training.mean() < 1
    assert len(found.training) == 12  # all that it saw


def test_the_count_is_that_of_greedy_continuation(by_heart):
    model, examples = by_heart
    windows = np.concatenate([seen_windows(examples, 400)[:6], HELD_OUT[:2, :32]])
    for window, run in zip(windows, repeated(model, windows, 16).tolist(), strict=True):
        ids = window[:16].tolist()
        while len(ids) < 32:
            ids.append(int(model.logits(np.array([ids], np.int32))[0, -1].argmax()))
        assert run == next((i for i in range(16) if ids[16 + i] != window[16 + i]), 16)


def test_the_figures_are_plain_and_always_the_same(by_heart):
    model, examples = by_heart
    first, second = (measure_memorisation(model, examples, 400, HELD_OUT) for _ in range(2))
    assert first.figures() == second.figures()
    assert {type(value) for value in first.figures().values()} == {int, float}


def test_windows_are_spread_over_all_that_was_seen():
    examples = Examples(RANDOM, 32, seed=1, n_slots=2, slot_sequences=2)
    windows = seen_windows(examples, 1000)
    assert windows.shape == (N_WINDOWS, 32)
    assert windows[1].tolist() == examples.slot(15, 1)[0][0].tolist()  # sequence 62
    assert spread(3).tolist() == [0, 1, 2]
    assert spread(0).tolist() == []


def test_the_shortest_windows():
    examples = Examples(RANDOM, 2, seed=1, n_slots=1, slot_sequences=1)
    found = measure_memorisation(Counts(), examples, 5, HELD_OUT[:1, :2])
    assert (found.n_prompt, found.n_tokens, len(found.held_out)) == (1, 1, 1)
