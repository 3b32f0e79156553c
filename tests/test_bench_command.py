"""bench_command.py: rows, units and limits; never how fast."""

import json

import pytest
from models import TINY, write_typed

from llm.cli import main
from llm.engine import Model


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "tiny.gguf"
    write_typed(path, "Q8_0")
    return str(path)


def bench(capsys, *arguments: str) -> str:
    assert main(["bench", *arguments, "--rounds", "2", "--decode", "3"]) == 0
    return capsys.readouterr().out


def test_rows(file, capsys):
    command = [file, "--threads", "1", "3", "--prefill", "9", "--context", "40", "--json"]
    (result,) = json.loads(bench(capsys, *command))
    rows = [(r["threads"], r["what"], r["n"]) for r in result["rows"]]
    one = [("prefill", 9), ("decode", 40), ("decode", 61)]  # 64 and 3 more do not fit 64
    assert rows == [(n, *row) for n in (1, 3) for row in one]
    assert all(len(r["tok_s"]) == 2 and min(r["tok_s"]) > 0 for r in result["rows"])
    with Model(file) as model:
        weights = model.needs()["token_bytes"]
    kv = 2 * TINY.n_layer * 2 * 16 * 2  # keys and values of 2 heads of 16, as float16
    short, long = (r["bytes"] for r in result["rows"][1:3])
    assert short - weights == 41.5 * kv and long - weights == 62.5 * kv
    share = result["rows"][1]["share"]
    rates = result["bytes_per_second"]["1"]
    assert share == pytest.approx(sum(result["rows"][1]["tok_s"]) / 2 * short / (sum(rates) / 2))


def test_table_and_several_files(file, capsys):
    out = bench(capsys, file, file, "--threads", "2", "--kv", "f32", "--kernels", "scalar")
    assert out.count("scalar kernels, f32 keys and values") == 2
    assert out.count("prefill of 64") == 2 and out.count("GB/s read") == 2


@pytest.mark.parametrize(
    "bad", [["--rounds", "0"], ["--decode", "0"], ["--context", "-1"], ["--threads", "1", "0"]]
)
def test_refusals(file, bad, capsys):
    assert main(["bench", file, *bad]) == 1
    assert "begin at 1" in capsys.readouterr().err
