"""What a run tells: escaping, the lines, the bar, the pages at the end."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from models import write_trained
from report_runs import finished_run

from conftest import ROOT
from llm.report import Report, escape, human, human_bytes


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


BAR = """
import sys
from types import SimpleNamespace
from llm.report import Report
run = SimpleNamespace(
    step=0, n_steps=None, losses=[], validations=[[0, 0.0, 3.0]], bits_per_byte=3.0,
    settings=SimpleNamespace(batch=4, n_ctx=256), n_validations=2, peak=1e9,
    model=SimpleNamespace(config=SimpleNamespace(flops_per_token=1e3)),
)
report = Report()
report.begin(run)
for run.step in range(1, 4):
    run.losses.append(5.0)
    run.n_steps = 3
    report.step(run)
report.validated(run)
report.sample("a\\x1bz" + " word" * 30)
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
    lines = re.split(r"[\r\n]+", text)
    assert max(map(len, lines)) <= 80
    assert [line[11:15] for line in lines if "word" in line] == ["a\\x1", "word", "word"]
    assert "\r100% |" in text
    assert "loss 5.000 nats/token, held-out 3.000 bits/byte" in text
    assert "a\\x1bz" in text


def test_a_pipe_gets_plain_lines():
    said = subprocess.run([sys.executable, "-c", BAR], capture_output=True, cwd=ROOT, text=True)
    assert said.stderr == ""
    first, second = said.stdout.splitlines()
    assert first.startswith("step       3 of 3: loss 5.000 nats/token, held-out 3.000 bits/byte, ")
    assert second == "sample     a\\x1bz" + " word" * 30


@pytest.fixture
def finish(tmp_path, capsys):
    """Ends a run, whose file is `w.bin`; returns what was said."""

    def end(run) -> str:
        write_trained(tmp_path / "w.bin")
        Report().finish(run, tmp_path / "w.bin")
        return capsys.readouterr().out

    return end


def test_the_end_of_a_run_says_where_its_report_lies(tmp_path, finish):
    said = finish(finished_run(5))
    names = ("report.html", "loss.png", "curves.png")
    assert ", ".join(str(tmp_path / name) for name in names) in said
    assert all((tmp_path / name).stat().st_size > 1000 for name in names)
    found = "33.3% of 3 windows it trained on go on word for word for 32 tokens, 0.0% of 2"
    assert f"memorised  {found}" in said


def test_without_matplotlib_a_run_ends_well(tmp_path, finish, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = finish(finished_run(5))
    assert "note       no curves: matplotlib is missing; pip install matplotlib" in said
    assert "report.html" in said and "loss.png" not in said
    assert not (tmp_path / "loss.png").exists()
    assert "try        ./run" in said


def test_a_report_that_cannot_be_written_is_a_note(tmp_path, finish):
    (tmp_path / "report.html").mkdir()
    said = finish(finished_run(5))
    assert "note       no report: " in said
    assert "try        ./run" in said
