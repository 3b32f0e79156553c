"""The pictures: runs of every length, with and without what older checkpoints lack."""

import io
import re
import struct

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure
from report_runs import finished_run

from llm.curves import (
    BINS,
    PANELS,
    STYLE,
    bins,
    draw_png,
    draw_svg,
    gradient_norm,
    loss_by_step,
    memorisation,
)


def test_bins_of_a_short_run_are_its_steps():
    middle, mean, low, high = bins([3.0, 1.0, 2.0])
    assert middle.tolist() == [1, 2, 3]
    assert mean.tolist() == low.tolist() == high.tolist() == [3.0, 1.0, 2.0]


def test_bins_of_a_long_run_are_few_and_hold_every_step():
    values = np.arange(1, 10_001)
    middle, mean, low, high = bins(values)
    assert len(middle) == BINS
    assert (low[0], high[-1]) == (1, 10_000)
    assert np.average(mean, weights=high - low + 1) == pytest.approx(values.mean())
    assert np.allclose(middle, mean)


def test_bins_leave_out_what_is_not_known():
    middle, mean, _, _ = bins([np.nan, np.nan, 5.0, 7.0])
    assert (middle.tolist(), mean.tolist()) == ([3, 4], [5.0, 7.0])
    assert all(len(part) == 0 for part in bins([np.nan]))
    assert all(len(part) == 0 for part in bins([]))


@pytest.mark.parametrize("n_steps", [0, 1, 2, 500])
def test_every_panel_is_drawn_for_any_length_of_run(n_steps):
    run = finished_run(n_steps)
    file = io.BytesIO()
    draw_png(run, file)
    assert file.getvalue().startswith(b"\x89PNG")


def test_a_run_that_began_before_rates_were_kept_is_drawn():
    run = finished_run(20)
    run.rates = run.norms = run.step_seconds = [float("nan")] * 20
    run.memorisation = None
    run.peak = 0.0
    draw_png(run, io.BytesIO())


def test_the_point_of_the_files_weights_is_named():
    held = [[0, 0.0, 3.0], [24, 5.0, 2.0], [60, 12.0, 2.5]]
    both = draw_svg(finished_run(60, validations=held, samples=[[24, "best"]]), loss_by_step)
    assert "2.000 in the file" in both and ">2.500<" in both.replace("2.500 ", "2.500")
    one = draw_svg(finished_run(60, validations=held), loss_by_step)
    assert "in the file" not in one


def test_one_panel_alone_is_a_picture_of_its_own_size():
    file = io.BytesIO()
    draw_png(finished_run(3), file, (loss_by_step,))
    assert struct.unpack(">II", file.getvalue()[16:24]) == (1200, 675)


@pytest.mark.parametrize("panel", [loss_by_step, gradient_norm, memorisation])
def test_a_legend_covers_neither_curves_nor_title(panel):
    with rc_context(STYLE):
        figure = Figure((5.2, 3.1))
        axes = figure.subplots()
        panel(finished_run(50), axes)
        figure.draw_without_rendering()
    legend = axes.get_legend().get_window_extent()
    assert legend.y0 >= axes.get_window_extent().y1
    assert legend.x0 > axes._left_title.get_window_extent().x1


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.__name__)
def test_a_panel_as_svg_is_one_element_with_a_title_and_units(panel):
    svg = draw_svg(finished_run(50), panel)
    assert svg.startswith("<svg") and svg.rstrip().endswith("</svg>")
    assert "<script" not in svg and "<image" not in svg
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert len(texts) >= 6
    assert {"step", "seconds of training, on the machine&#x27;s clock"} & set(texts) or (
        any("seconds" in text or "tokens" in text for text in texts)
    )
