"""What a run learns from: a text in memory and shards of it give the trainer the same kind."""

import json

import pytest
from test_prepare import make, text

from llm.errors import CheckpointError
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
        assert len(material.tokens) > 20 * len(material.held_tokens) / 4 > 0
        assert material.first_words.decode().split()[0] in text(0, 1) + " ".join(
            map(text, range(9))
        )


def test_a_run_on_shards_resumes_and_refuses_others(tmp_path):
    given = {"data": str(shards_of(tmp_path / "in", 500)), "n_embd": 16, "n_layer": 1, "n_ctx": 16}
    given |= {"n_head": 1, "steps": 3, "warmup": 1, "batch": 2, "threads": 1}
    given |= {"out": str(tmp_path / "m.bin"), "run_dir": str(tmp_path / "run")}
    assert train(given, resume=False) == 0
    first = (tmp_path / "m.bin").read_bytes()
    assert train(given, resume=True) == 0
    assert len((tmp_path / "m.bin").read_bytes()) == len(first)
    other = given | {"data": str(shards_of(tmp_path / "other", 501))}
    with pytest.raises(CheckpointError, match=r"other/out: the text has changed since the run"):
        train(other, resume=True)
