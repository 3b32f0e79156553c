"""Generation past its edges: stop strings, a context that forgets, and several continuations of
one prompt, each against a slow and obvious twin."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_server import log_softmax
from models import EOT, TINY, write_trained

import llm
from llm.context import Context
from llm.sampler import Sampler

N_CTX = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("generate") / "tiny.bin"
    write_trained(path, dataclasses.replace(TINY, n_ctx=64))
    with llm.Model(path, n_threads=2) as model:
        yield model


def sampler() -> Sampler:
    """Never ends the text."""
    return Sampler(TINY.n_vocab, temperature=1, seed=3, logit_bias={EOT: float("-inf")})


# ---- stop strings ----


@pytest.fixture(scope="module")
def text(model):
    steps = Context(model).stream([65], sampler(), max_tokens=60)
    return b"".join(step.text for step in steps)


def cut(text: bytes, stops: list[bytes]) -> tuple[bytes, bool]:
    """Before the stop string that is complete first; of several that end there, the longest."""
    for end in range(1, len(text) + 1):
        lengths = [len(s) for s in stops if text[:end].endswith(s)]
        if lengths:
            return text[: end - max(lengths)], True
    return text, False


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_nothing_of_a_stop_string_leaks(model, text, data):
    """Strings that occur, strings that begin like ones that occur, and others."""
    part = st.tuples(st.integers(0, len(text) - 1), st.integers(1, 12)).map(
        lambda at: text[at[0] : at[0] + at[1]]
    )
    nearly = part.map(lambda s: s[:-1] + b"\x01")
    stops = data.draw(st.lists(st.one_of(part, nearly, st.binary(min_size=1, max_size=3))))
    expected, stopped = cut(text, stops)
    sent = b""
    for step in Context(model).stream([65], sampler(), max_tokens=60, stop=stops):
        sent += step.text
        assert expected.startswith(sent)
    assert sent == expected
    assert step.finish == ("stop" if stopped else "length")


def test_an_empty_stop_string_is_refused(model):
    with pytest.raises(ValueError, match="empty"):
        next(Context(model).stream([65], sampler(), stop=["a", ""]))


# ---- a context that forgets ----


def kept(model, ids: list[int], n_ctx: int) -> list[int]:
    """BOS and the newest, a quarter of the window free."""
    n = n_ctx - max(1, n_ctx // 4)
    if len(ids) <= n:
        return ids
    first = ids[:1] if ids[0] == model.tokenizer.bos else []
    return first + ids[len(ids) - n + len(first) :]


def test_a_window_of_one_token_has_nothing_to_forget(model):
    context = Context(model, n_ctx=1, on_full="forget")
    steps = list(context.stream([1, 2, 3], sampler()))
    assert [(step.forgot_tokens, step.finish) for step in steps] == [(2, None), (0, "context")]
    assert context.ids == [3]


@pytest.mark.parametrize("n_prompt", [1, 5, N_CTX - 1, N_CTX, N_CTX + 1, 50])
@pytest.mark.parametrize("n_ctx", [4, N_CTX])
def test_forgetting_equals_a_fresh_run_on_what_is_kept(model, n_prompt, n_ctx):
    prompt = [model.tokenizer.bos, *range(50)][:n_prompt]
    context = Context(model, n_ctx=n_ctx, on_full="forget")
    steps = list(context.stream(prompt, sampler(), max_tokens=45))
    fresh, twin = Context(model, n_ctx=n_ctx), sampler()
    held = kept(model, prompt, n_ctx) if n_prompt > n_ctx else prompt
    expected = [n_prompt - len(held)]
    for i, step in enumerate(steps):
        fresh.truncate(0)
        id = twin.sample(fresh.eval(held)[0])
        assert (step.id, step.forgot_tokens) == (id, expected[-1])
        expected.append(0)
        if i + 1 == len(steps):
            break
        if len(held) == n_ctx:
            held = kept(model, held, n_ctx)
            expected[-1] = n_ctx - len(held)
        held = [*held, id]
    assert context.ids == held
    assert len(steps) == 45 and steps[-1].finish == "length"
    assert sum(n > 0 for n in expected) >= 2


# ---- large windows ----


@pytest.mark.parametrize(
    "n_ctx, kv_type", [(4096, "q8_0"), (4096, "f32"), (8192, "f16"), (32768, "f16")]
)
def test_large_windows_fill_and_go_on(tmp_path, n_ctx, kv_type):
    """Exactly full, then one more in each mode; the prompt is read in passes of 512."""
    path = tmp_path / "long.bin"
    n_embd = 32 if kv_type == "q8_0" else 16
    small = dataclasses.replace(TINY, n_layer=1, n_embd=n_embd, n_head=1, n_kv_head=1, n_ff=16)
    write_trained(path, dataclasses.replace(small, n_ctx=n_ctx))
    prompt = [(i * i + i // 7) % EOT for i in range(n_ctx)]
    with llm.Model(path, n_threads=2) as model:
        stop = Context(model, n_ctx=n_ctx, kv_type=kv_type)
        assert [step.finish for step in stop.stream(prompt, sampler())] == ["context"]
        stop.truncate(n_ctx - 1)
        id = sampler().sample(stop.eval(prompt[-1:])[0])
        with pytest.raises(llm.ContextFullError):
            stop.eval([0])
        forget = Context(model, n_ctx=n_ctx, on_full="forget", kv_type=kv_type)
        steps = list(forget.stream(prompt, sampler(), 3))
        assert steps[0].id == id
        assert [step.forgot_tokens for step in steps] == [0, n_ctx // 4, 0]
        assert forget.ids == [*prompt[n_ctx // 4 :], *[step.id for step in steps[:2]]]
        slide = Context(model, n_ctx=n_ctx, on_full="slide", kv_type=kv_type)
        steps = list(slide.stream(prompt, sampler(), 3))
        assert slide.ids == [*prompt[:4], *prompt[6:], *[step.id for step in steps[:2]]]


# ---- options of the sampler, and several continuations ----


def test_n_continuations_are_those_of_calls_of_their_own(model):
    options = {"max_tokens": 30, "repeat_penalty": 1.25, "temperature": 2}
    for prompt in ("the thing", [7]):
        expected = [model.generate(prompt, seed=seed, **options) for seed in (5, 6, 7)]
        assert model.generate(prompt, n=3, seed=5, **options) == expected
        assert len(set(expected)) == 3
    last = 2**64 - 1  # seeds go round
    expected = [model.generate("the", seed=seed, **options) for seed in (last, 0)]
    assert model.generate("the", n=2, seed=last, **options) == expected
    assert len(model.generate("the", n=2)) == 2  # until the window is full
    with pytest.raises(ValueError, match="n is 0"):
        model.generate("the", n=0)


def test_n_continuations_in_a_window_that_forgets(model):
    """The prompt was forgotten when the next one begins."""
    with llm.Model(model.path, n_ctx=16, on_full="forget") as small:
        options = {"max_tokens": 40, "temperature": 2, "logit_bias": {EOT: -np.inf}}
        expected = [small.generate("the thing", seed=seed, **options) for seed in (1, 2)]
        assert small.generate("the thing", n=2, seed=1, **options) == expected


def test_steps_carry_logprobs_of_the_raw_distribution(model):
    ids = model.tokenize("the")
    options = {"temperature": 3, "top_k": 5, "logit_bias": {65: 9.0}, "seed": 2}
    for step in model.steps("the", max_tokens=12, logprobs=4, **options):
        logp = log_softmax(model.logits(ids)[-1])
        order = np.argsort(-logp, kind="stable")[:4]
        assert step.logprob == pytest.approx(logp[step.id], abs=1e-5)
        assert [id for id, _ in step.top] == list(order)
        assert [value for _, value in step.top] == pytest.approx(logp[order], abs=1e-5)
        ids.append(step.id)
    assert all(step.logprob is None and not step.top for step in model.steps("the", 3))
    with pytest.raises(ValueError, match="alternatives"):
        next(model.steps("the", logprobs=TINY.n_vocab + 1))


def test_penalties_see_the_prompt_and_what_was_drawn(model):
    """A ban on repetition: with the window of 64 no token comes twice, nor one of the prompt."""
    ids = model.tokenize("the thing")
    steps = list(model.steps(ids, 40, presence_penalty=1e6, temperature=0, logit_bias={EOT: -1e9}))
    new = [step.id for step in steps]
    assert len(new) == len(set(new)) == 40 and not set(new) & set(ids)
    steps = model.steps(ids, 40, presence_penalty=1e6, temperature=0, penalty_last_n=2)
    new = [step.id for step in steps if step.id is not None]
    assert len(new) > len(set(new)) and all(a != b for a, b in zip(new, new[1:], strict=False))


# ---- wrong options ----


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda m: m.generate("a", max_token=5), r"generate\(\) has no .* mean max_tokens\?"),
        (lambda m: m.generate("a", 5, n=2, sed=1), r"generate\(\) has no option sed: .* seed\?"),
        (lambda m: m.generate("a", n_ctx=9), r"option n_ctx: llm.Model\(\) has it"),
        (lambda m: list(m.stream("a", n=2)), r"stream\(\) has no option n: generate\(\) has it"),
        (lambda m: list(m.steps("a", bogus=2)), r"steps\(\) .* options are max_tokens, .* top_k"),
        (lambda m: m.chat([], max_token=5), r"chat\(\) has no .* mean max_tokens\?"),
        (lambda m: list(m.chat_stream([], n_ctx=5)), r"chat_stream\(\) .* llm.Model\(\) has it"),
        (lambda m: llm.Model(m.path, temperature=0), r"llm.Model\(\) .*: generate\(\) has it"),
        (lambda m: llm.Model(m.path, ctx=9), r"llm.Model\(\) has no option ctx: .* n_ctx\?"),
        (lambda m: llm.Context(m, bogus=9), r"llm.Context\(\) has no .* options are n_ctx, "),
        (lambda m: m.generate(3), r"generate\(\) continues a text or a list .*, not int"),
        (lambda m: list(m.stream(None)), r"stream\(\) continues a text or .*, not NoneType"),
    ],
)
def test_a_wrong_argument_names_the_call_and_what_there_is(model, call, said):
    with pytest.raises(TypeError, match=said):
        call(model)
