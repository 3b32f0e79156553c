"""`./run --chat` as a user meets it, and where llm.Chat says the same: commands, sessions, pipes, a
terminal, Ctrl-C, wrong options."""

import dataclasses
import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import time
import warnings
from contextlib import contextmanager

import pytest
from models import TINY, file_fixture, model_fixture, write_trained
from test_chat import SYSTEM, assistant, user
from test_chat_template import CHATML, source, write_model

import llm
from conftest import ROOT, unread

path = file_fixture(lambda path: write_model(path, source("qwen3"), CHATML))
model = model_fixture(n_threads=2, allow_long_context=True)


def run_chat(path, text, *options):
    command = [ROOT / "run", path, "--chat", "--seed", "1", "-n", "8", *options]
    return subprocess.run(command, input=text, capture_output=True, timeout=60)


def test_run_converses(path, tmp_path):
    talk = tmp_path / "talk"
    done = run_chat(path, b"one\n/save %b\ntwo\n" % os.fsencode(talk))
    assert done.returncode == 0 and b"[saved 2 messages" in done.stderr
    again = run_chat(path, b"zzz\n/load %b\n/reset\none\n" % os.fsencode(talk), "--temp", "0")
    assert again.returncode == 0 and b"[loaded 2 messages" in again.stderr
    assert run_chat(path, b"one\ntwo\n").stdout == done.stdout
    lines = run_chat(path, b"/nonsense\n\n/save\n /not a command\n").stderr
    assert lines.count(b"no command") == 1 and b"/save needs the name of a file" in lines
    joined = run_chat(path, b"one\\\ntwo\n/save %b\n" % os.fsencode(talk))
    assert b"[saved 2 messages" in joined.stderr and b"user 7\none\ntwo\n" in talk.read_bytes()


def test_a_reset_keeps_the_system_message_alone(path, model, tmp_path):
    talk, after = os.fsencode(tmp_path / "talk"), tmp_path / "after"
    run_chat(path, b"a secret\n/save %b\n" % talk, "--system", SYSTEM["content"])
    done = run_chat(path, b"/load %b\n/reset\n/save %b\n" % (talk, os.fsencode(after)))
    assert b"[loaded 3 messages" in done.stderr and b"[saved 1 messages, 0 tokens]" in done.stderr
    assert b"ids 0\n" in after.read_bytes() and b"secret" not in after.read_bytes()
    chat = llm.Chat(model)
    chat.load(tmp_path / "talk")
    chat.reset()
    assert chat.messages == [SYSTEM] and chat.context.n_past == 0


def test_ctrl_c_amid_a_load_leaves_the_conversation(path, tmp_path):
    talk, after = tmp_path / "talk", tmp_path / "after"
    run_chat(path, b"one\n/save %b\n" % os.fsencode(talk))
    head, _, _ = talk.read_bytes().partition(b"\nids ")
    talk.write_bytes(head + b"\nids 100000\n" + b"65\n" * 100_000 + b"end\n")
    command = [ROOT / "run", path, "--chat", "--ctx", "200000", "--allow-long-context"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        process.stdin.write(b"/load %b\n" % os.fsencode(talk))
        process.stdin.flush()
        time.sleep(0.7)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(b"/save %b\n" % os.fsencode(after), timeout=60)
    assert process.returncode == 0 and b"[stopped]\n[saved 0 messages, 0 tokens]" in said


def test_run_out_of_memory_is_a_failure(path):
    command = ["sh", "-c", 'ulimit -v 300000; exec "$0" "$@"', ROOT / "run", path, "--chat"]
    done = subprocess.run(command, input=b"a" * (160 << 20), capture_output=True, timeout=60)
    assert done.returncode == 1 and b"out of memory for the conversation" in done.stderr


def test_run_forgets_aloud(path):
    done = run_chat(path, b"some words to say\n" * 12, "--ctx", "96", "--allow-long-context")
    assert done.returncode == 0
    assert re.search(rb"\[forgot \d+ turns?, \d+ tokens; window 96\]", done.stderr)
    long = run_chat(path, b"x" * 200 + b"\nshort\n", "--ctx", "96", "--allow-long-context")
    assert long.returncode == 0 and b"the context holds 96" in long.stderr and long.stdout


def test_a_wrong_option_of_a_chat_names_the_call_that_has_it(model):
    with pytest.raises(TypeError, match=r"llm.Chat\(\) has no option max_tokens: say\(\) has it"):
        llm.Chat(model, max_tokens=5)
    with pytest.raises(TypeError, match=r"llm.Chat\(\) has .* mean temperature\?"):
        llm.Chat(model, temprature=1)
    with pytest.raises(TypeError, match=r"no option temp: .* mean template or temperature\?"):
        llm.Chat(model, temp=1)
    with pytest.raises(TypeError, match=r"say\(\) has no .* temperature: llm.Chat\(\) has it"):
        llm.Chat(model).say("Hi", temperature=1)


def test_a_wrong_argument_of_a_chat_fails_at_once(model, path):
    for wrong in None, path:
        with pytest.raises(TypeError, match="model must be Model, not"):
            llm.Chat(wrong)
    with pytest.raises(ValueError, match="template is 'foo', expected one of chatml, llama2"):
        llm.Chat(model, template="foo")
    with pytest.raises(TypeError, match="template must be str, not int"):
        llm.Chat(model, template=5)
    with pytest.raises(TypeError, match="context must be dict, not int"):
        llm.Chat(model, context=5)


def test_run_says_when_the_template_is_unknown(tmp_path):
    write_trained(tmp_path / "tiny.bin", dataclasses.replace(TINY, n_ctx=128))
    done = run_chat(tmp_path / "tiny.bin", b"hello\n")
    assert done.returncode == 0 and b"chatml stands in" in done.stderr


def test_python_says_it_in_the_same_words(tmp_path):
    write_trained(tmp_path / "none.bin", dataclasses.replace(TINY, n_ctx=128))
    write_model(tmp_path / "unknown.bin", "{{ messages }}", CHATML)
    for path in (tmp_path / "none.bin", tmp_path / "unknown.bin"):
        said = run_chat(path, b"").stderr.decode().splitlines()[0].removeprefix("run: ")
        for call in ways_to_chat():
            with llm.Model(path) as model:
                with pytest.warns(UserWarning) as warned:
                    call(model)
                assert [str(w.message) for w in warned] == [said.replace("--template", "template=")]
                assert warned[0].filename == __file__
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    call(model, template="chatml")


def ways_to_chat():
    return (
        llm.Chat,
        lambda model, **template: model.chat([user("Hi")], max_tokens=1, **template),
        lambda model, **template: model.chat_stream([user("Hi")], max_tokens=1, **template),
    )


def test_a_known_template_is_no_news(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for call in ways_to_chat():
            call(model)


def test_an_answer_that_is_left_at_its_first_piece_stays(model):
    chat = llm.Chat(model, seed=1)
    answer = chat.stream("hello", max_tokens=9)
    piece = next(answer)
    answer.close()
    assert chat.messages == [user("hello"), assistant(piece)]


def test_an_exception_of_on_forget_leaves_what_is_not_forgotten(model):
    def refuse(step):
        raise RuntimeError("no")

    chat = llm.Chat(model, on_forget=refuse, context={"n_ctx": 64}, seed=1)
    with pytest.raises(RuntimeError, match="no"):
        for _ in range(9):
            chat.say("hello", max_tokens=3)
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]


def read_until(fd: int, marker: bytes, seconds: float = 30) -> bytes:
    out, end = b"", time.monotonic() + seconds
    while marker not in out and time.monotonic() < end:
        if select.select([fd], [], [], 0.1)[0]:
            out += os.read(fd, 4096)
    assert marker in out, out
    return out


def never_ends(path) -> list[str]:
    """The program, writing until it is stopped."""
    command = [str(ROOT / "run"), str(path), "--seed", "1", "--temp", "2"]
    command += ["-n", "1000000", "--ctx", "100000", "--allow-long-context", "--logit-bias"]
    with llm.Model(path) as model:
        eog = [i for i in range(model.config.n_vocab) if model.tokenizer.is_eog(i)]
    return command + " --logit-bias ".join(f"{i}=-inf" for i in eog).split()


@pytest.mark.parametrize(
    "mode, code, says",
    [("--chat", 0, b"[stopped]"), ("--no-echo", 130, b"finish cancelled")],
)
def test_ctrl_c_while_nobody_reads_is_no_failure(path, mode, code, says):
    """The write that waits goes on, so that what was said is whole."""
    process = subprocess.Popen(
        [*never_ends(path), mode, "go on"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        size = fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        deadline = time.monotonic() + 30
        while unread(process.stdout) < size - 64 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code and says in err and b"Interrupted" not in err, err
    assert len(out) >= size and out.endswith(b"\n")


@contextmanager
def in_terminal(command):
    parent, child = pty.openpty()
    pipes = {"stdin": child, "stdout": child, "stderr": child}
    process = subprocess.Popen(command, start_new_session=True, **pipes)
    try:
        yield process, parent
    finally:
        process.kill()
        os.close(parent)
        os.close(child)


def test_ctrl_c_stops_the_answer_and_not_the_program(path):
    """In a terminal: during an answer, at the prompt, and then a message still gets its answer."""
    with in_terminal([*never_ends(path), "--chat"]) as (process, parent):
        read_until(parent, b"> ")
        os.write(parent, b"go on\n")
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        read_until(parent, b"[stopped]")
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        read_until(parent, b"ends)")
        os.write(parent, b"half of a message\\\n")
        read_until(parent, b"... ")
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        read_until(parent, b"ends)")  # it is not sent
        os.write(parent, b"/quit\n")
        assert process.wait(30) == 0


@pytest.mark.parametrize("typed", [b"a line that goes on\\\n", b"half a line, sent by Ctrl-D\x04"])
def test_ctrl_c_takes_back_a_message_that_goes_on(path, typed):
    with in_terminal([ROOT / "run", path, "--chat", "--seed", "1", "-n", "3"]) as (process, parent):
        read_until(parent, b"> ")
        os.write(parent, typed)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        read_until(parent, b"ends)")
        os.write(parent, b"/quit\n")
        assert process.wait(30) == 0
        assert b"[0 tokens of answers" in read_until(parent, b"seed 1]")
