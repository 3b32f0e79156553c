"""AdamW and Muon over the flat buffer, learning-rate schedules and clipping. Layer 3.

Schedules are pure functions of the step, so that a resumed run repeats them. Weight decay touches
matrices only, never gains. Sources: Loshchilov and Hutter 2019 (AdamW), Jordan et al. 2024 (Muon).
"""

from __future__ import annotations

import math

import numpy as np

from .config import ModelConfig, TensorSpec, entries_size, layout
from .ops_numpy import OpsNumpy

ADAMW_SHARE = 0.15  # of Muon's rate goes to what AdamW trains beside it


def warmup_cosine(
    step: int, n_steps: int, n_warmup: int, peak: float, final_fraction: float = 0.05
) -> float:
    """Rate of step 0..n_steps - 1: linear to `peak`, then half a cosine to a fraction of it."""
    if step < n_warmup:
        return peak * (step + 1) / n_warmup
    progress = min(1.0, (step - n_warmup) / max(1, n_steps - 1 - n_warmup))
    return peak * (final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress)))


def warmup_linear(
    step: int, n_steps: int, n_warmup: int, peak: float, final_fraction: float = 0.0
) -> float:
    """Linear to `peak`, then linear down, towards `final_fraction` of it after the last step."""
    if step < n_warmup:
        return peak * (step + 1) / n_warmup
    progress = min(1.0, (step - n_warmup) / max(1, n_steps - n_warmup))
    return peak * (1 - (1 - final_fraction) * progress)


def clip_scale(norm: float, max_norm: float) -> float:
    """The factor that brings a gradient of this global norm to at most max_norm (0: no limit)."""
    return max_norm / norm if max_norm > 0 and norm > max_norm else 1.0


class AdamW:
    """State and step for one flat buffer of `config.layout`, or of other entries.

    `state` holds the arrays "m" and "v" and the int "step"; `load_state` takes it back, bit for
    bit. `ops` is the back end that computes (NumPy in float32 when absent).
    """

    def __init__(
        self,
        config: ModelConfig,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.1,
        eps: float = 1e-8,
        ops=None,
        entries: list[TensorSpec] | None = None,
    ):
        for name, value in (("beta1", betas[0]), ("beta2", betas[1])):
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value}, expected 0 <= {name} < 1")
        if weight_decay < 0 or eps <= 0:
            raise ValueError(
                f"weight_decay {weight_decay} and eps {eps}: expected at least 0 and over 0"
            )
        self.ops = ops or OpsNumpy(np.float32)
        self.betas, self.weight_decay, self.eps = betas, weight_decay, eps
        entries = layout(config) if entries is None else entries
        size = entries_size(entries)
        self._m, self._v = self.ops.empty(size), self.ops.empty(size)
        self._m[...] = self._v[...] = 0
        self._step = 0
        self._decay = np.zeros(size, np.uint8)
        for entry in entries:
            if len(entry.shape) == 2:
                self._decay[_place(entry)] = 1
        self._ranges = [slice(0, size)]  # of what AdamW trains

    @property
    def state(self) -> dict:
        return {"m": self._m, "v": self._v, "step": self._step}

    def load_state(self, state: dict) -> None:
        for name, own in (("m", self._m), ("v", self._v)):
            if state[name].shape != own.shape:
                raise ValueError(
                    f"optimizer state {name} has shape {state[name].shape}, expected {own.shape}"
                )
        self._m[...], self._v[...], self._step = state["m"], state["v"], int(state["step"])

    def step(self, params, grads, lr: float, grad_scale: float = 1.0) -> None:
        """Updates params in place; grads are read as grads * grad_scale and left alone."""
        self._step += 1
        self._adamw(params, grads, lr, grad_scale)

    def _adamw(self, params, grads, lr: float, grad_scale: float) -> None:
        for part in self._ranges:
            self.ops.adamw(
                params[part],
                grads[part],
                self._m[part],
                self._v[part],
                self._decay[part],
                lr=lr,
                beta1=self.betas[0],
                beta2=self.betas[1],
                eps=self.eps,
                weight_decay=self.weight_decay,
                step=self._step,
                grad_scale=grad_scale,
            )


class Muon(AdamW):
    """Orthogonalised momentum for the matrices of the blocks; AdamW, at ADAMW_SHARE of the rate,
    for embedding, output and all vectors.

    Of a matrix "m" is the momentum and "v" stays zero. Matrices are not decayed.
    """

    def __init__(self, config: ModelConfig, **options):
        super().__init__(config, **options)
        entries = options.get("entries") or layout(config)
        taken = [e for e in entries if len(e.shape) == 2 and "blk." in e.name]
        self._matrices = np.array([(e.offset, *e.shape) for e in taken], np.int64).reshape(-1, 3)
        self._ranges = _gaps([_place(e) for e in taken], entries_size(entries))

    def step(self, params, grads, lr: float, grad_scale: float = 1.0) -> None:
        self._step += 1
        self._adamw(params, grads, ADAMW_SHARE * lr, grad_scale)
        momentum = 0.85 + 0.1 * min(1.0, self._step / 300)
        self.ops.muon(params, grads, self._m, self._matrices, lr, momentum, grad_scale)


OPTIMIZERS = {"adamw": AdamW, "muon": Muon}
SCHEDULES = {"cosine": warmup_cosine, "linear": warmup_linear}


def _place(entry: TensorSpec) -> slice:
    return slice(entry.offset, entry.offset + entry.size)


def _gaps(taken: list[slice], size: int) -> list[slice]:
    """What lies between slices in rising order."""
    ends, starts = [0, *(s.stop for s in taken)], [*(s.start for s in taken), size]
    return [slice(a, b) for a, b in zip(ends, starts, strict=True) if a < b]
