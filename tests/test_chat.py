"""Conversations: an answer is what a fresh context gives on the rendered text, whatever the context
held; forgetting drops whole turns and equals a fresh run on what is kept; sessions come back."""

import dataclasses
import os
import re

import pytest
from models import TINY, file_fixture, model_fixture, write_trained
from test_chat_template import CHATML, LLAMA2, source, write_model

import llm
from llm.context import Context
from llm.sampler import Sampler

path = file_fixture(lambda path: write_model(path, source("qwen3"), CHATML))
model = model_fixture(n_threads=2, allow_long_context=True)


def sampler(model, seed=1, ends=True):
    """ends: whether an answer may end by itself."""
    ids = range(model.config.n_vocab)
    bias = {} if ends else {i: float("-inf") for i in ids if model.tokenizer.is_eog(i)}
    return Sampler(model.config.n_vocab, temperature=1, seed=seed, logit_bias=bias)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [SYSTEM, user("one"), assistant("eins"), user("two"), assistant("zwei"), user("three")]


def ids_of(steps):
    return [step.id for step in steps if step.id is not None]


# ---- an answer depends on nothing but the conversation ----


def test_an_answer_is_that_of_a_fresh_context(model):
    used = Context(model, n_ctx=256, allow_long_context=True)
    for n in (2, 4, 6, 2, 6):  # longer, shorter, the same again
        messages = TALK[:n]
        fresh = Context(model, n_ctx=256, allow_long_context=True)
        expected = fresh.stream(model.render_chat(messages), sampler(model), 12)
        got = used.chat(messages, sampler(model), 12)
        assert ids_of(got) == ids_of(expected)
        assert used.ids == fresh.ids


def test_what_is_held_is_not_read_again(model):
    """The cancel check is asked once per layer and pass."""
    passes = []
    context = Context(
        model, n_ctx=256, allow_long_context=True, cancel_check=lambda: passes.append(1)
    )
    list(context.chat(TALK, sampler(model), 0))
    n_first, held = len(passes), context.n_past
    list(context.chat(TALK, sampler(model), 0))
    assert context.n_past == held and len(passes) == 2 * n_first  # one pass, of one token
    before = context.n_past
    longer = [*TALK, assistant("drei"), user("four")]
    list(context.chat(longer, sampler(model), 0))
    assert context.ids == model.render_chat(longer) and context.n_past > before


# ---- forgetting ----


def policy(model, messages, n_ctx, answer):
    """What of a conversation fits: the oldest turns go until a quarter is free."""
    limit, kept = n_ctx - max(1, n_ctx // 4), list(messages)
    n_turns = 0
    while len(model.render_chat(kept)) + len(answer) > limit:
        users = [i for i, message in enumerate(kept) if message["role"] == "user"]
        if len(users) < 2:
            break
        del kept[users[0] : users[1]]
        n_turns += 1
    return kept, n_turns


@pytest.mark.parametrize("template", ["qwen3", "llama2"])  # the system message apart, or inside
def test_forgetting_equals_a_fresh_run_on_the_kept_turns(tmp_path, template):
    path, n_ctx, n_new = tmp_path / "tiny.gguf", 160, 120
    write_model(path, source(template), CHATML if template == "qwen3" else LLAMA2)
    messages = [SYSTEM]
    for i in range(3):
        messages += [user(f"question {i}"), assistant(f"answer {i}")]
    messages.append(user("last"))
    with llm.Model(path, allow_long_context=True) as model:
        context = Context(model, n_ctx=n_ctx, on_full="forget", allow_long_context=True)
        steps = list(context.chat(messages, sampler(model, ends=False), n_new))
        fresh = Context(model, n_ctx=n_ctx, allow_long_context=True)
        twin, kept, answer = sampler(model, ends=False), messages, []
        all_turns, event = 0, (0, 0)
        if len(model.render_chat(kept)) > n_ctx:
            n = len(model.render_chat(kept))
            kept, n_turns = policy(model, kept, n_ctx, [])
            event = (n - len(model.render_chat(kept)), n_turns)
        for step in steps:
            assert (step.forgot_tokens, step.forgot_turns) == event
            all_turns += event[1]
            if step.id is None:  # nothing is left to be forgotten
                assert step.finish == "context" and event == (0, 0)
                break
            held = [*model.render_chat(kept), *answer]
            fresh.truncate(0)
            assert step.id == twin.sample(fresh.eval(held)[0])
            answer.append(step.id)
            event = (0, 0)
            if len(held) == n_ctx:
                kept, n_turns = policy(model, kept, n_ctx, answer[:-1])
                event = (n_ctx - len(model.render_chat(kept)) - len(answer[:-1]), n_turns)
        assert all_turns == 3 and len(answer) > 30


def test_one_message_that_does_not_fit_is_refused_with_both_counts(model):
    context = Context(model, n_ctx=64, on_full="forget", allow_long_context=True)
    messages = [*TALK, assistant("drei"), user("x" * 100)]
    n = len(model.render_chat([SYSTEM, messages[-1]]))
    with pytest.raises(llm.ContextFullError, match=f"{n} tokens, the context holds 64") as caught:
        list(context.chat(messages, sampler(model), 1))
    assert (caught.value.n_tokens, caught.value.n_ctx) == (n, 64)
    context = Context(model, n_ctx=64, allow_long_context=True)
    with pytest.raises(llm.ContextFullError, match="the conversation has"):
        list(context.chat(messages, sampler(model), 1))


def test_a_conversation_that_fills_the_window_exactly(model):
    n = len(model.render_chat(TALK))
    for on_full in "stop", "forget":
        context = Context(model, n_ctx=n, on_full=on_full, allow_long_context=True)
        steps = list(context.chat(TALK, sampler(model), 1))
        assert all(step.forgot_tokens == 0 for step in steps)
        assert context.n_past == n
    context = Context(model, n_ctx=n - 1, on_full="forget", allow_long_context=True)
    step = next(context.chat(TALK, sampler(model), 1))
    assert step.forgot_turns >= 1 and step.forgot_messages == 2 * step.forgot_turns
    kept = [SYSTEM, *TALK[1 + step.forgot_messages :]]
    assert context.ids == model.render_chat(kept)
    assert step.forgot_tokens == n - len(context.ids)


def test_a_chat_that_slides_goes_on_where_it_is(model):
    """A follow-up reads its own tokens only, also when the beginning has slid out."""
    context = Context(model, n_ctx=48, on_full="slide", allow_long_context=True)
    list(context.chat(TALK[:4], sampler(model), 0))
    again = Context(model, n_ctx=48, on_full="slide", allow_long_context=True)
    first = list(context.chat(TALK, sampler(model), 8))
    assert ids_of(again.chat(TALK, sampler(model), 8)) == ids_of(first)
    assert context.ids == again.ids and context.n_past == 48


# ---- llm.Chat and sessions ----


def test_a_chat_remembers_and_forgets(model):
    events = []
    options = {"n_ctx": 96, "allow_long_context": True}
    chat = llm.Chat(model, "Be brief.", context=options, on_forget=events.append, seed=1)
    for i in range(12):
        chat.say(f"number {i}", max_tokens=8)
        assert chat.messages[0] == SYSTEM and chat.messages[-1]["role"] == "assistant"
        assert len(model.render_chat(chat.messages[:-1])) <= 96
    assert events and len(chat.messages) < 25
    chat.reset()
    assert chat.messages == [SYSTEM] and chat.context.n_past == 0


def test_a_failed_message_is_taken_back(model):
    chat = llm.Chat(model, context={"n_ctx": 64, "allow_long_context": True})
    with pytest.raises(llm.ContextFullError):
        chat.say("x" * 100)
    assert chat.messages == []
    chat.say("y", max_tokens=2)
    assert len(chat.messages) == 2


def test_messages_that_another_thread_takes_away_are_still_read(model, tmp_path):
    """As many as there were when they were first looked at."""

    class Last(dict):
        def get(self, key):
            del talk[:-1]
            return super().get(key)

    options = {"n_ctx": 256, "allow_long_context": True}
    talk = [*TALK[:-1], Last(TALK[-1])]
    assert model.render_chat(talk) == model.render_chat(TALK) and len(talk) == 1
    talk, context = [*TALK[:-1], Last(TALK[-1])], Context(model, **options)
    list(context.chat(talk, sampler(model), 0))
    assert context.ids == model.render_chat(TALK) and len(talk) == 1
    chat, other = llm.Chat(model), llm.Chat(model)
    talk = chat.messages = [*TALK[:-1], Last(TALK[-1])]
    chat.save(tmp_path / "talk")
    other.load(tmp_path / "talk")
    assert other.messages == TALK and len(talk) == 1


def test_a_reset_during_an_answer_leaves_an_empty_conversation(model):
    chat = llm.Chat(model, context={"n_ctx": 256, "allow_long_context": True}, seed=1)
    pieces = chat.stream("one", max_tokens=9)
    next(pieces)
    chat.reset()
    pieces.close()
    assert chat.messages == []


def test_a_failed_message_takes_no_other_with_it(model, monkeypatch):
    """Another thread's, which came meanwhile."""
    chat, others = llm.Chat(model, seed=1), []

    def fails(*_, **__):
        monkeypatch.undo()
        others.append(chat.stream("two", max_tokens=9))
        next(others[0])
        raise ZeroDivisionError
        yield

    monkeypatch.setattr(chat.context, "chat", fails)
    with pytest.raises(ZeroDivisionError):
        chat.say("one")
    assert chat.messages == [user("two")]


def test_an_answer_that_is_not_read_to_its_end_stays_as_far_as_it_was_read(model):
    chat = llm.Chat(model, context={"n_ctx": 256, "allow_long_context": True}, seed=1)
    for question in "one", "two":
        pieces = chat.stream(question, max_tokens=9)
        first = next(pieces)
        pieces.close()
        answer = chat.messages[-1]["content"].encode("utf-8", "surrogateescape")
        assert chat.messages[-2] == user(question) and answer.decode("utf-8", "replace") == first
    assert len(chat.messages) == 4


def test_sessions_come_back(model, tmp_path):
    options = {"n_ctx": 256, "allow_long_context": True}
    chat = llm.Chat(model, "Kurz.", context=options, seed=1)
    chat.say("né\n\x00\udcff", max_tokens=9)
    chat.save(tmp_path / "talk")
    assert os.listdir(tmp_path) == ["talk"]
    other = llm.Chat(model, context=options, seed=1, template="llama3")
    other.load(tmp_path / "talk")
    assert other.messages == chat.messages and other.context.ids == chat.context.ids
    assert other.template is None
    chat.sampler, other.sampler = sampler(model), sampler(model)
    assert chat.say("and now?", max_tokens=9) == other.say("and now?", max_tokens=9)


def test_a_session_of_another_file_is_refused(model, tmp_path):
    llm.Chat(model).save(tmp_path / "talk")
    write_trained(tmp_path / "other.bin", dataclasses.replace(TINY, n_layer=1))
    with llm.Model(tmp_path / "other.bin") as other:
        chat = llm.Chat(other, template="chatml")
        with pytest.raises(llm.FormatError, match="another parameter file"):
            chat.load(tmp_path / "talk")


def test_a_changed_weight_is_another_file(tmp_path):
    prints = set()
    for seed in 1, 2:
        write_trained(tmp_path / "a.bin", seed=seed)
        with llm.Model(tmp_path / "a.bin") as model:
            llm.Chat(model, template="chatml").save(tmp_path / "talk")
        prints.add((tmp_path / "talk").read_bytes().split(b"\n")[1])
    assert len(prints) == 2


def test_damaged_sessions_are_refused(model, tmp_path):
    """Cut anywhere; and lines that lie."""
    chat = llm.Chat(model, "s", context={"n_ctx": 128, "allow_long_context": True})
    chat.say("hello", max_tokens=3)
    good, talk = tmp_path / "good", tmp_path / "bad"
    chat.save(good)
    raw = good.read_bytes()
    lies = [raw[:n] for n in range(len(raw))]
    lies += [
        raw.replace(b"messages 3", n)
        for n in (b"messages 4", b"messages 2", b"messages -1", b"messages 99999999999999999999")
    ]
    lies += [
        raw.replace(b"user 5", b"user 6"),
        raw.replace(b"user 5", b"user 18446744073709551615"),
    ]
    lies += [re.sub(rb"ids \d+", n, raw) for n in (b"ids 0", b"ids 1", b"ids 4000000000", b"ids x")]
    lies += [raw.replace(b"end\n", b"300\nend\n"), raw + b"x", raw.replace(b"user", b"root")]
    lies += [raw.replace(b"template auto", b"template jinja"), raw.replace(b"on 1", b"on 2")]
    before = chat.messages
    for lie in lies:
        assert lie != raw
        talk.write_bytes(lie)
        with pytest.raises(llm.FormatError, match="bad"):
            chat.load(talk)
        assert chat.messages is before
    with pytest.raises(OSError, match="nowhere"):
        chat.save(tmp_path / "nowhere" / "talk")
    assert sorted(os.listdir(tmp_path)) == ["bad", "good"]
