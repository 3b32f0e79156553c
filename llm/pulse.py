"""Signs of life: every rank of a run gives them in a file, the launcher watches them. Layer 1.

A thread of each rank tells how often it has told and what the rank is at: a step, an exchange with
other ranks between steps, or work of its own, which may take as long as it likes. So a process or a
host that hangs is silent, and where all live but none works or gets on, a link is cut. The launcher
counts its own looks, not a clock: after it was asleep itself it accuses nobody. Ranks end
themselves where a step does not end: no launcher reaches them over a link that is cut, and plain
mpiexec would wait for ever.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from threading import Event, Thread

PERIOD = 1.0  # seconds between two signs
LOOKS = 20  # of the launcher before its patience ends
PATIENCE = 600.0  # seconds without a sign of life, or in one step
LEAST_PATIENCE, LONGEST_PATIENCE = 5 * PERIOD, 1e6
BEGINNING = 120.0  # seconds that a rank may take to its first sign, at least


def check_patience(seconds: float) -> None:
    low, high = LEAST_PATIENCE, LONGEST_PATIENCE
    if not (seconds == 0 or low <= seconds <= high):
        raise ValueError(f"--patience is {seconds:g}, expected 0 or {low:g} to {high:g}")


@contextmanager
def repeated(period: float, action: Callable[[], None]):
    """A thread does the action every `period` seconds until the block ends."""
    over = Event()

    def work() -> None:
        while not over.wait(period):
            action()

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def pulse(folder: Path, rank: int, at: Callable[[], str | None]):
    """Tells that this rank lives, and what it is at, until the block ends: "step-N", "exchange-N",
    None for its own work."""
    path, count = _file(folder, rank), 0

    def tell() -> None:
        nonlocal count
        count += 1
        with suppress(OSError):  # no reason to end a run
            os.pwrite(file.fileno(), f"{count:20} {at()!s:>20}\n".encode(), 0)
            os.close(os.dup(file.fileno()))  # at a close NFS sends what was written

    with open(path, "wb") as file:
        try:
            tell()
            with repeated(PERIOD, tell):
                yield
        finally:  # another attempt of this rank may have taken the name
            with suppress(OSError):
                if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                    path.unlink()


@contextmanager
def bounded(at: Callable[[], str | None], patience: float, hang: Callable[[str], None]):
    """Until the block ends: where a step takes `patience` seconds (0: none does) a thread calls
    hang (what), which ends the process. Nothing here touches a file: they may hang, too."""
    last, seconds = None, 0.0

    def look() -> None:
        nonlocal last, seconds
        before, last = last, at()
        seconds = seconds + PERIOD if before == last is not None else 0.0
        # Between steps one rank may work, and write a large file, while the others wait.
        if seconds >= patience * (1 if str(last).startswith("step") else 10):
            hang(f"{_words(last)} has not ended in {seconds:.0f} s")

    with repeated(PERIOD, look) if patience else nullcontext():
        yield


def forget(folder: Path) -> None:
    """The signs of an attempt before."""
    for path in folder.glob("pulse-*"):
        path.unlink(missing_ok=True)


class Watch:
    """The launcher's: look() every `period` seconds."""

    def __init__(self, folder: Path, n_ranks: int, patience: float):
        self.period, self._patience = max(PERIOD, patience / LOOKS), patience
        self._files = [_file(folder, rank) for rank in range(n_ranks)]
        self._signs, self._at = [""] * n_ranks, []
        self._silent, self._stuck = [0.0] * n_ranks, 0.0  # seconds

    def look(self) -> tuple[list[int], str]:
        """The ranks that hang, and what they do; ([], "") while there is hope. No rank is named
        where all live, none works and none gets on."""
        signs = [_read(file) for file in self._files]
        for rank, (before, sign) in enumerate(zip(self._signs, signs, strict=True)):
            self._silent[rank] = self._silent[rank] + self.period if sign == before else 0.0
        at = [sign.split()[-1] if sign else "None" for sign in signs]
        is_stuck = at == self._at and "None" not in at
        self._stuck = self._stuck + self.period if is_stuck else 0.0
        self._signs, self._at = signs, at
        start = max(self._patience, BEGINNING)
        silent = [
            rank
            for rank, seconds in enumerate(self._silent)
            if seconds >= (self._patience if signs[rank] else start)
        ]
        if silent:
            return silent, f"silent for {self._silent[silent[0]]:.0f} s"
        if self._stuck >= self._patience:
            return [], f"{_words(max(at))} has not ended in {self._stuck:.0f} s"
        return [], ""


def _words(at: str) -> str:
    return at.replace("-", " ")


def _file(folder: Path, rank: int) -> Path:
    return folder / f"pulse-{rank}"


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
