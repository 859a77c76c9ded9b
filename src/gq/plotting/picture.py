"""Learning curves as a PNG or SVG, by matplotlib, which is an extra."""

import math
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gq.errors import GqError
from gq.evaluation.official import OfficialCurve
from gq.files import atomic_path
from gq.plotting.curves import Curve, Learning, compact
from gq.plotting.records import MAIN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg")
INSTALL = 'pip install "gym-qwen[plot]"'
# Okabe and Ito's colours, which colour-blind readers tell apart, without the yellow that is pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")  # when the colours are used up
OFFICIAL_COLOUR = "#808080"
PANEL_INCHES = (4.4, 3.0)
LEGEND_ROW_INCHES, LABEL_INCHES = 0.17, 0.42
MAX_COLUMNS = 3
MAX_MARKED_POINTS = 30
CAPTION_CHARACTERS = 75  # in the width of a panel
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.edgecolor": "#404040",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "xtick.color": "#404040",
    "ytick.color": "#404040",
    "figure.facecolor": "white",
    "svg.hashsalt": "gq",  # equal curves give equal files
}


def can_draw() -> bool:
    """Tell whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def write_picture(learning: Learning, path: Path) -> None:
    """Draw a panel per task, and one of asked and achieved returns where policies are asked for several.

    Args:
        path: .png or .svg; replaced if it is there.

    Raises:
        GqError: matplotlib is not installed, or the file cannot be written.
    """
    if not can_draw():
        raise GqError("a picture needs matplotlib", hint=INSTALL)
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels = []
    for task in learning.tasks:
        panels.append((draw_curves, task))
        if len(asked_curves(learning, task)) > 1:
            panels.append((draw_asked, task))
    num_columns = min(len(panels), MAX_COLUMNS if len(panels) == len(learning.tasks) else 2)
    num_rows = math.ceil(len(panels) / num_columns)
    width, height = PANEL_INCHES
    with matplotlib.rc_context(STYLE):
        height += LEGEND_ROW_INCHES * max(len(learning.shown(task)) for task in learning.tasks)
        layout = ConstrainedLayoutEngine(wspace=0.05, hspace=0.05)
        figure = Figure(figsize=(width * num_columns, height * num_rows), layout=layout)
        grid = figure.subplots(num_rows, num_columns, squeeze=False).flat
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        for axes, (draw, task) in zip(grid, panels, strict=False):
            draw(axes, learning, task)
        if caption := learning.caption():
            lines = textwrap.fill(caption, CAPTION_CHARACTERS * num_columns)
            figure.supxlabel(lines, fontsize=7, color="#606060")
        kind = path.suffix.lower().removeprefix(".")
        metadata = {"Date": None} if kind == "svg" else {"Software": "gq"}
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=200, metadata=metadata)


def draw_curves(axes: "Axes", learning: Learning, task: str) -> None:
    """Draw the learning curves of a task, and the official one behind them."""
    curves = learning.shown(task)
    longest = max(float(curve.x[-1]) for curve in curves)
    official = learning.official.get(task)
    if official:
        longest = max(longest, float(official.frames[0]))
    for index, curve in enumerate(curves):
        draw_curve(axes, curve, index)
    if official:
        draw_official(axes, official, longest)
    axes.set_xlim(0, longest * 1.03)
    if min(float(np.min(curve.mean)) for curve in curves) >= 0:
        axes.set_ylim(0, 1.06 * max(axes.dataLim.y1, 1e-9))
    axes.xaxis.set_major_formatter(lambda x, _: compact(x))
    axes.set_xlabel(learning.x_name.replace("-", " "))
    axes.set_ylabel("return")
    axes.set_title(task_title(curves, task), loc="left")
    repeat = learning.frames_per_decision(task)
    if repeat and repeat > 1:
        add_decisions(axes, repeat)
    add_legend(axes)


def add_decisions(axes: "Axes", repeat: int) -> None:
    """Put decisions on the upper side, where the lower one has frames."""

    def decisions(frames: Any) -> Any:
        return frames / repeat

    def frames(decisions: Any) -> Any:
        return decisions * repeat

    above = axes.secondary_xaxis("top", functions=(decisions, frames))
    above.spines["top"].set_visible(False)
    above.xaxis.set_major_formatter(lambda x, _: compact(x))
    above.tick_params(labelsize=7, length=2, colors=OFFICIAL_COLOUR)
    above.set_xlabel("decisions", fontsize=7, color=OFFICIAL_COLOUR)


def task_title(curves: list[Curve], task: str) -> str:
    """Return the task, with the algorithm where it is one."""
    algos = {curve.algo for curve in curves}
    return f"{task}, {algos.pop()}" if len(algos) == 1 else task


def draw_curve(axes: "Axes", curve: Curve, index: int) -> None:
    """Draw a line with its band; what a run is not judged by is thinner."""
    colour = COLOURS[index % len(COLOURS)]
    is_main = curve.rank == MAIN or curve.target is not None
    axes.plot(
        curve.x,
        curve.mean,
        color=colour,
        linestyle=DASHES[index // len(COLOURS) % len(DASHES)],
        linewidth=1.6 if is_main else 0.9,
        alpha=1 if is_main else 0.7,
        marker="o" if is_main and len(curve.x) <= MAX_MARKED_POINTS else None,
        markersize=3,
        zorder=3 - 0.1 * curve.rank,  # what counts most lies on top
        label=curve.name,
    )
    if curve.low is not None and curve.high is not None:
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)


def draw_official(axes: "Axes", official: OfficialCurve, longest: float) -> None:
    """Draw the published curve as far as ours go, and to its next point, which the limits of x cut off."""
    num_points = min(sum(frames <= longest for frames in official.frames) + 1, len(official.frames))
    columns = (official.frames, official.mean, official.sd)
    frames, mean, sd = (np.array(values[:num_points], float) for values in columns)
    inside = frames <= longest
    axes.fill_between(frames, mean - sd, mean + sd, color=OFFICIAL_COLOUR, alpha=0.2, linewidth=0, zorder=1)
    axes.plot(frames, mean, color=OFFICIAL_COLOUR, linewidth=1.2, zorder=1.5)
    axes.errorbar(
        frames[inside],
        mean[inside],
        sd[inside],
        color=OFFICIAL_COLOUR,
        linewidth=1.2,
        marker="s",
        markersize=3,
        capsize=2,
        linestyle="-",
        zorder=1.5,
        label=official.label,
    )


def asked_curves(learning: Learning, task: str) -> list[Curve]:
    """Return the curves of policies that are asked for a return, of all groups, in the order of targets."""
    curves = [curve for curve in learning.curves if curve.task == task and curve.target is not None]
    return sorted(curves, key=lambda curve: curve.target or 0.0)


def draw_asked(axes: "Axes", learning: Learning, task: str) -> None:
    """Draw what policies achieved in their last evaluation over what they were asked for."""
    curves = asked_curves(learning, task)
    targets = [curve.target for curve in curves if curve.target is not None]
    ends = (min(targets), max(targets))
    axes.plot(ends, ends, color=OFFICIAL_COLOUR, linewidth=1, linestyle="--", label="as asked")
    for index, group in enumerate(dict.fromkeys(curve.group for curve in curves)):
        mine = [curve for curve in curves if curve.group == group]
        x, y = [curve.target or 0.0 for curve in mine], [float(curve.mean[-1]) for curve in mine]
        colour = COLOURS[index % len(COLOURS)] if group else "#000000"
        below, above = (
            [abs(float(band[-1] - curve.mean[-1])) if band is not None else 0.0 for curve, band in bands]
            for bands in ([(curve, curve.low) for curve in mine], [(curve, curve.high) for curve in mine])
        )
        style: dict[str, Any] = {"color": colour, "marker": "o", "markersize": 4, "linewidth": 1.2, "capsize": 2}
        axes.errorbar(x, y, [below, above], label=group or "achieved", **style)
    axes.set_xlabel("return asked for")
    axes.set_ylabel("return achieved")
    axes.set_title(f"{task}, last evaluation", loc="left")
    add_legend(axes)


def add_legend(axes: "Axes") -> None:
    """Put the names of the lines below the panel, where they hide nothing."""
    from matplotlib.transforms import ScaledTranslation

    below_labels = ScaledTranslation(0, -LABEL_INCHES, axes.figure.dpi_scale_trans)
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(-0.02, 0),
        bbox_transform=axes.transAxes + below_labels,
        borderaxespad=0,
    )
