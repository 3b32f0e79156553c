"""Conversations: the ids of the program's chat, what is learned of them, windows, bad lines."""

import json
import os

import numpy as np
import pytest
from test_chat_template import TEMPLATES, source, write_model

import llm
from llm import chat_data
from llm.chat_data import (
    ChatExamples,
    Conversation,
    hold_out_chats,
    pack,
    parse,
    read_chats,
    render,
)
from llm.errors import CorpusError

TALK = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A model. <|im_end|>"},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes."},
]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")

    def get(name):
        if not (folder / name).exists():
            write_model(folder / name, source(name), TEMPLATES[name])
        return llm.Model(folder / name)

    return get


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_ids_are_those_of_the_chat_and_answers_alone_are_learned(opened, name):
    model = opened(name)
    conversation = render(model, TALK, "here")
    assert conversation.ids.tolist() == model.render_chat(TALK, add_generation_prompt=False)
    assert conversation.question == "Who are you?"
    edges = np.flatnonzero(np.diff(np.concatenate([[0], conversation.said, [0]])))
    spans = [conversation.ids[a:b] for a, b in edges.reshape(-1, 2)]
    said = [model.tokenizer.decode(ids, render_special=False).strip() for ids in spans]
    expected = ["A model. <|im_end|>", "Yes."]
    if said[-1].startswith("<think>"):  # Qwen 3's template puts empty thoughts before the last
        expected[-1] = "<think>\n\n</think>\n\nYes."
    assert said == expected
    for ids in spans:
        assert not any(model.tokenizer.is_eog(int(id)) for id in ids[:-1])


def test_an_answer_ends_where_the_model_must_stop(opened):
    name = next(n for n in sorted(TEMPLATES) if "<|im_end|>" in str(source(n)))
    model = opened(name)
    conversation = render(model, TALK, "here")
    last = conversation.ids[conversation.said][-1]
    assert model.tokenizer.is_eog(int(last))


def test_pack_keeps_conversations_whole_and_apart():
    def conversation(first, n):
        ids = np.arange(first, first + n, dtype=np.int32)
        return Conversation(ids, ids % 2 == 1, "")

    w = pack([conversation(100, 5), conversation(200, 4), conversation(300, 9)], 8, padding=7)
    assert w.n_cut == 0
    np.testing.assert_array_equal(
        w.tokens, [[100, 101, 102, 103, 200, 201, 202, 7], [300 + i for i in range(8)]]
    )
    np.testing.assert_array_equal(
        w.targets, [[101, -1, 103, -1, 201, -1, 203, -1], [301, -1, 303, -1, 305, -1, 307, -1]]
    )
    np.testing.assert_array_equal(w.starts, [[0, 0, 0, 0, 4, 4, 4, 7], [0] * 8])
    cut = pack([conversation(300, 12)], 8, padding=7)
    assert cut.n_cut == 1 and cut.targets[0, -2] == 307


def test_every_window_comes_once_in_an_epoch():
    n = 12
    windows = pack([Conversation(np.full(9, i), np.ones(9, bool), "") for i in range(n)], 8, 0)
    examples = ChatExamples(windows, seed=3, n_slots=2, slot_sequences=2)

    def epoch(number):
        steps = range(number * 3, number * 3 + 3)
        slots = [examples.slot(step, slot) for step in steps for slot in range(2)]
        assert all(part.shape == (2, 8) for part in slots[0])
        return [int(row[0]) for tokens, _, _ in slots for row in tokens]

    assert sorted(epoch(0)) == sorted(epoch(1)) == list(range(n))
    assert epoch(0) != epoch(1)


@pytest.mark.parametrize("rule", ["hash", "last"])
def test_hold_out(rule):
    documents = [str(i).encode() for i in range(50)]
    training, held = hold_out_chats(list(range(50)), documents, rule)
    assert sorted(training + held) == list(range(50)) and len(held) == 2
    assert rule == "hash" or held == [48, 49]
    assert hold_out_chats([1, 2], documents[:2], rule)[1]


def line(**record):
    return json.dumps(record).encode()


@pytest.mark.parametrize(
    "text, message",
    [
        (b"{", "not JSON"),
        (b"\xff{}", "not UTF-8"),
        (b"[1]", 'no {"messages": [...]}'),
        (line(text="x"), 'no {"messages": [...]}'),
        (line(messages=[]), "messages is empty"),
        (line(messages=["x"]), "messages is no list of"),
        (line(messages=[{"role": "robot", "content": "x"}]), "message 0: role is 'robot'"),
        (line(messages=[{"content": "x"}]), "message 0: role is None"),
        (line(messages=[{"role": "user"}]), "message 0: content is no text"),
        (line(messages=[{"role": "user", "content": ["x"]}]), "message 0: content is no text"),
        (line(messages=TALK[:1]), "no message of the assistant to learn from"),
        (line(messages=TALK[1:2]), "no message of the assistant to learn from"),
    ],
)
def test_a_bad_line_is_named(opened, tmp_path, text, message):
    path = tmp_path / "talk.jsonl"
    path.write_bytes(line(messages=TALK) + b"\n\n" + text + b"\n")
    with pytest.raises(CorpusError) as caught:
        read_chats([str(path)], opened(sorted(TEMPLATES)[0]))
    assert f"{path}:3: {message}" in str(caught.value) and "\n" not in str(caught.value)


def test_a_pipe_is_not_waited_for(opened, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CorpusError, match="pipe: no regular file"):
        read_chats([str(tmp_path / "pipe")], opened(sorted(TEMPLATES)[0]))


def test_a_line_without_end_is_refused(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(chat_data, "LONGEST_RECORD", 1 << 20)
    path = tmp_path / "talk.jsonl"
    path.write_bytes(line(messages=TALK) + b"\n" + b" " * (2 << 20))
    with pytest.raises(CorpusError, match="talk.jsonl:2: longer than 1 MiB"):
        read_chats([str(path)], opened(sorted(TEMPLATES)[0]))


def test_one_conversation_is_too_few(opened, tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_bytes(line(messages=TALK))
    with pytest.raises(CorpusError, match="talk.jsonl: conversations: 1, at least 2"):
        read_chats([str(path)], opened(sorted(TEMPLATES)[0]))


def test_parse_takes_other_fields_along():
    assert parse(line(messages=TALK, id=7), "here") == TALK
