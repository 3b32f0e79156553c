"""llama.cpp (the wheel xllamacpp) loads our file and gives the same log-probabilities: F32 cache,
no flash attention. It has no call for logits, so they come from its HTTP /completion."""

import json
import urllib.request

import numpy as np
import pytest
from models import provenance, random_params

import llm
from llm.config import ModelConfig
from llm.parameter_file import Vocabulary, export_model

TOLERANCE = 1e-4  # of a log-probability: float32 sums in another order
PROMPTS = [[72], [72, 101, 108, 108, 111], list(range(40, 90))]


def ascii_vocabulary() -> Vocabulary:
    """A token of half a UTF-8 character would be held back by the server."""
    tokens = [bytes([b]) for b in range(128)] + [b"th", b"<|endoftext|>"]
    return Vocabulary(tokens, np.array([[ord("t"), ord("h")]]), "gpt-2", bos=129, eos=129)


def completion(server, ids: list[int], n_vocab: int) -> np.ndarray:
    """Log-probabilities of every token after ids, (n_vocab,)."""
    body = {"prompt": ids, "n_predict": 1, "temperature": 0, "n_probs": n_vocab}
    request = urllib.request.Request(
        f"{server.listening_address}/completion",
        json.dumps(body | {"cache_prompt": False}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found = json.load(answer)["completion_probabilities"][0]["top_logprobs"]
    out = np.full(n_vocab, np.nan)
    for entry in found:
        out[entry["id"]] = entry["logprob"]
    return out


@pytest.mark.peer
@pytest.mark.parametrize(("n_kv_head", "tied"), [(2, True), (4, False)])
def test_llama_cpp_agrees(tmp_path, n_kv_head, tied):
    xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp (xllamacpp) is not installed")
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
    export_model(
        path, config, random_params(config), ascii_vocabulary(), provenance(), [[72, 101]], 4
    )
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = str(path), 64, 1, False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    with llm.Model(path, kv_type="f32") as model:
        for ids in PROMPTS:
            logits = model.logits(ids)[-1].astype(np.float64)
            ours = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
            theirs = completion(server, ids, config.n_vocab)
            assert not np.isnan(theirs).any()
            assert np.abs(ours - theirs).max() < TOLERANCE
