"""Generation past its edges: stop strings, and a context that forgets, each against a slow and
obvious twin."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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


def sampler(seed: int = 3) -> Sampler:
    """Of a seed that does not end these texts."""
    return Sampler(TINY.n_vocab, temperature=1, seed=seed)


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


@settings(max_examples=60, deadline=None)
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


# ---- log-probabilities ----


def test_steps_carry_log_probabilities_of_the_raw_distribution(model):
    context, ids = Context(model), [65]
    for step in context.stream(ids, sampler(), max_tokens=8, logprobs=3):
        row = model.logits(ids)[-1].astype(np.float64)
        row -= row.max()
        row -= np.log(np.exp(row).sum())
        best = np.argsort(-row, kind="stable")[:3]
        assert [id for id, _ in step.top] == best.tolist()
        assert np.allclose([p for _, p in step.top], row[best], atol=1e-6)
        assert step.logprob == pytest.approx(row[step.id], abs=1e-6)
        ids.append(step.id)
    with pytest.raises(ValueError, match="alternatives"):
        next(context.stream([65], sampler(), logprobs=TINY.n_vocab + 1))


# ---- large windows ----


@pytest.mark.parametrize("n_ctx", [4096, 8192, 32768])
def test_large_windows_fill_and_go_on(tmp_path, n_ctx):
    """Exactly full, then one more in each mode; the prompt is read in passes of 512."""
    path = tmp_path / "long.bin"
    small = dataclasses.replace(TINY, n_layer=1, n_embd=16, n_head=1, n_kv_head=1, n_ff=16)
    write_trained(path, dataclasses.replace(small, n_ctx=n_ctx))
    prompt = [(i * i + i // 7) % EOT for i in range(n_ctx)]
    with llm.Model(path, n_threads=2) as model:
        stop = Context(model, n_ctx=n_ctx)
        assert [step.finish for step in stop.stream(prompt, sampler())] == ["context"]
        stop.truncate(n_ctx - 1)
        id = sampler().sample(stop.eval(prompt[-1:])[0])
        with pytest.raises(llm.ContextFullError):
            stop.eval([0])
        forget = Context(model, n_ctx=n_ctx, on_full="forget")
        steps = list(forget.stream(prompt, sampler(), 3))
        assert steps[0].id == id
        assert [step.forgot_tokens for step in steps] == [0, n_ctx // 4, 0]
        assert forget.ids == [*prompt[n_ctx // 4 :], *[step.id for step in steps[:2]]]
        slide = Context(model, n_ctx=n_ctx, on_full="slide")
        steps = list(slide.stream(prompt, sampler(), 3))
        assert slide.ids == [*prompt[:4], *prompt[6:], *[step.id for step in steps[:2]]]
