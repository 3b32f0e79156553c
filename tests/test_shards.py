"""Shard sets: what is written is read, what is damaged is named, ten terabytes open at once."""

import json
import os
import resource

import numpy as np
import pytest

from llm.atomic import file_sha256
from llm.data import Examples
from llm.errors import FormatError
from llm.shards import (
    HEADER,
    MAGIC,
    MANIFEST,
    TOKENIZER,
    VERSION,
    ShardSet,
    TokenStream,
    shard_writer,
    token_type,
    write_manifest,
)


def make_set(folder, parts, held=(), n_vocab=300, eot=299):
    """A shard set of these arrays of ids."""
    folder.mkdir(exist_ok=True)
    (folder / TOKENIZER).write_bytes(b"a tokenizer")
    sides = {"train": [], "held_out": []}
    for side, arrays in (("train", parts), ("held_out", held)):
        for i, ids in enumerate(arrays):
            record = {"n_documents": 1, "n_bytes": 2 * len(ids)}
            with shard_writer(folder / f"{side}-{i}.bin", n_vocab, eot, record) as writer:
                for half in np.array_split(np.asarray(ids, np.int32), 2):
                    writer.write(half)
            sides[side].append(record)
    tokenizer = {"file_sha256": file_sha256(folder / TOKENIZER), "fingerprint": ""}
    content = {"n_vocab": n_vocab, "eot": eot, "tokenizer": tokenizer, "corpus": {"name": "x"}}
    write_manifest(folder, content | sides)
    return folder


@pytest.mark.parametrize("n_vocab", [300, 1 << 16, (1 << 16) + 1])
def test_what_is_written_is_read_over_the_borders(tmp_path, n_vocab):
    rng = np.random.default_rng(1)
    parts = [rng.integers(0, n_vocab, n) for n in (5, 1, 17, 2)]
    stream = ShardSet(make_set(tmp_path / "s", parts, [[7, 8]], n_vocab)).train
    whole = np.concatenate(parts)
    assert len(stream) == 25
    for start in range(26):
        for stop in range(start, 26):
            got = stream[start:stop]
            assert got.dtype == np.int32 and np.array_equal(got, whole[start:stop])


def test_two_bytes_a_token_where_they_suffice(tmp_path):
    for n_vocab, size in ((1 << 16, 2), ((1 << 16) + 1, 4)):
        folder = make_set(tmp_path / str(n_vocab), [[1, 2, 3]], n_vocab=n_vocab)
        assert (folder / "train-0.bin").stat().st_size == HEADER.size + 3 * size


def test_examples_are_the_same_from_shards_and_from_memory(tmp_path):
    ids = np.random.default_rng(2).integers(0, 299, 1000).astype(np.int32)
    stream = ShardSet(make_set(tmp_path / "s", np.array_split(ids, 7))).train
    kind = {"n_ctx": 16, "seed": 3, "n_slots": 2, "slot_sequences": 4}
    for step in range(20):
        for a, b in zip(
            Examples(stream, **kind).slot(step, 1), Examples(ids, **kind).slot(step, 1), strict=True
        ):
            assert np.array_equal(a, b)


def test_verify_reads_every_token(tmp_path):
    folder = make_set(tmp_path / "s", [[1, 2, 3]], [[4]])
    ShardSet(folder).verify()
    path = folder / "held_out-0.bin"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"held_out-0\.bin: the tokens have another SHA-256"):
        ShardSet(folder).verify()


# ---- damage ----


def replace_header(path, **changes):
    names = ("magic", "version", "size", "n_tokens", "n_vocab", "eot", "sha256")
    data = path.read_bytes()
    fields = dict(zip(names, HEADER.unpack(data[: HEADER.size]), strict=True)) | changes
    path.write_bytes(HEADER.pack(*fields.values()) + data[HEADER.size :])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.unlink(), "train-0.bin: missing"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "train-0.bin: 69 bytes, expected 70"),
        (lambda p: p.write_bytes(p.read_bytes() + b"x"), "train-0.bin: 71 bytes, expected 70"),
        (lambda p: p.write_bytes(b""), "train-0.bin: 0 bytes, expected 70"),
        (lambda p: replace_header(p, magic=b"GGUFGGUF"), "train-0.bin: not a shard"),
        (lambda p: replace_header(p, version=2), "train-0.bin: not the shard that manifest.json"),
        (lambda p: replace_header(p, n_vocab=9), "train-0.bin: not the shard"),
        (lambda p: replace_header(p, sha256=bytes(32)), "train-0.bin: not the shard"),
        (lambda p: (p.parent / TOKENIZER).write_bytes(b"another"), "tokenizer.gguf: not the"),
        (lambda p: (p.parent / MANIFEST).unlink(), "manifest.json: missing"),
        (lambda p: (p.parent / MANIFEST).write_bytes(b"{"), "manifest.json: damaged"),
        (lambda p: (p.parent / MANIFEST).write_bytes(b"[]"), "manifest.json: damaged"),
        (lambda p: (p.parent / MANIFEST).write_bytes(b"\xff"), "manifest.json: damaged"),
    ],
)
def test_damage_is_one_line_with_the_files_name(tmp_path, damage, message):
    folder = make_set(tmp_path / "s", [[1, 2, 3]])
    damage(folder / "train-0.bin")
    with pytest.raises(FormatError) as caught:
        ShardSet(folder)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["n_vocab", "train", "eot", "version"])
def test_no_byte_of_the_manifest_changes_unnoticed(tmp_path, key):
    folder = make_set(tmp_path / "s", [[1, 2, 3]])
    content = json.loads((folder / MANIFEST).read_text())
    content[key] = 2 if key != "train" else []
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(FormatError, match=r"manifest\.json: (damaged|version 2, expected 1)"):
        ShardSet(folder)


@pytest.mark.parametrize(
    ("side", "key", "value"),
    [
        (None, "n_vocab", -1),
        (None, "n_vocab", "x"),
        (None, "eot", 300),
        (None, "eot", 1.5),
        (None, "corpus", {}),
        (None, "corpus", {"name": 5}),
        (None, "tokenizer", None),
        (None, "tokenizer", {"file_sha256": "0" * 64}),
        (None, "tokenizer", {"file_sha256": "0" * 64, "fingerprint": 1}),
        (None, "train", {}),
        (None, "train", [1]),
        (None, "held_out", None),
        ("train", "n_tokens", -1),
        ("train", "n_tokens", 2**63),
        ("train", "n_bytes", "x"),
        ("train", "n_documents", None),
        ("train", "file", "../s/train-0.bin"),
        ("train", "file", "/dev/zero"),
        ("train", "file", "a\n"),
        ("train", "file", ""),
        ("train", "file", 3),
        ("train", "sha256", "zz"),
        ("train", "sha256", 5),
    ],
)
def test_a_manifest_with_a_hash_and_wrong_values(tmp_path, side, key, value):
    folder = make_set(tmp_path / "s", [[1, 2, 3]])
    content = json.loads((folder / MANIFEST).read_text())
    (content[side][0] if side else content)[key] = value
    write_manifest(folder, content)
    with pytest.raises(FormatError, match=r"manifest\.json: damaged or no manifest") as caught:
        ShardSet(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["train-0.bin", TOKENIZER])
def test_a_pipe_in_the_folder_is_not_waited_for(tmp_path, name):
    folder = make_set(tmp_path / "s", [[1, 2, 3]])
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(FormatError, match=f"{name}: no regular file"):
        ShardSet(folder)


def test_an_id_that_is_no_token_never_reaches_the_model(tmp_path):
    folder = make_set(tmp_path / "s", [[1, 2, 3]])
    path = folder / "train-0.bin"
    path.write_bytes(path.read_bytes()[:-2] + b"\xff\xff")
    with pytest.raises(FormatError, match="damaged: token 2 is 65535, the vocabulary has 300"):
        ShardSet(folder).train[0:3]


# ---- ten terabytes ----


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_ten_terabytes_open_at_once_and_feed_a_loop_in_flat_memory(tmp_path):
    """1,250 sparse files of 8 GB: zeros that take no disk."""
    n_files, n_tokens = 1250, 4_000_000_000
    shards = []
    for i in range(n_files):
        path = tmp_path / f"train-{i:06}.bin"
        with open(path, "wb") as file:
            size = token_type(300).itemsize
            file.write(HEADER.pack(MAGIC, VERSION, size, n_tokens, 300, 299, bytes(32)))
            try:
                os.truncate(path, HEADER.size + size * n_tokens)
            except OSError as error:
                pytest.skip(f"the file system has no sparse files of 8 GB: {error}")
        sizes = {"n_tokens": n_tokens, "n_documents": 1, "n_bytes": 4 * n_tokens}
        shards.append({"file": path.name, "sha256": "0" * 64, **sizes})
    (tmp_path / TOKENIZER).write_bytes(b"a tokenizer")
    tokenizer = {"file_sha256": file_sha256(tmp_path / TOKENIZER), "fingerprint": ""}
    content = {"n_vocab": 300, "eot": 299, "tokenizer": tokenizer, "corpus": {"name": "x"}}
    write_manifest(tmp_path, {**content, "train": shards, "held_out": []})

    before = resident_bytes()
    stream = ShardSet(tmp_path).train
    assert len(stream) == n_files * n_tokens
    assert stream.__class__ is TokenStream
    examples = Examples(stream, n_ctx=1024, seed=1, n_slots=1, slot_sequences=8)
    for step in range(20):
        examples.slot(step, 0)
    warm = resident_bytes()
    for step in range(20, 220):
        tokens, targets = examples.slot(step, 0)[:2]
        assert tokens.shape == targets.shape == (8, 1024)
    assert warm - before < 30e6
    assert resident_bytes() - warm < 20e6
    last = examples.n_windows * 7 + 3  # an epoch of 4.9 thousand million windows, and then another
    assert 0 <= examples.start(last) <= len(stream) - 1025
