"""Runs from text to file: exact resume, stopping in good order, the order of sums, the budget.

The corpus and the model are tiny; what the processes do is what a long run does.
"""

import errno
import lzma
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from llm import cli, train
from llm.checkpoint import load_checkpoint
from llm.compare import compare_files
from llm.engine import Model
from llm.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
SIZES = "--n-embd 32 --n-layer 2 --n-vocab 300 --n-ctx 32 --threads 1".split()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "words.txt"
    words, stir = "the cat and a dog who sat on mats under one tree.".split(), random.Random(1)
    lines = (" ".join(stir.choices(words, k=stir.randint(3, 12))) for _ in range(1500))
    path.write_text("\n\n".join(lines))
    return path


def arguments(text, folder, *more):
    places = ["--out", str(folder / "out.bin"), "--run-dir", str(folder / "run")]
    return ["train", "--text", str(text), *SIZES, *places, *map(str, more)]


def start(text, folder, *more):
    command = [sys.executable, "-u", "-m", "llm", *arguments(text, folder, *more)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, **pipes)


def finish(text, folder, *more):
    with start(text, folder, *more) as process:
        said = process.communicate()[0]
    assert process.returncode == 0, said
    return said


STEPS = ("--steps", 80, "--save-seconds", 0)


@pytest.fixture(scope="module")
def unbroken(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    said = finish(text, folder, *STEPS)
    return SimpleNamespace(out=folder / "out.bin", said=said)


# ---- a run that nobody disturbs ----


def test_a_run_learns_and_says_how_it_goes(unbroken):
    bits = [float(x) for x in re.findall(r"held-out ([\d.]+) bits/byte", unbroken.said)]
    assert len(bits) == 10
    assert bits[-1] < bits[0] - 0.3
    assert unbroken.said.count("\nsample ") >= 3
    assert re.search(r"try +\./run .*out\.bin", unbroken.said)


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
    assert nats / np.log(2) / run.validation.n_bytes == pytest.approx(stored, rel=1e-3)


def test_the_number_of_threads_changes_nothing(text, unbroken, tmp_path):
    finish(text, tmp_path, *STEPS, "--threads", 3)
    assert compare_files(unbroken.out, tmp_path / "out.bin") == []


def test_adamw_resumes_and_ignores_the_number_of_threads(text, tmp_path):
    adamw = [*STEPS, "--optimizer", "adamw", "--schedule", "cosine"]
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    said = finish(text, tmp_path / "whole", *adamw)
    bits = [float(x) for x in re.findall(r"held-out ([\d.]+) bits/byte", said)]
    assert bits[-1] < bits[0] - 0.3
    process = start(text, tmp_path / "cut", *adamw, "--threads", 3)
    wait_for(process, "40 of 80")
    process.send_signal(signal.SIGINT)
    process.communicate()
    finish(text, tmp_path / "cut", "--resume")
    assert compare_files(tmp_path / "whole" / "out.bin", tmp_path / "cut" / "out.bin") == []


def test_the_precision_is_kept(text, begun_fp32, capfd):
    """A run goes on as it was begun, whatever this machine has; another precision is refused."""
    state, _ = load_checkpoint(begun_fp32 / "run" / "checkpoint.npz")
    assert state["settings"]["precision"] == "fp32"
    line = refused(capfd, *arguments(text, begun_fp32, "--resume", "--precision", "bf16"))
    assert "--precision is bf16, but the run to resume was begun with fp32" in line
    run = train.resume_run(begun_fp32 / "run" / "checkpoint.npz", {}, train.Report())
    assert run.model.ops.precision == "fp32"


def test_another_seed_gives_another_file(text, unbroken, tmp_path):
    finish(text, tmp_path, *STEPS, "--seed", 2)
    assert compare_files(unbroken.out, tmp_path / "out.bin") != []


# ---- killed and stopped ----


def wait_for(process, line):
    for said in process.stdout:
        if line in said:
            return
    pytest.fail(f"the run ended without saying {line!r}")


@pytest.mark.parametrize("moment", ["text ", "budget", "32 of 80", "80 of 80"])
def test_killed_and_resumed_is_the_same_file(text, unbroken, tmp_path, moment):
    with start(text, tmp_path, *STEPS) as process:
        wait_for(process, moment)
        time.sleep(random.Random(moment).uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
    assert process.returncode in (-signal.SIGKILL, 0)
    finish(text, tmp_path, *STEPS, "--resume")
    assert compare_files(unbroken.out, tmp_path / "out.bin") == []
    assert not list(tmp_path.glob("run/*.tmp"))


def test_killed_again_and_again(text, unbroken, tmp_path):
    for i in range(3):
        with start(text, tmp_path, *STEPS, "--resume" if i else "--seed=1") as process:
            wait_for(process, "step ")
            time.sleep(0.03 * i)
            process.send_signal(signal.SIGKILL)
    finish(text, tmp_path, *STEPS, "--resume", "--threads", 2)
    assert compare_files(unbroken.out, tmp_path / "out.bin") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_in_good_order(text, unbroken, tmp_path, number):
    with start(text, tmp_path, *STEPS) as process:
        wait_for(process, "24 of 80")
        process.send_signal(number)
        said = process.communicate()[0]
    assert process.returncode == 128 + number, said
    assert "--resume" in said
    with Model(tmp_path / "out.bin") as model:
        model.verify()
        assert 24 <= model.metadata["two_file.train.steps"] < 80
    finish(text, tmp_path, *STEPS, "--resume")
    assert compare_files(unbroken.out, tmp_path / "out.bin") == []
    assert drawn(tmp_path / "run") == drawn(unbroken.out.parent / "run")


def drawn(folder):
    """What the report draws of a run's steps, but the seconds."""
    state, arrays = load_checkpoint(folder / "checkpoint.npz")
    assert (arrays["step_seconds"] > 0).all() and len(arrays["step_seconds"]) == state["step"]
    curves = {name: arrays[name].tolist() for name in ("losses", "rates", "norms")}
    return curves, state["samples"], [(step, bits) for step, _, bits in state["validations"]]


def test_minutes_become_steps_once(text, tmp_path):
    minutes = ("--minutes", 0.1, "--save-seconds", 0)
    with start(text, tmp_path, *minutes) as process:
        wait_for(process, "step ")
        process.send_signal(signal.SIGINT)
        said = process.communicate()[0]
    state, _ = load_checkpoint(tmp_path / "run" / "checkpoint.npz")
    assert state["n_steps"] > state["step"] > 0
    said = finish(text, tmp_path, "--minutes", 0.1, "--resume")
    again, _ = load_checkpoint(tmp_path / "run" / "checkpoint.npz")
    assert again["step"] == again["n_steps"] == state["n_steps"], said
    assert again["settings"]["warmup"] == state["settings"]["warmup"]


def test_slots_go_on_with_other_threads(text, tmp_path):
    """A step in four slots: stopped and resumed at every step with other threads, the same file."""
    slots = ("--steps", 6, "--slot-sequences", 1, "--save-seconds", 0)
    assert cli.main(arguments(text, tmp_path / "a", *slots)) == 0
    real = train.take_step

    def stop_after(run):
        real(run)
        train.save(run, tmp_path / "b" / "run" / "checkpoint.npz")
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "take_step", stop_after)
        for i in range(5):
            more = ("--threads", i % 3 + 1, *(["--resume"] if i else []))
            assert cli.main(arguments(text, tmp_path / "b", *slots, *more)) == 130
    assert cli.main(arguments(text, tmp_path / "b", *slots, "--resume")) == 0
    assert compare_files(tmp_path / "a" / "out.bin", tmp_path / "b" / "out.bin") == []


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


# ---- faults ----


def run_with_faults(monkeypatch, folder, text, faults, *more, stop=None):
    """Steps of `faults` have a gradient that is no number; before step `stop` the run stops."""

    def gradient(run, step, first, n_slots):
        if step == stop:
            raise KeyboardInterrupt
        loss = real(run, step, first, n_slots)
        if step in faults:
            run.model.grads[5] = np.nan
        return loss

    real = train.gradient
    with monkeypatch.context() as patch:
        patch.setattr(train, "gradient", gradient)
        return cli.main(arguments(text, folder, *STEPS, *more))


def test_a_fault_is_skipped_and_counted(text, tmp_path, monkeypatch, capsys):
    assert run_with_faults(monkeypatch, tmp_path, text, {20, 21, 50}) == 0
    said = capsys.readouterr().out
    assert "skipped    step 21: the loss is" in said and "(3 skipped so far)" in said
    state, arrays = load_checkpoint(tmp_path / "run" / "checkpoint.npz")
    assert (state["skipped"], state["rollbacks"]) == ([20, 21, 50], [])
    assert (state["step"], state["n_updates"]) == (80, 77)
    assert np.isfinite(arrays["params"]).all()


def test_three_faults_roll_back_and_halve_the_rate(text, tmp_path, monkeypatch, capsys):
    faults = {45, 46, 47}
    assert run_with_faults(monkeypatch, tmp_path / "a", text, faults) == 0
    assert "the rate is 0.5 of the schedule's" in capsys.readouterr().out
    state, arrays = load_checkpoint(tmp_path / "a" / "run" / "checkpoint.npz")
    assert (state["skipped"], state["rollbacks"]) == ([45, 46, 47], [48])
    assert state["n_updates"] == 40 + 32  # back at step 40, then the 32 that were left
    schedule = train.SCHEDULES["linear"]
    for step, factor in ((44, 1.0), (48, 0.5), (79, 0.5)):
        expected = factor * schedule(step, 80, state["settings"]["warmup"], 0.02)
        assert arrays["rates"][step] == pytest.approx(expected)
    for stop in (44, 47, 48, 60):  # stopped there and resumed: the same file
        folder = tmp_path / f"b{stop}"
        assert run_with_faults(monkeypatch, folder, text, faults, stop=stop) == 130
        assert run_with_faults(monkeypatch, folder, text, faults, "--resume") == 0
        assert compare_files(tmp_path / "a" / "out.bin", folder / "out.bin") == []


# ---- which weights, how many checkpoints ----


def test_the_file_holds_the_best_weights(text, begun, unbroken, capsys, monkeypatch, tmp_path):
    bits = iter([5.0, 4.0, 3.0, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0])
    monkeypatch.setattr(train.Validation, "bits_per_byte", lambda *_: next(bits))
    assert cli.main(arguments(text, tmp_path, *STEPS)) == 0
    assert "the file gets the weights of step 24: 2.000 held-out" in capsys.readouterr().out
    with Model(tmp_path / "out.bin") as model:
        assert model.metadata["two_file.train.steps"] == 24
        assert model.metadata["two_file.validation.bits_per_byte"] == 2.0
        model.verify()
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


# ---- refusals: one line, exit status 1 ----


def refused(capfd, *args):
    assert cli.main([str(a) for a in args]) == 1
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


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


@pytest.fixture
def begun(text, unbroken, tmp_path):
    """A copy of the finished run's checkpoint, for others to break."""
    (tmp_path / "run").mkdir()
    saved = unbroken.out.parent / "run" / "checkpoint.npz"
    (tmp_path / "run" / "checkpoint.npz").write_bytes(saved.read_bytes())
    return tmp_path


def test_a_profile_names_the_parts_and_writes_nothing(text, begun, capsys):
    before = (begun / "run" / "checkpoint.npz").read_bytes()
    assert cli.main(arguments(text, begun, "--steps", 5, "--profile")) == 0
    said = capsys.readouterr().out
    shares = [float(x) for x in re.findall(r" ms +([\d.]+)%", said)]
    assert sum(shares) == pytest.approx(100, abs=1) and len(shares) == 6
    assert re.search(r"products .* of the peak", said)
    assert (begun / "run" / "checkpoint.npz").read_bytes() == before
    assert not (begun / "out.bin").exists()


@pytest.fixture
def begun_fp32(text, tmp_path):
    assert cli.main(arguments(text, tmp_path, "--steps", 2, "--precision", "fp32")) == 0
    return tmp_path


def test_a_changed_text_is_refused(text, begun, capfd, tmp_path):
    changed = tmp_path / "changed.txt"
    changed.write_text(text.read_text() + ".")
    line = refused(capfd, *arguments(changed, begun, *STEPS, "--resume"))
    assert "changed.txt: the text has changed since the run began" in line


def test_the_same_text_may_have_moved(text, unbroken, begun, tmp_path):
    moved = tmp_path / "moved.txt"
    moved.write_bytes(text.read_bytes())
    assert cli.main(arguments(moved, begun, *STEPS, "--resume")) == 0
    assert compare_files(unbroken.out, begun / "out.bin") == []


def test_a_gradient_that_explodes_ends_the_run(text, tmp_path, capfd):
    line = refused(capfd, *arguments(text, tmp_path, *STEPS, "--lr", 1000, "--clip", 1e9))
    assert re.search(r"step \d+: .*, though the rate was halved 5 times; try a lower --lr", line)


def test_a_finished_run_stays_as_long_as_it_was(text, begun, capfd):
    line = refused(capfd, *arguments(text, begun, "--resume", "--minutes", 9))
    assert "--minutes is 9.0, but the run to resume was begun with no such limit, and its" in line


def test_another_setting_is_refused(text, begun, capfd):
    line = refused(capfd, *arguments(text, begun, *STEPS, "--resume", "--lr", 0.1))
    assert "--lr is 0.1, but the run to resume was begun with 0.02" in line


def test_a_damaged_checkpoint_is_refused(text, begun, capfd):
    path = begun / "run" / "checkpoint.npz"
    path.write_bytes(path.read_bytes()[:-1000])
    line = refused(capfd, *arguments(text, begun, *STEPS, "--resume"))
    assert "not a whole checkpoint" in line


def test_resuming_in_a_folder_that_is_not_there_is_refused(text, tmp_path, capfd):
    line = refused(capfd, *arguments(text, tmp_path, *STEPS, "--resume"))
    assert "run: no such run to resume" in line


def test_a_folder_in_use_is_refused(text, begun, capfd):
    with train.run_folder(begun / "run"):
        line = refused(capfd, *arguments(text, begun, *STEPS))
    assert f"process {os.getpid()} is training in this folder" in line


def test_a_file_in_use_is_refused(text, tmp_path, capfd):
    lock = tmp_path / ".out.bin.lock"
    with train.locked(lock, "x", "y", "z"):
        line = refused(capfd, *arguments(text, tmp_path, *STEPS))
    assert f"out.bin: process {os.getpid()} is writing this file; choose another: --out" in line
    assert not lock.exists()


def test_another_slot_size_is_refused(text, begun, capfd):
    line = refused(capfd, *arguments(text, begun, "--resume", "--slot-sequences", 2))
    assert "--slot-sequences is 2, but the run to resume was begun with 8" in line


def test_a_new_run_keeps_the_earlier_checkpoint(text, begun, capfd):
    assert cli.main(arguments(text, begun, "--steps", 2)) == 0
    old, _ = load_checkpoint(begun / "run" / "previous-checkpoint.npz")
    new, _ = load_checkpoint(begun / "run" / "checkpoint.npz")
    assert (old["step"], new["step"]) == (80, 2)


@pytest.mark.parametrize("mistake", [["--text", "no-such-file"], ["--n-embd", "7"], ["--out", "."]])
def test_a_mistake_leaves_the_checkpoint_where_it_is(text, begun, capfd, mistake):
    before = (begun / "run" / "checkpoint.npz").read_bytes()
    refused(capfd, *arguments(text, begun, "--steps", 2), *mistake)
    assert (begun / "run" / "checkpoint.npz").read_bytes() == before
    assert not (begun / "run" / "previous-checkpoint.npz").exists()


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
    assert "No space left on device" in line
    assert not (tmp_path / "out.bin").exists()
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_text_that_begins_with_a_long_word(tmp_path):
    text = tmp_path / "long.txt"
    text.write_text("".join(random.Random(1).choices("абвгдежзий", k=9000)), encoding="utf-8")
    said = finish(text, tmp_path, "--steps", 4)
    assert said.count("\nsample ") >= 3


def test_a_text_that_looks_like_options(tmp_path):
    text = tmp_path / "list.txt"
    text.write_text("- one\n" * 2000)
    said = finish(text, tmp_path, "--steps", 4)
    assert "sample     - one -" in said.split("written", 1)[1]
    assert "try        ./run -- " in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--prompt", "x" * 33], "--prompt has 33 tokens, more than the context of 32"),
        (["--batch", 1 << 20, "--n-ff", 1 << 20], "GB of memory, this machine has"),
        (["--n-embd", 1 << 17, "--n-layer", 1000], "GB of memory, this machine has"),
        (["--out", "."], ".: Is a directory"),
    ],
)
def test_what_could_only_fail_later_fails_at_once(text, tmp_path, capfd, more, message):
    assert cli.main(arguments(text, tmp_path, "--steps", 5, *more)) == 1
    assert message in capfd.readouterr().err


def test_a_corpus_shorter_than_a_window(tmp_path, capfd):
    short = tmp_path / "short.txt"
    short.write_text("a b c " * 60)
    line = refused(capfd, *arguments(short, tmp_path, *STEPS, "--n-ctx", 1024))
    assert "360 bytes, at least 8192 are needed" in line


# ---- the order of sums, the budget ----


def tree_run(n_slots):
    """A run whose slot k has the loss k and the gradient 10^-k everywhere, scaled."""
    settings = Settings(batch=n_slots, slot_sequences=1)
    grads = np.zeros(4, np.float32)

    def loss_and_grad(tokens, targets, scale):
        grads[...] = np.float32(scale) * np.float32(10.0**-tokens)
        return float(tokens)

    model = SimpleNamespace(grads=grads, loss_and_grad=loss_and_grad)
    examples = SimpleNamespace(slot=lambda step, slot: (slot, None))
    return SimpleNamespace(settings=settings, model=model, examples=examples)


def test_slots_are_summed_in_a_binary_tree():
    run = tree_run(8)
    loss = train.gradient(run, 0, 0, 8)
    leaf = [np.float32(1 / 8) * np.float32(10.0**-k) for k in range(8)]
    left = (leaf[0] + leaf[1]) + (leaf[2] + leaf[3])
    assert run.model.grads[0] == left + ((leaf[4] + leaf[5]) + (leaf[6] + leaf[7]))
    assert loss == 3.5
    train.gradient(run, 0, 0, 4)  # an aligned subtree, as another rank would hold it
    assert run.model.grads[0] == left


def test_milestones():
    assert train.milestones(100, 4) == {25, 50, 75, 100}
    assert train.milestones(3, 10) == {1, 2, 3}
