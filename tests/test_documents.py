"""Files to documents: every format and compression, parts of bounded size, and what is wrong."""

import gzip
import json
import lzma
import os

import pytest

from llm import documents
from llm.documents import NotText, Source, find_files, read_documents
from llm.errors import CorpusError

TEXT = "".join(f"Zeile {i}: grüße, 你好.\n" for i in range(200))


def zstd(data: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor().compress(data)


PACKERS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd}


def read(path, field=None, **kind):
    skipped = []
    found = list(read_documents(Source(str(path)), field, skipped.append, **kind))
    return found, [line.rpartition("/")[2] for line in skipped]


def write_parquet(path, columns):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize("suffix", PACKERS)
def test_every_format_in_every_compression(tmp_path, suffix):
    pack = PACKERS[suffix]
    plain = write_parquet(tmp_path / "plain", {"id": [1, 2], "text": ["eins", "zwei"]})
    lines = b'{"text": "eins", "n": 1}\n\n{"text": "zwei"}'
    for name, data, expected in [
        ("a.txt", TEXT.encode(), [TEXT.encode()]),
        ("a.md", b"\xef\xbb\xbf# a", [b"# a"]),
        ("a.jsonl", lines, [b"eins", b"zwei"]),
        ("A.PARQUET", plain.read_bytes(), [b"eins", b"zwei"]),
    ]:
        path = tmp_path / (name + suffix)
        path.write_bytes(pack(data))
        assert read(path) == (expected, [])


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_frames_that_follow_each_other(tmp_path, suffix):
    path = tmp_path / ("a.txt" + suffix)
    path.write_bytes(PACKERS[suffix](b"one ") + PACKERS[suffix](b"two"))
    assert read(path)[0] == [b"one two"]


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("end", [b"", b"what is no frame"])
def test_no_frame_and_what_follows_the_last_one(tmp_path, suffix, end):
    path = tmp_path / ("a.txt" + suffix)
    whole = PACKERS[suffix](b"one ")
    path.write_bytes(whole + end if end else b"")
    with pytest.raises(CorpusError, match="truncated or damaged"):
        read(path)


def test_xz_streams_may_be_padded(tmp_path):
    path = tmp_path / "a.txt.xz"
    path.write_bytes(lzma.compress(b"one ") + bytes(8) + lzma.compress(b"two") + bytes(4))
    assert read(path)[0] == [b"one two"]


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_compressed_file_is_one_line_with_its_name(tmp_path, suffix, damage):
    path = tmp_path / ("a.txt" + suffix)
    data = bytearray(PACKERS[suffix](os.urandom(5000).hex().encode()))
    if damage == "cut":
        del data[-30:]
    else:
        data[:4] = b"oops"
    path.write_bytes(data)
    with pytest.raises(CorpusError, match="truncated or damaged") as caught:
        read(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_damaged_parquet_file(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"text": ["eins"] * 100})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorpusError, match=r"a\.parquet: truncated or damaged"):
        read(path)


@pytest.mark.parametrize("first", ["[not JSON", '{"id": 1}', '"a text"', '{"a": "x", "b": "y"}'])
@pytest.mark.parametrize("field", [None, "text"])
def test_parts_of_records_hold_what_the_whole_file_holds(tmp_path, first, field):
    """`first` begins the second part."""
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": f"text {i}", "title": "t"}) for i in range(40)]
    lines[17] = first
    path.write_text("\n".join(lines))
    cut, size = sum(len(line) + 1 for line in lines[:17]), path.stat().st_size
    sources = Source(str(path)), Source(str(path), 0, cut), Source(str(path), cut, size)
    whole, *parts = (list(read_documents(s, field, lambda line: None)) for s in sources)
    assert sum(parts, []) == whole and len(whole) == 39 + (first == '"a text"')


@pytest.mark.parametrize("part", [7, 64, 1000, 1 << 20])
def test_a_long_text_comes_in_parts_that_end_at_a_line(tmp_path, part):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(TEXT.encode()))
    parts, _ = read(path, part_bytes=part)
    assert b"".join(parts) == TEXT.encode()
    assert all(len(p) <= part for p in parts)
    if part > 64:
        assert all(p.endswith(b"\n") for p in parts)
    for p in parts:
        p.decode()  # no character is cut


def test_a_range_of_bytes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(TEXT.encode())
    cut = TEXT.encode().index(b"\n", 1000) + 1
    a = list(read_documents(Source(str(path), 0, cut), None, print, 500))
    b = list(read_documents(Source(str(path), cut, len(TEXT.encode())), None, print, 500))
    assert b"".join(a) == TEXT.encode()[:cut] and b"".join(b) == TEXT.encode()[cut:]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": "two"}\n')
    assert list(read_documents(Source(str(path), 16, 32), None, print)) == [b"two"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a" * 5000 + b"\xff", r"not UTF-8 \(byte 0xff at 5000\)"),
        (b"a" * 5000 + b"\xe4\xbd", r"not UTF-8 \(byte 0xe4 at 5000\)"),
        (b"a" * 5000 + b"\0", r"binary \(a zero byte at 5000\)"),
    ],
)
def test_what_is_not_text_is_told_with_its_place(tmp_path, data, message):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    with pytest.raises(NotText, match=message):
        read(path, part_bytes=64)


# ---- records ----


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"text": "yes", "content": "no"}, b"yes"),
        ({"title": "no", "content": "yes"}, b"yes"),
        ({"story": "yes", "n": 3}, b"yes"),
        ("yes", b"yes"),
    ],
)
def test_the_field_is_guessed(tmp_path, record, expected):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record))
    assert read(path) == ([expected], [])


def test_the_field_is_chosen(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "no", "body": "yes"}')
    assert read(path, "body")[0] == [b"yes"]
    path = write_parquet(tmp_path / "a.parquet", {"text": ["no"], "body": ["yes"]})
    assert read(path, "body")[0] == [b"yes"]


@pytest.mark.parametrize("field", [None, "txt"])
def test_a_wrong_field_says_which_there_are(tmp_path, field):
    path = tmp_path / "a.jsonl"
    path.write_text('{"first": "a", "second": "b"}')
    with pytest.raises(CorpusError, match=r"no field 'te?xt'; there are: first, second.*--field"):
        read(path, field)
    path = write_parquet(tmp_path / "a.parquet", {"first": ["a"], "second": ["b"], "n": [1]})
    with pytest.raises(CorpusError, match=r"no field 'te?xt'; there are: first, second; name one"):
        read(path, field)


def test_a_field_that_is_no_text_says_so(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": 5, "id": 1}')
    with pytest.raises(CorpusError, match="line 1: field 'text' is no text; there are: text, id"):
        read(path)


def test_bad_records_are_skipped_and_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"text": "good"}\n{"text": 3}\n{nonsense\n{"text": "\xff"}\n{"other": "x"}\n'
        b'{"text": "\\ud800"}\n' + b"[" * 100_000 + b'\n{"text": "end"}'
    )
    assert read(path) == (
        [b"good", b"end"],
        [
            "a.jsonl: line 2: no text",
            "a.jsonl: line 3: not JSON",
            "a.jsonl: line 4: not UTF-8",
            "a.jsonl: line 5: no text",
            "a.jsonl: line 6: half a surrogate pair",
            "a.jsonl: line 7: not JSON",
        ],
    )
    path = write_parquet(tmp_path / "a.parquet", {"text": ["good", None]})
    assert read(path) == ([b"good"], ["a.parquet: row 2: no text"])


def test_a_file_that_is_not_json_at_all(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("once upon a time\n")
    with pytest.raises(NotText, match=r"a\.jsonl: line 1: not JSON"):
        read(path)


def test_a_line_that_never_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "LONGEST_RECORD", 1 << 20)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * (2 << 20))
    with pytest.raises(CorpusError, match="line 1: longer than 1 MiB"):
        read(path)


# ---- which files ----


def test_folders_and_patterns_in_the_order_of_names(tmp_path):
    for name in ("b/x.txt", "a.md", "c.jsonl.gz", "d.png", "e.gz"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    skipped = []
    found = find_files([str(tmp_path)], skipped.append)
    assert [os.path.relpath(path, tmp_path) for path in found] == ["a.md", "c.jsonl.gz", "b/x.txt"]
    assert [line.split(":")[0].rpartition("/")[2] for line in skipped] == ["d.png", "e.gz"]
    pattern = str(tmp_path / "**" / "*.txt")
    assert find_files([pattern, str(tmp_path)], print)[0] == str(tmp_path / "b" / "x.txt")
    assert len(find_files([pattern, str(tmp_path)], print)) == 3  # each once
    with pytest.raises(CorpusError, match="no file has such a name"):
        find_files([str(tmp_path / "*.nothing")], print)
    with pytest.raises(CorpusError, match="an empty path"):
        find_files([""], print)


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    path = tmp_path / "a.txt.zst"
    path.write_bytes(b"")
    with pytest.raises(CorpusError, match=r"package zstandard: pip install 'two-file-llm\[data\]'"):
        read(path)
