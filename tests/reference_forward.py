"""The decoders of csrc/model_config.c once more: float64 NumPy, slow and obvious, over the keys and
tensors of a GGUF file as the public gguf package reads them. It shares nothing with the C, so that
the two can be held against each other."""

from __future__ import annotations

import numpy as np
import pytest


def read_gguf(path) -> tuple[dict, dict[str, np.ndarray]]:
    """Keys without their architecture prefix, and tensors (row-major) expanded to float64."""
    gguf = pytest.importorskip("gguf", reason="the public gguf package is not installed")
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    architecture = keys["general.architecture"]
    keys |= {k.removeprefix(architecture + "."): value for k, value in keys.items()}
    return keys, {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64)
        for t in reader.tensors
    }


def logits_of(path, ids) -> np.ndarray:
    """Logits after every one of the ids, (T, n_vocab)."""
    return Decoder(*read_gguf(path)).logits(ids)


def rms_norm(x, weight, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def layer_norm(x, weight, bias, eps):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + eps) * weight + bias


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def softmax(x):
    p = np.exp(x - x.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


class Decoder:
    def __init__(self, keys: dict, tensors: dict[str, np.ndarray]):
        self.keys, self.tensors = keys, tensors
        self.architecture = keys["general.architecture"]
        self.n_embd = keys["embedding_length"]
        self.n_head = keys["attention.head_count"]
        self.n_kv_head = keys.get("attention.head_count_kv", self.n_head)
        self.head_dim = keys.get("attention.key_length", self.n_embd // self.n_head)

    def logits(self, ids) -> np.ndarray:
        output = self.tensors.get("output.weight", self.tensors["token_embd.weight"])
        return self.hidden(ids) @ output.T

    def hidden(self, ids) -> np.ndarray:
        """After the final norm, (T, n_embd)."""
        x = self.tensors["token_embd.weight"][np.asarray(ids)]
        if self.architecture == "gpt2":
            x = x + self.tensors["position_embd.weight"][: len(ids)]
        if self.architecture == "gemma3":
            x = x * np.sqrt(self.n_embd)
        for layer in range(self.keys["block_count"]):
            x = x + self.attention(layer, self.norm(x, f"blk.{layer}.attn_norm"))
            x = x + self.feed_forward(layer, self.norm(x, f"blk.{layer}.ffn_norm"))
        return self.norm(x, "output_norm")

    def norm(self, x, name):
        weight, bias = self.tensors[name + ".weight"], self.tensors.get(name + ".bias")
        if bias is not None:
            return layer_norm(x, weight, bias, self.keys["attention.layer_norm_epsilon"])
        return rms_norm(x, weight, self.keys["attention.layer_norm_rms_epsilon"])

    def linear(self, x, name):
        return x @ self.tensors[name + ".weight"].T + self.tensors.get(name + ".bias", 0)

    def post_norm(self, x, name):
        return self.norm(x, name) if self.architecture == "gemma3" else x

    def feed_forward(self, layer, x):
        name = f"blk.{layer}."
        if self.architecture == "gpt2":
            return self.linear(gelu(self.linear(x, name + "ffn_up")), name + "ffn_down")
        act = gelu if self.architecture == "gemma3" else silu
        hidden = act(self.linear(x, name + "ffn_gate")) * self.linear(x, name + "ffn_up")
        return self.post_norm(self.linear(hidden, name + "ffn_down"), name + "post_ffw_norm")

    def qkv(self, layer, x):
        """(T, heads, head_dim) each."""
        name, heads = f"blk.{layer}.", (self.n_head, self.n_kv_head, self.n_kv_head)
        if self.architecture == "gpt2":
            parts = np.split(self.linear(x, name + "attn_qkv"), 3, axis=1)
        else:
            parts = [self.linear(x, name + "attn_" + which) for which in "qkv"]
        return [
            part.reshape(len(x), n, self.head_dim) for part, n in zip(parts, heads, strict=True)
        ]

    def attention(self, layer, x):
        name, positions = f"blk.{layer}.", np.arange(len(x))
        q, k, v = self.qkv(layer, x)
        if name + "attn_q_norm.weight" in self.tensors:
            q, k = self.norm(q, name + "attn_q_norm"), self.norm(k, name + "attn_k_norm")
        q, k = self.turn(layer, q), self.turn(layer, k)
        distance = positions[:, None] - positions  # from a query back to a key
        seen = (distance >= 0) & (distance < self.window(layer))
        scale = 1 / np.sqrt(self.head_dim)
        if self.architecture == "gemma3" and self.keys["block_count"] == 62:
            scale = 1 / np.sqrt(self.n_embd // self.n_head)
        out = np.empty_like(q)
        for head in range(self.n_head):
            shared = head // (self.n_head // self.n_kv_head)
            scores = np.where(seen, q[:, head] @ k[:, shared].T * scale, -np.inf)
            out[:, head] = softmax(scores) @ v[:, shared]
        out = self.linear(out.reshape(len(x), -1), name + "attn_output")
        return self.post_norm(out, name + "post_attention_norm")

    def is_local(self, layer) -> bool:
        period = self.keys.get("attention.sliding_window_pattern", 6)
        return bool(self.keys.get("attention.sliding_window")) and layer % period != period - 1

    def window(self, layer) -> float:
        return self.keys["attention.sliding_window"] if self.is_local(layer) else np.inf

    def frequencies(self, layer, dim):
        """The angle of each pair, per position."""
        powers = -np.arange(0, dim, 2) / dim
        if self.is_local(layer):
            return self.keys.get("rope.freq_base_swa", 10000.0) ** powers
        scale = self.keys.get("rope.scaling.factor", self.keys.get("rope.scale_linear", 1.0))
        factors = self.tensors.get("rope_freqs.weight", 1)
        return self.keys.get("rope.freq_base", 10000.0) ** powers / scale / factors

    def turn(self, layer, x):
        if self.architecture == "gpt2":
            return x
        dim = self.keys.get("rope.dimension_count", self.head_dim)
        angles = np.outer(np.arange(len(x)), self.frequencies(layer, dim))[:, None]
        pairs = (0, dim, 2), (1, dim, 2)
        if self.architecture != "llama":
            pairs = (0, dim // 2), (dim // 2, dim)
        first, second = (slice(*pair) for pair in pairs)
        a, b, out = x[..., first], x[..., second], x.copy()
        out[..., first] = a * np.cos(angles) - b * np.sin(angles)
        out[..., second] = a * np.sin(angles) + b * np.cos(angles)
        return out
