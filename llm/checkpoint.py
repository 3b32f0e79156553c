"""The state of a run: saved whole or not at all, read back bit for bit. Layer 4.

A checkpoint is one .npz file: a JSON text under "state" and the arrays beside it. The zip format's
CRC finds a damaged one. The lock keeps two runs out of one folder; the system drops it when
the process ends in any way.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .atomic import atomic_file
from .errors import CheckpointError

VERSION = 1

# What reading a damaged file raises; a flipped flag may claim encryption or another compression.
DAMAGE = (ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile, RuntimeError)


def save_checkpoint(path: Path, state: dict, arrays: dict[str, np.ndarray]) -> None:
    text = json.dumps({"version": VERSION, **state})
    with atomic_file(path) as file:
        np.savez(file, state=np.frombuffer(text.encode("utf-8"), np.uint8), **arrays)


def load_checkpoint(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Raises CheckpointError for a file that is not a whole checkpoint, OSError as it comes."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        state = json.loads(arrays.pop("state").tobytes())
        version = state.pop("version")
    except OSError as error:
        if error.filename:
            raise
        raise CheckpointError(f"{path}: not a whole checkpoint ({error})") from error
    except DAMAGE as error:
        raise CheckpointError(f"{path}: not a whole checkpoint ({error})") from error
    if version != VERSION:
        raise CheckpointError(f"{path}: checkpoint version {version}, expected {VERSION}")
    return state, arrays


def link_file(source: Path, target: Path) -> None:
    """Another name for a file that is only ever replaced: takes no room where links can be made."""
    temporary = target.with_name(f"{target.name}.link.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def keep_last(path: Path, keep: int, step: int) -> None:
    """Keeps the last `keep` checkpoints that were written as `path` by the numbers of their steps;
    with keep 1 there is `path` alone."""
    if path.name != "checkpoint.npz" or keep == 1:
        return
    link_file(path, path.with_name(f"checkpoint-{step:09d}.npz"))
    for old in sorted(path.parent.glob("checkpoint-*.npz"))[:-keep]:
        old.unlink()


@contextmanager
def run_folder(path: Path):
    """Makes the folder and keeps other runs out of it until the block ends."""
    path.mkdir(parents=True, exist_ok=True)
    with locked(path / "lock", f"{path}: process", "training in this folder", "--run-dir"):
        for leftover in path.glob("*.tmp"):  # of a run that was killed while it wrote
            leftover.unlink()
        yield path


@contextmanager
def locked(path: Path, who: str, what: str, flag: str):
    """Holds the lock file, which holds this process's number, until the block ends."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 20).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise CheckpointError(f"{who} {owner} is {what}; choose another: {flag}") from None
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            break
        os.close(descriptor)  # of an owner who took the file away in between
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
