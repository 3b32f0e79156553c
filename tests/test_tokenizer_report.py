"""What is told of a vocabulary: scripts, longest and unused tokens."""

import numpy as np
import pytest
from models import EOT, byte_vocabulary

from llm.tokenizer_report import script_of, tokenizer_report

TOKENS = byte_vocabulary().tokens


def ids_of(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)


@pytest.mark.parametrize(
    ("raw", "script"),
    [
        (b" the", "Latin"),
        ("ко".encode(), "Cyrillic"),
        ("日".encode(), "CJK"),
        (b" 12", "digits"),
        (b".\n", "spaces and signs"),
        ("日".encode()[:2], None),
    ],
)
def test_script_of(raw, script):
    assert script_of(raw) == script


def test_scripts_by_bytes_and_tokens_with_characters_in_pieces():
    ids = np.concatenate([[EOT], [257], ids_of(" кот"), [EOT], [256], [0xFF] * 16])
    found = tokenizer_report(TOKENS, {EOT}, ids.astype(np.int32))
    assert found.scripts == {
        "Cyrillic": (6, 6),
        "Latin": (5, 2),
        "spaces and signs": (1, 1),
        "broken UTF-8": (16, 16),
    }
    assert found.n_tokens == len(ids)


def test_longest_and_unused():
    found = tokenizer_report(TOKENS, {EOT}, np.array([257, 257, 65], np.int32))
    assert found.longest[:2] == [(b"the", 2), (b"th", 0)]
    assert found.unused == [b"th"]
    assert found.n_unused_bytes == 255
