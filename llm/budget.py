"""One dial: minutes, tokens, steps or a depth, and every size that follows. Layer 3.

choose() fills in what is not given, from the speed of this machine where minutes are to be kept;
split() turns what is left of the minutes into a number of steps, once. Both are pure; the clocks
are the caller's. Sources: Hoffmann et al. 2022 for the ratio of tokens to parameters, DeepSeek-AI
2024 (arXiv 2401.02954) for how the batch grows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from .settings import BUDGETS, DEFAULT_MINUTES, HEAD_WIDTH, Settings

# Settings.tokens_per_param: the widest model that is affordable sees 2.5 tokens for each parameter,
# not Hoffmann's 20, which holds where no text is read twice. Of five minutes on the default corpus,
# one seed each (bench/README.md, "A recipe for minutes"), 128 wide with 6.3 tokens a parameter and
# 160 wide with 2.2 were equal within 0.004 bits per byte; the wider one has more to gain.
WIDTHS = range(64, 1025, 32)

# Sequences of a step up to 2e14 operations, about five minutes on two cores; from there the batch
# grows with the 0.327th power, as DeepSeek found for its own models.
BATCH, BATCH_FLOPS, BATCH_POWER = {"adamw": 4, "muon": 8}, 2e14, 0.3271

VALIDATION_SHARE = 0.05  # of the minutes, at most
MARGIN = 0.01  # of the minutes, for what nobody foresaw


def choose(
    settings: Settings, n_vocab: int, measure: Callable[[Settings], float], n_ranks: int = 1
) -> Settings:
    """Fills in sizes, batch, steps (but for minutes), warm-up, 3 % of the steps, and a slot for
    each rank. measure gives floating-point operations a second of settings with every size, and is
    called for minutes."""
    s = settings
    if s.depth is not None:
        s = replace(s, n_layer=s.depth, n_embd=s.n_embd or s.depth * HEAD_WIDTH)
    elif all(getattr(s, name) is None for name in BUDGETS):
        s = replace(s, minutes=DEFAULT_MINUTES)
    sized = s.with_width(s.n_embd or s.default_width)
    rate = None
    if s.minutes is not None and None in (s.n_embd, s.batch, s.warmup):
        rate = measure(sized)

    def tokens_for(config) -> float:
        if s.steps is not None:
            return s.steps * (s.batch or s.slot_sequences or BATCH[s.optimizer]) * s.n_ctx
        if s.tokens is not None:
            return s.tokens
        if s.minutes is not None:
            return 60 * s.minutes * rate / config.flops_per_token if rate else 0
        return s.tokens_per_param * config.n_multiplied

    if s.n_embd is None and s.steps is None:
        sized = s.with_width(choose_width(s, n_vocab, tokens_for))
    config = sized.model_config(n_vocab)
    n_tokens = tokens_for(config)
    if s.batch is None:
        flops = 0 if s.steps is not None else n_tokens * config.flops_per_token
        sized = replace(sized, batch=choose_batch(flops, s.slot_sequences, BATCH[s.optimizer]))
    n_steps = max(1, round(n_tokens / sized.step_tokens))
    if s.minutes is None and s.steps is None:
        sized = replace(sized, steps=n_steps)
    warmup = max(1, n_steps * 3 // 100) if s.warmup is None else s.warmup
    return replace(sized.with_slots(n_ranks), warmup=warmup)


def choose_width(settings: Settings, n_vocab: int, tokens_for) -> int:
    """The widest model that sees tokens_per_param tokens for each weight of its products."""

    def is_affordable(n_embd: int) -> bool:
        config = settings.with_width(n_embd).model_config(n_vocab)
        return tokens_for(config) >= settings.tokens_per_param * config.n_multiplied

    n, heads = settings.n_head, settings.head_widths
    widths = [w for w in WIDTHS if not n or (w % n == 0 and w // n in heads)]
    if not widths:
        raise ValueError(f"n_head is {settings.n_head}: give --n-embd too")
    return max(filter(is_affordable, widths), default=widths[0])


def choose_batch(flops: float, slot_sequences: int | None, least: int) -> int:
    """A power of two of sequences (times a given slot), `least` at least."""
    wanted = least * max(1.0, flops / BATCH_FLOPS) ** BATCH_POWER
    batch = slot_sequences or least
    while 2 * batch <= wanted:
        batch *= 2
    return batch


@dataclass(frozen=True)
class Costs:
    """Seconds, as measured before the first step."""

    validation: float
    sample: float
    save: float
    export: float


def split(
    settings: Settings, spent: float, step_seconds: float, n_samples: int, costs: Costs
) -> tuple[int, int]:
    """(steps, validations) that the minutes still hold after `spent` seconds of them; the parameter
    file is written within them."""
    budget = 60 * settings.minutes * (1 - MARGIN)
    n_validations = max(3, min(10, int(VALIDATION_SHARE * budget / costs.validation)))
    n_saves = 1 + n_validations + budget / max(settings.save_seconds, step_seconds)
    left = budget - spent - costs.export - n_samples * costs.sample
    left -= n_validations * costs.validation
    # Saving after every step (save_seconds 0) is part of the step, not of what is left.
    every_save = settings.save_seconds <= step_seconds
    step_seconds += costs.save if every_save else 0
    left -= 0 if every_save else n_saves * costs.save
    return max(1, int(left / step_seconds)), n_validations
