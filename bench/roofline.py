"""What a training step should take on a GPU, on paper: bytes, FLOPs, milliseconds of a kernel.

    .venv/bin/python bench/roofline.py [--gpu h100|h200] [--size 124M|1.5B] [--attention fused]

The model's own code (llm/model.py, llm/optim.py) runs on OpsCuda with arrays that have a shape and
no memory; every kernel and product is counted as it would be launched, so the table follows the
code. Needs no GPU. The milliseconds of a kernel are

    max(FLOPs / (PRODUCTS * peak), bytes / (ROWS * bandwidth))

with peak and bandwidth of NVIDIA's data sheets and the shares assumed here, FUSED in the place of
PRODUCTS for the attention of csrc/train_flash.h; model FLOP utilisation is flops_per_token (causal
half of attention) * tokens / (seconds * peak).
"""

import argparse
import itertools
import math
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from llm.config import ModelConfig, layout_size
from llm.model import Transformer
from llm.ops_cuda import FLASH_ROWS, OpsCuda
from llm.optim import OPTIMIZERS

GPUS = {"h100": (989e12, 3.35e12), "h200": (989e12, 4.8e12)}  # dense bf16 FLOP/s, bytes/s (SXM)
PRODUCTS, ROWS = 0.72, 0.85  # shares of them that cuBLAS and row kernels reach: assumptions
FUSED = 0.20  # of the peak, in csrc/train_flash.h: an assumption (bench/README.md has its grounds)
LAUNCH = 30e-6  # seconds of Python for a launch, as measured without CuPy; hidden behind work
STEP_TOKENS = 524_288

SIZES = {  # sizes of GPT-2 small and XL with as many weights in a SwiGLU; sequences of a pass
    "124M": ({"n_layer": 12, "n_embd": 768, "n_head": 12, "n_kv_head": 12, "n_ff": 2048}, 16),
    "1.5B": ({"n_layer": 48, "n_embd": 1600, "n_head": 25, "n_kv_head": 25, "n_ff": 4272}, 8),
}
FLASH_PRODUCTS = {
    "forward": 2, "backward_q": 3, "backward_kv": 4, "backward_k": 3, "backward_v": 2
}  # fmt: skip
GROUPS = {  # kernel -> line of the table
    "round": "rounding operands", "split_heads": "attention: heads apart and together",
    "join_heads": "attention: heads apart and together", "causal_softmax": "attention: softmax",
    "causal_softmax_backward": "attention: softmax", "cross_entropy": "cross-entropy",
    "embed": "embedding", "embed_backward": "embedding", "adamw": "optimizer: rows",
    "sum_squares": "optimizer: rows", "muon_momentum": "optimizer: rows",
    "muon_update": "optimizer: rows", "combine": "sums over slots",
}  # fmt: skip
# How often an array crosses the bus where it is not once: read and written. A row that is read
# again is taken to be in a cache.
TWICE = {
    "rmsnorm_backward": ("dx", "dy"), "rope": ("x",), "swiglu_backward": ("gate", "up", "dh"),
    "cross_entropy": ("logits",), "adamw": ("p", "m", "v"), "muon_momentum": ("m",),
    "muon_update": ("p",),
}  # fmt: skip


ADDRESSES = itertools.count(step=1 << 40)


class Shape:
    """An array without memory; its data tells apart what is not the same."""

    flags = SimpleNamespace(c_contiguous=True)

    def __init__(self, shape: tuple, dtype: np.dtype, data=None):
        self.shape, self.dtype = shape, dtype
        self.data = data or SimpleNamespace(ptr=next(ADDRESSES))

    size = property(lambda self: math.prod(self.shape))
    nbytes = property(lambda self: self.size * self.dtype.itemsize)
    ndim = property(lambda self: len(self.shape))

    def __len__(self):
        return self.shape[0]

    @property
    def strides(self):
        return tuple(self.dtype.itemsize * math.prod(self.shape[i + 1 :]) for i in range(self.ndim))

    def __getitem__(self, parts):
        parts = parts if isinstance(parts, tuple) else (parts,)
        cut = (len(range(*p.indices(n))) for p, n in zip(parts, self.shape, strict=False))
        return Shape((*cut, *self.shape[len(parts) :]), self.dtype, self.data)

    def reshape(self, *shape):
        shape = shape[0] if isinstance(shape[0], tuple) else shape
        known = -math.prod(shape)
        shape = tuple(self.size // known if n == -1 else n for n in shape)
        return Shape(shape, self.dtype, self.data)

    def copy(self):
        return self


class Counted(OpsCuda):
    """Counts (FLOPs, bytes, share of the peak) of everything asked for, by line of the table."""

    kernels = "none"

    def __init__(self, fuses: bool):
        self._rounds, self._score_bytes, self.act_bytes = True, 12, 2
        self._fuses, self._weights, self._is_stale = fuses, None, True
        self.counts, self.within = defaultdict(list), "products"
        self._calls = self.calls()

    def empty(self, *shape):
        return Shape(shape, np.dtype(np.float32))

    def _empty_16(self, *shape):
        return Shape(shape, np.dtype(np.uint16))

    def from_host(self, array):
        return Shape(array.shape, array.dtype)

    def to_host(self, array):
        return np.zeros(array.size if array.ndim == 1 and array.size < 1 << 20 else 1)

    def write(self, x, values): ...

    def wait(self): ...

    def zero(self, x):
        self._count("zeros and copies", 0, x.nbytes)

    def _copy(self, x, source):
        self._count("zeros and copies", 0, x.nbytes + source.nbytes)

    def _count(self, line, flops, n_bytes, share=PRODUCTS):
        self.counts[line].append((flops, n_bytes, share))

    def _rows(self, name, n_rows, **values):
        arrays = {k: v for k, v in values.items() if isinstance(v, Shape)}
        n_bytes = sum(a.nbytes * (2 if k in TWICE.get(name, ()) else 1) for k, a in arrays.items())
        if name == "embed":  # bfloat16; of the table, in float32, only the rows of these tokens
            n_bytes = 3 * arrays["x"].nbytes
        if name == "embed_backward":  # which are read and written
            n_bytes = 5 * arrays["dx"].nbytes
        if name == "combine":
            n_bytes = 3 * values["out"].nbytes
        self._count(GROUPS.get(name, "norms, RoPE, SwiGLU"), 0, n_bytes)
        self._is_stale |= name in ("adamw", "muon_update")

    def _multiply(self, c, a, b, trans_a=False, trans_b=False, alpha=1.0, beta=0.0):
        k = a.shape[-2] if trans_a else a.shape[-1]
        moved = a.nbytes + b.nbytes + c.nbytes * (1 if beta == 0 else 2)
        self._count(self.within, 2 * c.size * k, moved)

    def _attention_forward(self, **arguments):
        self.within = "attention: products"
        super()._attention_forward(**arguments)
        self.within = "products"

    def _attention_backward(self, **arguments):
        self.within = "attention: products"
        super()._attention_backward(**arguments)
        self.within = "products"

    def _flash(self, name, n_head, q, k, **values):
        B, T, H, D = q.shape
        n_products = FLASH_PRODUCTS[name]
        flops = n_products * B * H * T * (T + FLASH_ROWS) * D  # 2 a product; half, and the diagonal
        arrays = [q, k, *(a for a in values.values() if isinstance(a, Shape))]
        self._count("attention: fused", flops, sum(a.nbytes for a in arrays), FUSED)

    def _muon(self, p, g, m, matrices, **arguments):
        self.within = "optimizer: products"
        super()._muon(p, g, m, matrices, **arguments)
        self.within = "products"


def counted(size: str, fuses: bool, optimizer: str, step_tokens: int | None = None):
    """(config, tokens of a pass, by line what is counted and how often a step does it)."""
    sizes, batch = SIZES[size]
    config = ModelConfig(n_vocab=50304, n_ctx=1024, **sizes)
    ops = Counted(fuses)
    flat = Shape((layout_size(config),), np.dtype(np.float32))
    model = Transformer(config, ops, flat)
    steps = OPTIMIZERS[optimizer](config, ops=ops)
    tokens = np.zeros((batch, config.n_ctx), np.int32)
    model.loss_and_grad(tokens, tokens)  # rounds the weights, as a step's first pass does
    ops.counts.clear()
    model.loss_and_grad(tokens, tokens)
    n_passes = (step_tokens or tokens.size) // tokens.size
    if n_passes > 1:
        ops._copy(flat, flat)  # a slot waits for its neighbour, then they are added
        ops.combine(flat, 1.0, flat, 1.0, flat)
    counts = {line: [found, n_passes] for line, found in ops.counts.items()}
    ops.counts = defaultdict(list)
    ops.sum_squares(flat)
    steps.step(flat, flat, 0.001)
    ops._rounded(model.params)
    for line, found in ops.counts.items():
        counts[f"{line} "] = [found, 1]  # of a step
    return config, tokens.size, counts


def seconds(found, peak: float, bandwidth: float) -> float:
    return sum(max(f / (share * peak), n / (ROWS * bandwidth)) for f, n, share in found)


def table(
    size: str, gpu: str, fuses: bool, optimizer: str, step_tokens: int | None = STEP_TOKENS
) -> tuple[str, float]:
    """The lines of a step of so many tokens, or of one pass, and its model FLOP utilisation."""
    peak, bandwidth = GPUS[gpu]
    config, n_tokens, counts = counted(size, fuses, optimizer, step_tokens)
    step_tokens = step_tokens or n_tokens
    lines, total, launches = [], 0.0, 0
    for line, (found, times) in counts.items():
        flops, n_bytes = (times * sum(x[i] for x in found) for i in (0, 1))
        took = times * seconds(found, peak, bandwidth)
        total, launches = total + took, launches + times * len(found)
        lines.append((took, f"| {line.strip()} | {flops / 1e12:.2f} | {n_bytes / 1e9:.1f} |"))
    utilisation = config.flops_per_token * step_tokens / (total * peak)
    text = "| kernels | TFLOP | GB | ms | share |\n|---|---|---|---|---|\n"
    for took, line in sorted(lines, reverse=True):
        text += f"{line} {1e3 * took:.1f} | {took / total:.0%} |\n"
    text += f"| a step of {step_tokens:,} tokens | | | {1e3 * total:.0f} | |\n"
    hidden = "hidden" if LAUNCH * launches < total else "not hidden"
    text += f"\n{launches:,} launches, {LAUNCH * launches * 1e3:.0f} ms of Python: {hidden}.\n"
    return text, utilisation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", choices=GPUS, default="h100")
    parser.add_argument("--size", choices=SIZES)
    parser.add_argument("--attention", choices=["batched", "fused"], default="batched")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw")
    options = parser.parse_args()
    for size in [options.size] if options.size else SIZES:
        text, _ = table(size, options.gpu, options.attention == "fused", options.optimizer)
        print(f"{size} on one {options.gpu}, attention {options.attention}\n\n{text}")
    print("| predicted model FLOP utilisation | " + " | ".join(GPUS) + " |\n|---|---|---|")
    for size in SIZES:
        for said, fuses in (("attention batched", False), ("attention fused", True)):
            found = (table(size, gpu, fuses, options.optimizer)[1] for gpu in GPUS)
            print(f"| {size}, {said} | " + " | ".join(f"{x:.0%}" for x in found) + " |")


if __name__ == "__main__":
    main()
