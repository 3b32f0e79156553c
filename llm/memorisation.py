"""How much of its text a model repeats word for word. Layer 4.

A prompt of P tokens is taken from the text and continued greedily; counted is for how many tokens
the continuation is the text itself. The same is counted for held-out windows, whose agreement comes
from the language, not from memory. While the continuation agrees with the text, its context is the
text: one pass over a window of P + N tokens tells at every place whether the likeliest token is the
next one, and nothing has to be generated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PROMPT, CONTINUED = 32, 32  # tokens
N_WINDOWS = 64  # of each kind
BATCH = 4


@dataclass(frozen=True)
class Memorisation:
    """The length of the repeated run of each window, 0 to n_tokens."""

    n_prompt: int
    n_tokens: int
    training: np.ndarray
    held_out: np.ndarray

    def verbatim(self, runs: np.ndarray) -> float:
        """Share of the windows that are repeated to their end."""
        return float(np.mean(runs == self.n_tokens))

    def figures(self) -> dict[str, int | float]:
        """For the parameter file, by key behind "two_file."."""
        return {
            "memorisation.training": self.verbatim(self.training),
            "memorisation.held_out": self.verbatim(self.held_out),
            "memorisation.training_run": float(self.training.mean()),
            "memorisation.held_out_run": float(self.held_out.mean()),
            "memorisation.prompt_tokens": self.n_prompt,
            "memorisation.tokens": self.n_tokens,
            "memorisation.windows": len(self.training),
        }


def measure_memorisation(model, examples, n_steps: int, held_out: np.ndarray) -> Memorisation:
    """model: has logits((B, T)) -> (B, T, V). Windows of training are the beginnings of evenly
    spread sequences of the first n_steps steps, at least one; held_out: (n, T) tokens, T >= 2, cut
    into pieces."""
    length = min(PROMPT + CONTINUED, examples.n_ctx, held_out.shape[1])
    n_prompt = length // 2
    pieces = held_out[:, : held_out.shape[1] // length * length].reshape(-1, length)
    return Memorisation(
        n_prompt,
        length - n_prompt,
        repeated(model, seen_windows(examples, n_steps)[:, :length], n_prompt),
        repeated(model, pieces[spread(len(pieces))], n_prompt),
    )


def spread(n: int) -> np.ndarray:
    """At most N_WINDOWS of 0 .. n - 1, evenly."""
    n_used = min(n, N_WINDOWS)
    return np.arange(n_used) * n // n_used


def seen_windows(examples, n_steps: int) -> np.ndarray:
    """(n, n_ctx) tokens of sequences that the first n_steps steps trained on."""
    slot_size = examples.slot_sequences
    batch = examples.n_slots * slot_size
    windows = []
    for sequence in spread(n_steps * batch).tolist():
        step, rest = divmod(sequence, batch)
        windows.append(examples.slot(step, rest // slot_size)[0][rest % slot_size])
    return np.stack(windows)


def repeated(model, windows: np.ndarray, n_prompt: int) -> np.ndarray:
    """For each window (n, T): how many tokens behind the prompt greedy continuation repeats before
    it first differs, 0 to T - n_prompt."""
    runs = []
    for at in range(0, len(windows), BATCH):
        batch = windows[at : at + BATCH]
        likeliest = model.logits(batch[:, :-1])[:, n_prompt - 1 :].argmax(-1)
        runs.append(np.logical_and.accumulate(likeliest == batch[:, n_prompt:], axis=1).sum(1))
    return np.concatenate(runs)
