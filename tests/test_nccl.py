"""Ranks with GPUs, on hosts that play them: the same parameters for any number of ranks."""

from types import SimpleNamespace

import numpy as np
import pytest
from cuda_stand_in import build_kernels
from test_distributed import needs_mpi, ranks

from conftest import ROOT
from llm.distributed import Group
from llm.errors import LlmError
from llm.nccl import choose_gpu


@needs_mpi
def test_ranks_with_gpus_do_what_one_does(tmp_path):
    build_kernels(tmp_path)
    program, library = ROOT / "tests/nccl_stand_in.py", tmp_path / "fp32/kernels.so"
    found = set()
    for n in (1, 2, 4):
        status, said, errors = ranks(n, program, library, tmp_path / str(n))
        assert status == 0, said + errors
        found |= {(tmp_path / f"{n}.{rank}").read_bytes() for rank in range(n)}
    assert len(found) == 1
    params = np.frombuffer(found.pop(), np.float32)
    assert np.isfinite(params).all() and np.abs(params).max() > 0


def chosen_gpu(rank, *seen):
    """By one of the ranks, each of which sees (host, bus ids of its GPUs)."""
    group, used = Group(), []
    group.rank, group.host = rank, seen[rank][0]

    def share(mine):
        assert mine == seen[rank]
        return list(seen)

    group.share, buses = share, seen[rank][1]
    runtime = SimpleNamespace(
        getDeviceCount=lambda: len(buses), deviceGetPCIBusId=lambda i: buses[i]
    )
    device = lambda i: SimpleNamespace(use=lambda: used.append(i))  # noqa: E731
    choose_gpu(group, SimpleNamespace(cuda=SimpleNamespace(runtime=runtime, Device=device)))
    return used[0]


def test_each_rank_takes_a_gpu_of_its_own():
    node_a, node_b = ("a", ["1", "2"]), ("b", ["1", "2"])
    ranks = node_a, node_a, node_b, node_b
    assert [chosen_gpu(i, *ranks) for i in range(4)] == [0, 1, 0, 1]
    shown = ("a", ["1"]), ("a", ["2"])  # a scheduler's choice, which each rank counts from 0
    assert [chosen_gpu(i, *shown) for i in range(2)] == [0, 0]


def test_more_ranks_than_gpus():
    with pytest.raises(LlmError, match="2 ranks on a, which has 1 GPUs: one rank for each"):
        chosen_gpu(2, ("a", ["1"]), ("b", ["1"]), ("a", ["1"]))
