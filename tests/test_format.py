"""The parameter file between its two ends: Python writes and the engine reads, the public gguf
package reads the same, and whatever goes wrong while writing leaves no trace."""

import errno
import hashlib
import os
import re
import resource
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import EOT, byte_vocabulary, provenance, random_params, write_trained

import llm
from llm.atomic import atomic_file
from llm.config import ModelConfig, layout_size
from llm.parameter_file import (
    DATA_SHA256,
    TensorData,
    ValueType,
    byte_alphabet,
    float_tensors,
    trained_model_metadata,
    write_parameter_file,
)

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ModelConfig(n_vocab=259, n_ctx=32, n_embd=8, n_layer=2, n_head=2, n_kv_head=1, n_ff=12)
PROBES = [[72, 101], [1, 2, 3]]

# One of each, and what must come back.
VALUES = [
    ("u8", 255, ValueType.UINT8),
    ("i8", -128, ValueType.INT8),
    ("u16", 65535, ValueType.UINT16),
    ("i16", -32768, ValueType.INT16),
    ("u32", 2**32 - 1, ValueType.UINT32),
    ("i32", -(2**31), ValueType.INT32),
    ("u64", 2**64 - 1, ValueType.UINT64),
    ("i64", -(2**63), ValueType.INT64),
    ("f32", 0.5, ValueType.FLOAT32),
    ("f64", 1e300, ValueType.FLOAT64),
    ("bool", True, ValueType.BOOL),
    ("text", "naïve \x1b\n", ValueType.STRING),
    ("no_text", "", ValueType.STRING),
    ("ints", [1, -2, 3], ValueType.ARRAY, ValueType.INT32),
    ("floats", [0.25, -0.5], ValueType.ARRAY, ValueType.FLOAT32),
    ("bools", [True, False], ValueType.ARRAY, ValueType.BOOL),
    ("texts", ["a", "", "ħ"], ValueType.ARRAY, ValueType.STRING),
    ("none", [], ValueType.ARRAY, ValueType.INT32),
]


def write_tiny(path: Path, extra=(), alignment: int = 64) -> Path:
    metadata = trained_model_metadata(CONFIG, byte_vocabulary(), provenance())
    metadata = [e for e in metadata if e.key != "general.alignment"] + list(extra)
    write_parameter_file(path, metadata, float_tensors(CONFIG, random_params(CONFIG)), alignment)
    return path


def data_section(path: Path) -> bytes:
    """The last layout_size floats of an F32 file."""
    return path.read_bytes()[-4 * layout_size(CONFIG) :]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("export") / "weights.bin"
    write_trained(path, CONFIG, probes=PROBES, run={"seconds": 1.5})
    return path


# ---- one place per fact ----


def test_value_types_are_those_of_the_c_header():
    text = (ROOT / "csrc/gguf.h").read_text()
    names = re.findall(r"\bGGUF_([A-Z0-9]+)\b", text.split("enum gguf_value_type {")[1])
    assert names[: len(ValueType)] == [t.name for t in sorted(ValueType)]


def test_every_rule_of_the_contract_has_a_test():
    rules = re.findall(r"^\| ([A-Z]\d+) \|", (ROOT / "csrc/FORMAT.md").read_text(), re.M)
    cases = (ROOT / "tests/c/test_gguf.c").read_text()
    tokenizers = "".join(p.read_text() for p in (ROOT / "tests/c").glob("test_tokenizer_load*.c"))
    named = set(re.findall(r'"([HKTD]\d+)_\w+"', cases) + re.findall(r"\b[VBS]\d\b", tokenizers))
    missing = [rule for rule in rules if rule[0] not in "FG" and rule not in named]
    assert len(rules) > 40 and not missing


def test_byte_alphabet():
    alphabet = byte_alphabet()
    assert len(set(alphabet)) == 256 and all(c.isprintable() and c != " " for c in alphabet)
    assert alphabet[ord(" ")] == "Ġ" and alphabet[ord("\n")] == "Ċ" and alphabet[0xAD] == "Ń"


# ---- Python writes, C reads ----


@pytest.mark.parametrize("alignment", [8, 32, 64, 4096])
def test_every_value_comes_back(tmp_path, alignment):
    path = write_tiny(tmp_path / "x.gguf", VALUES, alignment)
    with llm.Model(path) as model:
        assert model.metadata["general.alignment"] == alignment
        for key, value, kind, *element in VALUES:
            found = model.metadata[key]
            assert (found.tolist() if isinstance(found, np.ndarray) else found) == value
            assert model.metadata.value_type(key) == (kind, element[0] if element else 0)
        for tensor in float_tensors(CONFIG, random_params(CONFIG)):
            assert model.tensors.shape(tensor.name) == tensor.shape
            assert np.array_equal(model.tensors[tensor.name].ravel(), tensor.data)


def test_the_data_section_is_the_parameter_buffer(exported):
    data = data_section(exported)
    assert data == random_params(CONFIG).tobytes()
    with llm.Model(exported) as model:
        assert model.metadata["two_file.tensor_sha256"] == hashlib.sha256(data).hexdigest()


def test_hyperparameters_and_vocabulary_come_back(exported):
    with llm.Model(exported) as model:
        c = model.config
        assert (c.n_vocab, c.n_embd, c.n_layer, c.n_ff) == (259, 8, 2, 12)
        assert (c.n_head, c.n_kv_head, c.rope_dim, c.n_ctx_train) == (2, 1, 4, 32)
        read = ModelConfig.from_gguf(dict(model.metadata), c.tied_output)
        assert read == replace(CONFIG, norm_eps=float(np.float32(CONFIG.norm_eps)))
        tokenizer = model.tokenizer
        assert (tokenizer.bos, tokenizer.eos, tokenizer.add_bos) == (EOT, EOT, False)
        assert tokenizer.encode("the") == [257]
        everything = bytes(range(256))
        assert tokenizer.decode_bytes(tokenizer.encode(everything)) == everything


def test_provenance_and_proof(exported):
    with llm.Model(exported) as model:
        keys = dict(model.metadata)
        report = model.verify()
    assert keys["two_file.version"] == 1 and keys["two_file.corpus.name"] == "none"
    assert keys["two_file.run.seconds"] == 1.5 and keys["two_file.train.flops"] == 0
    assert keys["two_file.proof.prompt_ids"].tolist() == [72, 101, 1, 2, 3]
    assert keys["two_file.proof.prompt_lengths"].tolist() == [2, 3]
    assert len(keys["two_file.proof.greedy_ids"]) == 8
    assert [len(digest) for digest in keys["two_file.proof.logits_sha256"]] == [64, 64]
    assert report["has_hash"] and report["has_proof"] and report["n_probes"] == 2


def test_ratio_counts_the_file_without_its_run_keys(exported, tmp_path):
    plain = tmp_path / "plain.bin"
    write_trained(plain, CONFIG, probes=PROBES)
    for path in (exported, plain):
        with llm.Model(path) as model:
            expected = np.float32(1000 / plain.stat().st_size)
            assert model.metadata["two_file.ratio"] == expected


def test_one_flipped_bit_of_the_weights_fails_verification(exported, tmp_path):
    raw = bytearray(exported.read_bytes())
    raw[-4 * layout_size(CONFIG) + 100] ^= 1
    (tmp_path / "x.gguf").write_bytes(raw)
    with llm.Model(tmp_path / "x.gguf") as model, pytest.raises(llm.FormatError, match="SHA-256"):
        model.verify()


def test_export_leaves_one_file(exported):
    assert os.listdir(exported.parent) == ["weights.bin"]


# ---- what the writer refuses ----

ONE = TensorData("t", (4,), "F32", bytes(16))


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ([("a", 1, ValueType.INT8), ("a", 2, ValueType.INT8)], [], "key a appears twice"),
        ([("", 1, ValueType.INT8)], [], "expected 1 to 255"),
        ([("a b", 1, ValueType.INT8)], [], "printable ASCII"),
        ([("a" * 256, 1, ValueType.INT8)], [], "expected 1 to 255"),
        ([("a", 128, ValueType.INT8)], [], "key a: "),
        ([("a", -1, ValueType.UINT32)], [], "key a: "),
        ([("a", 1e39, ValueType.FLOAT32)], [], "key a: "),
        ([("a", "x", ValueType.INT32)], [], "key a: "),
        ([("a", [[1]], ValueType.ARRAY, ValueType.ARRAY)], [], "key a: "),
        ([("general.alignment", 32, ValueType.UINT32)], [], "alignment is 32, expected 64"),
        (
            [("tokenizer.ggml.tokens", ["x", "y", "x"], ValueType.ARRAY, ValueType.STRING)],
            [],
            "token 2, 'x', appears twice",
        ),
        ([], [ONE, ONE], "tensor t appears twice"),
        ([], [ONE._replace(name="t" * 64)], "expected 1 to 63"),
        ([], [ONE._replace(data=bytes(15))], "tensor t: 15 bytes, expected 16"),
        ([], [ONE._replace(shape=(0, 4))], "tensor t: shape"),
        ([], [ONE._replace(shape=(1, 1, 1, 1, 4))], "tensor t: shape"),
        ([], [ONE._replace(type_name="Q9_9")], "'Q9_9'"),
        ([], [ONE._replace(type_name="Q4_0")], "rows of 4 elements are not whole blocks of 32"),
    ],
)
def test_refused(tmp_path, metadata, tensors, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        write_parameter_file(tmp_path / "x.gguf", metadata, tensors)
    assert os.listdir(tmp_path) == []


# ---- whole or not at all ----


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError, OSError(errno.ENOSPC, "full")])
def test_a_failure_while_writing_leaves_the_old_file(tmp_path, failure):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF, old")

    def fail():
        raise failure

    tensors = [ONE, TensorData("u", (4,), "F32", fail)]
    with pytest.raises(failure if isinstance(failure, type) else OSError):
        write_parameter_file(path, [], tensors)
    assert os.listdir(tmp_path) == ["x.gguf"] and path.read_bytes() == b"GGUF, old"


def test_what_is_no_parameter_file_is_not_replaced(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("notes")
    with pytest.raises(FileExistsError, match="is no parameter file: choose another name"):
        write_parameter_file(path, [], [])
    assert path.read_text() == "notes"
    path.write_bytes(b"")  # of mktemp, say
    write_parameter_file(path, [], [])
    assert path.read_bytes().startswith(b"GGUF")


def test_a_full_disk_names_the_file(tmp_path):
    path = tmp_path / "x.gguf"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))  # a write past it fails
    try:
        with pytest.raises(OSError) as caught:
            write_parameter_file(path, [], [TensorData("t", (4096,), "F32", bytes(16384))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(path) and caught.value.errno == errno.EFBIG
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_missing_names_the_file(tmp_path):
    path = tmp_path / "none" / "x.gguf"
    with pytest.raises(FileNotFoundError) as caught:
        write_parameter_file(path, [], [])
    assert caught.value.filename == str(path)


def test_errors_of_other_files_keep_their_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        with atomic_file(tmp_path / "x"):
            open(tmp_path / "missing")
    assert caught.value.filename == str(tmp_path / "missing")


def test_a_pipe_does_not_become_a_file(tmp_path):
    """It stands for a device: as root, /dev/null would be lost to all programs."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="no regular file"), atomic_file(pipe) as file:
        file.write(b"x")
    assert pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]


def test_tensors_are_taken_one_at_a_time(tmp_path):
    alive = []

    def make(i):
        alive.append(i)
        return np.full(4, i, "<f4")

    tensors = [TensorData(f"t{i}", (4,), "F32", lambda i=i: make(i)) for i in range(3)]
    assert alive == []
    write_parameter_file(tmp_path / "x.gguf", [("hash", DATA_SHA256, ValueType.STRING)], tensors)
    assert alive == [0, 1, 2]


# ---- hostile files through the public door ----

BOMBS = {
    "keys": b"GGUF" + struct.pack("<IQQ", 3, 0, 65536),
    "tensors": b"GGUF" + struct.pack("<IQQ", 3, 65536, 0),
    "array": b"GGUF" + struct.pack("<IQQQsIIQ", 3, 0, 1, 1, b"a", 9, 8, 1 << 60),
    "string": b"GGUF" + struct.pack("<IQQQsIQ", 3, 0, 1, 1, b"a", 8, 1 << 40),
}


def test_bombs_are_refused_without_memory(tmp_path):
    for name, head in BOMBS.items():
        with open(tmp_path / name, "wb") as file:
            file.write(head)
            file.truncate(1 << 30)  # a hole: nothing on the disk
    program = """
import sys, llm
def peak():  # in KiB; getrusage would count the process before exec
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
import llm.engine
before = peak()
for path in sys.argv[1:]:
    try:
        llm.Model(path)
    except llm.FormatError as error:
        assert str(error).startswith(path), error
    else:
        raise SystemExit(path + " was accepted")
assert peak() - before < 64 << 10, peak() - before
"""
    paths = [str(tmp_path / name) for name in BOMBS]
    subprocess.run([sys.executable, "-c", program, *paths], check=True, cwd=ROOT, timeout=60)


def test_foreign_files_are_named(tmp_path):
    path = tmp_path / "x.bin"
    for content, message in [
        (b"", "the file is empty"),
        (b"PK\x03\x04rest", "a zip archive"),
        (b"hello world, this is text", "begins with the bytes 68 65 6c 6c"),
        (b"GGUF" + bytes(20), "GGUF version 0, expected 3"),
    ]:
        path.write_bytes(content)
        with pytest.raises((llm.FormatError, llm.UnsupportedError), match=message) as caught:
            llm.Model(path)
        assert str(path) in str(caught.value)
    with pytest.raises(llm.FormatError, match="is a directory"):
        llm.Model(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        llm.Model(tmp_path / "missing")
    assert caught.value.filename == str(tmp_path / "missing")


def test_a_published_vocabulary_is_read(test_data):
    with pytest.raises(llm.FormatError, match="the file has 0"):  # past every rule: no tensors
        llm.Model(test_data / "ggml-vocab-gpt-2.gguf")


# ---- the public gguf package ----


def public_fields(reader) -> dict:
    """key -> (types, the values as bytes), from GGUFReader; its own three pseudo keys left out."""
    out = {}
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            values = [bytes(field.parts[i]) for i in field.data]
            out[key] = [int(t) for t in field.types], values
    return out


def our_fields(model) -> dict:
    out = {}
    for key in model.metadata:
        kind, element = model.metadata.value_type(key)
        raw = model.metadata.raw(key)
        if kind != ValueType.ARRAY:
            out[key] = [kind], [raw]
            continue
        values, at = [], 0
        while at < len(raw):
            if element == ValueType.STRING:
                size = struct.unpack_from("<Q", raw, at)[0]
                at += 8
            else:
                size = model.metadata[key].itemsize
            values.append(raw[at : at + size])
            at += size
        out[key] = [kind, element] if values else [kind], values
    return out


def assert_read_equally(path: Path, gguf) -> None:
    reader = gguf.GGUFReader(path)
    with llm.Model(path) as model:
        assert our_fields(model) == public_fields(reader)
        assert [t.name for t in reader.tensors] == list(model.tensors)
        for tensor in reader.tensors:
            assert model.tensors.type_name(tensor.name) == tensor.tensor_type.name
            assert list(model.tensors.shape(tensor.name)) == tensor.shape.tolist()[::-1]
            assert bytes(model.tensors.raw(tensor.name)) == tensor.data.tobytes()


@pytest.mark.peer
def test_the_gguf_package_reads_our_file(exported, tmp_path):
    gguf = pytest.importorskip("gguf", reason="the public gguf package is not installed")
    assert_read_equally(exported, gguf)
    assert_read_equally(write_tiny(tmp_path / "x.gguf", VALUES), gguf)


@pytest.mark.peer
def test_we_read_the_gguf_packages_file(tmp_path):
    gguf = pytest.importorskip("gguf", reason="the public gguf package is not installed")
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for entry in trained_model_metadata(CONFIG, byte_vocabulary(), provenance()):
        if entry.key.startswith(("llama.", "tokenizer.")):
            kinds = gguf.GGUFValueType(entry.type), entry.element_type
            sub_type = None if kinds[1] is None else gguf.GGUFValueType(kinds[1])
            writer.add_key_value(entry.key, entry.value, kinds[0], sub_type)
    for tensor in float_tensors(CONFIG, random_params(CONFIG)):
        writer.add_tensor(tensor.name, tensor.data.reshape(tensor.shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert_read_equally(path, gguf)


@pytest.mark.peer
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_mutated_files_that_we_accept_are_read_equally(tmp_path_factory, data):
    """What our reader refuses it must refuse by name; what it accepts, both read the same way."""
    gguf = pytest.importorskip("gguf", reason="the public gguf package is not installed")
    folder = tmp_path_factory.getbasetemp() / "mutated"
    folder.mkdir(exist_ok=True)
    original = folder / "original.gguf"
    if not original.exists():
        write_tiny(original, VALUES)
    raw = bytearray(original.read_bytes())
    header = len(raw) - 4 * layout_size(CONFIG)
    places = st.integers(0, header - 1) | st.integers(0, len(raw) - 1)
    for place, byte in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=3)):
        raw[place] = byte
    cut = data.draw(st.just(0) | st.integers(0, 80))
    path = folder / "mutated.gguf"
    path.write_bytes(raw[: len(raw) - cut])
    try:
        llm.Model(path).close()
    except (llm.FormatError, llm.UnsupportedError) as error:
        assert str(error).startswith(str(path))
    else:
        assert_read_equally(path, gguf)
