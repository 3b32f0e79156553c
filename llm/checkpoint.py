"""The state of a run: saved whole or not at all, read back bit for bit. Layer 4.

A checkpoint is one .npz file: a JSON text under "state" and the arrays beside it. The zip format's
CRC finds a damaged one. Of several ranks each writes its share of the flat arrays, in parallel, as
part-STEP-TOKEN-RANK.npz; then rank 0 writes the checkpoint, which names the parts with their CRCs,
so that it is there only when all of it is. A part stays as long as a checkpoint names it. Flat
arrays are read by slices: ranks that go on read a checkpoint together, once for the CRCs and once
for use, and hold no more of it at a time than a run of elements that they own. The lock keeps two
runs out of one folder; the system drops it when the process ends in any way.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import struct
import zipfile
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np

from .atomic import atomic_file
from .distributed import Group
from .errors import CheckpointError, LlmError

VERSION = 2  # 1: AdamW's part of Muon had 0.15 of its rate
ALONE = Group()  # one process
RANKS = "ranks"  # a file of the run's folder: rank, process and host in each line

# What reading a damaged file raises; a flipped flag may claim encryption or another compression.
BROKEN_ZIP = (zipfile.BadZipFile, struct.error, EOFError, RuntimeError)
DAMAGE = (*BROKEN_ZIP, ValueError, KeyError, AttributeError, TypeError, IndexError)


@contextmanager
def damage_is(what: str):
    """What reading a damaged file raises becomes a CheckpointError; a place before the file's
    beginning is an OSError without the file's name."""
    try:
        yield
    except (OSError, *DAMAGE) as error:
        if getattr(error, "filename", None):
            raise
        raise CheckpointError(f"{what} ({error})") from error


# ---- saving ----


def save_checkpoint(
    path: Path,
    state: dict,
    arrays: dict[str, np.ndarray],
    flat: dict[str, np.ndarray] | None = None,
    places: list[slice] | None = None,
    group: Group = ALONE,
) -> None:
    """flat: this rank's elements of arrays that all ranks hold together, one piece after another;
    places: where these pieces belong, in each of the arrays alike. All ranks call this, those
    after rank 0 for their part alone. A failure on one of them is raised on all."""
    flat = flat or {}
    if group.size == 1:
        _write(path, {**state, "flat": list(flat)}, {**flat, **arrays})
        sweep(path.parent)
        return
    names = f"part-{state['step']:09d}-{secrets.token_hex(4)}"
    part = path.with_name(f"{group.broadcast(names)}-{group.rank}.npz")

    def write_part() -> dict:
        with atomic_file(part) as file:
            np.savez(file, **flat)
        pieces = [[place.start, place.stop] for place in places]
        return {"file": part.name, "places": pieces, "contents": _contents(part)}

    def write_head() -> None:
        for rank, named in enumerate(parts):
            if not path.with_name(named["file"]).exists():
                unseen = f"{named['file']}: rank 0 does not see what rank {rank} wrote"
                raise CheckpointError(f"{unseen}: all hosts must share the folder --run-dir")
        _write(path, {**state, "parts": parts}, arrays)

    try:
        parts = group.gather(together(group, write_part))
        together(group, write_head if group.rank == 0 else lambda: None)
    finally:
        if group.rank == 0:
            sweep(path.parent)


def together(group: Group, action: Callable):
    """What `action` returns on this rank, when it has succeeded on every rank; the first failure is
    raised on all, so that none waits for another."""
    if group.size == 1:
        return action()
    result = failure = None
    try:
        result = action()
    except OSError as error:
        where = f"rank {group.rank} on {group.host}"
        failure = OSError(error.errno, f"{error.strerror} ({where})", error.filename)
    except (LlmError, ValueError) as error:
        failure = error
    for raised in group.share(failure):
        if raised:
            raise raised
    return result


def _write(path: Path, state: dict, arrays: dict[str, np.ndarray]) -> None:
    text = json.dumps({"version": VERSION, **state})
    with atomic_file(path) as file:
        np.savez(file, state=np.frombuffer(text.encode("utf-8"), np.uint8), **arrays)


def _contents(path: Path) -> list[list]:
    with zipfile.ZipFile(path) as file:
        return [[info.filename, info.file_size, info.CRC] for info in file.infolist()]


def sweep(folder: Path) -> None:
    """Removes the parts that no checkpoint of the folder names."""
    parts = {path.name for path in folder.glob("part-*.npz")}
    for path in folder.glob("*.npz") if parts else ():
        if not path.name.startswith("part-"):
            try:
                parts -= {part["file"] for part in _read(path, "state")[0].get("parts", [])}
            except (CheckpointError, *DAMAGE):
                pass  # it cannot be loaded whatever lies beside it
    for name in parts:
        (folder / name).unlink(missing_ok=True)


# ---- loading ----


class Sharded:
    """A flat array whose pieces lie in files, one or several: a slice of it reads what it
    needs and no more. Raises CheckpointError where the pieces do not follow each other without
    gaps."""

    dtype = np.dtype(np.float32)

    def __init__(self, path: Path, parts: list[dict], name: str):
        self._parts = [(path.with_name(part["file"]), part["places"]) for part in parts]
        self._name, end = name, 0
        for start, stop in sorted(tuple(place) for _, places in self._parts for place in places):
            if start != end:
                raise CheckpointError(f"{path}: its parts do not fit each other at {end}")
            end = stop
        self.shape = (end,)
        self._offsets = {}  # in each of the files, as far as it was asked for

    def __getitem__(self, where: slice) -> np.ndarray:
        first, last, _ = where.indices(self.shape[0])
        out = np.empty(max(0, last - first), np.float32)
        for path, places in self._parts:
            before = 0
            for start, stop in places:
                low, high = max(start, first), min(stop, last)
                if low < high:
                    self._read(path, before + low - start, out[low - first : high - first])
                before += stop - start
        return out

    def _read(self, path: Path, start: int, out: np.ndarray) -> None:
        if path not in self._offsets:
            self._offsets[path] = _flat_array(path, self._name)[0]
        with open(path, "rb") as file:
            file.seek(self._offsets[path] + 4 * start)
            if file.readinto(out) < out.nbytes:
                raise CheckpointError(f"{path}: it was cut while it was read")


def _flat_array(path: Path, name: str) -> tuple[int, int]:
    """Where in the file the elements of an array begin, and how many there are."""
    with zipfile.ZipFile(path) as file, open(path, "rb") as raw:
        entry = file.getinfo(f"{name}.npy")
        file.open(entry).close()  # compares its two headers
        raw.seek(entry.header_offset + 26)  # of zip's local header: two lengths, at its end
        raw.seek(sum(struct.unpack("<HH", raw.read(4))), os.SEEK_CUR)
        start = raw.tell()
        np.lib.format.read_magic(raw)
        shape, _, dtype = np.lib.format.read_array_header_1_0(raw)
        n = (entry.file_size - (raw.tell() - start)) // 4
        if entry.compress_type != zipfile.ZIP_STORED or (shape, dtype) != ((n,), np.float32):
            raise ValueError(f"{name} is an array {shape} of {dtype}, expected ({n},) of float32")
        return raw.tell(), n


def load_checkpoint(path: Path, group: Group = ALONE) -> tuple[dict, dict]:
    """The state and the arrays, of which those in parts are Sharded: arrays[name][start:stop] works
    for all. Raises CheckpointError for what is not a whole checkpoint, OSError as it comes; of
    several ranks each checks some of the parts, and all raise the same."""
    return together(group, lambda: _load(path, group))


def read_step(path: Path) -> int:
    """Of a checkpoint, without its arrays."""
    return _read(path, "state")[0]["step"]


def load_newest(
    path: Path, say: Callable[[str], None], group: Group = ALONE
) -> tuple[Path, dict, dict]:
    """The checkpoint `path`, or where it is missing or damaged the newest whole one beside it."""
    found = checkpoints(path.parent, group)
    failure = None if path in found else CheckpointError(f"{path} is missing")
    for candidate in [path] * (path in found) + [other for other in found if other != path]:
        try:
            state, arrays = load_checkpoint(candidate, group)
        except CheckpointError as error:
            failure = failure or error
            continue
        if failure:
            say(f"note       {failure}: going on from {candidate}, step {state['step']:,}")
        return candidate, state, arrays
    raise failure


def checkpoints(folder: Path, group: Group = ALONE) -> list[Path]:
    """Those that a run of this folder can go on from, the newest first, as rank 0 sees them."""
    kept = sorted(folder.glob("checkpoint-*.npz"), reverse=True)
    found = [p for p in (folder / "checkpoint.npz", *kept, folder / "good.npz") if p.exists()]
    return group.broadcast(found)


def _load(path: Path, group: Group) -> tuple[dict, dict]:
    state, arrays = _read(path)
    names, parts = state.pop("flat", []), state.pop("parts", None)
    with damage_is(f"{path}: not a whole checkpoint"):
        if parts is None:
            if group.rank == 0:
                _check_crcs(path)
            return state, arrays | {name: _whole(path, name) for name in names}
        for part in parts[group.rank :: group.size]:
            _check_part(path, part)
        names = [name.removesuffix(".npy") for name, _, _ in parts[0]["contents"]]
        return state, arrays | {name: Sharded(path, parts, name) for name in names}


def _whole(path: Path, name: str) -> Sharded:
    return Sharded(path, [{"file": path.name, "places": [[0, _flat_array(path, name)[1]]]}], name)


def _check_crcs(path: Path) -> None:
    with zipfile.ZipFile(path) as file:
        if damaged := file.testzip():
            raise zipfile.BadZipFile(f"in {damaged}")


def _check_part(path: Path, part: dict) -> None:
    name = Path(part["file"]).name
    try:
        with damage_is(f"{path}: its part {name} is damaged"):
            _check_crcs(path.with_name(name))
            found = _contents(path.with_name(name))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: its part {name} is missing") from None
    if found != part["contents"]:
        raise CheckpointError(f"{path}: its part {name} is of another checkpoint")
    expected = sum(stop - start for start, stop in part["places"])
    for array, _, _ in found:
        n = _flat_array(path.with_name(name), array.removesuffix(".npy"))[1]
        if n != expected:
            raise CheckpointError(f"{path}: its part {name} has {n} of {array}, not {expected}")


def _read(path: Path, *wanted: str) -> tuple[dict, dict[str, np.ndarray]]:
    """The state and the arrays that lie in the file itself: those wanted, or all but the flat."""
    with damage_is(f"{path}: not a whole checkpoint"):
        zipfile.ZipFile(path).close()  # np.load would take what is no archive for a pickle
        with np.load(path, allow_pickle=False) as file:
            state = json.loads(file["state"].tobytes())
            version, names = state.pop("version"), set(file.files) - {"state"}
            names = wanted or names.difference(state.get("flat", []))
            arrays = {name: file[name] for name in names}
    if version != VERSION:
        raise CheckpointError(f"{path}: checkpoint version {version}, expected {VERSION}")
    return state, arrays


# ---- names, folders, locks ----


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
def run_folder(path: Path, group: Group = ALONE):
    """Makes the folder and keeps other runs out of it until the block ends. Of several ranks, rank
    0 does so for all, and tells in the file RANKS which process on which host each of them is."""

    def enter() -> None:
        path.mkdir(parents=True, exist_ok=True)
        stack.enter_context(folder_lock(path))
        for leftover in path.glob("*.tmp"):  # of a run that was killed while it wrote
            leftover.unlink()
        sweep(path)
        (path / RANKS).unlink(missing_ok=True)

    with ExitStack() as stack:
        together(group, enter if group.rank == 0 else lambda: None)
        if group.size > 1:
            rows = group.gather(f"{group.rank} {os.getpid()} {group.host}\n")
            if group.rank == 0:
                (path / RANKS).write_text("".join(rows))
        yield path


def folder_lock(path: Path):
    return locked(path / "lock", f"{path}: process", "training in this folder", "--run-dir")


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
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        os.close(descriptor)  # of an owner who took the file away in between
    try:
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
