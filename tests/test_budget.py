"""The one dial: what follows from minutes, tokens, steps or a depth; what the minutes hold."""

import pytest

from llm.budget import MARGIN, WIDTHS, Costs, choose, choose_batch, split
from llm.settings import Settings

V = 4096


def never(settings):
    raise AssertionError("measured without need")


def chosen(rate=1e11, **given):
    return choose(Settings(**given), V, lambda settings: rate)


def params(s):
    return s.model_config(V).n_multiplied


def test_more_time_or_a_faster_machine_buys_a_wider_model():
    widths = [chosen(minutes=m).n_embd for m in (0.1, 1, 5, 30, 300)]
    assert widths == sorted(widths) and widths[0] < widths[-1]
    assert chosen(2e11, minutes=5).n_embd == chosen(minutes=10).n_embd
    assert chosen(1.0, minutes=0.01).n_embd == WIDTHS[0]


def test_without_a_budget_there_are_five_minutes():
    assert chosen() == chosen(minutes=5.0)
    assert chosen().steps is None


def test_tokens_choose_the_size_without_a_clock():
    s = choose(Settings(tokens=40_000_000), V, never)
    assert s.tokens_per_param * params(s) <= 40_000_000
    wider = s.n_embd + 32
    assert s.tokens_per_param * params(Settings().with_width(wider)) > 40_000_000
    assert abs(s.steps * s.step_tokens - 40_000_000) < s.step_tokens
    assert s.warmup == s.steps * 3 // 100


def test_a_depth_brings_width_and_tokens():
    s = choose(Settings(depth=6), V, never)
    assert (s.n_layer, s.n_embd, s.n_head) == (6, 288, 6)
    assert s.steps * s.step_tokens == pytest.approx(s.tokens_per_param * params(s), rel=0.01)
    twenty = choose(Settings(depth=6, tokens_per_param=20), V, never)
    assert twenty.steps * twenty.step_tokens == pytest.approx(20 * params(s), rel=0.01)


def test_a_depth_beside_a_budget_is_a_size_alone():
    s = chosen(depth=6, minutes=3)
    assert (s.n_embd, s.minutes, s.steps) == (288, 3, None)
    s = choose(Settings(depth=6, steps=50), V, never)
    assert (s.n_embd, s.steps, s.batch) == (288, 50, 8)


def test_everything_can_be_overridden():
    given = {"n_embd": 96, "n_layer": 3, "batch": 6, "slot_sequences": 3, "warmup": 7}
    s = choose(Settings(minutes=5, **given), V, never)
    assert {name: getattr(s, name) for name in given} == given


def test_the_width_fits_a_given_number_of_heads():
    assert chosen(minutes=5, n_head=7).n_embd % 14 == 0
    with pytest.raises(ValueError, match="n_head is 4096: give --n-embd"):
        chosen(minutes=5, n_head=4096)
    fused = {"device": "cuda", "attention": "fused"}
    assert chosen(minutes=1e6, n_head=4, **fused).n_embd == 4 * 128  # its heads are no wider


def test_the_width_of_a_number_of_steps_fits_a_given_number_of_heads():
    fused = {"device": "cuda", "attention": "fused"}
    for n_head, more, width in ((8, {}, 224), (8, fused, 256), (5, {}, 220), (None, fused, 224)):
        assert choose(Settings(steps=50, n_head=n_head, **more), V, never).n_embd == width


def test_the_batch_grows_slowly_with_the_arithmetic():
    assert choose_batch(0, None, 4) == choose_batch(2e14, None, 4) == 4
    assert choose_batch(2e14 * 8.4, None, 4) == 8
    assert choose_batch(2e17, None, 4) == 32
    assert choose_batch(2e14 * 8.4, 3, 4) == 6
    assert choose_batch(0, 16, 4) == 16


COSTS = Costs(validation=0.5, sample=0.25, save=0.125, export=2.0)


def test_the_minutes_hold_all_that_is_done_in_them():
    settings = Settings(minutes=1, save_seconds=30)
    n_steps, n_validations = split(settings, 4.0, 0.1, 3, COSTS)
    assert n_validations == 5  # 5 % of the time
    rest = 4.0 + 2.0 + 3 * 0.25 + 5 * 0.5
    seconds = rest + n_steps * 0.1
    assert seconds < 60 * (1 - MARGIN)
    assert seconds + 0.125 * 9 > 60 * (1 - MARGIN) - 0.1


def test_saving_after_every_step_is_part_of_a_step():
    slow = split(Settings(minutes=1, save_seconds=0), 4.0, 0.1, 3, COSTS)[0]
    assert slow == pytest.approx((60 - 4 - 2 - 0.75 - 2.5) / 0.225, rel=0.02)


def test_a_budget_that_is_used_up_still_ends():
    assert split(Settings(minutes=0.01), 3.0, 1.0, 3, COSTS) == (1, 3)
