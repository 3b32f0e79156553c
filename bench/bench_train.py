"""Training speed and memory of one step: ours in both precisions, and PyTorch beside it.

    .venv/bin/python bench/bench_train.py [--size S M L] [--threads 1 2] [--rounds 5] [--torch]

A step is forward, backward and AdamW on random tokens. Each contender is a process of its own that
warms up; then every round asks each for one step, one after the other. Figures are medians over the
rounds, with the least and the most. Memory is the process's own most (VmHWM). CPU seconds are those
of the contender's process: on a machine that others use they say more than the clock does (of
PyTorch with one thread only: its threads spin while they wait). PyTorch is not asked for L. --mkl
FILE preloads a library that tells MKL to use AVX-512 where it does not by itself, as on AMD
processors. The peak is that of build/peaks, on registers alone.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
PEAKS = HERE.parent / "build" / "peaks"
KINDS = {"fp32": ("fma",), "bf16": ("amx", "bf16")}  # precision -> the line of peaks, the first

SIZES = {  # ModelConfig, sequences of a step
    "S": ({"n_embd": 288, "n_layer": 6, "n_head": 6, "n_kv_head": 6, "n_ff": 768,
           "n_vocab": 4096, "n_ctx": 256}, 16),
    "M": ({"n_embd": 512, "n_layer": 8, "n_head": 8, "n_kv_head": 4, "n_ff": 1376,
           "n_vocab": 8192, "n_ctx": 512}, 4),
    "L": ({"n_embd": 768, "n_layer": 12, "n_head": 12, "n_kv_head": 12, "n_ff": 2048,
           "n_vocab": 50257, "n_ctx": 1024}, 2),  # GPT-2's 124 million parameters
}  # fmt: skip


def our_step(size: str, precision: str, n_threads: int, recompute: bool):
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
    model = Transformer(config, ops, init_params(config, 1), recompute)
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
    if who == "torch":
        step = torch_step(size, precision, n_threads)
    else:
        step = our_step(size, precision, n_threads, who == "recompute")
    step()
    step()
    for _ in sys.stdin:
        clock, cpu = time.perf_counter(), time.process_time()
        parts = step()
        seconds = time.perf_counter() - clock
        print(json.dumps([seconds, time.process_time() - cpu, peak_mib(), parts]), flush=True)


def peak_mib() -> float:
    """Of this process's own pages since it began (ru_maxrss counts who started it too)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


class Contender:
    def __init__(self, name, who, size, n_threads, precision, preload=""):
        self.name, self.precision, self.steps = name, precision, []
        arguments = ["--serve", who, precision, "--size", size, "--threads", str(n_threads)]
        self._process = subprocess.Popen(
            [sys.executable, __file__, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, **({"LD_PRELOAD": preload} if preload else {})},
        )  # fmt: skip

    def step(self) -> None:
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.steps.append(json.loads(self._process.stdout.readline()))

    def finish(self, n_tokens: int) -> None:
        """Ends the process; then the figures stand in rate, cpu_rate (tokens a second), mib."""
        self._process.communicate()
        self.clock, self.cpu, mib, parts = zip(*self.steps, strict=True)
        self.rate = n_tokens / statistics.median(self.clock)
        self.cpu_rate = n_tokens / statistics.median(self.cpu)
        self.spread = n_tokens / max(self.clock), n_tokens / min(self.clock)
        self.mib = mib[-1]
        self.parts = {}
        if parts[0]:
            self.parts = {k: statistics.median(p[k] for p in parts) for k in parts[0]}
            rests = [c - sum(p.values()) for c, p in zip(self.cpu, parts, strict=True)]
            self.parts["Python"] = statistics.median(rests)


def contenders_of(size: str, n_threads: int, precisions: list[str], options) -> list[Contender]:
    def contender(name, who, precision, preload=""):
        return Contender(f"{name} {precision}", who, size, n_threads, precision, preload)

    out = [contender("ours", "ours", p) for p in precisions]
    out.append(contender("ours, recomputing,", "recompute", precisions[-1]))
    if options.torch and size != "L" and importlib.util.find_spec("torch"):
        out += [contender("PyTorch compile", "torch", p) for p in precisions]
        if options.mkl:
            out.append(contender("PyTorch compile, MKL told,", "torch", "fp32", options.mkl))
    return out


def peaks(n_threads: int) -> dict[str, float]:
    """GFLOP/s of registers alone by precision, of those that were measured."""
    if not PEAKS.exists():
        return {}
    text = subprocess.run([PEAKS, str(n_threads)], capture_output=True, text=True, check=True)
    found = {k: float(v) for k, v in (line.split()[:2] for line in text.stdout.splitlines())}
    best = {p: [found[kind] for kind in kinds if kind in found] for p, kinds in KINDS.items()}
    return {p: rates[0] for p, rates in best.items() if rates}


def compare(size: str, n_threads: int, precisions: list[str], options) -> dict[str, float]:
    """Prints a table; returns the floating-point operations a second of ours by precision."""
    from llm.config import ModelConfig

    sizes, batch = SIZES[size]
    config = ModelConfig(**sizes)
    n_tokens, flops = batch * config.n_ctx, config.flops_per_token
    peak = peaks(n_threads)
    contenders = contenders_of(size, n_threads, precisions, options)
    for contender in contenders:  # warm, one at a time
        contender.step()
        contender.steps.clear()
    for _ in range(options.rounds):
        for contender in contenders:
            contender.step()
    title = f"{size}, {config.n_params / 1e6:.1f} M parameters, {n_threads} threads"
    print(f"\n| {title}, load {os.getloadavg()[0]:.1f} | tokens/s | a CPU second | "
          "of the peak | memory, MiB |\n|---|---|---|---|---|")  # fmt: skip
    for c in contenders:
        c.finish(n_tokens)
        share = f"{c.rate * flops / peak[c.precision] / 1e7:.0f} %" if peak else "-"
        low, high = c.spread
        print(f"| {c.name} | {c.rate:.0f} ({low:.0f} - {high:.0f}) | {c.cpu_rate:.0f} | {share} "
              f"| {c.mib:.0f} |", flush=True)  # fmt: skip
    print()
    for c in contenders:
        if c.parts:
            parts = ", ".join(f"{part} {1e3 * s:.1f}" for part, s in c.parts.items())
            share = c.parts["Python"] / statistics.median(c.cpu)
            print(f"{c.name}: {parts} ms of processor time; Python {100 * share:.1f} %")
        for other in contenders:
            if c.parts and not other.parts and c.precision == other.precision:
                print(f"{c.name} / {other.name}: {c.rate / other.rate:.2f} times the tokens "
                      f"({c.cpu_rate / other.cpu_rate:.2f} a CPU second), "
                      f"{c.mib / other.mib:.2f} of the memory")  # fmt: skip
    return {p: c.rate * flops for p, c in zip(precisions, contenders, strict=False)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["S"])
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, nargs="+", default=[cores])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch", action="store_true", help="PyTorch beside it")
    parser.add_argument("--mkl", default="", help="library to preload for PyTorch once more")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve[0], options.size[0], options.serve[1], options.threads[0])
        return
    from llm.ops_c import best_precision

    precisions = ["fp32", "bf16"] if best_precision() == "bf16" else ["fp32"]
    done = {
        (size, n): compare(size, n, precisions, options)
        for size in options.size
        for n in options.threads
    }
    if len(done) == 1:
        return
    print(f"\n| GFLOP/s of ours | {' | '.join(precisions)} |\n|---|{'---|' * len(precisions)}")
    for (size, n), rates in done.items():
        print(f"| {size}, {n} threads | {' | '.join(f'{r / 1e9:.0f}' for r in rates.values())} |")


if __name__ == "__main__":
    main()
