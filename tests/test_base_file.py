"""The file that a run goes on from: weights and keys in, the same out; what is refused by name."""

import numpy as np
import pytest
from gguf_models import N_VOCAB, llama3_factors, write_model
from llama_server import log_softmax, next_logprobs, start_server
from models import provenance

import llm
from llm.base_file import BaseFile
from llm.errors import UnsupportedError
from llm.model import Transformer
from llm.ops_c import OpsC
from llm.ops_numpy import OpsNumpy
from llm.parameter_file import write_proved

IDS = [(i * 37 + i // 5) % 129 for i in range(40)]
SHAPES = {
    "llama": ("llama", {}),
    "llama tied, wide heads": ("llama", {"tied": True, "head_dim": 24}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"tied": True}),
}


@pytest.fixture(params=SHAPES)
def path(request, tmp_path):
    architecture, options = SHAPES[request.param]
    write_model(tmp_path / "base.gguf", architecture, **options)
    return tmp_path / "base.gguf"


def export(base: BaseFile, path) -> None:
    """As a run of no steps does."""
    origin = provenance()
    flat = base.params()
    write_proved(path, base.config(32), flat, base.entries(origin), origin, [IDS[:3]], n_new=2)


def test_the_trainer_computes_what_the_engine_does(path):
    base = BaseFile(path)
    exact = Transformer(base.config(64), OpsNumpy(), base.params().astype(np.float64))
    fast = Transformer(base.config(64), OpsC(1), base.params())
    with llm.Model(path, kv_type="f32") as model:
        expected = log_softmax(model.logits(IDS))
    assert np.ptp(expected) > 3
    for trained in (exact, fast):
        got = log_softmax(trained.logits([IDS])[0].astype(np.float64))
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_what_is_not_trained_comes_out_as_it_went_in(path, tmp_path):
    """Weights bit for bit, the tokenizer's and the model's keys; the new file verifies."""
    base = BaseFile(path)
    export(base, tmp_path / "out.gguf")
    with llm.Model(path) as before, llm.Model(tmp_path / "out.gguf") as after:
        np.testing.assert_array_equal(after.logits(IDS), before.logits(IDS))
        assert after.verify()["n_probes"] == 1
        for key in before.metadata:
            if key not in ("general.name", "general.alignment", "general.file_type"):
                assert after.metadata.raw(key) == before.metadata.raw(key), key
                assert after.metadata.value_type(key) == before.metadata.value_type(key), key
        assert after.metadata["two_file.init.sha256"] == base.sha256
        assert after.metadata["general.name"].endswith("tuned on none")


@pytest.mark.peer
def test_llama_cpp_loads_it(path, tmp_path):
    export(BaseFile(path), tmp_path / "out.gguf")
    server = start_server(tmp_path / "out.gguf", 64)
    with llm.Model(path, kv_type="f32") as model:
        ours = log_softmax(model.logits(IDS)[-1])
    assert np.abs(ours - next_logprobs(server, IDS, N_VOCAB)).max() < 1e-4


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_other_types_are_expanded(tmp_path, kind):
    for name, options in ("small", {}), ("large", {"expanded": True}):
        write_model(tmp_path / name, "qwen2", types=(kind,), **options)
    small, large = BaseFile(tmp_path / "small"), BaseFile(tmp_path / "large")
    np.testing.assert_array_equal(small.params(), large.params())
    assert small.expanded_types == ([] if kind.endswith("F16") else [kind])


@pytest.mark.parametrize(
    "architecture, options, message",
    [
        ("gemma3", {"tied": True}, "architecture gemma3 cannot be .* only llama, qwen2, qwen3"),
        ("gpt2", {}, "architecture gpt2 cannot be trained yet"),
        ("llama", {"keys": {"rope.dimension_count": 8}}, "RoPE over 8 of 16 elements"),
        ("llama", {"keys": {"rope.scale_linear": 2.5}}, "rope.scale_linear 2.5"),
        (
            "llama",
            {"keys": {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}},
            "rope.scaling.factor 4 cannot be trained yet, only RoPE without scaling",
        ),
        ("llama", {"tensors": {"rope_freqs.weight": llama3_factors(16)}}, "rope_freqs.weight"),
        ("llama", {"tensors": {"blk.0.attn_q.bias": np.ones(64, np.float32)}}, "attn_q.bias"),
    ],
)
def test_what_runs_but_is_not_trained_is_refused_by_name(tmp_path, architecture, options, message):
    write_model(tmp_path / "base.gguf", architecture, **options)
    with pytest.raises(UnsupportedError, match=f"base.gguf: .*{message}"):
        BaseFile(tmp_path / "base.gguf")


def test_windows_are_no_longer_than_the_file_was_trained_for(path):
    with pytest.raises(ValueError, match="n_ctx is 65, .*base.gguf was trained with at most 64"):
        BaseFile(path).config(65)


def test_tokens_and_their_bytes(path):
    base = BaseFile(path)
    assert base.separator == 129
    assert base.token_bytes[[0, 65, 128, 129]].tolist() == [1, 1, 2, 0]
