"""Ranks: sums in the fixed tree, runs that any number of them can do, what ends a job.

The subprocesses need the extra [mpi]; tests that start them skip where it is not installed. A job
does several tiny runs one after the other: its start takes longer than they do.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from training import arguments

from conftest import ROOT
from llm import cli, distributed, ops_clocked
from llm.checkpoint import RANKS
from llm.compare import compare_files
from llm.distributed import (
    Group,
    even_shards,
    levels,
    mpiexec,
    owned,
    tree_sum,
    wait_for_reader,
    within,
    world,
)
from llm.errors import LlmError
from llm.report import Report
from llm.settings import Settings

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
import os, socket, sys
hosts = sys.argv[1]
socket.gethostname = lambda: hosts[int(os.environ["PMI_RANK"])]
import numpy as np
from llm.distributed import even_shards, tree_sum, world
g, n = world(), 1001
assert g.n_here == hosts.count(g.host)
parts = [np.random.default_rng(r).standard_normal(n).astype(np.float32) for r in range(g.size)]
expected = np.empty_like(parts[0])
tree_sum([p.copy() for p in parts], expected)
mine = parts[g.rank].copy()
g.all_reduce(mine)
assert (mine == expected).all()
shards = [[] for _ in hosts]
shards[:4] = [slice(0, 3)], [slice(500, n)], [], [slice(3, 200), slice(200, 500)]
mine, ends = parts[g.rank].copy(), []
for part in (slice(400, n), slice(0, 1), slice(1, 400)):
    ends.append(g.begin_reduce(mine, shards, part))
for end in ends:
    end()
for piece in shards[g.rank]:
    assert (mine[piece] == expected[piece]).all()
g.all_gather(mine, shards)
assert (mine == expected).all()
every = list(range(len(hosts)))
assert g.share(g.rank) == every and g.broadcast(g.rank) == 0
assert g.gather(g.rank) == (every if g.rank == 0 else None)
g.barrier()
assert g.exchange is None
print("fine")
"""


@needs_mpi
@pytest.mark.parametrize("hosts", ["aaaa", "aabb", "aabbccdd"])
def test_arrays_and_values_travel(hosts):
    """The sums are those of the tree, whichever ranks share a host."""
    n = len(hosts)
    status, said, errors = ranks(n, "-c", EXCHANGE, hosts)
    assert (status, said.count("fine")) == (0, n), said + errors  # lines may lie in one another


def test_the_ranks_of_a_node_sum_first():
    assert levels(list("aaaa"), 1) == [([0, 1, 2, 3], 4)]
    assert levels(list("aabbccdd"), 3) == [([2, 3], 2), ([1, 3, 5, 7], 8)]
    assert levels(list("aaabbbbb"), 4) == levels(list("abababab"), 4) == [([*range(8)], 8)]
    pieces = [[slice(rank, rank + 1)] for rank in range(4)]
    assert owned(pieces, [2, 3], 2) == {
        2: [pieces[0][0], pieces[2][0]],
        3: [pieces[1][0], pieces[3][0]],
    }
    assert owned(pieces, [1, 3], 4) == {1: pieces[1], 3: pieces[3]}


def test_one_process_is_a_group_without_mpi():
    group, x = Group(), np.arange(5.0)
    group.all_reduce(x)
    assert x.tolist() == [0, 1, 2, 3, 4] and group.share(7) == group.gather(7) == [7]
    assert world().size == 1 and "mpi4py" not in sys.modules


def test_the_tree_adds_neighbours_first():
    tiny = np.float32(2**-24)  # lost beside 1 alone, not beside 1 in pairs
    parts = [np.array([x], np.float32) for x in (1, tiny, tiny, tiny)]
    for own in range(4):  # the sum may take the place of any
        copies = [part.copy() for part in parts]
        tree_sum(copies, copies[own])
        assert copies[own] == np.float32(1 + 2 * tiny)


def test_shards_tile_the_array():
    for size, n in ((10, 4), (3, 8), (0, 2)):
        edges = [(s.start, s.stop) for (s,) in even_shards(size, n)]
        assert edges[0][0] == 0 and edges[-1][1] == size
        assert all(a[1] == b[0] for a, b in zip(edges, edges[1:], strict=False))
    assert within([slice(0, 4), slice(6, 9)], slice(3, 7)) == [slice(3, 4), slice(6, 7)]


# ---- runs ----

# Runs of JSON, each (arguments, rank that is told to stop, after which step), and a folder for the
# sizes of each rank's state; no pictures, no peak. Four ranks believe that they are on two hosts.
RUNS = """
import json, os, signal, socket, sys
host = "ab"[int(os.environ["PMI_RANK"]) // 2]
socket.gethostname = lambda: host
from llm import cli, ops_clocked, train
from llm.report import Report
Report._write_pages = lambda *_: None
ops_clocked.PEAK_SECONDS = 0.0
take_step = train.take_step
for arguments, rank, step in json.loads(sys.argv[1]):
    def step_and_stop(run):
        fault = take_step(run)
        if run.step == step and run.group.rank == rank:
            os.kill(os.getpid(), signal.SIGINT)
        sizes = [x.nbytes for x in (run.optimizer.state["m"], run.optimizer.state["v"])]
        with open(f"{sys.argv[2]}/{run.group.size}.{run.group.rank}.json", "w") as file:
            json.dump([run.model.trained.nbytes, *sizes], file)
        return fault
    train.take_step = step_and_stop
    status = cli.main(arguments)
    assert status == (130 if step else 0), status
"""
SLOTS = ("--steps", 6, "--batch", 8, "--slot-sequences", 2)
OPTIMIZERS = ("adamw", "muon")


def job(n, folder, *runs):
    status, said, errors = ranks(n, "-c", RUNS, json.dumps(runs), folder)
    assert status == 0, said + errors
    return said


def whole_runs(text, folder):
    return [
        (arguments(text, folder / kind, *SLOTS, "--optimizer", kind), 0, 0) for kind in OPTIMIZERS
    ]


@pytest.fixture(scope="module")
def runs(text, tmp_path_factory):
    """Folders of the same runs by one rank (in this process), two and four. Another run of two was
    stopped by a signal to its second rank, and went on as four and as one."""
    folder = tmp_path_factory.mktemp("ranks")
    cut = arguments(text, folder / "cut", *SLOTS)
    two = job(2, folder, *whole_runs(text, folder / "2"), (cut, 1, 3))
    shutil.copytree(folder / "cut", folder / "cut4")
    again = (arguments(text, folder / "cut4", "--resume"), 0, 0)
    four = job(4, folder, *whole_runs(text, folder / "4"), again)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Report, "_write_pages", lambda *_: None)
        patch.setattr(ops_clocked, "PEAK_SECONDS", 0.0)
        for given, _, _ in whole_runs(text, folder / "1"):
            assert cli.main(given) == 0
        assert cli.main(arguments(text, folder / "cut", "--resume")) == 0
    return SimpleNamespace(folder=folder, two=two, four=four)


@needs_mpi
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("n", ["2", "4"])
def test_any_number_of_ranks_writes_the_same_file(runs, kind, n):
    alone, together = (runs.folder / m / kind / "out.bin" for m in ("1", n))
    assert compare_files(alone, together) == []


@needs_mpi
@pytest.mark.parametrize("cut", ["cut", "cut4"])
def test_any_number_of_ranks_goes_on(runs, cut):
    assert compare_files(runs.folder / "1/muon/out.bin", runs.folder / cut / "out.bin") == []


@needs_mpi
def test_only_the_first_rank_speaks(runs):
    for said in (runs.two, runs.four):
        assert said.count("\nwritten ") == said.count("\nrecipe ") >= 2
    assert "stopped    at step 3 of 6" in runs.two
    assert "4 ranks of 1 thread," in runs.four


@needs_mpi
def test_state_falls_with_the_number_of_ranks(runs):
    for n in (2, 4):
        for rank in range(n):
            params, *sizes = json.loads((runs.folder / f"{n}.{rank}.json").read_text())
            assert len(sizes) == 2
            for size in sizes:
                assert 0.7 < size * n / params < 1.3


# ---- what cannot be ----


def refused(n, more, other):
    """The one line that a job of n ranks says, the last with other options."""
    python = [sys.executable, "-m", "llm"]
    first = [*python, *map(str, more)]
    last = [*python, *map(str, other)]
    command = [mpiexec(), "-n", str(n - 1), *first, ":", "-n", "1", *last]
    pipes = {"capture_output": True, "text": True, "timeout": SECONDS}
    done = subprocess.run(command, cwd=ROOT, check=False, **pipes)
    lines = [line for line in done.stderr.splitlines() if line.startswith("llm: ")]
    assert done.returncode == 1 and len(lines) == 1, done.stderr
    return lines[0]


@needs_mpi
def test_ranks_with_other_options(text, tmp_path):
    line = refused(2, arguments(text, tmp_path), arguments(text, tmp_path, "--lr", 0.1))
    assert re.search(r"rank 0 on .*: --lr is not given on rank 0 and 0.1 on rank 1 \(.*\): ", line)


@needs_mpi
@pytest.mark.parametrize("other", [("--profile",), ("--run-dir", "elsewhere")])
def test_ranks_that_would_wait_for_each_other(text, tmp_path, other):
    line = refused(2, arguments(text, tmp_path), arguments(text, tmp_path, *other))
    assert re.search(rf"rank 0 on .*: {other[0]} is \S+ on rank 0 and \S+ on rank 1 \(", line)


@needs_mpi
def test_ranks_with_other_text(text, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(text.read_text() + ".")
    more = ("--steps", 2)
    line = refused(2, arguments(text, tmp_path, *more), arguments(other, tmp_path, *more))
    assert re.search(r"the text's SHA-256 is \w{64} on rank 0 and \w{64} on rank 1 \(", line)


@needs_mpi
def test_more_ranks_than_slots(text, tmp_path):
    given = arguments(text, tmp_path, "--steps", 2, "--batch", 1)
    assert "2 ranks cannot share a step of 1 slot " in refused(2, given, given)
    with pytest.raises(ValueError, match="3 ranks: expected a power of two"):
        Settings(batch=8).with_slots(3)
    assert Settings(batch=8).with_slots(4).n_slots == 4


@needs_mpi
def test_a_mistake_on_one_rank_ends_all(text, tmp_path):
    given = arguments(text, tmp_path, "--steps", 2)
    missing = arguments(tmp_path / "nothing.txt", tmp_path, "--steps", 2)
    line = refused(2, given, missing)
    assert re.search(r"llm: rank 1 on .*nothing.txt", line)


@needs_mpi
def test_a_killed_rank_ends_the_job(text, tmp_path):
    given = arguments(text, tmp_path, "--steps", 100_000)
    command = [mpiexec(), "-n", "2", sys.executable, "-m", "llm", *given]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        for line in process.stdout:
            if line.startswith("budget"):
                break
        who = (tmp_path / "run" / RANKS).read_text().splitlines()
        rank, number, host = who[1].split()
        assert rank == "1"
        os.kill(int(number), signal.SIGKILL)
        start = time.monotonic()
        said = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 9 and time.monotonic() - start < 30
    assert f"PID {number} RUNNING AT {host}" in said


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


ABORT = """
import os, signal, subprocess
from llm.distributed import world
group = world()
if group.rank == 1:  # the launcher is busy elsewhere when this rank speaks
    launcher = os.getppid()
    os.kill(launcher, signal.SIGSTOP)
    subprocess.Popen(f"exec >&- 2>&-; sleep 0.5; kill -CONT {launcher}", shell=True)
    group.abort("no room")
group.barrier()
"""


@needs_mpi
def test_abort_ends_all_ranks_and_names_one():
    for _ in range(3):  # a launcher that has not read the line forgets it now and then
        status, _, errors = ranks(2, "-c", ABORT)
        assert status != 0 and "llm: rank 1 on " in errors and ": no room\n" in errors


UNREACHED = """
from mpi4py import MPI
from llm import distributed

def fail(group):
    raise MPI.Exception(MPI.ERR_OTHER)

if MPI.COMM_WORLD.Get_rank() == 1:
    distributed.MpiGroup.meet = fail
distributed.world()
"""


@needs_mpi
def test_a_first_message_that_fails_ends_all_ranks():
    status, _, errors = ranks(2, "-c", UNREACHED)
    assert status != 0 and re.search("llm: rank 1 on .*: the ranks do not reach each other", errors)


def test_what_is_said_is_read_before_the_end():
    source, target = os.pipe()
    with os.fdopen(source, "rb", buffering=0) as reader, os.fdopen(target, "w") as stream:
        print("no room", file=stream, flush=True)
        late = threading.Timer(0.2, reader.read, [100])
        late.start()
        wait_for_reader(stream)
        late.join()
        os.set_blocking(source, False)
        assert reader.read(1) is None


@pytest.mark.parametrize("is_pipe", [True, False])
def test_nobody_waits_for_ever(tmp_path, monkeypatch, is_pipe):
    monkeypatch.setattr(distributed, "LONGEST_WAIT", 0.2 if is_pipe else 1e9)
    source, target = os.pipe()
    with os.fdopen(source), os.fdopen(target, "w") as pipe, open(tmp_path / "log", "w") as file:
        stream = pipe if is_pipe else file
        print("no room", file=stream, flush=True)
        wait_for_reader(stream)
