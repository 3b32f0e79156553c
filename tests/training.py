"""Tiny runs for the tests of training: commands in this process or in another, what they say.

The corpus `text` and the finished run `unbroken` are fixtures of conftest.py.
"""

import io
import subprocess
import sys
from contextlib import contextmanager, redirect_stdout

import pytest

from conftest import ROOT
from llm import cli
from llm.report import Report

SIZES = "--n-embd 32 --n-layer 2 --n-vocab 300 --n-ctx 32 --threads 1".split()
STEPS = ("--steps", 80, "--save-seconds", 0)


def arguments(text, folder, *more):
    places = ["--out", str(folder / "out.bin"), "--run-dir", str(folder / "run")]
    return ["train", "--text", str(text), *SIZES, *places, *map(str, more)]


def start(text, folder, *more):
    command = [sys.executable, "-u", "-m", "llm", *arguments(text, folder, *more)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, **pipes)


def finish(text, folder, *more):
    """A whole run, in this process; returns what it says."""
    with redirect_stdout(io.StringIO()) as said:
        assert cli.main(arguments(text, folder, *more)) == 0, said.getvalue()
    return said.getvalue()


@contextmanager
def without_pictures():
    """Runs in this process draw none: they take half of a tiny run's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Report, "_write_pages", lambda *_: None)
        yield


def wait_for(process, line):
    for said in process.stdout:
        if line in said:
            return
    pytest.fail(f"the run ended without saying {line!r}")


def refused(capfd, *args):
    assert cli.main([str(a) for a in args]) == 1
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]
