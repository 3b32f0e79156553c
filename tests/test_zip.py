"""Text through a model and back: any bytes, any threads and kernels; a slow coder in Python's
integers; what is refused."""

import dataclasses
import io
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from models import TINY, random_params, write_trained

import llm
from llm import zip as zips
from llm.cli import main
from llm.errors import FormatError, UnsupportedError

TEXT = "The thing there, <|endoftext|> then héé 漢字\n".encode()
LIKELY = b"thethethe the\xffthe thethethethethe\n" * 10  # "the" is one token


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Sure of little, so that no text is too unlikely to be coded."""
    path = tmp_path_factory.mktemp("zip") / "tiny.bin"
    write_trained(path, flat=random_params(TINY) * np.float32(0.4))
    return path


@pytest.fixture(scope="module")
def model(path):
    with llm.Model(path) as model:
        yield model


def packed(model, text, **options):
    out = io.BytesIO()
    sizes = zips.compress(model, io.BytesIO(text), out, **({"n_threads": 1} | options))
    assert sizes.n_archive == len(out.getvalue()) and sizes.n_bytes == len(text)
    return out.getvalue()


def unpacked(model, archive, **options):
    out = io.BytesIO()
    zips.decompress(model, io.BytesIO(archive), out, **({"n_threads": 1} | options))
    return out.getvalue()


# ---- the coder ----


def slow_decode(coded, intervals):
    """The decoder in integers of any size: `intervals(previous symbols)` lists (symbol, size)."""
    low, span, n, symbols = 0, 2**64 - 1, 8, []
    while (choices := intervals(symbols)) is not None:
        total = sum(size for _, size in choices)
        number = int.from_bytes(coded[:n].ljust(n, b"\0"), "big")
        unit = span // total
        at, begin = (number - low) // unit, 0
        for symbol, size in choices:  # noqa: B007
            if at < begin + size:
                break
            begin += size
        symbols.append(symbol)
        low, span = low + unit * begin, unit * size
        while span < 2**56:
            low, span, n = low << 8, span << 8, n + 1
    return symbols


def frequencies(logits):
    return (1 + np.floor(2.0**28 * np.exp(logits.astype(np.float64) - logits.max()))).astype(int)


def coder(model, window=64, overlap=16, lanes=1, **options):
    return zips.Coder(model, window, overlap, lanes, **({"n_threads": 1} | options))


def nothing(part):
    pass


def both_ways(model, symbols, **options):
    symbols = np.array(symbols, np.int32)
    texts = [symbols, symbols[::-1].copy(), symbols[: symbols.size // 2 + 1], symbols]
    encoding = coder(model, **options)
    blocks = [zips.Block(1, 0, text.size, encoding.encode(text, nothing)) for text in texts]
    found = coder(model, lanes=4, **options).decode(blocks, nothing)
    assert all((out == text).all() for out, text in zip(found, texts, strict=True))


@given(st.lists(st.integers(-256, TINY.n_vocab - 1), min_size=1, max_size=200))
@settings(max_examples=20)
@example([-1] * 700)
@example([5])
@example([-256])
@example([7] * 64 + [-9] + [8] * 130)
def test_any_symbols_come_back(model, symbols):
    both_ways(model, symbols)
    both_ways(model, symbols, window=5, overlap=2)


def test_windows_of_one(model):
    both_ways(model, [1, 2, -3, 4], window=1, overlap=0)
    both_ways(model, list(range(130)), window=64, overlap=63)


def test_size_is_what_the_model_promises(model):
    """Of one window, beside the score: at most 0.5 % and two bytes more."""
    ids = np.array([116, 104, 256, 257, 32] * 12, np.int32)
    coded = coder(model).encode(ids, nothing)
    start = model.tokenizer.bos
    _, nats = model.score([start, *ids])
    assert nats / np.log(2) / 8 <= len(coded) <= nats / np.log(2) / 8 * 1.005 + 2


def test_coder_against_python_integers(model):
    """Frequencies from the model's logits in doubles: these ids' intervals are far from edges."""
    ids = [116, 104, 256, 32, 257]
    symbols = np.array([*ids[:2], -66, -67, *ids[2:]], np.int32)
    coded = coder(model).encode(symbols, nothing)
    rows = model.logits([model.tokenizer.bos, *ids])
    exact = [[zip_weight(row, i) for i in range(TINY.n_vocab)] for row in rows]
    assert np.allclose(exact, [frequencies(row) for row in rows], rtol=1e-5, atol=1)
    tokens = lambda n: [*enumerate(exact[n]), ("escape", 1 << 14)]  # noqa: E731
    kinds = [tokens(0), tokens(1), tokens(2), "run", "byte", "byte", *map(tokens, (2, 3, 4))]
    bytes_ = [(value, 1) for value in range(256)]

    def intervals(done):
        if len(done) == len(kinds):
            return None
        kind = kinds[len(done)]
        return bytes_ if isinstance(kind, str) else kind

    assert slow_decode(coded, intervals) == [116, 104, "escape", 1, 65, 66, 256, 32, 257]


def zip_weight(row, i):
    """csrc/coder.c's frequency, step by step in float32."""
    f = np.float32
    x = max((row[i] - row.max()) * f(1.44269504), f(-29))
    n = (x + f(12582912)) - f(12582912)
    r, p = x - n, f(0.00133335581)
    for c in (0.00961812911, 0.0555041087, 0.240226507, 0.693147181, 1.0):
        p = f(c) + r * p
    return int(np.ldexp(p, int(n) + 28)) + 1


# ---- archives ----


@given(st.binary(max_size=600), st.sampled_from([1, 7, 100, 16384]))
@settings(max_examples=30)
@example(b"", 100)
@example(b"\0", 100)
@example(TEXT * 9, 100)
@example(bytes(range(256)), 16384)
def test_any_bytes_come_back(model, data, block_bytes):
    archive = packed(model, data, block_bytes=max(block_bytes, len(data) // 30))
    assert unpacked(model, archive, lanes=4) == data


def test_likely_text_is_coded(model):
    text = LIKELY * 8
    archive = packed(model, text, block_bytes=200)
    source = io.BytesIO(archive)
    blocks = [zips.read_block(source, i) for i in range(zips.read_header(source).n_blocks)]
    assert len(blocks) > 8 and {block.method for block in blocks} == {zips.SPELLED}
    assert len(archive) < len(text) and unpacked(model, archive) == text
    assert unpacked(model, archive, lanes=1) == unpacked(model, archive, lanes=64) == text


def test_threads_kernels_and_windows(model):
    text = LIKELY
    archive = packed(model, text)
    for options in ({"n_threads": 3}, {"kernels": "scalar"}):
        other = packed(model, text, **options)
        header = zips.HEADER.size + zips.CRC.size
        assert other[header:] == archive[header:]  # the header names the kernels
        assert unpacked(model, archive, **options) == text
    assert unpacked(model, packed(model, text, window=9)) == text
    with pytest.raises(ValueError, match="a window of 65 tokens, expected 1 to 64"):
        packed(model, text, window=65)
    with pytest.raises(ValueError, match="blocks of 0 bytes"):
        packed(model, text, block_bytes=0)
    with pytest.raises(ValueError, match="65 blocks at once"):
        unpacked(model, archive, lanes=65)


@pytest.mark.parametrize("size", range(1, 12))
def test_cuts(size):
    text = TEXT * 3
    while text:
        end = zips.cut(text, size)
        assert 1 <= end <= max(size, 1)
        if size >= 4:
            text[:end].decode()
        text = text[end:]


@given(st.binary(max_size=60), st.lists(st.sampled_from([0, 1, 2, 3, 4]), max_size=40))
def test_alignment_spells_any_text(text, ids):
    pieces = {0: b"", 1: text[:2], 2: text[3:4], 3: b"\xc3", 4: text[10:20]}
    symbols = zips.align(text, ids, pieces)
    assert b"".join(pieces[s] if s >= 0 else bytes([-1 - s]) for s in symbols) == text


# ---- what is refused ----


def test_every_flipped_or_missing_byte_is_refused(model):
    text = LIKELY[:120] + bytes(range(150, 190))
    archive = packed(model, text, block_bytes=100)
    for i in range(len(archive)):
        broken = bytearray(archive)
        broken[i] ^= 1 << i % 8
        out = io.BytesIO()
        for bad in (bytes(broken), archive[:i]):
            with pytest.raises((FormatError, UnsupportedError)):
                zips.decompress(model, io.BytesIO(bad), out, n_threads=1)
        assert out.getvalue() == b""
    with pytest.raises(FormatError, match="behind the archive's end"):
        unpacked(model, archive + b"x")


def resealed(archive, **changes):
    header = zips.read_header(io.BytesIO(archive))
    return dataclasses.replace(header, **changes).pack() + archive[zips.HEADER.size + 4 :]


def test_other_versions_models_and_arithmetic(model, tmp_path):
    archive = packed(model, TEXT)
    later = archive[:8] + b"\3\0" + archive[10:]
    with pytest.raises(UnsupportedError, match="version 3; this program reads 2"):
        unpacked(model, later)
    write_trained(tmp_path / "other.bin", seed=2)
    with llm.Model(tmp_path / "other.bin") as other:
        with pytest.raises(FormatError, match="another parameter file: fingerprint"):
            unpacked(other, archive)
    with pytest.raises(UnsupportedError, match="kernel set 'neon'.*--portable"):
        unpacked(model, resealed(archive, probe=b"\0" * 32, kernels="neon"))
    with pytest.raises(FormatError, match=r"not the one that went in \(SHA-256\)"):
        unpacked(model, resealed(archive, sha256=b"\0" * 32))
    with pytest.raises(FormatError, match="the header says 9"):
        unpacked(model, resealed(archive, n_bytes=9))
    with pytest.raises(FormatError, match="contradicts itself"):
        unpacked(model, resealed(archive, overlap=64))
    with pytest.raises(FormatError, match="windows of 100 tokens"):
        unpacked(model, resealed(archive, window=100))
    with pytest.raises(FormatError, match="not an archive"):
        unpacked(model, b"PK\3\4")


def test_hostile_blocks_do_no_harm(model):
    """Sound checksums over nonsense: refused or other text, never a crash."""
    rng = np.random.default_rng(1)
    for n in (0, 1, 30):
        coded = rng.bytes(n)
        block = zips.Block(zips.SPELLED, 120, 90, coded)
        head = zips.read_header(io.BytesIO(packed(model, b"")))
        header = dataclasses.replace(head, n_blocks=1, n_bytes=120)
        with pytest.raises(FormatError):
            unpacked(model, header.pack() + block.pack())
    with pytest.raises(ValueError, match="no token and no byte"):
        coder(model).encode(np.array([TINY.n_vocab], np.int32), nothing)


# ---- the commands ----


@pytest.fixture
def files(path, tmp_path):
    text = tmp_path / "text"
    text.write_bytes(TEXT * 5)
    return [str(text), str(tmp_path / "archive"), "--model", str(path), "--threads", "1"]


def test_commands(files, tmp_path, capsys):
    assert main(["zip", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:24].rstrip() for line in lines] == [
        "text",
        "xz -9e",
        "this archive",
        "with the parameter file",
    ]
    assert main(["unzip", files[1], str(tmp_path / "back"), "--portable", *files[2:]]) == 0
    assert (tmp_path / "back").read_bytes() == TEXT * 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["archive", "back", "text"]


def test_pipes(files):
    """Text through two pipes and back; an archive cut short says so and sends nothing."""

    def run(command, data):
        words = [sys.executable, "-m", "llm", command, "-", "-", *files[2:]]
        return subprocess.run(words, input=data, capture_output=True)

    packed = run("zip", TEXT * 5)
    assert packed.returncode == 0 and b"xz -9e" in packed.stderr
    assert run("unzip", packed.stdout).stdout == TEXT * 5
    broken = run("unzip", packed.stdout[:-1])
    assert (broken.returncode, broken.stdout) == (1, b"")
    assert b"cut short in block" in broken.stderr


def test_a_pipe_into_a_file_that_is_there(files, tmp_path):
    for _ in range(2):
        words = [sys.executable, "-m", "llm", "zip", "-", tmp_path / "archive", *files[2:]]
        assert subprocess.run(words, input=TEXT, capture_output=True).returncode == 0
    words = [sys.executable, "-m", "llm", "unzip", "-", files[0], *files[2:]]
    assert not subprocess.run(words, input=(tmp_path / "archive").read_bytes()).returncode
    assert (tmp_path / "text").read_bytes() == TEXT


@pytest.mark.parametrize(("words", "closed"), [("unzip {} -", ">&-"), ("zip - {}", "<&-")])
def test_a_closed_pipe_is_no_text_and_no_place_for_one(files, tmp_path, words, closed):
    text, archive, *rest = files
    assert main(["zip", text, archive, *rest]) == 0
    target = archive if words.startswith("unzip") else tmp_path / "new"
    command = [sys.executable, "-m", "llm", *words.format(target).split(), *rest]
    shell = ["sh", "-c", f'"$@" {closed}', "sh", *command]
    done = subprocess.run(shell, capture_output=True)
    assert done.returncode == 1 and b"standard" in done.stderr and b"closed" in done.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("flag", ["--threads", "--window", "--block"])
def test_numbers_that_no_machine_has(files, capsys, flag):
    assert main(["zip", *files, flag, str(1 << 70)]) == 1
    assert "expected" in capsys.readouterr().err


def test_an_empty_text_has_no_bits_per_byte(files, tmp_path, capsys):
    (tmp_path / "empty").touch()
    assert main(["zip", str(tmp_path / "empty"), *files[1:]]) == 0
    assert "bits/byte" not in capsys.readouterr().out


def test_same_file_and_damage(files, tmp_path, capsys):
    text, archive, *rest = files
    assert main(["zip", text, text, *rest]) == 1
    assert "OUT is IN" in capsys.readouterr().err
    for make in (os.symlink, os.link):
        make(text, tmp_path / "alias")
        assert main(["zip", text, str(tmp_path / "alias"), *rest]) == 1
        assert "OUT is IN" in capsys.readouterr().err
        os.unlink(tmp_path / "alias")
    assert main(["zip", text, rest[1], *rest]) == 1
    assert "OUT is the parameter file" in capsys.readouterr().err
    assert main(["zip", text + "-gone", archive, *rest]) == 1
    assert "No such file" in capsys.readouterr().err
    (tmp_path / "archive").write_bytes(b"stays")
    assert main(["unzip", text, archive, *rest]) == 1
    assert f"{text}: not an archive" in capsys.readouterr().err
    assert (tmp_path / "archive").read_bytes() == b"stays"


@pytest.mark.parametrize("command", ["zip", "unzip"])
def test_full_disk(files, tmp_path, capsys, command):
    text, archive, *rest = files
    (tmp_path / "text").write_bytes(np.random.default_rng(1).bytes(9000))
    source = text
    if command == "unzip":
        assert main(["zip", text, archive, *rest]) == 0
        source = archive
    target = tmp_path / "out"
    target.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))  # a write past it fails
    try:
        assert main([command, source, str(target), *rest]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "File too large" in capsys.readouterr().err
    assert target.read_bytes() == b"old"
    assert not list(tmp_path.glob("*.tmp"))


def test_ctrl_c_leaves_the_old_file(files, tmp_path, monkeypatch):
    """Between two layers of the first pass over the text."""
    (tmp_path / "archive").write_bytes(b"old")
    started = []

    def interrupt(self, symbols, progress, encode=zips.Coder.encode):
        started.append(True)
        signal.raise_signal(signal.SIGINT)
        return encode(self, symbols, progress)

    monkeypatch.setattr(zips.Coder, "encode", interrupt)
    assert main(["zip", *files]) == 130 and started
    assert (tmp_path / "archive").read_bytes() == b"old"
    assert not list(tmp_path.glob("*.tmp"))
