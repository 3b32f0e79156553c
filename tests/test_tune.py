"""Runs that go on from a parameter file, from the command line to the new file."""

import json

import numpy as np
import pytest
from test_chat_template import TEMPLATES, source, write_model

from llm import cli, train, tune
from llm.base_file import BaseFile
from llm.compare import compare_files
from llm.engine import Model
from llm.model import Transformer
from llm.ops_c import OpsC


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base.gguf"
    write_model(path, source("chatml"), TEMPLATES["chatml"])
    return path


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    path = tmp_path_factory.mktemp("talk") / "talk.jsonl"
    lines = []
    for i in range(24):
        asked = {"role": "user", "content": f"{i}?"}
        lines.append({"messages": [asked, {"role": "assistant", "content": "no " * (1 + i % 3)}]})
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def arguments(base, folder, *more):
    places = ["--out", folder / "out.gguf", "--run-dir", folder / "run", "--threads", 1]
    return [str(a) for a in ["train", "--init", base, "--precision", "fp32", *places, *more]]


CHAT = ("--n-ctx", 64, "--epochs", 2, "--lr", 0.003, "--batch", 2)


@pytest.mark.parametrize("more", [[], ["--lora-rank", 2], ["--recompute"]])
def test_conversations_are_learned(base, talk, tmp_path, capfd, more):
    assert cli.main(arguments(base, tmp_path, "--chat", talk, *CHAT, *more)) == 0
    said = capfd.readouterr().out
    assert f"try        ./run {tmp_path / 'out.gguf'} --chat\n" in said
    with Model(tmp_path / "out.gguf") as model, Model(base) as before:
        assert model.verify()["has_proof"]
        assert model.chat_template == before.chat_template
        talked = json.loads(talk.read_text().splitlines()[7])["messages"]
        ids = np.array(model.render_chat(talked, add_generation_prompt=False))
        assert before.score(ids)[1] > model.score(ids)[1] + 1, said


def test_windows_are_as_long_as_the_file_knows_unless_given(base, monkeypatch):
    with Model(base) as model:
        trained = model.config.n_ctx_train
    monkeypatch.setattr(tune, "CHAT_N_CTX", trained + 1)
    given = {"init": str(base), "chat": ("talk.jsonl",)}
    assert tune.with_defaults(given)["n_ctx"] == trained
    assert tune.with_defaults({**given, "n_ctx": 7})["n_ctx"] == 7
    monkeypatch.setattr(tune, "CHAT_N_CTX", 5)
    assert tune.with_defaults(given)["n_ctx"] == 5


def test_a_run_without_a_rate_changes_nothing(base, talk, tmp_path):
    assert cli.main(arguments(base, tmp_path, "--chat", talk, *CHAT[:4], "--lr", 1e-9)) == 0
    with Model(tmp_path / "out.gguf") as after, Model(base) as before:
        ids = list(range(40))
        np.testing.assert_allclose(after.logits(ids), before.logits(ids), atol=1e-5)


def test_the_merged_file_is_the_model_with_its_adapters(base, talk, tmp_path):
    lora = ("--lora-rank", 3, "--lora-alpha", 5, "--lora-targets", "q,v,down")
    assert cli.main(arguments(base, tmp_path, "--chat", talk, *CHAT, *lora)) == 0
    saved = tmp_path / "run" / "checkpoint.npz"
    run = tune.resume_tuned(saved, {}, train.Report())
    assert run.model.trained.size < run.model.params.size / 10
    assert run.model.lora.scale == 5 / 3
    tokens = [list(range(40))]
    before = Transformer(run.model.config, OpsC(1), BaseFile(base).params()).logits(tokens)
    expected = run.model.logits(tokens)
    assert np.abs(expected - before).max() > 0.05
    with Model(tmp_path / "out.gguf", kv_type="f32") as model:
        np.testing.assert_allclose(model.logits(tokens[0]), expected[0], atol=1e-4)


def test_a_resumed_run_is_the_same(base, talk, tmp_path, monkeypatch):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    assert cli.main(arguments(base, tmp_path / "whole", "--chat", talk, *CHAT)) == 0
    step, calls = train.take_step, []

    def stop(run):
        calls.append(run)
        if len(calls) == 3:
            raise KeyboardInterrupt
        step(run)

    monkeypatch.setattr(train, "take_step", stop)
    cut = arguments(base, tmp_path / "cut", "--chat", talk, *CHAT, "--save-seconds", 0)
    assert cli.main(cut) == 130
    monkeypatch.setattr(train, "take_step", step)
    assert cli.main([*arguments(base, tmp_path / "cut"), "--resume"]) == 0
    assert compare_files(tmp_path / "whole" / "out.gguf", tmp_path / "cut" / "out.gguf") == []


def test_the_kept_settings_repeat_the_run(base, talk, tmp_path):
    assert cli.main(arguments(base, tmp_path, "--chat", talk, *CHAT, "--lora-rank", 2)) == 0
    again = ["--run-dir", tmp_path / "again", "--out", tmp_path / "again.gguf"]
    kept = tmp_path / "run" / "settings.toml"
    assert cli.main([str(a) for a in ["train", "--config", kept, *again]]) == 0
    assert compare_files(tmp_path / "out.gguf", tmp_path / "again.gguf") == []


@pytest.mark.parametrize("more", [[], ["--isolate"]])
def test_text_is_learned(base, tmp_path, more):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat. " * 900)
    steps = ("--steps", 6, "--lr", 0.003, "--n-ctx", 32)
    assert cli.main(arguments(base, tmp_path, "--text", text, *steps, *more)) == 0
    with Model(tmp_path / "out.gguf") as after, Model(base) as before:
        sample = "the cat sat. the cat sat."
        assert after.perplexity(sample) < before.perplexity(sample)


# ---- refusals ----


@pytest.mark.parametrize(
    "more, message",
    [
        (["--n-embd", 32, "--n-ctx", 64], "--n-embd is 32, but"),
        (["--text", "x", "--chat", "y"], "--chat beside --text or --data: a run"),
        (["--lora-alpha", 2], "--lora-targets and --lora-alpha go with --lora-rank"),
        (["--chat", "no-such-file", "--n-ctx", 64], "no-such-file: No such file"),
        (["--n-ctx", 100000], "n_ctx is 100000,"),
        (["--n-vocab", 999], "--n-vocab is 999, but --init has its own: leave it out"),
        (["--lora-rank", 2, "--lora-targets", "q,x"], "LoRA target 'x', expected some of q,k,v"),
    ],
)
def test_one_line_says_what_is_wrong(base, talk, tmp_path, capfd, more, message):
    chat = [] if "--chat" in more or "--text" in more else ["--chat", talk]
    assert cli.main(arguments(base, tmp_path, *chat, *more)) == 1
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]


@pytest.mark.parametrize("read", ["base", "talk"])
def test_what_a_run_reads_is_not_written_over(base, talk, tmp_path, capfd, read):
    path = {"base": base, "talk": talk}[read]
    before = path.read_bytes()
    (tmp_path / "link").symlink_to(path)
    for out in (path, tmp_path / "link"):
        more = ["--chat", talk, "--n-ctx", 64, "--out", out]
        assert cli.main(arguments(base, tmp_path, *more)) == 1
        assert f"{out} is what this run reads: choose another --out" in capfd.readouterr().err
    assert path.read_bytes() == before


def test_tuning_needs_a_file(tmp_path, capfd, talk):
    assert cli.main(["train", "--chat", str(talk)]) == 1
    assert "--chat goes with --init FILE" in capfd.readouterr().err


def test_resuming_needs_the_same_file(base, talk, tmp_path, capfd):
    chat = ("--chat", talk, *CHAT)
    assert cli.main(arguments(base, tmp_path, *chat)) == 0
    run = ["train", "--run-dir", str(tmp_path / "run"), "--resume"]
    assert cli.main(run) == 1
    assert "begun with --init" in capfd.readouterr().err
    assert cli.main([*run, "--init", str(tmp_path / "out.gguf")]) == 1
    assert "not the file that the run began with" in capfd.readouterr().err
    talk.write_text(talk.read_text() + "\n" + talk.read_text().splitlines()[0])
    assert cli.main([*run, "--init", str(base)]) == 1
    assert "the text has changed since the run began" in capfd.readouterr().err
