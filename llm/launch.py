"""`python -m llm launch`: the ranks of a run, watched, and started again when one fails. Layer 11.

MPICH's mpiexec starts the ranks and ends all of them when one dies; what it says then names a
process and a host, the run's own file of ranks (checkpoint.py) the number. Each rank has a session
of its own, so that Ctrl-C reaches them once: through here and mpiexec. One rank needs no MPI.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Thread
from typing import TextIO

from . import pulse
from .checkpoint import RANKS, checkpoints, folder_lock, read_step
from .distributed import ENDINGS, LOST, mpiexec
from .errors import CheckpointError, LlmError
from .report import escape

RESTARTS = 10  # without getting further: together they wait four minutes for a host or a link
PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds before a restart; doubled while none gets further
MAX_RANKS = 1 << 20
NAMED = 4  # of many silent ranks
LAST_LINES = 1000  # of what a run says on standard error: the last tell why it ended
RANDOM = re.compile(r"[0-9a-f]{8,}")  # in names of parts, in addresses: others in each attempt
TRACE = "Traceback (most recent call last):"
# What mpiexec says of itself when a job ends: read here, and said in one line.
NOISE = re.compile(
    r"={20,}|=   |YOUR APPLICATION TERMINATED|This typically refers to a problem|Please see the FAQ"
    r"|Abort\(\d+\) on node|\[(mpiexec|proxy:\d+)@"
)


def launch(
    n_ranks: int,
    max_restarts: int,
    arguments: Sequence[str],
    folder: Path,
    hosts: str | None = None,
    patience: float = pulse.PATIENCE,
) -> int:
    """Runs `python -m llm ARGUMENTS`, a training in `folder`, as n_ranks ranks until it ends well,
    refuses to begin, is stopped, fails twice alike, or max_restarts restarts have brought it no
    further; returns the status of the last attempt (128 + the signal that ended a rank). patience:
    seconds until one that hangs has failed; 0: for ever."""
    command = [*starter(n_ranks, hosts), sys.executable, "-m", "llm", *arguments]
    if n_ranks > 1:  # twice: it is the launcher that names who hangs, as long as it reaches them
        command += ["--patience", f"{min(2 * patience, pulse.LONGEST_PATIENCE):g}"]
    clear(folder)
    before, furthest, last = stamps(folder), -1, None
    n_left, pause = max_restarts, PAUSE
    with Stop() as stop:
        while True:
            resume = ["--resume"] if stamps(folder) - before else []
            status, cause = attempt(command + resume, n_ranks, folder, stop, patience)
            has_saved = bool(stamps(folder) - before)
            if status == 0 or stop.signal:
                return status and 128 + stop.signal
            if status == 2 or (status == 1 and not has_saved):
                return status  # it has said what it refuses, and would again
            step = newest_step(folder) if has_saved else -1
            end, last = last, (status, RANDOM.sub("", cause), step)
            if status == 1 and end == last:  # it said why itself: no signal, no lost host
                where = f"{cause}; so it did before, after the checkpoint of step {step:,}"
                print(f"llm: {where}: another start would end alike", file=sys.stderr)
                return status
            if step > furthest:
                furthest, n_left, pause = step, max_restarts, 0.0
            if not n_left:
                break
            n_left -= 1
            source = f"from {checkpoints(folder)[0]}" if has_saved else "from the beginning"
            when = f"in {pause:g} s" if pause else "at once"
            print(f"died       {cause}", flush=True)
            print(f"restart    {source} {when}; {n_left} left after it", flush=True)
            stop.wait(pause)
            wait_until_clear(folder, n_ranks, stop)
            if stop.signal:
                return 128 + stop.signal
            pause = min(max(PAUSE, 2 * pause), LONGEST_PAUSE)
    print(f"llm: {cause}; no restart is left of {max_restarts}", file=sys.stderr)
    return status


def starter(n_ranks: int, hosts: str | None) -> list[str]:
    if n_ranks == 1:
        return []
    found = mpiexec()
    if importlib.util.find_spec("mpi4py") is None:
        raise LlmError("there is no mpi4py: pip install 'two-file-llm[mpi]'")
    return [found, "-n", str(n_ranks), *(["-hosts", hosts] if hosts else [])]


def stamps(folder: Path) -> set[tuple]:
    """Tells checkpoints of this job from those that lay there before."""
    found = [(path.name, path.stat()) for path in checkpoints(folder)]
    return {(name, stat.st_ino, stat.st_mtime_ns) for name, stat in found}


def newest_step(folder: Path) -> int:
    """Of the newest checkpoint; -1 of one that cannot be read."""
    try:
        return read_step(checkpoints(folder)[0])
    except (CheckpointError, OSError):
        return -1


def clear(folder: Path) -> None:
    """Takes away what ranks of an attempt before told. CheckpointError where a run lives in the
    folder: its own launcher goes by what its ranks tell."""
    if folder.is_dir():
        with folder_lock(folder):
            (folder / RANKS).unlink(missing_ok=True)
            pulse.forget(folder)


def wait_until_clear(folder: Path, n_ranks: int, stop: Stop) -> None:
    """A host that hangs may keep the folder's lock for a while, and the ranks of the next attempt
    would be refused."""
    is_told = False
    while not stop.signal:
        try:
            return clear(folder)
        except CheckpointError:
            if not is_told:
                what = f"{name([0], n_ranks, folder)}holds {folder / 'lock'} still"
                hint = "end it there, or wait: it ends itself, or its host is let go of"
                print(f"waiting    {what}; {hint}", flush=True)
            is_told = True
        stop.wait(pulse.PERIOD)


def attempt(
    command: list[str], n_ranks: int, folder: Path, stop: Stop, patience: float = 0.0
) -> tuple[int, str]:
    """Runs the command to its end; its status, and what ended it."""
    is_mpi = n_ranks > 1
    noise, said = [], deque(maxlen=LAST_LINES)
    with (
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if is_mpi else None,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            start_new_session=True,
        ) as process,
        watched(process, folder, n_ranks, patience) as hangs,
    ):
        stop.forward_to(process)
        streams = process.stderr, sys.stderr
        errors = Thread(target=pass_on, args=(*streams, noise, said), daemon=True)
        errors.start()
        if is_mpi:
            pass_on(process.stdout, sys.stdout, noise)
        errors.join()
        process.wait()
    status = process.returncode
    if hangs and status:
        return 128 + signal.SIGKILL, hangs[0]
    if status < 0:  # one process, or mpiexec itself
        what = "mpiexec" if is_mpi else "the run"
        return 128 - status, f"{what} on {socket.gethostname()} was ended by signal {-status}"
    if status in (1, LOST) and (why := last_words(said)):
        return status, why
    return read_noise("".join(noise), status, folder)


@contextmanager
def watched(process: subprocess.Popen, folder: Path, n_ranks: int, patience: float):
    """Ends the process where ranks hang, and puts what was seen into the list that it gives. All
    that mpiexec started ends with it, on hosts that hear of it."""
    watch, hangs = pulse.Watch(folder, n_ranks, patience), []

    def look() -> None:
        ranks, what = watch.look()
        if what and not hangs:
            hangs.append(f"{name(ranks, n_ranks, folder)}{what}")
            process.kill()

    with pulse.repeated(watch.period, look) if patience else nullcontext():
        yield hangs


def name(ranks: list[int], n_ranks: int, folder: Path) -> str:
    """Of ranks that hang, with their hosts as far as they came to tell."""
    if n_ranks == 1:
        return f"the run on {socket.gethostname()}: "
    if not ranks:
        return "every rank lives, but "
    places = {rank: f" on {host} (process {number})" for rank, number, host in read_ranks(folder)}
    named = [f"rank {rank}{places.get(rank, '')}" for rank in ranks[:NAMED]]
    more = f" and {len(ranks) - NAMED} more" if len(ranks) > NAMED else ""
    return f"{', '.join(named)}{more}: "


def pass_on(
    source: Iterable[str], target: TextIO, noise: list[str], said: deque[str] | None = None
) -> None:
    for line in source:
        if NOISE.match(line):
            noise.append(line)
        else:
            print(line, end="", file=target, flush=True)
            if said is not None:
                said.append(line.rstrip())


def last_words(said: Iterable[str]) -> str:
    """Why a run ended, as it said itself: its line, or the last one of a traceback; "" if none."""
    lines = [line for line in said if line]
    first = next((line for line in lines if line.startswith(("llm: ", TRACE))), "")
    words = first.removeprefix("llm: ")
    return words.removesuffix(TRACE) + lines[-1] if words.endswith(TRACE) else words


def read_noise(noise: str, status: int, folder: Path) -> tuple[int, str]:
    """The same of a job of ranks, from what mpiexec said when it ended."""
    dead = re.search(r"PID (\d+) RUNNING AT (\S+)\n=   EXIT CODE: (\d+)", noise)
    if not dead:  # a rank that ended all of them has said why
        return status, unexplained(noise, status, folder)
    process, number = int(dead[1]), int(dead[3]) & 0x7F  # of signals alone, as wait() gives them
    name, ranks = signal.strsignal(number), [row for row in read_ranks(folder) if row[1] == process]
    if len(ranks) > 1:  # hosts count their processes alike
        ranks = [row for row in ranks if row[2].split(".")[0] == dead[2].split(".")[0]]
    who = f"rank {ranks[0][0]}" if len(ranks) == 1 else "a rank"
    where = f"on {escape(dead[2])} (process {process})"
    return 128 + number, f"{who} {where}: {name} (signal {number})"


def unexplained(noise: str, status: int, folder: Path) -> str:
    hosts = list(dict.fromkeys(host for _, _, host in read_ranks(folder)))
    far = [host for host in hosts if host != socket.gethostname()]
    if re.search(r"\[mpiexec@\S+ control_cb .*!closed", noise) and far:
        more = f" and {len(far) - NAMED} more" if len(far) > NAMED else ""
        which = f"one of {', '.join(far[:NAMED])}{more}" if len(far) > 1 else far[0]
        return f"mpiexec lost the connection to {which}"
    return f"the ranks ended with status {status}" if hosts else f"no rank began, status {status}"


def read_ranks(folder: Path) -> list[tuple[int, int, str]]:
    """(rank, process, host) of each, as far as they came to tell."""
    try:
        rows = (folder / RANKS).read_text(encoding="utf-8", errors="replace").splitlines()
        return [(int(rank), int(process), host) for rank, process, host in map(str.split, rows)]
    except (OSError, ValueError):
        return []


class Stop:
    """Passes ENDINGS on to the job as Ctrl-C: the first ends it in good order, a second at once.
    `signal` is the first one, 0 before."""

    def __init__(self):
        self.signal = 0
        self._process = None

    def __enter__(self) -> Stop:
        heard = (s for s in ENDINGS if signal.getsignal(s) is not signal.SIG_IGN)
        self._before = {s: signal.signal(s, self._note) for s in heard}
        return self

    def _note(self, number, frame) -> None:
        self.signal = self.signal or number
        if self._process:
            self._process.send_signal(signal.SIGINT)  # mpiexec passes this one on

    def forward_to(self, process: subprocess.Popen) -> None:
        self._process = process
        if self.signal:  # it came while the process was being started
            process.send_signal(signal.SIGINT)

    def wait(self, seconds: float) -> None:
        """Until they are over or a signal comes."""
        end = time.monotonic() + seconds
        while not self.signal and time.monotonic() < end:
            time.sleep(0.05)

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


# ---- command ----


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.usage = (
        "%(prog)s -n RANKS [--max-restarts R] [--patience S] [--hosts A:8,B:8] -- train OPTIONS"
    )
    command.epilog = (
        "Each rank holds the weights and its share of the optimizer's state; the parameter file is "
        "that of one process, bit for bit. Hosts see one file system: --run-dir lies there."
    )
    command.add_argument("-n", "--ranks", type=int, required=True, help="processes of the run")
    command.add_argument(
        "--max-restarts",
        type=int,
        default=RESTARTS,
        metavar="R",
        help="from the newest whole checkpoint, when a rank dies or hangs: at once where it "
        f"saved further steps since the last one, else after 1, 2, 4 ... {LONGEST_PAUSE:g} s; R is "
        f"how often without further steps ({RESTARTS})",
    )
    command.add_argument(
        "--patience",
        type=float,
        default=pulse.PATIENCE,
        metavar="S",
        help="seconds without a sign of a rank, or in one step, till it hangs "
        f"({pulse.PATIENCE:g}; 0: for ever); signs may come a minute late over NFS",
    )
    command.add_argument(
        "--hosts", help="where, as mpiexec -hosts: A:8,B:8 (this one, or as HYDRA_HOST_FILE says)"
    )
    command.add_argument("run", nargs=argparse.REMAINDER, help="train, with its options")


def check(options: argparse.Namespace) -> list[str]:
    """The arguments of the run; ValueError for what cannot be meant."""
    if not 1 <= options.ranks <= MAX_RANKS:
        raise ValueError(f"-n is {options.ranks}, expected 1 to {MAX_RANKS}")
    if options.hosts is not None and options.ranks == 1:
        raise ValueError("--hosts goes with two ranks or more: one runs here")
    if options.max_restarts < 0:
        raise ValueError(f"--max-restarts is {options.max_restarts}, expected at least 0")
    pulse.check_patience(options.patience)
    arguments = options.run[1:] if options.run[:1] == ["--"] else options.run
    if arguments[:1] != ["train"]:
        raise ValueError("launch runs a training: put -- train OPTIONS behind its own options")
    return arguments
