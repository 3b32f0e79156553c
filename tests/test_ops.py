"""Operations: each backward against central differences in float64, each back end against NumPy.

Tolerances of the float32 comparison are relative to the result's largest magnitude: 2e-5 covers
sums of a few hundred terms, a wrong formula misses by orders more.
"""

import numpy as np
import pytest

from llm.ops_numpy import OpsNumpy

OPS = OpsNumpy(np.float64)
RNG = np.random.default_rng(7)


def normal(*shape):
    return RNG.standard_normal(shape)


def numeric_gradient(loss, x, h=1e-5):
    """d loss() / dx by central differences, element by element; x is changed and restored."""
    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        old = x[index]
        x[index] = old + h
        above = loss()
        x[index] = old - h
        below = loss()
        x[index] = old
        gradient[index] = (above - below) / (2 * h)
    return gradient


def assert_gradient(loss, x, gradient):
    np.testing.assert_allclose(gradient, numeric_gradient(loss, x), rtol=1e-6, atol=1e-8)


# ---- the specification itself ----


@pytest.mark.parametrize("trans_a, trans_b", [(0, 0), (0, 1), (1, 0)])
def test_gemm_gradients_are_gemms(trans_a, trans_b):
    a, b, weight = normal(*((4, 3) if trans_a else (3, 4))), normal(4, 5), normal(3, 5)
    b = np.ascontiguousarray(b.T) if trans_b else b
    c, added = OPS.empty(3, 5), normal(3, 5)

    def loss():
        OPS.gemm(c, a, b, trans_a=trans_a, trans_b=trans_b, add=added)
        return np.sum(c * weight)

    da = weight @ (b if trans_b else b.T)
    db = (a if trans_a else a.T) @ weight
    assert_gradient(loss, a, da.T if trans_a else da)
    assert_gradient(loss, b, db.T if trans_b else db)
    assert_gradient(loss, added, weight)


def test_embed_gradient():
    table, weight = normal(5, 3), normal(6, 3)
    tokens = np.array([0, 4, 4, 2, 0, 4], np.int32)
    x = OPS.empty(6, 3)

    def loss():
        OPS.embed(x, table, tokens)
        return np.sum(x * weight)

    before = normal(5, 3)
    dtable = before.copy()
    OPS.embed_backward(dtable, weight, tokens)
    assert_gradient(loss, table, dtable - before)


def test_rmsnorm_gradient():
    x, w, weight = normal(4, 6), normal(6), normal(4, 6)
    y, rstd = OPS.empty(4, 6), OPS.empty(4)

    def loss():
        OPS.rmsnorm(y, rstd, x, w, 1e-5)
        return np.sum(y * weight)

    loss()
    dx, dw, dy = np.ones((4, 6)), OPS.empty(6), weight.copy()
    OPS.rmsnorm_backward(dx, dw, dy, x, w, rstd)
    np.testing.assert_allclose(dy, y, rtol=1e-12)
    assert_gradient(loss, x, dx - 1)
    assert_gradient(loss, w, dw)


def angles(T, D):
    return np.cos(np.outer(np.arange(T), 1.5 + np.arange(D // 2))), np.sin(
        np.outer(np.arange(T), 1.5 + np.arange(D // 2))
    )


def test_rope_turns_adjacent_pairs():
    x = np.zeros((1, 3, 1, 4))
    x[..., 0] = x[..., 2] = 1
    cos, sin = angles(5, 4)
    OPS.rope(x, cos, sin)
    np.testing.assert_allclose(
        x[0, 2, 0], [np.cos(3.0), np.sin(3.0), np.cos(5.0), np.sin(5.0)], rtol=1e-12
    )


def test_rope_gradient():
    x, weight = normal(2, 3, 2, 4), normal(2, 3, 2, 4)
    cos, sin = angles(3, 4)

    def loss():
        y = x.copy()
        OPS.rope(y, cos, sin)
        return np.sum(y * weight)

    dx = weight.copy()
    OPS.rope_backward(dx, cos, sin)
    assert_gradient(loss, x, dx)


@pytest.mark.parametrize("n_head, n_kv_head", [(2, 2), (4, 2), (3, 1)])
def test_attention_gradient(n_head, n_kv_head):
    q, weight = normal(2, 5, n_head, 4), normal(2, 5, n_head, 4)
    k, v = normal(2, 5, n_kv_head, 4), normal(2, 5, n_kv_head, 4)
    o, lse = OPS.empty(*q.shape), OPS.empty(2, n_head, 5)

    def loss():
        OPS.attention(o, lse, q, k, v)
        return np.sum(o * weight)

    loss()
    dq, dk, dv = OPS.empty(*q.shape), OPS.empty(*k.shape), OPS.empty(*v.shape)
    OPS.attention_backward(dq, dk, dv, weight, o, q, k, v, lse)
    assert_gradient(loss, q, dq)
    assert_gradient(loss, k, dk)
    assert_gradient(loss, v, dv)


def test_attention_is_causal():
    q, k, v = normal(1, 6, 1, 4), normal(1, 6, 1, 4), normal(1, 6, 1, 4)
    o, lse = OPS.empty(*q.shape), OPS.empty(1, 1, 6)
    OPS.attention(o, lse, q, k, v)
    before = o.copy()
    k[0, 4:], v[0, 4:] = 9, 9
    OPS.attention(o, lse, q, k, v)
    np.testing.assert_array_equal(o[0, :4], before[0, :4])
    np.testing.assert_allclose(o[0, 0, 0], v[0, 0, 0], rtol=1e-12)  # one position: its own value


def test_swiglu_gradient():
    gate, up, weight = normal(3, 4) * 3, normal(3, 4), normal(3, 4)
    h = OPS.empty(3, 4)

    def loss():
        OPS.swiglu(h, gate, up)
        return np.sum(h * weight)

    loss()
    dgate, dup, dh = gate.copy(), up.copy(), weight.copy()
    OPS.swiglu_backward(dgate, dup, dh)
    np.testing.assert_allclose(dh, h, rtol=1e-12)
    assert_gradient(loss, gate, dgate)
    assert_gradient(loss, up, dup)


def test_cross_entropy_gradient():
    logits = normal(4, 6) * 3
    targets = np.array([0, 5, -1, 2], np.int32)
    losses = OPS.empty(4)

    def loss():
        OPS.cross_entropy(losses, logits.copy(), targets)
        return 0.25 * np.sum(losses)

    expected = np.log(np.sum(np.exp(logits), axis=1)) - logits[np.arange(4), targets]
    loss()
    np.testing.assert_allclose(losses, np.where(targets >= 0, expected, 0), rtol=1e-12)
    dlogits = logits.copy()
    OPS.cross_entropy(losses, dlogits, targets, scale=0.25)
    assert_gradient(loss, logits, dlogits)


def test_sum_squares():
    x = normal(1000)
    assert OPS.sum_squares(x) == pytest.approx(np.dot(x, x), rel=1e-12)
