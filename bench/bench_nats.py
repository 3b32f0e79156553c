"""Nats per token of a real text by this engine and by llama.cpp (the wheel xllamacpp), on one
parameter file with keys and values in F32. llama.cpp's server scores no text: it is asked for one
token at a time, each made certain by a logit bias, and the probability that comes back is the raw
one. Writes nothing; takes about 30 ms a token.

    .venv/bin/python bench/bench_nats.py weights/MODEL.gguf README.md
"""

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from llama_server import post, start_server  # noqa: E402

import llm  # noqa: E402


def llama_cpp(server, ids: list[int]) -> np.ndarray:
    out = []
    for i, wanted in enumerate(ids[1:], 1):
        body = {"prompt": ids[:i], "n_predict": 1, "temperature": 0, "cache_prompt": True}
        body |= {"n_probs": 1, "logit_bias": [[wanted, 1e4]]}
        (answer,) = post(server, "completion", body)["completion_probabilities"]
        assert answer["id"] == wanted
        out.append(-answer["logprob"])
    return np.array(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--n", type=int, default=1600, help="most tokens that are scored")
    options = parser.parse_args()
    with llm.Model(options.model, kv_type="f32", n_ctx=options.n) as model:
        ids = model.tokenize(options.text.read_text(encoding="utf-8"))[: options.n]
        mine = model.score(ids)[0][1:]
    peers = llama_cpp(start_server(options.model, n_ctx=options.n + 1), ids)
    print(f"{len(ids)} tokens of {options.text.name}")
    print(f"ours       {mine.mean():.5f} nats per token")
    print(f"llama.cpp  {peers.mean():.5f}")
    print(
        f"difference {mine.mean() - peers.mean():+.5f}; of one token {np.std(mine - peers):.3f} rms"
    )


if __name__ == "__main__":
    main()
