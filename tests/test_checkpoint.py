"""Checkpoints: bit for bit, whole or not at all; one run a folder."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest

from llm import atomic
from llm.checkpoint import keep_last, link_file, load_checkpoint, run_folder, save_checkpoint
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


def test_a_flipped_bit_is_found(tmp_path):
    path = tmp_path / "checkpoint.npz"
    params = np.full(1000, 1.5, np.float32)
    save_checkpoint(path, {"step": 1}, {"params": params})
    raw = bytearray(path.read_bytes())
    raw[raw.index(params.tobytes()) + 500] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        load_checkpoint(path)


def test_flipped_bits_of_the_directory_lose_nothing_silently(tmp_path):
    path = tmp_path / "checkpoint.npz"
    arrays = {"params": np.arange(9, dtype=np.float32), "ids": np.arange(5, dtype=np.int32)}
    save_checkpoint(path, {"step": 1}, arrays)
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
                assert np.array_equal(again[name], arrays[name])


def test_another_version_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.npz"
    monkeypatch.setattr("llm.checkpoint.VERSION", 99)
    save_checkpoint(path, {}, {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="version 99, expected 1"):
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
