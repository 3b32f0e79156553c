"""The bindings: what is wrong is an exception of its kind, with one line that names it."""

import numpy as np
import pytest
from models import NO_BOS_EOS, TINY, file_fixture, model_fixture, write_trained, write_typed

import llm
from llm.context import Context
from llm.sampler import Sampler

path, model = file_fixture(write_trained), model_fixture(n_threads=2)


def test_a_path_with_a_zero_byte_opens_nothing(path):
    with pytest.raises(ValueError, match="zero byte"):
        llm.Model(f"{path}\0.bin")


def test_text_is_str_or_bytes(model):
    for text in (3, [97], None):
        with pytest.raises(TypeError):
            model.tokenizer.encode(text)


def test_nothing_to_begin_with(tmp_path):
    write_typed(tmp_path / "none.bin", "F32", drop=NO_BOS_EOS)
    with llm.Model(tmp_path / "none.bin") as model:
        assert model.tokenizer.bos is None and model.tokenizer.eos is None
        with pytest.raises(ValueError, match="names none to begin with"):
            model.generate("", max_tokens=1)


def test_open_errors_are_typed(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        llm.Model(tmp_path / "none.bin")
    assert caught.value.filename == str(tmp_path / "none.bin")
    with pytest.raises(FileNotFoundError, match="none.bin"):
        llm.Model(bytes(tmp_path / "none.bin"))
    (tmp_path / "text.bin").write_text("hello, this is not a model at all\n")
    with pytest.raises(llm.FormatError, match="text.bin"):
        llm.Model(tmp_path / "text.bin")
    with pytest.raises(llm.FormatError, match="directory"):
        llm.Model(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_k": 2**40},
        {"top_p": 0},
        {"top_p": 1.5},
        {"seed": -1},
        {"seed": 2**64},
        {"max_tokens": -1},
        {"min_p": 2},
        {"repeat_penalty": 0},
        {"logit_bias": {TINY.n_vocab: 1.0}},
        {"logprobs": -1},
        {"logprobs": TINY.n_vocab + 1},
    ],
)
def test_absurd_options(model, options):
    with pytest.raises(ValueError):
        model.generate("x", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"n_ctx": -1},
        {"n_ctx": 65},
        {"n_ctx": 2**70},
        {"n_threads": -1},
        {"n_threads": 2**31},
        {"n_sink": 2**63, "on_full": "slide"},
        {"kv_type": "q8"},
        {"kernels": "abacus"},
    ],
)
def test_absurd_context_options(model, options):
    with pytest.raises(ValueError):
        Context(model, **options)


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda m: Context(m, n_ctx=None), "n_ctx must be an integer, not NoneType"),
        (lambda m: Context(m, n_threads="2"), "n_threads must be an integer, not str"),
        (lambda m: Context(m, n_sink=4.0), "n_sink must be an integer, not float"),
        (lambda m: Context(m, kernels=1), "kernels must be str, not int"),
        (lambda m: Context(m, kernels=b"scalar"), "kernels must be str, not bytes"),
        (lambda m: Context(None), "model must be an llm.Model, not NoneType"),
        (lambda m: next(Context(m).stream([1], None)), "sampler must be Sampler, not NoneType"),
        (lambda m: Context(m).truncate(None), "n_keep must be an integer, not NoneType"),
        (lambda m: Context(m).eval([1], n_rows=None), "n_rows must be an integer, not NoneType"),
        (lambda m: m.perplexity("the", stride=1.5), "stride must be an integer, not float"),
        (lambda m: m.generate("x", top_k=None), "top_k must be an integer, not NoneType"),
        (lambda m: m.generate("x", penalty_last_n=1.5), "penalty_last_n must be an integer, not"),
        (lambda m: m.generate("x", seed="1"), "seed must be an integer, not str"),
        (lambda m: m.generate("x", logit_bias=[1]), "logit_bias must be Mapping, not list"),
        (lambda m: m.generate("x", max_tokens=1.5), "max_tokens must be an integer, not float"),
        (lambda m: m.generate("x", logprobs="1"), "logprobs must be an integer, not str"),
        (lambda m: m.generate("x", n=1.5), "n must be an integer, not float"),
        (lambda m: m.generate("x", stop=None), "stop must be Iterable, not NoneType"),
        (lambda m: m.generate("x", stop=[1]), "a stop string must be str or bytes, not int"),
        (lambda m: llm.Chat(m, system=5), "system must be str or bytes, not int"),
        (lambda m: m.render_chat([], template=b"chatml"), "template must be str, not bytes"),
        (lambda m: m.tokenize(np.array([1.5, 2])), "text must be str or bytes, not ndarray"),
        (lambda m: m.tokenize(np.array(["a"], object)), "text must be str or bytes, not ndarray"),
        (lambda m: m.tokenize(memoryview(np.array([1.5]))), "text must be .*, not memoryview"),
        (lambda m: m.tokenizer.is_eog("a"), "id must be an integer, not str"),
        (lambda m: m.tokenizer.encode_documents([b"a"], None), "first_id must be an integer, not"),
    ],
)
def test_an_argument_of_another_type_is_named(model, call, said):
    with pytest.raises(TypeError, match=said):
        call(model)


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda m: Context(m, kv_type=[]), r"kv_type is \[\], expected one of f16, f32, q8_0"),
        (lambda m: Context(m, on_full={}), r"on_full is {}, expected one of stop, forget, slide"),
        (lambda m: Context(m, kernels="scalar\0x"), "kernels cannot hold a zero byte"),
        (lambda m: m.render_chat([], template="chatml\0x"), "template cannot hold a zero byte"),
        (lambda m: m.perplexity("the", stride=1 << 70), "stride is .*, expected at most"),
        (lambda m: Context(m).truncate(1 << 64), "n_keep is .*, expected at most"),
        (lambda m: m.tokenizer.is_eog(1 << 40), "id is .*, expected at most"),
        (lambda m: m.tokenizer.token_type(-1 << 40), "id is .*, expected -2147483648 or more"),
        (lambda m: m.tokenizer.encode_documents([b"a"], 1 << 40), "first_id is .* at most"),
    ],
)
def test_an_argument_out_of_range_is_named(model, call, said):
    with pytest.raises(ValueError, match=said):
        call(model)


@pytest.mark.parametrize("kind", [bytes, bytearray, lambda raw: memoryview(bytearray(raw))])
def test_text_is_also_what_is_like_bytes(model, kind):
    text, options = kind(b"the th"), {"max_tokens": 5, "temperature": 0}
    assert model.tokenize(text) == model.tokenize("the th")
    assert model.generate(text, **options) == model.generate("the th", **options)
    assert model.generate(text, n=1, **options) == [model.generate("the th", **options)]
    assert model.perplexity(text) == model.perplexity("the th")
    assert np.array_equal(model.embed(text), model.embed("the th"))
    said = [{"role": "user", "content": text}], [{"role": "user", "content": "the th"}]
    assert model.render_chat(said[0]) == model.render_chat(said[1])
    answer = model.generate("the", **options)
    assert model.generate("the", stop=[kind(answer[-1:].encode())], **options) in answer[:-1]
    with pytest.raises(ValueError, match="token ids"):
        model.logits(text)


@pytest.mark.parametrize("ids", [[], [-1], [TINY.n_vocab], [2**31], [1.5], [[1, 2]], ["a"]])
def test_bad_ids(model, ids):
    with pytest.raises(ValueError):
        model.logits(ids)


def test_a_sampler_of_another_vocabulary(model):
    with pytest.raises(ValueError, match="260 tokens, the model has 259"):
        next(Context(model).stream([1], Sampler(260)))
