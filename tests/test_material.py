"""What a run learns from: a text in memory and shards of it give the trainer the same kind."""

import json
import signal

import pytest
from test_prepare import make, text

from llm import train as module
from llm.compare import compare_files
from llm.engine import Model
from llm.errors import CheckpointError, FormatError
from llm.material import gather
from llm.settings import Settings
from llm.train import train


def shards_of(folder, n):
    folder.mkdir()
    (folder / "a.jsonl").write_text("\n".join(json.dumps(text(i)) for i in range(n)))
    return make(folder / "out", folder / "a.jsonl").folder


def test_both_sources_give_tokens_a_vocabulary_and_first_words(tmp_path):
    folder = shards_of(tmp_path / "in", 500)
    for settings in (
        Settings(data=str(folder)),
        Settings(text=(str(tmp_path / "in" / "a.jsonl"),), n_vocab=320),
    ):
        material = gather(settings)
        assert material.n_documents == 500
        assert material.tokens[0:1].tolist() == [material.eot]
        held_share = len(material.held_tokens) / (len(material.tokens) + len(material.held_tokens))
        assert 0.02 < held_share < 0.1
        assert material.first_words.decode().split()[0] in text(0, 1) + " ".join(
            map(text, range(9))
        )


# ---- training from shards ----

SIZES = {"n_embd": 16, "n_layer": 1, "n_ctx": 16, "n_head": 1, "batch": 2, "threads": 1}


@pytest.fixture
def no_pictures(monkeypatch):
    """Nor what only they need."""
    monkeypatch.setattr(module.Report, "finish", lambda *_: None)
    monkeypatch.setattr(module, "measure_peak", lambda ops: 1e9)


def wishes(folder, shards, **more):
    folder.mkdir(exist_ok=True)
    places = {"out": str(folder / "m.bin"), "run_dir": str(folder / "run")}
    return {"data": str(shards), "steps": 20, "warmup": 2, **SIZES, **places, **more}


def cut_at(monkeypatch, step, deed):
    """Does the deed before a step of the run that is trained next."""
    take_step = module.take_step

    def cut(run):
        if run.step == step:
            monkeypatch.setattr(module, "take_step", take_step)
            deed()
        return take_step(run)

    monkeypatch.setattr(module, "take_step", cut)


def die():
    raise MemoryError("as after a kill, nothing is saved")


def test_a_run_on_shards_resumes_to_the_same_bits(tmp_path, monkeypatch, no_pictures):
    shards = shards_of(tmp_path / "in", 500)
    assert train(wishes(tmp_path / "whole", shards), resume=False) == 0
    cut = wishes(tmp_path / "cut", shards)
    cut_at(monkeypatch, 7, lambda: signal.raise_signal(signal.SIGINT))
    assert train(cut, resume=False) == 128 + signal.SIGINT
    with Model(cut["out"]) as model:
        assert model.metadata["two_file.train.steps"] == 8
    cut_at(monkeypatch, 15, die)
    with pytest.raises(MemoryError):
        train(cut, resume=True)
    assert train(cut | {"threads": 2}, resume=True) == 0
    assert compare_files(tmp_path / "whole" / "m.bin", cut["out"]) == []


def test_other_shards_are_refused_by_name(tmp_path, monkeypatch, no_pictures):
    shards = shards_of(tmp_path / "in", 500)
    begun = wishes(tmp_path / "run", shards)
    cut_at(monkeypatch, 7, lambda: signal.raise_signal(signal.SIGINT))
    train(begun, resume=False)
    other = begun | {"data": str(shards_of(tmp_path / "other", 501))}
    with pytest.raises(CheckpointError, match=r"other/out/manifest\.json: the text has changed"):
        train(other, resume=True)
    shard, elsewhere = (f / "train-000000.bin" for f in (shards, tmp_path / "other" / "out"))
    shard.write_bytes(elsewhere.read_bytes())
    with pytest.raises(FormatError, match=r"in/out/train-000000\.bin: "):
        train(begun, resume=True)


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.gguf", "train-000000.bin"])
def test_shards_are_not_written_over(tmp_path, name):
    shards = shards_of(tmp_path / "in", 500)
    before = (shards / name).read_bytes()
    wish = wishes(tmp_path / "run", shards, out=str(shards / name))
    with pytest.raises(ValueError, match=f"{name} is what this run reads: choose another --out"):
        train(wish, resume=False)
    assert (shards / name).read_bytes() == before


def test_a_file_beside_the_shards_may_be_written_twice(tmp_path, no_pictures):
    shards = shards_of(tmp_path / "in", 500)
    for run in ("one", "two"):
        wish = wishes(tmp_path / run, shards, out=str(shards / "model.bin"))
        assert train(wish, resume=False) == 0
