"""What data parallel training keeps at many ranks: the model of llm/plan.py, its constants here.

    python bench/bench_ranks.py                     the tables of "Many machines, on paper"
    mpiexec -n 2 python bench/bench_ranks.py        what messages between ranks of this machine cost

The second uses the extra [mpi] and takes a few seconds; each rank should have a core of its own.
"""

import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from llm.distributed import even_shards, world
from llm.plan import GPUS, NETWORKS, batch_tokens, data_parallel, shape
from llm.report import human

SIZES = {"124 M": 124e6, "1.5 G": 1.5e9, "7 G": 7e9, "13 G": 13e9, "70 G": 70e9}
RANKS = (8, 64, 1024)
WAYS = {  # how the gradient's and the weights' buffer travel, bytes of an element
    "each block to one owner, fp32": ("owner", 4),
    "each to all owners, fp32": ("owners", 4),
    "today: summed in nodes first, fp32": ("nodes", 4),
    "summed in nodes first, bf16": ("nodes", 2),
}
MFU = 0.5  # of one card alone: more than anyone reaches, so that messages weigh more, not less
ROUNDS = 20


def tables() -> None:
    gpu, network = replace(GPUS["h100"], mfu=MFU), NETWORKS["h100"]
    columns = [f"{r:,} ranks" for r in RANKS]
    for way, (route, n_bytes) in WAYS.items():
        print(f"\n| {way} | tokens a step | {' | '.join(columns)} |")
        print("|---" * (2 + len(RANKS)) + "|")
        for name, n_params in SIZES.items():
            n_tokens = batch_tokens(n_params)
            steps = [
                data_parallel(shape(n_params), r, n_tokens, gpu, network, n_bytes, route)
                for r in RANKS
            ]
            cells = [f"{s.efficiency:.0%} of {human_seconds(s.compute)}" for s in steps]
            print(f"| {name} | {human(n_tokens)} | {' | '.join(cells)} |")
    print(
        "\n| GB that stay on each rank, windows of 2,048 tokens in its share | "
        + " | ".join(columns)
    )
    print("|---" * (1 + len(RANKS)) + "|")
    for name, n_params in SIZES.items():
        n_tokens = batch_tokens(n_params)
        steps = [data_parallel(shape(n_params), r, n_tokens, gpu, network) for r in RANKS]
        cells = [
            f"{s.memory / 1e9:.3g}, {n_tokens / r / 2048:g}"
            for r, s in zip(RANKS, steps, strict=True)
        ]
        print(f"| {name} | {' | '.join(cells)} |")


def human_seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


# ---- measured ----


def measure(group) -> None:
    """Medians of rounds in which all ranks take part."""
    tiny = np.zeros(group.size, np.float32)
    seconds = timed(group, lambda: group.all_reduce(tiny), 100)
    say(group, f"all_reduce of {tiny.nbytes} bytes: {seconds * 1e6:.1f} us, 2 messages in turn")
    for n_bytes in (1 << 16, 1 << 20, 1 << 24, 1 << 26):
        array = np.ones(n_bytes // 4, np.float32)
        shards = even_shards(array.size, group.size)
        moved = n_bytes * (group.size - 1) / group.size
        for action in (group.reduce_scatter, group.all_gather):
            n = max(1, (1 << 22) // n_bytes)
            seconds = timed(group, lambda action=action: action(array, shards), n)  # noqa: B023
            say(
                group,
                f"{action.__name__} of {n_bytes:,} bytes: {seconds * 1e3:.3f} ms, "
                f"{moved / seconds / 1e9:.2f} GB/s in, as many out",
            )


def timed(group, action, n: int) -> float:
    """Seconds of one action: the median over rounds of n, by the slowest rank."""
    action()  # first touches of memory
    rounds = []
    for _ in range(ROUNDS):
        group.share(None)
        start = time.perf_counter()
        for _ in range(n):
            action()
        rounds.append(max(group.share(time.perf_counter() - start)) / n)
    return statistics.median(rounds)


def say(group, line: str) -> None:
    if group.rank == 0:
        print(line, flush=True)


if __name__ == "__main__":
    if world().size == 1:
        tables()
    else:
        measure(world())
