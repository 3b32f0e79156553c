"""Scores of texts in one window and in several, against the logits of each window."""

import numpy as np
import pytest
from llama_server import log_softmax
from models import TINY, write_trained

import llm

IDS = [(7 * i * i + 3 * i) % TINY.n_vocab for i in range(50)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("score") / "tiny.bin"
    write_trained(path)
    with llm.Model(path, n_threads=2) as model:
        yield model


def test_score_agrees_with_logits_and_windows(model):
    each, total = model.score(IDS)
    logp = log_softmax(model.logits(IDS))
    expected = -logp[np.arange(49), IDS[1:]]
    assert np.isnan(each[0]) and np.allclose(each[1:], expected, atol=1e-5)
    assert total == pytest.approx(expected.sum(), abs=1e-4)
    long = (IDS * 4)[:150]  # windows of 64 from 0, 32, 64, 96: each token once
    each, total = model.score(long)
    assert np.isnan(each[0]) and np.isfinite(each[1:]).all()
    assert total == pytest.approx(each[1:].sum(dtype=np.float64), abs=1e-3)
    logp = log_softmax(model.logits(long[32:96]))
    assert each[64:96] == pytest.approx(-logp[np.arange(31, 63), long[64:96]], abs=1e-5)
    with pytest.raises(ValueError, match="nothing to score"):
        model.score([1])


def test_sliding_stride(model):
    """Each token once, from the first window of 64 that holds it, among those `stride` apart."""
    long = (IDS * 4)[:150]
    for stride in (1, 13, 32, 63):
        each, total = model.score(long, stride)
        expected = np.full(150, np.nan)
        end = 0
        for begin in range(0, 150, stride):
            window = long[begin : begin + 64]
            logp = log_softmax(model.logits(window))
            for at in range(max(end, 1), begin + len(window)):
                assert at < 64 or at - begin >= 64 - stride
                expected[at] = -logp[at - begin - 1, long[at]]
            end = begin + len(window)
            if end == 150:
                break
        assert np.allclose(each, expected, atol=1e-5, equal_nan=True)
        assert model.perplexity(long, stride) == pytest.approx(np.exp(total / 149))
    assert model.perplexity("the thing") == pytest.approx(
        np.exp(np.nanmean(model.score(model.tokenize("the thing"))[0])), rel=1e-5
    )
    for stride in (-1, 64, 2**40):
        with pytest.raises(ValueError, match="stride"):
            model.score(long, stride)
