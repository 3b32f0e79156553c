"""Hyperparameters, the layout of the parameter buffer, and our names against GGUF's. Layer 1.

The flat float32 buffer of the trainer is, byte for byte, the data section of an F32 parameter
file: tensors in the file's order, each starting at a multiple of 64 bytes, zeros in between. GGUF
spellings of keys and tensors appear in this module, in csrc/model.c, and for other people's models
in convert_config.py and convert_tensors.py, nowhere else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from .errors import FormatError, UnsupportedError

ARCHITECTURE = "llama"
ALIGNMENT = 64  # bytes, general.alignment of our files
_ALIGN_FLOATS = ALIGNMENT // 4

# Field of ModelConfig -> GGUF key. Integers are stored as UINT32, floats as FLOAT32.
GGUF_KEYS = {
    "n_vocab": "llama.vocab_size",
    "n_ctx": "llama.context_length",
    "n_embd": "llama.embedding_length",
    "n_layer": "llama.block_count",
    "n_head": "llama.attention.head_count",
    "n_kv_head": "llama.attention.head_count_kv",
    "n_ff": "llama.feed_forward_length",
    "rope_theta": "llama.rope.freq_base",
    "norm_eps": "llama.attention.layer_norm_rms_epsilon",
}
_ROPE_DIM_KEY = "llama.rope.dimension_count"

# What the trainer's block can be: RoPE turns adjacent pairs or halves of a head.
ROPE_HALVES = {"llama": False, "qwen2": True, "qwen3": True}

# Our name -> GGUF name; those of a block carry the prefix "blk.N." in both.
_GLOBAL_NAMES = {
    "tok_embd": "token_embd.weight",
    "out_norm": "output_norm.weight",
    "output": "output.weight",
}
_BLOCK_NAMES = {
    "attn_norm": "attn_norm.weight",
    "wq": "attn_q.weight",
    "wk": "attn_k.weight",
    "wv": "attn_v.weight",
    "bq": "attn_q.bias",
    "bk": "attn_k.bias",
    "bv": "attn_v.bias",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "wo": "attn_output.weight",
    "ffn_norm": "ffn_norm.weight",
    "w_gate": "ffn_gate.weight",
    "w_up": "ffn_up.weight",
    "w_down": "ffn_down.weight",
}

LIMITS = {  # what is absurd rather than large
    "n_vocab": 1 << 24,
    "n_ctx": 1 << 24,
    "n_embd": 1 << 17,
    "n_layer": 1 << 12,
    "n_head": 1 << 12,
    "n_kv_head": 1 << 12,
    "n_ff": 1 << 20,
}
FUSED_HEADS = range(8, 129, 8)  # widths that a GPU's fused attention takes (csrc/train_flash.h)


def check_fused(head_dim: int) -> None:
    if head_dim not in FUSED_HEADS:
        first, second, most = *FUSED_HEADS[:2], FUSED_HEADS[-1]
        raise ValueError(
            f"--attention fused takes heads of {first}, {second} ... {most}, not of {head_dim} "
            "(n_embd / n_head): choose other sizes, or leave it out"
        )


@dataclass(frozen=True)
class TensorSpec:
    """One tensor: our name, GGUF's, row-major shape, offset in floats from the buffer's start."""

    name: str
    gguf_name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class ModelConfig:
    """A Llama-shaped decoder. Refuses impossible values with a ValueError that names the field.

    architecture: llama; qwen2, which adds biases to q, k and v; qwen3, which norms the heads of q
    and k. key_length: of a head, where that is not n_embd / n_head.
    """

    n_vocab: int
    n_ctx: int
    n_embd: int
    n_layer: int
    n_head: int
    n_kv_head: int
    n_ff: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tied_output: bool = True
    architecture: str = ARCHITECTURE
    key_length: int | None = None

    def __post_init__(self):
        if self.architecture not in ROPE_HALVES:
            names = ", ".join(ROPE_HALVES)
            raise ValueError(f"architecture is {self.architecture!r}, expected one of {names}")
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
                raise ValueError(f"{name} is {value!r}, expected an integer from 1 to {limit}")
        if self.key_length is None and self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        if self.head_dim % 2 or self.head_dim < 2:
            raise ValueError(f"head_dim {self.head_dim} (n_embd / n_head) is odd; RoPE needs pairs")
        if self.n_head % self.n_kv_head:
            raise ValueError(
                f"n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}"
            )
        if not (math.isfinite(self.rope_theta) and self.rope_theta > 1):
            raise ValueError(f"rope_theta is {self.rope_theta!r}, expected a finite number over 1")
        if not 0 < self.norm_eps < 1:
            raise ValueError(f"norm_eps is {self.norm_eps!r}, expected a number between 0 and 1")
        if not isinstance(self.tied_output, bool):
            raise ValueError(f"tied_output is {self.tied_output!r}, expected True or False")

    @property
    def head_dim(self) -> int:
        return self.key_length or self.n_embd // self.n_head

    @property
    def qkv_bias(self) -> bool:
        return self.architecture == "qwen2"

    @property
    def qk_norm(self) -> bool:
        return self.architecture == "qwen3"

    @property
    def n_params(self) -> int:
        """Numbers that are learned; the padding of the buffer is not counted."""
        return sum(entry.size for entry in layout(self))

    @property
    def n_multiplied(self) -> int:
        """Weights of matrix products; an embedding that is not tied is only looked up."""
        matrices = sum(entry.size for entry in layout(self) if len(entry.shape) == 2)
        return matrices - (0 if self.tied_output else self.n_vocab * self.n_embd)

    @property
    def flops_per_token(self) -> int:
        """Arithmetic of one trained token at full context, forward and backward.

        Six per weight of a matrix product and, for attention, the causal half of
        12 * n_layer * n_head * head_dim * n_ctx.
        """
        return 6 * (self.n_multiplied + self.n_layer * self.n_head * self.head_dim * self.n_ctx)

    def to_gguf(self) -> dict[str, int | float | str]:
        """GGUF keys of the hyperparameters of a model that began here, with the architecture."""
        keys = {"general.architecture": ARCHITECTURE}
        keys.update((key, getattr(self, name)) for name, key in GGUF_KEYS.items())
        keys[_ROPE_DIM_KEY] = self.head_dim
        return keys

    @classmethod
    def from_gguf(cls, keys: dict, tied_output: bool) -> ModelConfig:
        """The inverse of to_gguf; `tied_output` is whether the file lacks output.weight."""
        architecture = keys.get("general.architecture")
        if architecture != ARCHITECTURE:
            raise UnsupportedError(f"architecture is {architecture!r}, expected {ARCHITECTURE!r}")
        missing = [key for key in GGUF_KEYS.values() if key not in keys]
        if missing:
            raise FormatError(f"key {missing[0]} is missing")
        convert = {field.name: float if field.type == "float" else int for field in fields(cls)}
        values = {name: convert[name](keys[key]) for name, key in GGUF_KEYS.items()}
        try:
            config = cls(**values, tied_output=tied_output)
        except ValueError as error:
            raise FormatError(str(error)) from error
        rope_dim = keys.get(_ROPE_DIM_KEY, config.head_dim)
        if rope_dim != config.head_dim:
            raise UnsupportedError(f"{_ROPE_DIM_KEY} is {rope_dim}, expected {config.head_dim}")
        return config


def blocks_of(entries: list[TensorSpec], n_layer: int) -> tuple[list[slice], list[slice]]:
    """Of a flat buffer: the slice of each block, and those before and behind all of them."""
    starts = [
        min(e.offset for e in entries if e.name.startswith(f"blk.{layer}."))
        for layer in range(n_layer)
    ]
    size = entries_size(entries)
    behind = [e.offset for e in entries if e.offset > starts[-1] and "blk." not in e.name]
    edges = [*starts, min(behind, default=size)]
    blocks = [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]
    return blocks, [slice(0, edges[0]), slice(edges[-1], size)]


def _tensors(config: ModelConfig):
    """(our name, GGUF name, shape) in the file's order."""
    C, F = config.n_embd, config.n_ff
    q, kv = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
    shapes = {
        "attn_norm": (C,),
        "wq": (q, C),
        "wk": (kv, C),
        "wv": (kv, C),
        "wo": (C, q),
        "ffn_norm": (C,),
        "w_gate": (F, C),
        "w_up": (F, C),
        "w_down": (C, F),
    }
    if config.qkv_bias:
        shapes |= {"bq": (q,), "bk": (kv,), "bv": (kv,)}
    if config.qk_norm:
        shapes |= {"q_norm": (config.head_dim,), "k_norm": (config.head_dim,)}
    yield "tok_embd", _GLOBAL_NAMES["tok_embd"], (config.n_vocab, C)
    for layer in range(config.n_layer):
        for name, gguf_name in _BLOCK_NAMES.items():
            if name in shapes:
                yield f"blk.{layer}.{name}", f"blk.{layer}.{gguf_name}", shapes[name]
    yield "out_norm", _GLOBAL_NAMES["out_norm"], (C,)
    if not config.tied_output:
        yield "output", _GLOBAL_NAMES["output"], (config.n_vocab, C)


def _round_up(n: int) -> int:
    return -(-n // _ALIGN_FLOATS) * _ALIGN_FLOATS


def layout(config: ModelConfig) -> list[TensorSpec]:
    """Every tensor in the file's order; offsets are multiples of 16 floats."""
    return place_all(_tensors(config))


def place_all(tensors) -> list[TensorSpec]:
    """(our name, GGUF name, shape) one behind the other."""
    entries, offset = [], 0
    for name, gguf_name, shape in tensors:
        entries.append(TensorSpec(name, gguf_name, shape, offset))
        offset = _round_up(offset + entries[-1].size)
    return entries


def layout_size(config: ModelConfig) -> int:
    """Floats of the whole buffer, the padding after the last tensor included."""
    return entries_size(layout(config))


def entries_size(entries: list[TensorSpec]) -> int:
    return _round_up(entries[-1].offset + entries[-1].size)
