"""The same file: equal tensors and equal keys, but for figures of a clock; else how two differ."""

import pytest
from models import TINY, byte_vocabulary, provenance, random_params, write_trained

from llm.compare import compare_files
from llm.parameter_file import (
    ValueType,
    float_tensors,
    trained_model_metadata,
    write_parameter_file,
)


@pytest.fixture
def trained(tmp_path):
    path = tmp_path / "weights.bin"
    write_trained(path, run={"seconds": 1.5})
    return path


def metadata() -> list:
    return trained_model_metadata(TINY, byte_vocabulary(), provenance())


def test_a_clock_makes_no_other_file(trained, tmp_path):
    same = tmp_path / "same.bin"
    write_trained(same, run={"date": "now"})
    assert compare_files(trained, same) == []
    assert trained.read_bytes() != same.read_bytes()


def test_keys_and_values_that_differ(trained, tmp_path):
    flat = random_params(TINY)
    flat[3] += 1
    other = tmp_path / "other.bin"
    keys = [e for e in metadata() if e.key != "two_file.train.seed"]
    keys.append(("new", 1, ValueType.INT8))
    write_parameter_file(other, keys, float_tensors(TINY, flat))
    differences = compare_files(trained, other)
    assert "key two_file.train.seed is only in the first file" in differences
    assert "key new is only in the second file" in differences
    assert any(d.startswith("key two_file.tensor_sha256: '") for d in differences)
    [line] = [d for d in differences if d.startswith("tensor token_embd.weight: ")]
    assert " bytes differ, values by 1 at most, the largest is " in line


def test_values_of_the_first_tensors_or_of_all(trained, tmp_path):
    other = tmp_path / "other.bin"
    write_trained(other, seed=2)

    def measured(lines):
        return sum(", values by " in line for line in lines)

    few, every = compare_files(trained, other), compare_files(trained, other, all_values=True)
    assert measured(few) == 5 and few[-1] == "values of 10 more tensors: --all compares them"
    assert measured(every) == 15 and every[-1].startswith("tensor blk.1.ffn_down.weight: ")
    assert len(few) == len(every) + 1


def test_types_and_bytes_that_differ(tmp_path):
    tensors = float_tensors(TINY, random_params(TINY))
    a, b = tmp_path / "a", tmp_path / "b"
    for path, kind, text in ((a, ValueType.INT32, b"\xff"), (b, ValueType.UINT32, b"\xfe")):
        keys = [*metadata(), ("k", 1, kind), ("s", text, ValueType.STRING)]
        write_parameter_file(path, keys, tensors)
    differences = compare_files(a, b)
    assert len(differences) == 2 and differences[0] == "key k has another type"
