"""What a preparation is to do: the input's files, their items, what is held out. Layer 7.

Made once and kept as JSON, so that work goes on by it after a kill. An input file is known again by
its size and times; where only the time of its last change of any kind (ctime) is another, prepare
compares the hashes of its documents.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

from .atomic import atomic_file
from .data import HELD_OUT, MIN_DOCUMENTS, blocks_of, permute
from .documents import NotText, Source, find_files, format_of, read_documents
from .duplicates import document_key
from .errors import CorpusError, counted
from .prepare_items import Skipped, has_text, split, with_hint

PLAN, STDIN = "plan.json", "stdin"
N_ITEMS = 256  # of a corpus in the middle
ITEM_BYTES = (16 << 20, 4 << 30)  # smallest and largest by themselves
PACKED = 4  # text bytes for a byte of a compressed or Parquet file, roughly
MIN_HELD_BYTES = 1024
LINE_PIECE = 1 << 20  # bytes of a line at a time
SAMPLE_ITEMS = 256  # the most that a tokenizer's sample is spread over
SAMPLE_READ = 4  # times its bytes are read to choose it from
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


# ---- the plan ----


@dataclass
class Plan:
    files: list[tuple[str, int, int, int]]  # path, bytes, mtime and ctime in ns
    items: list[list[Source]]
    in_blocks: bool
    held_below: int
    skipped: Skipped
    touched: set[str] = field(default_factory=set)  # files with another ctime than at the start

    @property
    def n_bytes(self) -> int:
        return sum(size for _, size, *_ in self.files)


def make_plan(folder: Path, wishes: Wishes, report) -> Plan:
    skipped = Skipped()
    paths = [spool_stdin(folder, wishes.field) if p == "-" else p for p in wishes.paths]

    def skip(line: str) -> None:
        skipped.add("files of other kinds", line)

    files = [(path, *stat_of(path)) for path in find_files(paths, skip)]
    items = group(files, wishes.item_bytes)
    report.say(f"input      {counted(len(files), 'file')}, {sum(f[1] for f in files):,} bytes")
    in_blocks, held_below = choose_held_out(items, wishes, skipped)
    plan = Plan(files, items, in_blocks, held_below, skipped)
    content = {**vars(plan), "skipped": vars(skipped), "wishes": asdict(wishes)}
    del content["touched"]
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
        kept_files = [(name, *times) for name, *times in content["files"]]
        plan = Plan(kept_files, items, content["in_blocks"], content["held_below"], skipped)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorpusError(f"{path}: damaged ({error}); begin again in another folder") from error
    check_same(folder, kept, wishes)
    plan.files = [(path, *stat_of(path)) for path, *_ in kept_files]
    for (path, *kept), (_, *now) in zip(kept_files, plan.files, strict=True):
        if kept[:2] != now[:2]:
            raise changed(path)
        if kept != now:
            plan.touched.add(path)
    report.say(
        f"going on   in {folder}: {counted(len(plan.files), 'file')}, {plan.n_bytes:,} bytes"
    )
    return plan


FREE = {"skip_damaged"}  # may change when work goes on


def check_same(folder: Path, kept: dict, wishes: Wishes) -> None:
    asked = json.loads(json.dumps(asdict(wishes)))
    if not isinstance(kept, dict):
        raise CorpusError(f"{folder}: does not say how it was made: choose another folder")
    for name, value in asked.items():
        if name not in FREE and kept.get(name) != value:
            raise CorpusError(
                f"{folder}: begun with {name} {kept.get(name)}, asked for {value}: "
                "choose another folder"
            )


def stat_of(path: str) -> tuple[int, int, int]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise CorpusError(f"{path}: cannot read: {error.strerror}") from error
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def check_unchanged(path: str, known) -> None:
    if stat_of(path) != tuple(known):
        raise changed(path)


def changed(path: str) -> CorpusError:
    return CorpusError(
        f"{path}: has changed since the preparation began; begin again in another folder"
    )


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


def group(files: list[tuple[str, int, int, int]], wanted: int | None) -> list[list[Source]]:
    """Items of about `wanted` bytes of text: files that follow each other, or parts of one."""

    kinds = [format_of(path) for path, *_ in files]
    packed = [bool(compression) or kind == "parquet" for kind, compression in kinds]
    weights = [size * (PACKED if p else 1) for (_, size, *_), p in zip(files, packed, strict=True)]
    if wanted is None:
        wanted = min(max(sum(weights) // N_ITEMS, ITEM_BYTES[0]), ITEM_BYTES[1])
    items, item, n_bytes = [], [], 0
    for (path, size, *_), is_packed, weight in zip(files, packed, weights, strict=True):
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
            while (piece := file.readline(LINE_PIECE)) and not piece.endswith(b"\n"):
                pass
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


def sample(wishes: Wishes, plan: Plan) -> list[bytes]:
    """Training text of sample_bytes at most: pieces chosen by their hash among all, or, of a corpus
    of more than SAMPLE_READ times as much, among the first ones of SAMPLE_ITEMS items all over."""
    room, n_items = SAMPLE_READ * wishes.sample_bytes, len(plan.items)
    chosen = sorted(permute(i, n_items, 1) for i in range(min(n_items, SAMPLE_ITEMS)))
    reads_all, pieces, n_bytes = plan.n_bytes <= room, {}, 0
    for turn, number in enumerate(chosen):
        share = room // (1 if reads_all else len(chosen) - turn)
        for document in readable([plan.items[number]], wishes, Skipped()):
            text = split(document, document_key(document), plan)[0][:share]
            for piece in blocks_of(text):
                key = document_key(piece)
                n_bytes += 0 if key in pieces else len(piece)
                pieces[key] = piece
            share -= len(text)
            room -= len(text)
            if n_bytes > 2 * wishes.sample_bytes:
                pieces = first_pieces(pieces, wishes.sample_bytes)
                n_bytes = sum(map(len, pieces.values()))
            if share <= 0:
                break
    return list(first_pieces(pieces, wishes.sample_bytes).values())


def first_pieces(pieces: dict[int, bytes], n_bytes: int) -> dict[int, bytes]:
    """In the order of their keys, n_bytes of them; the last is cut."""
    kept = {}
    for key in sorted(pieces):
        if n_bytes <= 0:
            break
        kept[key] = pieces[key][:n_bytes]
        n_bytes -= len(kept[key])
    return kept
