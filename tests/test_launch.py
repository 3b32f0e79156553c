"""Ranks that die: named, started again, and the file is that of a run that nobody disturbed.

LLM_KILLS=20 kills as often as the issue asks; by default a few times. Jobs of several ranks need
the extra [mpi] and skip where it is not installed.
"""

import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer

import numpy as np
import pytest
from test_distributed import needs_mpi, ranks
from training import STEPS, arguments, finish, refused, without_pictures

from conftest import ROOT
from llm import cli, distributed, launch
from llm.checkpoint import RANKS, checkpoints, folder_lock, save_checkpoint
from llm.compare import compare_files

KILLS = int(os.environ.get("LLM_KILLS", "3"))
TWO_HOSTS = ["--hosts", "127.0.0.1:1,127.0.0.2:1"]
PATIENT = ["--patience", "5"]
SLOTS = ("--slot-sequences", 4)

# What MPICH 5.0 says.
BANNER = """
===================================================================================
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   PID 2480 RUNNING AT node7
=   EXIT CODE: 9
=   CLEANING UP REMAINING PROCESSES
=   YOU CAN IGNORE THE BELOW CLEANUP MESSAGES
===================================================================================
YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)
This typically refers to a problem with your application.
Please see the FAQ page for debugging suggestions
"""


def start(text, folder, *more, n=1, restarts=0, options=()):
    job = ["launch", "-n", str(n), "--max-restarts", str(restarts), *options, "--"]
    command = [sys.executable, "-m", "llm", *job, *arguments(text, folder, *more)]
    (folder / "matplotlib.py").write_text("raise ImportError")  # pictures take half of the time
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def ranks_of(process) -> list[int]:
    """The processes that train: those below the launcher, mpiexec and its proxy."""
    found, below = [], [process]
    while below:
        parent = below.pop()
        try:
            words = Path(f"/proc/{parent}/cmdline").read_bytes().split(b"\0")
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        except OSError:
            continue  # it has ended
        if words[1:4] == [b"-m", b"llm", b"train"]:
            found.append(parent)
        below += map(int, children)
    return found


def wait_until(condition):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.005)
    pytest.fail("waited in vain")


# ---- real jobs ----


@pytest.fixture(scope="module")
def undisturbed(text, tmp_path_factory):
    """The file of one process, with slots that two ranks can share. No pictures in this module."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with without_pictures():
        finish(text, folder, *STEPS, *SLOTS)
        yield folder / "out.bin"


@pytest.mark.parametrize(("n", "kills"), [(1, 1), pytest.param(2, KILLS, marks=needs_mpi)])
def test_killed_at_random_moments_the_file_is_the_same(text, undisturbed, tmp_path, n, kills):
    """Of several ranks the first is not killed: it hangs."""
    with start(text, tmp_path, *STEPS, *SLOTS, n=n, restarts=kills, options=PATIENT) as job:
        kill_some(job, n, kills, tmp_path / "run", random.Random(n))
        said, errors = job.communicate(timeout=100)
    assert job.returncode == 0, said + errors
    assert len(re.findall("^died ", said, re.M)) == kills
    hung = re.findall(
        r"^died       rank [01] on \S+ \(process \d+\): silent for \d+ s$", said, re.M
    )
    assert len(hung) == n - 1, said
    assert compare_files(undisturbed, tmp_path / "out.bin") == []


def kill_some(job, n, kills, run, stir):
    dead = set()

    def living():
        ranks = set(ranks_of(job.pid)) - dead
        return len(ranks) == n and ranks

    for i in range(kills):
        ranks, last = wait_until(living), launch.stamps(run)
        if i % 3 != 1:  # amid the steps; else perhaps before them
            wait_until(lambda last=last: launch.stamps(run) != last)
        time.sleep(stir.random() * 0.2)
        end = signal.SIGSTOP if n > 1 and i == 0 else signal.SIGKILL
        os.kill(stir.choice(sorted(ranks)), end)
        dead |= ranks


@needs_mpi
def test_ctrl_c_ends_all_in_good_order(text, tmp_path):
    with start(text, tmp_path, "--steps", 100_000, "--save-seconds", 0, n=2) as job:
        wait_until(lambda: (tmp_path / "run" / "checkpoint.npz").exists())
        job.send_signal(signal.SIGINT)
        said, errors = job.communicate(timeout=100)
    assert (job.returncode, errors.count("Traceback")) == (130, 0), said + errors
    assert (tmp_path / "out.bin").exists() and not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("n", "hosts", "named"),
    [
        (1, [], r"the run on \S+ was ended by signal 9"),
        pytest.param(2, [], r"rank [01] on \S+ \(process PID\): Killed.*", marks=needs_mpi),
        pytest.param(
            2,
            TWO_HOSTS,
            r"rank 1 on 127.0.0.2 \(process PID\): Killed \(signal 9\)",
            marks=needs_mpi,
        ),
    ],
)
def test_a_dead_rank_is_named(text, tmp_path, monkeypatch, n, hosts, named):
    monkeypatch.setenv("HYDRA_LAUNCHER", "fork")  # instead of ssh: this machine plays both hosts
    with start(text, tmp_path, "--steps", 100_000, n=n, options=hosts) as job:
        wait_until(lambda: (tmp_path / "run" / "good.npz").exists())
        dead = dict(row[:2] for row in launch.read_ranks(tmp_path / "run")).get(1)
        dead = dead or ranks_of(job.pid)[-1]
        os.kill(dead, signal.SIGKILL)
        _, errors = job.communicate(timeout=100)
    line = f"llm: {named}; no restart is left of 0\n".replace("PID", str(dead))
    assert re.fullmatch(line, errors), errors
    assert job.returncode == 137


LIMITED = """
import resource, sys
from llm import cli
from llm.distributed import world
if world().rank == 1:  # after MPI has made its own files
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(cli.main(sys.argv[2:]))
"""


@needs_mpi
def test_a_full_disk_of_one_rank_and_a_lost_part_lose_nothing(text, undisturbed, tmp_path):
    """Two ranks that die, then two of which one cannot write, then one process."""
    folder, saved = tmp_path / "run", tmp_path / "run" / "checkpoint.npz"
    with start(text, tmp_path, *STEPS, *SLOTS, "--keep", 2, n=2) as job:
        wait_until(lambda: len(checkpoints(folder)) == 4)
        os.kill(ranks_of(job.pid)[0], signal.SIGKILL)
        job.communicate(timeout=100)
    before = saved.read_bytes()
    limit = min(path.stat().st_size for path in folder.glob("part-*.npz")) // 2
    status, said, errors = ranks(2, "-c", LIMITED, limit, *arguments(text, tmp_path, "--resume"))
    full = r"llm: rank 0 on \S+: \S+-1.npz: File too large \(rank 1 on \S+\); the checkpoint before"
    assert status == 1 and re.match(full, errors), errors
    assert saved.read_bytes() == before
    part = json.loads(np.load(saved)["state"].tobytes())["parts"][1]["file"]
    (folder / part).unlink()
    said = finish(text, tmp_path, "--resume")
    assert f"{saved}: its part {part} is missing: going on from {folder}/checkpoint-" in said
    assert compare_files(undisturbed, tmp_path / "out.bin") == []
    assert not list(folder.glob("part-*.npz"))


# ---- what is decided between two attempts ----


@pytest.fixture
def attempts(tmp_path, monkeypatch):
    """Plays attempts: each is a status and the step of the checkpoint it leaves, if any. Gives
    launch() of them, the arguments of each attempt and the pauses between them."""
    ran, pauses = [], []

    def play(*plays, max_restarts=9, signals=()):
        left = list(plays)

        def attempt(command, n_ranks, folder, stop, patience):
            ran.append(command[3:])
            status, step, *cause = left.pop(0)
            if step is not None:
                save_checkpoint(folder / "checkpoint.npz", {"step": step}, {})
            if len(ran) in signals:
                stop._note(signal.SIGTERM, None)
            return status, "".join(cause) or "it"

        monkeypatch.setattr(launch, "attempt", attempt)
        monkeypatch.setattr(launch.Stop, "wait", lambda _, seconds: pauses.append(seconds))
        return launch.launch(1, max_restarts, ["train"], tmp_path)

    play.ran, play.pauses = ran, pauses
    return play


def test_it_restarts_from_the_checkpoint_until_it_ends_well(attempts):
    assert attempts((137, None), (137, 1), (1, 2), (0, 3)) == 0
    assert attempts.ran == [["train"], ["train"], *[["train", "--resume"]] * 2]
    assert len(attempts.pauses) == 3


def test_the_checkpoint_of_an_earlier_run_is_not_gone_on_from(attempts, tmp_path):
    save_checkpoint(tmp_path / "checkpoint.npz", {"step": 50}, {})
    assert attempts((137, None), (137, 1), (0, 2)) == 0
    assert attempts.ran == [["train"], ["train"], ["train", "--resume"]]


def test_pauses_grow_while_it_gets_no_further(attempts, capsys):
    """A link that is down for minutes does not use up the restarts of a run that got on before."""
    lost = (255, None)
    plays = [lost] * 3 + [(137, 1)] + [lost] * 7 + [(137, 2), (137, 3), (0, 4)]
    assert attempts(*plays, max_restarts=8) == 0
    assert attempts.pauses == [1, 2, 4, 0, 1, 2, 4, 8, 16, 32, 60, 0, 0]
    said = capsys.readouterr().out.splitlines()[1::2]
    saved = r"restart    from \S+/checkpoint.npz"
    for line, expected in (
        (said[2], "restart    from the beginning in 4 s; 5 left after it"),
        (said[3], f"{saved} at once; 7 left after it"),
        (said[10], f"{saved} in 60 s; 0 left after it"),
    ):
        assert re.fullmatch(expected, line), line


def test_restarts_that_get_no_further_are_used_up(attempts, capsys):
    """What a run saves as it begins, at the step of the checkpoint before, is no progress."""
    assert attempts((137, 5), (137, 5), (137, None), (137, 5), max_restarts=3) == 137
    assert attempts.pauses == [0, 1, 2]
    assert capsys.readouterr().err == "llm: it; no restart is left of 3\n"


def test_a_run_that_fails_twice_alike_is_not_started_again(attempts, capsys):
    """What it saves as it begins is the step of the checkpoint before; another failure, or one that
    a further step precedes, is none of the same."""
    room = [(1, 4, f"part-000000004-{token}-0.npz: no room") for token in ("4f9c6bfb", "6bacfa50")]
    assert attempts(*room) == 1 and "6bacfa50-0.npz: no room; so it" in capsys.readouterr().err
    attempts.ran.clear()
    plays = (1, 5, "no room"), (1, 5, "no text"), (1, 6, "no text"), (1, 6, "no text")
    assert attempts(*plays) == 1 and len(attempts.ran) == 4
    said = "no text; so it did before, after the checkpoint of step 6: another start would end "
    assert capsys.readouterr().err == f"llm: {said}alike\n"


@pytest.mark.parametrize("status", [137, 255, distributed.LOST])
def test_what_another_host_may_be_the_cause_of_is_started_again(attempts, status):
    """Before there is a checkpoint, too."""
    assert attempts(*[(status, None)] * 3, *[(status, 5)] * 3, (0, 6)) == 0


def test_a_real_run_that_fails_twice_alike(text, tmp_path):
    with start(text, tmp_path, *STEPS, "--lr", 1000, "--clip", 1e9, restarts=5) as job:
        said, errors = job.communicate(timeout=100)
    lines = errors.splitlines()
    assert job.returncode == 1 and said.count("\nrestart ") == 1, said + errors
    assert len(lines) == 3 and lines[0] == lines[1] and "try a lower --lr" in lines[0], errors
    assert re.fullmatch(rf"{re.escape(lines[0])}; so it did before, after the .*", lines[2]), errors


LOSES = """
import sys
from llm import cli, train
from llm.distributed import world
def lose(run):
    if world().rank == 1:
        from mpi4py import MPI
        raise MPI.Exception(MPI.ERR_OTHER)
    world().barrier()
train.take_step = lose
sys.exit(cli.main(sys.argv[1:]))
"""


@needs_mpi
def test_what_mpi_says_of_a_link_is_no_mistake_of_the_run(text, tmp_path):
    status, _, errors = ranks(2, "-c", LOSES, *arguments(text, tmp_path, *STEPS))
    assert status == distributed.LOST
    launch.pass_on(errors.splitlines(), io.StringIO(), [], said := [])
    assert re.match(r"rank 1 on \S+: mpi4py", launch.last_words(said)), errors


def test_a_checkpoint_that_cannot_be_read_is_no_progress(tmp_path):
    (tmp_path / "checkpoint.npz").write_bytes(b"PK")
    assert launch.newest_step(tmp_path) == -1


def test_a_signal_ends_a_pause_at_once():
    with launch.Stop() as stop:
        Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        start = time.monotonic()
        stop.wait(60)
    assert stop.signal == signal.SIGINT and time.monotonic() - start < 10


@pytest.mark.parametrize("status", [1, 2])
def test_a_run_that_refuses_to_begin_is_not_started_again(attempts, status, capsys):
    assert attempts((status, None)) == status
    assert capsys.readouterr() == ("", "")  # it has said why


def test_a_signal_ends_it_with_its_own_status(attempts):
    assert attempts((137, 1), (130, 2), signals=[2]) == 128 + signal.SIGTERM
    assert attempts((0, 3), signals=[3]) == 0  # it was done


def test_a_lock_that_outlives_its_rank_is_waited_for(tmp_path, capsys):
    """As where the host of rank 0 hangs and the file system has not noticed."""
    give_signs(tmp_path)

    class Waits:
        signal = n = 0

        def wait(self, seconds):
            self.n += 1
            if self.n == 3:
                lock.__exit__(None, None, None)

    (lock := folder_lock(tmp_path)).__enter__()
    launch.wait_until_clear(tmp_path, 2, stop := Waits())
    said = capsys.readouterr().out
    assert stop.n == 3 and not list(tmp_path.iterdir())
    assert re.fullmatch(r"waiting    rank 0 on node7 \(process 2479\): holds .*; end it .*\n", said)


def give_signs(folder):
    (folder / RANKS).write_text("0 2479 node7\n1 2480 node7\n")
    (folder / "pulse-0").write_text("1 None")


# ---- what the run says, and mpiexec ----


def test_the_last_words_of_a_run():
    trace = [launch.TRACE, "  File ...", "RuntimeError: no", ""]
    assert launch.last_words(["a warning", "llm: rank 0 on a: no room", "more"]) == (
        "rank 0 on a: no room"
    )
    assert launch.last_words(trace) == "RuntimeError: no"
    assert launch.last_words(["llm: rank 1 on a: " + trace[0], *trace[1:]]) == (
        "rank 1 on a: RuntimeError: no"
    )
    assert launch.last_words(["a warning"]) == launch.last_words([]) == ""


def test_the_dead_rank_is_read_from_mpiexec(tmp_path):
    (tmp_path / RANKS).write_text("0 2479 node7\n1 2480 node7\n")
    assert all(launch.NOISE.match(line) for line in BANNER.split("\n") if line)
    named = "rank 1 on node7 (process 2480): Killed (signal 9)"
    assert launch.read_noise(BANNER, 9, tmp_path) == (137, named)
    (tmp_path / RANKS).write_text("0 1 node7\nhalf")
    named = "a rank on node7 (process 2480): Killed (signal 9)"
    assert launch.read_noise(BANNER, 9, tmp_path) == (137, named)
    assert launch.read_noise("", 7, tmp_path) == (7, "no rank began, status 7")


def test_processes_of_one_number_are_told_apart_by_their_hosts(tmp_path):
    (tmp_path / RANKS).write_text("0 2480 node6\n1 2480 node7\n")
    for host in ("node7", "node7.cluster"):
        banner = BANNER.replace("node7", host).replace("CODE: 9", "CODE: 139")  # it left a core
        named = f"rank 1 on {host} (process 2480): Segmentation fault (signal 11)"
        assert launch.read_noise(banner, 255, tmp_path) == (139, named)


LOST = "[mpiexec@node6] control_cb (/mpich/pmiserv_cb.c:280): assert (!closed) failed\n"


def test_a_lost_host_is_named_as_far_as_can_be(tmp_path):
    rows = [f"0 1 {socket.gethostname()}\n"]
    (tmp_path / RANKS).write_text("".join(rows))
    assert launch.read_noise(LOST, 255, tmp_path) == (255, "the ranks ended with status 255")
    for n, named in ((1, "node1"), (2, "one of node1, node2")):
        (tmp_path / RANKS).write_text("".join([*rows, *(f"1 1 node{i + 1}\n" for i in range(n))]))
        said = f"mpiexec lost the connection to {named}"
        assert launch.read_noise(LOST, 255, tmp_path) == (255, said)


# ---- refused ----


@needs_mpi
def test_what_the_run_refuses_is_one_line(text, tmp_path):
    with start(text, tmp_path, n=3, restarts=5) as job:
        _, errors = job.communicate(timeout=100)
    assert re.fullmatch(r"llm: rank 0 on \S+: 3 ranks: expected a power of two\n", errors), errors
    assert job.returncode == 1


def test_a_folder_in_which_a_run_lives_is_left_alone(text, tmp_path, capfd):
    """Its own launcher would miss the signs of life, and end it."""
    folder = tmp_path / "run"
    folder.mkdir()
    give_signs(folder)
    with folder_lock(folder):
        line = refused(capfd, "launch", "-n", 1, "--", *arguments(text, tmp_path))
    assert re.fullmatch(rf"llm: {folder}: process {os.getpid()} is training in this .*", line)
    assert {path.name for path in folder.iterdir()} == {RANKS, "pulse-0"}


def test_no_launcher_is_one_line(text, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(distributed.shutil, "which", lambda _: None)
    monkeypatch.setattr(distributed.Path, "with_name", lambda *_: tmp_path / "none")
    line = refused(capfd, "launch", "-n", 2, "--", *arguments(text, tmp_path))
    assert "no mpiexec: pip install 'two-file-llm[mpi]'" in line


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (["-n", "0", "--", "train"], "-n is 0, expected 1 to"),
        (["-n", "2", "--max-restarts", "-1", "--", "train"], "--max-restarts is -1"),
        (["-n", "2", "--patience", "1", "--", "train"], "--patience is 1, expected 0 or 5 to 1e"),
        (["-n", "1", "--hosts", "a:1", "--", "train"], "--hosts goes with two ranks or more"),
        (["-n", "2"], "put -- train OPTIONS behind"),
        (["-n", "2", "--", "inspect", "x"], "put -- train OPTIONS behind"),
    ],
)
def test_what_cannot_be_meant_is_refused(capfd, mistake, said):
    assert said in refused(capfd, "launch", *mistake)


def test_a_misspelled_option_of_the_run_is_wrong_usage(capfd):
    with pytest.raises(SystemExit) as ended:
        cli.main(["launch", "-n", "2", "--", "train", "--txt", "x"])
    assert ended.value.code == 2 and "did you mean --text?" in capfd.readouterr().err
