"""The tokenizer beside its peers: Hugging Face's tokenizers and OpenAI's tiktoken, id for id.

The peers are given the same vocabularies: learned here from Python's own help texts, GPT-2's from
the shared data, SmolLM2's from its parameter file. Without peers, the round trip of any bytes.
"""

import pydoc_data.topics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.tokenizer import Tokenizer

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
ENGLISH = "".join(pydoc_data.topics.topics.values())
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
PRES = ["gpt-2", "smollm"]

NASTY = [
    "",
    " ",
    "   ",
    "\n\n \n",
    "Hello, world!  How's it   going?\tI'm fine; you're NOT, 'LL, they'll've.",
    "a\u00a0b \u00a0 c\u2003d\u3000e\u200bf\u2028g\u0085h\x1ci\x0bj\x0ck\rl\r\nm",
    "1234567890 12 345 6,789.01 0x7f ½ ² ⅷ ٣٤ ๕ 〇 𝟘𝟙 १२३ 一二三",
    "e\u0301 n\u0303a\u0308 \u0301x क्षि ก็ هَذَا",
    "😀😁 👩‍👩‍👧‍👦 🏳️‍🌈 1️⃣ 👍🏽 \U000e0067",
    "ÄÖÜ straße ŒUVRE Ελληνικά русский עברית العربية 日本語テキスト 한국어 𠀀𠀁 ﬁ",
    "\x00\x01\x7f\ufeff\ufffd\uffff\U0010ffff",
    "<|endoftext|><|im_start|>user\nhi<|im_end|> <|endoftext|",
    "def f(x):\n    return x**2  # ...\n\n\n\tprint('''it's''')\r\n",
    "----____====....!!!!????$$$$  ((((",
    "'s't're've'm'll'd 's 't '' ' 'S'T'RE'",
    " a  b   c    d" + " " * 70 + "e" + "\n" * 70,
    "x" * 100 + "ab" * 100 + "é" * 50,
]

# Numbers that the compiler of tokenizers' Digits knows already (Unicode 17), its regular
# expressions and our tables not yet.
UNICODE_17_NUMBERS = {*range(0x11DE0, 0x11DEA), *range(0x16FF4, 0x16FF7)}

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.text(
    "abst re'lvdm019 \n\t.,!é½\u00a0\u3000😀\u0301中", max_size=60
)


def spelling(token: bytes) -> str:
    """GPT-2's byte-to-unicode alphabet."""
    return "".join(ALPHABET[b] for b in token)


def byte_alphabet() -> list[str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(b if b in printable else next(others)) for b in range(256)]


ALPHABET = byte_alphabet()
BYTE_OF = {char: bytes([b]) for b, char in enumerate(ALPHABET)}


def tokens_of(merges) -> list[bytes]:
    tokens = [bytes([b]) for b in range(256)]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return tokens


def hugging_face(pre: str, spellings: list[str], merges: list[tuple[str, str]]):
    """The peer with this vocabulary."""
    from tokenizers import Tokenizer as Peer
    from tokenizers import decoders, models, pre_tokenizers

    vocabulary = {token: id for id, token in enumerate(spellings)}
    peer = Peer(models.BPE(vocab=vocabulary, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = pre_tokenizers.Digits(individual_digits=True)
    peer.pre_tokenizer = {
        "gpt-2": byte_level,
        "smollm": pre_tokenizers.Sequence([digits, byte_level]),
    }[pre]
    peer.decoder = decoders.ByteLevel()
    return peer


def pair(pre: str, tokens: list[bytes], merges, types=None):
    """(ours, tokenizers') with this vocabulary."""
    spellings = [spelling(token) for token in tokens]
    named = [(spellings[a], spellings[b]) for a, b in merges]
    return Tokenizer.from_bpe(pre, tokens, merges, types), hugging_face(pre, spellings, named)


def peer_learns(pre: str, text: str, n_vocab: int):
    """tokenizers' own learner; (it, our tokens, our merges)."""
    import json

    from tokenizers import pre_tokenizers, trainers

    peer = hugging_face(pre, [], [])
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    peer.train_from_iterator([text], trainer)
    model = json.loads(peer.to_str())["model"]
    spellings = sorted(model["vocab"], key=model["vocab"].get)
    tokens = [b"".join(BYTE_OF[char] for char in token) for token in spellings]
    return peer, tokens, [tuple(model["vocab"][half] for half in m) for m in model["merges"]]


# ---- without peers ----


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    """256 bytes and a few merges, some across the bytes of a character, and special tokens."""
    merges = [(0xC3, 0xA9), (0xF0, 0x9F), (ord("a"), ord("b")), (258, 258), (0x20, ord("a"))]
    tokens = tokens_of(merges)
    types = [NORMAL] * len(tokens) + [CONTROL, CONTROL, USER_DEFINED]
    tokens += [b"<|im_end|>", b"<s>", b"<tool>"]
    return Tokenizer.from_bpe("gpt-2", tokens, merges, types)


@given(st.binary(max_size=200) | any_text.map(str.encode), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_bytes_come_back(small, text, parse_special):
    ids = small.encode(text, parse_special=parse_special)
    assert small.decode_bytes(ids) == text


@given(st.lists(st.text(max_size=40).map(str.encode), max_size=8))
def test_many_documents_at_once(small, documents):
    expected = [id for document in documents for id in (7, *small.encode(document))]
    assert small.encode_documents(documents, 7).tolist() == expected


def test_documents_need_a_first_id(small):
    with pytest.raises(ValueError, match="first_id"):
        small.encode_documents([b"a"], small.n_vocab)


def test_text_that_is_not_utf8(small):
    assert small.encode(b"ab\xff\xfeab") == [258, 0xFF, 0xFE, 258]
    assert small.decode([0xC3]) == "\ufffd"
    assert small.decode(small.encode("é")) == "é"


def test_special_tokens(small):
    end, start, tool = small.n_vocab - 3, small.n_vocab - 2, small.n_vocab - 1
    assert small.encode("ab<|im_end|><s>", parse_special=True) == [258, end, start]
    assert small.encode("<s>") == list(b"<s>")
    assert small.encode("a<tool>") == [ord("a"), tool]  # user-defined: always
    assert small.decode([258, end, tool, start]) == "ab<|im_end|><tool><s>"
    assert small.decode([258, end, tool, start], render_special=False) == "ab<tool>"
    assert small.is_eog(end) and not small.is_eog(start) and not small.is_eog(tool)


def test_find(small):
    assert small.find("<|im_end|>") == small.n_vocab - 3
    assert small.find(b"<tool>") == small.n_vocab - 1
    assert small.find("ab") == 258 and small.find(b"\xff") == 255 and small.find("abab") == 259
    assert small.find("aba") is None and small.find("") is None


def test_wrong_input(small):
    for ids in ([small.n_vocab], [-1], [2**31]):
        with pytest.raises(ValueError):
            small.decode(ids)
    with pytest.raises(ValueError, match="tokens 0 and 1"):
        Tokenizer.from_bpe("gpt-2", [b"a", b"a"], [])
    with pytest.raises(ValueError, match="merge 0"):
        Tokenizer.from_bpe("gpt-2", [b"a", b"b"], [(0, 1)])
    for merge, said in (1.5, "merges must be integers"), (2**40, "merges must fit 32 bits"):
        with pytest.raises(ValueError, match=said):
            Tokenizer.from_bpe("gpt-2", [b"a", b"b", b"ab"], [(merge, 1)])
    with pytest.raises(ValueError, match="types must be integers"):
        Tokenizer.from_bpe("gpt-2", [b"a"], [], [1.5])
    with pytest.raises(ValueError, match="pre cannot hold a zero byte"):
        Tokenizer.from_bpe("gpt-2\0x", [b"a"], [])
    with pytest.raises(TypeError, match="pre must be str, not NoneType"):
        Tokenizer.from_bpe(None, [b"a"], [])


def test_learned_vocabulary():
    learn = pytest.importorskip("llm.vocabulary", reason="the trainer is not built")
    vocabulary = learn.learn_vocabulary([ENGLISH.encode(), b"", b"\xff\xfe<|endoftext|>"], 700)
    assert len(vocabulary.tokens) == 700 and len(set(vocabulary.tokens)) == 700
    tokenizer = learn.tokenizer_of(vocabulary)
    assert tokenizer.n_byte_tokens == 256
    ids = tokenizer.encode(ENGLISH)
    assert len(ids) < 0.45 * len(ENGLISH)
    assert tokenizer.decode(ids) == ENGLISH


# ---- tokenizers ----


@pytest.fixture(scope="module", params=PRES)
def both(request):
    """(ours, tokenizers') with a vocabulary that tokenizers learned; the name of its cut."""
    pytest.importorskip("tokenizers", reason="compares with tokenizers: make test-peers")
    peer, tokens, merges = peer_learns(request.param, ENGLISH + "".join(NASTY) * 3, 1200)
    return Tokenizer.from_bpe(request.param, tokens, merges), peer, request.param


@pytest.mark.peer
def test_nasty_text_as_tokenizers(both):
    ours, peer, _ = both
    for text in [*NASTY, ENGLISH[:100_000]]:
        ids = ours.encode(text)
        assert ids == peer.encode(text).ids, text[:80]
        assert ours.decode(ids) == text


@pytest.mark.peer
@given(text=any_text)
@settings(max_examples=400, deadline=None)
def test_any_text_as_tokenizers(both, text):
    ours, peer, pre = both
    if pre == "smollm":
        text = "".join(c for c in text if ord(c) not in UNICODE_17_NUMBERS)
    assert ours.encode(text) == peer.encode(text).ids


def class_probe(code_points) -> tuple[list[tuple[int, int]], str]:
    """Merges and a text that show the class of each code point: a, 1 or ! joins what follows when
    that is of the same class; white space joins none."""
    leads = [*range(0x80), *range(0xC2, 0xF5)]
    merges = [(ord(before), lead) for before in "a1!" for lead in leads]
    return merges, "".join(f"a{c}1{c}!{c}" for c in map(chr, code_points))


def interesting_code_points() -> list[int]:
    """All but the inside of the big uniform ranges and the surrogates, of those a sample."""
    dull = [(0x3500, 0x9F00), (0xAC80, 0xD780), (0xD800, 0xF8F0), (0x17080, 0x18700)]
    dull += [(0x20080, 0x2A680), (0x33500, 0xE0000), (0xE0200, 0x110000)]
    chosen = []
    for c in range(0x110000):
        if any(low <= c < high for low, high in dull) and c % 251:
            continue
        if not 0xD800 <= c < 0xE000:
            chosen.append(c)
    return chosen


@pytest.mark.peer
@pytest.mark.parametrize("pre", PRES)
def test_classes_as_tokenizers(pre):
    """Character by character, so that no class is off by one somewhere."""
    pytest.importorskip("tokenizers", reason="compares with tokenizers: make test-peers")
    chosen = [c for c in interesting_code_points() if c not in UNICODE_17_NUMBERS]
    merges, text = class_probe(chosen)
    ours, peer = pair(pre, tokens_of(merges), merges)
    assert ours.encode(text) == peer.encode(text).ids


@pytest.mark.peer
def test_missing_bytes_as_tokenizers():
    """Bytes that the vocabulary cannot spell are dropped before merging, in both."""
    pytest.importorskip("tokenizers", reason="compares with tokenizers: make test-peers")
    tokens = [b"a", b"b", b"c", b" ", b"ab", b"abc", b"abab", b"\xc3"]
    ours, peer = pair("smollm", tokens, [(0, 1), (4, 2), (4, 4)])
    assert ours.n_byte_tokens == 5
    for text in ["axb", "a9b", "xyz", "é", "aébéc", "abxab", "a" + "x" * 60 + "b", *NASTY]:
        assert ours.encode(text) == peer.encode(text).ids, text
    assert ours.encode("axbyaxb") == [6]


@pytest.mark.peer
def test_special_tokens_as_tokenizers():
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers: make test-peers")
    merges = [(ord("<"), ord("|")), (ord("a"), ord("b"))]
    special = [b"<|im_end|>", b"<|im", b"<|im_end|>\n", b"|><|", b"ab<"]
    tokens = tokens_of(merges)
    types = [NORMAL] * len(tokens) + [CONTROL] * len(special)
    ours = Tokenizer.from_bpe("gpt-2", tokens + special, merges, types)
    _, peer = pair("gpt-2", tokens, merges)
    peer.add_special_tokens(
        [tokenizers.AddedToken(s.decode(), special=True, normalized=False) for s in special]
    )
    parts = ["<|im_end|>", "<|im", "_end|>", "\n", "|><|", "ab<", "ab", "<", " ", "|", "é"]
    rng = np.random.default_rng(5)
    for _ in range(500):
        text = "".join(rng.choice(parts, rng.integers(1, 9)))
        assert ours.encode(text, parse_special=True) == peer.encode(text).ids, text


@pytest.mark.peer
@pytest.mark.parametrize("n_vocab", [400, 2000])
def test_learning_as_good_as_tokenizers(n_vocab):
    """Tokens for the same text: within 1 %, the issue's bound (measured: 0.003 %)."""
    pytest.importorskip("tokenizers", reason="compares with tokenizers: make test-peers")
    learn = pytest.importorskip("llm.vocabulary", reason="the trainer is not built")
    peer, *_ = peer_learns("gpt-2", ENGLISH, n_vocab)
    tokens, merges = learn.learn_bpe([ENGLISH.encode()], n_vocab)
    assert len(tokens) == n_vocab
    ours = Tokenizer.from_bpe("gpt-2", tokens, merges)
    assert len(ours.encode(ENGLISH)) <= 1.01 * len(peer.encode(ENGLISH).ids)


# ---- published vocabularies ----


def published(path):
    """(spellings, merges, types) of a parameter file, by the public reader."""
    gguf = pytest.importorskip("gguf", reason="reads the vocabulary with gguf: make test-peers")
    fields = gguf.GGUFReader(path).fields
    tokens, merges, types = (
        fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "merges", "token_type")
    )
    return tokens, [tuple(merge.split(" ")) for merge in merges], types


@pytest.fixture(scope="module")
def gpt2(test_data):
    """(ours, spellings, merges, types) of GPT-2."""
    spellings, merges, types = published(test_data / "ggml-vocab-gpt-2.gguf")
    id_of = {token: id for id, token in enumerate(spellings)}
    tokens = [
        token.encode() if type == CONTROL else b"".join(BYTE_OF[char] for char in token)
        for token, type in zip(spellings, types, strict=True)
    ]
    pairs = [(id_of[a], id_of[b]) for a, b in merges]
    return Tokenizer.from_bpe("gpt-2", tokens, pairs, types), tokens, spellings, merges


@pytest.mark.peer
def test_gpt2_as_tokenizers(gpt2):
    pytest.importorskip("tokenizers", reason="compares with tokenizers: make test-peers")
    ours, _, spellings, merges = gpt2
    peer = hugging_face("gpt-2", spellings, merges)
    for text in [*NASTY, ENGLISH[:100_000]]:
        assert ours.encode(text) == peer.encode(text).ids, text[:80]


@pytest.fixture(scope="module")
def gpt2_tiktoken(gpt2):
    """Built by hand: tiktoken's own loader wants the network."""
    tiktoken = pytest.importorskip("tiktoken", reason="compares with tiktoken: make test-peers")
    ours, tokens, *_ = gpt2
    end = tokens.index(b"<|endoftext|>")
    ranks = {token: id for id, token in enumerate(tokens) if id != end}
    return ours, tiktoken.Encoding(
        "gpt2",
        pat_str=GPT2_PATTERN,
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": end},
    )


@pytest.mark.peer
def test_gpt2_as_tiktoken(gpt2_tiktoken):
    ours, peer = gpt2_tiktoken
    for text in [*NASTY, ENGLISH]:
        assert ours.encode(text) == peer.encode_ordinary(text), text[:80]
        special = peer.encode(text, allowed_special="all")
        assert ours.encode(text, parse_special=True) == special, text[:80]


@pytest.mark.peer
@given(text=any_text)
@settings(max_examples=400, deadline=None)
def test_any_text_as_tiktoken(gpt2_tiktoken, text):
    ours, peer = gpt2_tiktoken
    assert ours.encode(text) == peer.encode_ordinary(text)


@pytest.mark.peer
def test_classes_as_tiktoken():
    tiktoken = pytest.importorskip("tiktoken", reason="compares with tiktoken: make test-peers")
    merges, text = class_probe(interesting_code_points())
    tokens = tokens_of(merges)
    peer = tiktoken.Encoding(
        "probe",
        pat_str=GPT2_PATTERN,
        mergeable_ranks={token: id for id, token in enumerate(tokens)},
        special_tokens={},
    )
    assert Tokenizer.from_bpe("gpt-2", tokens, merges).encode(text) == peer.encode_ordinary(text)


@pytest.mark.peer
def test_smollm2_as_tokenizers(smollm2):
    """Read from the parameter file by the engine: its vocabulary lacks 21 bytes."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers: make test-peers")
    import llm

    spellings, merges, types = published(smollm2)
    peer = hugging_face("smollm", spellings, merges)
    with llm.Model(smollm2) as model:
        ours = model.tokenizer
        assert ours.n_byte_tokens == 256 - 21
        for text in [*NASTY, ENGLISH[:100_000]]:
            assert ours.encode(text) == peer.encode(text).ids, text[:80]
        missing = [b for b in range(0x80) if ALPHABET[b] not in spellings]
        for byte in missing:
            text = f"a{chr(byte)}b the{chr(byte)}re {chr(byte)}"
            assert ours.encode(text) == peer.encode(text).ids, text
        control = [t for t, type in zip(spellings, types, strict=True) if type == CONTROL]
        peer.add_special_tokens(
            [tokenizers.AddedToken(t, special=True, normalized=False) for t in control]
        )
        for text in NASTY:
            assert ours.encode(text, parse_special=True) == peer.encode(text).ids, text[:80]
        assert (ours.bos, ours.eos, ours.add_bos) == (1, 2, False)
        assert ours.is_eog(2) and ours.is_eog(0) and not ours.is_eog(1)


def test_all_tokens_at_once():
    tokens = [bytes([b]) for b in range(256)] + [b"ab", b"\xe4\xbd\xa0" * 100, b"ab" * 9]
    tokenizer = Tokenizer.from_bpe("gpt-2", tokens, None, [1] * 258 + [3])
    assert tokenizer.tokens() == tokens
