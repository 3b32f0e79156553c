"""The build: one line for what is missing, one rule for which file belongs where, a light import.

The preflight tests run the real Makefile in a copy of the tree, with a PATH that holds only the
tools named or a Python that lacks what Debian's own lacks.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import llm
from conftest import ROOT
from llm import _build

TOOLS = "sh make mkdir cat cp cmp test uname awk".split()


def make(*arguments, folder=ROOT, path=None) -> subprocess.CompletedProcess:
    """make, silent but for errors; `path` replaces PATH."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    env["PATH"] = path or env["PATH"]
    command = [shutil.which("make"), "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def clone(tmp_path):
    """What a fresh clone holds, as far as a build reads it."""
    folder = tmp_path / "clone"
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    (folder / "llm").mkdir()
    for name in ("Makefile", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for path in (ROOT / "llm").glob("*.py"):
        shutil.copy(path, folder / "llm")
    return folder


@pytest.fixture
def tools(tmp_path):
    """A PATH of few tools: tools("gcc") adds one."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def add(*names) -> str:
        for name in (*TOOLS, *names):
            target = shutil.which(name)
            if target and not (folder / name).exists():
                (folder / name).symlink_to(Path(target).resolve())
        return str(folder)

    return add


def compiler_tools() -> list[str]:
    return ["cc", "gcc", "as", "ld"]


@pytest.fixture
def python_with(tmp_path):
    """A python3 in which `patch` ran first."""

    def write(patch: str) -> str:
        (tmp_path / "sitecustomize.py").write_text(patch)
        wrapper = tmp_path / "python-less"
        wrapper.write_text(
            f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(tmp_path))} exec "{sys.executable}" "$@"\n'
        )
        wrapper.chmod(0o755)
        return f"PYTHON={wrapper}"

    return write


def refusal(done: subprocess.CompletedProcess) -> str:
    """The one line that a failed make says, before make's own."""
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


# ---- what is missing ----


@pytest.mark.parametrize("target", ["run", "ext", "train", "test"])
def test_no_compiler(clone, tools, target):
    done = make(target, f"PYTHON={sys.executable}", folder=clone, path=tools())
    assert refusal(done) == "no C compiler (cc): apt-get install gcc libc6-dev"


def test_compiler_without_headers(clone, tools):
    broken = Path(tools()) / "cc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    done = make("run", folder=clone, path=tools())
    assert refusal(done) == "cc cannot build a C program: apt-get install gcc libc6-dev"


def test_no_python(clone, tools):
    done = make("ext", folder=clone, path=tools(*compiler_tools()))
    assert refusal(done) == "no python3: apt-get install python3 python3-venv python3-dev"


def test_no_venv_module(clone, python_with):
    done = make("ext", python_with("import sys; sys.modules['ensurepip'] = None"), folder=clone)
    assert refusal(done).endswith("has no venv module: apt-get install python3-venv")


def test_no_python_header(clone, python_with):
    patch = "import sysconfig; sysconfig.get_path = lambda name: '/nonexistent'"
    done = make("ext", python_with(patch), folder=clone)
    assert refusal(done).endswith("has no Python.h: apt-get install python3-dev")


def test_old_python(clone, python_with):
    done = make("ext", python_with("import sys; sys.version_info = (3, 9, 2)"), folder=clone)
    assert "is older than 3.10: make PYTHON=" in refusal(done)


def test_no_package_index(clone):
    (clone / ".venv/bin").mkdir(parents=True)
    (clone / ".venv/bin/python").symlink_to(shutil.which("false"))  # pip, where it reaches none
    done = make(".venv/ready", folder=clone)
    line = "pip cannot get these packages: it needs a package index (PyPI or a mirror), and so"
    assert refusal(done) == f"{line} a network"
    assert not (clone / ".venv/ready").exists()


def test_nothing_is_left_after_a_refusal(clone, python_with):
    make("ext", python_with("import sys; sys.modules['ensurepip'] = None"), folder=clone)
    assert not (clone / ".venv").exists()


def test_run_needs_no_python(clone, tools):
    path = tools(*compiler_tools())
    done = make("run", "CFLAGS=-std=c11 -O0 -pthread", folder=clone, path=path)
    assert done.returncode == 0, done.stderr
    assert subprocess.run([clone / "run", "--help"], capture_output=True).returncode == 0
    again = make("run", "CFLAGS=-std=c11 -O0 -pthread", folder=clone, path=path)
    assert again.stdout == ""


# ---- one rule in two places ----


def variable(name: str) -> list[str]:
    return make(f"--eval=print: ; @echo $({name})", "print").stdout.split()


def test_flags_agree():
    assert variable("CFLAGS") == _build.FLAGS
    assert "-march=native" not in _build.FLAGS


def test_sources_agree():
    assert sorted(variable("ENGINE")) == _build.engine_sources()
    trainer = [name for name in variable("TRAINER") if name.endswith(".c")]
    shared = [f"csrc/{name}.c" for name in _build.SHARED]
    assert sorted(_build.trainer_sources()) == sorted(trainer + shared)
    every = {f"csrc/{path.name}" for path in (ROOT / "csrc").glob("*.c")}
    assert {*trainer, *_build.engine_sources(), *variable("PROGRAM")} == every


def test_help_names_every_target():
    shown = {line.split()[1] for line in make("help").stdout.splitlines()}
    assert shown >= set(
        "run ext train model test test-peers bench sanitize fuzz lint size clean".split()
    )
    assert make().stdout == make("help").stdout


# ---- the package ----


def test_import_is_light():
    heavy = {"numpy", "llm._llm", "llm.engine", "matplotlib"}
    code = f"import sys, llm; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_public_names():
    for name in llm.__all__:
        assert getattr(llm, name) is not None
        assert name in dir(llm)
    with pytest.raises(AttributeError, match="no attribute 'Modell'"):
        _ = llm.Modell


def test_command_line_starts():
    done = subprocess.run([sys.executable, "-m", "llm", "--help"], cwd=ROOT, capture_output=True)
    assert done.returncode == 0 and b"train" in done.stdout
