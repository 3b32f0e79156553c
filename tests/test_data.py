"""The held-out part, the token stream, and the order of examples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.data import Examples, document_starts, hold_out, mix, permute, token_stream
from llm.errors import CorpusError

# ---- the held-out part ----

TEXT = b"".join(b"Paragraph %d says %s.\n\n" % (i, b"word " * (i % 37 + 20)) for i in range(2000))


def documents(n, start=0):
    return [b"document %d: " % i + b"x" * 200 for i in range(start, start + n)]


def test_whole_documents_are_held_out_where_there_are_many():
    all_documents = documents(1000)
    training, held = hold_out(all_documents, "hash", 100)
    assert sorted(training + held) == sorted(all_documents)
    assert 20 <= len(held) <= 85


def test_the_split_stays_when_documents_are_added_or_moved():
    _, held = hold_out(documents(1000), "hash", 100)
    _, more = hold_out(documents(1500)[::-1], "hash", 100)
    assert set(held) == set(more) & set(documents(1000))


def test_the_same_document_twice_is_on_one_side():
    training, held = hold_out(documents(500) * 2, "hash", 100)
    assert not set(training) & set(held)


def test_a_text_twice_without_blank_lines_still_leaves_something_to_train_on():
    text = b"words without an end " * 500
    training, held = hold_out([text, text], "hash", 100)
    assert training and held and sum(map(len, training + held)) == 2 * len(text)


def test_one_document_is_cut_at_blank_lines():
    training, held = hold_out([TEXT], "hash", 1000)
    assert len(training) == 1
    assert len(training[0]) + sum(map(len, held)) == len(TEXT)
    assert all(block in TEXT and block.endswith(b"\n\n") for block in held)
    assert 0.01 < sum(map(len, held)) / len(TEXT) < 0.12


def test_a_folder_of_some_files_gives_about_its_share():
    """A few dozen files of uneven length: whole ones would be a matter of luck."""
    folder = [
        b"\n\n".join(b"file %d, part %d " % (i, j) * 30 for j in range(3 * i)) for i in range(37)
    ]
    training, held = hold_out(folder, "hash", 100)
    total = sum(map(len, folder))
    assert 0.02 < sum(map(len, held)) / total < 0.09
    assert sum(map(len, training + held)) == total


def test_at_least_the_asked_bytes_are_held_out():
    _, held = hold_out(documents(40), "hash", 2500)
    assert sum(map(len, held)) >= 2500


def test_a_text_without_blank_lines_loses_its_end():
    text = ("wörter ohne ende " * 500).encode()
    training, held = hold_out([text], "hash", 100)
    assert training[0] + held[0] == text
    assert len(held[0]) == pytest.approx(len(text) * 0.05, abs=4)
    held[0].decode()  # no character is cut


def test_last_takes_the_end_over_document_borders():
    parts = [b"a" * 1000, b"b" * 30, b"c" * 10]
    training, held = hold_out(parts, "last", 10)
    assert (training, held) == ([b"a" * 988], [b"a" * 12, b"b" * 30, b"c" * 10])


def test_a_corpus_too_short_to_split_is_refused():
    with pytest.raises(CorpusError, match="has 30 bytes, at least 200 are needed"):
        hold_out([b"x" * 30], "hash", 100)


@given(
    st.lists(st.text(min_size=1, max_size=3000).map(str.encode), min_size=1, max_size=30),
    st.sampled_from(["hash", "last"]),
)
def test_nothing_is_lost_or_trained_on_twice(parts, rule):
    parts.append(b"padding. " * 10)
    training, held = hold_out(parts, rule, 40)
    assert sum(map(len, training)) + sum(map(len, held)) == sum(map(len, parts))
    assert training and held
    for part in training + held:
        part.decode()  # no character is cut


# ---- tokens and examples ----


class ByteTokenizer:
    def encode_array(self, text):
        return np.frombuffer(text, np.uint8).astype(np.int32)


def test_the_stream_has_a_border_before_each_document():
    stream = token_stream(ByteTokenizer(), [b"ab", b"c"], 256)
    assert stream.tolist() == [256, 97, 98, 256, 99]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 1000])
def test_permute_is_a_permutation(n):
    for key in (0, 1, 2**64 - 1):
        assert sorted(permute(i, n, key) for i in range(n)) == list(range(n))


def test_permute_depends_on_the_key_and_works_at_ten_terabytes():
    assert [permute(i, 1000, 1) for i in range(50)] != [permute(i, 1000, 2) for i in range(50)]
    n = 10**13 // 512
    assert len({permute(i, n, 7) for i in range(1000)}) == 1000
    assert all(0 <= permute(i, n, 7) < n for i in range(100))


def test_the_order_stays_what_it_was():
    """A run must find the order of its first sitting in any later version of the program."""
    assert mix(1, 2, 3) == 0x6AE515C1C0AC7E37
    assert [permute(i, 10, 5) for i in range(10)] == [0, 7, 2, 3, 8, 4, 9, 6, 5, 1]


def examples(n_tokens=1000, n_ctx=16, **kind):
    values = {"seed": 3, "n_slots": 1, "slot_sequences": 4} | kind
    return Examples(np.arange(n_tokens, dtype=np.int32), n_ctx, **values)


def test_targets_are_the_next_tokens():
    tokens, targets, starts = examples().slot(0, 0)
    assert starts is None
    assert tokens.shape == targets.shape == (4, 16)
    assert tokens.dtype == targets.dtype == np.int32
    assert np.array_equal(tokens + 1, targets)
    assert tokens.flags.c_contiguous and targets.flags.c_contiguous


def test_an_epoch_sees_each_window_once_and_the_next_in_another_order():
    ex = examples()
    first = [ex.start(i) for i in range(ex.n_windows)]
    second = [ex.start(ex.n_windows + i) for i in range(ex.n_windows)]
    assert sorted(first) == list(range(min(first), 1000 - 16, 16))[: ex.n_windows]
    assert first != second
    for starts in (first, second):
        assert np.all(np.diff(sorted(starts)) == 16)
        assert 0 <= min(starts) and max(starts) + 17 <= 1000


def test_documents_begin_at_their_separator():
    tokens = np.array([[5, 0, 3, 0, 0, 2], [0, 1, 2, 3, 4, 5]], np.int32)
    starts = document_starts(tokens, 0)
    assert starts.dtype == np.int32
    assert starts.tolist() == [[0, 1, 1, 3, 4, 4], [0] * 6]


def test_isolated_examples_say_where_documents_begin():
    stream = np.array([0, 1, 2, 0, 3, 4, 5, 0, 6, 7, 8, 9, 1] * 5, np.int32)
    isolated = Examples(stream, 8, 3, 1, 4, eot=0)
    tokens, _, starts = isolated.slot(2, 0)
    np.testing.assert_array_equal(starts, document_starts(tokens, 0))


def test_the_order_is_a_function_of_seed_step_and_slot():
    assert np.array_equal(examples().slot(7, 0)[0], examples().slot(7, 0)[0])
    assert not np.array_equal(examples().slot(7, 0)[0], examples(seed=4).slot(7, 0)[0])


def test_slots_cut_a_step_without_changing_it():
    whole = examples(slot_sequences=4).slot(5, 0)[0]
    halves = examples(n_slots=2, slot_sequences=2)
    assert np.array_equal(whole, np.concatenate([halves.slot(5, s)[0] for s in range(2)]))


@given(st.integers(17, 200))
def test_every_window_is_inside_the_stream(n_tokens):
    ex = examples(n_tokens)
    for sequence in range(3 * ex.n_windows):
        assert 0 <= ex.start(sequence) <= n_tokens - 17


def test_fewer_tokens_than_a_window_are_refused():
    with pytest.raises(CorpusError, match="16 tokens, fewer than one window of 17"):
        examples(16)
