"""What is a fault: nothing that ordinary noise does, everything that is no number."""

import math

import numpy as np
import pytest

from llm.guard import MIN_STEPS, fault, is_lost

RNG = np.random.default_rng(1)
LOSSES = (3 + 0.2 * RNG.standard_normal(200)).tolist()
NORMS = (1 + 0.2 * RNG.standard_normal(200)).tolist()


def judge(loss=3.0, norm=1.0, losses=LOSSES, norms=NORMS, skipped=(), since=0):
    return fault(loss, norm, losses, norms, list(skipped), since)


def test_ordinary_steps_pass():
    assert judge() is None
    assert judge(loss=4.5, norm=15.0) is None
    assert judge(loss=0.0, norm=0.0) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_a_fault_from_the_first_step_on(bad):
    assert "loss is" in judge(loss=bad, losses=[], norms=[])
    assert "gradient" in judge(norm=bad, losses=[], norms=[])


def test_leaps():
    assert "the loss leaps from " in judge(loss=6.5)
    assert "the gradient leaps from " in judge(norm=25.0)


def test_a_noisy_text_is_given_more_room():
    noisy = (3 + 1.0 * RNG.standard_normal(200)).tolist()
    assert judge(loss=6.0, losses=noisy) is None


def test_too_few_steps_judge_nothing():
    few = LOSSES[: MIN_STEPS - 1]
    assert judge(loss=50.0, losses=few, norms=NORMS[: len(few)]) is None
    assert judge(loss=50.0, since=200 - MIN_STEPS + 1) is None
    assert judge(loss=50.0, since=200 - MIN_STEPS) is not None


def test_skipped_steps_do_not_count():
    spiked = LOSSES[:120] + [90.0] * 80
    assert judge(loss=50.0, losses=spiked) is None
    assert "the loss leaps from " in judge(loss=50.0, losses=spiked, skipped=range(120, 200))


def test_what_a_checkpoint_rounds_is_judged_alike():
    rounded = [np.array(x, np.float32).tolist() for x in (LOSSES, NORMS)]
    for loss in np.linspace(4, 7, 300):
        assert judge(loss=loss) == judge(loss=loss, losses=rounded[0], norms=rounded[1])


def test_three_in_a_row_are_too_many():
    assert is_lost(10, [7, 8, 9], 0) and is_lost(10, [1, 7, 8, 9], 7)
    assert not is_lost(10, [6, 8, 9], 0)
    assert not is_lost(10, [8, 9], 0)
    assert not is_lost(10, [7, 8, 9], 8)  # a rollback lies between
    assert not is_lost(11, [7, 8, 9], 0)
