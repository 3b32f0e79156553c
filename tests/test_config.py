"""Hyperparameters: validation, the buffer's layout, and the map to GGUF's names."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.config import ALIGNMENT, GGUF_KEYS, ModelConfig, layout, layout_size
from llm.errors import FormatError, UnsupportedError

SMALL = dict(n_vocab=37, n_ctx=16, n_embd=24, n_layer=2, n_head=4, n_kv_head=2, n_ff=40)
S = dict(n_vocab=4096, n_ctx=256, n_embd=288, n_layer=6, n_head=6, n_kv_head=6, n_ff=768)


def test_known_size():
    """7,155,360 is counted by hand: embedding, six blocks, gains."""
    block = 4 * 288 * 288 + 3 * 288 * 768 + 2 * 288
    config = ModelConfig(**S)
    assert config.n_params == 4096 * 288 + 6 * block + 288 == 7155360
    assert config.flops_per_token == 6 * (config.n_params - 13 * 288) + 6 * 6 * 288 * 256
    untied = dataclasses.replace(config, tied_output=False)
    assert untied.n_params == config.n_params + 4096 * 288
    assert untied.n_multiplied == config.n_multiplied == config.n_params - 13 * 288
    assert untied.flops_per_token == config.flops_per_token


@pytest.mark.parametrize(
    "change, fragment",
    [
        (dict(n_vocab=0), "n_vocab is 0"),
        (dict(n_layer=-1), "n_layer is -1"),
        (dict(n_ctx=2.0), "n_ctx is 2.0"),
        (dict(n_ff=True), "n_ff is True"),
        (dict(n_ff=10**9), "n_ff is 1000000000"),
        (dict(n_head=5), "not a multiple of n_head 5"),
        (dict(n_head=8, n_kv_head=8), "head_dim 3"),
        (dict(n_kv_head=3), "not a multiple of n_kv_head 3"),
        (dict(rope_theta=float("nan")), "rope_theta is nan"),
        (dict(norm_eps=0.0), "norm_eps is 0.0"),
        (dict(tied_output=1), "tied_output is 1"),
        (dict(architecture="gpt2"), "architecture is 'gpt2', expected one of llama, qwen2, qwen3"),
        (dict(key_length=7), "head_dim 7"),
    ],
)
def test_refuses(change, fragment):
    with pytest.raises(ValueError, match=fragment.replace(".", r"\.")):
        ModelConfig(**{**SMALL, **change})


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3),
    st.integers(1, 9), st.integers(1, 50), st.booleans(),
)  # fmt: skip
def test_layout_is_aligned_and_disjoint(n_vocab, n_layer, n_kv_head, group, half, n_ff, tied):
    n_head = n_kv_head * group
    config = ModelConfig(n_vocab, 8, n_head * 2 * half, n_layer, n_head, n_kv_head, n_ff,
                         tied_output=tied)  # fmt: skip
    end = 0
    for entry in layout(config):
        assert entry.offset * 4 % ALIGNMENT == 0
        assert end <= entry.offset < end + ALIGNMENT // 4
        end = entry.offset + entry.size
    assert end <= layout_size(config) < end + ALIGNMENT // 4
    names = [entry.name for entry in layout(config)]
    assert len(set(names)) == len(names) == 2 + 9 * n_layer + (not tied)


def test_gguf_names():
    specs = {entry.name: entry for entry in layout(ModelConfig(**SMALL, tied_output=False))}
    assert specs["tok_embd"].gguf_name == "token_embd.weight"
    assert specs["blk.1.wo"].gguf_name == "blk.1.attn_output.weight"
    assert specs["blk.0.wk"].shape == (12, 24)
    assert specs["blk.0.w_down"].shape == (24, 40)
    assert specs["output"].gguf_name == "output.weight"


def test_gguf_keys_round_trip():
    config = ModelConfig(**SMALL, rope_theta=500.0, norm_eps=1e-6)
    keys = config.to_gguf()
    assert keys["general.architecture"] == "llama"
    assert keys["llama.rope.dimension_count"] == config.head_dim
    assert ModelConfig.from_gguf(keys, tied_output=True) == config
    others = {"tied_output", "architecture", "key_length"}
    assert set(GGUF_KEYS) == {field.name for field in dataclasses.fields(config)} - others


def test_gguf_keys_refused():
    keys = ModelConfig(**SMALL).to_gguf()
    with pytest.raises(UnsupportedError, match="'gpt2'"):
        ModelConfig.from_gguf({**keys, "general.architecture": "gpt2"}, True)
    with pytest.raises(FormatError, match="n_head 4 is not a multiple of n_kv_head 3"):
        ModelConfig.from_gguf({**keys, "llama.attention.head_count_kv": 3}, True)
    with pytest.raises(UnsupportedError, match="rope.dimension_count is 4"):
        ModelConfig.from_gguf({**keys, "llama.rope.dimension_count": 4}, True)
    del keys["llama.block_count"]
    with pytest.raises(FormatError, match="llama.block_count is missing"):
        ModelConfig.from_gguf(keys, True)
