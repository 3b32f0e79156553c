"""Tensors under Hugging Face's names and GGUF's, and what happens to them on the way. Layer 6.

Both directions stream: a tensor passes as pieces of whole rows, float32, in the file's order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from .convert_config import Hyperparameters
from .errors import FormatError, UnsupportedError
from .parameter_file import Entry
from .safetensors_file import StoredTensor

# What differs between the two files.
SAME, PAIRS, TRANSPOSED, PLUS_ONE = "same", "pairs", "transposed", "plus one"

# Parts of a layer: the name in GGUF, the name there.
_GPT2 = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_LLAMA = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA = _LLAMA | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
# Buffers that older versions saved beside the weights.
_BUFFERS = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


class Named(NamedTuple):
    """A tensor of both files; the shape is GGUF's, row-major."""

    gguf: str
    hf: str
    shape: tuple[int, ...]
    change: str
    head_dim: int

    @property
    def hf_shape(self) -> tuple[int, ...]:
        return self.shape[::-1] if self.change == TRANSPOSED else self.shape


class Weight(NamedTuple):
    """A tensor of the parameter file that is to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # as it is stored now
    pieces: Callable[[], Iterator[np.ndarray]]  # its rows in order, float32

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Source(NamedTuple):
    """What was read: everything but the weights' values."""

    name: str
    entries: list[Entry]  # the architecture first
    weights: list[Weight]
    notes: list[str]  # for the user


def named_tensors(h: Hyperparameters) -> list[Named]:
    """Every tensor that a model has in both, in the parameter file's order."""
    gpt2, gemma = h.architecture == "gpt2", h.architecture == "gemma3"
    top, layers = ("transformer", "h") if gpt2 else ("model", "layers")
    parts = _GPT2 if gpt2 else _GEMMA if gemma else _LLAMA
    shapes, biased = _shapes(h), _biased(h)
    norm_change = PLUS_ONE if gemma else SAME
    out = []

    def add(gguf: str, hf: str, shape: tuple[int, ...], change: str, bias: bool) -> None:
        out.append(Named(f"{gguf}.weight", f"{hf}.weight", shape, change, h.head_dim))
        if bias:
            kept = SAME if change == TRANSPOSED else change
            out.append(Named(f"{gguf}.bias", f"{hf}.bias", shape[:1], kept, h.head_dim))

    matrix = (h.n_vocab, h.n_embd)
    add("token_embd", f"{top}.{'wte' if gpt2 else 'embed_tokens'}", matrix, SAME, False)
    if gpt2:
        add("position_embd", f"{top}.wpe", (h.n_ctx, h.n_embd), SAME, False)
    for layer in range(h.n_layer):
        for part, name in parts.items():
            if part not in shapes:
                continue
            change = SAME
            if len(shapes[part]) == 1:
                change = norm_change
            elif gpt2:
                change = TRANSPOSED  # Conv1D
            elif h.architecture == "llama" and part in ("attn_q", "attn_k"):
                change = PAIRS
            full = f"{top}.{layers}.{layer}.{name}"
            add(f"blk.{layer}.{part}", full, shapes[part], change, part in biased)
    add("output_norm", f"{top}.{'ln_f' if gpt2 else 'norm'}", (h.n_embd,), norm_change, gpt2)
    if not h.tied_output:
        add("output", "lm_head", matrix, SAME, False)
    return out


def _shapes(h: Hyperparameters) -> dict[str, tuple[int, ...]]:
    """Of the parts that the architecture has."""
    C, F, q, kv = h.n_embd, h.n_ff, h.n_head * h.head_dim, h.n_kv_head * h.head_dim
    out = {"attn_norm": (C,), "attn_output": (C, q), "ffn_norm": (C,)}
    out |= {"ffn_up": (F, C), "ffn_down": (C, F)}
    if h.architecture == "gpt2":
        return out | {"attn_qkv": (3 * C, C)}
    out |= {"attn_q": (q, C), "attn_k": (kv, C), "attn_v": (kv, C), "ffn_gate": (F, C)}
    if h.architecture in ("qwen3", "gemma3"):
        out |= {"attn_q_norm": (h.head_dim,), "attn_k_norm": (h.head_dim,)}
    if h.architecture == "gemma3":
        out |= {"post_attention_norm": (C,), "post_ffw_norm": (C,)}
    return out


def _biased(h: Hyperparameters) -> set[str]:
    """Parts with a bias."""
    if h.architecture == "gpt2":
        return set(_GPT2)
    out = set()
    if h.attention_bias or h.architecture == "qwen2":
        out |= {"attn_q", "attn_k", "attn_v"}
    if h.attention_bias:
        out.add("attn_output")
    return out | ({"ffn_gate", "ffn_up", "ffn_down"} if h.mlp_bias else set())


def match_tensors(
    h: Hyperparameters, stored: dict[str, StoredTensor], where: str
) -> list[tuple[Named, StoredTensor]]:
    """Each tensor with where it lies; FormatError for missing, misshapen and surplus ones."""
    rest = {
        name: tensor
        for name, tensor in stored.items()
        if not name.endswith(_BUFFERS[:1] if h.architecture != "gpt2" else _BUFFERS)
    }
    wanted = named_tensors(h)
    top = wanted[0].hf.split(".")[0] + "."
    if wanted[0].hf not in rest and wanted[0].hf.removeprefix(top) in rest:  # a bare backbone
        rest = {name if name == "lm_head.weight" else top + name: t for name, t in rest.items()}
    out = []
    for named in wanted:
        tensor = rest.pop(named.hf, None)
        if tensor is None:
            raise FormatError(f"{where}: tensor {named.hf} is missing")
        if tensor.shape != named.hf_shape:
            raise FormatError(
                f"{tensor.path}: tensor {named.hf} has shape {list(tensor.shape)}, expected "
                f"{list(named.hf_shape)}"
            )
        tensor.check_dtype()
        out.append((named, tensor))
    if h.tied_output:
        rest.pop("lm_head.weight", None)  # some save it twice
    if rest:
        raise FormatError(
            f"{where}: tensor {next(iter(rest))} has no place in this model ({len(rest)} such)"
        )
    return out


# ---- values ----


def to_gguf(named: Named, stored: StoredTensor) -> Iterator[np.ndarray]:
    """The tensor's rows as the parameter file has them."""
    if named.change == TRANSPOSED:
        yield np.ascontiguousarray(stored.read(0, math.prod(stored.shape)).reshape(stored.shape).T)
    elif named.change == PAIRS:
        per_head = named.head_dim if len(named.shape) == 2 else 1
        for rows in stored.pieces(per_head):
            yield _turn(rows, named, halves_to_pairs)
    elif named.change == PLUS_ONE:
        yield stored.read(0, named.shape[0]) + np.float32(1)  # added at run time there, stored here
    else:
        yield from stored.pieces()


def to_hf(named: Named, pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The way back. pieces: as stored in the parameter file; their type is kept."""
    if named.change == TRANSPOSED:
        whole = np.concatenate(list(pieces)).reshape(named.shape)
        yield np.ascontiguousarray(whole.T)
        return
    for rows in pieces:
        if named.change == PAIRS:
            yield _turn(rows, named, pairs_to_halves)
        elif named.change == PLUS_ONE:
            yield _minus_one(rows, named.gguf)
        else:
            yield rows


def _turn(rows: np.ndarray, named: Named, change) -> np.ndarray:
    if len(named.shape) == 1:  # a bias: one number a row
        return change(rows.reshape(-1, 1), named.head_dim).reshape(rows.shape)
    return change(rows, named.head_dim)


def _minus_one(values: np.ndarray, name: str) -> np.ndarray:
    out = values - np.float32(1)
    if not np.array_equal(out + np.float32(1), values):
        raise UnsupportedError(f"tensor {name}: 1 less is no float32 for some weight: not exact")
    return out


def halves_to_pairs(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """From rows that RoPE turns as (i, i + head_dim / 2) to rows that it turns as (2i, 2i + 1)."""
    heads = rows.reshape(-1, 2, head_dim // 2, rows.shape[-1])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)


def pairs_to_halves(rows: np.ndarray, head_dim: int) -> np.ndarray:
    heads = rows.reshape(-1, head_dim // 2, 2, rows.shape[-1])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)
