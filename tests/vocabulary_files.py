"""Vocabulary-only parameter files for tests: from SentencePiece's .model files and from scratch."""

import struct
from pathlib import Path
from typing import NamedTuple

from llm.parameter_file import Entry, ValueType, write_parameter_file

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


class Piece(NamedTuple):
    text: str
    score: float
    type: int


class SpmModel(NamedTuple):
    pieces: list[Piece]
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool


def fields(message: bytes):
    """(number, value) of a protocol buffer message: ints, floats' four bytes, or bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            yield number, varint()
            continue
        size = varint() if wire == 2 else {5: 4, 1: 8}[wire]
        yield number, message[at : at + size]
        at += size


def read_spm(raw: bytes) -> SpmModel:
    """sentencepiece_model.proto: pieces are field 1, the normalizer's spec field 3."""
    pieces, normalizer = [], {}
    for number, value in fields(raw):
        if number == 1:
            piece = dict(fields(value))
            score = struct.unpack("<f", piece.get(2, bytes(4)))[0]
            pieces.append(Piece(piece[1].decode(), score, piece.get(3, NORMAL)))
        elif number == 3:
            normalizer = dict(fields(value))
    return SpmModel(pieces, bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1)))


def with_pieces(raw: bytes, pieces: list[Piece]) -> bytes:
    """The same model with other pieces; its other fields are all messages."""

    def varint(value: int) -> bytes:
        low, rest = value & 127, value >> 7
        return bytes([low | 128]) + varint(rest) if rest else bytes([low])

    def field(number: int, value: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(value)) + value

    out = b"".join(field(number, value) for number, value in fields(raw) if number != 1)
    for piece in pieces:
        score = b"\x15" + struct.pack("<f", piece.score)
        out += field(1, field(1, piece.text.encode()) + score + b"\x18" + varint(piece.type))
    return out


def write_spm(path: Path, model: SpmModel, **ids: int) -> Path:
    """As llama.cpp's converter writes it; ids as bos_token_id=1."""
    strings, floats = (ValueType.ARRAY, ValueType.STRING), (ValueType.ARRAY, ValueType.FLOAT32)
    prefix = model.add_dummy_prefix
    entries = [
        Entry("general.alignment", 32, ValueType.UINT32),
        Entry("tokenizer.ggml.model", "llama", ValueType.STRING),
        Entry("tokenizer.ggml.tokens", [p.text for p in model.pieces], *strings),
        Entry("tokenizer.ggml.scores", [p.score for p in model.pieces], *floats),
        Entry(
            "tokenizer.ggml.token_type",
            [p.type for p in model.pieces],
            ValueType.ARRAY,
            ValueType.INT32,
        ),
        Entry("tokenizer.ggml.add_space_prefix", prefix, ValueType.BOOL),
        *(Entry(f"tokenizer.ggml.{key}", id, ValueType.UINT32) for key, id in ids.items()),
    ]
    write_parameter_file(path, entries, [], 32)
    return path
