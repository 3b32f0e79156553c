"""Plain rounding of matrices to the types that a parameter file may store them in, for the tests:
the engine only expands. csrc/quant.h describes the blocks."""

from __future__ import annotations

import numpy as np

SUPER_BLOCKS = ("Q4_K", "Q5_K", "Q6_K")  # of 256 elements; other quantized types have 32


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
    size = 256 if type_name in SUPER_BLOCKS else 32
    blocks = x.reshape(-1, size).astype(np.float64)
    fields, values = _ROUND[type_name](blocks)
    raw = np.concatenate([f.view(np.uint8).reshape(len(blocks), -1) for f in fields], axis=1)
    return raw.tobytes(), values.astype(np.float32).reshape(x.shape)


def _half(x: np.ndarray) -> np.ndarray:
    return x.astype("<f2").reshape(-1, 1)


def _divide(x: np.ndarray, d: np.ndarray) -> np.ndarray:
    return np.rint(np.divide(x, d, out=np.zeros_like(x), where=d != 0))


# ---- blocks of 32 ----


def _nibbles(q: np.ndarray) -> np.ndarray:
    q = q.astype(np.uint8) & 15
    return q[:, :16] | q[:, 16:] << 4


def _fifth_bits(q: np.ndarray) -> np.ndarray:
    return np.packbits(q.astype(np.uint8) >> 4, axis=1, bitorder="little")


def _q8_0(x):
    d = _half(np.abs(x).max(axis=1) / 127)
    q = np.clip(_divide(x, d.astype(float)), -128, 127)
    return (d, q.astype(np.int8)), q * d.astype(float)


def _symmetric(x, half):
    d = _half(np.abs(x).max(axis=1) / (half - 1))
    q = np.clip(_divide(x, d.astype(float)) + half, 0, 2 * half - 1)
    return d, q, (q - half) * d.astype(float)


def _q4_0(x):
    d, q, values = _symmetric(x, 8)
    return (d, _nibbles(q)), values


def _q5_0(x):
    d, q, values = _symmetric(x, 16)
    return (d, _fifth_bits(q), _nibbles(q)), values


def _from_minimum(x, largest):
    low = _half(x.min(axis=1))
    d = _half((x.max(axis=1) - x.min(axis=1)) / largest)
    q = np.clip(_divide(x - low.astype(float), d.astype(float)), 0, largest)
    return d, low, q, q * d.astype(float) + low.astype(float)


def _q4_1(x):
    d, low, q, values = _from_minimum(x, 15)
    return (d, low, _nibbles(q)), values


def _q5_1(x):
    d, low, q, values = _from_minimum(x, 31)
    return (d, low, _fifth_bits(q), _nibbles(q)), values


# ---- super-blocks of 256 ----


def _k_scales(scale: np.ndarray, minimum: np.ndarray) -> np.ndarray:
    """(n, 8) six-bit numbers each, in 12 bytes."""
    scale, minimum = scale.astype(np.uint8), minimum.astype(np.uint8)
    first = [part[:, :4] | part[:, 4:] >> 4 << 6 for part in (scale, minimum)]
    last = scale[:, 4:] & 15 | (minimum[:, 4:] & 15) << 4
    return np.concatenate([*first, last], axis=1)


def _k(x, largest):
    x = x.reshape(-1, 8, 32)
    low = np.maximum(-x.min(axis=2), 0)
    step = (np.maximum(x.max(axis=2), 0) + low) / largest
    d, dmin = _half(step.max(axis=1) / 63), _half(low.max(axis=1) / 63)
    scale = np.clip(_divide(step, d.astype(float)), 0, 63)
    minimum = np.clip(_divide(low, dmin.astype(float)), 0, 63)
    steps, lows = ((d * scale)[..., None], (dmin * minimum)[..., None])
    q = np.clip(_divide(x + lows, np.broadcast_to(steps, x.shape)), 0, largest).astype(np.uint8)
    pairs = q.reshape(-1, 4, 2, 32) & 15
    return (
        (d, dmin, _k_scales(scale, minimum)),
        q,
        pairs[:, :, 0] | pairs[:, :, 1] << 4,
        q * steps - lows,
    )


def _q4_k(x):
    header, _, nibbles, values = _k(x, 15)
    return (*header, nibbles), values


def _q5_k(x):
    header, q, nibbles, values = _k(x, 31)
    return (*header, np.packbits(q >> 4, axis=1, bitorder="little"), nibbles), values


def _q6_k(x):
    x = x.reshape(-1, 16, 16)
    step = np.abs(x).max(axis=2) / 31
    d = _half(step.max(axis=1) / 127)
    scale = _divide(step, d.astype(float)).astype(np.int8)
    steps = (d * scale.astype(float))[..., None]
    q = np.clip(_divide(x, np.broadcast_to(steps, x.shape)), -32, 31)
    bits = (q + 32).astype(np.uint8).reshape(-1, 2, 4, 32)  # halves, quarters of each
    low = (bits[:, :, :2] & 15) | (bits[:, :, 2:] & 15) << 4
    high = np.bitwise_or.reduce(bits >> 4 << np.array([0, 2, 4, 6], np.uint8)[:, None], axis=2)
    return (low, high, scale, d), q * steps


_ROUND = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
