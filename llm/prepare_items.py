"""One item of a preparation, a deterministic group of input, from files to its two shards. Layer 7.

Twice over the input: scan() hashes every document, so that duplicates can be decided in the order
of the items; encode() writes what stays. Documents of a small item wait in memory between the two,
a large item is read again: memory is bounded by KEEP_BYTES and a part of a text, not by the item.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .atomic import atomic_file
from .data import blocks_of
from .documents import NotText, Source, read_documents
from .duplicates import document_key, minhash_keys
from .errors import CorpusError
from .shards import shard_writer
from .tokenizer import Tokenizer

KEEP_BYTES = 64 << 20  # documents that wait in memory
BATCH_BYTES = 1 << 22  # of text for one call of the tokenizer
MOST_LINES = 20  # of what an item skips


@dataclass(frozen=True)
class Rules:
    """What decides an item's shards beside its input."""

    field: str | None
    near_duplicates: bool
    skip_damaged: bool
    in_blocks: bool  # few documents: their blocks are held out, not whole ones
    held_below: int  # a key below it is held out
    n_vocab: int
    eot: int


@dataclass
class Skipped:
    """What was left out: how many of each kind, and the first few lines."""

    counts: dict[str, int] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def add(self, kind: str, line: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if len(self.lines) < MOST_LINES:
            self.lines.append(line)


@dataclass
class Scan:
    keys: np.ndarray  # (n) uint64, of the documents in order
    bands: np.ndarray | None  # minhash_keys
    n_bytes: int
    documents: list[bytes] | None  # None: too many to keep
    bad: set[Source]  # sources that gave nothing
    skipped: Skipped


def has_text(document: bytes) -> bool:
    return bool(document) and not document.isspace()


def scan(item: list[Source], rules: Rules) -> Scan:
    keys, bands, documents, bad, skipped = [], [], [], set(), Skipped()
    n_bytes = n_kept = 0
    for source in item:
        before, wait = len(keys), []
        try:
            for document in read_documents(source, rules.field, _record_skipper(skipped)):
                if not has_text(document):
                    continue
                keys.append(document_key(document))
                n_bytes += len(document)
                if rules.near_duplicates:
                    bands.append(minhash_keys([document]))
                if n_kept <= KEEP_BYTES:
                    wait.append(document)
                    n_kept += len(document)
        except NotText as error:
            skipped.add("files that are not text", str(error))
            bad.add(source)
        except CorpusError as error:
            if not rules.skip_damaged:
                raise with_hint(error) from error
            skipped.add("damaged files", str(error))
            bad.add(source)
        if source in bad:
            del keys[before:], bands[before:]
        else:
            documents += wait
    return Scan(
        np.array(keys, np.uint64),
        np.concatenate(bands) if bands else None,
        n_bytes,
        documents if n_kept <= KEEP_BYTES else None,
        bad,
        skipped,
    )


def with_hint(error: CorpusError) -> CorpusError:
    return CorpusError(f"{error} (--skip-damaged leaves such files out)")


def _record_skipper(skipped: Skipped):
    return lambda line: skipped.add("records without text", line)


def read_again(item: list[Source], bad: set[Source], rules: Rules) -> Iterator[bytes]:
    for source in item:
        if source not in bad:
            for document in read_documents(source, rules.field, lambda line: None):
                if has_text(document):
                    yield document


def split(document: bytes, key: int, rules) -> tuple[bytes, list[bytes]]:
    """(what to train on, what is held out) of a document; the rule of data.hold_out. rules: has
    in_blocks and held_below."""
    if not rules.in_blocks:
        return (b"", [document]) if key < rules.held_below else (document, [])
    train, held = [], []
    for block in blocks_of(document):
        (held if document_key(block) < rules.held_below else train).append(block)
    return b"".join(train), held


class Side:
    """The shard of an item's training or held-out documents; no tokens, no file."""

    def __init__(self, path: Path, rules: Rules, tokenizer: Tokenizer, stack: ExitStack):
        self._path, self._rules, self._tokenizer, self._stack = path, rules, tokenizer, stack
        self._batch, self._n_batch, self._writer = [], 0, None
        self.record: dict = {}
        self.n_documents = self.n_bytes = 0
        self.used = np.zeros(rules.n_vocab, bool)  # which ids occur

    def add(self, document: bytes) -> None:
        self._batch.append(document)
        self._n_batch += len(document)
        if self._n_batch >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self._batch:
            return
        ids = self._tokenizer.encode_documents(self._batch, self._rules.eot)
        if self._writer is None:
            sizes = (self._rules.n_vocab, self._rules.eot)
            shard = shard_writer(self._path, *sizes, self.record)
            self._writer = self._stack.enter_context(shard)
        self._writer.write(ids)
        self.used |= np.bincount(ids, minlength=self._rules.n_vocab) > 0
        self.n_documents += len(self._batch)
        self.n_bytes += self._n_batch
        self._batch, self._n_batch = [], 0

    def entry(self) -> dict | None:
        """Of the manifest, after the shard is closed."""
        counts = {"n_documents": self.n_documents, "n_bytes": self.n_bytes}
        return {**self.record, **counts} if self.record else None


def encode(
    folder: Path, number: int, item: list[Source], scan: Scan, keep: np.ndarray, rules: Rules, tok
) -> dict:
    """Writes the shards of item `number`; returns what the manifest will tell of it."""
    documents = scan.documents
    if documents is None:
        documents = read_again(item, scan.bad, rules)
    with ExitStack() as stack:
        train = Side(folder / f"train-{number:06}.bin", rules, tok, stack)
        held = Side(folder / f"held-out-{number:06}.bin", rules, tok, stack)
        for document, key, stays in zip(documents, scan.keys.tolist(), keep.tolist(), strict=True):
            if stays:
                text, held_out = split(document, key, rules)
                if text:
                    train.add(text)
                for part in held_out:
                    held.add(part)
        train.flush()
        held.flush()
    return {
        "train": train.entry(),
        "held_out": held.entry(),
        "n_documents": len(scan.keys),
        "n_bytes": scan.n_bytes,
        "skipped": scan.skipped.counts,
        "skipped_lines": scan.skipped.lines,
        "used": train.used | held.used,
    }


# ---- what is left of a finished item until the manifest is written ----


def done_path(folder: Path, number: int) -> Path:
    return folder / f"item-{number:06}.npz"


def save_done(path: Path, result: dict, scan: Scan) -> None:
    """The item's last file: where it is, the shards are whole."""
    state = {key: value for key, value in result.items() if key != "used"}
    arrays = {"keys": scan.keys, "used": result["used"]}
    if scan.bands is not None:
        arrays["bands"] = scan.bands
    text = np.frombuffer(json.dumps(state).encode("utf-8"), np.uint8)
    with atomic_file(path) as file:
        np.savez_compressed(file, state=text, **arrays)


def load_done(path: Path) -> dict | None:
    """The result, or None where the item is not finished."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            result = json.loads(file["state"].tobytes())
            result["used"] = file["used"]
    except Exception:  # whatever damage reads like: the item is made again
        return None
    shards = [result["train"], result["held_out"]]
    if not all(os.path.exists(path.parent / shard["file"]) for shard in shards if shard):
        return None
    return result


def load_keys(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    with np.load(path, allow_pickle=False) as file:
        return file["keys"], file["bands"] if "bands" in file.files else None
