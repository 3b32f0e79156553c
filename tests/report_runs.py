"""Runs as the report sees them at the end, without a training."""

from types import SimpleNamespace

import numpy as np
from models import TINY, byte_vocabulary

from llm.memorisation import Memorisation
from llm.settings import Settings


def finished_run(n_steps: int, **changes):
    tokens = np.frombuffer(b"the cat and the \xd0\xba\xd0\xbe\xd1\x82 " * 40, np.uint8)
    settings = Settings(
        n_embd=64, n_layer=2, n_head=4, n_kv_head=2, n_ff=96, n_ctx=64, lr=1e-3, batch=4
    )
    values = {
        "step": n_steps,
        "n_steps": n_steps,
        "is_done": True,
        "seconds": 12.0,
        "losses": [8.0 - i / 100 for i in range(n_steps)],
        "rates": [0.001] * n_steps,
        "norms": [1.0 + i % 3 for i in range(n_steps)],
        "step_seconds": [0.01] * n_steps,
        "validations": [[0, 0.0, 3.0]] + [[n_steps, 12.0, 2.5]] * bool(n_steps),
        "samples": [[n_steps, "the end"]],
        "bits_per_byte": 2.5,
        "n_tokens": n_steps * 256,
        "peak": 1e11,
        "prompt": "the",
        "memorisation": Memorisation(32, 32, np.array([0, 5, 32]), np.array([0, 1])),
        "settings": settings,
        "validation": SimpleNamespace(bytes_per_token=3.9),
        "examples": SimpleNamespace(tokens=tokens.astype(np.int32)),
        "vocabulary": byte_vocabulary(),
        "model": SimpleNamespace(
            config=TINY, ops=SimpleNamespace(n_threads=2, kernels="avx2", precision="fp32")
        ),
    }
    return SimpleNamespace(**(values | changes))
