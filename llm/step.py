"""One step of a run: the gradient of all slots, over all ranks, and what becomes of it. Layer 9.

A rank computes the slots of its own aligned subtree one after the other. The sum of a block's part
of the gradient travels to the ranks that own it while the backward pass goes on below that block;
then each rank's optimizer changes what it owns, and all ranks get the new parameters. Source:
Rajbhandari et al. 2020 (ZeRO, stage 1); DESIGN, section 5, for the tree.
"""

from __future__ import annotations

import math
import time
from collections import deque

from . import guard
from .distributed import IN_FLIGHT
from .optim import SCHEDULES, clip_scale
from .run_files import Run


def take_step(run: Run) -> str | None:
    """Returns why the step was skipped, if it was."""
    settings, model, start = run.settings, run.model, time.perf_counter()
    run.step_begun = run.step
    loss, norm = summed_gradient(run)
    fault = guard.fault(loss, norm, run.losses, run.norms, run.skipped, run.since)
    # n_steps is not known yet only during the warm-up, which does not ask for it.
    schedule = SCHEDULES[settings.schedule]
    rate = schedule(run.step, run.n_steps or 0, settings.warmup, settings.lr)
    rate *= 0.5 ** len(run.rollbacks)
    if fault is None:
        run.optimizer.step(model.trained, model.grads, rate, clip_scale(norm, settings.clip))
        run.group.all_gather(model.trained, run.optimizer.shards)
    else:  # curves repeat the point before where there is no number
        run.skipped.append(run.step)
        loss = loss if math.isfinite(loss) else [0.0, *run.losses[-1:]][-1]
        norm = norm if math.isfinite(norm) else [0.0, *run.norms[-1:]][-1]
    run.losses.append(loss)
    run.rates.append(rate)
    run.norms.append(norm)
    run.step_seconds.append(time.perf_counter() - start)
    run.step += 1
    run.step_begun = None
    return fault


def summed_gradient(run: Run) -> tuple[float, float]:
    """Leaves in model.grads, of what this rank's optimizer owns, the gradient of all slots; returns
    the mean loss and the norm. Parts travel while the backward pass goes on below them."""
    group, grads, optimizer = run.group, run.model.grads, run.optimizer
    ends: deque = deque()

    def ready(part: slice) -> None:
        ends.append(group.begin_reduce(grads, optimizer.shards, part))
        if len(ends) > IN_FLIGHT:
            ends.popleft()()

    n_own = run.settings.n_slots // group.size
    loss = gradient(run, run.step, group.rank * n_own, n_own, ready)
    for end in ends:
        end()
    shared = group.share((loss, optimizer.square_sums(grads)))
    losses, squares = zip(*shared, strict=True)
    return tree_mean(losses), math.sqrt(math.fsum(x for own in squares for x in own))


def gradient(run: Run, step: int, first: int, n_slots: int, ready=lambda part: None) -> float:
    """Leaves in model.grads what the slots first .. first + n_slots - 1 add to the step's gradient;
    returns their mean loss. Slots are summed in a binary tree, so that whoever holds an aligned
    subtree adds the same numbers. ready: is told each part of the sum as soon as it is final."""
    grads, losses, waiting = run.model.grads, [], []
    for slot in range(n_slots):
        lefts = [waiting.pop() for _ in range(n_trailing_ones(slot))]
        is_last = slot == n_slots - 1

        def add(part: slice, lefts=lefts, is_last=is_last) -> None:
            for left in lefts:
                run.model.ops.combine(grads[part], 1.0, left[part], 1.0, grads[part])
            if is_last:
                ready(part)

        batch = run.examples.slot(step, first + slot)
        scale = 1 / run.settings.n_slots
        losses.append(run.model.loss_and_grad(*batch, scale=scale, ready=add))
        if not is_last:
            waiting.append(grads.copy())
    return tree_mean(losses)


def n_trailing_ones(n: int) -> int:
    return (~n & (n + 1)).bit_length() - 1


def tree_mean(values) -> float:
    """Of a power of two of values, neighbours first."""
    while len(values) > 1:
        values = [(a + b) / 2 for a, b in zip(values[::2], values[1::2], strict=True)]
    return values[0]
