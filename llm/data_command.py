"""`python -m llm data`: text of any size to shards for `python -m llm train --data`. Layer 11."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from .errors import counted

LINE_SECONDS = 10  # between lines of progress where there is no terminal


def add_arguments(command: ArgumentParser) -> None:
    add = command.add_argument
    add("paths", nargs="*", metavar="PATH", help="files, folders, patterns; -: standard input")
    add(
        "--out",
        metavar="FOLDER",
        help="the shard set; a folder begun with the same options goes on",
    )
    add("--verify", metavar="FOLDER", help="read a finished set and compare its hashes")
    add("--field", help="of .jsonl and .parquet records (text, content ... or the one string)")
    add("--tokenizer", metavar="FILE", help="a parameter file whose tokenizer to use (learn one)")
    add("--n-vocab", type=int, default=4096, help="most tokens of a learned vocabulary (4096)")
    add("--sample-mb", type=float, default=64, help="of text to learn it from (64)")
    add("--held-out", type=float, default=0.05, help="share that is kept for validation (0.05)")
    add("--near-duplicates", action="store_true", help="leave out documents that differ little")
    add("--index-mb", type=float, default=256, help="memory to find duplicates with, of each kind")
    add("--shard-mb", type=float, help="of text in a shard, about (16 to 4096)")
    add("--skip-damaged", action="store_true", help="leave out files that cannot be read whole")
    add("--workers", type=int, help="processes (one per core)")


def run(options: Namespace) -> int:
    from tqdm import tqdm

    from .shards import ShardSet, token_type

    if options.verify is not None:
        if options.paths or options.out:
            raise ValueError("--verify goes alone: it makes nothing")
        shards = ShardSet(options.verify)
        n_tokens = len(shards.train) + len(shards.held_out)
        n_bytes = n_tokens * token_type(shards.n_vocab).itemsize
        with tqdm(total=n_bytes, unit="B", unit_scale=True, leave=False, disable=None) as shown:
            shards.verify(shown.update)
        print(f"verified: {n_tokens:,} tokens have their hashes")
        return 0
    if not options.paths or options.out is None:
        raise ValueError("give the files or folders to read, and --out FOLDER")
    return make(options, Progress())


def wishes_of(options: Namespace):
    from .prepare import Wishes

    def mb(flag: str) -> int | None:
        value = getattr(options, flag[2:].replace("-", "_"))
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{flag} is {value:g}, expected a number above 0")
        return None if value is None else int(value * (1 << 20))

    return Wishes(
        paths=tuple(p if p == "-" else os.path.abspath(p) for p in options.paths),
        field=options.field,
        tokenizer=options.tokenizer and os.path.abspath(options.tokenizer),
        n_vocab=options.n_vocab,
        sample_bytes=mb("--sample-mb"),
        held_out=options.held_out,
        near_duplicates=options.near_duplicates,
        index_bytes=mb("--index-mb"),
        item_bytes=mb("--shard-mb"),
        skip_damaged=options.skip_damaged,
    )


def make(options: Namespace, progress: Progress) -> int:
    from .prepare import prepare

    workers = options.workers or len(os.sched_getaffinity(0))
    if not 1 <= workers <= 1024:
        raise ValueError(f"--workers is {workers}, expected 1 to 1024")
    out = Path(options.out)
    try:
        shards = prepare(wishes_of(options), out, workers, progress)
    except KeyboardInterrupt as error:
        progress.end()
        print("stopped; the same command goes on", file=sys.stderr)
        return 128 + getattr(error, "signal", signal.SIGINT)  # as cli.main
    finally:
        progress.end()
    for line in [*summary(shards), *vocabulary_lines(shards)]:
        progress.say(line)
    progress.say(f"next       python -m llm train --data {out}")
    return 0


def summary(shards) -> list[str]:
    corpus, lines = shards.content["corpus"], []
    rates = corpus["false_positive_rates"]
    gone = f"{counted(corpus['duplicates'], 'duplicate')} left out"
    if "near" in rates:
        gone += f", {corpus['near_duplicates']:,} near duplicates"
    wrong = ", ".join(f"{name} {rate:.1e}" for name, rate in rates.items())
    lines.append(f"documents  {corpus['n_documents']:,}, {corpus['n_bytes']:,} bytes; {gone}")
    if any(rates.values()):
        lines.append(f"           share of new documents mistaken for old ones at most: {wrong}")
    for kind, n in corpus["skipped"].items():
        lines.append(f"skipped    {n:,} {kind}")
    train, held = len(shards.train), len(shards.held_out)
    lines.append(
        f"tokens     {train:,} to train on, {held:,} held out; vocabulary {shards.n_vocab:,}, "
        f"{shards.content['tokens_used']:,} of them used, "
        f"{shards.n_bytes / max(1, train + held):.2f} bytes a token"
    )
    lines.append(f"written    {shards.folder}, {counted(len(shards.content['train']), 'shard')}")
    return lines


def vocabulary_lines(shards) -> list[str]:
    """Bytes per token by script, longest and unused tokens, of the first training tokens."""
    from .tokenizer import CONTROL, Tokenizer
    from .tokenizer_report import tokenizer_report

    tokenizer = Tokenizer.open(shards.tokenizer_path)
    tokens = tokenizer.tokens()
    control = {id for id in range(len(tokens)) if tokenizer.token_type(id) == CONTROL}
    told = tokenizer_report(tokens, control, shards.train)
    scripts = (f"{name} {size / n:.2f}" for name, (size, n) in list(told.scripts.items())[:8] if n)
    longest = ", ".join(repr(text.decode("utf-8", "replace")[:40]) for text, _ in told.longest[:3])
    unused = f"{len(told.unused):,} unused in the first {told.n_tokens:,}"
    return [
        f"vocabulary bytes a token: {', '.join(scripts)}",
        f"           longest: {longest}; {unused}",
    ]


class Progress:
    """What `prepare` tells: a bar on a terminal, else a line now and then, with the time left."""

    def __init__(self):
        self._bar = None
        self._n_items = self._n_done = self._n_before = self._n_bytes = 0
        self._start = self._shown = time.perf_counter()
        self._named = 0  # lines about skipped input

    def say(self, text: str) -> None:
        from .report import escape

        if self._bar is None:
            print(escape(text), flush=True)
        else:
            self._bar.write(escape(text), file=sys.stdout)

    def begin(self, n_items: int, n_done: int) -> None:
        self._n_items, self._n_done, self._n_before = n_items, n_done, n_done
        self._start = self._shown = time.perf_counter()
        if sys.stdout.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=n_items,
                initial=n_done,
                file=sys.stdout,
                bar_format="{percentage:3.0f}% |{bar:20}| {elapsed}<{remaining}{postfix}",
                leave=False,
            )

    def done(self, result: dict) -> None:
        for line in result["skipped_lines"]:
            if self._named < 20:
                self.say(f"skipped    {line}")
            self._named += 1
        self._n_done += 1
        self._n_bytes += result["n_bytes"]
        seconds = time.perf_counter() - self._start
        rate = f"{self._n_bytes / 1e6 / max(seconds, 1e-9):.1f} MB/s"
        if self._bar is not None:
            self._bar.set_postfix_str(rate, refresh=False)
            self._bar.update()
        elif time.perf_counter() - self._shown > LINE_SECONDS:
            self._shown = time.perf_counter()
            each = seconds / (self._n_done - self._n_before)
            left = each * (self._n_items - self._n_done)
            self.say(f"items      {self._n_done:,} of {self._n_items:,}, {rate}, {left:.0f} s left")

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
