"""llama.cpp as the tests use it: a server in this process (the wheel xllamacpp) with F32 keys and
values and no flash attention. It has no call for logits, so log-probabilities come from its HTTP
/completion with n_probs = the whole vocabulary."""

import json
import urllib.request

import numpy as np
import pytest


def start_server(path, n_ctx: int, embedding: bool = False):
    """Skips the test where the wheel is not installed. embedding: it answers with mean-pooled
    embeddings and nothing else."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp (xllamacpp) is not installed")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = str(path), n_ctx, 1, False
    params.port, params.verbosity = 0, -1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.embedding = embedding
    if embedding:
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(params)


def post(server, endpoint: str, body: dict) -> dict:
    request = urllib.request.Request(
        f"{server.listening_address}/{endpoint}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def complete(server, prompt, n_tokens: int, **options) -> dict:
    """Greedy completion of text or ids, as the server answers it."""
    body = {"prompt": prompt, "n_predict": n_tokens, "temperature": 0, "cache_prompt": False}
    return post(server, "completion", body | options)


def next_logprobs(server, ids: list[int], n_vocab: int) -> np.ndarray:
    """Log-probabilities of every token after ids, (n_vocab,) float64; none may be missing."""
    answer = complete(server, ids, 1, n_probs=n_vocab)
    out = np.full(n_vocab, np.nan)
    for entry in answer["completion_probabilities"][0]["top_logprobs"]:
        out[entry["id"]] = entry["logprob"]
    assert not np.isnan(out).any(), f"{np.isnan(out).sum()} of {n_vocab} tokens did not come back"
    return out


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Of each row, in float64."""
    x = np.asarray(logits, np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
