"""Text in: what is read, what is skipped and named, and the cleaning of the default corpus."""

import hashlib
import os
import re

import pytest

from llm import corpus
from llm.corpus import clean_bible, read_corpus
from llm.errors import CorpusError, PackageError


def test_a_file_of_any_name_is_one_document(tmp_path):
    path = tmp_path / "notes.log"
    path.write_bytes("grüße\r\n".encode())
    read = read_corpus([str(path)])
    assert read.documents == ["grüße\r\n".encode()]
    assert read.name == "notes.log"
    assert read.n_bytes == 9
    assert read.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_name_that_is_not_utf_8(tmp_path):
    path = os.fsdecode(bytes(tmp_path) + b"/n\xff.txt")
    with open(path, "wb") as file:
        file.write(b"text")
    assert read_corpus([path]).name == "n\ufffd.txt"


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.txt").write_text("one")
    (tmp_path / "a.MD").write_text("\ufeffa mark")
    (tmp_path / "c.txt").write_text(" \n")
    read = read_corpus([str(tmp_path)])
    assert read.documents == [b"a mark", b"one"]
    assert read.skipped == []
    assert read.sha256 == hashlib.sha256(b"a mark<|endoftext|>one").hexdigest()


def test_what_is_not_text_in_a_folder_is_skipped_and_named(tmp_path):
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "binary.txt").write_bytes(b"ab\0cd")
    (tmp_path / "latin.txt").write_bytes(b"na\xefve")
    read = read_corpus([str(tmp_path)])
    assert read.documents == [b"good"]
    assert [os.path.basename(line) for line in read.skipped] == [
        "picture.png: not .txt, .md, .jsonl, .parquet, nor one of them in .gz, .xz, .zst",
        "binary.txt: binary (a zero byte at 2)",
        "latin.txt: not UTF-8 (byte 0xef at 2)",
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "cannot read: No such file"),
        (lambda path: path.write_text(" \n "), "no text to train on"),
        (lambda path: path.write_bytes(b"\0"), "binary"),
        (lambda path: path.write_bytes(b"\xff"), "not UTF-8"),
        (lambda path: path.mkdir(), "no text to train on"),
        (os.mkfifo, "neither a file nor a folder"),
    ],
)
def test_a_path_without_text_is_one_clear_line(tmp_path, make, message):
    path = tmp_path / "input"
    make(path)
    with pytest.raises(CorpusError, match=message) as caught:
        read_corpus([str(path)])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_folder_says_what_it_skipped(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"\0")
    with pytest.raises(CorpusError, match=r"1 file skipped, the first: .*x\.bin: not \.txt"):
        read_corpus([str(tmp_path)])


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_an_unreadable_file_is_an_error(tmp_path):
    path = tmp_path / "secret.txt"
    path.write_text("text")
    path.chmod(0)
    with pytest.raises(CorpusError, match="Permission denied"):
        read_corpus([str(tmp_path)])


def test_cleaning_in_small():
    raw = (
        "1. In the  beginning , God`s burnt- offering; 2. and it [was] so.                 BOOK I  "
        "     Psalm 11. Blessed is the man    Who rests; 2. But his delight lasts.      "
        "Psalm 119   ALEPH 1. Blessed are  those.  SIN AND SHIN 2. Princes persecute 3. HOLY. "
        "     Psalm 120  A Song. 1. In my distress.1. after a verse"
    )
    assert clean_bible(raw) == (
        "In the beginning, God's burnt-offering; and it was so.\n\n"
        "Psalm 1\nBlessed is the man Who rests;\nBut his delight lasts.\n\n"
        "Psalm 119\nBlessed are those.\nPrinces persecute\nHOLY.\n\n"
        "Psalm 120 A Song.\nIn my distress.\n\nafter a verse"
    )


def test_the_default_corpus_is_the_pinned_one():
    try:
        read = corpus.default_corpus()
    except PackageError as error:
        pytest.skip(f"the package cannot be had: {error}")
    text = b"\n\n".join(read.documents)
    assert len(text) == corpus.BIBLE_BYTES
    assert hashlib.sha256(text).hexdigest() == corpus.BIBLE_SHA256
    assert len(read.documents) == 1189  # chapters
    assert text.isascii()
    assert re.findall(rb"\d+", text) == [b"%d" % n for n in range(1, 151)]  # the psalms' numbers
    assert text.startswith(b"In the beginning God created")
    assert text.endswith(b"be with all the saints. Amen.")


def test_another_text_under_the_default_name_is_refused(monkeypatch, tmp_path):
    source = tmp_path / "bible.py"
    source.write_text('x = """1. Something else."""')
    monkeypatch.setattr("llm.packages.fetch", lambda name: source)
    with pytest.raises(CorpusError, match="not the expected one"):
        corpus.default_corpus()
