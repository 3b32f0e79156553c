"""The label of a parameter file: what it says of files trained here, of published ones, of hostile
ones."""

import json
import math
import re

import pytest
from models import TINY, byte_vocabulary, provenance, random_params, write_trained, write_typed

import llm
from llm.config import layout
from llm.label import WIDTH, facts, label
from llm.parameter_file import (
    Entry,
    TensorData,
    ValueType,
    trained_model_metadata,
    write_parameter_file,
)

MEMORISATION = {
    "memorisation.training": 0.25,
    "memorisation.held_out": 0.0,
    "memorisation.training_run": 12.5,
    "memorisation.held_out_run": 1.5,
    "memorisation.tokens": 32,
    "memorisation.windows": 64,
    "memorisation.prompt_tokens": 32,
}


XZ = "two_file.run.xz_bytes"
ZIPPED = {"validation_bytes": 4000, "validation_bits_per_byte": 1.5}


def write_with(path, changes: dict[str, Entry], **provenance_changes) -> str:
    """A tiny file with entries of ours in the place of those of the same key, or added."""
    metadata = trained_model_metadata(TINY, byte_vocabulary(), provenance(**provenance_changes))
    kept = [changes.get(entry.key, entry) for entry in metadata]
    kept += [entry for key, entry in changes.items() if key not in {e.key for e in metadata}]
    flat = random_params(TINY)
    tensors = [
        TensorData(e.gguf_name, e.shape, "F32", flat[e.offset : e.offset + e.size])
        for e in layout(TINY)
    ]
    write_parameter_file(path, kept, tensors)
    return str(path)


def rows(path) -> dict[str, str]:
    """The label's lines by their names; lines that go on are joined."""
    out, name = {}, None
    for line in label(str(path)).splitlines()[2:]:
        if line[:13].strip():
            name = line[:13].strip()
            out[name] = line[13:].strip()
        else:
            out[name] += " " + line.strip()
    return {name: " ".join(text.split()) for name, text in out.items()}


def test_the_label_of_a_trained_file(tmp_path):
    figures = {"corpus.tokens": 500, **MEMORISATION}
    run = {"seconds": 1800.0, "tokens_per_second": 12345.0, "threads": 2, "kernels": "avx2"}
    path = write_with(
        tmp_path / "tiny.bin",
        {},
        corpus_bytes=4_030_056,
        train_tokens=1500,
        train_steps=3,
        train_flops=1e12,
        figures=figures,
    )
    shown = rows(path)
    n_bytes = (tmp_path / "tiny.bin").stat().st_size
    assert label(path).splitlines()[0] == "tiny"
    assert shown["File"].startswith(f"{n_bytes:,} bytes")
    assert shown["Parameters"].startswith("78,336 llama")
    assert "llama: n_layer 2, n_embd 64" in shown["Parameters"]
    assert shown["Bits each"].endswith("F32 100%")
    assert shown["Vocabulary"] == "259 tokens (gpt2, gpt-2)"
    assert shown["Text read"] == "4,030,056 bytes, none"
    assert "4.03 MB of text became" in shown["Text : file"]
    assert shown["Tokens seen"] == "1,500 3 times the text, 3 steps, seed 1"
    assert shown["Arithmetic"] == "1e+12 FLOPs"
    assert shown["Bits per byte"] == "8 held-out text"
    assert shown["Memorised"].startswith("25.0% of 64 trained windows repeated for 32")
    assert "unseen 0.0%; mean run 12.5 tokens, unseen 1.5" in shown["Memorised"]
    assert len(shown["Data hash"]) == 64
    path = tmp_path / "run.bin"
    write_with(path, {f"two_file.run.{k}": e for k, e in run_entries(run).items()})
    assert rows(path)["Time"] == "0.5 hours of training, 12.3 k tokens/s, 2 threads, avx2"
    assert "Memorised" not in rows(path)


def run_entries(run):
    return {e.key.rsplit(".", 1)[1]: e for e in provenance(run=run).run_entries()}


def test_the_label_fits_a_screen(tmp_path):
    lines = label(write_with(tmp_path / "tiny.bin", {}, figures=MEMORISATION)).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= WIDTH


def test_figures_that_the_label_does_not_know_are_listed(tmp_path):
    write_trained(tmp_path / "a.bin")
    write_with(tmp_path / "b.bin", {}, figures={"table.zip.ratio": 0.25})
    assert "table.zip.ratio" not in label(str(tmp_path / "a.bin"))
    assert label(str(tmp_path / "b.bin")).splitlines()[-1].split() == ["table.zip.ratio", "0.25"]


def test_a_file_without_provenance(tmp_path):
    keys = [e.key for e in trained_model_metadata(TINY, byte_vocabulary(), provenance())]
    path = tmp_path / "bare.bin"
    write_typed(path, "Q8_0", drop=[k for k in keys if k.startswith(("two_file", "general.name"))])
    shown = rows(path)
    assert shown["Origin"].startswith("unknown")
    assert label(str(path)).startswith("bare.bin\n")
    assert "Text read" not in shown
    assert "Q8_0 9" in shown["Bits each"]


def test_a_published_file(smollm2):
    shown = rows(smollm2)
    assert shown["Parameters"].startswith("134,515,008 llama: n_layer 30")
    assert shown["Licence"] == "apache-2.0"
    assert shown["Author"] == "HuggingFaceTB"


def test_what_a_model_needs(tmp_path, monkeypatch):
    path = write_with(tmp_path / "tiny.bin", {})
    shown = rows(path)
    assert re.fullmatch(r"\d+ kB with 64 tokens held", shown["Memory"])
    rate = r"313 kB at \S+ [kMG]B/s by \d+ threads?, from a cache where they fit it"
    assert re.fullmatch(rf"\S+ s a token or more: {rate}", shown["Speed"])
    needs = facts(path)["needs"] | {"machine_bytes": 2 * 10**5}
    monkeypatch.setattr(llm.Model, "needs", lambda self: needs)
    assert rows(path)["Memory"].endswith("64 tokens held, more than the 200 kB here: from disk")


def test_facts_are_json(tmp_path):
    told = facts(write_with(tmp_path / "tiny.bin", {}, figures=MEMORISATION))
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["provenance"]["memorisation.training"] == 0.25
    assert told["types"] == {"F32": 1.0}


HOSTILE = "\x1b[2J\x1b]0;owned\x07\nname\r\u202egnp.exe\u2066\t\u061c"


def text_entry(key, value=HOSTILE):
    return Entry(key, value, ValueType.STRING)


@pytest.mark.parametrize(
    "key",
    [
        "general.name",
        "general.license",
        "general.author",
        "two_file.corpus.name",
        "two_file.corpus.sha256",
        "two_file.quantization.type",
        "two_file.run.kernels",
        "two_file.run.seconds",
        "two_file.corpus.bytes",
        "two_file.further",
    ],
)
def test_no_string_of_the_file_reaches_the_terminal_raw(tmp_path, key):
    """Not by what it holds, nor by standing where a number is expected."""
    plain = label(write_with(tmp_path / "plain.bin", {}))
    shown = label(write_with(tmp_path / "evil.bin", {key: text_entry(key)}))
    assert not {c for c in shown if not c.isprintable()} - {"\n"}
    assert len(shown.splitlines()) <= len(plain.splitlines()) + 12
    assert all(len(line) <= WIDTH for line in shown.splitlines())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -5.0, 1e300])
def test_absurd_figures_do_not_end_the_label(tmp_path, value):
    keys = ("run.seconds", "run.tokens_per_second", "train.flops", "validation.bits_per_byte")
    keys += ("corpus.bytes", "corpus.tokens", "train.tokens", *MEMORISATION)
    entries = {f"two_file.{k}": Entry(f"two_file.{k}", value, ValueType.FLOAT64) for k in keys}
    path = write_with(tmp_path / "absurd.bin", entries)
    assert label(path)
    json.dumps(facts(path), allow_nan=False)


def test_what_the_training_was_worth(tmp_path):
    """The held-out text, xz and the model, in bytes; nothing where xz was not asked."""
    path, xz = tmp_path / "tiny.bin", {XZ: Entry(XZ, 1000, ValueType.INT64)}
    shown = rows(write_with(path, xz, **ZIPPED))
    assert shown["Unseen text"] == "4,000 bytes of validation"
    assert shown["xz -9e"] == "1,000 bytes, 2 bits per byte"
    assert shown["this model"] == "750 bytes, 0.75 of xz"
    assert "xz -9e" not in rows(write_with(path, {}, **ZIPPED))
    bits = Entry("two_file.validation.bits_per_byte", 1e308, ValueType.FLOAT64)
    assert "inf" in rows(write_with(path, xz | {bits.key: bits}, **ZIPPED))["this model"]
