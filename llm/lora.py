"""Low-rank adaptation (Hu et al. 2021): W + (alpha / rank) B A, of which A and B alone are trained.
Layer 2. Where the adapters of a model lie in their flat buffer, how they begin, how they merge."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .config import ModelConfig, TensorSpec, layout, place_all

TARGETS = {  # the name on the command line -> the matrix
    "q": "wq",
    "k": "wk",
    "v": "wv",
    "o": "wo",
    "gate": "w_gate",
    "up": "w_up",
    "down": "w_down",
}


@dataclass(frozen=True)
class Lora:
    rank: int
    alpha: float
    targets: tuple[str, ...] = tuple(TARGETS)

    def __post_init__(self):
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets:
            found = repr(unknown[0]) if unknown else "nothing"
            raise ValueError(f"LoRA target {found}, expected some of {','.join(TARGETS)}")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def layout(self, config: ModelConfig) -> list[TensorSpec]:
        """`blk.N.wq_a` (rank, n_in) and `blk.N.wq_b` (n_out, rank) of every target."""
        matrices = {TARGETS[name] for name in self.targets}
        shapes = []
        for entry in layout(config):
            if entry.name.rsplit(".", 1)[-1] in matrices:
                n_out, n_in = entry.shape
                shapes.append((f"{entry.name}_a", "", (self.rank, n_in)))
                shapes.append((f"{entry.name}_b", "", (n_out, self.rank)))
        return place_all(shapes)

    def begin(self, entries: list[TensorSpec], adapters: np.ndarray, seed: int) -> None:
        """A normal with deviation 1 / sqrt(n_in), B zero: the model is what it was."""
        rng = np.random.default_rng(seed)
        adapters[...] = 0
        for entry in entries:
            if entry.name.endswith("_a"):
                values = rng.standard_normal(entry.size, np.float32) / np.sqrt(entry.shape[1])
                adapters[entry.offset : entry.offset + entry.size] = values

    def merge(self, views: dict[str, np.ndarray], adapters: dict[str, np.ndarray]) -> None:
        """Adds (alpha / rank) B A to each matrix, rank by rank: a fixed order of sums."""
        for name, a in adapters.items():
            if not name.endswith("_a"):
                continue
            matrix, b = views[name[:-2]], adapters[name[:-2] + "_b"]
            for i in range(self.rank):
                matrix += np.outer(b[:, i] * b.dtype.type(self.scale), a[i])
