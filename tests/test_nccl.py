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


def test_more_ranks_than_gpus():
    runtime = SimpleNamespace(getDeviceCount=lambda: 1)
    cupy = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))
    group = Group()
    group.host, group.rank = "a", 2
    group.share = lambda host: ["a", "b", "a"]
    with pytest.raises(LlmError, match="2 ranks on a, which has 1 GPUs: one rank for each"):
        choose_gpu(group, cupy)
