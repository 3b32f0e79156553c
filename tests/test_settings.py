"""Settings: bounds, sizes that follow from a width, the width that minutes afford, resuming."""

import dataclasses

import pytest

from llm.budget import WIDTHS
from llm.config import FUSED_HEADS
from llm.errors import LlmError
from llm.settings import FREE, Settings, check_given, merge_resumed


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("minutes", 0.0),
        ("minutes", float("nan")),
        ("steps", 0),
        ("n_embd", 0),
        ("n_layer", 0),
        ("n_head", -1),
        ("n_kv_head", 0),
        ("n_ff", 1 << 40),
        ("n_vocab", 256),
        ("n_ctx", 1),
        ("n_ctx", -1),
        ("batch", 0),
        ("batch", -4),
        ("slot_sequences", 0),
        ("lr", 0.0),
        ("lr", float("inf")),
        ("clip", 0.0),
        ("seed", -1),
        ("threads", -1),
        ("holdout", "first"),
        ("optimizer", "sgd"),
        ("schedule", "cubic"),
    ],
)
def test_absurd_values_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        Settings(**{field: value})


def test_the_benchmark_shape_follows_from_its_width():
    s = Settings().with_width(288)
    assert (s.n_layer, s.n_head, s.n_kv_head, s.n_ff) == (6, 6, 6, 768)
    config = s.model_config(4096)
    assert config.n_multiplied == pytest.approx(7.15e6, rel=0.01)


def test_given_sizes_stay():
    s = Settings(n_layer=2, n_head=8, n_kv_head=2, n_ff=100).with_width(64)
    assert (s.n_embd, s.n_layer, s.n_head, s.n_kv_head, s.n_ff) == (64, 2, 8, 2, 100)


def test_every_width_of_the_ladder_is_a_model():
    for width in WIDTHS:
        Settings().with_width(width).model_config(4096)


def test_every_width_of_the_ladder_has_heads_for_fused_attention():
    fused = Settings(device="cuda", attention="fused")
    assert all(fused.with_width(w).model_config(300).head_dim in FUSED_HEADS for w in WIDTHS)


def test_slots():
    assert Settings(batch=4).n_slots == 1
    assert Settings(batch=8, slot_sequences=2).n_slots == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"minutes": 1.0, "steps": 5}, "--minutes and --steps contradict each other: give one"),
        ({"tokens": 5, "steps": 5}, "--tokens and --steps contradict"),
        ({"depth": 3, "n_layer": 4}, "--depth is 3 and --n-layer 4"),
    ],
)
def test_contradictions_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        check_given(given)
    check_given({"minutes": 1.0, "depth": 3, "n_layer": 3, "steps": None})


def test_resuming_keeps_what_decides_the_file_and_takes_what_does_not():
    saved = Settings(lr=0.002, minutes=7.0, n_embd=64)
    merged = merge_resumed(saved, {"lr": 0.002, "threads": 3, "out": "x.bin"})
    assert (merged.lr, merged.minutes, merged.threads, merged.out) == (0.002, 7.0, 3, "x.bin")
    with pytest.raises(LlmError, match=r"--n-embd is 96, but the run to resume was begun with 64"):
        merge_resumed(saved, {"n_embd": 96})
    with pytest.raises(
        LlmError, match=r"--minutes is 9.0, .* begun with 7.0, and its length stays"
    ):
        merge_resumed(saved, {"minutes": 9.0})
    with pytest.raises(
        LlmError, match=r"--steps is 9, .* begun with no such limit, and its length"
    ):
        merge_resumed(saved, {"steps": 9})
    assert {field.name for field in dataclasses.fields(Settings)} >= FREE
