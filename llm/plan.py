"""`python -m llm plan`: what a pile of text and a time on GPUs can become. Layer 8.

Pure arithmetic with stated assumptions; tests/test_plan.py holds it against the published hours of
LLaMA 1 and 2 and the arithmetic of GPT-3 and Chinchilla. Sources: Hoffmann et al. 2022 (20 tokens a
parameter where arithmetic is what counts), Muennighoff et al. 2023 (up to 4 readings of a text are
nearly as good as new text), Touvron et al. 2023 (GPU hours), NVIDIA's data sheets (dense bf16,
NVLink, ConnectX), Rajbhandari et al. 2020 (ZeRO). bench/README.md says what the ranks' line leaves
out.
"""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import dataclass

from .config import LIMITS, ModelConfig
from .report import human
from .settings import HEAD_WIDTH, Settings

OPTIMAL_RATIO = 20.0  # tokens a parameter
MAX_READINGS = 4.0
BYTES_PER_TOKEN = 4.0  # of English and a vocabulary of 32,000 to 128,000
TRAINING_BYTES = 16  # a parameter: bf16 weight and gradient, fp32 master and two moments
WEIGHT_AND_GRADIENT, MOMENTS = 10, 8  # fp32 each, and a bf16 copy of the weight; fp32
CHECKPOINT_BYTES = 12  # a parameter: master and moments
FILE_BYTES = {"F16": 2.0, "Q8_0": 34 / 32, "Q4_K": 144 / 256}  # a parameter
CHECKPOINTS_PER_DAY = 24
SMALL = 5e7  # parameters


@dataclass(frozen=True)
class Gpu:
    peak: float  # FLOP/s, dense bf16
    memory: float  # bytes
    mfu: float  # the share of the peak that a long run keeps: an assumption
    price: float  # dollars an hour: an assumption


GPUS = {
    "a100": Gpu(312e12, 80e9, 0.44, 1.5),  # mfu: what LLaMA 1 and 2 reached, 0.40 to 0.49
    "h100": Gpu(989e12, 80e9, 0.40, 2.5),  # Llama 3 reached 0.38 to 0.43
    "h200": Gpu(989e12, 141e9, 0.40, 3.0),
}


@dataclass(frozen=True)
class Network:
    """Between ranks, one for each GPU; bytes a second are of one direction."""

    node: int  # ranks of a node
    inside: float  # bytes/s between ranks of a node
    outside: float  # bytes/s of each rank between nodes
    message: float  # seconds that one message costs a rank: an assumption, MPI's measured here


NETWORK_KEPT = 0.8  # of the bandwidths: an assumption; bus bandwidths of nccl-tests are near it
NETWORKS = {  # NVLink 3 and 4, InfiniBand HDR and NDR: a card for each GPU, as DGX has them
    "a100": Network(8, 300e9, 25e9, 2e-6),
    "h100": Network(8, 450e9, 50e9, 2e-6),
    "h200": Network(8, 450e9, 50e9, 2e-6),
}
BATCHES = ((1e9, 2**19), (5e9, 2**20), (5e10, 2**21), (math.inf, 2**22))  # parameters up to, tokens


def this_cpu() -> Gpu:
    """All cores of this machine, their peak measured. 0.5: what steps of 7 M parameters reach."""
    import os

    from .ops_c import OpsC, best_precision
    from .ops_clocked import measure_peak

    peak = measure_peak(OpsC(precision=best_precision()))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Gpu(peak, memory, 0.5, 0.05)


def parse_bytes(text: str) -> int:
    """ "10TB", "3.5 GB", "2000"; powers of 1000."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kKMGTP]?)B?\s*", text)
    if not match or not float(match[1]):
        raise ValueError(f"{text!r} is no size: write 10TB, 3.5GB or 200MB")
    return int(float(match[1]) * 1000 ** " KMGTP".index(match[2].upper() or " "))


def shape(n_params: float) -> ModelConfig:
    """The Llama-shaped model of so many parameters, to half a block: heads of 128, 8 of them for
    keys and values, n_ff 3.5 widths, and a width of about 110 a block (128 and 102 in Llama 2).
    Small ones are those of `train --depth`."""
    if n_params < SMALL:
        depths = (Settings().with_width(HEAD_WIDTH * d).model_config(4096) for d in range(1, 20))
        return min(depths, key=lambda c: abs(math.log(_n_params(c) / n_params)))

    def of_width(width: int, n_layer: int = 1) -> ModelConfig:
        n_head = width // 128
        return ModelConfig(
            n_vocab=32000,
            n_ctx=4096,
            n_embd=width,
            n_layer=n_layer,
            n_head=n_head,
            n_kv_head=8 if n_head % 8 == 0 else n_head,
            n_ff=round(width * 3.5 / 128) * 128,
            tied_output=False,
        )

    def filled(width: int) -> ModelConfig:
        one = of_width(width)
        block = _n_params(one) - 2 * one.n_vocab * width - width
        n_layer = round((n_params - 2 * one.n_vocab * width - width) / block)
        return of_width(width, max(1, min(n_layer, LIMITS["n_layer"])))

    widths = [*range(128, 1024, 128), *range(1024, 65537, 1024)]
    return min(map(filled, widths), key=lambda c: abs(math.log(c.n_embd / c.n_layer / 110)))


def _n_params(c: ModelConfig) -> int:
    """c.n_params, without a list of a thousand tensors."""
    kv = c.n_kv_head * c.head_dim
    block = 2 * c.n_embd * (c.n_embd + kv) + 3 * c.n_embd * c.n_ff + 2 * c.n_embd
    return (2 - c.tied_output) * c.n_vocab * c.n_embd + c.n_layer * block + c.n_embd


def training_flops(n_params: float, n_tokens: float) -> float:
    """Six for each weight and token."""
    return 6 * n_params * n_tokens


def gpu_hours(gpu: Gpu, flops: float) -> float:
    return flops / (gpu.peak * gpu.mfu) / 3600


@dataclass(frozen=True)
class Plan:
    config: ModelConfig
    n_tokens: float
    readings: float  # of the text

    @property
    def n_params(self) -> int:
        return _n_params(self.config)

    @property
    def flops(self) -> float:
        return training_flops(self.n_params, self.n_tokens)


# ---- many ranks ----


def batch_tokens(n_params: float) -> int:
    """Of a step, as they were published: GPT-3's table 2.1, from 50 G parameters on Llama 2's."""
    return next(tokens for limit, tokens in BATCHES if n_params < limit)


def exchange(n_bytes: float, n_ranks: int, network: Network, route: str) -> tuple[float, int]:
    """Seconds of links and messages of each rank, for a buffer of n_bytes that is reduced to its
    owners or gathered from them. route: "owner", one rank owns all of what travels at a time;
    "owners", each rank owns as much; "nodes", too, but a node's ranks sum first, and each sends
    only its share of that sum to other nodes. A message for each piece that a rank owns."""
    node = min(n_ranks, network.node)
    if route == "nodes":
        near, far = n_bytes * (node - 1) / node, n_bytes * (n_ranks - node) / n_ranks / node
    else:
        n_owners = 1 if route == "owner" else n_ranks
        near, far = n_bytes * (node - 1) / n_owners, n_bytes * (n_ranks - node) / n_owners
    return (near / network.inside + far / network.outside) / NETWORK_KEPT, n_ranks - 1


@dataclass(frozen=True)
class Step:
    """Seconds of a step of data parallel training with ZeRO-1, and bytes that stay on each rank."""

    compute: float
    exposed: float  # messages that nothing hides
    memory: float  # weights and gradients, which ZeRO-1 does not share out, and the moments' share

    @property
    def efficiency(self) -> float:
        return self.compute / (self.compute + self.exposed)


def data_parallel(
    config: ModelConfig,
    n_ranks: int,
    n_tokens: float,
    gpu: Gpu,
    network: Network,
    n_bytes: int = 4,
    route: str = "nodes",
) -> Step:
    """A step of n_tokens over all ranks; n_bytes: of a gradient and of a weight in a message. The
    gradient travels block by block while the backward pass (two thirds of the arithmetic) goes on,
    but the last block's cannot; the weights travel when all of that is over."""
    n, n_layer = _n_params(config), config.n_layer
    compute = training_flops(n, n_tokens) / n_ranks / (gpu.peak * gpu.mfu)
    reduce, n_messages = exchange(n * n_bytes, n_ranks, network, route)
    reduce += n_layer * n_messages * network.message
    hidden = min(reduce * (n_layer - 1) / n_layer, compute * 2 / 3)
    gather, n_messages = exchange(
        n * n_bytes, n_ranks, network, "owners" if route == "owner" else route
    )
    exposed = reduce - hidden + gather + n_messages * network.message
    return Step(compute, exposed, n * (WEIGHT_AND_GRADIENT + MOMENTS / n_ranks))


def make_plans(text_bytes: int, flops: float) -> dict[str, Plan]:
    """Two ways to spend the arithmetic. Compute-optimal: the lowest loss, 20 tokens a parameter.
    Inference-heavy: the smallest model that reads the whole text once, cheaper wherever it runs.
    Text-limited, where MAX_READINGS of the text are too few for the first: what they can teach,
    with less arithmetic than there is."""
    text_tokens = text_bytes / BYTES_PER_TOKEN
    optimal, most = (OPTIMAL_RATIO * flops / 6) ** 0.5, MAX_READINGS * text_tokens
    config = shape(min(optimal, most) / OPTIMAL_RATIO)
    n_tokens = min(flops / 6 / _n_params(config), most)
    name = "text-limited" if optimal > most else "compute-optimal"
    plans = {name: Plan(config, n_tokens, n_tokens / text_tokens)}
    if text_tokens > optimal:
        plans["inference-heavy"] = Plan(shape(flops / 6 / text_tokens), text_tokens, 1.0)
    return plans


def ranks_line(plan: Plan, gpu: Gpu, count: int, network: Network | None) -> list[str]:
    """What data parallel training with ZeRO-1 makes of it; nothing for one rank."""
    if count == 1 or network is None:
        return []
    n_tokens = batch_tokens(plan.n_params)
    step = data_parallel(plan.config, count, n_tokens, gpu, network)
    fits = "" if step.memory < 0.6 * gpu.memory else ", too much"
    own = n_tokens / count
    cut = "" if own >= plan.config.n_ctx else f", less than a window of {plan.config.n_ctx:,}"
    return [
        f"ranks      ZeRO-1, steps of {human(n_tokens)} tokens: {step.efficiency:.0%} of {count:,} "
        f"times one; each has {own:,.0f} tokens{cut}, and {human(step.memory)}B of weights and "
        f"gradients{fits}"
    ]


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 1 else f"{hours:.2g}"


def describe(
    plan: Plan, gpu: Gpu, count: int, days: float, text_bytes: int, network: Network | None = None
) -> list[str]:
    n, c = plan.n_params, plan.config
    kv = 2 * 2 * c.n_layer * c.n_kv_head * c.head_dim * c.n_ctx
    files = ", ".join(f"{kind} {human(n * b)}B" for kind, b in FILE_BYTES.items())
    hours = gpu_hours(gpu, plan.flops)
    n_saves = max(1, round(CHECKPOINTS_PER_DAY * hours / count / 24))
    state = TRAINING_BYTES * n / count
    fits = "" if state < 0.6 * gpu.memory else ": too much, activations need room beside it"
    return [
        f"model      {human(n)} parameters: n_embd {c.n_embd}, n_layer {c.n_layer}, n_head "
        f"{c.n_head}, n_kv_head {c.n_kv_head}, n_ff {c.n_ff}, vocabulary {c.n_vocab}",
        f"tokens     {human(plan.n_tokens)}: {plan.n_tokens / n:.3g} a parameter, "
        f"{plan.readings:.2g} readings of the text",
        f"arithmetic {plan.flops:.3g} FLOPs, {_hours(hours)} hours of one, "
        f"{hours / count / 24:.3g} days of {count:,} (asked: {days:g})",
        f"file       {files}; the text is {text_bytes / (2 * n):.3g} times the F16 file",
        f"memory     training {human(TRAINING_BYTES * n)}B and activations, {human(state)}B on "
        f"each when all is sharded{fits}; running: the file and {human(kv)}B for {c.n_ctx} tokens",
        *ranks_line(plan, gpu, count, network),
        f"checkpoint {human(CHECKPOINT_BYTES * n)}B, one an hour: {n_saves:,} of them",
        f"cost       ${hours * gpu.price:,.2f} at ${gpu.price:g} an hour",
    ]


# ---- command ----


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.set_defaults(command=run)
    command.add_argument("--text", required=True, help="how much there is: 10TB, 3.5GB")
    command.add_argument("--gpu", choices=[*GPUS, "cpu"], default="h100", help="cpu: this machine")
    command.add_argument("--count", type=int, default=1, help="of them (1)")
    command.add_argument("--days", type=float, required=True, help="of computing")
    command.add_argument("--mfu", type=float, help="share of the peak that is kept")
    command.add_argument("--price", type=float, help="dollars an hour of one")


def run(options: argparse.Namespace) -> int:
    from dataclasses import replace

    text_bytes = parse_bytes(options.text)
    for name, low, high in (
        ("count", 1, 10**7),
        ("days", 1e-4, 1e5),
        ("mfu", 1e-3, 1),
        ("price", 0, 1e6),
    ):
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            raise ValueError(f"--{name} is {value}, expected {low:g} to {high:g}")
    gpu = this_cpu() if options.gpu == "cpu" else GPUS[options.gpu]
    network = NETWORKS.get(options.gpu)
    changes = {"mfu": options.mfu, "price": options.price}
    gpu = replace(gpu, **{name: value for name, value in changes.items() if value is not None})
    flops = options.count * options.days * 86400 * gpu.peak * gpu.mfu
    print(
        f"given      {human(text_bytes)}B of text, {human(text_bytes / BYTES_PER_TOKEN)} tokens at "
        f"{BYTES_PER_TOKEN:g} bytes; {options.count:,} {options.gpu} for {options.days:g} "
        f"day{'s' * (options.days != 1)}\n"
        f"assumed    {human(gpu.peak)}FLOP/s each in bf16, {gpu.mfu:.0%} of it kept: "
        f"{flops:.3g} FLOPs"
    )
    notes = {
        "compute-optimal": f"the lowest loss, about {OPTIMAL_RATIO:g} tokens a parameter",
        "text-limited": f"what {MAX_READINGS:g} readings can teach, about {OPTIMAL_RATIO:g} tokens "
        "a parameter; more text would help, more time would not",
        "inference-heavy": "the whole text once, by a smaller model: cheaper wherever it runs",
    }
    for name, plan in make_plans(text_bytes, flops).items():
        print(f"\n{name}: {notes[name]}")
        print("\n".join(describe(plan, gpu, options.count, options.days, text_bytes, network)))
    return 0
