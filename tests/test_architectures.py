"""Every architecture against the float64 NumPy forward and llama.cpp, on small random models that
the public gguf package wrote. The prompts are longer than gemma3's window."""

import numpy as np
import pytest
from gguf_models import ARCHITECTURES, N_CTX, N_VOCAB, WINDOW, llama3_factors, write_model
from llama_server import log_softmax, next_logprobs, start_server
from reference_forward import logits_of

import llm

pytestmark = pytest.mark.peer

EXACT = 1e-4  # of a log-probability: float32 sums in another order
# llama.cpp takes GELU of inputs and outputs in half precision
TABLE_GELU = 1e-2
LLAMA_CPP = {
    "llama": EXACT,
    "qwen2": EXACT,
    "qwen3": EXACT,
    "gemma3": TABLE_GELU,
    "gpt2": TABLE_GELU,
}

IDS = [(i * 37 + i // 5) % 129 for i in range(N_CTX - 2)]
PROMPTS = [IDS[:1], IDS[:WINDOW], IDS[: WINDOW + 1], IDS[3 : 4 * WINDOW], IDS]

VARIANTS = {
    "llama": ("llama", {}),
    "llama tied, no shared heads": ("llama", {"tied": True, "n_kv_head": 4}),
    "llama head_dim 24": ("llama", {"head_dim": 24}),
    "llama3 factors": ("llama", {"tensors": {"rope_freqs.weight": llama3_factors(16)}}),
    "llama linear": (
        "llama",
        {"keys": {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}},
    ),
    "llama scale_linear": ("llama", {"keys": {"rope.scale_linear": 2.5}}),
    "llama rope_dim": ("llama", {"keys": {"rope.dimension_count": 8}}),
    "qwen2": ("qwen2", {}),
    "qwen2 tied": ("qwen2", {"tied": True}),
    "qwen3": ("qwen3", {}),
    "gemma3": ("gemma3", {"tied": True}),
    "gemma3 local base": ("gemma3", {"tied": True, "keys": {"rope.freq_base_swa": 500.0}}),
    "gemma3 every second": (
        "gemma3",
        {"tied": True, "n_layer": 3, "keys": {"attention.sliding_window_pattern": 2}},
    ),
    "gemma3 linear": (
        "gemma3",
        {"tied": True, "keys": {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}},
    ),
    "gpt2": ("gpt2", {}),
    "gpt2 tied": ("gpt2", {"tied": True}),
}
assert {name for name, _ in VARIANTS.values()} == set(ARCHITECTURES)


@pytest.fixture(params=VARIANTS)
def written(request, tmp_path):
    """(architecture, path) of a model."""
    architecture, options = VARIANTS[request.param]
    write_model(tmp_path / "model.gguf", architecture, **options)
    return architecture, tmp_path / "model.gguf"


def test_numpy_agrees(written):
    architecture, path = written
    expected = logits_of(path, IDS)
    with llm.Model(path, kv_type="f32") as model:
        assert model.config.architecture == architecture
        ours = model.logits(IDS)
    for mine, theirs in zip(ours, expected, strict=True):
        assert np.ptp(theirs) > 3  # far from uniform, so that agreement means something
        assert np.abs(log_softmax(mine) - log_softmax(theirs)).max() < EXACT


def test_llama_cpp_agrees(written, request):
    architecture, path = written
    if request.node.callspec.id == "llama rope_dim":
        pytest.skip("llama.cpp wants the whole head turned")
    server = start_server(path, N_CTX)
    with llm.Model(path, kv_type="f32") as model:
        for ids in PROMPTS:
            ours = log_softmax(model.logits(ids)[-1])
            theirs = next_logprobs(server, ids, N_VOCAB)
            assert np.abs(ours - theirs).max() < LLAMA_CPP[architecture]
