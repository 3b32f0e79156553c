"""The engine against llama.cpp on files that we did not write: a published model and seeded models
by the public gguf package, so that neither our writer nor our habits can hide an error. (Our own
exports against llama.cpp: test_llama_cpp.py.)"""

import numpy as np
import pytest
from gguf_models import N_CTX, N_VOCAB, write_model
from llama_server import complete, log_softmax, next_logprobs, post, start_server
from rounding import SUPER_BLOCKS

import llm
from conftest import ROOT
from llm._llm import ffi, lib

pytestmark = pytest.mark.peer

PROMPTS = [[72], [72, 101, 108, 108, 111], *(list(range(n, n + 40)) for n in range(0, 88, 8))]

QUANTIZED = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"]
EXACT = 1e-4  # of a log-probability: float32 sums in another order
# Other types round activations, each program in its own way, so neither is right. Our distance from
# the same weights in F32 may be so many times llama.cpp's own (root mean square over the prompts;
# 0.89 to 1.06 over three seeds for the quantized types, none at all for F16 and BF16).
NOT_WORSE = 1.25
# Kullback-Leibler divergence from llama.cpp, in nats, on SmolLM2: 0.0015 to 0.012 on these prompts,
# and each is 0.001 to 0.012 away from the same weights in F32.
SMOLLM2_NATS = 0.04
# Gemma 3 270M: 0.0004 to 0.017, and from float64 over the expanded weights ours is 0.4 of
# llama.cpp's.
GEMMA3_NATS = 0.04
SMOLLM2_PROMPTS = ["The capital of France is", "def fibonacci(n):\n", "In 1969 the first man"]


def write_llama(path, kind: str, **options) -> None:
    wide = {"n_embd": 256, "n_ff": 256} if kind in SUPER_BLOCKS else {}
    write_model(path, "llama", types=[kind], **wide, **options)


@pytest.mark.parametrize("kind", QUANTIZED)
def test_expansion_is_theirs(kind):
    """Blocks of any bits, but for float16 scales that are finite: the same float32, bit for bit."""
    gguf = pytest.importorskip("gguf", reason="the public gguf package is not installed")
    number = gguf.GGMLQuantizationType[kind]
    n_per_block, n_bytes = gguf.GGML_QUANT_SIZES[number]
    blocks = np.random.default_rng(3).integers(0, 256, (200, n_bytes), np.uint8)
    for high_byte in (n_bytes - 1,) if kind == "Q6_K" else (1, 3):
        blocks[:, high_byte] &= 0xBB
    theirs = gguf.quants.dequantize(blocks, number).ravel()
    ours, n = ffi.new("float[]", theirs.size), theirs.size
    assert lib.llm_dequantize(number, ffi.from_buffer(blocks), n, ours, ffi.NULL) == lib.LLM_OK
    assert np.array_equal(np.frombuffer(ffi.buffer(ours), np.uint32), theirs.view(np.uint32))


def both_logprobs(path) -> tuple[np.ndarray, np.ndarray]:
    """Ours and llama.cpp's, (len(PROMPTS), N_VOCAB) each."""
    server = start_server(path, N_CTX)
    with llm.Model(path, kv_type="f32") as model:
        ours = np.array([log_softmax(model.logits(ids)[-1]) for ids in PROMPTS])
    return ours, np.array([next_logprobs(server, ids, N_VOCAB) for ids in PROMPTS])


def test_float32_agrees(tmp_path):
    write_llama(tmp_path / "f32.gguf", "F32")
    ours, theirs = both_logprobs(tmp_path / "f32.gguf")
    assert (np.ptp(theirs, axis=1) > 3).all()  # far from uniform, so that agreement means something
    assert np.abs(ours - theirs).max() < EXACT


@pytest.mark.parametrize("kind", ["F16", "BF16", *QUANTIZED])
def test_other_types_are_as_close_to_float32(tmp_path, kind):
    write_llama(tmp_path / "kind.gguf", kind)
    write_llama(tmp_path / "f32.gguf", kind, expanded=True)
    ours, theirs = both_logprobs(tmp_path / "kind.gguf")
    _, exact = both_logprobs(tmp_path / "f32.gguf")

    def distance(logprobs):
        return np.sqrt(np.mean((logprobs - exact) ** 2))

    assert distance(ours) < NOT_WORSE * distance(theirs) + EXACT


def test_smollm2(smollm2):
    """A published model: ids, the distribution after a prompt, and a fact."""
    server = start_server(smollm2, n_ctx=256)
    with llm.Model(smollm2, kv_type="f32") as model:
        n_vocab = model.config.n_vocab
        for text in SMOLLM2_PROMPTS:
            ids = model.tokenize(text)
            assert ids == post(server, "tokenize", {"content": text})["tokens"]
            ours = log_softmax(model.logits(ids)[-1])
            theirs = next_logprobs(server, ids, n_vocab)
            assert np.sum(np.exp(theirs) * (theirs - ours)) < SMOLLM2_NATS
        ours = model.generate(SMOLLM2_PROMPTS[0], max_tokens=2, temperature=0)
        assert ours == complete(server, SMOLLM2_PROMPTS[0], n_tokens=2)["content"] == " Paris."


def test_gemma3(gemma3):
    """The same of a model with K-quants, SentencePiece and a window of 512, shorter and longer than
    that; and the tokens that follow."""
    server = start_server(gemma3, n_ctx=1024)
    long_text = (ROOT / "LICENSE").read_text(encoding="utf-8") * 3
    with llm.Model(gemma3, kv_type="f32", n_ctx=1024) as model:
        assert len(model.tokenize(long_text)) > model.config.sliding_window + 100
        for text in (*SMOLLM2_PROMPTS, long_text):
            ids = model.tokenize(text)
            asked = {"content": text, "add_special": True}
            assert ids == post(server, "tokenize", asked)["tokens"]
            answer = complete(server, ids, 8, n_probs=1000, return_tokens=True)
            ours = log_softmax(model.logits(ids)[-1])
            theirs = answer["completion_probabilities"][0]["top_logprobs"]
            nats = sum(np.exp(e["logprob"]) * (e["logprob"] - ours[e["id"]]) for e in theirs)
            assert abs(nats) < GEMMA3_NATS
            steps = model.steps(ids, max_tokens=8, temperature=0)
            assert [s.id for s in steps if s.id is not None] == answer["tokens"]
