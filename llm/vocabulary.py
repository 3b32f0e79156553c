"""The vocabulary that a run learns: a byte-level BPE, as tokenizer and as arrays. Layer 3.

Ids: the 256 bytes, the merged tokens in the order they were learned, and last <|endoftext|>, the
one control token: it stands before each document. Windows of training start anywhere in the text,
so a prompt needs no token before it.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np

from llm._train import ffi, lib

from .atomic import atomic_file
from .binding import raise_error
from .corpus import SEPARATOR
from .errors import FormatError, UnsupportedError
from .parameter_file import Vocabulary, write_parameter_file
from .tokenizer import Tokenizer

PRE = "gpt-2"
CONTROL, NORMAL = 3, 1  # llm_token_type
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
    tokens = [bytes([b]) for b in range(256)]
    for left, right in merges.tolist():
        tokens.append(tokens[left] + tokens[right])
    return tokens, merges


def _vocabulary(tokens: list[bytes], merges: np.ndarray) -> Vocabulary:
    eot = len(tokens) - 1
    return Vocabulary(tokens=tokens, merges=merges, pre=PRE, bos=eot, eos=eot)


def tokenizer_of(vocabulary: Vocabulary) -> Tokenizer:
    types = [NORMAL] * len(vocabulary.tokens)
    types[vocabulary.eos] = CONTROL
    return Tokenizer.from_bpe(vocabulary.pre, vocabulary.tokens, vocabulary.merges, types)


def token_bytes(vocabulary: Vocabulary) -> np.ndarray:
    """Bytes of text that each id stands for; none for the control token."""
    lengths = np.array([len(token) for token in vocabulary.tokens])
    lengths[vocabulary.eos] = 0
    return lengths


def vocabulary_to_arrays(vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    return {
        "token_text": np.frombuffer(b"".join(vocabulary.tokens), np.uint8),
        "token_lengths": np.array([len(token) for token in vocabulary.tokens], np.int64),
        "merges": np.asarray(vocabulary.merges, np.int32),
    }


def vocabulary_from_arrays(arrays: dict[str, np.ndarray]) -> Vocabulary:
    text, ends = arrays["token_text"].tobytes(), np.cumsum(arrays["token_lengths"]).tolist()
    tokens = [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    return _vocabulary(tokens, arrays["merges"])


# ---- tokenizers of shard sets ----


def save_tokenizer(path: Path, source: str) -> None:
    """The tokenizer of a parameter file, whatever its kind, as a file of its own."""
    from .engine import Model
    from .quantize import kept_entries

    Tokenizer.open(source)  # what is wrong with the file is said before anything is written
    try:
        with Model(source) as model:
            entries = [e for e in kept_entries(model) if e.key.startswith("tokenizer.")]
    except (FormatError, UnsupportedError):  # a vocabulary alone: taken as it is
        with atomic_file(path) as file, open(source, "rb") as whole:
            shutil.copyfileobj(whole, file)
        return
    write_parameter_file(path, entries, [])


PROBE = "Grüße, 你好 Привет 12345\n\tif (x != 0) return;  don't 🙂 ".encode()


def fingerprint(tokenizer: Tokenizer) -> str:
    """SHA-256 of what tells two tokenizers apart: each id's bytes and type, and a text's ids."""
    digest = hashlib.sha256()
    for id in range(tokenizer.n_vocab):
        text = tokenizer.decode_bytes([id], whole=False)
        digest.update(b"%d %d " % (tokenizer.token_type(id), len(text)) + text)
    digest.update(tokenizer.encode_array(PROBE).tobytes())
    return digest.hexdigest()
