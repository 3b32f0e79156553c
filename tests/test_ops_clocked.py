"""Clocked adds up what it measures and changes no result; the peak is a rate of products."""

import itertools

import numpy as np

from llm.ops_clocked import Clocked, measure_peak
from llm.ops_numpy import OpsNumpy


def test_parts_add_up_and_results_stay():
    ticks = itertools.count()
    plain = OpsNumpy(np.float32)
    ops = Clocked(plain, lambda: next(ticks))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    out, expected = ops.empty(2, 2), plain.empty(2, 2)
    plain.gemm(expected, x, x, trans_b=True)
    ops.gemm(out, x, x, trans_b=True)
    ops.gemm(out, x, x, trans_b=True)
    assert ops.sum_squares(x) == plain.sum_squares(x)
    assert np.array_equal(out, expected)
    assert ops.parts == {"products": 2, "optimizer": 1}
    assert ops.dtype == plain.dtype


def test_the_peak_counts_two_operations_for_each_product(monkeypatch):
    monkeypatch.setattr("llm.ops_clocked.PEAK_SIZE", 10)
    ticks = itertools.count()
    monkeypatch.setattr("llm.ops_clocked.time.perf_counter", lambda: float(next(ticks)))
    assert measure_peak(OpsNumpy(np.float32)) == 2000.0
