"""Learning curves as a picture."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gq.results.curves import Curve, Learning
from gq.results.history import MAIN, RETURN
from gq.results.official import OfficialCurve
from gq.results.style import (
    GREY,
    MAX_COLUMNS,
    PANEL_INCHES,
    add_legend,
    compact,
    legend_inches,
    line_style,
    picture,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_MARKED_POINTS = 30
BAND_COLOUR = "#b0b0b0"  # in the legend, for bands of all colours
UNITS_OF_TIME = ((2 * 3600, 3600, "hours"), (2 * 60, 60, "minutes"), (0, 1, "seconds"))  # from, seconds, name


def write_picture(learning: Learning, path: Path) -> None:
    """Draw a panel per task and metric.

    Args:
        path: .png, .svg or .pdf; replaced if it is there.

    Raises:
        GqError: matplotlib is not installed, or the file cannot be written.
    """
    panels = learning.panels
    num_columns = min(len(panels), MAX_COLUMNS)
    num_rows = math.ceil(len(panels) / num_columns)
    width, height = PANEL_INCHES
    height += max(legend_inches(names_in(learning, *panel)) for panel in panels)
    with picture(path, (width * num_columns, height * num_rows)) as figure:
        grid = figure.subplots(num_rows, num_columns, squeeze=False).flat
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        for axes, (task, metric) in zip(grid, panels, strict=False):
            draw_curves(axes, learning, task, metric)


def names_in(learning: Learning, task: str, metric: str) -> list[str]:
    """Return what a panel's legend has."""
    curves = learning.shown(task, metric)
    others = [*learning.bands(curves), *filter(None, [learning.smoothing()])]
    official = learning.official.get(task) if metric == RETURN else None
    return [*(curve.name for curve in curves), *others, *([official_name(official)] if official else [])]


def official_name(official: OfficialCurve) -> str:
    """Return what the published curve is called."""
    return f"{official.label}: mean ± sd"


def draw_curves(axes: "Axes", learning: Learning, task: str, metric: str) -> None:
    """Draw the learning curves of a task, and the official one behind them."""
    curves = learning.shown(task, metric)
    longest = max(float(curve.x[-1]) for curve in curves)
    official = learning.official.get(task) if metric == RETURN else None
    if official:
        longest = max(longest, float(official.frames[0]))
    for index, curve in enumerate(curves):
        draw_curve(axes, curve, index)
    if official:
        draw_official(axes, official, longest)
    for text in learning.bands(curves):
        axes.fill_between([], [], [], color=BAND_COLOUR, alpha=0.6, linewidth=0, label=text)
    axes.set_xlim(0, (longest or 1.0) * 1.03)
    if metric == RETURN and min(float(np.min(curve.mean)) for curve in curves) >= 0:
        axes.set_ylim(0, 1.06 * max(axes.dataLim.y1, 1e-9))
    label_x(axes, learning.x_name, longest)
    if learning.smoothing():
        axes.plot([], [], color="none", label=learning.smoothing())
    axes.set_ylabel(metric)
    axes.set_title(task_title(curves, task), loc="left")
    repeat = learning.frames_per_decision(task)
    if repeat and repeat > 1:
        add_decisions(axes, repeat)
    add_legend(axes, names_in(learning, task, metric))


def label_x(axes: "Axes", x_name: str, longest: float) -> None:
    """Name what progress is counted in, and write its numbers short; a time in units that fit."""
    if x_name != "seconds":
        axes.xaxis.set_major_formatter(lambda x, _: compact(x))
        axes.set_xlabel(x_name.replace("-", " "))
        return
    from matplotlib.ticker import MaxNLocator

    _, size, unit = next(entry for entry in UNITS_OF_TIME if longest >= entry[0])
    places = MaxNLocator(nbins=6, steps=[1, 2, 5, 10]).tick_values(0, longest / size)
    axes.set_xticks([place * size for place in places if 0 <= place * size <= 1.03 * longest])
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / size:g}")
    axes.set_xlabel(f"training time ({unit})")


def add_decisions(axes: "Axes", repeat: int) -> None:
    """Put decisions on the upper side, where the lower one has frames."""

    def decisions(frames: Any) -> Any:
        return frames / repeat

    def frames(decisions: Any) -> Any:
        return decisions * repeat

    above = axes.secondary_xaxis("top", functions=(decisions, frames))
    above.spines["top"].set_visible(False)
    above.xaxis.set_major_formatter(lambda x, _: compact(x))
    above.tick_params(labelsize=6.5, length=2, colors=GREY)
    above.set_xlabel("decisions", fontsize=6.5, color=GREY)


def task_title(curves: list[Curve], task: str) -> str:
    """Return the task, with the algorithm where it is one."""
    algos = {curve.algo for curve in curves}
    return f"{task}, {algos.pop()}" if len(algos) == 1 else task


def draw_curve(axes: "Axes", curve: Curve, index: int) -> None:
    """Draw a line with its band; what a run is not judged by is thinner."""
    is_main = curve.rank == MAIN or curve.target is not None
    style = line_style(index)
    if len(curve.x) > MAX_MARKED_POINTS:
        del style["marker"]
    axes.plot(
        curve.x,
        curve.mean,
        **style,
        linewidth=1.3 if is_main else 0.8,
        alpha=1 if is_main else 0.8,
        zorder=3 - 0.1 * curve.rank,  # what counts most lies on top
        clip_on=len(curve.x) > MAX_MARKED_POINTS,  # markers at the edge stay whole
        label=curve.name,
    )
    if curve.low is None or curve.high is None:
        return
    if len(curve.x) == 1:
        ends = [curve.mean - curve.low, curve.high - curve.mean]
        axes.errorbar(curve.x, curve.mean, ends, color=style["color"], linewidth=0.8, capsize=2, capthick=0.8)
    axes.fill_between(curve.x, curve.low, curve.high, color=style["color"], alpha=0.18, linewidth=0)


def draw_official(axes: "Axes", official: OfficialCurve, longest: float) -> None:
    """Draw the published curve as far as ours go, and to its next point, which the limits of x cut off."""
    num_points = min(sum(frames <= longest for frames in official.frames) + 1, len(official.frames))
    columns = (official.frames, official.mean, official.sd)
    frames, mean, sd = (np.array(values[:num_points], float) for values in columns)
    inside = frames <= longest
    axes.fill_between(frames, mean - sd, mean + sd, color=GREY, alpha=0.2, linewidth=0, zorder=1)
    axes.plot(frames, mean, color=GREY, linewidth=1, zorder=1.5)
    axes.errorbar(
        frames[inside],
        mean[inside],
        sd[inside],
        color=GREY,
        linewidth=1,
        marker="s",
        capsize=2,
        capthick=1,
        linestyle="-",
        zorder=1.5,
        label=official_name(official),
    )
