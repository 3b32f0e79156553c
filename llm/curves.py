"""The pictures of a run: loss, rate, gradient, speed, memorisation, as PNG and as SVG. Layer 7.

A panel is a function that draws on axes; a picture is one panel or a grid of them. A long run is
drawn in BINS averages, so that a picture stays small. matplotlib is imported when something is
drawn.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence

import numpy as np

from .report import human

BINS = 300
BLUE, PALE, RED, GREY = "#2171b5", "#c6dbef", "#d94801", "#777777"
STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.edgecolor": GREY,
    "font.size": 9,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",  # the reader's own letters, sharp and searchable
}


def bins(values: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(middle step, mean, lowest, highest) of at most BINS runs of equal length of a number for
    each step; what is not known (NaN) is left out."""
    values = np.asarray(values, np.float64)
    steps = np.flatnonzero(np.isfinite(values)) + 1
    parts = [p for p in np.array_split(steps, min(BINS, max(1, len(steps)))) if len(p)]
    each = [values[part - 1] for part in parts]
    figures = (lambda p: p.mean(), lambda p: p.min(), lambda p: p.max())
    middle = np.array([part.mean() for part in parts])
    return middle, *(np.array([figure(part) for part in each]) for figure in figures)


def _clock(run) -> np.ndarray:
    """Seconds of training after 0, 1, 2 ... steps, without validations and saving."""
    return np.concatenate([[0.0], np.cumsum(np.nan_to_num(run.step_seconds))])


# ---- the panels ----


def loss_by_step(run, axes) -> None:
    _loss(run, axes, lambda steps: steps)
    axes.set_xlabel("step")
    axes.set_title("Loss by step")


def loss_by_second(run, axes) -> None:
    clock = _clock(run)
    _loss(run, axes, lambda steps: np.interp(steps, np.arange(len(clock)), clock))
    axes.set_xlabel("seconds of training, on the machine's clock")
    axes.set_title("Loss by second")


def _loss(run, axes, place) -> None:
    """place: from steps to the horizontal axis."""
    nats_per_bit = math.log(2) * run.validation.bytes_per_token
    middle, mean, low, high = (np.asarray(x) for x in bins(run.losses))
    if len(middle):
        bits = [x / nats_per_bit for x in (mean, low, high)]
        axes.fill_between(place(middle), bits[1], bits[2], color=PALE, lw=0)
        axes.plot(place(middle), bits[0], color=BLUE, lw=1.2, label="training")
        lowest = min(bits[0])
    steps, _, held = map(np.array, zip(*run.validations, strict=True))
    lowest = min([*held, *([lowest] if len(middle) else [])])
    axes.plot(place(steps), held, "o-", color=RED, ms=3.5, lw=1.2, label="held out")
    in_file = run.samples[-1][0] if run.samples else steps[-1]
    for i in {int(np.argmin(abs(steps - in_file))), len(steps) - 1}:
        is_last = i == len(steps) - 1
        axes.annotate(
            f"{held[i]:.3f}" + ("" if is_last else " in the file"),
            (place(steps)[i], held[i]),
            (0, 9) if is_last else (4, -14),
            textcoords="offset points",
            ha="right" if is_last and i else "left",
            color=RED,
            weight="bold" if steps[i] == in_file else "normal",
        )
    highest = max(held[0], held[-1])
    margin = max(0.02, 0.06 * (highest - lowest))
    axes.set_ylim(max(0, lowest - margin), highest + 2 * margin)
    axes.set_xlim(left=0)
    axes.set_ylabel("bits per byte")
    convert = (lambda bits: bits * nats_per_bit, lambda nats: nats / nats_per_bit)
    right = axes.secondary_yaxis("right", functions=convert)
    right.set_ylabel("nats per token", color=GREY)
    right.tick_params(colors=GREY)
    _legend(axes)


def _legend(axes) -> None:
    """Beside the title: inside it would cover curves that rise."""
    narrow = {"handlelength": 1.2, "columnspacing": 1.0, "borderaxespad": 0.2}
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, **narrow)


def learning_rate(run, axes) -> None:
    middle, mean, _, _ = bins(run.rates)
    unit = 10.0 ** math.floor(math.log10(run.settings.lr))
    axes.plot(middle, mean / unit, color=BLUE, lw=1.5)
    axes.set_title("Learning rate")
    axes.set_xlabel("step")
    axes.set_ylabel(f"rate of {run.settings.optimizer}, in units of {unit:g}")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.yaxis.set_major_formatter("{x:g}")


def gradient_norm(run, axes) -> None:
    middle, mean, low, high = bins(run.norms)
    if len(middle):
        axes.fill_between(middle, low, high, color=PALE, lw=0)
        axes.plot(middle, mean, color=BLUE, lw=1.2, label="before clipping")
        axes.set_yscale("log")
        ticks = [m * 10.0**e for e in range(-9, 10) for m in (1, 2, 5)]
        shown = [t for t in ticks if low.min() * 0.7 <= t <= high.max() * 1.5]
        axes.set_yticks(shown[:: max(1, len(shown) // 6)])
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    axes.axhline(run.settings.clip, color=RED, lw=1, ls="--", label="clipped to")
    axes.set_title("Gradient norm")
    axes.set_xlabel("step")
    axes.set_ylabel("norm")
    axes.set_xlim(left=0)
    _legend(axes)


def speed(run, axes) -> None:
    tokens = run.settings.step_tokens
    middle, seconds, low, high = bins(run.step_seconds)
    if len(middle):
        rates = [tokens / np.maximum(x, 1e-9) for x in (seconds, high, low)]
        axes.fill_between(middle, rates[1], rates[2], color=PALE, lw=0)
        axes.plot(middle, rates[0], color=BLUE, lw=1.2)
        axes.set_ylim(
            0, 1.5 * np.percentile(rates[0], 90)
        )  # some steps of a busy machine stand out
    axes.set_title("Speed")
    axes.set_xlabel("step")
    axes.set_ylabel("tokens per second")
    axes.set_xlim(left=0)
    axes.yaxis.set_major_formatter(lambda x, _: human(x))
    if run.peak > 0:
        of_peak = 100 * run.model.config.flops_per_token / run.peak
        convert = (lambda rate: rate * of_peak, lambda share: share / of_peak)
        right = axes.secondary_yaxis("right", functions=convert)
        right.set_ylabel("% of peak", color=GREY)
        right.tick_params(colors=GREY)


def memorisation(run, axes) -> None:
    """Share of windows of which at least so many tokens are repeated."""
    found = run.memorisation
    if found:
        lengths = np.arange(found.n_tokens + 1)
        for runs, color, name in (
            (found.training, BLUE, "training"),
            (found.held_out, RED, "held out"),
        ):
            share = 100 * (runs[:, None] >= lengths).mean(0)
            axes.step(lengths, share, where="mid", color=color, lw=1.5, label=name)
        _legend(axes)
    axes.set_title("Repeated word for word")
    axes.set_xlabel("tokens repeated, at least")
    axes.set_ylabel("% of windows")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 105)


PANELS = (loss_by_step, loss_by_second, learning_rate, gradient_norm, speed, memorisation)


# ---- the pictures ----


def draw_png(run, file, panels=PANELS) -> None:
    """One panel, or a grid of them, two in a row."""
    _draw(run, file, panels, (8.0, 4.5) if len(panels) == 1 else (6.0, 3.4), "png")


def draw_svg(run, panel) -> str:
    """The <svg> element of one panel, for a page."""
    file = io.BytesIO()
    _draw(run, file, (panel,), (5.2, 3.1), "svg")
    text = file.getvalue().decode("utf-8")
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)


def _margins(size: tuple[float, float], rows: int, columns: int) -> dict[str, float]:
    """Room for titles and the labels of both sides, in inches, as shares of the figure and, between
    panels, of a panel's inside: matplotlib's own layouts take as long as the drawing."""
    (width, height), (left, right, top, bottom) = size, (0.66, 0.62, 0.36, 0.5)
    return {
        "left": left / (width * columns),
        "right": 1 - right / (width * columns),
        "top": 1 - top / (height * rows),
        "bottom": bottom / (height * rows),
        "wspace": (left + right) / (width - left - right),
        "hspace": (top + bottom) / (height - top - bottom),
    }


def _draw(run, file, panels, size: tuple[float, float], kind: str) -> None:
    """size: of each panel, in inches of 150 dots."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": panels[0].__name__}):
        figure, grid = pyplot.subplots(
            rows,
            columns,
            figsize=(size[0] * columns, size[1] * rows),
            dpi=150,
            squeeze=False,
            gridspec_kw=_margins(size, rows, columns),
        )
        for panel, axes in zip(panels, grid.flat, strict=False):
            panel(run, axes)
        figure.savefig(file, format=kind)
        pyplot.close(figure)
