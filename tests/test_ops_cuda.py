"""The GPU's back end, on a host that plays the GPU: every operation, whole trainings, what is said
where there is no GPU. Nothing here has a GPU (tests/test_gpu.py does); tests/test_cuda_packages.py
asks the real compilers and packages. Past 500 lines: all of it plays on one host, made once.
"""

import ctypes
import io
import re
import sys
from contextlib import redirect_stdout

import numpy as np
import pytest
import test_ops
from cuda_stand_in import Array, OnHost, StandIn, build_kernels, to_bf16
from test_ops import OPS_BF16, assert_same, documents, same_numbers, single  # noqa: F401
from training import arguments, finish, refused

from llm import cli, ops_cuda
from llm.config import ModelConfig
from llm.distributed import Group
from llm.evaluate import BATCH
from llm.lora import Lora
from llm.memory import check_memory
from llm.model import Transformer, init_params
from llm.ops_c import OpsC, best_precision
from llm.ops_cuda import OpsCuda
from llm.ops_numpy import OpsNumpy, round_bf16
from llm.optim import OPTIMIZERS
from llm.settings import Settings


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return build_kernels(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module", params=[False, True], ids=["rising", "falling"])
def ops(request, kernels):
    """fp32; no result may depend on the order in which rows and their elements are done."""
    return OnHost(OpsCuda("fp32", StandIn(kernels, request.param).modules))


@pytest.fixture(scope="module")
def rounding(kernels):
    return [OnHost(OpsCuda("bf16", StandIn(kernels, falling).modules)) for falling in (0, 1)]


# ---- every operation against float64, on odd shapes ----


@pytest.mark.parametrize("trans_a, trans_b", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("m, n, k", [(1, 1, 1), (5, 17, 2), (31, 100, 801)])
def test_gemm(ops, rounding, m, n, k, trans_a, trans_b):
    test_ops.test_gemm(ops, m, n, k, trans_a, trans_b)
    test_ops.test_gemm_of_rounded_operands(rounding, m, n, k, trans_a, trans_b)


@pytest.mark.parametrize("n_rows, n", [(1, 1), (70, 50), (130, 288)])
def test_rows(ops, n_rows, n):
    test_ops.test_sum_rows(ops, n_rows, n)
    test_ops.test_embed(ops, n)
    test_ops.test_rmsnorm(ops, n_rows, n)
    test_ops.test_swiglu(ops, n_rows, n)
    for scale in (None, 0.3):
        test_ops.test_cross_entropy(ops, n, scale)
    for size in (n, n_rows * n):
        test_ops.test_optimizer(ops, size)
        test_ops.test_combine(ops, size)


def test_square_sums_wait_once(kernels, monkeypatch):
    x, pieces = single(20_000), [slice(0, 5), slice(5, 5000), slice(6000, 20_000)]
    expected = [OpsC(1).sum_squares(x[piece]) for piece in pieces]
    ops, copied = OpsCuda("fp32", StandIn(kernels).modules), []
    monkeypatch.setattr(Array, "get", lambda self: copied.append(1) or self._values.copy())
    assert ops.square_sums(ops.from_host(x), pieces) == pytest.approx(expected, rel=1e-6)
    assert copied == [1] and ops.square_sums(ops.from_host(x), []) == []


@pytest.mark.parametrize("n_rows", [1, 32, 33, 2100])
def test_sums_of_many_rows(ops, rounding, n_rows):
    """In one, two or three levels."""
    x, total = rounded(n_rows, 300), single(300)
    expected = x.sum(0, dtype=np.float64)
    for back_end in (ops, *rounding):
        given = to_bf16(x) if back_end is not ops else x
        back_end.sum_rows(total, given)
        np.testing.assert_allclose(total, expected, atol=1e-5 * n_rows)


def rounded(*shape):
    return round_bf16(single(*shape))


def assert_close(ops, method, *arrays, **options):
    """Of activations in bfloat16, which hold 8 bits: the root of the mean square. Probabilities are
    rounded here, and in OpsNumpy what they are before the division by their sum. Returns what the
    method leaves in its arrays."""
    mine = [a.copy() if isinstance(a, np.ndarray) else a for a in arrays]
    theirs = [
        a.astype(np.float64) if getattr(a, "dtype", None) == np.float32 else a for a in arrays
    ]
    getattr(ops, method)(*mine, **options)
    getattr(OPS_BF16, method)(*theirs, **options)
    changed = list(filter(is_array, mine))
    for got, expected in zip(changed, filter(is_array, theirs), strict=True):
        error = np.linalg.norm(got - expected)
        assert error <= 5e-3 * np.linalg.norm(expected) + 1e-6 * got.size, (method, error)
    return changed


def is_array(x):
    return isinstance(x, np.ndarray)


@pytest.mark.parametrize("n_rows, n", [(1, 1), (70, 50), (130, 288)])
def test_rows_of_activations(rounding, n_rows, n):
    """In bfloat16, in rising and in falling order."""
    x, w, rstd = rounded(n_rows, n), single(n), abs(single(n_rows))
    tokens = test_ops.RNG.integers(0, 7, n_rows, dtype=np.int32)
    targets = test_ops.RNG.integers(-1, n, n_rows, dtype=np.int32)
    cos, sin = (a.astype(np.float32) for a in test_ops.angles(9, 26))
    turned = rounded(2, 5, 3, 26)
    for call in (
        ("embed", x, single(7, n), tokens),
        ("embed_backward", single(7, n), x, tokens),
        ("rmsnorm", rounded(n_rows, n), rstd, x, w, 1e-5),
        ("rmsnorm_backward", rounded(n_rows, n), w.copy(), rounded(n_rows, n), x, w, rstd),
        ("swiglu", rounded(n_rows, n), x, rounded(n_rows, n)),
        ("swiglu_backward", x, rounded(n_rows, n), rounded(n_rows, n)),
        ("rope", turned, cos, sin, True, test_ops.STARTS),
        ("rope_backward", turned, cos, sin),
        ("cross_entropy", single(n_rows), round_bf16(x * 3), targets, 0.3),
    ):
        results = [assert_close(ops, *call) for ops in rounding]
        for one, other in zip(*results, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("options", [{}, {"halves": True, "starts": test_ops.STARTS}])
def test_rope(ops, options):
    test_ops.test_rope(ops, 26, options)


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("n_head, n_kv_head", [(2, 2), (4, 2), (3, 1)])
def test_attention(ops, rounding, n_head, n_kv_head, isolate, monkeypatch):
    monkeypatch.setattr(ops_cuda, "QUERIES", 16)  # blocks of queries, the last one not full
    for T, head_dim in ((1, 8), (37, 15)):
        test_ops.test_attention(ops, n_head, n_kv_head, T, head_dim, isolate)
        starts = documents(2, T) if isolate else None
        q, k, v = (rounded(2, T, n, head_dim) for n in (n_head, n_kv_head, n_kv_head))
        o, lse, do = rounded(*q.shape), single(2, n_head, T), rounded(*q.shape)
        outputs = [rounded(*x.shape) for x in (q, k, v)]
        results = []
        for back_end in rounding:
            assert_close(back_end, "attention", o, lse, q, k, v, starts)
            OPS_BF16.attention(o, lse, q, k, v, starts)
            arrays = *outputs, do, o, q, k, v, lse, starts
            results.append(assert_close(back_end, "attention_backward", *arrays))
        for one, other in zip(*results, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def fused(kernels):
    """Both orders of warps and lanes, which give the same bits."""
    return [OnHost(OpsCuda("bf16", StandIn(kernels, f).modules, "fused")) for f in (False, True)]


@pytest.mark.parametrize(
    "n_head, n_kv_head, T, head_dim, isolate",
    [
        (2, 2, 1, 8, False),
        (4, 2, 70, 24, False),  # tiles that are not full
        (3, 1, 150, 64, True),
        (1, 1, 129, 16, True),
        (1, 1, 128, 64, False),
        (2, 1, 70, 128, False),
        (1, 1, 97, 80, True),
    ],
)
def test_fused_attention(fused, n_head, n_kv_head, T, head_dim, isolate):
    starts = documents(2, T) if isolate else None
    q, k, v = (rounded(2, T, n, head_dim) for n in (n_head, n_kv_head, n_kv_head))
    o, lse, do = rounded(*q.shape), single(2, n_head, T), rounded(*q.shape)
    outputs, results = [rounded(*x.shape) for x in (q, k, v)], []
    for back_end in fused:
        results.append(assert_close(back_end, "attention", o, lse, q, k, v, starts))
        OPS_BF16.attention(o, lse, q, k, v, starts)
        arrays = *outputs, do, o, q, k, v, lse, starts
        results[-1] += assert_close(back_end, "attention_backward", *arrays)
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("compute_capability, precision", [("90", "fp32"), ("75", "bf16")])
def test_fused_attention_needs_tensor_cores(kernels, compute_capability, precision):
    machine = StandIn(kernels, compute_capability=compute_capability)
    with pytest.raises(ValueError, match=f"of sm_80.*{precision} and sm_{compute_capability}"):
        OpsCuda(precision, machine.modules, "fused")


def test_fused_attention_refuses_wide_heads(fused):
    q, lse = rounded(1, 2, 1, 136), single(1, 1, 2)
    with pytest.raises(ValueError, match="heads of 8, 16 ... 128, not of 136"):
        fused[0].attention(q, lse, q, q, q)


def test_attention_in_parts(kernels, monkeypatch):
    """Of a batch whose scores do not fit at once: the same bits; and of the queries, whose keys'
    gradients are then summed block by block."""
    starts, shapes = documents(3, 20), [(3, 20, 4, 6), (3, 20, 2, 6), (3, 20, 2, 6)]
    q, k, v = (single(*shape) for shape in shapes)
    do, results = single(*q.shape), []
    for n_bytes, n_queries in ((1 << 30, 256), (1, 256), (1 << 30, 7)):
        monkeypatch.setattr(ops_cuda, "QUERIES", n_queries)
        monkeypatch.setattr(ops_cuda, "ATTENTION_BYTES", n_bytes)
        machine = StandIn(kernels)
        ops = OnHost(OpsCuda("bf16", machine.modules))
        o, lse, outputs = single(*q.shape), single(3, 4, 20), [np.empty_like(x) for x in (q, k, v)]
        ops.attention(o, lse, q, k, v, starts)
        ops.attention_backward(*outputs, do, o, q, k, v, lse, starts)
        results.append((o, lse, *outputs))
        n_parts = 3 if n_bytes == 1 or n_queries == 7 else 1
        assert [name for name, *_ in machine.launches].count("causal_softmax_kernel") == n_parts
    for whole, by_batch, by_queries in zip(*results, strict=True):
        np.testing.assert_array_equal(whole, by_batch)
        np.testing.assert_allclose(by_queries, whole, atol=2e-2, rtol=1e-2)


def test_muon(ops, rounding):
    close = {"lr": 0.02, "momentum": 0.9, "grad_scale": 0.5}
    for back_end, reference, tolerance in ((ops, OpsNumpy(), 2e-5), (rounding[0], OPS_BF16, 2e-3)):
        arrays = single(8010), single(8010), single(7020), test_ops.MATRICES
        assert_same(back_end, "muon", *arrays, reference=reference, tolerance=tolerance, **close)


def test_threads_of_a_block(tmp_path):
    """port.h's CUDA half, where a missing barrier shows in one order or the other."""
    built = build_kernels(tmp_path, threads=True)
    machines = [StandIn(built, falling) for falling in (0, 1)]
    for machine in machines:
        ops = OnHost(OpsCuda("fp32", machine.modules))
        test_rows(ops, 67, 150)
        test_ops.test_rope(ops, 26, {})
        test_ops.test_attention(ops, 4, 2, 37, 15, True)
        arrays = single(8010), single(8010), single(8010), test_ops.MATRICES
        assert_same(ops, "muon", *arrays, lr=0.02, momentum=0.9, grad_scale=0.5)
    test_rows_of_activations([OnHost(OpsCuda("bf16", m.modules)) for m in machines], 67, 150)


def test_rounding_keeps_nan_and_infinity(rounding):
    """Ties to even; what is no number reaches the product, where the guard of a run sees it."""
    ops = rounding[0]._ops
    x = np.array([[1 + 2**-8, 1 + 3 * 2**-8, -np.inf, np.nan, 3.4e38, 1e-45]], np.float32)
    bits = ops._rounded(ops.from_host(x)).get().astype(np.uint32) << 16
    expected = [[1, 1 + 2**-6, -np.inf, np.nan, np.inf, 0]]
    np.testing.assert_array_equal(bits.view(np.float32), np.array(expected, np.float32))


def test_refuses_wrong_arrays(kernels):
    ops = OpsCuda("fp32", StandIn(kernels).modules)
    a, b, c = (ops.from_host(single(*shape)) for shape in ((2, 4), (5, 3), (2, 3)))
    with pytest.raises(ValueError, match=r"b has shape \(5, 3\), expected \(4, 3\)"):
        ops.gemm(c, a, b)
    with pytest.raises(ValueError, match="out is int32, expected float32"):
        ops.combine(ops.from_host(np.zeros(3, np.int32)), 1.0, a[0, :3], 1.0, a[0, :3])
    with pytest.raises(ValueError, match="x is not contiguous"):
        ops.sum_squares(ops.from_host(single(20))[::2])
    with pytest.raises(ValueError, match=r"shape \(2, 4\) cannot take one of \(8,\)"):
        ops.write(a, single(8))


# ---- copies ----


def test_copies_larger_than_the_pinned_buffers(kernels, monkeypatch):
    monkeypatch.setattr(ops_cuda, "PINNED_BYTES", 100)
    ops = OpsCuda("fp32", StandIn(kernels).modules)
    values = single(33, 7)
    np.testing.assert_array_equal(ops.to_host(ops.from_host(values)), values)


# ---- whole trainings ----

CONFIG = dict(n_vocab=33, n_ctx=12, n_embd=24, n_layer=2, n_head=4, n_kv_head=2, n_ff=20)
STARTS = np.array([[0, 0, 2, 2, 2, 2, 2, 7, 7], [0, 0, 0, 0, 0, 0, 6, 6, 6]])
VARIANTS = {
    "adamw": {},
    "muon": {"optimizer": "muon"},
    "recomputed": {"recompute": True, "starts": STARTS},
    "untied qwen3": {"architecture": "qwen3", "key_length": 10, "tied_output": False},
    "qwen2 with adapters": {"architecture": "qwen2", "lora": Lora(3, 6.0)},
}


LR, GAIN = 1e-3, 2  # gentle, so that a last bit stays small


def train(ops, optimizer="adamw", recompute=False, lora=None, starts=None, **sizes):
    """Losses of 6 steps, the last weights, and the loss and the logits of what was learned."""
    config = ModelConfig(**{**CONFIG, **sizes})
    params = (init_params(config, 1) * GAIN).astype(ops.dtype)
    model = Transformer(config, ops, params, recompute, lora)
    optimizer = OPTIMIZERS[optimizer](config, ops=ops, entries=model.entries)
    rng = np.random.default_rng(3)
    tokens, targets = rng.integers(0, 33, (2, 2, 9), dtype=np.int32)
    targets[0, :2] = -1
    losses = []
    for _ in range(6):
        losses.append(model.loss_and_grad(tokens, targets, starts))
        norm = ops.sum_squares(model.grads) ** 0.5
        optimizer.step(model.trained, model.grads, LR, min(1.0, 1 / norm))
    ops.wait()
    learned = model.loss(tokens, targets, starts)[0], model.logits(tokens, starts)
    return losses, model.merged(), *learned


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_trains_as_numpy_does(kernels, options):
    machine = StandIn(kernels)
    losses, weights, loss, logits = train(OpsCuda("fp32", machine.modules), **options)
    expected = train(OpsNumpy(np.float64), **options)
    np.testing.assert_allclose(losses, expected[0], rtol=1e-6)
    assert np.linalg.norm(weights - expected[1]) < 3e-6 * np.linalg.norm(expected[1])
    assert loss == pytest.approx(expected[2], rel=1e-6)
    np.testing.assert_allclose(logits, expected[3], atol=2e-5)
    assert losses[-1] < losses[0] - 0.1
    assert {kind for *_, kind in machine.products} == {0}
    machine.check_guards()


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_trains_rounded_as_numpy_does(kernels, options):
    machine = StandIn(kernels)
    mine = train(OpsCuda("bf16", machine.modules), **options)
    theirs = train(OpsNumpy(np.float32, "bf16"), **options)
    np.testing.assert_allclose(mine[0], theirs[0], rtol=1e-3)
    assert {kind for *_, kind in machine.products} == {14}  # no product is forgotten
    machine.check_guards()


@pytest.mark.parametrize("options", [{}, {"recompute": True, "starts": STARTS}])
def test_trains_with_fused_attention(kernels, options):
    machine = StandIn(kernels)
    mine = train(OpsCuda("bf16", machine.modules, "fused"), n_embd=32, **options)
    theirs = train(OpsNumpy(np.float32, "bf16"), n_embd=32, **options)
    np.testing.assert_allclose(mine[0], theirs[0], rtol=1e-3)
    names = {name for name, *_ in machine.launches}
    assert "flash_backward_kv_64_kernel" in names and "causal_softmax_kernel" not in names
    machine.check_guards()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "precision, attention", [("fp32", "batched"), ("bf16", "batched"), ("bf16", "fused")]
)
def test_memory_is_counted(kernels, precision, attention, recompute):
    """What a step and a validation take, before them: but for tables and vectors of a step nothing
    is forgotten. cuBLAS's own workspace is left to it."""
    machine = StandIn(kernels)
    ops = OpsCuda(precision, machine.modules, attention)
    sizes = {"n_embd": 64, "n_head": 4, "n_kv_head": 2, "n_ff": 160, "n_ctx": 512, "n_layer": 2}
    config, how = ModelConfig(n_vocab=3000, **sizes), {"batch": 1, "slot_sequences": 1}
    settings = Settings(**how, n_ctx=512, optimizer="adamw", recompute=recompute)
    check_memory(ops, Group(), config, settings, 1)
    model = Transformer(config, ops, init_params(config, 1), recompute)
    optimizer = OPTIMIZERS["adamw"](config, ops=ops)
    tokens = np.zeros((BATCH, 512), np.int32)
    model.loss_and_grad(tokens[:1], tokens[:1])
    optimizer.step(model.params, model.grads, LR)
    model.loss(tokens, tokens)
    assert 0.98 * machine.held < machine.most_taken < 1.02 * machine.held
    machine.free, machine.held = machine.held + (32 << 20) - 1, 0
    with pytest.raises(ValueError, match="the GPU has"):
        check_memory(ops, Group(), config, settings, 1)
    machine.free += 1
    check_memory(ops, Group(), config, settings, 1)


def test_weights_are_rounded_once_a_step(kernels):
    machine = StandIn(kernels)
    train(OpsCuda("bf16", machine.modules))
    # Of 6 steps, and once for loss() and logits() together.
    assert [name for name, *_ in machine.launches].count("round_kernel") == 7


def test_the_order_of_rows_and_elements_changes_no_bit(kernels):
    one, other = (train(OpsCuda("bf16", StandIn(kernels, f).modules)) for f in (False, True))
    for x, y in zip(one, other, strict=True):
        np.testing.assert_array_equal(x, y)


# ---- the command ----


@pytest.fixture
def machine(kernels, monkeypatch):
    """What `--device cuda` finds."""
    machine = StandIn(kernels)
    monkeypatch.setattr(ops_cuda, "libraries", lambda: machine.modules)
    return machine


def test_train_command(machine, text, tmp_path, quickly):
    more = "--steps", 6, "--batch", 4, "--slot-sequences", 2
    said = finish(text, tmp_path, *more, "--device", "cuda")
    assert "bf16 products" in said and "cuda sm_90" in said
    assert machine.launches and (tmp_path / "out.bin").exists()
    machine.check_guards()
    (tmp_path / "cpu").mkdir()
    on_cpu = finish(text, tmp_path / "cpu", *more, "--precision", "fp32")
    bits = [float(re.search(r"([\d.]+) held-out bits", s)[1]) for s in (said, on_cpu)]
    assert bits[0] == pytest.approx(bits[1], rel=0.01)
    if best_precision() == "bf16":  # resumed on the CPU, it says that it is another machine
        again = finish(text, tmp_path, "--resume", "--device", "cpu")
        assert "begun with cuda sm_90 kernels" in again


def test_tune_command(machine, text, unbroken, tmp_path):
    given = "--init", unbroken.out, "--lora-rank", 2, "--isolate", "--recompute"
    command = ["train", *given, "--text", text, "--steps", 2, "--n-ctx", 32, "--device", "cuda"]
    places = ["--out", tmp_path / "out.bin", "--run-dir", tmp_path / "run", "--threads", 1]
    with redirect_stdout(io.StringIO()) as said:
        assert cli.main([str(x) for x in (*command, *places)]) == 0, said.getvalue()
    assert "cuda sm_90" in said.getvalue() and (tmp_path / "out.bin").exists()
    machine.check_guards()


def test_attention_of_the_command(machine, text, tmp_path, capfd, quickly):
    more = "--steps", 2, "--batch", 2, "--slot-sequences", 2, "--n-embd", 16, "--n-head", 2
    said = finish(text, tmp_path, *more, "--device", "cuda", "--attention", "fused")
    assert "cuda sm_90 fused" in said
    assert "flash_forward_64_kernel" in {name for name, *_ in machine.launches}
    said = refused(capfd, *arguments(text, tmp_path, *more, "--attention", "fused"))
    assert "--attention fused is for --device cuda" in said


@pytest.mark.parametrize(
    ("sizes", "width"),
    [
        (("--n-embd", 40, "--n-head", 2), 20),
        (("--n-embd", 272, "--n-head", 2), 136),
        (("--n-embd", 100, "--n-head", 1), 100),
        (("--depth", 2, "--n-head", 8), 12),
    ],
)
def test_heads_that_fused_attention_cannot_do(machine, tmp_path, capfd, sizes, width):
    """Refused before the text is read: there is none."""
    given = "--text", tmp_path / "none", "--device", "cuda", "--attention", "fused", *sizes
    said = refused(capfd, "train", *map(str, given))
    assert f"--attention fused takes heads of 8, 16 ... 128, not of {width} " in said


@pytest.mark.parametrize(("capability", "precision"), [("75", "bf16"), ("90", "fp32")])
def test_a_gpu_without_fused_attention(
    kernels, monkeypatch, tmp_path, capfd, capability, precision
):
    """Refused before the text is read: there is none."""
    modules = StandIn(kernels, compute_capability=capability).modules
    monkeypatch.setattr(ops_cuda, "libraries", lambda: modules)
    given = "--text", tmp_path / "none", "--run-dir", tmp_path / "run", "--precision", precision
    said = refused(capfd, "train", *given, "--device", "cuda", "--attention", "fused")
    assert f"of sm_80 or later, this is {precision} and sm_{capability}: leave it out" in said


def test_heads_of_a_file_that_fused_attention_cannot_do(machine, text, tmp_path, capfd, quickly):
    finish(text, tmp_path, "--steps", 1, "--n-head", 8)
    given = "--init", tmp_path / "out.bin", "--device", "cuda", "--attention", "fused"
    places = "--text", tmp_path / "none", "--run-dir", tmp_path / "run"
    said = refused(capfd, "train", *map(str, (*given, *places)))
    assert "--attention fused takes heads of 8, 16 ... 128, not of 4 " in said


def test_a_gpu_too_small(machine, text, tmp_path, capfd):
    machine.free = 1_000_000
    said = refused(capfd, *arguments(text, tmp_path, "--steps", 5, "--device", "cuda"))
    assert "the GPU has 0.0 GB free: lower --batch" in said and "--recompute" in said


def test_no_cupy(text, tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    ops_cuda.libraries.cache_clear()
    said = refused(capfd, *arguments(text, tmp_path, "--steps", 5, "--device", "cuda"))
    assert said.startswith("llm: --device cuda needs CuPy")
    assert said.endswith("pip install 'two-file-llm[cuda]'")


def test_no_gpu(kernels, text, tmp_path, capfd, monkeypatch):
    machine = StandIn(kernels)

    def no_driver():
        raise RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")

    machine.cupy.cuda.runtime.getDeviceCount = no_driver
    backend = type(sys)("cupy_backends.cuda.libs")
    backend.cublas = machine.cublas
    for name, module in (("cupy", machine.cupy), ("cupy_backends", backend),
                         ("cupy_backends.cuda", backend), (backend.__name__, backend)):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    ops_cuda.libraries.cache_clear()
    said = refused(capfd, *arguments(text, tmp_path, "--steps", 5, "--device", "cuda"))
    assert said.startswith("llm: --device cuda: no GPU that CUDA can use (cudaErrorInsuff")


def test_the_stand_in_sees_what_is_written_past_an_end():
    for place in (12, -1):
        for is_alive in (True, False):
            machine = StandIn(None)
            array = machine.empty((3,), np.float32)
            ctypes.memset(array.data.ptr + place, 0, 1)
            if not is_alive:
                del array
            with pytest.raises(AssertionError, match="past an array's end"):
                machine.check_guards()
