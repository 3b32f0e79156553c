"""Small seeded random models of every architecture, written with the public gguf package: the
second writer of this project's parameter files, and one that llama.cpp's own files come from."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from rounding import SUPER_BLOCKS, pack

N_CTX, N_VOCAB = 64, 130
SHAPES = {
    "llama": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_ff": 96},
    "qwen2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_ff": 96},
    # here a head is not n_embd / n_head wide
    "qwen3": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_ff": 96, "head_dim": 24},
    "gemma3": {"n_embd": 48, "n_layer": 7, "n_head": 3, "n_kv_head": 1, "n_ff": 64, "head_dim": 32},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_kv_head": 4, "n_ff": 256},
}
ARCHITECTURES = tuple(SHAPES)
WINDOW = 8  # of gemma3


def llama3_factors(head_dim: int, base: float = 10000.0) -> np.ndarray:
    """RoPE divisors as Llama 3 defines them, for factor 8 over 32 positions: 1 where a wave is
    shorter than 8, 8 where it is longer than 32, between in between."""
    turns = 32 / (2 * np.pi * base ** (np.arange(0, head_dim, 2) / head_dim))
    smooth = ((turns - 1) / (4 - 1)).clip(0, 1)
    return (1 / ((1 - smooth) / 8 + smooth)).astype(np.float32)


def write_model(
    path,
    architecture: str,
    *,
    types=("F32",),
    expanded=False,
    seed=7,
    tied=False,
    keys=(),
    tensors=(),
    drop=(),
    **shape,
):
    """types: what the matrices are rounded to, in turn; expanded: and are stored in F32 after that.
    keys: more metadata, numbers or strings, without the architecture's prefix, or other values;
    tensors: the same for F32 tensors; drop: names of tensors to leave out."""
    gguf = pytest.importorskip("gguf", reason="the public gguf package is not installed")
    shape = {"head_dim": None} | SHAPES[architecture] | shape
    shape["head_dim"] = shape["head_dim"] or shape["n_embd"] // shape["n_head"]
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (hyperparameters(architecture, shape) | dict(keys)).items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](f"{architecture}.{key}", value)
    add_ascii_vocabulary(gguf, writer)
    weights = random_tensors(architecture, np.random.default_rng(seed), tied, **shape)
    turn = itertools.cycle(types)
    for name, values in (weights | dict(tensors)).items():
        if name in drop:
            continue
        kept = values.ndim == 1 or name == "position_embd.weight"
        kind = gguf.GGMLQuantizationType["F32" if kept else next(turn)]
        values = rounded(gguf, values, kind)
        if expanded:
            values = gguf.quants.dequantize(values, kind).astype(np.float32)
        writer.add_tensor(name, values, raw_dtype=None if expanded else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rounded(gguf, values: np.ndarray, kind) -> np.ndarray:
    """The bytes of a tensor. The public package does not round to super-blocks: ours."""
    if kind.name not in SUPER_BLOCKS:
        return gguf.quants.quantize(values, kind)
    raw = np.frombuffer(pack(values, kind.name)[0], np.uint8)
    return raw.reshape(gguf.quant_shape_to_byte_shape(values.shape, kind))


def hyperparameters(architecture: str, shape: dict) -> dict:
    keys = {
        "context_length": N_CTX,
        "vocab_size": N_VOCAB,
        "embedding_length": shape["n_embd"],
        "block_count": shape["n_layer"],
        "feed_forward_length": shape["n_ff"],
        "attention.head_count": shape["n_head"],
    }
    if architecture == "gpt2":
        return keys | {"attention.layer_norm_epsilon": 1e-5}
    keys |= {
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.head_count_kv": shape["n_kv_head"],
        "attention.key_length": shape["head_dim"],
        "attention.value_length": shape["head_dim"],
        "rope.freq_base": {"llama": 10000.0, "gemma3": 1e6}.get(architecture, 5e5),
    }
    return keys | ({"attention.sliding_window": WINDOW} if architecture == "gemma3" else {})


def add_ascii_vocabulary(gguf, writer) -> None:
    """ASCII alone: a token of half a character would be held back by llama.cpp's server."""
    printable = [chr(b) if 33 <= b < 127 else chr(256 + b) for b in range(128)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*printable, "th", "<|endoftext|>"])
    writer.add_token_types([gguf.TokenType.NORMAL] * 129 + [gguf.TokenType.CONTROL])
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(129)
    writer.add_add_bos_token(False)


def random_tensors(architecture, rng, tied, *, n_embd, n_layer, n_head, n_kv_head, n_ff, head_dim):
    """{name: float32 values}, matrices row-major (n_out, n_in)."""
    out = {}

    def vector(name, n):
        centre = 0 if name.endswith("bias") else 1
        out[name] = rng.uniform(centre - 0.5, centre + 0.5, n).astype(np.float32)

    def norm(name, n=n_embd):
        vector(name + ".weight", n)
        if architecture == "gpt2":
            vector(name + ".bias", n)

    def linear(name, n_out, n_in, bias=architecture == "gpt2"):
        values = rng.standard_normal((n_out, n_in)) * 2 / np.sqrt(n_in)
        out[name + ".weight"] = values.astype(np.float32)
        if bias:
            vector(name + ".bias", n_out)

    n_q, n_kv = n_head * head_dim, n_kv_head * head_dim
    linear("token_embd", N_VOCAB, n_embd, bias=False)
    if architecture == "gpt2":
        linear("position_embd", N_CTX, n_embd, bias=False)
    norm("output_norm")
    if not tied:
        linear("output", N_VOCAB, n_embd, bias=False)
    for layer in range(n_layer):
        blk = f"blk.{layer}."
        norm(blk + "attn_norm")
        if architecture == "gpt2":
            linear(blk + "attn_qkv", 3 * n_embd, n_embd)
        else:
            for which, n in ("q", n_q), ("k", n_kv), ("v", n_kv):
                linear(blk + "attn_" + which, n, n_embd, bias=architecture == "qwen2")
        if architecture in ("qwen3", "gemma3"):
            norm(blk + "attn_q_norm", head_dim)
            norm(blk + "attn_k_norm", head_dim)
        linear(blk + "attn_output", n_embd, n_q)
        norm(blk + "ffn_norm")
        if architecture == "gemma3":
            norm(blk + "post_attention_norm")
            norm(blk + "post_ffw_norm")
        if architecture != "gpt2":
            linear(blk + "ffn_gate", n_ff, n_embd)
        linear(blk + "ffn_up", n_ff, n_embd)
        linear(blk + "ffn_down", n_embd, n_ff)
    return out
