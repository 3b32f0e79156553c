"""Real weights in no time: Karpathy's stories260K, a llama2.c checkpoint with a SentencePiece
vocabulary, converted to a parameter file, tells the 256 tokens that llama2.c documents."""

import json

import pytest

import llm
from llm.convert import convert


@pytest.fixture(scope="module")
def stories(test_data, tmp_path_factory):
    path = tmp_path_factory.mktemp("stories") / "stories260K.gguf"
    files = test_data / "stories260K.bin", test_data / "tok512.bin"
    if not all(file.exists() for file in files):
        pytest.skip("LLM_TEST_DATA has no stories260K.bin and tok512.bin")
    convert(files[0], path, tokenizer=files[1])
    return path


@pytest.mark.parametrize("kv_type", ["f32", "f16"])
def test_the_documented_story(stories, test_data, kv_type):
    golden = json.loads((test_data / "stories260K.golden.json").read_text(encoding="utf-8"))
    with llm.Model(stories, kv_type=kv_type) as model:
        assert model.tokenize("") == [golden["bos"]]
        steps = list(model.steps([golden["bos"]], max_tokens=256, temperature=0))
        assert [step.id for step in steps if step.id is not None] == golden["ids"]
        # llama2.c drops the space of a first word
        assert b"".join(step.text for step in steps).decode() == " " + golden["text"]
