"""Runs from text to file: exact resume, stopping in good order, the order of sums, the budget.

The corpus and the model are tiny (training.py); what the processes do is what a long run does.
"""

import random
import re
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
from training import STEPS, arguments, finish, refused, start, wait_for

from llm import cli, train
from llm import step as step_module
from llm.checkpoint import load_checkpoint, save_checkpoint
from llm.compare import compare_files
from llm.engine import Model
from llm.ops_numpy import OpsNumpy
from llm.optim import SCHEDULES
from llm.report_html import CSS
from llm.run_files import check_state
from llm.settings import Settings

pytestmark = pytest.mark.usefixtures("quickly")


# ---- a run that nobody disturbs ----


def test_a_run_learns_and_says_how_it_goes(unbroken):
    bits = [float(x) for x in re.findall(r"held-out ([\d.]+) bits/byte", unbroken.said)]
    assert len(bits) == 10
    assert bits[-1] < bits[0] - 0.1  # the first are of step 8, which has learned much already
    assert unbroken.said.count("\nsample ") >= 3
    assert re.search(r"try +\./run .*out\.bin", unbroken.said)


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
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


# ---- faults ----


def run_with_faults(monkeypatch, folder, text, faults, *more, stop=None):
    """Steps of `faults` have a gradient that is no number; before step `stop` the run stops."""

    def gradient(run, step, first, n_slots, ready):
        if step == stop:
            raise KeyboardInterrupt
        loss = real(run, step, first, n_slots, ready)
        if step in faults:
            run.model.grads[5] = np.nan
        return loss

    real = step_module.gradient
    with monkeypatch.context() as patch:
        patch.setattr(step_module, "gradient", gradient)
        return cli.main(arguments(text, folder, *STEPS, *more))


def test_a_fault_is_skipped_and_counted(text, tmp_path, monkeypatch, capsys):
    assert run_with_faults(monkeypatch, tmp_path, text, {20, 21, 50}) == 0
    said = capsys.readouterr().out
    assert "skipped    step 21: the loss is" in said and "(3 skipped so far)" in said
    state, arrays = load_checkpoint(tmp_path / "run" / "checkpoint.npz")
    assert (state["skipped"], state["rollbacks"]) == ([20, 21, 50], [])
    assert (state["step"], state["n_updates"]) == (80, 77)
    assert np.isfinite(arrays["params"][:]).all()


def test_three_faults_roll_back_and_halve_the_rate(text, tmp_path, monkeypatch, capsys):
    faults = {45, 46, 47}
    assert run_with_faults(monkeypatch, tmp_path / "a", text, faults) == 0
    assert "the rate is 0.5 of the schedule's" in capsys.readouterr().out
    state, arrays = load_checkpoint(tmp_path / "a" / "run" / "checkpoint.npz")
    assert (state["skipped"], state["rollbacks"]) == ([45, 46, 47], [48])
    assert state["n_updates"] == 40 + 32  # back at step 40, then the 32 that were left
    schedule = SCHEDULES["linear"]
    for step, factor in ((44, 1.0), (48, 0.5), (79, 0.5)):
        expected = factor * schedule(step, 80, state["settings"]["warmup"], 0.02)
        assert arrays["rates"][step] == pytest.approx(expected)
    for stop in (44, 47, 48, 60):  # stopped there and resumed: the same file
        folder = tmp_path / f"b{stop}"
        assert run_with_faults(monkeypatch, folder, text, faults, stop=stop) == 130
        assert run_with_faults(monkeypatch, folder, text, faults, "--resume") == 0
        assert compare_files(tmp_path / "a" / "out.bin", folder / "out.bin") == []


# ---- refusals: one line, exit status 1 ----


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


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", 10**9),
        ("step", -1),
        ("n_steps", "x"),
        ("n_steps", None),
        ("n_steps", 81),
        ("seconds", "x"),
        ("samples", 3),
        ("kernels", 3),
        ("n_updates", 10**9),
        ("n_validations", 0),
        ("n_validations", 10**9),
        ("settings", []),
    ],
)
def test_a_state_that_no_run_has_is_refused(text, begun, capfd, key, value):
    path = begun / "run" / "checkpoint.npz"
    state, arrays = load_whole(path)
    save_checkpoint(path, state | {key: value}, arrays)
    line = refused(capfd, *arguments(text, begun, *STEPS, "--resume"))
    assert "checkpoint.npz: not a checkpoint of this program" in line


def test_a_state_that_would_train_for_ever_is_refused():
    """Of a run whose minutes gave the number of steps, as its settings do not."""
    with pytest.raises(TypeError, match=f"step 0 of {1 << 70}"):
        check_state({"step": 0, "n_steps": 1 << 70})


def load_whole(path):
    state, arrays = load_checkpoint(path)
    return state, {name: array[:] for name, array in arrays.items()}


FORGERIES = {
    "shorter": lambda x: x[:-1],
    "empty": lambda x: x[:0],
    "nested": lambda x: x.reshape(1, *x.shape),
    "of-bools": lambda x: x.astype(bool),
}


@pytest.mark.parametrize("how", FORGERIES)
@pytest.mark.parametrize("name", ["params", "m", "losses", "token_text", "token_lengths", "merges"])
def test_forged_arrays_are_refused_in_one_line(text, begun, capfd, name, how):
    if how == "nested" and name.startswith("token"):
        pytest.skip("it says the same")
    path = begun / "run" / "checkpoint.npz"
    state, arrays = load_whole(path)
    save_checkpoint(path, state, {**arrays, name: FORGERIES[how](arrays[name])})
    line = refused(capfd, *arguments(text, begun, *STEPS, "--resume"))
    assert "checkpoint.npz: not a checkpoint of this program (" in line
    assert f"({name} is an array" in line or "merges do not fit each other" in line


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


def test_resuming_in_a_folder_that_is_not_there_is_refused(text, tmp_path, capfd):
    line = refused(capfd, *arguments(text, tmp_path, *STEPS, "--resume"))
    assert "run: no such run to resume" in line


def test_another_slot_size_is_refused(text, begun, capfd):
    line = refused(capfd, *arguments(text, begun, "--resume", "--slot-sequences", 2))
    assert "--slot-sequences is 2, but the run to resume was begun with 8" in line


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


@pytest.mark.parametrize("name", ["checkpoint.npz", "good.npz", "lock", "settings.toml", "x.tmp"])
def test_what_the_run_keeps_is_not_written_over(text, begun, capfd, name):
    before = {path: path.read_bytes() for path in (begun / "run").iterdir()}
    line = refused(
        capfd, *arguments(text, begun, *STEPS, "--resume", "--out", begun / "run" / name)
    )
    assert f"{name} is a name that the run itself uses: choose another --out" in line
    assert {path: path.read_bytes() for path in (begun / "run").iterdir()} == before


@pytest.mark.parametrize("name", ["report.html", "loss.png", "curves.png"])
def test_no_report_is_written_over_the_weights(text, tmp_path, capfd, name):
    line = refused(capfd, *arguments(text, tmp_path, *STEPS, "--out", tmp_path / name))
    assert f"{name} is a name that the run itself uses: choose another --out" in line


def test_only_a_report_is_replaced_by_one(text, tmp_path, capfd):
    page = tmp_path / "report.html"
    page.write_text("my own")
    line = refused(capfd, *arguments(text, tmp_path, *STEPS))
    assert "report.html is there and is no report of a run" in line
    assert page.read_text() == "my own"
    page.write_text(f"<style>{CSS}</style>")
    finish(text, tmp_path, "--steps", 4)


def test_an_option_given_twice_counts_twice(tmp_path, text):
    other = tmp_path / "other.txt"
    other.write_text("another text\n" * 200)
    assert "in 2 documents" in finish(text, tmp_path, "--steps", 4, "--text", other)


@pytest.mark.parametrize("name", ["a.txt", "folder"])
def test_the_text_is_not_written_over(text, tmp_path, capfd, name):
    (tmp_path / "folder").mkdir()
    for copy in (tmp_path / "a.txt", tmp_path / "folder/a.txt"):
        copy.write_bytes(text.read_bytes())
    out = tmp_path / ("a.txt" if name == "a.txt" else "folder/a.txt")
    assert cli.main(arguments(tmp_path / name, tmp_path, "--steps", 5, "--out", out)) == 1
    assert f"{out} is what this run reads" in capfd.readouterr().err
    assert out.read_bytes() == text.read_bytes()


def test_a_prompt_with_a_zero_byte(text, tmp_path):
    (tmp_path / "run.toml").write_text('prompt = "the\\u0000"')
    said = finish(text, tmp_path, "--steps", 4, "--config", tmp_path / "run.toml")
    assert "sample     the\\x00" in said.split("written", 1)[1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--prompt", "\udcff"], "--prompt is not UTF-8 (at character 0)"),
        (["--prompt", "x" * 33], "--prompt has 33 tokens, more than the context of 32"),
        (["--batch", 1 << 20, "--n-ff", 1 << 20], "GB of memory, this machine has"),
        (["--n-embd", 1 << 17, "--n-layer", 1000], "GB of memory, this machine has"),
        (["--lr", "nan"], "lr is nan, expected 1e-09 to 1000.0"),
    ],
)
def test_what_could_only_fail_later_fails_at_once(text, tmp_path, capfd, more, message):
    assert cli.main(arguments(text, tmp_path, "--steps", 5, *more)) == 1
    assert message in capfd.readouterr().err


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (".", ".: Is a directory: --out names a file"),
        ("/dev/null", "/dev/null: is there and is no regular file"),
        ("/dev/null/x.bin", "/dev/null: no parameter file can be written here (Not a directory)"),
        ("/proc/x.bin", "/proc: no parameter file can be written here ("),
        ("/proc/x/y.bin", "/proc/x: no parameter file can be written here ("),
    ],
)
def test_where_no_file_can_be_written_is_said_before_the_text_is_read(
    tmp_path, capfd, out, message
):
    line = refused(capfd, *arguments("no-such-text", tmp_path, "--steps", 5, "--out", out))
    assert message in line


def test_what_is_no_parameter_file_is_not_written_over(text, tmp_path, capfd):
    out = tmp_path / "notes.txt"
    out.write_text("notes")
    line = refused(capfd, *arguments(text, tmp_path, *STEPS, "--out", out))
    assert f"{out}: is there and is no parameter file" in line and out.read_text() == "notes"


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

    def loss_and_grad(tokens, targets, scale, ready):
        grads[...] = np.float32(scale) * np.float32(10.0**-tokens)
        for part in (slice(2, 4), slice(0, 2)):
            ready(part)
        return float(tokens)

    model = SimpleNamespace(grads=grads, loss_and_grad=loss_and_grad, ops=OpsNumpy(np.float32))
    examples = SimpleNamespace(slot=lambda step, slot: (slot, None))
    return SimpleNamespace(settings=settings, model=model, examples=examples)


def test_slots_are_summed_in_a_binary_tree():
    run = tree_run(8)
    loss = step_module.gradient(run, 0, 0, 8)
    leaf = [np.float32(1 / 8) * np.float32(10.0**-k) for k in range(8)]
    left = (leaf[0] + leaf[1]) + (leaf[2] + leaf[3])
    assert run.model.grads[0] == left + ((leaf[4] + leaf[5]) + (leaf[6] + leaf[7]))
    assert loss == 3.5
    step_module.gradient(run, 0, 0, 4)  # an aligned subtree, as another rank would hold it
    assert run.model.grads[0] == left
