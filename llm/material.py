"""What a run learns from: a text in memory or a shard set, as tokens and a vocabulary. Layer 7."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .corpus import Corpus, read_corpus
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
    vocabulary: Vocabulary | None  # None: that of a file that the run goes on from
    eot: int  # stands before each document
    tokens: np.ndarray | TokenStream
    held_tokens: np.ndarray | TokenStream
    tokenizer: Tokenizer

    @property
    def first_words(self) -> bytes:
        ids = [id for id in self.tokens[:FIRST_WORDS].tolist() if id != self.eot]
        return self.tokenizer.decode_bytes(ids)[:FIRST_WORDS]


def gather(settings: Settings, vocabulary: Vocabulary | None = None) -> Material:
    """Reads --data or --text. vocabulary: of a checkpoint; None: the shards', or a new one."""
    if settings.data is not None:
        shards = ShardSet(settings.data)
        vocabulary = vocabulary or load_vocabulary(shards.folder)
        return from_shards(shards, tokenizer_of(vocabulary), vocabulary)
    corpus = read_corpus(settings.text)
    training, held = hold_out(corpus.documents, settings.holdout, min_held_bytes(settings))
    vocabulary = vocabulary or learn_vocabulary(training, settings.n_vocab)
    tokenizer, eot = tokenizer_of(vocabulary), vocabulary.eos
    streams = (token_stream(tokenizer, part, eot) for part in (training, held))
    return from_corpus(corpus, tokenizer, eot, *streams, vocabulary)


def from_corpus(
    corpus: Corpus, tokenizer: Tokenizer, eot: int, tokens, held_tokens, vocabulary=None
) -> Material:
    return Material(
        name=corpus.name,
        n_bytes=corpus.n_bytes,
        n_documents=len(corpus.documents),
        sha256=corpus.sha256,
        skipped=corpus.skipped,
        vocabulary=vocabulary,
        eot=eot,
        tokens=tokens,
        held_tokens=held_tokens,
        tokenizer=tokenizer,
    )


def from_shards(shards: ShardSet, tokenizer: Tokenizer, vocabulary=None) -> Material:
    """tokenizer: the model's; CorpusError where the shards' is another."""
    if fingerprint(tokenizer) != shards.content["tokenizer"]["fingerprint"]:
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
        vocabulary=vocabulary,
        eot=shards.eot,
        tokens=shards.train,
        held_tokens=shards.held_out,
        tokenizer=tokenizer,
    )


def min_held_bytes(settings: Settings) -> int:
    """About a window of tokens."""
    return 4 * settings.n_ctx
