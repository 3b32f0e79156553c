"""A parameter file of 1.1 thousand million weights that mean nothing, for speed only:
python bench/random_file.py OUT TYPE

Each matrix repeats 64 rounded random rows: what the arithmetic does not know, the processor's
caches do not either, and a file of gigabytes is written in seconds. Tokens are the 256 bytes, one
merge that llama.cpp asks for, and fillers.
"""

import itertools
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from llm.config import ModelConfig, layout
from llm.parameter_file import (
    Entry,
    TensorData,
    ValueType,
    Vocabulary,
    write_parameter_file,
)
from llm.quantize import fitting, quantize

SHAPE = ModelConfig(
    32000, 2048, n_embd=2048, n_layer=22, n_head=32, n_kv_head=4, n_ff=5632, tied_output=False
)
N_ROWS = 64


def vocabulary(n_vocab: int) -> Vocabulary:
    tokens = [bytes([b]) for b in range(256)] + [b"th"]
    tokens += [b"<filler %d>" % i for i in range(len(tokens), n_vocab)]
    return Vocabulary(tokens, np.array([[ord("t"), ord("h")]]), "gpt-2", eos=n_vocab - 1)


def write_random_file(path: str, type_name: str, config: ModelConfig = SHAPE) -> None:
    """Embedding and output of a Q4 file are Q8_0, as published ones keep them finer."""
    rng = np.random.default_rng(0)

    def tensor(name: str, shape: tuple[int, ...]) -> TensorData:
        if len(shape) == 1:
            return TensorData(name, shape, "F32", np.ones(shape, np.float32))
        outer = name in ("token_embd.weight", "output.weight")
        kind = "Q8_0" if outer and type_name.startswith("Q4") else fitting(type_name, shape[1])

        def data():
            rows = rng.standard_normal((N_ROWS, shape[1]), np.float32) * np.float32(0.02)
            raw = quantize(kind, rows)
            yield from itertools.repeat(raw, shape[0] // N_ROWS)
            yield raw[: raw.size // N_ROWS * (shape[0] % N_ROWS)]

        return TensorData(name, shape, kind, data)

    kinds = {int: ValueType.UINT32, float: ValueType.FLOAT32, str: ValueType.STRING}
    metadata = [Entry(key, value, kinds[type(value)]) for key, value in config.to_gguf().items()]
    metadata += vocabulary(config.n_vocab).entries()
    write_parameter_file(path, metadata, [tensor(e.gguf_name, e.shape) for e in layout(config)])


if __name__ == "__main__":
    write_random_file(*sys.argv[1:])
