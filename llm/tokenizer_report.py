"""What a run's vocabulary makes of its text: bytes per token by script, longest tokens, unused
ones. Layer 7."""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass

import numpy as np

SAMPLE = 200_000  # tokens whose scripts are told
COUNTED = 10_000_000  # tokens in which uses are counted
LONGEST = 16


@dataclass(frozen=True)
class TokenizerReport:
    n_tokens: int  # that were counted
    scripts: dict[str, tuple[int, int]]  # script -> (bytes, tokens) of a sample
    longest: list[tuple[bytes, int]]  # (token, uses)
    unused: list[bytes]  # of more than a byte
    n_unused_bytes: int


def tokenizer_report(tokens: list[bytes], control: set[int], ids: np.ndarray) -> TokenizerReport:
    """tokens: the bytes of each id; ids: the text. A long text is sampled from its beginning."""
    counts = np.bincount(ids[:COUNTED], minlength=len(tokens))
    plain = [id for id in range(len(tokens)) if id not in control]
    longest = sorted(plain, key=lambda id: (-len(tokens[id]), -counts[id]))[:LONGEST]
    unused = [tokens[id] for id in plain if not counts[id]]
    return TokenizerReport(
        n_tokens=min(len(ids), COUNTED),
        scripts=_scripts(tokens, control, ids[:SAMPLE].tolist()),
        longest=[(tokens[id], int(counts[id])) for id in longest],
        unused=[token for token in unused if len(token) > 1],
        n_unused_bytes=sum(len(token) == 1 for token in unused),
    )


def _scripts(tokens, control, ids: list[int]) -> dict[str, tuple[int, int]]:
    """Tokens that split a character are counted together, up to where the bytes are text again."""
    n_bytes, n_tokens, raw, n = Counter(), Counter(), b"", 0
    known: dict[bytes, str | None] = {}
    for id in ids:
        if id in control:
            raw, n = b"", 0
            continue
        raw, n = raw + tokens[id], n + 1
        if raw not in known:
            known[raw] = script_of(raw)
        script = known[raw]
        if script is None and len(raw) < 16:
            continue
        n_bytes[script or "broken UTF-8"] += len(raw)
        n_tokens[script or "broken UTF-8"] += n
        raw, n = b"", 0
    return {script: (size, n_tokens[script]) for script, size in n_bytes.most_common()}


def script_of(raw: bytes) -> str | None:
    """Of the first letter, by its name in Unicode ("Latin", "Cyrillic", "CJK"); else "digits" or
    "spaces and signs". None: not whole characters."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
    for char in text:
        if char.isalpha():
            first = unicodedata.name(char, "unknown").split()[0]
            return first if first == "CJK" else first.capitalize()
    return "digits" if any(map(str.isdigit, text)) else "spaces and signs"
