"""SentencePiece's .model files, read and written: the few fields of its protocol buffer that say
how text falls into pieces (sentencepiece_model.proto). Layer 1."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .errors import FormatError, UnsupportedError

_BPE = 2  # trainer_spec.model_type
_KINDS = {1: "unigram", 3: "word", 4: "char"}


class Piece(NamedTuple):
    text: str
    score: float
    type: int  # the same numbers as llm_token_type


class SentencePieceModel(NamedTuple):
    pieces: list[Piece]
    add_dummy_prefix: bool


# ---- protocol buffers ----


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value): ints, and bytes for the rest. IndexError or ValueError where it is cut."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = 0
        for shift in range(0, 70, 7):
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number of more than 64 bits")

    while at < len(message):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            yield number, varint()
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"wire type {wire}")
        size = varint() if wire == 2 else {5: 4, 1: 8}[wire]
        if size > len(message) - at:
            raise ValueError(f"a field of {size} bytes where {len(message) - at} are left")
        yield number, message[at : at + size]
        at += size


def _varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _int_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _float_field(number: int, value: float) -> bytes:
    return _varint(number << 3 | 5) + struct.pack("<f", value)


# ---- the model ----


def read_sentencepiece(path: Path) -> SentencePieceModel:
    try:
        return _read(path.read_bytes(), path)
    except (IndexError, ValueError, KeyError, TypeError, struct.error) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path}: not a SentencePiece model: {error}") from error


def _read(raw: bytes, path: Path) -> SentencePieceModel:
    pieces, trainer, normalizer = [], {}, {}
    for number, value in _fields(raw):
        if number == 1:
            piece = dict(_fields(value))
            score = struct.unpack("<f", piece.get(2, bytes(4)))[0]
            pieces.append(Piece(piece[1].decode(), score, piece.get(3, 1)))
        elif number == 2:
            trainer = dict(_fields(value))
        elif number == 3:
            normalizer = dict(_fields(value))
    if not pieces:
        raise FormatError(f"{path}: not a SentencePiece model: it has no pieces")
    kind = trainer.get(3, 1)
    if kind != _BPE:
        raise UnsupportedError(
            f"{path}: a SentencePiece {_KINDS.get(kind, kind)} model; this program has BPE"
        )
    refused = {
        "a table of characters to normalise (precompiled_charsmap)": normalizer.get(2),
        "remove_extra_whitespaces": normalizer.get(4, 1),
        "treat_whitespace_as_suffix": trainer.get(24, 0),
    }
    for name, value in refused.items():
        if value:
            raise UnsupportedError(f"{path}: SentencePiece with {name} does not run here")
    return SentencePieceModel(pieces, bool(normalizer.get(3, 1)))


def write_sentencepiece(model: SentencePieceModel) -> bytes:
    out = b"".join(
        _bytes_field(
            1,
            _bytes_field(1, piece.text.encode())
            + _float_field(2, piece.score)
            + _int_field(3, piece.type),
        )
        for piece in model.pieces
    )
    trainer = _int_field(3, _BPE) + _int_field(35, 1)  # byte_fallback
    special = {
        40: next((id for id, piece in enumerate(model.pieces) if piece.type == 2), -1),
        41: _find(model, "<s>", "<bos>"),
        42: _find(model, "</s>", "<eos>"),
        43: -1,
    }
    trainer += b"".join(_int_field(number, id % 2**64) for number, id in special.items())
    normalizer = _bytes_field(1, b"identity") + _int_field(3, model.add_dummy_prefix)
    normalizer += _int_field(4, 0) + _int_field(5, 1)
    return out + _bytes_field(2, trainer) + _bytes_field(3, normalizer)


def _find(model: SentencePieceModel, *texts: str) -> int:
    return next((id for id, piece in enumerate(model.pieces) if piece.text in texts), -1)
