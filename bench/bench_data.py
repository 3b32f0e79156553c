"""What preparing data costs beside the bare tokenizer, and the loader beside the trainer.

    .venv/bin/python bench/bench_data.py [--mb 64] [--tokens-per-second 40000]

Seconds are of the processor, of this process and its workers: they count on a busy machine too.
The text is the World English Bible, with numbered words so that no document is there twice.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from llm.corpus import read_corpus
from llm.data import Examples
from llm.prepare import Wishes, prepare
from llm.shards import ShardSet
from llm.tokenizer import Tokenizer


class Quiet:
    def say(self, text):
        pass

    def begin(self, n_items, n_done):
        pass

    def done(self, result):
        pass

    def end(self):
        pass


def cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def write_corpus(folder: Path, megabytes: float, chapters: int) -> int:
    """Files of so many chapters each; the bytes written."""
    documents, n_bytes, number = read_corpus().documents, 0, 0
    while n_bytes < megabytes * 1e6:
        first = number * chapters % len(documents)
        text = b"%d\n" % number + b"\n\n".join(documents[first : first + chapters])
        (folder / f"{number:06}.txt").write_bytes(text)
        n_bytes, number = n_bytes + len(text), number + 1
    return n_bytes


def bare_tokenizer(folder: Path, tokenizer: Tokenizer) -> float:
    """Processor seconds of encoding the text in calls of 4 MB, read before."""
    text = b"".join(path.read_bytes() for path in sorted(folder.iterdir()))
    start = time.process_time()
    for at in range(0, len(text), 1 << 22):
        tokenizer.encode_array(text[at : at + (1 << 22)])
    return time.process_time() - start


def prepared(folder: Path, out: Path, tokenizer: Path, workers: int = 1):
    """(processor seconds, seconds, the shards)."""
    wishes = Wishes(paths=(str(folder),), tokenizer=str(tokenizer))
    start, clock = cpu_seconds(), time.perf_counter()
    shards = prepare(wishes, out, workers, Quiet())
    return cpu_seconds() - start, time.perf_counter() - clock, shards


def loader(shards: ShardSet, n_ctx: int) -> float:
    """Tokens per processor second."""
    examples = Examples(shards.train, n_ctx, seed=1, n_slots=1, slot_sequences=4)
    examples.slot(0, 0)
    n_steps, start = 4000, time.process_time()
    for step in range(n_steps):
        examples.slot(step, 0)
    return n_steps * 4 * n_ctx / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=float, default=64)
    parser.add_argument("--tokens-per-second", type=float, default=40_000, help="of the trainer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "few").mkdir()
        n_bytes = write_corpus(folder / "few", options.mb, 300)
        made = Wishes(paths=(str(folder / "few"),), n_vocab=8192)
        tokenizer_path = prepare(made, folder / "learned", 1, Quiet()).tokenizer_path
        tokenizer = Tokenizer.open(tokenizer_path)
        for name, chapters in (("files of 100 kB", 30), ("files of 3.4 kB", 1)):
            source = folder / f"in-{chapters}"
            source.mkdir()
            n_bytes = write_corpus(source, options.mb, chapters)
            rates = []
            for turn in range(3):  # taken in turns: the best of each
                bare = n_bytes / bare_tokenizer(source, tokenizer) / 1e6
                out = folder / f"{chapters}-{turn}"
                seconds, _, shards = prepared(source, out, tokenizer_path)
                rates.append((bare, n_bytes / seconds / 1e6))
            bare, whole = np.max(rates, axis=0)
            share = f"{whole / bare:.0%}"
            print(f"{name}: tokenizer {bare:.1f} MB/s, files to shards {whole:.1f}: {share}")
            times = {n: [] for n in (1, 2)}
            for turn in range(3):
                for n, took in times.items():
                    out = folder / f"{chapters}-{n}-workers-{turn}"
                    took.append(prepared(source, out, tokenizer_path, n)[:2])
            (cpu, clock), (cpu_2, clock_2) = (np.min(took, axis=0) for took in times.values())
            print(
                f"{name}, two workers: {clock / clock_2:.2f} times as fast as one, "
                f"{cpu_2 / cpu:.2f} times the processor seconds"
            )
        for n_ctx in (256, 1024):
            rate = loader(shards, n_ctx)
            print(
                f"loader, windows of {n_ctx}: {rate / 1e6:.1f} M tokens/s, "
                f"{rate / options.tokens_per_second:.0f} times what the trainer eats"
            )


if __name__ == "__main__":
    main()
