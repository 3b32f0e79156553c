"""Ranks against threads: the same step by N ranks of one thread and by one rank of N threads.

    .venv/bin/python bench/bench_mpi.py [--size S] [--ranks 2] [--rounds 10] [--optimizer muon]

A step is train.py's own (forward, backward, exchange, norm, optimizer) on random tokens, the same
batch on both sides: a slot for each rank, or one slot for one rank. Each side warms up, then every
round asks each for a few steps, one side after the other. Ranks that wait for their turn sleep. The
share of the exchange counts waiting for the slower rank, too. CPU seconds are those of all ranks. A
third side are ranks whose backward pass waits until a block's gradient has travelled.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from bench_train import SIZES  # noqa: E402

from llm.distributed import mpiexec, world  # noqa: E402

STEPS = 3  # of a round


def run_of(options, n_threads: int):
    import numpy as np

    from llm.config import ModelConfig
    from llm.data import Examples
    from llm.model import Transformer, init_params
    from llm.ops_c import OpsC, best_precision
    from llm.run_files import Run
    from llm.settings import Settings
    from llm.train import optimizer_of

    group = world()
    sizes, batch = SIZES[options.size]
    batch = options.batch or batch
    config = ModelConfig(**sizes)
    settings = Settings(
        optimizer=options.optimizer, batch=batch, n_ctx=config.n_ctx, lr=1e-3, warmup=1
    ).with_slots(group.size)
    ops = OpsC(n_threads, precision=options.precision or best_precision())
    model = Transformer(config, ops, init_params(config, 1))
    tokens = np.random.default_rng(1).integers(0, config.n_vocab, 1 << 20, dtype=np.int32)
    slots = (settings.n_slots, settings.slot_sequences)
    return Run(
        settings=settings, material=None, vocabulary=None, tokenizer=None, validation=None,
        examples=Examples(tokens, config.n_ctx, 1, *slots), model=model,
        optimizer=optimizer_of(settings, model, group), n_steps=1 << 40,
    )  # fmt: skip


def serve(options) -> None:
    """Some steps for each line that rank 0 reads; figures of a step as a line of JSON."""
    from llm.step import take_step

    run = run_of(options, options.threads)
    group = run.group
    if options.in_turn:
        begin = group.begin_reduce
        group.begin_reduce = lambda *what: begin(*what)() or (lambda: None)
    state = [x.nbytes for name, x in run.optimizer.state.items() if name != "step"]
    while True:
        line = sys.stdin.readline() if group.rank == 0 else ""
        group.barrier()  # asleep, where a broadcast would keep its processor busy
        if not group.broadcast(line):
            break
        clock, cpu, exchanged = time.perf_counter(), time.process_time(), group.seconds
        for _ in range(STEPS):
            take_step(run)
        own = (
            (time.perf_counter() - clock) / STEPS,
            (time.process_time() - cpu) / STEPS,
            (group.seconds - exchanged) / STEPS,
            sum(state),
        )
        seconds, cpus, exchanges, states = zip(*group.share(own), strict=True)
        if group.rank == 0:
            share = statistics.mean(exchanges) / max(seconds)
            print(json.dumps([max(seconds), sum(cpus), share, max(states)]), flush=True)


class Side:
    def __init__(self, n_ranks: int, n_threads: int, options, in_turn: bool = False):
        self.name = f"{n_ranks} ranks x {n_threads} threads" + ", in turn" * in_turn
        launcher = [mpiexec(), "-n", str(n_ranks)] if n_ranks > 1 else []
        more = ["--size", options.size, "--optimizer", options.optimizer, "--batch", options.batch]
        more += ["--precision", options.precision, "--threads", n_threads, "--serve"]
        more += ["--in-turn"] * in_turn
        self._process = subprocess.Popen(
            [*launcher, sys.executable, __file__, *map(str, more)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.rounds = []

    def round(self) -> None:
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.rounds.append(json.loads(self._process.stdout.readline()))

    def report(self, n_tokens: int) -> float:
        self._process.communicate()
        seconds, cpu, share, state = map(statistics.median, zip(*self.rounds, strict=True))
        print(
            f"{self.name:30} {n_tokens / seconds:8.0f} tokens/s, {seconds * 1e3:.1f} ms a step, "
            f"{cpu * 1e3:.1f} ms of CPU, {share:.1%} in the exchange, "
            f"{state / 1e6:.1f} MB of optimizer state in the largest rank"
        )
        return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="S")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=0, help="sequences of a step (the size's)")
    parser.add_argument("--optimizer", default="muon")
    parser.add_argument("--precision", default="", help="fp32, bf16 (the best)")
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--in-turn", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options)
        return
    ranks = options.ranks
    sides = [Side(1, ranks, options), Side(ranks, 1, options), Side(ranks, 1, options, True)]
    for side in sides:
        side.round()
        side.rounds.clear()
    for _ in range(options.rounds):
        for side in sides:
            side.round()
    sizes, batch = SIZES[options.size]
    print(f"{options.size}, {options.optimizer}, load {os.getloadavg()[0]:.1f}")
    n_tokens = (options.batch or batch) * sizes["n_ctx"]
    threads, ranks, in_turn = (side.report(n_tokens) for side in sides)
    pairs = [a[0] / b[0] for a, b in zip(*(side.rounds for side in sides[:2]), strict=True)]
    print(f"ranks reach {threads / ranks:.3f} of the threads' speed (by rounds {min(pairs):.3f} "
          f"to {max(pairs):.3f}), {threads / in_turn:.3f} in turn")  # fmt: skip


if __name__ == "__main__":
    main()
