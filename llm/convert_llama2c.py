"""llama2.c's checkpoints (version 0: seven int32, then float32 tensors stacked over the layers) and
their tokenizer.bin. Layer 6. Source: github.com/karpathy/llama2.c, run.c and export.py."""

from __future__ import annotations

import math
import struct
from pathlib import Path

from .convert_config import Hyperparameters, to_gguf
from .convert_tensors import Source, Weight, named_tensors
from .errors import FormatError, UnsupportedError
from .parameter_file import Entry, ValueType
from .safetensors_file import StoredTensor, is_pickle, pickle_error
from .tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN

TOKENIZER = "tokenizer.bin"  # beside the checkpoint
_VERSIONED = 0x616B3432  # "ak42"


def read_llama2c(path: Path, tokenizer: Path | None) -> Source:
    """tokenizer: when None the one beside the checkpoint."""
    h = _read_header(path)
    tokenizer = tokenizer or path.parent / TOKENIZER
    if not tokenizer.exists():
        raise FormatError(f"{path}: no {tokenizer.name} beside it; name it with --tokenizer")
    return Source(path.stem, [*to_gguf(h), *_tokens(tokenizer, h.n_vocab)], _weights(path, h), [])


def _read_header(path: Path) -> Hyperparameters:
    with open(path, "rb") as file:
        raw = file.read(28)
    if is_pickle(raw):
        raise pickle_error(path)
    if len(raw) < 28:
        raise FormatError(f"{path}: {len(raw)} bytes, too short for a llama2.c checkpoint")
    if struct.unpack_from("<I", raw)[0] == _VERSIONED:
        version = struct.unpack_from("<i", raw, 4)[0]
        raise UnsupportedError(f"{path}: llama2.c version {version}; this program reads version 0")
    C, F, L, H, K, V, T = struct.unpack("<7i", raw)
    tied, V = V > 0, abs(V)
    if min(C, F, L, H, K, V, T) < 1 or C % H or H % K or C // H % 2:
        raise FormatError(
            f"{path}: neither a Hugging Face folder nor a llama2.c checkpoint, whose sizes these "
            f"would be: {(C, F, L, H, K, V, T)}"
        )
    layer = 2 * C + 2 * C * C + 2 * C * (C // H * K) + 3 * C * F
    n = V * C * (1 if tied else 2) + L * layer + C + T * (C // H)  # last: cosines and sines
    if 28 + 4 * n != path.stat().st_size:
        raise FormatError(f"{path}: {path.stat().st_size} bytes, its sizes need {28 + 4 * n}")
    return Hyperparameters("llama", V, T, C, L, H, K, C // H, F, 1e-5, tied)


def _weights(path: Path, h: Hyperparameters) -> list[Weight]:
    """Its q and k are in pairs already."""
    C, F, kv, at = h.n_embd, h.n_ff, h.n_kv_head * h.head_dim, 28

    def take(name: str, *shape: int) -> Weight:
        nonlocal at
        stored = StoredTensor(path, name, "F32", shape, at)
        at += 4 * math.prod(shape)
        return Weight(name, shape, "F32", stored.pieces)

    out = [take("token_embd.weight", h.n_vocab, C)]
    stacks = {"attn_norm": (C,), "attn_q": (C, C), "attn_k": (kv, C), "attn_v": (kv, C)}
    stacks |= {"attn_output": (C, C), "ffn_norm": (C,), "ffn_gate": (F, C)}
    stacks |= {"ffn_down": (C, F), "ffn_up": (F, C)}
    for name, shape in stacks.items():
        out += [take(f"blk.{layer}.{name}.weight", *shape) for layer in range(h.n_layer)]
    out.append(take("output_norm.weight", C))
    at += 4 * h.n_ctx * h.head_dim
    if not h.tied_output:
        out.append(take("output.weight", h.n_vocab, C))
    found = {weight.name: weight for weight in out}
    return [found[named.gguf] for named in named_tensors(h)]


def _tokens(path: Path, n_vocab: int) -> list[Entry]:
    """The longest token's length, then a score, a length and bytes each; spaces are spaces."""
    raw, at = path.read_bytes(), 4
    pieces, scores = [], []
    for id in range(n_vocab):
        score, n = struct.unpack_from("<fi", raw, at) if at + 8 <= len(raw) else (0.0, -1)
        if not 0 <= n <= len(raw) - at - 8:
            raise FormatError(f"{path}: token {id} of {n_vocab} runs past the end of the file")
        pieces.append(raw[at + 8 : at + 8 + n].decode("utf-8", "replace").replace(" ", "\u2581"))
        scores.append(score)
        at += 8 + n
    if at != len(raw):
        raise FormatError(f"{path}: {len(raw) - at} bytes after the last of {n_vocab} tokens")
    bytes_there = pieces[3:259] == [f"<0x{byte:02X}>" for byte in range(256)]
    if not bytes_there:
        raise UnsupportedError(f"{path}: tokens 3 to 258 are not the 256 bytes")
    pieces[:3] = "<unk>", "<s>", "</s>"
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (n_vocab - 259)
    strings, floats = (ValueType.ARRAY, ValueType.STRING), (ValueType.ARRAY, ValueType.FLOAT32)
    return [
        Entry("tokenizer.ggml.model", "llama", ValueType.STRING),
        Entry("tokenizer.ggml.tokens", pieces, *strings),
        Entry("tokenizer.ggml.scores", scores, *floats),
        Entry("tokenizer.ggml.token_type", types, ValueType.ARRAY, ValueType.INT32),
        Entry("tokenizer.ggml.add_space_prefix", True, ValueType.BOOL),
        Entry("tokenizer.ggml.unknown_token_id", 0, ValueType.UINT32),
        Entry("tokenizer.ggml.bos_token_id", 1, ValueType.UINT32),
        Entry("tokenizer.ggml.eos_token_id", 2, ValueType.UINT32),
        Entry("tokenizer.ggml.add_bos_token", True, ValueType.BOOL),
        Entry("tokenizer.ggml.add_eos_token", False, ValueType.BOOL),
    ]
