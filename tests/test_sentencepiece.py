"""SentencePiece vocabularies: ours, read from a parameter file, beside sentencepiece, id for id.

Vocabularies of Llama 2 (shared data), of Mistral v1 to v3 (a package), and small ones that
sentencepiece learns here: with and without byte fallback and dummy prefix, with user-defined
tokens, with tokens that are set to unused. Without peers: what a whole text and a text that goes on
decode to, control tokens, and turn markers.
"""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizer import ENGLISH, NASTY
from test_vocabularies import cached, check_cases
from vocabulary_files import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Piece,
    SpmModel,
    read_spm,
    with_pieces,
    write_spm,
)

from llm.tokenizer import Tokenizer

USER = ["<table>", "</b>", "▁▁", "▁▁▁", "▁▁▁▁", "\n\n", "~", "~~"]
NASTY_SPM = [
    *NASTY,
    "▁ ▁▁ ▁a▁b ▁",
    "  leading and trailing  ",
    "<s></s><unk><0x41><0xFF>",
    "<table> <table>x </b>  y\n\n\n~~~ ▁▁▁▁▁▁",
    "\u2581\u2580\u2582 \xe2\u0096 \ufffd",
]
alphabet = st.sampled_from(
    [*"aAbBtheing'l01½٣中文字ßéñ😀\0-_.,\u00a0\u3000\u0301\u200b\ufeff", *USER]
)
any_text = (
    st.lists(alphabet | st.sampled_from([" ", "  ", "▁", "\n", "the", "ing", "<s>", "<0x41>"]))
    .map("".join)
    .filter(lambda text: len(text) < 200)
) | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


# ---- without peers ----


def small_model(**changes) -> SpmModel:
    """Bytes, a few pieces and special tokens: ids 0 to 2, 3 to 258, and from 259 on."""
    words = ["▁", "a", "b", "▁a", "ab", "ba", "é", "x", "▁x", "▁▁"]
    pieces = [Piece("<unk>", 0, UNKNOWN), Piece("<s>", 0, CONTROL), Piece("</s>", 0, CONTROL)]
    pieces += [Piece(f"<0x{byte:02X}>", 0, BYTE) for byte in range(256)]
    pieces += [Piece(word, -float(i), NORMAL) for i, word in enumerate(words)]
    pieces += [Piece("<tool>", 0, USER_DEFINED), Piece("<end_of_turn>", 0, USER_DEFINED)]
    return SpmModel(pieces, True, False)._replace(**changes)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("spm") / "small.gguf"
    return Tokenizer.open(write_spm(path, small_model(), bos_token_id=1, eos_token_id=2))


SPACE, A, B, SPACE_A, AB, BA, E, X, SPACE_X, TWO, TOOL, END = range(259, 271)


def test_what_it_is(small):
    assert (small.model, small.adds_space, small.n_byte_tokens) == ("llama", True, 256)
    assert (small.bos, small.eos, small.add_bos, small.add_eos) == (1, 2, True, False)
    assert small.is_eog(2) and small.is_eog(END) and not small.is_eog(TOOL)


def test_highest_score_first(small):
    assert small.encode("ab") == [SPACE_A, B]  # ▁a scores more than ab
    assert small.encode("xab") == [SPACE_X, AB]
    assert small.encode("  ab") == [TWO, SPACE_A, B]
    assert small.encode("é\x00ü") == [SPACE, E, 3, 3 + 0xC3, 3 + 0xBC]
    assert small.encode("") == []
    assert small.encode("▁a") == small.encode(" a") == [SPACE, SPACE_A]


def test_a_whole_text_and_one_that_goes_on(small):
    ids = small.encode("ab x")
    assert small.decode(ids) == "ab x"
    assert small.decode(ids, whole=False) == " ab x"
    assert [small.decode([id], whole=False) for id in ids] == [" a", "b", " x"]
    assert small.decode([3 + 0x20, A]) == " a"  # a byte token is no prefix
    assert small.decode([TWO, A]) == " a"


def test_control_tokens(small):
    assert small.encode("<s>a</s>", parse_special=True) == [1, SPACE_A, 2]
    assert small.encode("a<s>b<s>", parse_special=True) == [SPACE_A, 1, SPACE, B, 1]
    assert small.decode([SPACE_A, 1, SPACE, B, 1]) == "a<s>b<s>"
    assert small.decode([SPACE_A, 1, SPACE, B, 1], render_special=False) == "ab"
    for text in ["<s>", "</s>", "<unk>", "<0x41>", "<end_of_turn>"]:
        ids = small.encode(text)  # as text they never become themselves
        assert all(small.token_type(id) in (NORMAL, BYTE) for id in ids) and 3 + 0x41 not in ids
        assert small.decode(ids) == text


def test_user_defined_tokens_are_text(small):
    assert small.encode("<tool>") == [SPACE, TOOL]
    assert small.encode("a<tool>a") == [SPACE_A, TOOL, A]
    assert small.decode(small.encode("<tool> <tool>")) == "<tool> <tool>"


def test_turn_markers_are_control(small):
    assert small.token_type(END) == CONTROL  # the file says user-defined
    assert END not in small.encode("<end_of_turn>")
    assert small.encode("<end_of_turn>", parse_special=True) == [END]
    assert small.find("<end_of_turn>") == END and small.find("<tool>") == TOOL
    assert small.find(" a") == SPACE_A and small.find("\n") == 3 + 0x0A and small.find("▁a") is None


@given(text=st.binary(max_size=60) | any_text.map(str.encode))
@settings(max_examples=200, deadline=None)
def test_any_bytes_come_back(small, text):
    """But for U+2581, which is a space to SentencePiece."""
    spaces = text.replace("▁".encode(), b" ")
    for parse_special in (False, True):
        ids = small.encode(text, parse_special=parse_special)
        assert small.decode_bytes(ids) == spaces


def test_without_prefix_and_bytes(tmp_path):
    pieces = [p for p in small_model().pieces if p.type != BYTE]
    model = small_model(pieces=pieces, add_dummy_prefix=False)
    ours = Tokenizer.open(write_spm(tmp_path / "few.gguf", model))
    assert not ours.adds_space and ours.n_byte_tokens == 0 and not ours.add_bos
    assert [pieces[id].text for id in ours.encode("aüöab ü")] == ["a", "<unk>", "ab", "▁", "<unk>"]


# ---- sentencepiece ----


def pair(path, raw: bytes, model: SpmModel | None = None):
    """(ours, sentencepiece's)"""
    peer = pytest.importorskip("sentencepiece", reason="sentencepiece: make test-peers")
    model = model or read_spm(raw)
    ours = Tokenizer.open(write_spm(path, model))
    return ours, peer.SentencePieceProcessor(model_proto=with_pieces(raw, model.pieces))


def same(ours, peer, text: str) -> None:
    ids = ours.encode(text)
    assert ids == peer.encode(text), text[:80]
    if peer.unk_id() not in ids:  # sentencepiece shows it as a mark of its own
        assert ours.decode(ids) == peer.decode(ids), text[:80]


def published(name: str, request) -> bytes:
    if name == "llama-2":
        return (request.getfixturevalue("test_data") / "llama2_tokenizer.model").read_bytes()
    return cached(name)


PUBLISHED = ["llama-2", "mistral-v1", "mistral-v2", "mistral-v3"]


@pytest.fixture(scope="module", params=PUBLISHED)
def both(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "vocabulary.gguf"
    return pair(path, published(request.param, request))


@pytest.mark.peer
def test_nasty_text_as_sentencepiece(both):
    for text in [*NASTY_SPM, ENGLISH[:200_000]]:
        same(*both, text)


@pytest.mark.peer
@given(text=any_text)
@settings(max_examples=300, deadline=None)
def test_any_text_as_sentencepiece(both, text):
    same(*both, text)


@pytest.mark.parametrize("name", ["llama-spm", "phi-3"])
def test_cases_of_llama_cpp(test_data, name):
    check_cases(Tokenizer.open(test_data / "ggml-vocab-llama-spm.gguf"), test_data, name)


def learned(byte_fallback: bool, add_dummy_prefix: bool, **options) -> bytes:
    peer = pytest.importorskip("sentencepiece", reason="sentencepiece: make test-peers")
    out = io.BytesIO()
    peer.SentencePieceTrainer.train(
        sentence_iterator=iter(ENGLISH.splitlines()[:2000]),
        model_writer=out,
        model_type="bpe",
        vocab_size=1000,
        character_coverage=0.999,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        byte_fallback=byte_fallback,
        add_dummy_prefix=add_dummy_prefix,
        minloglevel=2,
        **options,
    )
    return out.getvalue()


def some_unused(model: SpmModel) -> SpmModel:
    """Every third token of more than one character."""
    pieces = [
        piece._replace(type=UNUSED)
        if piece.type == NORMAL and id % 3 == 0 and len(piece.text) > 1
        else piece
        for id, piece in enumerate(model.pieces)
    ]
    return model._replace(pieces=pieces)


LEARNED = {
    "bytes": dict(byte_fallback=True, add_dummy_prefix=True),
    "user": dict(byte_fallback=True, add_dummy_prefix=True, user_defined_symbols=USER),
    "as-gemma": dict(byte_fallback=True, add_dummy_prefix=False, user_defined_symbols=USER),
    "unknown": dict(byte_fallback=False, add_dummy_prefix=True, user_defined_symbols=USER),
    "past-spaces": dict(byte_fallback=True, add_dummy_prefix=True, split_by_whitespace=False),
}


@pytest.mark.peer
@pytest.mark.parametrize("unused", [False, True], ids=["all", "some-unused"])
@pytest.mark.parametrize("name", LEARNED)
def test_learned_as_sentencepiece(name, unused, tmp_path):
    raw = learned(**LEARNED[name])
    model = some_unused(read_spm(raw)) if unused else read_spm(raw)
    both = pair(tmp_path / "learned.gguf", raw, model)
    for text in [*NASTY_SPM, ENGLISH[:20_000]]:
        same(*both, text)

    @given(text=any_text)
    @settings(max_examples=150, deadline=None)
    def any_text_is_the_same(text):
        same(*both, text)

    any_text_is_the_same()
