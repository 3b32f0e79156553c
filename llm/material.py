"""What a run learns from: a text in memory or a shard set, as tokens and a vocabulary. Layer 6."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .corpus import read_corpus
from .data import hold_out, token_stream
from .errors import CorpusError
from .settings import Settings
from .shards import ShardSet, TokenStream
from .tokenizer import Tokenizer
from .vocabulary import (
    Vocabulary,
    fingerprint,
    learn_vocabulary,
    load_vocabulary,
    tokenizer_of,
)

FIRST_WORDS = 1000  # bytes of the text that a prompt may come from


@dataclass
class Material:
    """tokens and held_tokens are arrays or TokenStreams: they have len() and slices of int32."""

    name: str
    n_bytes: int
    n_documents: int
    sha256: str  # of the text, or of the shard set's manifest
    skipped: list[str]
    vocabulary: Vocabulary
    eot: int  # stands before each document
    tokens: np.ndarray | TokenStream
    held_tokens: np.ndarray | TokenStream

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return tokenizer_of(self.vocabulary)

    @property
    def first_words(self) -> bytes:
        ids = [id for id in self.tokens[:FIRST_WORDS].tolist() if id != self.eot]
        return self.tokenizer.decode_bytes(ids)[:FIRST_WORDS]


def gather(settings: Settings, vocabulary: Vocabulary | None = None) -> Material:
    """Reads --data or --text. vocabulary: of a checkpoint; None: the shards', or a new one."""
    if settings.data is not None:
        return from_shards(ShardSet(settings.data), vocabulary)
    corpus = read_corpus(settings.text)
    training, held = hold_out(corpus.documents, settings.holdout, min_held_bytes(settings))
    vocabulary = vocabulary or learn_vocabulary(training, settings.n_vocab)
    tokenizer, eot = tokenizer_of(vocabulary), vocabulary.eos
    return Material(
        name=corpus.name,
        n_bytes=corpus.n_bytes,
        n_documents=len(corpus.documents),
        sha256=corpus.sha256,
        skipped=corpus.skipped,
        vocabulary=vocabulary,
        eot=eot,
        tokens=token_stream(tokenizer, training, eot),
        held_tokens=token_stream(tokenizer, held, eot),
    )


def from_shards(shards: ShardSet, vocabulary: Vocabulary | None) -> Material:
    """vocabulary: what the tokens must mean; CorpusError where the shards' is another."""
    own = vocabulary or load_vocabulary(shards.folder)
    if fingerprint(tokenizer_of(own)) != shards.content["tokenizer"]["fingerprint"]:
        raise CorpusError(
            f"{shards.folder}: the tokens are of another tokenizer than the model's: prepare the "
            "shards with python -m llm data --tokenizer FILE"
        )
    return Material(
        name=shards.name,
        n_bytes=shards.n_bytes,
        n_documents=shards.n_documents,
        sha256=shards.sha256,
        skipped=[],
        vocabulary=own,
        eot=shards.eot,
        tokens=shards.train,
        held_tokens=shards.held_out,
    )


def min_held_bytes(settings: Settings) -> int:
    """About a window of tokens."""
    return 4 * settings.n_ctx
