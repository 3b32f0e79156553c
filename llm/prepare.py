"""From any pile of text to a shard set, in steps that a kill cannot undo. Layer 6.

The plan (files, items, what is held out) is made first and kept; each finished item leaves its
shards and a record; the manifest comes last, and with it the folder is a shard set. Started again
with the same wishes, the work goes on where it was. The shards depend on the input and the wishes,
on neither workers nor restarts: workers hash and encode items in any order, and this process
decides in the order of items which documents are duplicates.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .atomic import atomic_file
from .data import HELD_OUT, MIN_DOCUMENTS, blocks_of, permute
from .documents import NotText, Source, find_files, format_of, read_documents
from .duplicates import Duplicates, document_key
from .errors import CorpusError
from .prepare_items import (
    Rules,
    Skipped,
    done_path,
    encode,
    has_text,
    load_done,
    load_keys,
    save_done,
    scan,
    split,
    with_hint,
)
from .shards import MANIFEST, TOKENIZER, ShardSet, file_hash, write_manifest
from .tokenizer import Tokenizer
from .vocabulary import fingerprint, learn_vocabulary, save_tokenizer, save_vocabulary

PLAN, STDIN = "plan.json", "stdin"
N_ITEMS = 256  # of a corpus in the middle
ITEM_BYTES = (16 << 20, 4 << 30)  # smallest and largest by themselves
PACKED = 4  # text bytes for a byte of a compressed or Parquet file, roughly
MIN_HELD_BYTES = 1024
SAMPLE_ITEMS = 256  # the most that a tokenizer's sample is spread over
MAGIC = {b"\x1f\x8b": ".gz", b"\xfd7zXZ": ".xz", b"\x28\xb5\x2f\xfd": ".zst", b"PAR1": ".parquet"}


@dataclass(frozen=True)
class Wishes:
    """What the shards are to be; a folder goes on with the same ones only."""

    paths: tuple[str, ...]  # absolute; "-" is standard input
    field: str | None = None
    tokenizer: str | None = None  # a parameter file; None: learn one
    n_vocab: int = 4096
    sample_bytes: int = 64 << 20  # of text to learn it from
    held_out: float = HELD_OUT
    near_duplicates: bool = False
    index_bytes: int = 256 << 20  # of each Bloom filter
    item_bytes: int | None = None  # of text in a shard, about
    skip_damaged: bool = False

    def __post_init__(self):
        for name, low, high in (
            ("n_vocab", 257, 1 << 16),
            ("sample_bytes", 1, 1 << 30),
            ("held_out", 1e-9, 0.5),
            ("index_bytes", 1 << 10, 1 << 44),
            ("item_bytes", 1, 1 << 40),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} is {value}, expected {low} to {high}")


def prepare(wishes: Wishes, folder: Path, workers: int, report) -> ShardSet:
    """Makes or goes on with the shard set in `folder`. CorpusError for input that cannot be used,
    OSError with the file's name when the disk is full: what is finished stays."""
    with locked(folder) as lock:
        if (folder / MANIFEST).exists():
            done = ShardSet(folder)
            check_same(folder, done.content["wishes"], wishes)
            clean(folder)
            report.say(f"{folder} is finished already")
            return done
        for leftover in folder.glob("*.tmp"):  # of a process that was killed while it wrote
            leftover.unlink()
        plan = load_plan(folder, wishes, report) or make_plan(folder, wishes, report)
        tokenizer = find_tokenizer(folder, wishes, plan, report)
        order = run_items(folder, wishes, plan, tokenizer, workers, report, lock)
        return finish(folder, wishes, plan, order, tokenizer)


# ---- the plan ----


@dataclass
class Plan:
    files: list[tuple[str, int, int]]  # path, bytes, modification time in ns
    items: list[list[Source]]
    in_blocks: bool
    held_below: int
    skipped: Skipped

    @property
    def n_bytes(self) -> int:
        return sum(size for _, size, _ in self.files)


def make_plan(folder: Path, wishes: Wishes, report) -> Plan:
    skipped = Skipped()
    paths = [spool_stdin(folder, wishes.field) if p == "-" else p for p in wishes.paths]

    def skip(line: str) -> None:
        skipped.add("files of other kinds", line)

    files = [(path, *stat_of(path)) for path in find_files(paths, skip)]
    items = group(files, wishes.item_bytes)
    report.say(f"input      {len(files):,} files, {sum(f[1] for f in files):,} bytes")
    in_blocks, held_below = choose_held_out(items, wishes, skipped)
    plan = Plan(files, items, in_blocks, held_below, skipped)
    content = {**vars(plan), "skipped": vars(skipped), "wishes": asdict(wishes)}
    with atomic_file(folder / PLAN) as file:
        file.write(json.dumps(content).encode("utf-8", "surrogateescape"))
    return plan


def load_plan(folder: Path, wishes: Wishes, report) -> Plan | None:
    path = folder / PLAN
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_bytes().decode("utf-8", "surrogateescape"))
        kept = content.pop("wishes")
        skipped = Skipped(**content["skipped"])
        items = [[Source(*source) for source in item] for item in content["items"]]
        files = [tuple(file) for file in content["files"]]
        plan = Plan(files, items, content["in_blocks"], content["held_below"], skipped)
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"{path}: damaged ({error}); begin again in another folder") from error
    check_same(folder, kept, wishes)
    for name, *known in plan.files:
        check_unchanged(name, known)
    report.say(f"going on   in {folder}: {len(plan.files):,} files, {plan.n_bytes:,} bytes")
    return plan


FREE = {"skip_damaged"}  # may change when work goes on


def check_same(folder: Path, kept: dict, wishes: Wishes) -> None:
    asked = json.loads(json.dumps(asdict(wishes)))
    for name, value in asked.items():
        if name not in FREE and kept.get(name) != value:
            raise CorpusError(
                f"{folder}: begun with {name} {kept.get(name)}, asked for {value}: "
                "choose another folder"
            )


def stat_of(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise CorpusError(f"{path}: cannot read: {error.strerror}") from error
    return found.st_size, found.st_mtime_ns


def check_unchanged(path: str, known) -> None:
    if stat_of(path) != tuple(known):
        raise CorpusError(f"{path}: has changed since the preparation began")


def spool_stdin(folder: Path, field: str | None) -> str:
    """Standard input as a file of the folder: it is read twice, and again after a kill."""
    first = sys.stdin.buffer.read(8)
    suffix = next((s for magic, s in MAGIC.items() if first.startswith(magic)), "")
    kind = "" if suffix == ".parquet" else ".jsonl" if field else ".txt"
    path = folder / f"{STDIN}{kind}{suffix}"
    with atomic_file(path) as file:
        file.write(first)
        shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
    return str(path)


def group(files: list[tuple[str, int, int]], wanted: int | None) -> list[list[Source]]:
    """Items of about `wanted` bytes of text: files that follow each other, or parts of one."""

    kinds = [format_of(path) for path, *_ in files]
    packed = [bool(compression) or kind == "parquet" for kind, compression in kinds]
    weights = [size * (PACKED if p else 1) for (_, size, _), p in zip(files, packed, strict=True)]
    if wanted is None:
        wanted = min(max(sum(weights) // N_ITEMS, ITEM_BYTES[0]), ITEM_BYTES[1])
    items, item, n_bytes = [], [], 0
    for (path, size, _), is_packed, weight in zip(files, packed, weights, strict=True):
        whole = is_packed or size < 2 * wanted or not os.path.isfile(path)
        for source in [Source(path)] if whole else parts_of(path, size, wanted):
            item.append(source)
            n_bytes += weight if whole else source.end - source.start
            if n_bytes >= wanted:
                items.append(item)
                item, n_bytes = [], 0
    return items + [item] if item else items


def parts_of(path: str, size: int, wanted: int) -> list[Source]:
    """Parts of about `wanted` bytes that begin at a line."""
    parts, start = [], 0
    with open(path, "rb") as file:
        while start < size:
            file.seek(min(start + wanted, size))
            file.readline()
            end = min(file.tell(), size)
            parts.append(Source(path, start, end))
            start = end
    return parts


def choose_held_out(items, wishes: Wishes, skipped: Skipped) -> tuple[bool, int]:
    """(in blocks, the key below which something is held out). Reads MIN_DOCUMENTS at most; of
    fewer, enough blocks are held out to validate on: data.hold_out has the same rule."""
    first = islice(readable(items, wishes, skipped), MIN_DOCUMENTS)
    if sum(1 for _ in first) == MIN_DOCUMENTS:
        return False, int(wishes.held_out * 2**64)
    blocks = {}
    for document in readable(items, wishes, skipped):
        for block in blocks_of(document):
            blocks[document_key(block)] = len(block)
    if not blocks:
        first = f": {skipped.lines[0]}" if skipped.lines else ""
        raise CorpusError(f"{', '.join(wishes.paths)}: no text to train on{first}")
    held_below, n_held, total = int(wishes.held_out * 2**64), 0, sum(blocks.values())
    for key in sorted(blocks):
        if key >= held_below and n_held >= MIN_HELD_BYTES:
            break
        n_held += blocks[key]
        held_below = max(held_below, key + 1)
    if 2 * n_held > total:
        raise CorpusError(
            f"{', '.join(wishes.paths)}: {total:,} bytes with {len(blocks)} places to cut, too few "
            "to hold some out; python -m llm train --text learns from so short a text"
        )
    return True, held_below


def readable(items, wishes: Wishes, skipped: Skipped) -> Iterator[bytes]:
    """Documents for a first look: what cannot be used is told of by the item that has it."""
    for source in (source for item in items for source in item):
        try:
            for document in read_documents(source, wishes.field, lambda line: None):
                if has_text(document):
                    yield document
        except NotText as error:
            skipped.lines or skipped.lines.append(str(error))
        except CorpusError as error:
            if not wishes.skip_damaged:
                raise with_hint(error) from error


# ---- the tokenizer ----


def find_tokenizer(folder: Path, wishes: Wishes, plan: Plan, report) -> Tokenizer:
    path = folder / TOKENIZER
    if not path.exists():
        if wishes.tokenizer is not None:
            save_tokenizer(path, wishes.tokenizer)
        else:
            documents = sample(wishes, plan)
            report.say(f"tokenizer  learning from {sum(map(len, documents)):,} bytes")
            vocabulary = learn_vocabulary(documents, wishes.n_vocab)
            save_vocabulary(path, vocabulary)
    return Tokenizer.open(path)


def sample(wishes: Wishes, plan: Plan) -> list[bytes]:
    """Training documents from items all over the corpus, as many bytes from each."""
    n_items = len(plan.items)
    chosen = sorted(permute(i, n_items, 1) for i in range(min(n_items, SAMPLE_ITEMS)))
    documents, left = [], wishes.sample_bytes
    for turn, number in enumerate(chosen):
        share = left // (len(chosen) - turn)
        for document in readable([plan.items[number]], wishes, Skipped()):
            document = split(document, document_key(document), plan)[0][:share]
            documents.append(document)
            share -= len(document)
            left -= len(document)
            if share <= 0:
                break
    return documents


def boundary(tokenizer: Tokenizer) -> int:
    """The id before each document: BOS where the file asks for it, else the end of a text."""
    found = tokenizer.bos if tokenizer.add_bos else tokenizer.find(b"<|endoftext|>")
    if found is None:
        found = tokenizer.eos if tokenizer.eos is not None else tokenizer.bos
    if found is None:
        raise CorpusError("the tokenizer has no token to stand between documents")
    return found


# ---- the items ----


def run_items(folder, wishes: Wishes, plan: Plan, tokenizer, workers: int, report, lock) -> Order:
    """All items, finished."""
    rules = Rules(
        field=wishes.field,
        near_duplicates=wishes.near_duplicates,
        skip_damaged=wishes.skip_damaged,
        in_blocks=plan.in_blocks,
        held_below=plan.held_below,
        n_vocab=tokenizer.n_vocab,
        eot=boundary(tokenizer),
    )
    known = {path: (size, time) for path, size, time in plan.files}
    order = Order(folder, plan, wishes, tokenizer.n_vocab, report)

    def work(number: int, decide: Callable) -> dict:
        item = plan.items[number]
        found = scan(item, rules)
        try:
            result = encode(folder, number, item, found, decide(found), rules, tokenizer)
        except ValueError:
            for source in item:
                check_unchanged(source.path, known[source.path])
            raise
        for source in item:
            check_unchanged(source.path, known[source.path])
        save_done(done_path(folder, number), result, found)
        return result

    with pool(work, workers, lock) as connections:
        order.run(connections)
    return order


class Order:
    """Hands items out in order, decides duplicates in order, collects what is done."""

    def __init__(self, folder: Path, plan: Plan, wishes: Wishes, n_vocab: int, report):
        # A bit for every 4 bytes of input is plenty, and small sets touch little memory.
        index_bytes = min(wishes.index_bytes, max(1 << 16, plan.n_bytes // 32))
        self.duplicates = Duplicates(index_bytes, wishes.near_duplicates)
        self.results: list[dict] = [{} for _ in plan.items]
        self.used = np.zeros(n_vocab, bool)  # which ids occur
        self._folder, self._report = folder, report
        self._scanned: dict[int, tuple] = {}  # keys, bands, connection
        self._next_decided, self._to_do = 0, []
        for number in range(len(plan.items)):
            done = load_done(done_path(folder, number))
            if done is None:
                self._to_do.append(number)
            else:
                self._collect(number, done)
        self._done_before = set(range(len(plan.items))) - set(self._to_do)
        report.begin(len(plan.items), len(self._done_before))

    def _collect(self, number: int, result: dict) -> None:
        self.used |= result.pop("used")
        self.results[number].update(result)

    def run(self, connections: list[Connection]) -> None:
        self._decide()
        waiting = iter(self._to_do)
        busy = [c for c in connections if self._give(c, waiting)]
        while busy:
            for connection in wait(busy):
                try:
                    kind, number, content = connection.recv()
                except EOFError:
                    raise CorpusError(
                        "a worker was killed (out of memory?); the same command goes on"
                    ) from None
                if kind == "failed":
                    raise content
                if kind == "scanned":
                    self._scanned[number] = (*content, connection)
                    self._decide()
                else:
                    self._collect(number, content)
                    self._report.done(content)
                    if not self._give(connection, waiting):
                        busy.remove(connection)
        self._report.end()

    @staticmethod
    def _give(connection: Connection, waiting: Iterator[int]) -> bool:
        number = next(waiting, None)
        connection.send(number)
        return number is not None

    def _decide(self) -> None:
        while (number := self._next_decided) in self._done_before or number in self._scanned:
            if number in self._done_before:
                keep, *counts = self.duplicates.keep(*load_keys(done_path(self._folder, number)))
            else:
                keys, bands, connection = self._scanned.pop(number)
                keep, *counts = self.duplicates.keep(keys, bands)
                connection.send(keep)
            self.results[number]["duplicates"] = counts
            self._next_decided += 1


@contextmanager
def pool(work: Callable, n_workers: int, lock) -> Iterator[list[Connection]]:
    """Connections to processes that do work(number, decide) for each number that is sent."""
    context, processes, connections = multiprocessing.get_context("fork"), [], []
    try:
        for _ in range(n_workers):
            ours, theirs = context.Pipe()
            inherited = [*connections, ours, lock]
            process = context.Process(target=serve, args=(work, theirs, inherited), daemon=True)
            process.start()
            theirs.close()
            connections.append(ours)
            processes.append(process)
        yield connections
    finally:
        for connection in connections:
            connection.close()
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def serve(work: Callable, connection: Connection, inherited: list) -> None:
    """A worker's life: it ends when the first process does, in whatever way."""
    for other in inherited:  # or the end of the first process would go unnoticed, and lock it out
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's to answer
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # runs the cleaning-up of open files
    try:
        while (number := connection.recv()) is not None:

            def decide(found, number=number) -> np.ndarray:
                connection.send(("scanned", number, (found.keys, found.bands)))
                return connection.recv()

            try:
                result = work(number, decide)
            except (CorpusError, OSError, ValueError, MemoryError) as error:
                connection.send(("failed", number, error))
                return
            connection.send(("done", number, result))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


# ---- the end ----


def finish(folder: Path, wishes: Wishes, plan: Plan, order: Order, tokenizer) -> ShardSet:
    results = order.results

    def total(name: str) -> int:
        return sum(result[name] for result in results)

    skipped = Counter(plan.skipped.counts)
    for result in results:
        skipped.update(result["skipped"])
    content = {
        "n_vocab": tokenizer.n_vocab,
        "eot": boundary(tokenizer),
        "tokenizer": {
            "file_sha256": file_hash(folder / TOKENIZER),
            "fingerprint": fingerprint(tokenizer),
        },
        "train": [result["train"] for result in results if result["train"]],
        "held_out": [result["held_out"] for result in results if result["held_out"]],
        "corpus": {
            "name": ", ".join(os.path.basename(path) or path for path in wishes.paths),
            "n_files": len(plan.files),
            "n_bytes": total("n_bytes"),
            "n_documents": total("n_documents"),
            "duplicates": sum(result["duplicates"][0] for result in results),
            "near_duplicates": sum(result["duplicates"][1] for result in results),
            "false_positive_rates": order.duplicates.false_positive_rates(),
            "skipped": dict(skipped),
        },
        "tokens_used": int(np.count_nonzero(order.used)),
        "wishes": asdict(wishes),
    }
    for side in ("train", "held_out"):
        if not content[side]:
            raise CorpusError(f"no document is {side.replace('_', ' ')}: change --held-out")
    write_manifest(folder, json.loads(json.dumps(content)))
    clean(folder)
    return ShardSet(folder)


def clean(folder: Path) -> None:
    """Removes what a finished set does not need."""
    for path in (folder / PLAN, *folder.glob("item-*.npz"), *folder.glob(f"{STDIN}.*")):
        path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[BinaryIO]:
    """Makes the folder and keeps other preparations out of it until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CorpusError(f"{folder}: another process prepares shards in it") from None
        yield file
