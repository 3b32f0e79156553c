"""`python -m llm`: usage, exit statuses, one line for a failure; inspect and generate."""

import io
import json
import os
import re
import subprocess
import sys

import pytest
from models import write_trained

from conftest import ROOT
from llm import cli
from llm.context import Context, Step
from llm.settings import Settings


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "tiny.bin"
    write_trained(path)
    return path


def test_help_names_the_commands():
    done = subprocess.run(
        [sys.executable, "-m", "llm", "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("train", "inspect", "generate"))


def test_help_of_train_groups_the_flags_and_every_setting_has_one(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for title in ("what to learn", "how long", "size of the model", "recipe"):
        assert title in said
    flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z-]+)", said)}
    assert flags >= set(Settings.__dataclass_fields__)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["sing"],
        ["train", "--sing"],
        ["train", "--steps", "many"],
        ["train", "--holdout", "x"],
        ["inspect"],
    ],
)
def test_wrong_usage_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_an_unknown_option_names_the_nearest(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--n-embed=5"])
    assert "unknown option --n-embed; did you mean --n-embd?" in capsys.readouterr().err


def test_a_text_that_stands_alone_is_told_its_option(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--steps", "5", "README.md"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "unknown argument README.md; did you mean --text README.md?" in said
    with pytest.raises(SystemExit):
        cli.main(["train", "-x"])
    assert "--text -x" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--steps", "5", "--tokens", "5"], "--tokens and --steps contradict each other"),
        (["train", "--config", "no-such.toml"], "no-such.toml: No such file"),
        (["train", "--steps", "0"], "steps is 0, expected 1 to"),
        (["train", "--minutes", "-1"], "minutes is -1.0, expected 0.01 to"),
        (["train", "--batch", "6", "--slot-sequences", "2"], "batch 6 is not a power of two times"),
        (["train", "--text", "no-such-file"], "no-such-file: cannot read: No such file"),
        (["data", "x", "--out", "y", "--shard-mb", "0"], "--shard-mb is 0, expected"),
        (["data", "x", "--out", "y", "--index-mb", "inf"], "--index-mb is inf, expected"),
        (["data", "x", "--out", "y", "--sample-mb", "nan"], "--sample-mb is nan,"),
        (["inspect", "no-such-file"], "no-such-file"),
        (["generate", "no-such-file", "x"], "no-such-file"),
    ],
)
def test_a_failure_is_one_line_and_status_1(arguments, message, capsys, tmp_path):
    if arguments[0] == "train":
        arguments = [*arguments, "--run-dir", str(tmp_path / "run")]
    assert cli.main(arguments) == 1
    out, err = capsys.readouterr()
    assert err.startswith("llm: ") and err.count("\n") == 1
    assert message in err


def test_the_line_of_a_failure_is_escaped(capsys):
    assert cli.main(["inspect", "no\x1b[31m\nfile"]) == 1
    err = capsys.readouterr().err
    assert "no\\x1b[31m\\nfile: No such file" in err and "\x1b" not in err and err.count("\n") == 1


def test_a_terminal_without_unicode_or_none_at_all(tiny):
    command = [sys.executable, "-m", "llm", "generate", str(tiny), "é\udcff", "--max-tokens", "9"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env=environment)
    assert done.returncode == 0 and done.stderr == b""
    assert done.stdout.startswith(b"\\xe9\\udcff")
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    done = subprocess.run(closed, capture_output=True, cwd=ROOT)
    assert done.returncode == 0 and done.stderr == b""


def test_inspect_one_file(tiny, capsys):
    assert cli.main(["inspect", str(tiny)]) == 0
    assert "Text read" in capsys.readouterr().out
    assert cli.main(["inspect", "--json", str(tiny)]) == 0
    assert json.loads(capsys.readouterr().out)["provenance"]["corpus.bytes"] == 1000


def test_inspect_two_files(tiny, tmp_path, capsys):
    other = tmp_path / "other.bin"
    write_trained(other, seed=2)
    assert cli.main(["inspect", str(tiny), str(tiny)]) == 0
    assert capsys.readouterr().out == "the same file\n"
    assert cli.main(["inspect", str(tiny), str(other)]) == 1
    few = capsys.readouterr().out
    assert "tensor token_embd.weight" in few and few.endswith("--all compares them\n")
    assert cli.main(["inspect", str(tiny), str(other), "--all"]) == 1
    assert "--all" not in capsys.readouterr().out


def test_generate_is_reproducible(tiny, capsys):
    arguments = ["generate", str(tiny), "the", "--max-tokens", "5", "--seed", "7"]
    said = []
    for _ in range(2):
        assert cli.main(arguments) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert said[0].startswith("the")


def test_generate_takes_the_names_of_run_too(tiny, capsys):
    said = []
    for flags in ["--max-tokens", "9", "--temperature", "2"], ["-n", "9", "--temp", "2"]:
        assert cli.main(["generate", str(tiny), "the", "--seed", "7", *flags]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert cli.main(["generate", str(tiny), "the", "--seed", "7", "-n", "9"]) == 0
    assert capsys.readouterr().out != said[0]  # of another temperature


def test_generate_out_of_memory_is_a_failure(tiny, capsys, monkeypatch):
    def stream(self, *_):
        yield Step(116, b"t", None)
        raise MemoryError

    monkeypatch.setattr(Context, "stream", stream)
    assert cli.main(["generate", str(tiny), "the"]) == 1
    assert capsys.readouterr() == ("thet", "llm: out of memory\n")


def test_generate_refuses_before_it_prints(tiny, capsys):
    for flags in (["-n", "-1"], ["--temp", "nan"]):
        assert cli.main(["generate", str(tiny), "the", *flags]) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("llm: ") and err.count("\n") == 1


def test_generate_takes_standard_input_and_tells_so_of_a_file(tiny, tmp_path, capsys, monkeypatch):
    more = ["--max-tokens", "5", "--seed", "7"]
    stdin = type("Stdin", (), {"buffer": io.BytesIO(b"the")})
    monkeypatch.setattr(sys, "stdin", stdin)
    assert cli.main(["generate", str(tiny), "-", *more]) == 0
    piped = capsys.readouterr()
    assert cli.main(["generate", str(tiny), "the", *more]) == 0
    assert piped == capsys.readouterr() and piped.err == ""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "the").write_text("a")
    assert cli.main(["generate", str(tiny), "the", *more]) == 0
    out, err = capsys.readouterr()
    assert out == piped.out
    assert err == "note: the is taken as the text; - < the reads the file of that name\n"


def test_help_of_generate_has_defaults_and_an_example(capsys):
    with pytest.raises(SystemExit):
        cli.main(["generate", "--help"])
    said = capsys.readouterr().out
    assert "(0.8)" in said and "python -m llm generate weights/weights.bin 'In the" in said


STOPPED = """
import os, runpy, signal, sys
class Stops:
    def find_spec(self, name, *_):
        if name == amid:
            os.kill(os.getpid(), signal.SIGINT)
amid = sys.argv.pop(1)
sys.meta_path.insert(0, Stops())
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("llm", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("amid", "expected"), [("llm.cli", (-2, "")), ("llm.label", (130, "stopped\n"))]
)
def test_ctrl_c_amid_an_import(amid, expected):
    """Before the command line is read the signal ends the process: other ranks may wait for it."""
    command = [sys.executable, "-c", STOPPED, amid, "inspect", "no-such-file"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == expected
