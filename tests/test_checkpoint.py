"""Checkpoints: bit for bit, whole or not at all; one run a folder."""

import errno
import os
import re
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

from llm import atomic
from llm.checkpoint import (
    RANKS,
    Sharded,
    folder_lock,
    keep_last,
    link_file,
    load_checkpoint,
    load_newest,
    run_folder,
    save_checkpoint,
)
from llm.distributed import Group
from llm.errors import CheckpointError


def test_state_and_arrays_come_back_bit_for_bit(tmp_path):
    path = tmp_path / "checkpoint.npz"
    odd = np.array([np.nan, -0.0, np.inf, 1e-45, 1 / 3], np.float32)
    state = {"step": 7, "n_steps": None, "bits": 2.1 / 3, "text": "grüße"}
    save_checkpoint(path, state, {"params": odd, "ids": np.arange(6, dtype=np.int32).reshape(2, 3)})
    again, arrays = load_checkpoint(path)
    assert again == state
    assert arrays["params"].tobytes() == odd.tobytes()
    assert arrays["ids"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("n_bytes", [0, 1, 100, -1, -30])
def test_a_cut_checkpoint_is_refused(tmp_path, n_bytes):
    path = tmp_path / "checkpoint.npz"
    save_checkpoint(path, {"step": 1}, {"params": np.zeros(100, np.float32)})
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        load_checkpoint(path)


def test_noise_is_taken_for_no_pickle(tmp_path):
    path = tmp_path / "checkpoint.npz"
    path.write_bytes(bytes(range(100)))
    with pytest.raises(CheckpointError, match="not a whole checkpoint .File is not a zip file"):
        load_checkpoint(path)


@pytest.mark.parametrize("kind", ["arrays", "flat"])
def test_a_flipped_bit_is_found(tmp_path, kind):
    path = tmp_path / "checkpoint.npz"
    params = np.full(1000, 1.5, np.float32)
    save_checkpoint(path, {"step": 1}, **{"arrays": {}, kind: {"params": params}})
    raw = bytearray(path.read_bytes())
    raw[raw.index(params.tobytes()) + 500] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        load_checkpoint(path)


def test_flipped_bits_of_the_directory_lose_nothing_silently(tmp_path):
    path = tmp_path / "checkpoint.npz"
    arrays = {"ids": np.arange(5, dtype=np.int32), "params": np.arange(9, dtype=np.float32)}
    save_checkpoint(path, {"step": 1}, {"ids": arrays["ids"]}, {"params": arrays["params"]})
    raw = path.read_bytes()
    for i in range(raw.index(b"PK\1\2"), len(raw)):
        for bit in range(8):
            path.write_bytes(raw[:i] + bytes([raw[i] ^ 1 << bit]) + raw[i + 1 :])
            try:
                state, again = load_checkpoint(path)
            except CheckpointError:
                continue
            assert state == {"step": 1}
            for name in again:  # one that is missing is refused by whoever wants it
                assert np.array_equal(again[name][:], arrays[name])


def test_another_version_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.npz"
    monkeypatch.setattr("llm.checkpoint.VERSION", 99)
    save_checkpoint(path, {}, {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="version 99, expected 2"):
        load_checkpoint(path)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.npz"
    save_checkpoint(path, {"step": 1}, {})

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        save_checkpoint(path, {"step": 2}, {})
    assert caught.value.filename == str(path)
    assert load_checkpoint(path)[0] == {"step": 1}
    assert os.listdir(tmp_path) == ["checkpoint.npz"]


HOLD = """
import sys
from pathlib import Path
from llm.checkpoint import run_folder
with run_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_in_the_folder_is_refused_until_the_first_dies(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(CheckpointError, match=f"process {first.pid} is training"):
            with run_folder(folder):
                pass
        first.kill()
    with run_folder(folder) as entered:
        assert entered == folder


def test_a_disk_too_full_for_a_lock_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("llm.checkpoint.os.write", full)
    with pytest.raises(OSError) as caught, folder_lock(tmp_path):
        pass
    assert caught.value.filename == str(tmp_path / "lock") and not list(tmp_path.iterdir())


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    (tmp_path / "checkpoint.npz.0123abcd.tmp").write_bytes(b"half")
    (tmp_path / "checkpoint.npz").write_bytes(b"whole")
    with run_folder(tmp_path):
        assert sorted(os.listdir(tmp_path)) == ["checkpoint.npz", "lock"]


def test_another_name_of_a_checkpoint_outlives_it(tmp_path, monkeypatch):
    path, name = tmp_path / "checkpoint.npz", tmp_path / "good.npz"
    save_checkpoint(path, {"step": 1}, {})
    link_file(path, name)
    save_checkpoint(path, {"step": 2}, {})
    assert (load_checkpoint(name)[0], load_checkpoint(path)[0]) == ({"step": 1}, {"step": 2})

    def refuse(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("llm.checkpoint.os.link", refuse)  # a file system without links
    link_file(path, name)
    assert load_checkpoint(name)[0] == {"step": 2}


def test_the_last_ones_are_kept(tmp_path):
    path = tmp_path / "checkpoint.npz"
    for step in (1, 5, 5, 12, 100):
        save_checkpoint(path, {"step": step}, {})
        keep_last(path, 2, step)
    names = ["checkpoint-000000012.npz", "checkpoint-000000100.npz", "checkpoint.npz"]
    assert sorted(os.listdir(tmp_path)) == names


# ---- of several ranks ----


class Ranks(Group):
    """A group of threads, one for each rank, that passes values alone."""

    def __init__(self, rank, size, barrier, box):
        super().__init__()
        self.rank, self.size, self._barrier, self._box = rank, size, barrier, box

    def share(self, value):
        self._box[self.rank] = value
        self._barrier.wait()
        values = list(self._box)
        self._barrier.wait()
        return values

    def gather(self, value):
        values = self.share(value)
        return values if self.rank == 0 else None

    def broadcast(self, value):
        return self.share(value)[0]


def on_ranks(size, action):
    """[action(group) or the exception it raised, for each rank]."""
    barrier, box = threading.Barrier(size, timeout=20), [None] * size
    results = [None] * size

    def one(rank):
        try:
            results[rank] = action(Ranks(rank, size, barrier, box))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


N = 1000  # elements of the flat arrays


def flat_arrays(step):
    rng = np.random.default_rng(step)
    return {name: rng.standard_normal(N).astype(np.float32) for name in ("params", "m", "v")}


def places_of(rank, size):
    """Two pieces for each rank, as buckets make them; of the second the last rank has more."""
    half, n = N // 2, N // 2 // size
    ends = [*range(half, half + n * size, n), N]
    return [
        slice(rank * n, (rank + 1) * n if rank < size - 1 else half),
        slice(ends[rank], ends[rank + 1] if rank < size - 1 else N),
    ]


def save_on(size, path, step):
    def save(group):
        whole, places = flat_arrays(step), places_of(group.rank, group.size)
        own = {k: np.concatenate([v[place] for place in places]) for k, v in whole.items()}
        curve = {"losses": np.arange(step, dtype=np.float32)}
        save_checkpoint(path, {"step": step}, curve, own, places, group)

    return on_ranks(size, save)


def parts_of(folder):
    return sorted(path.name for path in folder.glob("part-*.npz"))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_parts_come_back_bit_for_bit_at_any_number_of_ranks(tmp_path, size):
    path = tmp_path / "checkpoint.npz"
    assert save_on(size, path, 7) == [None] * size
    assert len(parts_of(tmp_path)) == (size if size > 1 else 0)
    whole = flat_arrays(7)

    def check(group):
        state, arrays = load_checkpoint(path, group)
        assert state == {"step": 7} and len(arrays["losses"]) == 7
        for name, values in whole.items():
            for where in (slice(None), slice(3, 499), slice(499, 501), slice(999, 1000)):
                assert arrays[name][where].tobytes() == values[where].tobytes()

    for again in (1, 2, 3):
        assert on_ranks(again, check) == [None] * again


def test_parts_stay_as_long_as_a_checkpoint_names_them(tmp_path):
    path = tmp_path / "checkpoint.npz"
    save_on(2, path, 1)
    first = parts_of(tmp_path)
    link_file(path, tmp_path / "good.npz")
    for step in (2, 3):
        save_on(2, path, step)
        assert set(first) < set(parts_of(tmp_path)) and len(parts_of(tmp_path)) == 4
    link_file(path, tmp_path / "good.npz")
    save_checkpoint(path, {"step": 4}, {})
    assert len(parts_of(tmp_path)) == 2
    link_file(path, tmp_path / "good.npz")
    save_checkpoint(path, {"step": 5}, {})
    assert not parts_of(tmp_path)


def test_a_part_that_nobody_names_is_removed(tmp_path):
    """As a run leaves it that dies before rank 0 has written the checkpoint."""
    save_on(2, tmp_path / "checkpoint.npz", 1)
    whole = parts_of(tmp_path)
    for name in ("part-000000002-0123abcd-1.npz", "part-000000002-0123abcd-0.npz.0123abcd.tmp"):
        (tmp_path / name).write_bytes(b"half")
    with run_folder(tmp_path):
        assert parts_of(tmp_path) == whole and not list(tmp_path.glob("*.tmp"))


def cut(part, other):
    part.write_bytes(part.read_bytes()[:-100])


def lose_a_piece(part, other):
    """Zip then looks for its directory before the file's beginning."""
    raw = part.read_bytes()
    part.write_bytes(raw[:50] + raw[-200:])


def flip(part, other):
    raw = bytearray(part.read_bytes())
    raw[len(raw) // 2] ^= 1
    part.write_bytes(raw)


def swap(part, other):
    part.write_bytes(other.read_bytes())


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda part, _: part.unlink(), "its part part-000000002-.*-1.npz is missing"),
        (cut, "its part .*-1.npz is damaged"),
        (lose_a_piece, "its part .*-1.npz is damaged"),
        (flip, "its part .*-1.npz is damaged"),
        (swap, "its part .*-1.npz is of another checkpoint"),
    ],
    ids=["missing", "half-written", "a-piece-lost", "flipped", "of-another-step"],
)
def test_a_broken_set_is_refused_by_all_ranks_and_the_newest_whole_one_taken(tmp_path, harm, said):
    path = tmp_path / "checkpoint.npz"
    for step in (1, 2):
        save_on(2, path, step)
        keep_last(path, 2, step)
    other, _, _, part = (tmp_path / name for name in parts_of(tmp_path))
    harm(part, other)
    for size in (1, 2, 3):
        errors = on_ranks(size, lambda group: load_checkpoint(path, group))
        assert all(isinstance(error, CheckpointError) for error in errors)
        assert all(re.search(said, str(error)) for error in errors)
        lines = []
        loaded = on_ranks(size, lambda group: load_newest(path, lines.append, group)[:2])  # noqa: B023
        assert loaded == [(tmp_path / "checkpoint-000000001.npz", {"step": 1})] * size
        assert len(lines) == size and f"{path}: its part" in lines[0]
        assert lines[0].endswith("going on from " + str(loaded[0][0]) + ", step 1")


def test_without_a_whole_one_the_newest_is_named(tmp_path):
    path = tmp_path / "checkpoint.npz"
    save_on(2, path, 1)
    link_file(path, tmp_path / "good.npz")
    (tmp_path / parts_of(tmp_path)[0]).unlink()
    with pytest.raises(CheckpointError, match="checkpoint.npz: its part part-.*-0.npz is missing"):
        load_newest(path, print)


def test_ranks_read_their_own_and_no_more(tmp_path, monkeypatch):
    """Of a checkpoint of any number of ranks; the numbers of bytes are those of three arrays."""
    path, n_read, read_file = tmp_path / "checkpoint.npz", [], Sharded._read

    def counted(self, file, start, out):
        n_read.append(out.nbytes)
        read_file(self, file, start, out)

    def read(group):
        _, arrays = load_checkpoint(path, group)
        places = places_of(group.rank, group.size)
        for name, whole in flat_arrays(1).items():
            for place in places:
                assert (arrays[name][place] == whole[place]).all()

    monkeypatch.setattr(Sharded, "_read", counted)
    for before in (1, 2, 4):
        save_on(before, path, 1)
        for after in (1, 2, 4):
            n_read.clear()
            assert on_ranks(after, read) == [None] * after
            assert sum(n_read) == 3 * 4 * N


@pytest.mark.parametrize(
    ("apart", "n", "message"),
    [(10, 9, r"part-.*npz has 9 of m.npy, not 10"), (11, 10, "do not fit each other at 10")],
    ids=["length", "gap"],
)
def test_parts_that_do_not_fit_are_refused(tmp_path, apart, n, message):
    path = tmp_path / "checkpoint.npz"

    def save(group):
        place = slice(group.rank * apart, group.rank * apart + 10)
        save_checkpoint(path, {"step": 1}, {}, {"m": np.zeros(n, "f4")}, [place], group)

    on_ranks(2, save)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


@pytest.mark.parametrize("parts", [[], [{}], [{"file": 3}], 7, [{"file": "../x", "places": []}]])
def test_nonsense_about_parts_is_refused(tmp_path, parts):
    save_checkpoint(tmp_path / "checkpoint.npz", {"step": 1, "parts": parts}, {})
    save_on(2, tmp_path / "good.npz", 1)  # which looks for parts that are named
    with pytest.raises(CheckpointError, match="checkpoint.npz"):
        load_checkpoint(tmp_path / "checkpoint.npz")


@pytest.mark.parametrize("full_rank", [0, 1, 2])
def test_a_disk_that_is_full_for_one_rank_leaves_the_old_set(tmp_path, monkeypatch, full_rank):
    path = tmp_path / "checkpoint.npz"
    save_on(3, path, 1)
    before = sorted(os.listdir(tmp_path))
    real = np.savez

    def savez(file, **arrays):
        if file.name.split(".npz")[0].endswith(f"-{full_rank}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file, **arrays)

    monkeypatch.setattr("llm.checkpoint.np.savez", savez)
    errors = save_on(3, path, 2)
    said = f"No space left on device (rank {full_rank} on {socket.gethostname()})"
    assert [error.strerror for error in errors] == [said] * 3
    assert sorted(os.listdir(tmp_path)) == before
    assert load_checkpoint(path)[0] == {"step": 1}


def test_rank_0_keeps_others_out_for_all_and_lists_them(tmp_path):
    def enter(group):
        with run_folder(tmp_path / "run", group):
            group.gather(None)  # all are inside
            return (tmp_path / "run" / RANKS).read_text().splitlines()

    for rows in on_ranks(3, enter):
        host = socket.gethostname()
        assert rows == [f"{rank} {os.getpid()} {host}" for rank in range(3)]
    with run_folder(tmp_path / "run"):
        errors = on_ranks(2, enter)
        assert all("is training in this folder" in str(error) for error in errors)
