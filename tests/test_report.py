"""What a run tells: escaping, the lines, the picture."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from types import SimpleNamespace

import pytest
from models import TINY

from conftest import ROOT
from llm.report import draw_curves, escape, human, human_bytes


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, grüße 日本\n\tline", "plain, grüße 日本\n\tline"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\rb\x7f\x9b", "a\\rb\\x7f\\x9b"),
        ("left\u202eright\u2066", "left\\u202eright\\u2066"),
    ],
)
def test_escape(text, shown):
    assert escape(text) == shown


@pytest.mark.parametrize(
    ("n", "shown"), [(0, "0"), (999, "999"), (1234, "1.23 k"), (7.15e6, "7.15 M"), (2e13, "20 T")]
)
def test_human(n, shown):
    assert human(n) == shown


def test_human_bytes():
    assert [human_bytes(n) for n in (7, 4_030_056, 10e12)] == ["7 B", "4.03 MB", "10 TB"]


def run_with(losses, validations):
    return SimpleNamespace(
        losses=losses,
        validations=validations,
        seconds=12.0,
        n_tokens=len(losses) * 1024,
        validation=SimpleNamespace(bytes_per_token=3.9),
        model=SimpleNamespace(config=TINY),
    )


@pytest.mark.parametrize("n_steps", [0, 1, 2, 500])
def test_the_picture_is_drawn_for_any_length_of_run(tmp_path, n_steps):
    losses = [8.0 - i / 100 for i in range(n_steps)]
    points = [[0, 0.0, 3.0]] + [[n_steps, 12.0, 2.5]] * bool(n_steps)
    draw_curves(run_with(losses, points), tmp_path / "loss.png")
    raw = (tmp_path / "loss.png").read_bytes()
    assert raw.startswith(b"\x89PNG")
    assert struct.unpack(">II", raw[16:24]) == (1200, 675)


BAR = """
import sys
from types import SimpleNamespace
from llm.report import Report
run = SimpleNamespace(
    step=0, n_steps=None, losses=[], validations=[[0, 0.0, 3.0]], bits_per_byte=3.0,
    settings=SimpleNamespace(batch=4, n_ctx=256), n_validations=2,
)
report = Report()
report.begin(run)
for run.step in range(1, 4):
    run.losses.append(5.0)
    run.n_steps = 3
    report.step(run)
report.validated(run)
report.sample("a\\x1bz")
report.end()
"""


def test_a_terminal_gets_a_bar_with_the_figures():
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with subprocess.Popen([sys.executable, "-c", BAR], stdout=secondary, cwd=ROOT) as p:
        os.close(secondary)
        said = b""
        try:
            while chunk := os.read(primary, 4096):
                said += chunk
        except OSError:  # the other side is closed
            pass
    os.close(primary)
    assert p.returncode == 0
    text = said.decode()
    assert "\r100% |" in text
    assert "loss 5.000, held-out 3.000 bits/byte" in text
    assert "a\\x1bz" in text


def test_a_pipe_gets_plain_lines():
    said = subprocess.run([sys.executable, "-c", BAR], capture_output=True, cwd=ROOT, text=True)
    assert said.stderr == ""
    first, second = said.stdout.splitlines()
    assert first.startswith("step       3 of 3: loss 5.000, held-out 3.000 bits/byte, ")
    assert second == "sample     a\\x1bz"
