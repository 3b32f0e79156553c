"""From any pile of text to a shard set, in steps that a kill cannot undo. Layer 7.

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
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .atomic import file_sha256
from .corpus import separator_id
from .duplicates import Duplicates
from .errors import CorpusError
from .prepare_items import Rules, done_path, encode, load_done, load_keys, save_done, scan
from .prepare_plan import (
    PLAN,
    STDIN,
    Plan,
    Wishes,
    changed,
    check_same,
    check_unchanged,
    load_plan,
    make_plan,
    sample,
)
from .shards import MANIFEST, TOKENIZER, ShardSet, write_manifest
from .tokenizer import Tokenizer
from .vocabulary import fingerprint, learn_vocabulary, save_tokenizer, save_vocabulary


def prepare(wishes: Wishes, folder: Path, workers: int, report) -> ShardSet:
    """Makes or goes on with the shard set in `folder`. CorpusError for input that cannot be used,
    OSError with the file's name when the disk is full: what is finished stays."""
    with locked(folder) as lock:
        if (folder / MANIFEST).exists():
            done = ShardSet(folder)
            check_same(folder, done.content.get("wishes"), wishes)
            clean(folder)
            report.say(f"{folder} is finished already")
            return done
        for leftover in folder.glob("*.tmp"):  # of a process that was killed while it wrote
            leftover.unlink()
        plan = load_plan(folder, wishes, report) or make_plan(folder, wishes, report)
        tokenizer = find_tokenizer(folder, wishes, plan, report)
        order = run_items(folder, wishes, plan, tokenizer, workers, report, lock)
        return finish(folder, wishes, plan, order, tokenizer)


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


def boundary(tokenizer: Tokenizer) -> int:
    found = separator_id(tokenizer)
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
    check_touched(folder, plan, rules)
    known = {path: times for path, *times in plan.files}
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


def check_touched(folder: Path, plan: Plan, rules: Rules) -> None:
    """Finished items whose files may have changed must have the documents that they had."""
    for number, item in enumerate(plan.items):
        paths = [source.path for source in item if source.path in plan.touched]
        done = done_path(folder, number)
        if paths and load_done(done) is not None:
            if not np.array_equal(scan(item, rules).keys, load_keys(done)[0]):
                raise changed(", ".join(dict.fromkeys(paths)))


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
                with talk():
                    kind, number, content = connection.recv()
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
        with talk():
            connection.send(number)
        return number is not None

    def _decide(self) -> None:
        while (number := self._next_decided) in self._done_before or number in self._scanned:
            if number in self._done_before:
                keep, *counts = self.duplicates.keep(*load_keys(done_path(self._folder, number)))
            else:
                keys, bands, connection = self._scanned.pop(number)
                keep, *counts = self.duplicates.keep(keys, bands)
                with talk():
                    connection.send(keep)
            self.results[number]["duplicates"] = counts
            self._next_decided += 1


@contextmanager
def talk() -> Iterator[None]:
    """Around a message to a worker or from one."""
    try:
        yield
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise CorpusError(
            "a worker was killed (out of memory?); the same command goes on"
        ) from None


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
            "file_sha256": file_sha256(folder / TOKENIZER),
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
