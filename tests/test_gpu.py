"""On a GPU: what tests/test_ops_cuda.py shows on a host, and what only a card can show. `make
test-gpu`; everything skips, with the reason, where there is none. Not run on a GPU yet.
"""

import dataclasses
import shutil
import subprocess
import sys

import numpy as np
import pytest
from cuda_stand_in import OnHost
from test_model import FAST, batch, torch_loss
from test_ops_cuda import (  # noqa: F401  the same tests, on the ops of this file
    VARIANTS,
    test_attention,
    test_fused_attention,
    test_gemm,
    test_muon,
    test_rope,
    test_rows,
    test_sums_of_many_rows,
    train,
)

from conftest import ROOT
from llm.errors import LlmError
from llm.model import Transformer, init_params
from llm.ops_c import OpsC
from llm.ops_cuda import OpsCuda, libraries
from llm.optim import OPTIMIZERS

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def gpu():
    try:
        libraries()
    except LlmError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def ops(gpu):
    return OnHost(OpsCuda("fp32"))


@pytest.fixture(scope="module")
def rounding(gpu):
    """The same bits from one as from the other: no result depends on how blocks are scheduled."""
    return [OnHost(OpsCuda("bf16")) for _ in range(2)]


@pytest.fixture(scope="module")
def fused(gpu):
    return [OnHost(OpsCuda("bf16", attention="fused")) for _ in range(2)]


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_trains_as_the_cpu_does(options):
    mine, expected = train(OpsCuda("fp32"), **options), train(OpsC(1), **options)
    np.testing.assert_allclose(mine[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(mine[3], expected[3], atol=1e-3)


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_of_pytorch(tied):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-peers")
    config = dataclasses.replace(FAST, tied_output=tied)
    model = Transformer(config, OpsCuda("fp32"), init_params(config, 1))
    tokens, targets = batch(3, 101, 70)
    loss = model.loss_and_grad(tokens, targets)
    w = {
        name: torch.tensor(view.get().astype(np.float64), requires_grad=True)
        for name, view in model.views.items()
    }
    ids = (torch.tensor(x).long() for x in (tokens, targets))
    expected = torch_loss(torch, config, w, *ids)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for name, got in model.grad_views.items():
        g = w[name].grad.numpy()
        np.testing.assert_allclose(got.get(), g, atol=1e-4 * np.abs(g).max(), err_msg=name)


@pytest.mark.parametrize(
    "precision, attention, tolerance",
    [("fp32", "batched", 0.005), ("bf16", "batched", 0.03), ("bf16", "fused", 0.03)],
)
def test_loss_curve_of_the_cpu(precision, attention, tolerance):
    """200 steps of AdamW on a repeated text: means over 20 steps, in nats."""

    config = dataclasses.replace(FAST, n_embd=64)  # heads of 16

    def curve(ops):
        model = Transformer(config, ops, init_params(config, 1))
        optimizer = OPTIMIZERS["adamw"](config, ops=ops)
        text = np.random.default_rng(1).integers(0, FAST.n_vocab, 2000, dtype=np.int32)
        losses = []
        for step in range(200):
            at = np.random.default_rng(step).integers(0, 1900, (8, 1)) + np.arange(65)
            losses.append(model.loss_and_grad(text[at[:, :-1]], text[at[:, 1:]]))
            optimizer.step(model.params, model.grads, 1e-3)
        return np.reshape(losses, (10, 20)).mean(1)

    on_cpu = curve(OpsC(1))
    assert on_cpu[-1] < on_cpu[0] - 0.5
    ops = OpsCuda(precision, attention=attention)
    np.testing.assert_allclose(curve(ops), on_cpu, atol=tolerance)


def test_compute_sanitizer():
    """No access out of bounds and no race in shared memory, in a whole training step."""
    tool = shutil.which("compute-sanitizer")
    if not tool:
        pytest.skip("compute-sanitizer is not installed")
    step = (
        "import sys; sys.path[:0] = ['tests', '.']\n"
        "from test_ops_cuda import VARIANTS, train\n"
        "from llm.ops_cuda import OpsCuda\n"
        "for options in VARIANTS.values(): train(OpsCuda('bf16'), **options)\n"
        "train(OpsCuda('bf16', attention='fused'), n_embd=32)\n"
    )
    for check in ("memcheck", "racecheck"):
        command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, "-c", step]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
