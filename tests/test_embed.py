"""Embeddings against float64 NumPy for every architecture, and against llama.cpp's mean pooling."""

import numpy as np
import pytest
from gguf_models import ARCHITECTURES, N_CTX, write_model
from llama_server import post, start_server
from models import TINY, random_params, write_trained
from reference_forward import Decoder, read_gguf

import llm
from llm.config import layout
from llm.context import Context
from llm.model import Transformer
from llm.ops_numpy import OpsNumpy

TOLERANCE = 1e-5  # of an element of a unit vector: float32 against float64
IDS = [(i * 37 + i // 5) % 129 for i in range(N_CTX)]


def unit_mean(hidden: np.ndarray) -> np.ndarray:
    mean = hidden.mean(axis=0)
    return mean / np.linalg.norm(mean)


def part(flat: np.ndarray, name: str) -> np.ndarray:
    """A tensor in the parameter buffer, as a view."""
    entry = next(entry for entry in layout(TINY) if entry.name == name)
    return flat[entry.offset : entry.offset + entry.size].reshape(entry.shape)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("embed") / "tiny.bin"
    write_trained(path)
    return path


def test_float64_numpy_agrees(path):
    """The trainer's model gives logits; its output matrix has full rank, so the hidden states can
    be had from them."""
    flat = random_params(TINY).astype(np.float64)
    logits = Transformer(TINY, OpsNumpy(np.float64), flat).logits(np.array([IDS[:50]], np.int32))
    hidden = np.linalg.lstsq(part(flat, "tok_embd"), logits[0].T, rcond=None)[0].T
    with llm.Model(path, kv_type="f32") as model:
        got = model.embed(IDS[:50])
    assert got.dtype == np.float32 and got.shape == (TINY.n_embd,)
    assert np.abs(got - unit_mean(hidden)).max() < TOLERANCE


def test_text_or_ids_and_the_context_after(path):
    with llm.Model(path) as model:
        assert np.array_equal(model.embed("the the"), model.embed(model.tokenize("the the")))
        context = Context(model)
        context.eval([1, 2, 3])
        assert np.array_equal(context.embed(IDS[:9]), model.embed(IDS[:9]))
        assert context.ids == IDS[:9]


def test_zeros_stay_zeros(tmp_path):
    flat = random_params(TINY)
    part(flat, "out_norm")[:] = 0
    write_trained(tmp_path / "zero.bin", flat=flat)
    with llm.Model(tmp_path / "zero.bin") as model:
        assert np.array_equal(model.embed([1, 2, 3]), np.zeros(TINY.n_embd, np.float32))


def test_what_is_refused(path):
    with llm.Model(path) as model:
        with pytest.raises(llm.ContextFullError, match="65 tokens.*64") as caught:
            model.embed([1] * 65)
        assert (caught.value.n_tokens, caught.value.n_ctx) == (65, 64)
        for ids in ([], [TINY.n_vocab], [-1], [0.5], ""):
            with pytest.raises(ValueError):
                model.embed(ids)


@pytest.mark.peer
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(tmp_path, architecture):
    write_model(tmp_path / "model.gguf", architecture)
    decoder = Decoder(*read_gguf(tmp_path / "model.gguf"))
    with llm.Model(tmp_path / "model.gguf", kv_type="f32") as model:
        for ids in (IDS[:1], IDS[:20], IDS):
            expected = unit_mean(decoder.hidden(ids))
            assert np.abs(model.embed(ids) - expected).max() < TOLERANCE


@pytest.mark.peer
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_llama_cpp_agrees(tmp_path, architecture):
    write_model(tmp_path / "model.gguf", architecture)
    server = start_server(tmp_path / "model.gguf", N_CTX, embedding=True)
    with llm.Model(tmp_path / "model.gguf", kv_type="f32") as model:
        for ids in (IDS[:1], IDS[:20], IDS[: N_CTX - 1]):
            (answer,) = post(server, "embedding", {"content": ids})
            (expected,) = answer["embedding"]
            assert np.abs(model.embed(ids) - np.array(expected)).max() < TOLERANCE
