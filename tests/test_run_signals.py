"""The program ./run: closed and full pipes, Ctrl-C at every moment."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from models import file_fixture, write_trained

from conftest import unread

RUN = Path(__file__).parent.parent / "run"
pytestmark = pytest.mark.skipif(not RUN.exists(), reason="./run is not built: make run")


file = file_fixture(write_trained)


def test_closed_pipe_ends_quietly(file):
    process = subprocess.Popen(
        [RUN, file, "the", "--temp", "3", "--ctx", "100000", "--allow-long-context"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.read(5)
    process.stdout.close()
    assert process.wait(60) in (1, -signal.SIGPIPE, 0)


def test_full_disk(file):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    for arguments in ([file, "the", "-n", "3"], [file, "--info"], ["--help"], ["--version"]):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([RUN, *arguments], stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == 1 and done.stderr.count(b"\n") == 1
        assert b"No space left" in done.stderr


def test_full_disk_in_a_chat(file):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [RUN, file, "--chat", "hi"],
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
        )
    assert done.returncode == 1 and b"No space left" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["-", "-n", "1"], ["-", "--tokens"], ["--perplexity", "/dev/stdin"]]
)
def test_ctrl_c_ends_the_reading_of_a_text(file, arguments):
    process = subprocess.Popen(
        [RUN, file, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdin.write(b"a text whose end does not come")
    process.stdin.flush()
    deadline = time.monotonic() + 30
    while unread(process.stdin) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    try:
        assert process.wait(30) == 130 and process.stdout.read() == process.stderr.read() == b""
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("arguments", [["-", "--embed"], ["--perplexity", "/dev/stdin"]])
def test_ctrl_c_ends_a_computation_without_a_word(file, arguments):
    process = subprocess.Popen(
        [RUN, file, *arguments, "--ctx", "200000", "--allow-long-context"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdin.write(b"the" * 50000)
    process.stdin.close()
    time.sleep(0.5)
    assert process.poll() is None, "it ended before it was stopped"
    process.send_signal(signal.SIGINT)
    try:
        assert process.wait(60) == 130 and process.stdout.read() == process.stderr.read() == b""
    finally:
        process.kill()
        process.wait()


def test_ctrl_c_that_the_caller_ignores_stays_ignored(file):
    process = subprocess.Popen(  # as a shell's script starts what follows with "&"
        [RUN, file, "-", "-n", "3", "--no-echo"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    process.stdin.write(b"Once ")
    process.stdin.flush()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(b"upon a time", timeout=60)
    assert process.returncode == 0 and b"tokens, finish" in err


def test_ctrl_c_ends_in_good_order(file):
    # An arg-max that never meets the end token, in a long context: it runs until it is stopped.
    arguments = [RUN, file, "-", "--ctx", "200000", "--allow-long-context", "--json"]
    arguments += ["--temp", "1000", "--top-k", "0", "--seed"]
    for seed in range(20):
        process = subprocess.Popen(
            [*arguments, str(seed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        process.stdin.write(b"the" * 50000)
        process.stdin.close()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out = json.loads(process.stdout.read())
        if out["finish_reason"] == "cancelled":
            assert process.wait(60) == 130
            return
        assert process.wait(60) in (0, 130)
    pytest.fail("every run had ended before it was stopped")
