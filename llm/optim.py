"""AdamW over the flat buffer, learning-rate schedules and clipping. Layer 2.

Schedules are pure functions of the step, so that a resumed run repeats them. Weight decay touches
matrices only, never gains. Source: Loshchilov and Hutter 2019.
"""

from __future__ import annotations

import math

import numpy as np

from .config import ModelConfig, layout, layout_size
from .ops_numpy import OpsNumpy


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
    """State and step for one flat buffer of `config.layout`.

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
        size = layout_size(config)
        self._m, self._v = self.ops.empty(size), self.ops.empty(size)
        self._m[...] = self._v[...] = 0
        self._step = 0
        self._decay = np.zeros(size, np.uint8)
        for entry in layout(config):
            if len(entry.shape) == 2:
                self._decay[entry.offset : entry.offset + entry.size] = 1

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
        self.ops.adamw(
            params,
            grads,
            self._m,
            self._v,
            self._decay,
            lr=lr,
            beta1=self.betas[0],
            beta2=self.betas[1],
            eps=self.eps,
            weight_decay=self.weight_decay,
            step=self._step,
            grad_scale=grad_scale,
        )
