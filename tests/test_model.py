"""The whole model: gradients, one answer from every path, buffers, bad input."""

import numpy as np
import pytest

from llm.config import ModelConfig, layout, layout_size
from llm.model import Transformer, init_params
from llm.ops_numpy import OpsNumpy

CONFIG = dict(n_vocab=33, n_ctx=12, n_embd=24, n_layer=2, n_head=4, n_kv_head=2, n_ff=20)


def make(tied=True, gain=5.0, **changes):
    config = ModelConfig(**{**CONFIG, **changes}, tied_output=tied)
    return Transformer(config, OpsNumpy(), init_params(config, 1).astype(np.float64) * gain)


def batch(B, T, n_vocab, lowest=-1, seed=3):
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, n_vocab, (B, T), dtype=np.int32),
        rng.integers(lowest, n_vocab, (B, T), dtype=np.int32),
    )


@pytest.mark.parametrize("tied", [True, False])
def test_gradient_of_every_tensor(tied):
    """Central differences in float64 along the gradient itself, tensor by tensor, and at the
    largest element of each."""
    model = make(tied)
    tokens, targets = batch(2, 9, 33)
    model.loss_and_grad(tokens, targets, scale=2.0)
    grads = {name: g.copy() for name, g in model.grad_views.items()}

    def difference(view, direction, h=1e-5):
        saved, out = view.copy(), []
        for sign in (1, -1):
            view[...] = saved + sign * h * direction
            nats, n = model.loss(tokens, targets)
            out.append(2.0 * nats / n)
        view[...] = saved
        return (out[0] - out[1]) / (2 * h)

    for name, view in model.views.items():
        g = grads[name]
        norm = np.linalg.norm(g)
        assert norm > 1e-4, name
        assert difference(view, g / norm) == pytest.approx(norm, rel=1e-6), name
        peak = np.unravel_index(np.argmax(abs(g)), g.shape)
        one = np.zeros_like(g)
        one[peak] = 1
        assert difference(view, one) == pytest.approx(g[peak], rel=1e-6), name


def test_padding_keeps_zero_gradient():
    model = make(n_vocab=31, n_embd=8, n_head=2, n_kv_head=1, n_ff=5)
    model.loss_and_grad(*batch(2, 5, 31))
    used = np.zeros(layout_size(model.config), bool)
    for entry in layout(model.config):
        used[entry.offset : entry.offset + entry.size] = True
    assert not used.all() and not model.grads[~used].any() and not model.params[~used].any()


def test_paths_agree():
    """Loss with and without gradients, loss from logits, and a shape change in between."""
    model = make()
    tokens, targets = batch(2, 9, 33)
    mean = model.loss_and_grad(tokens, targets)
    nats, n = model.loss(tokens, targets)
    assert n == np.count_nonzero(targets >= 0) and nats / n == pytest.approx(mean, rel=1e-12)
    logits = model.logits(tokens)
    assert logits.shape == (2, 9, 33)
    picked = np.take_along_axis(logits, np.maximum(targets, 0)[..., None], 2)[..., 0]
    each = np.log(np.exp(logits).sum(axis=2)) - picked
    assert each[targets >= 0].sum() == pytest.approx(nats, rel=1e-12)
    model.loss_and_grad(tokens[:1, :4], targets[:1, :4])
    np.testing.assert_allclose(model.logits(tokens[:, :4]), logits[:, :4], atol=1e-12)


def test_gradient_overwrites_and_ignores():
    """A second call leaves nothing of the first; all targets ignored gives zero."""
    model = make(tied=False)
    tokens, targets = batch(2, 9, 33)
    model.loss_and_grad(tokens, targets)
    first = model.grads.copy()
    model.loss_and_grad(tokens[::-1], targets[::-1])
    assert np.abs(first).max() > 0
    np.testing.assert_allclose(model.grads, first, rtol=1e-9, atol=1e-12)
    assert model.loss_and_grad(tokens, np.full_like(tokens, -1)) == 0
    assert not model.grads.any()


def test_init_params():
    config = ModelConfig(
        n_vocab=512, n_ctx=8, n_embd=64, n_layer=2, n_head=4, n_kv_head=4, n_ff=128
    )
    params = init_params(config, 5)
    assert params.dtype == np.float32
    np.testing.assert_array_equal(params, init_params(config, 5))
    assert not np.array_equal(params, init_params(config, 6))
    views = Transformer(config, OpsNumpy(np.float32), params).views
    assert (views["blk.1.attn_norm"] == 1).all()
    assert views["tok_embd"].std() == pytest.approx(0.02, rel=0.05)
    assert views["blk.0.wo"].std() == pytest.approx(0.01, rel=0.05)
    zero = Transformer(config, OpsNumpy(np.float32), init_params(config, 5, zero_output=True))
    assert not zero.views["blk.0.w_down"].any() and zero.views["blk.0.wq"].any()


@pytest.mark.parametrize(
    "tokens, fragment",
    [
        (np.zeros((2, 13)), "T <= 12"),
        (np.zeros(4), r"shape \(4,\)"),
        (np.zeros((0, 4)), r"shape \(0, 4\)"),
        (np.full((1, 4), 33), "to 33, expected 0 to 32"),
        (np.full((1, 4), -1), "from -1 to -1"),
    ],
)
def test_refuses_tokens(tokens, fragment):
    model = make()
    with pytest.raises(ValueError, match=fragment):
        model.logits(tokens)


def test_refuses_wrong_buffer():
    config = ModelConfig(**CONFIG)
    with pytest.raises(ValueError, match="params is float32"):
        Transformer(config, OpsNumpy(), init_params(config, 0))
