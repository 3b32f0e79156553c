"""AdamW and Muon over the flat buffer or a rank's part of it, schedules and clipping. Layer 3.

Schedules are pure functions of the step, so that a resumed run repeats them. Weight decay touches
matrices only, never gains. The buffer is cut into pieces in the same way for any number of ranks;
a rank owns some of them, and keeps state for these alone. Sources: Loshchilov and Hutter 2019
(AdamW), Jordan et al. 2024 (Muon), Rajbhandari et al. 2020 (ZeRO, stage 1).
"""

from __future__ import annotations

import math

import numpy as np

from .config import ModelConfig, TensorSpec, blocks_of, entries_size, layout
from .distributed import within
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
    """State and step for one flat buffer of `config.layout`, or of other entries.

    `state` holds the arrays "m" and "v" of what this rank owns and the int "step"; `load_state`
    takes whole arrays, bit for bit. `shards` are the slices that each rank owns. Pieces follow from
    n_slots alone, n_ranks <= n_slots. `ops` is the back end that computes (NumPy in float32 when
    absent).
    """

    def __init__(
        self,
        config: ModelConfig,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.1,
        eps: float = 1e-8,
        ops=None,
        entries: list[TensorSpec] | None = None,
        n_slots: int = 1,
        rank: int = 0,
        n_ranks: int = 1,
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
        self._matrices = [e for e in entries if self.takes_whole(e)]
        self._size = entries_size(entries)
        shares = self.shares(entries, config.n_layer, n_slots, n_ranks)
        self.shards = [_merge(pieces) for pieces in shares]
        self._pieces = shares[rank]
        self.owned = self.shards[rank]
        size = sum(map(_length, self.owned))
        self._m, self._v = self.ops.empty(size), self.ops.empty(size)
        self.ops.zero(self._m)
        self.ops.zero(self._v)
        self._step = 0
        decay = np.zeros(self._size, np.uint8)
        for entry in entries:
            if len(entry.shape) == 2:
                decay[_place(entry)] = 1
        self._decay = self.ops.from_host(self._of_owned(decay))
        self._ranges = [  # of what AdamW trains
            part
            for gap in _gaps([_place(e) for e in self._matrices], self._size)
            for part in within(self.owned, gap)
        ]

    @staticmethod
    def takes_whole(entry: TensorSpec) -> bool:
        """Whether the step of a tensor needs all of it."""
        return False

    @classmethod
    def shares(
        cls, entries: list[TensorSpec], n_layer: int, n_slots: int, n_ranks: int
    ) -> list[list[slice]]:
        """The pieces of the buffer that each rank owns, in rising order."""
        blocks, rest = blocks_of(entries, n_layer)
        matrices = [e for e in entries if cls.takes_whole(e)]
        return _shares([*blocks, *rest], matrices, n_slots, n_ranks)

    @property
    def state(self) -> dict:
        m, v = self.ops.to_host(self._m), self.ops.to_host(self._v)
        return {"m": m, "v": v, "step": self._step}

    def load_state(self, state: dict) -> None:
        for name, own in (("m", self._m), ("v", self._v)):
            if state[name].shape != (self._size,):
                raise ValueError(
                    f"optimizer state {name} has shape {state[name].shape}, "
                    f"expected ({self._size},)"
                )
            for part in self.owned:
                self.ops.write(own[self._local(part)], state[name][part])
        self._step = int(state["step"])

    def square_sums(self, grads) -> list[float]:
        """Of the pieces that this rank owns: math.fsum of all ranks' is the squared norm, the same
        for any number of ranks."""
        return self.ops.square_sums(grads, self._pieces)

    def step(self, params, grads, lr: float, grad_scale: float = 1.0) -> None:
        """Updates what this rank owns of params in place; grads are read as grads * grad_scale and
        left alone."""
        self._step += 1
        self._adamw(params, grads, lr, grad_scale)

    def _adamw(self, params, grads, lr: float, grad_scale: float) -> None:
        for part in self._ranges:
            own = self._local(part)
            self.ops.adamw(
                params[part],
                grads[part],
                self._m[own],
                self._v[own],
                self._decay[own],
                lr=lr,
                beta1=self.betas[0],
                beta2=self.betas[1],
                eps=self.eps,
                weight_decay=self.weight_decay,
                step=self._step,
                grad_scale=grad_scale,
            )

    def _of_owned(self, whole: np.ndarray) -> np.ndarray:
        return np.concatenate([whole[part] for part in self.owned] or [whole[:0]])

    def _local(self, part: slice) -> slice:
        """Where the state of a part of the buffer lies."""
        before = 0
        for owned in self.owned:
            if owned.start <= part.start and part.stop <= owned.stop:
                start = before + part.start - owned.start
                return slice(start, start + _length(part))
            before += _length(owned)
        raise ValueError(f"{part} is not owned")


class Muon(AdamW):
    """Orthogonalised momentum for the matrices of the blocks; AdamW, at the same rate, for
    embedding, output and all vectors.

    Of a matrix "m" is the momentum and "v" stays zero. Matrices are not decayed. A rank owns whole
    matrices.
    """

    def __init__(self, config: ModelConfig, **options):
        super().__init__(config, **options)
        own = [e for e in self._matrices if within(self.owned, _place(e))]
        table = [(e.offset, *e.shape, self._local(_place(e)).start) for e in own]
        self._table = np.array(table, np.int64).reshape(-1, 4)

    @staticmethod
    def takes_whole(entry: TensorSpec) -> bool:
        return len(entry.shape) == 2 and "blk." in entry.name

    def step(self, params, grads, lr: float, grad_scale: float = 1.0) -> None:
        self._step += 1
        self._adamw(params, grads, lr, grad_scale)
        momentum = 0.85 + 0.1 * min(1.0, self._step / 300)
        self.ops.muon(params, grads, self._m, self._table, lr, momentum, grad_scale)


OPTIMIZERS = {"adamw": AdamW, "muon": Muon}
SCHEDULES = {"cosine": warmup_cosine, "linear": warmup_linear}


def _place(entry: TensorSpec) -> slice:
    return slice(entry.offset, entry.offset + entry.size)


def _gaps(taken: list[slice], size: int) -> list[slice]:
    """What lies between slices in rising order."""
    ends, starts = [0, *(s.stop for s in taken)], [*(s.start for s in taken), size]
    return [slice(a, b) for a, b in zip(ends, starts, strict=True) if a < b]


def _length(part: slice) -> int:
    return part.stop - part.start


# ---- pieces of the buffer, and who owns them ----

ALIGN = 16  # floats: where a vector of the kernels may begin


def _shares(
    parts: list[slice], matrices: list[TensorSpec], n_slots: int, n_ranks: int
) -> list[list[slice]]:
    """The pieces of each rank, in rising order. Each rank has some of each part, so that what
    travels when the gradient of a part is known goes to all of them: a part is cut into n_slots
    pieces, or, where it has matrices, at each. A matrix goes to the rank that has least to do."""
    shares, loads = [[] for _ in range(n_ranks)], [0] * n_ranks
    for part in reversed(parts):
        inside = [e for e in matrices if part.start <= e.offset < part.stop]
        if not inside:
            for i, piece in enumerate(_cut(part, n_slots)):
                shares[i * n_ranks // n_slots].append(piece)
        edges = [part.start, *(e.offset for e in inside[1:]), part.stop]
        pieces = [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]
        for entry in sorted(inside, key=_cost, reverse=True):
            rank = loads.index(min(loads))
            loads[rank] += _cost(entry)
            shares[rank].append(pieces[inside.index(entry)])
    return [sorted(filter(_length, pieces), key=lambda s: s.start) for pieces in shares]


def _cost(matrix: TensorSpec) -> int:
    """Of Muon's products."""
    side, other = sorted(matrix.shape)
    return side**2 * (2 * other + side)


def _cut(part: slice, n: int) -> list[slice]:
    """n nearly equal pieces, some of them empty in a small part."""
    units = -(-_length(part) // ALIGN)
    edges = [min(part.stop, part.start + units * i // n * ALIGN) for i in range(n + 1)]
    return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]


def _merge(pieces: list[slice]) -> list[slice]:
    merged = []
    for piece in pieces:
        if merged and merged[-1].stop == piece.start:
            merged[-1] = slice(merged[-1].start, piece.stop)
        else:
            merged.append(piece)
    return merged
