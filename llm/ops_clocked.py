"""Where a step's time goes, and the peak that it is measured against. Layer 2.

Clocked wraps a back end and adds up the seconds of each part; `train --profile` and
bench/bench_train.py both use it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

PARTS = {  # operation -> the part of the step that it is counted in
    "gemm": "products", "attention": "attention", "attention_backward": "attention",
    "cross_entropy": "cross-entropy", "adamw": "optimizer", "muon": "optimizer",
    "sum_squares": "optimizer", "square_sums": "optimizer", "combine": "optimizer",
}  # fmt: skip
NOT_COUNTED = ("empty", "from_host", "to_host", "wait")
PEAK_SIZE = 1024
PEAK_SECONDS = 0.2


class Clocked:
    """An ops back end that adds up the seconds of each part by `clock`."""

    def __init__(self, ops, clock: Callable[[], float] = time.process_time):
        self._ops, self._clock, self.parts = ops, clock, {}

    def __getattr__(self, name):
        found = getattr(self._ops, name)
        if name in NOT_COUNTED or not callable(found):
            return found

        def call(*args, **options):
            start = self._clock()
            result = found(*args, **options)
            self._ops.wait()
            part = PARTS.get(name, "norms, RoPE, SwiGLU")
            self.parts[part] = self.parts.get(part, 0.0) + self._clock() - start
            return result

        return call


def measure_peak(ops) -> float:
    """FLOP/s of the best of some large products, in the precision and on the threads of `ops`."""
    a, b, c = (ops.empty(PEAK_SIZE, PEAK_SIZE) for _ in range(3))
    ones = np.ones((PEAK_SIZE, PEAK_SIZE), ops.dtype)
    for x in (a, b):
        ops.write(x, ones)
    best, end = float("inf"), time.perf_counter() + PEAK_SECONDS
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        ops.gemm(c, a, b, trans_b=True)
        ops.wait()
        best = min(best, time.perf_counter() - start)
    return 2 * PEAK_SIZE**3 / best
