"""Ranks: sums in the fixed tree, and what is said where ranks cannot work together.

The subprocesses need the extra [mpi]; tests that start them skip where it is not installed.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT
from llm.distributed import Group, even_shards, mpiexec, tree_sum, within, world
from llm.errors import LlmError

HAS_MPI = importlib.util.find_spec("mpi4py") and Path(sys.executable).with_name("mpiexec").exists()
needs_mpi = pytest.mark.skipif(not HAS_MPI, reason="no mpi4py, mpich: pip install '.[mpi]'")

SECONDS = 100  # after which a job hangs


def ranks(n, *arguments, **options):
    """A job of n ranks of this Python; (exit status, standard output, standard error)."""
    command = [mpiexec(), "-n", str(n), sys.executable, *map(str, arguments)]
    pipes = {"capture_output": True, "text": True, "timeout": SECONDS}
    done = subprocess.run(command, cwd=ROOT, check=False, **pipes, **options)
    return done.returncode, done.stdout, done.stderr


# ---- the group ----

EXCHANGE = """
import numpy as np
from llm.distributed import even_shards, tree_sum, world
g, n = world(), 1001
parts = [np.random.default_rng(r).standard_normal(n).astype(np.float32) for r in range(g.size)]
expected = tree_sum([p.copy() for p in parts])
mine = parts[g.rank].copy()
g.all_reduce(mine)
assert (mine == expected).all()
shards = [[slice(0, 3)], [slice(500, n)], [], [slice(3, 200), slice(200, 500)]]
mine, ends = parts[g.rank].copy(), []
for part in (slice(400, n), slice(0, 1), slice(1, 400)):
    ends.append(g.begin_reduce(mine, shards, part))
for end in ends:
    end()
for piece in shards[g.rank]:
    assert (mine[piece] == expected[piece]).all()
g.all_gather(mine, shards)
assert (mine == expected).all()
assert g.share(g.rank) == [0, 1, 2, 3] and g.broadcast(g.rank) == 0
assert g.gather(g.rank) == ([0, 1, 2, 3] if g.rank == 0 else None)
g.barrier()
print("fine")
"""


@needs_mpi
def test_arrays_and_values_travel():
    status, said, errors = ranks(4, "-c", EXCHANGE)
    assert (status, said.count("fine")) == (0, 4), said + errors  # lines may lie in one another


def test_one_process_is_a_group_without_mpi():
    group, x = Group(), np.arange(5.0)
    group.all_reduce(x)
    assert x.tolist() == [0, 1, 2, 3, 4] and group.share(7) == group.gather(7) == [7]
    assert world().size == 1 and "mpi4py" not in sys.modules


def test_the_tree_adds_neighbours_first():
    tiny = np.float32(2**-24)  # lost beside 1 alone, not beside 1 in pairs
    parts = [np.array([x], np.float32) for x in (1, tiny, tiny, tiny)]
    assert tree_sum(parts)[0] == np.float32(1 + 2 * tiny)


def test_shards_tile_the_array():
    for size, n in ((10, 4), (3, 8), (0, 2)):
        edges = [(s.start, s.stop) for (s,) in even_shards(size, n)]
        assert edges[0][0] == 0 and edges[-1][1] == size
        assert all(a[1] == b[0] for a, b in zip(edges, edges[1:], strict=False))
    assert within([slice(0, 4), slice(6, 9)], slice(3, 7)) == [slice(3, 4), slice(6, 7)]


# ---- what cannot be ----


def test_mpi4py_is_missing(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(LlmError, match=r"one of 2 ranks, but mpi4py .* pip install 'two-file-llm"):
        world.__wrapped__()


def test_the_launcher_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LlmError, match="there is no mpiexec: pip install"):
        mpiexec()


@needs_mpi
def test_a_launcher_of_another_mpi():
    """Open MPI's mpiexec starts each rank; MPICH's library takes each for a job of its own."""
    command = [sys.executable, "-c", "from llm.distributed import world; world()"]
    environment = {**os.environ, "OMPI_COMM_WORLD_SIZE": "3"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode == 1
    assert b"one of 3 ranks, but mpi4py sees 1: start them with the mpiexec of" in done.stderr


@needs_mpi
def test_abort_ends_all_ranks_and_names_one():
    code = "from llm.distributed import world; g = world(); g.rank == 1 and g.abort('no room')"
    status, _, errors = ranks(2, "-c", f"{code}; g.barrier()")
    assert status != 0 and "llm: rank 1 on " in errors and ": no room\n" in errors
