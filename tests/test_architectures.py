"""Every architecture against the float64 NumPy forward and llama.cpp, on small random models that
the public gguf package wrote. The prompts are longer than gemma3's window."""

import numpy as np
import pytest
from gguf_models import ARCHITECTURES, N_CTX, N_VOCAB, WINDOW, llama3_factors, write_model
from llama_server import log_softmax, next_logprobs, start_server
from reference_forward import logits_of
from transformers_models import transformers_logits

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


BIASED = {"attn_q": 64, "attn_k": 32, "attn_v": 32, "attn_output": 64}
BIASED |= {"ffn_gate": 96, "ffn_up": 96, "ffn_down": 64}


def biases(*parts: str) -> dict[str, np.ndarray]:
    """For the first layer of a llama."""
    rng = np.random.default_rng(8)
    return {f"blk.0.{p}.bias": rng.uniform(-1, 1, BIASED[p]).astype(np.float32) for p in parts}


VARIANTS = {
    "llama": ("llama", {}),
    "llama tied, no shared heads": ("llama", {"tied": True, "n_kv_head": 4}),
    "llama head_dim 24": ("llama", {"head_dim": 24}),
    "llama biases": ("llama", {"tensors": biases(*BIASED)}),
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


def test_transformers_agrees(written, request):
    _, path = written
    if request.node.callspec.id in ("llama rope_dim", "llama biases"):
        pytest.skip("not a choice there")
    expected = transformers_logits(path, IDS)
    with llm.Model(path, kv_type="f32") as model:
        ours = model.logits(IDS)
    for mine, theirs in zip(ours, expected, strict=True):
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


MIXTURE = ("Q4_K", "Q8_0", "F16", "Q6_K", "Q5_0", "BF16", "Q4_1", "Q5_K", "Q4_0", "Q5_1", "F32")
# Activations are rounded to 8 bits. Measured: a mean Kullback-Leibler divergence of 0.0003 (gemma3)
# to 0.007 (qwen2), and 0.85 to 1 of the tokens with the same most likely next one.
MIXTURE_NATS, MIXTURE_AGREEMENT = 1.4e-2, 0.8


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_mixture_of_types(tmp_path, architecture):
    shape = {"n_embd": 256, "n_ff": 256, "n_head": 4, "n_layer": 3, "head_dim": 64}
    keys = {"attention.sliding_window_pattern": 2} if architecture == "gemma3" else {}
    write_model(tmp_path / "m.gguf", architecture, types=MIXTURE, keys=keys, **shape)
    expected = np.array([log_softmax(row) for row in logits_of(tmp_path / "m.gguf", IDS)])
    with llm.Model(tmp_path / "m.gguf", kv_type="f32") as model:
        ours = np.array([log_softmax(row) for row in model.logits(IDS)])
    nats = np.sum(np.exp(expected) * (expected - ours), axis=1).mean()
    agreement = np.mean(ours.argmax(axis=1) == expected.argmax(axis=1))
    assert nats < MIXTURE_NATS and agreement >= MIXTURE_AGREEMENT


# ---- what is refused, beside the cases of test_model_file.py ----


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("qwen2", "blk.1.attn_k.bias"),
        ("qwen3", "blk.0.attn_q_norm.weight"),
        ("gemma3", "blk.6.post_ffw_norm.weight"),
        ("gpt2", "position_embd.weight"),
        ("gpt2", "output_norm.bias"),
        ("gpt2", "blk.0.attn_qkv.bias"),
        ("gpt2", "blk.1.ffn_up.bias"),
    ],
)
def test_a_missing_tensor_is_named(tmp_path, architecture, name):
    write_model(tmp_path / "m.gguf", architecture, drop=[name])
    with pytest.raises(llm.FormatError, match=f"tensor {name} is missing".replace(".", r"\.")):
        llm.Model(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("architecture", "name", "n"),
    [
        ("qwen2", "blk.0.attn_output.bias", 64),
        ("qwen2", "rope_freqs.weight", 8),
        ("qwen3", "blk.0.attn_q.bias", 96),
        ("gemma3", "output_norm.bias", 48),
        ("gpt2", "blk.0.attn_q_norm.weight", 16),
    ],
)
def test_a_surplus_tensor_is_named(tmp_path, architecture, name, n):
    write_model(tmp_path / "m.gguf", architecture, tensors={name: np.ones(n, np.float32)})
    with pytest.raises(llm.UnsupportedError, match=f"{name} has no place in a {architecture}"):
        llm.Model(tmp_path / "m.gguf")


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_rope_factors_are_checked(tmp_path, bad):
    factors = llama3_factors(16)
    factors[3] = bad
    write_model(tmp_path / "m.gguf", "llama", tensors={"rope_freqs.weight": factors})
    with pytest.raises(llm.FormatError, match=r"rope_freqs\.weight has"):
        llm.Model(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("architecture", "key", "value", "error"),
    [
        ("llama", "rope.scaling.type", "yarn", llm.UnsupportedError),
        ("llama", "rope.scaling.factor", 0.0, llm.FormatError),
        ("qwen3", "expert_count", 8, llm.UnsupportedError),
        ("gemma3", "final_logit_softcapping", 30.0, llm.UnsupportedError),
        ("gemma3", "attention.sliding_window_pattern", 0, llm.FormatError),
        ("gemma3", "rope.freq_base_swa", -1.0, llm.FormatError),
        ("gpt2", "attention.key_length", 17, llm.FormatError),
    ],
)
def test_a_bad_key_is_named(tmp_path, architecture, key, value, error):
    write_model(tmp_path / "m.gguf", architecture, keys={key: value})
    with pytest.raises(error, match=key.split(".")[-1].replace("key_length", "attn_qkv")):
        llm.Model(tmp_path / "m.gguf")


def test_without_a_window_every_layer_sees_all(tmp_path):
    write_model(tmp_path / "m.gguf", "gemma3", keys={"attention.sliding_window": 0})
    with llm.Model(tmp_path / "m.gguf", kv_type="f32") as model:
        assert model.config.sliding_window == 0
        ours = model.logits(IDS)[-1]
    assert (
        np.abs(log_softmax(ours) - log_softmax(logits_of(tmp_path / "m.gguf", IDS)[-1])).max()
        < EXACT
    )
