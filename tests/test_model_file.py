"""What csrc/model.c refuses: hyperparameters out of range or at odds with each other, tensors that
are missing, surplus, of another shape or type. Each a good file with one thing changed."""

import numpy as np
import pytest
from models import TINY, byte_vocabulary, provenance, random_params
from rounding import pack

import llm
from llm.config import layout
from llm.parameter_file import (
    Entry,
    TensorData,
    ValueType,
    trained_model_metadata,
    write_parameter_file,
)

U32, I32, U64, I64 = ValueType.UINT32, ValueType.INT32, ValueType.UINT64, ValueType.INT64
F32, STRING, ARRAY = ValueType.FLOAT32, ValueType.STRING, ValueType.ARRAY


def good_tensors() -> dict[str, TensorData]:
    flat = random_params(TINY)
    parts = {e.gguf_name: (e.shape, flat[e.offset : e.offset + e.size]) for e in layout(TINY)}
    return {n: TensorData(n, shape, "F32", part.copy()) for n, (shape, part) in parts.items()}


def write(path, keys=(), drop=(), tensors=()):
    """keys: entries that replace or join the good ones; drop: keys or tensors left out."""
    metadata = trained_model_metadata(TINY, byte_vocabulary(), provenance())
    entries = {e.key: e for e in metadata} | {e.key: e for e in keys}
    weights = good_tensors() | {t.name: t for t in tensors}
    for name in drop:
        entries.pop(name, None)
        weights.pop(name, None)
    write_parameter_file(path, entries.values(), weights.values())


def refused(tmp_path, error, match, **changes):
    path = tmp_path / "model.gguf"
    write(path, **changes)
    with pytest.raises(error, match=match) as caught:
        llm.Model(path)
    message = str(caught.value)
    assert "model.gguf" in message and "\n" not in message


def test_the_unchanged_file_opens(tmp_path):
    write(tmp_path / "model.gguf")
    with llm.Model(tmp_path / "model.gguf") as model:
        assert model.n_params == TINY.n_params


# ---- hyperparameters ----

A = "llama."


@pytest.mark.parametrize(
    "entry",
    [
        Entry(A + "block_count", 0, U32),
        Entry(A + "block_count", 1025, U32),
        Entry(A + "block_count", 3, U32),  # more layers than tensors
        Entry(A + "block_count", 1, U32),  # fewer
        Entry(A + "block_count", 2.0, F32),
        Entry(A + "block_count", "2", STRING),
        Entry(A + "block_count", [2], ARRAY, U32),
        Entry(A + "block_count", -2, I32),
        Entry(A + "embedding_length", 0, U32),
        Entry(A + "embedding_length", 2**63, U64),
        Entry(A + "embedding_length", 32, U32),
        Entry(A + "feed_forward_length", 0, U32),
        Entry(A + "feed_forward_length", 2**40, U64),
        Entry(A + "context_length", 0, U32),
        Entry(A + "context_length", 2**63, U64),
        Entry(A + "context_length", -1, I64),
        Entry(A + "attention.head_count", 0, U32),
        Entry(A + "attention.head_count", 2**31, U32),
        Entry(A + "attention.head_count", 3, U32),
        Entry(A + "attention.head_count", 64, U32),  # head_dim 1
        Entry(A + "attention.head_count_kv", 0, U32),
        Entry(A + "attention.head_count_kv", 3, U32),
        Entry(A + "attention.head_count_kv", 8, U32),
        Entry(A + "attention.key_length", 15, U32),
        Entry(A + "attention.key_length", 2**20, U32),
        Entry(A + "attention.layer_norm_rms_epsilon", float("nan"), F32),
        Entry(A + "attention.layer_norm_rms_epsilon", 0.0, F32),
        Entry(A + "attention.layer_norm_rms_epsilon", -1e-5, F32),
        Entry(A + "rope.freq_base", float("inf"), F32),
        Entry(A + "rope.freq_base", 0.0, F32),
        Entry(A + "rope.dimension_count", 18, U32),
        Entry(A + "rope.dimension_count", 3, U32),
        Entry(A + "rope.dimension_count", 0, U32),
        Entry(A + "vocab_size", 260, U32),
        Entry("general.architecture", 7, U32),
    ],
    ids=lambda e: f"{e.key}={e.value}",
)
def test_hyperparameters_out_of_range(tmp_path, entry):
    refused(
        tmp_path,
        (llm.FormatError, llm.UnsupportedError),
        "llama|layer|tensor|head|arch",
        keys=[entry],
    )


@pytest.mark.parametrize(
    "key",
    [
        "general.architecture",
        A + "block_count",
        A + "embedding_length",
        A + "context_length",
        A + "feed_forward_length",
        A + "attention.head_count",
        A + "attention.layer_norm_rms_epsilon",
    ],
)
def test_required_keys(tmp_path, key):
    refused(tmp_path, llm.FormatError, key, drop=[key])


@pytest.mark.parametrize(
    "entry, named",
    [
        (Entry("general.architecture", "mamba", STRING), "mamba"),
        (Entry(A + "expert_count", 8, U32), "expert"),
        (Entry(A + "rope.scaling.type", "yarn", STRING), "yarn"),
        (Entry(A + "attention.value_length", 8, U32), "values of 8"),
        (Entry("tokenizer.ggml.model", "rwkv", STRING), "rwkv"),
        (Entry("tokenizer.ggml.pre", "martian", STRING), "martian"),
    ],
)
def test_what_does_not_run_is_named(tmp_path, entry, named):
    refused(tmp_path, llm.UnsupportedError, named, keys=[entry])


def test_optional_keys(tmp_path):
    write(
        tmp_path / "m.gguf",
        drop=[A + "vocab_size", A + "rope.freq_base", A + "rope.dimension_count"],
    )
    with llm.Model(tmp_path / "m.gguf") as model:
        assert (model.config.rope_theta, model.config.rope_dim) == (10000.0, TINY.head_dim)


# ---- tensors ----


@pytest.mark.parametrize("name", [e.gguf_name for e in layout(TINY)][::3])
def test_a_missing_tensor_is_named(tmp_path, name):
    refused(tmp_path, llm.FormatError, name.replace(".", r"\."), drop=[name])


def zeros(name, *shape, type_name="F32"):
    raw, _ = pack(np.zeros(shape, np.float32), type_name)
    return TensorData(name, shape, type_name, raw)


@pytest.mark.parametrize(
    "tensor",
    [
        zeros("blk.0.attn_q.weight", 64, 32),
        zeros("blk.0.attn_k.weight", 64, 64),
        zeros("blk.1.ffn_down.weight", 96, 64),
        zeros("blk.1.ffn_norm.weight", 1, 64),
        zeros("output_norm.weight", 63),
        zeros("blk.0.attn_q.weight", 64, 64, 1),
        zeros("token_embd.weight", 258, 64),
    ],
    ids=lambda t: f"{t.name}{t.shape}",
)
def test_another_shape_is_named(tmp_path, tensor):
    refused(tmp_path, llm.FormatError, tensor.name, tensors=[tensor])


def test_surplus_tensors_are_named(tmp_path):
    for name in ("blk.2.attn_q.weight", "blk.0.attn_q_norm.weight", "position_embd.weight"):
        refused(tmp_path, llm.UnsupportedError, name, tensors=[zeros(name, 64, 64)])


def test_vectors_must_be_f32(tmp_path):
    norm = zeros("blk.0.attn_norm.weight", 64, type_name="F16")
    refused(tmp_path, llm.UnsupportedError, "blk.0.attn_norm.weight is F16", tensors=[norm])


def test_an_untied_output_is_used(tmp_path):
    write(tmp_path / "m.gguf", tensors=[zeros("output.weight", TINY.n_vocab, 64)])
    with llm.Model(tmp_path / "m.gguf") as model:
        assert not model.config.tied_output
        assert not model.logits([1, 2]).any()
