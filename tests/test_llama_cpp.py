"""llama.cpp (the wheel xllamacpp) loads our file and gives the same log-probabilities."""

import numpy as np
import pytest
from llama_server import log_softmax, next_logprobs, start_server
from models import write_trained

import llm
from conftest import ROOT
from llm.config import ModelConfig
from llm.parameter_file import Vocabulary

TOLERANCE = 1e-4  # of a log-probability: float32 sums in another order
PROMPTS = [[72], [72, 101, 108, 108, 111], list(range(40, 90))]


def ascii_vocabulary() -> Vocabulary:
    """A token of half a UTF-8 character would be held back by the server."""
    tokens = [bytes([b]) for b in range(128)] + [b"th", b"<|endoftext|>"]
    return Vocabulary(tokens, np.array([[ord("t"), ord("h")]]), "gpt-2", bos=129, eos=129)


@pytest.mark.peer
@pytest.mark.parametrize(("n_kv_head", "tied"), [(2, True), (4, False)])
def test_llama_cpp_agrees(tmp_path, n_kv_head, tied):
    config = ModelConfig(
        n_vocab=130,
        n_ctx=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_kv_head=n_kv_head,
        n_ff=64,
        tied_output=tied,
    )
    path = tmp_path / "weights.bin"
    write_trained(path, config, vocabulary=ascii_vocabulary(), probes=[[72, 101]])
    server = start_server(path, n_ctx=64)
    with llm.Model(path, kv_type="f32") as model:
        for ids in PROMPTS:
            ours = log_softmax(model.logits(ids)[-1])
            assert np.abs(ours - next_logprobs(server, ids, config.n_vocab)).max() < TOLERANCE


@pytest.mark.peer
def test_nats_per_token_of_a_real_text(smollm2):
    """Within 0.003 on 1,500 tokens: single tokens differ by 0.09, since activations are rounded in
    two ways, so that the means of two right programs differ by about 0.002."""
    from bench.bench_nats import llama_cpp  # asks for one token at a time: a minute

    text = (ROOT / "tests/vectors/genesis.txt").read_text(encoding="utf-8")
    with llm.Model(smollm2, kv_type="f32") as model:
        ids = model.tokenize(text)[:1501]
        assert len(ids) == 1501
        ours = model.score(ids)[0][1:].mean()
    theirs = llama_cpp(start_server(smollm2, n_ctx=1502), ids).mean()
    assert abs(ours - theirs) < 0.003
