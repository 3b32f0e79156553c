"""Rounding that serves a text: the error of what a layer puts out, not of its weights. Layer 5.

"GPTQ" (Frantar et al. 2022): with the second moments H = X^T X of a matrix's inputs the error of
its output is e H e^T for the rounding error e of each row. Columns are rounded in order, and what
one loses the columns behind it make good as well as they can: with H^-1 = U^T U, U upper
triangular, the error of column j goes on times -U[j, k] / U[j, j], and what is left of it costs
1 / U[j, j]^2 of its square, which is the importance that the search for scales minds. The C side
does the rows.

The moments come from running the text through the model as it is before rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from llm._llm import lib

from .context import Context
from .engine import Model
from .quantize import TYPES, Rounding, quantize

MAX_TOKENS = 3 << 15  # about seven minutes of one core for SmolLM2
WINDOW = 512
MEMORY = 1 << 30  # of moments at a time; a model with more reads the text again
DAMPING = 0.001  # of the mean diagonal, for directions that the text never took; measured

# Matrices that read the same input as another.
SHARED = {"attn_k": "attn_q", "attn_v": "attn_q", "ffn_up": "ffn_gate"}


def input_of(name: str, tensors: Mapping) -> str:
    """The tensor that stands for all with the same input."""
    block, _, part = name.removesuffix(".weight").rpartition(".")
    other = f"{block}.{SHARED.get(part, part)}.weight"
    return other if other in tensors else name


def calibrated_rounding(
    model: Model,
    text: bytes,
    types: Mapping[str, str],
    say: Callable[[str], None] = lambda what: None,
) -> Rounding:
    """What quantize_file rounds with: for the matrices of the layers, where their type is one of
    blocks; others are left to plain rounding. say: told of each part of the text that is read."""
    ids = model.tokenize(text)
    if len(ids) < 2:
        raise ValueError("the calibration text has less than two tokens")
    wanted = [
        name
        for name, kind in types.items()
        if name.startswith("blk.")
        and len(model.tensors.shape(name)) == 2
        and lib.llm_type_describe(TYPES[kind]).n_per_block > 1
        and kind != model.tensors.type_name(name)
    ]
    inputs = list(dict.fromkeys(input_of(name, model.tensors) for name in wanted))
    moments: dict[str, np.ndarray] = {}
    ready: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # of the last input

    def rounding(name: str, rows: np.ndarray, type_name: str) -> np.ndarray | None:
        if name not in wanted:
            return None
        key = input_of(name, model.tensors)
        if key not in ready:
            if key not in moments:
                moments.clear()
                names = _that_fit(model, inputs, inputs.index(key))
                moments.update(collect(model, ids, names, say))
            ready.clear()
            ready[key] = feedback_of(moments[key])
        importance, feedback = ready[key]
        return quantize(type_name, rows, importance, feedback)

    return rounding


def _that_fit(model: Model, inputs: list[str], first: int) -> list[str]:
    out, n_bytes = [], 0
    for name in inputs[first:]:
        n_bytes += 4 * model.tensors.shape(name)[-1] ** 2
        if out and n_bytes > MEMORY:
            break
        out.append(name)
    return out


def collect(
    model: Model,
    ids: list[int],
    names: list[str],
    say: Callable[[str], None] = lambda what: None,
) -> dict[str, np.ndarray]:
    """The mean of x^T x, (n_in, n_in) float32, of the input of each matrix over windows of a text,
    evenly spread where it is longer than MAX_TOKENS."""
    address = {model.tensors.address(name): name for name in names}
    sums = {name: np.zeros((model.tensors.shape(name)[-1],) * 2, np.float32) for name in names}

    def observe(weight: int, x: np.ndarray) -> None:
        name = address.get(weight)
        if name is not None:
            sums[name] += x.T @ x

    n = min(WINDOW, model.config.n_ctx_train, len(ids))
    n_windows = len(ids) // n
    n_used = min(n_windows, max(1, MAX_TOKENS // n))
    context = Context(model, n_ctx=n)
    for i in range(n_used):
        if i % -(-n_used // 10) == 0:
            say(f"calibration, {i * n:,} of {n_used * n:,} tokens")
        at = i * n_windows // n_used * n
        context.truncate(0)
        with context.observed(observe):
            context.eval(ids[at : at + n], n_rows=0)
    for total in sums.values():
        total /= n_used * n
    return sums


def feedback_of(moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The importance of each column (n_in) and the feedback (n_in, n_in) for llm_quantize."""
    h = moments.astype(np.float64)
    damping = DAMPING * np.mean(np.diag(h))
    h[np.diag_indices_from(h)] += damping if damping > 0 else 1.0
    # H = R R^T with R upper triangular, by the Cholesky factor of H turned around; U = R^-1
    r = np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]
    u = np.linalg.inv(r)
    diagonal = np.diag(u).copy()
    feedback = np.triu(u / diagonal[:, None]).astype(np.float32)
    importance = diagonal**-2
    return (importance / importance.mean()).astype(np.float32), feedback
