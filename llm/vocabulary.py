"""The vocabulary that a run learns: a byte-level BPE, as tokenizer and as arrays. Layer 6.

Ids: the 256 bytes, the merged tokens in the order they were learned, and last <|endoftext|>, the
one control token: it stands before each document. Windows of training start anywhere in the text,
so a prompt needs no token before it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np

from llm._train import ffi, lib

from .atomic import atomic_file
from .binding import raise_error
from .corpus import SEPARATOR
from .engine import Model
from .errors import CorpusError, FormatError, UnsupportedError
from .parameter_file import Vocabulary, write_parameter_file
from .quantize import kept_entries
from .tokenizer import CONTROL, NORMAL, Tokenizer

PRE = "gpt-2"
MOST_BYTES = 1 << 25  # of distinct words: bounds the memory of learning to about 1.3 GB


def learn_vocabulary(documents: list[bytes], n_vocab: int) -> Vocabulary:
    """At most n_vocab tokens: a short text has fewer pairs to merge."""
    tokens, merges = learn_bpe(documents, n_vocab - 1)
    return _vocabulary([*tokens, SEPARATOR], merges)


def learn_bpe(documents: list[bytes], n_vocab: int) -> tuple[list[bytes], np.ndarray]:
    """(the bytes of each id, merges (n, 2)): 256 bytes first, then what each merge makes."""
    offsets = np.zeros(len(documents) + 1, np.uint64)
    np.cumsum([len(document) for document in documents], out=offsets[1:])
    text = ffi.from_buffer("uint8_t[]", b"".join(documents))
    merges = np.empty((n_vocab - 256, 2), np.int32)
    n_merges, err = ffi.new("int64_t *"), ffi.new("llm_error *")
    spans = ffi.cast("uint64_t *", offsets.ctypes.data)
    room = ffi.cast("int32_t *", merges.ctypes.data)
    done = lib.llm_bpe_train(
        PRE.encode(), text, spans, len(documents), n_vocab, MOST_BYTES, room, n_merges, err
    )
    if done != lib.LLM_OK:
        raise_error(err)
    merges = merges[: n_merges[0]].copy()
    return _merged(merges), merges


def _merged(merges: np.ndarray) -> list[bytes]:
    tokens = [bytes([b]) for b in range(256)]
    for left, right in merges.tolist():
        tokens.append(tokens[left] + tokens[right])
    return tokens


def _vocabulary(tokens: list[bytes], merges: np.ndarray) -> Vocabulary:
    eot = len(tokens) - 1
    return Vocabulary(tokens=tokens, merges=merges, pre=PRE, bos=eot, eos=eot)


def control_ids(vocabulary: Vocabulary) -> list[int]:
    ends = {vocabulary.bos, vocabulary.eos} - {None}
    return sorted(vocabulary.control | ends)


def tokenizer_of(vocabulary: Vocabulary) -> Tokenizer:
    types = np.full(len(vocabulary.tokens), NORMAL, np.int32)
    types[control_ids(vocabulary)] = CONTROL
    return Tokenizer.from_bpe(vocabulary.pre, vocabulary.tokens, vocabulary.merges, types)


def token_bytes(vocabulary: Vocabulary) -> np.ndarray:
    """Bytes of text that each id stands for; none for control tokens."""
    lengths = np.array([len(token) for token in vocabulary.tokens])
    lengths[control_ids(vocabulary)] = 0
    return lengths


def vocabulary_to_arrays(vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    return {
        "token_text": np.frombuffer(b"".join(vocabulary.tokens), np.uint8),
        "token_lengths": np.array([len(token) for token in vocabulary.tokens], np.int64),
        "merges": np.asarray(vocabulary.merges, np.int32),
    }


def vocabulary_from_arrays(arrays: dict[str, np.ndarray]) -> Vocabulary:
    """Of a vocabulary that was learned; TypeError where the arrays do not fit each other."""
    merges, tokens = np.asarray(arrays["merges"], np.int32), tokens_from_arrays(arrays)
    try:
        fits = tokens == [*_merged(merges), SEPARATOR]
    except (ValueError, TypeError, IndexError):
        fits = False
    if not fits:
        raise TypeError("token_text, token_lengths and merges do not fit each other")
    return _vocabulary(tokens, merges)


def tokens_from_arrays(arrays) -> list[bytes]:
    text, ends = arrays["token_text"].tobytes(), np.cumsum(arrays["token_lengths"]).tolist()
    return [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]


# ---- tokenizers of shard sets ----

VOCABULARY = "vocabulary.npz"  # beside the tokenizer: what writing it into a model's file takes


def save_vocabulary(path: Path, vocabulary: Vocabulary) -> None:
    """As a parameter file without tensors, and as arrays beside it."""
    rest = {
        "pre": vocabulary.pre,
        "bos": vocabulary.bos,
        "eos": vocabulary.eos,
        "add_bos": vocabulary.add_bos,
        "control": sorted(vocabulary.control),
    }
    text = np.frombuffer(json.dumps(rest).encode(), np.uint8)
    with atomic_file(path.with_name(VOCABULARY)) as file:
        np.savez_compressed(file, rest=text, **vocabulary_to_arrays(vocabulary))
    write_parameter_file(path, vocabulary.entries(), [])


def load_vocabulary(folder: Path) -> Vocabulary:
    path = folder / VOCABULARY
    if not path.exists():
        raise CorpusError(
            f"{folder}: its tokenizer is no byte-level BPE with merges: only a model that has it "
            "already (train --init) can train on these shards"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            tokens, merges = tokens_from_arrays(file), file["merges"]
            rest = json.loads(file["rest"].tobytes())
        rest["control"] = frozenset(rest["control"])
        return Vocabulary(tokens=tokens, merges=merges, **rest)
    except Exception as error:  # whatever damage reads like
        raise FormatError(f"{path}: damaged ({type(error).__name__})") from error


def save_tokenizer(path: Path, source: str) -> None:
    """The tokenizer of a parameter file, whatever its kind, as a file of its own."""
    Tokenizer.open(source)  # what is wrong with the file is said before anything is written
    try:
        model = Model(source)
    except (FormatError, UnsupportedError):  # a vocabulary alone: taken as it is
        with atomic_file(path) as file, open(source, "rb") as whole:
            shutil.copyfileobj(whole, file)
        return
    with model:
        vocabulary = vocabulary_of_model(model)
        if vocabulary is not None:
            save_vocabulary(path, vocabulary)
        else:
            entries = [e for e in kept_entries(model) if e.key.startswith("tokenizer.")]
            write_parameter_file(path, entries, [])


def vocabulary_of_model(model: Model) -> Vocabulary | None:
    """None for what is no byte-level BPE of merges, normal and control tokens."""
    keys, tokenizer = model.metadata, model.tokenizer
    kinds = [tokenizer.token_type(id) for id in range(tokenizer.n_vocab)]
    if tokenizer.model != "gpt2" or set(kinds) > {NORMAL, CONTROL}:
        return None
    ids = {text: id for id, text in enumerate(keys["tokenizer.ggml.tokens"])}
    pairs = [merge.split(" ") for merge in keys.get("tokenizer.ggml.merges", [])]
    vocabulary = Vocabulary(
        tokens=tokenizer.tokens(),
        merges=np.array([(ids[a], ids[b]) for a, b in pairs], np.int32).reshape(-1, 2),
        pre=keys["tokenizer.ggml.pre"],
        bos=tokenizer.bos,
        eos=tokenizer.eos,
        add_bos=tokenizer.add_bos,
        control=frozenset(id for id, kind in enumerate(kinds) if kind == CONTROL),
    )
    same = fingerprint(tokenizer_of(vocabulary)) == fingerprint(tokenizer)
    return vocabulary if same else None


PROBE = "Grüße, 你好 Привет 12345\n\tif (x != 0) return;  don't 🙂 ".encode()


def fingerprint(tokenizer: Tokenizer) -> str:
    """SHA-256 of what tells two tokenizers apart: each id's bytes and type, and a text's ids."""
    digest = hashlib.sha256()
    for id, text in enumerate(tokenizer.tokens()):
        digest.update(b"%d %d " % (tokenizer.token_type(id), len(text)) + text)
    digest.update(tokenizer.encode_array(PROBE).tobytes())
    return digest.hexdigest()
