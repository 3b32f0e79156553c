"""Which steps are not taken: gradients that are no numbers, losses and norms that leap. Layer 3.

The rule is a pure function of what was recorded so far, so that a resumed run judges alike. Three
faults in a row send the run back to its last good checkpoint at half the rate, past the examples
that it met (after PaLM, Chowdhery et al. 2022, section 5.1). Thresholds are ours, set by judgement
and not by trials: far out, since clipping deals with what lies below.
"""

from __future__ import annotations

import math

import numpy as np

WINDOW = 128  # steps that a new one is compared with
MIN_STEPS = 32  # before that only what is not finite is a fault
MIN_LEAP = 2.0  # nats per token over the median, and
DEVIATIONS = 10.0  # times the deviation by the median of absolute deviations
NORM_LEAP = 20.0  # times the median norm
IN_A_ROW = 3
MAX_ROLLBACKS = 5


def fault(
    loss: float, norm: float, losses: list, norms: list, skipped: list, since: int
) -> str | None:
    """Why this step must be skipped, or None. losses, norms: of all steps before; skipped: those
    that do not count; since: the first step after the last rollback."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        return f"the loss is {loss:.4g}, the gradient {norm:.4g}"
    first = max(since, len(losses) - WINDOW)
    taken = sorted(set(range(first, len(losses))) - set(skipped[-WINDOW:]))
    if len(taken) < MIN_STEPS:
        return None
    # In the precision of a checkpoint, which a resumed run reads.
    usual = np.array([losses[i] for i in taken], np.float32)
    middle = float(np.median(usual))
    deviation = 1.4826 * float(np.median(np.abs(usual - np.float32(middle))))
    if loss > middle + max(MIN_LEAP, DEVIATIONS * deviation):
        return f"the loss leaps from {middle:.3f} to {loss:.3f}"
    usual_norm = float(np.median(np.array([norms[i] for i in taken], np.float32)))
    if norm > NORM_LEAP * usual_norm:
        return f"the gradient leaps from {usual_norm:.3g} to {norm:.3g}"
    return None


def is_lost(step: int, skipped: list, since: int) -> bool:
    """Whether the IN_A_ROW steps before `step` were all skipped, after the last rollback."""
    return skipped[-IN_A_ROW:] == [*range(step - IN_A_ROW, step)] and step - IN_A_ROW >= since
