"""What a run leaves: the parameter file and what it says, checkpoints, nothing half done."""

import errno
import lzma
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from training import STEPS, arguments, finish, refused, start, wait_for

from conftest import ROOT
from llm import cli, train
from llm.checkpoint import load_checkpoint, locked
from llm.compare import compare_files
from llm.engine import Model
from llm.run_files import milestones

pytestmark = pytest.mark.usefixtures("quickly")


def test_the_file_runs_verifies_and_carries_its_origin(text, unbroken):
    with Model(unbroken.out) as model:
        assert model.verify()["n_probes"] == 2
        keys = model.metadata
        assert keys["two_file.corpus.name"] == "words.txt"
        assert keys["two_file.corpus.bytes"] == text.stat().st_size
        assert keys["two_file.train.steps"] == 80
        assert keys["two_file.train.tokens"] == 80 * 8 * 32
        assert keys["two_file.train.flops"] > 0
        assert 0 < keys["two_file.validation.bits_per_byte"] < 8
        assert 0 <= keys["two_file.memorisation.training"] <= 1
        assert keys["two_file.corpus.tokens"] > 1000
        assert model.generate("the cat", max_tokens=5, temperature=0)
    assert (unbroken.out.parent / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_bits_per_byte_are_the_engines(unbroken):
    """The engine scores the held-out windows and comes to the figure in the file."""
    run = train.resume_run(unbroken.out.parent / "run" / "checkpoint.npz", {}, train.Report())
    windows = np.concatenate([run.validation.inputs, run.validation.targets[:, -1:]], axis=1)
    with Model(unbroken.out) as model:
        nats = sum(model.score(window)[1] for window in windows)
        stored = model.metadata["two_file.validation.bits_per_byte"]
        held = model.tokenizer.decode_bytes(run.validation.targets.ravel(), render_special=False)
        assert model.metadata["two_file.validation.bytes"] == len(held) == run.validation.n_bytes
        packed = lzma.compress(held, preset=9 | lzma.PRESET_EXTREME)
        assert model.metadata["two_file.run.xz_bytes"] == len(packed)
    # The trainer's products may round to bfloat16, the engine's do not: 1.02e-3 was seen.
    assert nats / np.log(2) / run.validation.n_bytes == pytest.approx(stored, rel=2e-3)


def test_a_file_of_settings_repeats_the_run(text, unbroken, tmp_path):
    """What a run prints, and what its file carries, begin the same run again."""
    kept = (unbroken.out.parent / "run" / "settings.toml").read_text()
    assert "n_embd = 32" in unbroken.said and "n_embd = 32" in kept
    with Model(unbroken.out) as model:
        carried = model.metadata["two_file.train.settings"]
    for i, toml in enumerate((kept, carried)):
        (tmp_path / "run.toml").write_text(toml)
        places = ["--out", tmp_path / f"{i}.bin", "--run-dir", tmp_path / f"run{i}"]
        where = ["--config", tmp_path / "run.toml", "--text", text]
        assert cli.main([str(a) for a in ("train", *where, *places)]) == 0
        assert compare_files(unbroken.out, tmp_path / f"{i}.bin") == []


@pytest.mark.parametrize("untrained", [5.0, 1.0])  # a text that training makes worse counts, too
def test_the_file_holds_the_best_weights(
    untrained, text, begun, unbroken, capsys, monkeypatch, tmp_path
):
    bits = iter([untrained, 4.0, 3.0, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0])
    monkeypatch.setattr(train.Validation, "bits_per_byte", lambda *_: next(bits))
    assert cli.main(arguments(text, tmp_path, *STEPS)) == 0
    said = capsys.readouterr().out
    assert "the file gets the weights of step 24: 2.000 held-out" in said
    assert "4.000 held-out bits per byte at the end\n" in said
    assert "bytes), the weights of step 24\n" in said
    with Model(tmp_path / "out.bin") as model:
        assert model.metadata["two_file.train.steps"] == 24
        assert model.metadata["two_file.validation.bits_per_byte"] == 2.0
        seconds = model.metadata["two_file.run.seconds"]  # up to that step, as its tokens are
        rate = model.metadata["two_file.train.tokens"] / seconds
        assert model.metadata["two_file.run.tokens_per_second"] == pytest.approx(rate)
        model.verify()
    whole, _ = load_checkpoint(tmp_path / "run" / "checkpoint.npz")
    assert 0 < seconds < whole["seconds"]
    assert cli.main(arguments(text, tmp_path, *STEPS, "--resume", "--weights", "last")) == 0
    with Model(tmp_path / "out.bin") as last, Model(unbroken.out) as model:
        assert last.metadata["two_file.train.steps"] == 80
        assert all(last.tensors.raw(n) == model.tensors.raw(n) for n in model.tensors)


def test_the_last_checkpoints_are_kept(text, tmp_path):
    assert cli.main(arguments(text, tmp_path, "--steps", 30, "--save-seconds", 0, "--keep", 3)) == 0
    kept = sorted(tmp_path.glob("run/checkpoint-*.npz"))
    assert [load_checkpoint(path)[0]["step"] for path in kept] == [28, 29, 30]
    kept[0].rename(tmp_path / "run" / "checkpoint.npz")  # go on from an older one
    before = (tmp_path / "out.bin").read_bytes()
    assert cli.main(arguments(text, tmp_path, "--steps", 30, "--resume")) == 0
    (tmp_path / "old.bin").write_bytes(before)
    assert compare_files(tmp_path / "old.bin", tmp_path / "out.bin") == []


def test_a_damaged_checkpoint_is_refused(text, begun, capfd):
    path = begun / "run" / "checkpoint.npz"
    path.write_bytes(path.read_bytes()[:-1000])
    line = refused(capfd, *arguments(text, begun, *STEPS, "--resume"))
    assert "not a whole checkpoint" in line


def test_a_folder_in_use_is_refused(text, begun, capfd):
    with train.run_folder(begun / "run"):
        line = refused(capfd, *arguments(text, begun, *STEPS))
    assert f"process {os.getpid()} is training in this folder" in line


def test_a_file_in_use_is_refused(text, tmp_path, capfd):
    lock = tmp_path / ".out.bin.lock"
    with locked(lock, "x", "y", "z"):
        line = refused(capfd, *arguments(text, tmp_path, *STEPS))
    assert f"out.bin: process {os.getpid()} is writing this file; choose another: --out" in line
    assert not lock.exists()


def test_a_new_run_keeps_the_earlier_checkpoint(text, begun, capfd):
    assert cli.main(arguments(text, begun, "--steps", 2)) == 0
    old, _ = load_checkpoint(begun / "run" / "previous-checkpoint.npz")
    new, _ = load_checkpoint(begun / "run" / "checkpoint.npz")
    assert (old["step"], new["step"]) == (80, 2)


def test_an_older_file_stays_until_the_new_one_is_whole(text, tmp_path, capfd, monkeypatch):
    def fails(run, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    old, note = tmp_path / "out.bin", f"note       {tmp_path / 'out.bin'} is there: it stays until"
    finish(text, tmp_path, "--steps", 2)
    before = old.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(train, "export", fails)
        assert cli.main(arguments(text, tmp_path, "--steps", 3)) == 1
    assert note in capfd.readouterr().out and old.read_bytes() == before
    assert note in finish(text, tmp_path, "--steps", 3) and old.read_bytes() != before


@pytest.mark.parametrize("mistake", [["--text", "no-such-file"], ["--n-embd", "7"], ["--out", "."]])
def test_a_mistake_leaves_the_checkpoint_where_it_is(text, begun, capfd, mistake):
    before = (begun / "run" / "checkpoint.npz").read_bytes()
    refused(capfd, *arguments(text, begun, "--steps", 2), *mistake)
    assert (begun / "run" / "checkpoint.npz").read_bytes() == before
    assert not (begun / "run" / "previous-checkpoint.npz").exists()


def test_a_disk_that_fills_amid_a_checkpoint(text, unbroken, tmp_path):
    """No file may pass some size: the write stops half way. What was saved before goes on."""
    with start(text, tmp_path, *STEPS) as process:
        wait_for(process, "24 of 80")
        process.send_signal(signal.SIGKILL)
    size = (tmp_path / "run" / "checkpoint.npz").stat().st_size
    limit = f"import resource as r; r.setrlimit(r.RLIMIT_FSIZE, ({size // 2}, {size // 2}))"
    run = "import sys; from llm import cli; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", f"{limit}; {run}", *arguments(text, tmp_path, "--resume")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert (
        "checkpoint.npz: File too large; the checkpoint before is whole: make room" in done.stderr
    )
    assert done.stderr.count("\n") == 1 and not list(tmp_path.rglob("*.tmp"))
    finish(text, tmp_path, *STEPS, "--resume")
    assert compare_files(unbroken.out, tmp_path / "out.bin") == []


@pytest.mark.parametrize("nth", [1, 3, 4, 5])
def test_a_full_disk_is_one_line_and_leaves_nothing_behind(text, tmp_path, capfd, monkeypatch, nth):
    """The nth write fails: checkpoint at step 0, at the end, the file to prove, the file."""
    calls, real = [], os.fsync

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) >= nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr("llm.atomic.os.fsync", full)
    line = refused(capfd, *arguments(text, tmp_path, "--steps", 2))
    assert "No space left on device" in line and ".tmp" not in line
    assert not (tmp_path / "out.bin").exists()
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_full_disk_says_what_is_saved(text, tmp_path, capfd, monkeypatch):
    def full(path, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("llm.run_files.save_checkpoint", full)
    line = refused(capfd, *arguments(text, tmp_path, "--steps", 2))
    assert "No space left on device; no checkpoint is there yet: make room and begin" in line


def test_what_a_killed_run_left_half_written_goes(text, tmp_path):
    """A second signal may come amid anything, and SIGKILL of an impatient launcher does."""
    (tmp_path / "run").mkdir()
    left = ["out.bin.0123abcd.tmp", "out.bin.0123abcd.unproved.tmp", ".out.bin.lock"]
    left += ["run/checkpoint.npz.0123abcd.tmp", "run/lock"]
    for name in left:
        (tmp_path / name).write_bytes(b"half")
    other = tmp_path / "another.bin.0123abcd.tmp"
    other.write_bytes(b"half")
    finish(text, tmp_path, "--steps", 2)
    assert not any((tmp_path / name).exists() for name in left) and other.exists()


def test_milestones():
    assert milestones(100, 4) == {25, 50, 75, 100}
    assert milestones(3, 10) == {1, 2, 3}
