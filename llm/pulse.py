"""Signs of life: every rank of a run gives them in a file, the launcher watches them. Layer 1.

A thread of each rank tells how often it has told and which step the rank is in, if any. So a
process or a host that hangs is silent, and where all live but a step does not end, the step shows
it; what takes long between steps is no fault. The launcher counts its own looks, not a clock: after
it was asleep itself it accuses nobody.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

PERIOD = 1.0  # seconds between two signs
LOOKS = 20  # of the launcher before its patience ends
BEGINNING = 120.0  # seconds that a rank may take to its first sign, at least


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
def pulse(folder: Path, rank: int, step: Callable[[], int | None]):
    """Tells that this rank lives, and the step that it is in, until the block ends."""
    path, count = _file(folder, rank), 0

    def tell() -> None:
        nonlocal count
        count += 1
        with suppress(OSError):  # no reason to end a run
            os.pwrite(file.fileno(), f"{count:20} {step()!s:>20}\n".encode(), 0)

    try:
        with open(path, "wb") as file:
            tell()
            with repeated(PERIOD, tell):
                yield
    finally:
        path.unlink(missing_ok=True)


def forget(folder: Path) -> None:
    """The signs of an attempt before."""
    for path in folder.glob("pulse-*"):
        path.unlink(missing_ok=True)


class Watch:
    """The launcher's: look() every `period` seconds."""

    def __init__(self, folder: Path, n_ranks: int, patience: float):
        self.period, self._patience = max(PERIOD, patience / LOOKS), patience
        self._files = [_file(folder, rank) for rank in range(n_ranks)]
        self._signs, self._step = [""] * n_ranks, "None"
        self._silent, self._in_step = [0.0] * n_ranks, 0.0  # seconds

    def look(self) -> tuple[list[int], str]:
        """The ranks that hang, and what they do; ([], "") while there is hope. No rank is named
        where all live and none ends its step."""
        signs = [_read(file) for file in self._files]
        for rank, (before, sign) in enumerate(zip(self._signs, signs, strict=True)):
            self._silent[rank] = self._silent[rank] + self.period if sign == before else 0.0
        steps = {sign.split()[-1] if sign else "None" for sign in signs}
        is_same = steps == {self._step} != {"None"}
        self._in_step = self._in_step + self.period if is_same else 0.0
        self._signs, self._step = signs, min(steps)
        start = max(self._patience, BEGINNING)
        silent = [
            rank
            for rank, seconds in enumerate(self._silent)
            if seconds >= (self._patience if signs[rank] else start)
        ]
        if silent:
            return silent, f"silent for {self._silent[silent[0]]:.0f} s"
        if self._in_step >= self._patience:
            return [], f"step {self._step} has not ended in {self._in_step:.0f} s"
        return [], ""


def _file(folder: Path, rank: int) -> Path:
    return folder / f"pulse-{rank}"


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
