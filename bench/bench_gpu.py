"""A training step on one GPU: tokens a second and model FLOP utilisation, ours and PyTorch's.

    .venv/bin/python bench/bench_gpu.py [--size 124M|1.5B] [--batch N] [--recompute] [--steps 10]

The sizes and batches of bench/roofline.py, whose prediction stands beside each figure that is of
them; bf16, AdamW, random tokens; attention by batched products and fused. A step here is one pass
and an update. PyTorch is bench/peer_torch.py, compiled, on the same card. Each has a process of its
own, with whose end the GPU's memory is free again. Medians of the steps with the least and the
most. Not run on a GPU yet.
"""

import argparse
import functools
import importlib.util
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from roofline import GPUS, SIZES, table

from llm.config import ModelConfig
from llm.errors import LlmError
from llm.model import Transformer, init_params
from llm.ops_cuda import OpsCuda, libraries
from llm.optim import OPTIMIZERS


def our_step(config: ModelConfig, batch: int, recompute: bool, attention: str):
    """A function that takes a step and returns when it is done."""
    ops = OpsCuda("bf16", attention=attention)
    model = Transformer(config, ops, init_params(config, 1), recompute)
    optimizer = OPTIMIZERS["adamw"](config, ops=ops)
    tokens = np.random.default_rng(1).integers(
        0, config.n_vocab, (2, batch, config.n_ctx), dtype=np.int32
    )

    def step() -> None:
        model.loss_and_grad(*tokens)
        ops.sum_squares(model.grads)
        optimizer.step(model.params, model.grads, 1e-4)
        ops.wait()

    return step


def torch_has_gpu() -> bool:
    """The peers' PyTorch is built for processors alone."""
    if not importlib.util.find_spec("torch"):
        return False
    import torch

    return torch.cuda.is_available()


def torch_step(config: ModelConfig, batch: int, sizes: dict):
    import torch
    from peer_torch import Llama

    model = Llama({**sizes, "n_vocab": config.n_vocab, "n_ctx": config.n_ctx}).cuda()
    compiled = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
    tokens, targets = torch.randint(config.n_vocab, (2, batch, config.n_ctx), device="cuda")

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = compiled(tokens, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()

    return step


def measure(make, n_steps: int) -> list[float]:
    step = make()
    for _ in range(3):  # compiles, first touches of memory
        step()
    seconds = []
    for _ in range(n_steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES)
    parser.add_argument("--batch", type=int, help="sequences of a pass")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--gpu", choices=GPUS, default="h100", help="whose peak counts")
    options = parser.parse_args()
    try:
        libraries()
    except LlmError as error:
        print(f"bench-gpu: skipped: {error}")
        return 0
    print("| model | tokens/s | utilisation | predicted |\n|---|---|---|---|")
    for size in [options.size] if options.size else SIZES:
        sizes, batch = SIZES[size]
        batch = options.batch or batch
        config = ModelConfig(n_vocab=50304, n_ctx=1024, **sizes)
        contenders, predicted = {}, {}
        for attention in ("batched", "fused"):
            name = f"ours, attention {attention}"
            contenders[name] = functools.partial(
                our_step, config, batch, options.recompute, attention
            )
            if not options.batch and not options.recompute:
                predicted[name] = table(size, options.gpu, attention == "fused", "adamw", None)[1]
        if torch_has_gpu():
            contenders["PyTorch"] = functools.partial(torch_step, config, batch, sizes)
        for who, make in contenders.items():
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                seconds = process.submit(measure, make, options.steps).result()
            speeds = sorted(batch * config.n_ctx / s for s in seconds)
            middle = statistics.median(speeds)
            used = middle * config.flops_per_token / GPUS[options.gpu][0]
            spread = f"{middle:,.0f} ({speeds[0]:,.0f} - {speeds[-1]:,.0f})"
            hope = f"{predicted[who]:.0%}" if who in predicted else ""
            name = f"{who}, {size}, batch {batch}"
            print(f"| {name} | {spread} | {used:.1%} | {hope} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
