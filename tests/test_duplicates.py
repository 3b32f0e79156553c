"""Bloom filters and MinHash against slow references of their definitions."""

import hashlib

import numpy as np
import pytest

from llm.data import HELD_OUT, fraction
from llm.duplicates import BANDS, BloomFilter, Duplicates, document_key, minhash_keys

WORDS = [f"word{i}" for i in range(3000)]


def keys(n, seed=0):
    return np.random.default_rng(seed).integers(0, 2**64, n, np.uint64)


def test_a_filter_never_misses_and_seldom_errs():
    bloom = BloomFilter(1 << 16, 1)
    first, other = keys(20_000, 1), keys(20_000, 2)
    assert bloom.add(first).mean() < 0.01
    assert bloom.add(first).all()
    expected = bloom.false_positive_rate
    wrong = BloomFilter(1 << 16, 1)
    wrong.add(first)
    got = np.mean([wrong.add(keys(1, seed)) for seed in range(1000, 1500)])
    assert got == pytest.approx(expected, abs=0.02)
    assert not np.array_equal(first, other)


def test_a_filter_is_like_a_set_where_there_is_room():
    bloom, seen, rng = BloomFilter(1 << 20, 3), set(), np.random.default_rng(3)
    for _ in range(20):
        batch = rng.integers(0, 400, (10, 3)).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        expected = []
        for row in batch.tolist():
            expected.append(any(key in seen for key in row))
            seen.update(() if expected[-1] else row)
        assert bloom.add(batch).tolist() == expected


def test_batches_do_not_matter():
    many = np.concatenate([keys(500), keys(500)])
    whole, parts = BloomFilter(1 << 12, 1), BloomFilter(1 << 12, 1)
    expected = whole.add(many)
    assert np.array_equal(np.concatenate([parts.add(p) for p in np.split(many, 20)]), expected)
    assert whole.false_positive_rate == parts.false_positive_rate > 0


def test_the_key_is_the_one_that_chooses_the_held_out():
    for i in range(200):
        document = b"document %d" % i
        assert document_key(document) == int.from_bytes(
            hashlib.sha256(document).digest()[:8], "big"
        )
        assert (document_key(document) < int(HELD_OUT * 2**64)) == (fraction(document) < HELD_OUT)


def similarity(a: bytes, b: bytes) -> float:
    """Of their runs of five words: what MinHash estimates."""

    def runs(text):
        words = text.split()
        return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}

    return len(runs(a) & runs(b)) / len(runs(a) | runs(b))


def test_the_more_alike_the_likelier_found():
    rng = np.random.default_rng(4)
    for n_changed, low, high in ((0, 1, 1), (2, 0.9, 1), (60, 0, 0.3), (400, 0, 0)):
        pairs = []
        for _ in range(60):
            words = rng.choice(WORDS, 400).tolist()
            changed = list(words)
            for at in rng.choice(400, n_changed, replace=False):
                changed[at] = "other" + changed[at]
            pairs.append((" ".join(words).encode(), " ".join(changed).encode()))
        found = np.mean([(minhash_keys([a]) == minhash_keys([b])).any() for a, b in pairs])
        mean = np.mean([similarity(*pair) for pair in pairs])
        assert low <= found <= high, (n_changed, mean, found)


def test_case_and_punctuation_do_not_count_but_words_do():
    a, b, c = minhash_keys(
        [b"One, two; three four FIVE six.", b"one two three four five six", b"six"]
    )
    assert np.array_equal(a, b) and not (a == c).any()


def test_any_bytes_have_keys():
    documents = [b"", b".", b"a", "你好世界再见".encode(), bytes(range(256)), b"...", b"\xff"]
    got = minhash_keys(documents)
    assert got.shape == (7, BANDS) and len({row.tobytes() for row in got}) == 7
    assert np.array_equal(got, np.concatenate([minhash_keys([d]) for d in documents]))


def test_who_stays():
    exact, near = (
        [np.array([5, 6, 5, 7], np.uint64)],
        minhash_keys([b"a b", b"c d", b"a b", b"A, b!"]),
    )
    keep, n_exact, n_near = Duplicates(1 << 12, True).keep(*exact, near)
    assert (keep.tolist(), n_exact, n_near) == ([True, True, False, False], 1, 1)
    keep, n_exact, n_near = Duplicates(1 << 12, False).keep(*exact, None)
    assert (keep.tolist(), n_exact, n_near) == ([True, True, False, True], 1, 0)
