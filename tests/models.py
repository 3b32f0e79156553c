"""Small seeded parameter files for the tests, written by our one writer in under a second, and
the plain rounding of the quantized types that they are stored in."""

from __future__ import annotations

import numpy as np

from llm.config import ModelConfig, layout
from llm.model import init_params
from llm.parameter_file import (
    Provenance,
    TensorData,
    Vocabulary,
    export_model,
    trained_model_metadata,
    write_parameter_file,
)

TINY = ModelConfig(
    n_vocab=259, n_ctx=64, n_embd=64, n_layer=2, n_head=4, n_kv_head=2, n_ff=96, tied_output=True
)
EOT = 258  # the control token of byte_vocabulary()


def byte_vocabulary() -> Vocabulary:
    """All 256 bytes, two merges ("th", "the") and an end-of-text token: 259 ids."""
    tokens = [bytes([b]) for b in range(256)] + [b"th", b"the", b"<|endoftext|>"]
    merges = np.array([[ord("t"), ord("h")], [256, ord("e")]])
    return Vocabulary(tokens, merges, "gpt-2", bos=EOT, eos=EOT)


def provenance(**changes) -> Provenance:
    values = {
        "name": "tiny",
        "corpus_name": "none",
        "corpus_bytes": 1000,
        "corpus_sha256": "0" * 64,
        "train_tokens": 0,
        "train_steps": 0,
        "train_seed": 1,
        "train_flops": 0.0,
        "validation_bits_per_byte": 8.0,
    }
    return Provenance(**(values | changes))


def random_params(config: ModelConfig, seed: int = 1, scale: float = 8.0) -> np.ndarray:
    """Like fresh weights but larger, so that attention and the logits are far from uniform."""
    flat = init_params(config, seed)
    for entry in layout(config):
        if len(entry.shape) == 2:
            flat[entry.offset : entry.offset + entry.size] *= scale
    return flat


def write_trained(path, config: ModelConfig = TINY, seed: int = 1, flat=None) -> None:
    """A file as the trainer exports it: F32, with provenance and a proof block."""
    flat = random_params(config, seed) if flat is None else flat
    export_model(path, config, flat, byte_vocabulary(), provenance(), [[116, 104], [72]], n_new=4)


NO_BOS_EOS = ("tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id")


def write_typed(
    path, type_name: str, config: ModelConfig = TINY, seed: int = 1, drop=(), **changes
) -> np.ndarray:
    """A file whose matrices are of one type, without the keys of `drop`, with changes to the
    provenance. Returns the parameter buffer that it expands to."""
    flat, tensors = random_params(config, seed), []
    for entry in layout(config):
        part = flat[entry.offset : entry.offset + entry.size].reshape(entry.shape)
        kind = type_name if len(entry.shape) == 2 else "F32"
        raw, expanded = pack(part, kind)
        part[...] = expanded
        tensors.append(TensorData(entry.gguf_name, entry.shape, kind, raw))
    metadata = trained_model_metadata(config, byte_vocabulary(), provenance(**changes))
    write_parameter_file(path, [entry for entry in metadata if entry.key not in drop], tensors)
    return flat


def pack(x: np.ndarray, type_name: str) -> tuple[bytes, np.ndarray]:
    """Bytes of a tensor in a type, and the float32 values that they stand for."""
    if type_name == "F32":
        return x.astype("<f4").tobytes(), x
    if type_name == "F16":
        half = x.astype("<f2")
        return half.tobytes(), half.astype(np.float32)
    if type_name == "BF16":
        bits = x.view(np.uint32) >> 16  # cut, which is one way to round
        return bits.astype("<u2").tobytes(), (bits << 16).astype(np.uint32).view(np.float32)
    blocks = x.reshape(-1, 32).astype(np.float64)
    fields, values = {"Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1}[type_name](blocks)
    raw = np.concatenate([f.view(np.uint8).reshape(len(blocks), -1) for f in fields], axis=1)
    return raw.tobytes(), values.astype(np.float32).reshape(x.shape)


def _half(x: np.ndarray) -> np.ndarray:
    return x.astype("<f2").reshape(-1, 1)


def _divide(x: np.ndarray, d: np.ndarray) -> np.ndarray:
    return np.rint(np.divide(x, d, out=np.zeros_like(x), where=d != 0))


def _nibbles(q: np.ndarray) -> np.ndarray:
    q = q.astype(np.uint8)
    return q[:, :16] | q[:, 16:] << 4


def _q8_0(x):
    d = _half(np.abs(x).max(axis=1) / 127)
    q = np.clip(_divide(x, d.astype(float)), -128, 127)
    return (d, q.astype(np.int8)), q * d.astype(float)


def _q4_0(x):
    d = _half(np.abs(x).max(axis=1) / 7)
    q = np.clip(_divide(x, d.astype(float)) + 8, 0, 15)
    return (d, _nibbles(q)), (q - 8) * d.astype(float)


def _q4_1(x):
    low = _half(x.min(axis=1))
    d = _half((x.max(axis=1) - x.min(axis=1)) / 15)
    q = np.clip(_divide(x - low.astype(float), d.astype(float)), 0, 15)
    return (d, low, _nibbles(q)), q * d.astype(float) + low.astype(float)
