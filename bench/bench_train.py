"""Training speed of one step: ours in both precisions, and PyTorch beside it.

    .venv/bin/python bench/bench_train.py [--size S] [--threads 2] [--rounds 5] [--torch]

A step is forward, backward and AdamW on random tokens. Each contender is a process of its own that
warms up; then every round asks each for one step, one after the other. Figures are medians over the
rounds, with the least and the most. CPU seconds are those of the contender's process: on a machine
that others use they say more than the clock does (with PyTorch only for --threads 1: its threads
spin while they wait). --mkl FILE preloads a library that tells MKL to use AVX-512 where it does not
by itself, as on AMD processors.
"""

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

SIZES = {  # ModelConfig, sequences of a step
    "S": ({"n_embd": 288, "n_layer": 6, "n_head": 6, "n_kv_head": 6, "n_ff": 768,
           "n_vocab": 4096, "n_ctx": 256}, 16),
    "M": ({"n_embd": 512, "n_layer": 8, "n_head": 8, "n_kv_head": 4, "n_ff": 1376,
           "n_vocab": 8192, "n_ctx": 512}, 4),
}  # fmt: skip


def our_step(size: str, precision: str, n_threads: int):
    """A function that takes one step and returns the CPU seconds of its parts."""
    import numpy as np

    from llm.config import ModelConfig
    from llm.model import Transformer, init_params
    from llm.ops_c import OpsC
    from llm.ops_clocked import Clocked
    from llm.optim import AdamW

    sizes, batch = SIZES[size]
    config = ModelConfig(**sizes)
    ops = Clocked(OpsC(n_threads, precision=precision))
    model = Transformer(config, ops, init_params(config, 1))
    optimizer = AdamW(config, ops=ops)
    rng = np.random.default_rng(1)
    shape = (2, batch, config.n_ctx)
    tokens, targets = rng.integers(0, config.n_vocab, shape, dtype=np.int32)

    def step() -> dict:
        ops.parts = {}
        model.loss_and_grad(tokens, targets)
        ops.sum_squares(model.grads)
        optimizer.step(model.params, model.grads, 1e-3)
        return ops.parts

    return step


def torch_step(size: str, precision: str, n_threads: int):
    from peer_torch import step_of

    sizes, batch = SIZES[size]
    return step_of(sizes, batch, n_threads, rounds=precision == "bf16")


def serve(who: str, size: str, precision: str, n_threads: int) -> None:
    """One step for each line of standard input, its figures as a line of JSON."""
    step = (our_step if who == "ours" else torch_step)(size, precision, n_threads)
    step()
    step()
    for _ in sys.stdin:
        clock, cpu = time.perf_counter(), time.process_time()
        parts = step()
        seconds = time.perf_counter() - clock
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps([seconds, time.process_time() - cpu, peak, parts]), flush=True)


class Contender:
    def __init__(self, name: str, who: str, options, precision: str, preload: str = ""):
        self.name, self.steps = name, []
        arguments = ["--serve", who, precision, "--size", options.size]
        self._process = subprocess.Popen(
            [sys.executable, __file__, *arguments, "--threads", str(options.threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, **({"LD_PRELOAD": preload} if preload else {})},
        )  # fmt: skip

    def step(self) -> None:
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.steps.append(json.loads(self._process.stdout.readline()))

    def report(self, n_tokens: int, flops: float) -> None:
        self._process.communicate()
        clock, cpu, peak, _ = zip(*self.steps, strict=True)
        middle = statistics.median(cpu)
        print(
            f"{self.name:28} {n_tokens / statistics.median(clock):8.0f} tokens/s, "
            f"{n_tokens / middle:8.0f} a CPU second ({n_tokens / max(cpu):.0f} - "
            f"{n_tokens / min(cpu):.0f}), {flops * n_tokens / middle / 1e9:.0f} GFLOP/s of CPU, "
            f"peak {peak[-1]:.0f} MiB"
        )
        parts = [step[3] for step in self.steps if step[3]]
        for part in parts[0] if parts else ():
            seconds = statistics.median(p[part] for p in parts)
            print(f"    {part:24} {seconds * 1e3:8.1f} ms")
        if parts:
            rest = statistics.median(c - sum(p.values()) for (_, c, _, p) in self.steps)
            print(f"    {'Python':24} {rest * 1e3:8.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="S")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch", action="store_true", help="PyTorch beside it")
    parser.add_argument("--mkl", default="", help="library to preload for PyTorch once more")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve[0], options.size, options.serve[1], options.threads)
        return
    from llm.config import ModelConfig
    from llm.ops_c import best_precision

    both = ["fp32", "bf16"] if best_precision() == "bf16" else ["fp32"]
    contenders = [Contender(f"ours {p}", "ours", options, p) for p in both]
    if options.torch and importlib.util.find_spec("torch"):
        for p in both:
            contenders.append(Contender(f"PyTorch compile {p}", "torch", options, p))
        if options.mkl:
            name = "PyTorch compile fp32, MKL told"
            contenders.append(Contender(name, "torch", options, "fp32", options.mkl))
    for contender in contenders:  # warm, one at a time
        contender.step()
        contender.steps.clear()
    for _ in range(options.rounds):
        for contender in contenders:
            contender.step()
    sizes, batch = SIZES[options.size]
    config = ModelConfig(**sizes)
    print(f"{options.size}, {options.threads} threads, load {os.getloadavg()[0]:.1f}")
    for contender in contenders:
        contender.report(batch * config.n_ctx, config.flops_per_token)


if __name__ == "__main__":
    main()
