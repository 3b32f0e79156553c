"""The whole model: gradients, one answer from every path, buffers, bad input."""

import dataclasses

import numpy as np
import pytest

from llm.config import ModelConfig, layout, layout_size
from llm.lora import Lora
from llm.model import Transformer, init_params, piece_sequences
from llm.ops_c import OpsC
from llm.ops_numpy import OpsNumpy
from llm.optim import AdamW, clip_scale

CONFIG = dict(n_vocab=33, n_ctx=12, n_embd=24, n_layer=2, n_head=4, n_kv_head=2, n_ff=20)


def make(tied=True, gain=5.0, recompute=False, lora=None, **changes):
    config = ModelConfig(**{**CONFIG, **changes}, tied_output=tied)
    params = init_params(config, 1).astype(np.float64) * gain
    for entry in layout(config):
        if entry.name.endswith((".bq", ".bk", ".bv")):
            bias = np.random.default_rng(2).uniform(-1, 1, entry.size)
            params[entry.offset : entry.offset + entry.size] = bias
    model = Transformer(config, OpsNumpy(), params, recompute, lora)
    if lora:  # B does not stay zero
        model.trained += np.random.default_rng(2).uniform(-0.2, 0.2, model.trained.size)
    return model


def batch(B, T, n_vocab, lowest=-1, seed=3):
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, n_vocab, (B, T), dtype=np.int32),
        rng.integers(lowest, n_vocab, (B, T), dtype=np.int32),
    )


STARTS = np.array([[0, 0, 2, 2, 2, 2, 2, 7, 7], [0, 0, 0, 0, 0, 0, 6, 6, 6]])
VARIANTS = {
    "tied": {},
    "untied": {"tied": False},
    "wide heads": {"key_length": 8},
    "qwen2": {"architecture": "qwen2"},
    "qwen3": {"architecture": "qwen3", "key_length": 10, "tied": False},
    "qwen3 recomputed": {"architecture": "qwen3", "key_length": 10, "recompute": True},
    "lora": {"lora": Lora(3, 6.0)},
    "qwen2 lora": {"architecture": "qwen2", "lora": Lora(2, 2.0, ("q", "down")), "recompute": True},
}


@pytest.mark.parametrize("starts", [None, STARTS])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_gradient_of_every_tensor(options, starts):
    """Central differences in float64 along the gradient itself, tensor by tensor, and at the
    largest element of each. The bias of k moves all scores of a query alike: no gradient."""
    model = make(**options)
    tokens, targets = batch(2, 9, 33)
    model.loss_and_grad(tokens, targets, starts, scale=2.0)
    grads = {name: g.copy() for name, g in model.grad_views.items()}

    def difference(view, direction, h=4e-6):
        """Two of them, which cancel the error in h^2."""
        return (4 * central(view, direction, h / 2) - central(view, direction, h)) / 3

    def central(view, direction, h):
        saved, out = view.copy(), []
        for sign in (1, -1):
            view[...] = saved + sign * h * direction
            nats, n = model.loss(tokens, targets, starts)
            out.append(2.0 * nats / n)
        view[...] = saved
        return (out[0] - out[1]) / (2 * h)

    assert set(grads) == {entry.name for entry in model.entries}
    for name, view in model.trained_views.items():
        g = grads[name]
        norm = np.linalg.norm(g)
        if norm < 1e-4:
            assert name.endswith(".bk"), name
            continue
        assert difference(view, g / norm) == pytest.approx(norm, rel=1e-6), name
        peak = np.unravel_index(np.argmax(abs(g)), g.shape)
        one = np.zeros_like(g)
        one[peak] = 1
        assert difference(view, one) == pytest.approx(g[peak], rel=1e-6), name


@pytest.mark.parametrize("options", [{}, {"architecture": "qwen2"}, {"architecture": "qwen3"}])
def test_documents_of_a_row_are_as_each_alone(options):
    """Loss and gradient of packed documents against those of rows that hold one each."""
    model = make(**options)
    tokens, targets = batch(1, 11, 33)
    starts = np.array([[0] * 4 + [4] * 5 + [9] * 2])
    packed = model.loss_and_grad(tokens, targets, starts) * np.count_nonzero(targets >= 0)
    expected, grads = 0.0, np.zeros_like(model.grads)
    packed_grads = model.grads * np.count_nonzero(targets >= 0)
    for part in (slice(0, 4), slice(4, 9), slice(9, 11)):
        n = np.count_nonzero(targets[:, part] >= 0)
        expected += n * model.loss_and_grad(tokens[:, part], targets[:, part])
        grads += n * model.grads
    assert packed == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(packed_grads, grads, atol=1e-12)


def test_adapters_begin_as_nothing_and_merge():
    """The model is what it was; merged, it is what it was with adapters beside it."""
    tokens, _ = batch(2, 9, 33)
    plain, tuned = make(), make(lora=Lora(3, 6.0))
    tuned.lora.begin(tuned.entries, tuned.trained, seed=1)
    assert tuned.trained.any()
    np.testing.assert_allclose(tuned.logits(tokens), plain.logits(tokens), atol=1e-12)
    tuned.trained += np.random.default_rng(2).uniform(-0.2, 0.2, tuned.trained.size)
    assert np.abs(tuned.logits(tokens) - plain.logits(tokens)).max() > 0.1
    merged = Transformer(tuned.config, OpsNumpy(), tuned.merged())
    np.testing.assert_allclose(merged.logits(tokens), tuned.logits(tokens), atol=1e-12)
    assert plain.merged() is plain.params


@pytest.mark.parametrize(
    "starts, fragment",
    [
        (np.zeros((2, 3)), r"starts \(2, 3\)"),
        (np.array([[0, 2, 2, 2]]), "must rise along a row"),
        (np.array([[0, 1, 0, 0]]), "must rise along a row"),
    ],
)
def test_refuses_starts(starts, fragment):
    with pytest.raises(ValueError, match=fragment):
        make().logits(np.zeros((1, 4)), starts)


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


def test_refuses_targets_of_another_shape():
    model = make()
    with pytest.raises(ValueError, match=r"tokens have shape \(2, 4\), targets \(2, 3\)"):
        model.loss(np.zeros((2, 4)), np.zeros((2, 3)))


def test_refuses_unknown_targets():
    with pytest.raises(ValueError, match="LoRA target 'x', expected some of q,k,v,o,gate,up,down"):
        Lora(4, 8.0, ("q", "x"))


def test_refuses_wrong_buffer():
    config = ModelConfig(**CONFIG)
    with pytest.raises(ValueError, match="params is float32"):
        Transformer(config, OpsNumpy(), init_params(config, 0))


# ---- the C back end ----

FAST = ModelConfig(n_vocab=70, n_ctx=130, n_embd=40, n_layer=2, n_head=4, n_kv_head=2, n_ff=56)


@pytest.mark.parametrize("starts", [None, STARTS])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_gradient_in_pieces(options, starts, monkeypatch):
    """Of single sequences summed, as of the whole batch; parts are final once, at the end."""
    model = make(**options)
    tokens, targets = batch(6, 9, 33)
    starts = None if starts is None else np.tile(starts, (3, 1))
    expected = model.loss_and_grad(tokens, targets, starts, scale=2.0), model.grads.copy()
    for rows, size in ((1, 1), (18, 2), (50, 3), (54, 6)):
        monkeypatch.setattr(
            "llm.ops_numpy.HostArrays.piece_rows", 4 * rows if model.recompute else rows
        )
        assert piece_sequences(model.ops, 6, 9, model.recompute) == size
        parts, seen = [], []

        def ready(part, parts=parts, seen=seen):
            parts.append(part)
            seen.append(model.grads[part].copy())

        loss = model.loss_and_grad(tokens, targets, starts, 2.0, ready)
        assert loss == pytest.approx(expected[0], rel=1e-12)
        np.testing.assert_allclose(model.grads, expected[1], rtol=0, atol=1e-12)
        assert sum(part.stop - part.start for part in parts) == model.grads.size
        for part, values in zip(parts, seen, strict=True):
            np.testing.assert_array_equal(model.grads[part], values)


def fast_model(n_threads, config=FAST):
    return Transformer(config, OpsC(n_threads), init_params(config, 1) * np.float32(3))


def test_c_agrees_with_numpy(monkeypatch):
    """One tolerance relative to each tensor's largest gradient: float32 against float64. NumPy
    takes the head in one chunk, C in five."""
    tokens, targets = batch(3, 101, 70)
    fast = fast_model(2)
    slow = Transformer(FAST, OpsNumpy(), fast.params.astype(np.float64))
    expected = slow.loss_and_grad(tokens, targets)
    monkeypatch.setattr("llm.ops_numpy.HostArrays.chunk_floats", 1)
    monkeypatch.setattr("llm.ops_numpy.HostArrays.chunk_rows", 64)
    assert fast.loss_and_grad(tokens, targets) == pytest.approx(expected, rel=1e-6)
    for name, expected in slow.grad_views.items():
        got = fast.grad_views[name]
        np.testing.assert_allclose(got, expected, atol=3e-5 * np.abs(expected).max(), err_msg=name)
    np.testing.assert_allclose(fast.logits(tokens), slow.logits(tokens), atol=2e-5)
    assert fast.loss(tokens, targets)[0] == pytest.approx(slow.loss(tokens, targets)[0], rel=1e-6)


def test_threads_do_not_change_a_bit():
    """Three steps with clipping on 1, 2, 3 and 5 threads; buffers are reused in between."""

    def train(n_threads):
        model = fast_model(n_threads)
        optimizer = AdamW(FAST, ops=model.ops)
        losses = []
        for step, T in enumerate((101, 130, 7)):
            losses.append(model.loss_and_grad(*batch(3, T, 70, seed=step)))
            norm = model.ops.sum_squares(model.grads) ** 0.5
            optimizer.step(model.params, model.grads, 0.01, clip_scale(norm, 0.1))
        return np.concatenate([model.params, losses])

    expected = train(1)
    for n_threads in (2, 3, 5):
        np.testing.assert_array_equal(train(n_threads), expected)


def test_a_few_steps_learn():
    """The same batch again and again: the loss falls far below chance."""
    model = fast_model(2)
    optimizer = AdamW(FAST, weight_decay=0.0, ops=model.ops)
    tokens, targets = batch(2, 32, 70, lowest=0)
    first = model.loss_and_grad(tokens, targets)
    for _ in range(60):
        last = model.loss_and_grad(tokens, targets)
        optimizer.step(model.params, model.grads, 0.01)
    assert last < 0.1 * first


# ---- PyTorch ----


def torch_loss(torch, config, w, tokens, targets):
    """The same model in PyTorch's own operations (torch.nn.functional), on tensors `w` by name."""
    F = torch.nn.functional
    B, T = tokens.shape
    D = config.head_dim
    angle = torch.outer(
        torch.arange(T), config.rope_theta ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    )
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]

    def norm(x, gain):
        return F.rms_norm(x, (config.n_embd,), gain, config.norm_eps)

    def heads(x, n, rotate):
        x = x.view(B, T, n, D)
        if rotate:
            pairs = torch.view_as_complex(x.reshape(B, T, n, D // 2, 2))
            x = torch.view_as_real(pairs * turn).reshape(B, T, n, D)
        return x.transpose(1, 2)

    x = w["tok_embd"][tokens]
    for i in range(config.n_layer):
        b = {name: w[f"blk.{i}.{name}"] for name in ("wq", "wk", "wv", "wo")}
        xn = norm(x, w[f"blk.{i}.attn_norm"])
        att = F.scaled_dot_product_attention(
            heads(xn @ b["wq"].T, config.n_head, True),
            heads(xn @ b["wk"].T, config.n_kv_head, True),
            heads(xn @ b["wv"].T, config.n_kv_head, False),
            is_causal=True,
            enable_gqa=True,
        )
        x = x + att.transpose(1, 2).reshape(B, T, -1) @ b["wo"].T
        xn = norm(x, w[f"blk.{i}.ffn_norm"])
        gate, up = xn @ w[f"blk.{i}.w_gate"].T, xn @ w[f"blk.{i}.w_up"].T
        x = x + (F.silu(gate) * up) @ w[f"blk.{i}.w_down"].T
    logits = norm(x, w["out_norm"]) @ w.get("output", w["tok_embd"]).T
    return F.cross_entropy(logits.view(B * T, -1), targets.reshape(-1), ignore_index=-1)


@pytest.mark.peer
@pytest.mark.parametrize("tied", [True, False])
def test_pytorch_agrees(tied):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-peers")
    config = dataclasses.replace(FAST, tied_output=tied)
    model = fast_model(2, config)
    tokens, targets = batch(3, 101, 70)
    loss = model.loss_and_grad(tokens, targets)
    w = {
        name: torch.tensor(view.astype(np.float64), requires_grad=True)
        for name, view in model.views.items()
    }
    expected = torch_loss(
        torch, config, w, torch.tensor(tokens).long(), torch.tensor(targets).long()
    )
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    for name, got in model.grad_views.items():
        g = w[name].grad.numpy()
        np.testing.assert_allclose(got, g, atol=3e-5 * np.abs(g).max(), err_msg=name)
