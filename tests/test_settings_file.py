"""TOML in and out: every mistake is named, what is written is what is read."""

import dataclasses
import json

import pytest

from llm.errors import LlmError
from llm.settings import FREE, Settings, check_given
from llm.settings_file import merge_given, read_settings, settings_of, to_toml


def read(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return read_settings(path)


def test_a_file_holds_the_fields(tmp_path):
    values = read(tmp_path, 'text = ["a", "b"]\nminutes = 3\ntied = false\nn_embd = 64\n')
    assert values == {"text": ("a", "b"), "minutes": 3.0, "tied": False, "n_embd": 64}
    assert isinstance(values["minutes"], float)
    assert read(tmp_path, 'text = "a"')["text"] == ("a",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_embed = 64", "run.toml: unknown key n_embed; did you mean n_embd?"),
        ("zzz = 64", "run.toml: unknown key zzz$"),
        ("n_embd = 'wide'", "run.toml: n_embd is 'wide', expected an integer"),
        ("n_embd = 64.0", "n_embd is 64.0, expected an integer"),
        ("n_embd = true", "n_embd is True, expected an integer"),
        ("lr = '1'", "lr is '1', expected a number"),
        ("lr = true", "lr is True, expected a number"),
        ("tied = 1", "tied is 1, expected true or false"),
        ("out = 1", "out is 1, expected a text"),
        ("text = [1]", r"text is \[1\], expected a list of texts"),
        ("[model]\nn_embd = 64", "unknown key model"),
        ("lr = = 1", "run.toml: not TOML: "),
        ("lr = 1\nlr = 2", "run.toml: not TOML: "),
        ("lr = " + "[" * 20_000, "run.toml: not TOML: "),
    ],
)
def test_a_mistake_is_named(tmp_path, text, message):
    with pytest.raises(LlmError, match=message):
        read(tmp_path, text)


def test_a_device_is_not_read_for_ever():
    with pytest.raises(LlmError, match="/dev/zero: more than 1,048,576 bytes"):
        read_settings("/dev/zero")


def test_what_is_not_utf8_is_named(tmp_path):
    (tmp_path / "run.toml").write_bytes(b"out = '\xff'")
    with pytest.raises(LlmError, match="run.toml: not TOML"):
        read_settings(tmp_path / "run.toml")


def test_what_is_written_is_what_is_read(tmp_path):
    odd = 'a "quoted" \\ name\n\t\x01\x7f ü 猫'
    settings = Settings(text=("b", odd), prompt=odd, lr=1e-5, minutes=3.0, tied=False, n_embd=64)
    assert Settings(**read(tmp_path, to_toml(settings))) == settings


@pytest.mark.parametrize("where", [{"init": "a.gguf"}, {"data": "shards"}])
def test_a_vocabulary_that_is_not_learned_has_no_size(where):
    assert "n_vocab" in to_toml(Settings()) and "n_vocab" not in to_toml(Settings(**where))


def test_with_its_steps_a_text_repeats_the_run(tmp_path):
    text = to_toml(Settings(minutes=3.0, threads=2, lr=0.5), n_steps=70, all_fields=False)
    values = read(tmp_path, text)
    assert (values["steps"], values["lr"]) == (70, 0.5)
    assert not {"minutes", "tokens", "depth"} & set(values) and not FREE & set(values)


def test_a_checkpoint_holds_the_fields():
    settings = Settings(text=("a", "b"), slot_sequences=4).with_width(64)
    kept = json.loads(json.dumps(dataclasses.asdict(settings)))
    assert settings_of(kept) == settings
    del kept["attention"]  # as where the program was older
    assert settings_of(kept) == settings


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Settings)])
@pytest.mark.parametrize("value", [{}, [1], [[]]])
def test_what_no_checkpoint_holds_is_named(field, value):
    with pytest.raises(TypeError, match=rf"{field} is .*, expected"):
        settings_of({field: value})


def test_fields_that_must_be_there_and_no_others():
    with pytest.raises(TypeError, match="clip is None, expected a number"):
        settings_of({"clip": None})
    with pytest.raises(KeyError, match="colour"):
        settings_of({"colour": 1})
    with pytest.raises(TypeError, match=r"the settings are \[\]"):
        settings_of([])


def test_flags_override_the_file():
    merged = merge_given({"minutes": 5.0, "lr": 0.1, "seed": 3}, {"steps": 7, "lr": 0.2})
    assert merged == {"steps": 7, "lr": 0.2, "seed": 3}


def test_a_vocabulary_that_is_given_overrides_the_size_in_the_file():
    """As in files of runs that kept both; two flags contradict each other."""
    for where in ("init", "data"):
        merged = {where: "a", "seed": 3}
        assert merge_given({where: "a", "n_vocab": 4096, "seed": 3}, {}) == merged
        assert merge_given({"n_vocab": 4096, "seed": 3}, {where: "a"}) == merged
        with pytest.raises(ValueError, match=f"--n-vocab is 999, but --{where} has its own"):
            check_given(merge_given({where: "a", "n_vocab": 4096}, {"n_vocab": 999}))
    assert merge_given({"n_vocab": 4096}, {"init": None}) == {"n_vocab": 4096, "init": None}
