"""Operations: each backward against central differences in float64, each back end against NumPy.

Tolerances of the float32 comparison are relative to the result's largest magnitude: 2e-5 covers
sums of a few hundred terms, a wrong formula misses by orders more. Past 500
lines: a few lines for every operation that there is, over one set of helpers.
"""

import numpy as np
import pytest

from llm import ops_c
from llm.ops_numpy import OpsNumpy, round_bf16

OPS, OPS_BF16 = OpsNumpy(np.float64), OpsNumpy(np.float64, "bf16")
RNG = np.random.default_rng(7)


@pytest.fixture(autouse=True)
def same_numbers():
    """For each test, whatever ran before it."""
    RNG.bit_generator.state = np.random.default_rng(7).bit_generator.state


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


def test_rope_turns_halves_and_counts_from_a_documents_first_position():
    x = np.zeros((1, 3, 1, 4))
    x[..., 0] = x[..., 1] = 1
    cos, sin = angles(5, 4)
    OPS.rope(x, cos, sin, halves=True, starts=np.array([[0, 1, 1]]))
    np.testing.assert_allclose(
        x[0, 2, 0], [np.cos(1.5), np.cos(2.5), np.sin(1.5), np.sin(2.5)], rtol=1e-12
    )
    np.testing.assert_array_equal(x[0, 1, 0], [1, 1, 0, 0])


STARTS = np.array([[0, 0, 2, 2, 4], [0, 1, 1, 1, 1]], np.int32)


@pytest.mark.parametrize("options", [{}, {"halves": True, "starts": STARTS}])
def test_rope_gradient(options):
    x, weight = normal(2, 5, 2, 4), normal(2, 5, 2, 4)
    cos, sin = angles(5, 4)

    def loss():
        y = x.copy()
        OPS.rope(y, cos, sin, **options)
        return np.sum(y * weight)

    dx = weight.copy()
    OPS.rope_backward(dx, cos, sin, **options)
    assert_gradient(loss, x, dx)


@pytest.mark.parametrize("starts", [None, STARTS])
@pytest.mark.parametrize("n_head, n_kv_head", [(2, 2), (4, 2), (3, 1)])
def test_attention_gradient(n_head, n_kv_head, starts):
    q, weight = normal(2, 5, n_head, 4), normal(2, 5, n_head, 4)
    k, v = normal(2, 5, n_kv_head, 4), normal(2, 5, n_kv_head, 4)
    o, lse = OPS.empty(*q.shape), OPS.empty(2, n_head, 5)

    def loss():
        OPS.attention(o, lse, q, k, v, starts)
        return np.sum(o * weight)

    loss()
    dq, dk, dv = OPS.empty(*q.shape), OPS.empty(*k.shape), OPS.empty(*v.shape)
    OPS.attention_backward(dq, dk, dv, weight, o, q, k, v, lse, starts)
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


def test_attention_never_crosses_documents():
    """Two documents in a row are as each alone."""
    q, k, v = normal(1, 7, 4, 4), normal(1, 7, 2, 4), normal(1, 7, 2, 4)
    starts = np.array([[0, 0, 0, 3, 3, 3, 3]], np.int32)
    o, lse = OPS.empty(*q.shape), OPS.empty(1, 4, 7)
    OPS.attention(o, lse, q, k, v, starts)
    for part in (slice(0, 3), slice(3, 7)):
        alone = OPS.empty(1, part.stop - part.start, 4, 4)
        OPS.attention(alone, lse[..., part].copy(), q[:, part], k[:, part], v[:, part])
        np.testing.assert_allclose(o[:, part], alone, rtol=1e-12)


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


# ---- C against NumPy, every kernel set of this machine, odd shapes ----


ROUNDING = ("avx512", "amx")


def kernel_sets(names=("scalar", "avx2", "avx512"), precision="fp32"):
    """Names that this machine runs."""
    found = []
    for name in names:
        try:
            ops_c.OpsC(1, name, precision)
        except ValueError:
            continue
        found.append(name)
    return found


@pytest.fixture(scope="module", params=kernel_sets())
def ops(request):
    return ops_c.OpsC(2, request.param)


@pytest.fixture(scope="module", params=ROUNDING)
def rounding(request):
    """Back ends whose products round: C on 1 and on 3 threads."""
    if not kernel_sets([request.param], "bf16"):
        pytest.skip(f"this processor has no bfloat16 products of {request.param}")
    return [ops_c.OpsC(n, request.param, "bf16") for n in (1, 3)]


def single(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def assert_same(ops, method, *arrays, reference=OPS, tolerance=2e-5, mean=False, **options):
    """Runs a method of both back ends on copies and compares every float array afterwards: the
    largest difference, or the mean (root of squares)."""
    mine = [a.copy() if isinstance(a, np.ndarray) else a for a in arrays]
    theirs = [
        a.astype(np.float64) if getattr(a, "dtype", None) == np.float32 else a for a in arrays
    ]
    getattr(ops, method)(*mine, **options)
    getattr(reference, method)(*theirs, **options)
    for got, expected in zip(mine, theirs, strict=True):
        if isinstance(got, np.ndarray) and got.dtype == np.float32:
            if mean:
                assert np.linalg.norm(got - expected) <= tolerance * np.linalg.norm(expected)
                continue
            largest = max(np.abs(expected).max(), 1.0)
            np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * largest)


GEMM_SHAPES = [(1, 1, 1), (6, 16, 3), (5, 17, 2), (7, 33, 40), (97, 48, 385), (31, 100, 801)]


@pytest.mark.parametrize("m, n, k", GEMM_SHAPES)
@pytest.mark.parametrize("trans_a, trans_b", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm(ops, m, n, k, trans_a, trans_b):
    a, b = single(*((k, m) if trans_a else (m, k))), single(*((n, k) if trans_b else (k, n)))
    c, added = single(m, n), single(m, n)
    assert_same(ops, "gemm", c, a, b, trans_a, trans_b)
    assert_same(ops, "gemm", c, a, b, trans_a, trans_b, added)
    expected = c + (a.T if trans_a else a) @ (b.T if trans_b else b)
    bias = single(n)
    assert_same(ops, "gemm", c, a, b, trans_a, trans_b, bias)
    ops.gemm(c, a, b, trans_a, trans_b, add=c)
    np.testing.assert_allclose(c, expected, atol=2e-5 * np.abs(expected).max())


def test_round_bf16():
    x = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-9])
    np.testing.assert_array_equal(round_bf16(x), [1.0, 1.0, 1 + 2**-6, 1 + 2**-7, -1.0])


@pytest.mark.parametrize("m, n, k", [*GEMM_SHAPES, (145, 49, 64), (17, 130, 1100)])
@pytest.mark.parametrize("trans_a, trans_b", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm_of_rounded_operands(rounding, m, n, k, trans_a, trans_b):
    a, b = single(*((k, m) if trans_a else (m, k))), single(*((n, k) if trans_b else (k, n)))
    c, added = single(m, n), single(m, n)
    one, three = rounding
    assert_same(one, "gemm", c, a, b, trans_a, trans_b, added, reference=OPS_BF16)
    one.gemm(c, a, b, trans_a, trans_b, added)
    again = c.copy()
    three.gemm(again, a, b, trans_a, trans_b, added)
    np.testing.assert_array_equal(c, again)


@pytest.mark.parametrize("m, n", [(1, 1), (70, 16), (33, 50)])
def test_sum_rows(ops, m, n):
    assert_same(ops, "sum_rows", single(n), single(m, n))


@pytest.mark.parametrize("n", [1, 16, 24, 50])
def test_embed(ops, n):
    tokens = RNG.integers(0, 7, 30, dtype=np.int32)
    assert_same(ops, "embed", single(30, n), single(7, n), tokens)
    assert_same(ops, "embed_backward", single(7, n), single(30, n), tokens)


@pytest.mark.parametrize("n_rows, n", [(1, 1), (3, 16), (65, 50), (130, 288)])
def test_rmsnorm(ops, n_rows, n):
    x, w, rstd = single(n_rows, n), single(n), single(n_rows)
    assert_same(ops, "rmsnorm", single(n_rows, n), rstd, x, w, 1e-5)
    assert_same(ops, "rmsnorm_backward", single(n_rows, n), w, single(n_rows, n), x, w, abs(rstd))


@pytest.mark.parametrize("head_dim", [2, 8, 26, 64])
@pytest.mark.parametrize("options", [{}, {"halves": True, "starts": STARTS}])
def test_rope(ops, head_dim, options):
    cos, sin = (a.astype(np.float32) for a in angles(9, head_dim))
    assert_same(ops, "rope", single(2, 5, 3, head_dim), cos, sin, **options)
    assert_same(ops, "rope_backward", single(2, 5, 3, head_dim), cos, sin, **options)


def documents(B, T, seed=5):
    """starts (B, T): documents of 1 to 60 positions."""
    rng, starts = np.random.default_rng(seed), np.zeros((B, T), np.int32)
    for row in starts:
        first = 0
        while first < T:
            row[first:] = first
            first += int(rng.integers(1, 61))
    return starts


@pytest.mark.parametrize("n_head, n_kv_head", [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize("T, head_dim", [(1, 8), (5, 10), (47, 16), (101, 50), (130, 64)])
@pytest.mark.parametrize("isolate", [False, True])
def test_attention(ops, n_head, n_kv_head, T, head_dim, isolate):
    starts = documents(2, 2 * T) if isolate else None
    T = 2 * T if isolate else T
    q, k, v = (single(2, T, n, head_dim) * 2 for n in (n_head, n_kv_head, n_kv_head))
    o, lse = single(*q.shape), single(2, n_head, T)
    assert_same(ops, "attention", o, lse, q, k, v, starts)
    ops.attention(o, lse, q, k, v, starts)
    dq, dk, dv, do = single(*q.shape), single(*k.shape), single(*k.shape), single(*q.shape)
    assert_same(ops, "attention_backward", dq, dk, dv, do, o, q, k, v, lse, starts)


@pytest.mark.parametrize("n_head, n_kv_head", [(2, 2), (3, 1)])
@pytest.mark.parametrize("T, head_dim", [(1, 8), (47, 15), (101, 48), (130, 64)])
@pytest.mark.parametrize("isolate", [False, True])
def test_attention_of_rounded_operands(rounding, n_head, n_kv_head, T, head_dim, isolate):
    """What lies close to the middle of two bfloat16 may fall to either side, rarely; where a token
    sees itself alone, such numbers are all that dq and dk are."""
    tolerance = 1e-3 if T > 1 else 2**-7
    starts = documents(2, 2 * T) if isolate else None
    T = 2 * T if isolate else T
    q, k, v = (single(2, T, n, head_dim) for n in (n_head, n_kv_head, n_kv_head))
    o, lse = single(*q.shape), single(2, n_head, T)
    one, three = rounding
    close = {"reference": OPS_BF16, "tolerance": tolerance, "mean": True}
    assert_same(one, "attention", o, lse, q, k, v, starts, **close)
    one.attention(o, lse, q, k, v, starts)
    outputs, do = [single(*q.shape), single(*k.shape), single(*k.shape)], single(*q.shape)
    assert_same(one, "attention_backward", *outputs, do, o, q, k, v, lse, starts, **close)
    one.attention_backward(*outputs, do, o, q, k, v, lse, starts)
    again = [x.copy() for x in (*outputs, o, lse)]
    three.attention(*again[3:], q, k, v, starts)
    three.attention_backward(*again[:3], do, o, q, k, v, lse, starts)
    for first, second in zip((*outputs, o, lse), again, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("n_rows, n", [(1, 1), (3, 17), (40, 64)])
def test_swiglu(ops, n_rows, n):
    gate, up = single(n_rows, n) * 4, single(n_rows, n)
    gate[0, 0] = 60
    assert_same(ops, "swiglu", single(n_rows, n), gate, up)
    assert_same(ops, "swiglu_backward", gate, up, single(n_rows, n))
    gate[0, 0] = -200  # exp overflows: the limit is 0, not NaN
    h = single(n_rows, n)
    ops.swiglu(h, gate, up)
    assert h[0, 0] == 0


@pytest.mark.parametrize("n_vocab", [1, 16, 33, 500])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_cross_entropy(ops, n_vocab, scale):
    logits = single(9, n_vocab) * 5 + 80
    targets = RNG.integers(-1, n_vocab, 9, dtype=np.int32)
    targets[0], targets[1] = -1, n_vocab - 1
    if scale is None:  # logits are used up, each back end in its way
        losses, expected = single(9), OPS.empty(9)
        ops.cross_entropy(losses, logits.copy(), targets)
        OPS.cross_entropy(expected, logits.astype(np.float64), targets)
        np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=2e-5)
    else:
        assert_same(ops, "cross_entropy", single(9), logits, targets, scale=scale)


@pytest.mark.parametrize("n", [1, 4096, 10001])
def test_optimizer(ops, n):
    p, g, m, v = single(n), single(n), single(n), abs(single(n))
    assert ops.sum_squares(g) == pytest.approx(OPS.sum_squares(g.astype(np.float64)), rel=1e-6)
    decay = RNG.integers(0, 2, n, dtype=np.uint8)
    assert_same(
        ops, "adamw", p, g, m, v, decay, 0.01, 0.9, 0.999, 1e-8, 0.1, step=3, grad_scale=0.5
    )


MATRICES = np.array(  # the momentum in another order, without gaps
    [(3, 1, 1, 200), (16, 5, 40, 0), (300, 70, 33, 210), (3000, 50, 90, 2520), (8000, 1, 9, 201)]
)


MUON_KERNELS = [(name, "fp32") for name in kernel_sets()] + [
    (name, "bf16") for name in kernel_sets(ROUNDING, "bf16")
]


@pytest.mark.parametrize("kernels, precision", MUON_KERNELS)
def test_muon(kernels, precision):
    """Tall, wide and of one row; what lies between the matrices is left alone."""
    one, three = (ops_c.OpsC(n, kernels, precision) for n in (1, 3))
    p, g, m = single(8010), single(8010), single(7020)
    close = {"lr": 0.02, "momentum": 0.9, "grad_scale": 0.5}
    reference = OpsNumpy(np.float64, precision)
    # Rounded, a singular value far below the others keeps only few digits.
    tolerance = 2e-5 if precision == "fp32" else 2e-3
    assert_same(one, "muon", p, g, m, MATRICES, reference=reference, tolerance=tolerance, **close)
    again = p.copy(), m.copy()
    before = p.copy()
    one.muon(p, g, m, MATRICES, **close)
    three.muon(again[0], g, again[1], MATRICES, **close)
    np.testing.assert_array_equal(p, again[0])
    np.testing.assert_array_equal(m, again[1])
    taken = np.zeros(p.size, bool)
    for offset, rows, columns, _ in MATRICES:
        taken[offset : offset + rows * columns] = True
    np.testing.assert_array_equal(p[~taken], before[~taken])
    assert (p != before)[taken].mean() > 0.99


def test_muon_refuses_matrices_past_the_end(ops):
    for place in ((1, 4, 5, 0), (0, 4, 5, 1)):
        with pytest.raises(ValueError, match="matrices end at 21 of 20"):
            ops.muon(single(20), single(20), single(20), np.array([place]), 0.1, 0.9, 1.0)


@pytest.mark.parametrize("n", [1, 4096, 10001])
def test_combine(ops, n):
    x, y = single(n), single(n)
    assert_same(ops, "combine", single(n), 0.3, x, -2.5, y)
    expected = 0.3 * x - 2.5 * y
    ops.combine(x, 0.3, x, -2.5, y)  # in place
    np.testing.assert_allclose(x, expected, atol=1e-6)
    with pytest.raises(ValueError, match="y has shape"):
        ops.combine(x, 1.0, x, 1.0, single(n + 1))


def test_refuses_wrong_arrays(ops):
    with pytest.raises(ValueError, match=r"b has shape \(5, 3\), expected \(4, 3\)"):
        ops.gemm(single(2, 3), single(2, 4), single(5, 3))
    with pytest.raises(ValueError, match="empty product"):
        ops.gemm(single(2, 3), single(2, 0), single(0, 3))
    with pytest.raises(ValueError, match="x is float64"):
        ops.rmsnorm(single(2, 3), single(2), normal(2, 3), single(3), 1e-5)
    with pytest.raises((ValueError, BufferError), match="contiguous"):
        ops.sum_squares(single(20)[::2])
    with pytest.raises(ValueError, match="not a multiple"):
        ops.attention(
            *(single(1, 2, 3, 4), single(1, 3, 2)),
            *(single(1, 2, 3, 4), single(1, 2, 2, 4), single(1, 2, 2, 4)),
        )


def test_refuses_unknown_kernels():
    with pytest.raises(ValueError, match='kernels "avx9"'):
        ops_c.OpsC(1, "avx9")
    with pytest.raises(ValueError, match='kernels "amx"'):
        ops_c.OpsC(1, "amx")  # its products round
    with pytest.raises(ValueError, match="threads: found 0"):
        ops_c.OpsC(0)


def test_best_kernels():
    """Without rounding tiles change nothing; with it they are the best."""
    sets, rounding = kernel_sets(), kernel_sets(ROUNDING, "bf16")
    assert ops_c.OpsC(1).kernels == sets[-1]
    assert (ops_c.best_precision() == "bf16") == bool(rounding)
    if rounding:
        assert ops_c.OpsC(1, precision="bf16").kernels == rounding[-1]
