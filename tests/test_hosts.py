"""Ranks on two hosts: the same file, and what is said when a rank, a host or the link is lost.

The hosts are namespaces of one machine (two_hosts.py); MPI's messages between them go over TCP.
"""

import re
import subprocess
import sys
from contextlib import contextmanager

import pytest
from test_distributed import needs_mpi
from test_launch import wait_until
from training import STEPS, arguments, finish, without_pictures
from two_hosts import TwoHosts

from llm.compare import compare_files
from llm.distributed import mpiexec
from llm.launch import read_ranks

pytestmark = needs_mpi
SLOTS = ("--slot-sequences", 2)
LONG_STEPS = ("--steps", 1000, "--batch", 256, "--slot-sequences", 128)
PATIENT = ("--patience", 5)


@pytest.fixture
def hosts(tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError")  # pictures take half of the time
    (tmp_path / "hosts").mkdir()
    with TwoHosts(tmp_path / "hosts") as both:
        yield both


@pytest.fixture(scope="module")
def undisturbed(text, tmp_path_factory):
    """The file of one process on one host."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with without_pictures():
        finish(text, folder, *STEPS, *SLOTS)
    return folder / "out.bin"


@contextmanager
def start(hosts, folder, *command):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with hosts.popen(map(str, command), env={"PYTHONPATH": str(folder)}, **pipes) as job:
        try:
            yield job
        finally:
            job.kill()


def ranks(where, *train):
    return (mpiexec(), "-hosts", where, "-n", len(where.split(",")), *llm(*train))


def launch(restarts, options, *train):
    job = ["-n", 2, "--hosts", "hosta,hostb", "--max-restarts", restarts, *options]
    return llm("launch", *job, "--", *train)


def llm(*given):
    return (sys.executable, "-m", "llm", *given)


def steps_are_saved(folder):
    """When it goes on from the middle."""
    saved = folder / "run" / "checkpoint.npz"
    wait_until(saved.exists)
    first = saved.stat().st_ino
    wait_until(lambda: saved.stat().st_ino != first)


def cut_amid_a_step(hosts, folder):
    """Where rank 0 waits for what rank 1 had no time to send."""
    wait_until((folder / "run" / "good.npz").exists)
    rank = dict(row[:2] for row in read_ranks(folder / "run"))[1]
    sign = folder / "run" / "pulse-0"
    while True:
        hosts.run("hostb", "kill", "-STOP", rank)
        before = sign.read_text()
        wait_until(lambda before=before: sign.read_text() != before)
        if "step-" in sign.read_text():
            break
        hosts.run("hostb", "kill", "-CONT", rank)
    hosts.cut()
    hosts.run("hostb", "kill", "-CONT", rank)


def test_two_hosts_write_the_same_file(text, undisturbed, hosts, tmp_path):
    given = arguments(text, tmp_path, *STEPS, *SLOTS)
    with start(hosts, tmp_path, *ranks("hosta,hosta,hostb,hostb", *given)) as job:
        said, errors = job.communicate(timeout=100)
    assert job.returncode == 0, said + errors
    told = read_ranks(tmp_path / "run")
    assert [host for _, _, host in told] == ["hosta", "hosta", "hostb", "hostb"]
    assert compare_files(undisturbed, tmp_path / "out.bin") == []
    n_bytes = int(hosts.run("hosta", "cat", "/sys/class/net/eth0/statistics/tx_bytes"))
    assert n_bytes > STEPS[1] / 2 * undisturbed.stat().st_size  # gradients and weights


def test_a_dead_rank_of_the_other_host_is_named_and_started_again(
    text, undisturbed, hosts, tmp_path
):
    given = arguments(text, tmp_path, *STEPS, *SLOTS)
    with start(hosts, tmp_path, *launch(1, (), *given)) as job:
        steps_are_saved(tmp_path)
        dead = dict(row[:2] for row in read_ranks(tmp_path / "run"))[1]
        hosts.run("hostb", "kill", "-KILL", dead)
        said, errors = job.communicate(timeout=100)
    assert job.returncode == 0, said + errors
    named = re.escape(f"rank 1 on hostb (process {dead}): Killed (signal 9)")
    assert re.search(rf"^died       {named}\nrestart    from .*checkpoint.npz", said, re.M), said
    assert compare_files(undisturbed, tmp_path / "out.bin") == []


def test_a_lost_host_is_named_and_the_other_goes_on_alone(text, undisturbed, hosts, tmp_path):
    given = arguments(text, tmp_path, *STEPS, *SLOTS)
    with start(hosts, tmp_path, *launch(0, (), *given)) as job:
        steps_are_saved(tmp_path)
        hosts.lose_hostb()
        said, errors = job.communicate(timeout=100)
    line = "llm: mpiexec lost the connection to hostb; no restart is left of 0\n"
    assert (job.returncode, errors) == (255, line), said
    finish(text, tmp_path, "--resume")
    assert compare_files(undisturbed, tmp_path / "out.bin") == []


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (ranks("hosta,hostb"), r"rank 0 on hosta: step \d+ has not ended in 5 s: a rank, .*"),
        (launch(0, PATIENT), r"every rank lives, but step \d+ has not ended in \d+ s; no .*"),
    ],
)
def test_a_cut_link_ends_the_ranks_on_both_sides(text, hosts, tmp_path, command, named):
    """The launcher names it and ends what it reaches; those that it does not end themselves."""
    given = arguments(text, tmp_path, *LONG_STEPS)
    own = () if "launch" in command else PATIENT
    with start(hosts, tmp_path, *command, *given, *own) as job:
        cut_amid_a_step(hosts, tmp_path)
        said, errors = job.communicate(timeout=100)
    assert job.returncode in (75, 137) and re.search(rf"^llm: {named}$", errors, re.M), errors
    commands = ("sh", "-c", "cat /proc/[0-9]*/cmdline || true")
    wait_until(lambda: "train" not in hosts.run("hostb", *commands))


def test_a_mistake_on_the_other_host_ends_all(text, hosts, tmp_path):
    given = [arguments(name, tmp_path, "--steps", 2) for name in (text, tmp_path / "none.txt")]
    command = [*ranks("hosta,hostb", *given[0]), ":", "-n", 1, *llm(*given[1])]
    command[command.index("-n") + 1] = 1
    with start(hosts, tmp_path, *command) as job:
        _, errors = job.communicate(timeout=100)
    assert job.returncode == 1 and re.search(r"^llm: rank 1 on hostb: \S+none.txt: ", errors, re.M)
