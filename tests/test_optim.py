"""AdamW and Muon against their textbook form, decay on matrices only, resume, schedules."""

import math

import numpy as np
import pytest

from llm.config import ModelConfig, layout, layout_size
from llm.model import init_params
from llm.ops_c import OpsC
from llm.ops_numpy import OpsNumpy
from llm.optim import (
    OPTIMIZERS,
    SCHEDULES,
    AdamW,
    Muon,
    clip_scale,
    warmup_cosine,
    warmup_linear,
)
from llm.settings import DEFAULT_LR, Settings

CONFIG = ModelConfig(n_vocab=33, n_ctx=12, n_embd=24, n_layer=2, n_head=4, n_kv_head=2, n_ff=20)


def random_grads(seed):
    grads = np.zeros(layout_size(CONFIG), np.float32)
    rng = np.random.default_rng(seed)
    for entry in layout(CONFIG):
        grads[entry.offset :][: entry.size] = rng.standard_normal(entry.size)
    return grads


def test_textbook():
    params = init_params(CONFIG, 1)
    optimizer = AdamW(CONFIG, betas=(0.8, 0.9), weight_decay=0.1, eps=1e-3)
    expected, m, v = params.astype(np.float64), 0, 0
    for step in (1, 2, 3):
        grads = random_grads(step)
        optimizer.step(params, grads, lr=0.01, grad_scale=0.5)
        g = grads.astype(np.float64) * 0.5
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        update = m / (1 - 0.8**step) / (np.sqrt(v / (1 - 0.9**step)) + 1e-3)
        for entry in layout(CONFIG):
            part = slice(entry.offset, entry.offset + entry.size)
            decay = 0.1 if len(entry.shape) == 2 else 0.0
            expected[part] -= 0.01 * (update[part] + decay * expected[part])
    np.testing.assert_allclose(params, expected, rtol=1e-5, atol=1e-6)


def orthogonal(x):
    """Five quintic steps towards U V^T, in float64, as published."""
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


@pytest.mark.parametrize("ops", [OpsNumpy(np.float32), OpsC(2)], ids=["numpy", "c"])
def test_muon_textbook(ops):
    params, adamw = init_params(CONFIG, 1), init_params(CONFIG, 1)
    muon, beside = Muon(CONFIG, ops=ops), AdamW(CONFIG)
    expected, m = params.astype(np.float64), np.zeros(params.size)
    for step in (1, 2, 3):
        grads = random_grads(step)
        muon.step(params, grads, lr=0.02, grad_scale=0.5)
        beside.step(adamw, grads, lr=0.02, grad_scale=0.5)
        momentum = 0.85 + 0.1 * step / 300
        m = momentum * m + 0.5 * grads
        for entry in layout(CONFIG):
            part = slice(entry.offset, entry.offset + entry.size)
            if "blk." in entry.name and len(entry.shape) == 2:
                x = (0.5 * grads[part] + momentum * m[part]).reshape(entry.shape)
                scale = 0.02 * max(1, entry.shape[0] / entry.shape[1]) ** 0.5
                expected[part] -= scale * orthogonal(x).reshape(-1)
            else:
                expected[part] = adamw[part]
    np.testing.assert_allclose(params, expected, rtol=1e-4, atol=2e-5)


def test_muon_orthogonalizes():
    params = np.zeros(layout_size(CONFIG), np.float32)
    Muon(CONFIG).step(params, random_grads(1), lr=1.0)
    for entry in layout(CONFIG):
        if "blk." in entry.name and len(entry.shape) == 2:
            update = params[entry.offset :][: entry.size].reshape(entry.shape)
            scale = max(1, entry.shape[0] / entry.shape[1]) ** 0.5
            values = np.linalg.svd(update / scale, compute_uv=False)
            assert 0.3 < values.min() and values.max() < 1.3


@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_padding_stays_zero(kind):
    params = init_params(CONFIG, 1)
    kind(CONFIG).step(params, random_grads(1), lr=0.01)
    used = np.zeros(params.size, bool)
    for entry in layout(CONFIG):
        used[entry.offset : entry.offset + entry.size] = True
    assert not params[~used].any() and not used.all()


@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_state_resumes_exactly(kind):
    whole, resumed = init_params(CONFIG, 1), init_params(CONFIG, 1)
    first, second, third = kind(CONFIG), kind(CONFIG), kind(CONFIG)
    for step in range(4):
        first.step(whole, random_grads(step), lr=0.01)
    for step in range(2):
        second.step(resumed, random_grads(step), lr=0.01)
    third.load_state({name: np.copy(value) for name, value in second.state.items()})
    assert third.state["step"] == 2
    for step in range(2, 4):
        third.step(resumed, random_grads(step), lr=0.01)
    np.testing.assert_array_equal(whole, resumed)


@pytest.mark.parametrize("kind", [AdamW, Muon])
@pytest.mark.parametrize("n_slots", [4, 8])
def test_ranks_own_parts_and_change_no_bit(kind, n_slots):
    """Ranks of a step, one after the other on one buffer, do together what one does alone."""
    results, sizes = [], []
    for n in (1, 2, 4):
        params, ops = init_params(CONFIG, 1), OpsC(1)
        ranks = [kind(CONFIG, ops=ops, n_slots=n_slots, rank=r, n_ranks=n) for r in range(n)]
        owned = sorted((part.start, part.stop) for rank in ranks for part in rank.owned)
        assert owned[0][0] == 0 and owned[-1][1] == params.size
        assert all(a[1] == b[0] for a, b in zip(owned, owned[1:], strict=False))
        norms = []
        for step in range(3):
            grads = random_grads(step)
            norms.append(math.fsum(x for rank in ranks for x in rank.square_sums(grads)))
            for rank in ranks:
                rank.step(params, grads, lr=0.01)
        assert norms == pytest.approx([np.square(random_grads(s)).sum() for s in range(3)])
        results.append((params.tobytes(), norms))
        sizes.append(max(rank.state["m"].size + rank.state["v"].size for rank in ranks))
        state = {"m": np.arange(params.size), "v": np.arange(params.size), "step": 1}
        for rank in ranks:
            rank.load_state(state)
            indices = [i for part in rank.owned for i in range(part.start, part.stop)]
            assert rank.state["m"].tolist() == indices
    assert results[0] == results[1] == results[2]
    assert sizes[0] == 2 * params.size and sizes[1] < 0.6 * sizes[0] and sizes[2] < 0.35 * sizes[0]


def test_refuses():
    with pytest.raises(ValueError, match="beta2 is 1.0"):
        AdamW(CONFIG, betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="eps 0"):
        AdamW(CONFIG, eps=0)
    with pytest.raises(ValueError, match="state m has shape"):
        AdamW(CONFIG).load_state({"m": np.zeros(3), "v": np.zeros(3), "step": 1})


def test_works_in_float64():
    params = init_params(CONFIG, 1).astype(np.float64)
    AdamW(CONFIG, ops=OpsNumpy(np.float64)).step(params, random_grads(1).astype(np.float64), 0.1)
    assert params.dtype == np.float64


@pytest.mark.parametrize("schedule, end", [(warmup_cosine, 0.05), (warmup_linear, 0.0)])
def test_schedules(schedule, end):
    rates = [schedule(step, 100, 10, 2.0) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(2.0, rel=0.01)
    assert all(a >= b for a, b in zip(rates[9:], rates[10:], strict=False))
    assert rates[-1] == pytest.approx(2.0 * end, abs=2.0 / 90 + 1e-9)
    assert schedule(500, 100, 10, 2.0) == pytest.approx(2.0 * end)
    assert schedule(0, 1, 0, 2.0) == pytest.approx(2.0)


def test_settings_name_the_same_optimizers_and_schedules():
    assert DEFAULT_LR.keys() == OPTIMIZERS.keys()
    for name in SCHEDULES:
        assert Settings(schedule=name).schedule == name


def test_clip_scale():
    assert clip_scale(0.5, 1.0) == 1.0
    assert clip_scale(4.0, 1.0) == 0.25
    assert clip_scale(4.0, 0.0) == 1.0
