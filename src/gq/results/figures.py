"""Figures of learning curves, of losses, and of the episodes of evaluations over the data that policies learnt from."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gq.results.curves import Curve, Learning, OfficialCurve
from gq.results.history import MAIN, RETURN
from gq.results.style import (
    COLOURS,
    DASHES,
    GREY,
    PALE_GREY,
    PANEL_INCHES,
    PAPER,
    STRONG_GREY,
    Drawing,
    Row,
    Table,
    add_legend,
    between,
    brief,
    count_axis,
    draw_panels,
    line_style,
    number_axis,
    panel_grid,
    shorter,
    write_figure,
)
from gq.results.terminal import GREY as DIM
from gq.results.terminal import Line, draw_lines, numbered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_MARKED_POINTS = 30
UNITS_OF_TIME = ((2 * 3600, 3600, "hours"), (2 * 60, 60, "minutes"), (0, 1, "seconds"))  # from, seconds, name
NUM_COLUMNS = 4  # of values in the table
MAX_RANK = 1  # see gq.results.history.MAIN; in a terminal, single episodes would hide all else
STRIP_INCHES, HISTOGRAM_INCHES, AXIS_INCHES = 0.5, 0.55, 0.75
NUM_LANES = 5  # on which the episodes of a strip are spread
NUM_NEIGHBOURS = 60  # dots that fit beside each other


# Learning curves


def learning_drawing(learning: Learning) -> Drawing:
    """Learning curves with their values, and the official ones where both are; a panel per task and metric."""
    metrics = list(dict.fromkeys(metric for _, metric in learning.panels))
    shown = [curve for panel in learning.panels for curve in learning.shown(*panel)]
    tables = [_value_table(learning, shown)]
    if rows := learning.comparison():
        cells = [
            (
                row["label"],
                f"{row['frames']:,}",
                f"{row['decisions']:,}",
                f"{row['mean']:.0f}",
                f"{row['official_mean']:.0f} ± {row['official_sd']:.0f}",
            )
            for row in rows
        ]
        sources = ", ".join({one.label for one in learning.official.values()})
        tables.append(Table(["run", "frames", "decisions", "ours", "official"], cells, f"official: {sources}"))
    panels = [partial(draw_curves, learning=learning, panel=panel) for panel in learning.panels]
    return Drawing(
        name="learning" if metrics == [RETURN] else "-".join(metric.replace("/", "-") for metric in metrics),
        size=panel_grid(len(panels), [_legend(learning, panel) for panel in learning.panels]),
        draw=lambda figure: draw_panels(figure, panels),
        in_terminal=partial(_learning_rows, learning),
        document=learning.document(),
        fields=(
            *("label", "task", "metric", "series", "x_name", "x", "mean", "low", "high", "num_runs"),
            *("aggregate", "band"),
        ),
        points=_learning_points(learning),
        numbers=[float(curve.mean[-1]) for curve in shown],
        tables=tables,
        caption=learning.caption(),
    )


def draw_curves(
    axes: "Axes", learning: Learning, panel: tuple[str, str], marked: Sequence[tuple[str, float]] = ()
) -> None:
    """Draw the curves of a task and a metric, and the official one behind them.

    Args:
        marked: names and places on x of vertical lines.
    """
    task, metric = panel
    curves = learning.shown(task, metric)
    longest = max(float(curve.x[-1]) for curve in curves)
    official = _official(learning, panel)
    if official:
        longest = max(longest, float(official.frames[0]))
    for index, curve in enumerate(curves):
        _draw_curve(axes, curve, index)
    if official:
        _draw_official(axes, official, longest)
    for name, place in marked:
        axes.axvline(place, color=GREY, linewidth=0.8, linestyle="--", label=name)
    for text in learning.bands(curves):
        axes.fill_between([], [], [], color=PALE_GREY, alpha=0.6, linewidth=0, label=text)
    axes.set_xlim(0, (longest or 1.0) * 1.03)
    if metric == RETURN and min(float(np.min(curve.mean)) for curve in curves) >= 0:
        axes.set_ylim(0, 1.06 * max(axes.dataLim.y1, 1e-9))
    label_x(axes, learning.x_name, longest)
    if learning.smoothing():
        axes.plot([], [], color="none", label=learning.smoothing())
    axes.set_ylabel(metric)
    algos = {curve.algo for curve in curves}
    axes.set_title(f"{task}, {algos.pop()}" if len(algos) == 1 else task, loc="left")
    repeat = learning.frames_per_decision(task)
    if repeat and repeat > 1:
        _add_decisions(axes, repeat)
    add_legend(axes, _legend(learning, panel))


def label_x(axes: "Axes", x_name: str, longest: float) -> None:
    """Name what progress is counted in, and write its numbers short; a time in units that fit."""
    if x_name != "seconds":
        count_axis(axes.xaxis)
        axes.set_xlabel(x_name.replace("-", " "))
        return
    from matplotlib.ticker import MaxNLocator

    _, size, unit = next(entry for entry in UNITS_OF_TIME if longest >= entry[0])
    places = MaxNLocator(nbins=6, steps=[1, 2, 5, 10]).tick_values(0, longest / size)
    axes.set_xticks([place * size for place in places if 0 <= place * size <= 1.03 * longest])
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / size:g}")
    axes.set_xlabel(f"training time ({unit})")


def _official(learning: Learning, panel: tuple[str, str]) -> OfficialCurve | None:
    return learning.official.get(panel[0]) if panel[1] == RETURN else None


def _legend(learning: Learning, panel: tuple[str, str]) -> list[str]:
    curves = learning.shown(*panel)
    others = [*learning.bands(curves), *filter(None, [learning.smoothing()])]
    official = _official(learning, panel)
    return [*(curve.name for curve in curves), *others, *([f"{official.label}: mean ± sd"] if official else [])]


def _add_decisions(axes: "Axes", repeat: int) -> None:
    """Put decisions on the upper side, where the lower one has frames."""

    def decisions(frames: Any) -> Any:
        return frames / repeat

    def frames(decisions: Any) -> Any:
        return decisions * repeat

    above = axes.secondary_xaxis("top", functions=(decisions, frames))
    above.spines["top"].set_visible(False)
    count_axis(above.xaxis)
    above.tick_params(labelsize=6.5, length=2, colors=GREY)
    above.set_xlabel("decisions", fontsize=6.5, color=GREY)


def _draw_curve(axes: "Axes", curve: Curve, index: int) -> None:
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


def _draw_official(axes: "Axes", official: OfficialCurve, longest: float) -> None:
    """Draw the published curve as far as ours go, and to its next point, which the limits of x cut off."""
    num_points = min(sum(frames <= longest for frames in official.frames) + 1, len(official.frames))
    columns = (official.frames, official.mean, official.sd)
    frames, mean, sd = (np.array(values[:num_points], float) for values in columns)
    inside = frames <= longest
    style: dict[str, Any] = {"color": GREY, "linewidth": 1, "zorder": 1.5}
    axes.fill_between(frames, mean - sd, mean + sd, color=GREY, alpha=0.2, linewidth=0, zorder=1)
    axes.plot(frames, mean, **style)
    bars: dict[str, Any] = {"marker": "s", "capsize": 2, "capthick": 1, "label": f"{official.label}: mean ± sd"}
    axes.errorbar(frames[inside], mean[inside], sd[inside], **style, **bars)


def _learning_points(learning: Learning) -> list[Sequence[Any]]:
    points: list[Sequence[Any]] = []
    for curve in learning.curves:
        names = [learning.label(curve), curve.task, curve.metric, curve.what, learning.x_name]
        for index, (x, mean) in enumerate(zip(curve.x.tolist(), curve.mean.tolist(), strict=True)):
            band = ["" if ends is None else float(ends[index]) for ends in (curve.low, curve.high)]
            points.append([*names, f"{x:.15g}", mean, *band, len(curve.runs), learning.aggregate, curve.band])
    for task, one in learning.official.items():
        names = [one.label, task, RETURN, "official", learning.x_name]
        for frames, mean, sd, seeds in zip(one.frames, one.mean, one.sd, one.num_seeds, strict=True):
            points.append([*names, frames, mean, mean - sd, mean + sd, seeds, "mean", "sd"])
    return points


def _learning_rows(learning: Learning, width: int) -> list[Row]:
    rows: list[Row] = []
    for task, metric in learning.panels:
        x_name = learning.x_name.replace("-", " ")
        lines = lines_of(learning, task, metric)
        picture = draw_lines(lines, width=width, x_name=x_name, y_name=metric, from_zero=metric == RETURN)
        rows += [[(task, "")], *picture, []]
    return rows


def lines_of(learning: Learning, task: str, metric: str = RETURN) -> list[Line]:
    """A panel's lines without those of single episodes; what counts most is first, the official one last."""
    curves = learning.shown(task, metric)
    curves = [curve for curve in curves if curve.rank <= MAX_RANK] or curves
    lines = [numbered(curve.name, curve.x, curve.mean, index) for index, curve in enumerate(curves)]
    if official := _official(learning, (task, metric)):
        longest = max(float(curve.x[-1]) for curve in curves)
        num_points = max(sum(frames <= longest for frames in official.frames), 1)
        x, y = np.array(official.frames[:num_points], float), np.array(official.mean[:num_points], float)
        lines.append(Line(official.label, x, y, DIM, "*"))
    return lines


def _value_table(learning: Learning, curves: Sequence[Curve]) -> Table:
    """The values at four places of the longest curve, and the band at the last point of each."""
    longest = max(curves, key=lambda curve: float(curve.x[-1])).x
    first, last = (len(longest) - 1) // NUM_COLUMNS, len(longest) - 1
    indices = sorted({round(first + (last - first) * part / (NUM_COLUMNS - 1)) for part in range(NUM_COLUMNS)})
    places = [float(longest[index]) for index in indices]
    rows = []
    for curve in curves:
        values = ["-" if (value := curve.at(place)) is None else brief(value) for place in places]
        end = f"{brief(float(curve.mean[-1]))} at {shorter(float(curve.x[-1]))}"
        band = "" if curve.low is None or curve.high is None else between(float(curve.low[-1]), float(curve.high[-1]))
        rows.append((learning.label(curve), *values, end, band))
    metrics = {curve.metric for curve in curves}
    what = metrics.pop() if len(metrics) == 1 else "value"
    headings = [f"{what} by {learning.x_name.replace('-', ' ')}", *map(shorter, places), "last", "band"]
    if not any(row[-1] for row in rows):
        headings, rows = headings[:-1], [row[:-1] for row in rows]
    return Table(headings, rows)


# Losses by epoch


def write_losses(history: Sequence[dict[str, float]], best_epoch: int, path: Path, *, title: str) -> None:
    """Draw a training's losses, and mark the epoch whose weights were kept.

    Args:
        history: of each epoch: epoch, train_loss, validation_loss.
        path: .png, .svg or .pdf; replaced if it is there.

    Raises:
        GqError: the file cannot be written.
    """

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        for colour, dashes, name in zip(COLOURS, DASHES, ("train", "validation"), strict=False):
            losses = [entry[f"{name}_loss"] for entry in history]
            axes.plot([entry["epoch"] for entry in history], losses, color=colour, linestyle=dashes, label=name)
        axes.axvline(best_epoch, color=GREY, linewidth=0.8, linestyle="--", label="kept")
        axes.set_xlabel("epoch")
        axes.set_ylabel("weighted Huber loss")
        axes.set_title(title, loc="left")
        if min(entry[name] for entry in history for name in ("train_loss", "validation_loss")) > 0:
            axes.set_yscale("log")
        axes.legend()

    write_figure(path, PANEL_INCHES, draw)


# Episodes of evaluations


@dataclass(frozen=True, kw_only=True)
class Strip:
    """The episodes of one row."""

    label: str
    returns: Sequence[float]
    mean: float
    ci95: tuple[float, float] | None
    iqm: float
    target: float | None
    colour: int = 0


@dataclass(frozen=True, kw_only=True)
class Returns:
    """Rows of episodes over one axis of returns, and what to compare them with."""

    strips: Sequence[Strip]
    histogram: tuple[Sequence[float], Sequence[int]] | None  # of the data: edges and counts
    landmarks: Sequence[tuple[str, float]]  # names and returns of vertical lines

    def size(self, width: float) -> tuple[float, float]:
        """The size in inches of a figure as wide as that."""
        height = AXIS_INCHES + STRIP_INCHES * len(self.strips) + HISTOGRAM_INCHES * (self.histogram is not None)
        return width, height + 0.14 * len(self.landmarks)


def draw_returns(figure: "Figure", returns: Returns) -> None:
    """Draw a row of dots per strip, below it the mean with its interval and the interquartile mean as a tick."""
    has_data = returns.histogram is not None
    heights = [*([HISTOGRAM_INCHES] if has_data else []), STRIP_INCHES * max(len(returns.strips), 1)]
    *above, axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights).flat
    if returns.histogram:
        edges, counts = returns.histogram
        above[0].stairs(counts, edges, fill=True, color=PALE_GREY)
        above[0].set_axis_off()
        above[0].set_title(f"the data's {sum(counts):,} episodes", loc="left", fontsize=7)
    for index, strip in enumerate(returns.strips):
        _draw_strip(axes, strip, -float(index))
    for (name, value), dashes in zip(returns.landmarks, 3 * DASHES[1:], strict=False):
        for each in (*above, axes):
            each.axvline(value, color=GREY, linewidth=0.9, linestyle=dashes, zorder=1)
        axes.plot([], [], color=GREY, linewidth=0.9, linestyle=dashes, label=f"{name}: {value:,.0f}")
    axes.set_ylim(0.5 - len(returns.strips), 0.62)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    number_axis(axes.xaxis)
    axes.set_xlabel("return of an episode")
    if returns.landmarks:
        add_legend(axes)


def _draw_strip(axes: "Axes", strip: Strip, y: float) -> None:
    style: dict[str, Any] = {"color": COLOURS[strip.colour % len(COLOURS)], "linewidth": 0}
    span = max(strip.returns, default=0.0) - min(strip.returns, default=0.0)
    axes.plot(strip.returns, y + 0.06 * swarm(strip.returns, span / NUM_NEIGHBOURS), "o", alpha=0.5, **style)
    low, high = strip.ci95 or (strip.mean, strip.mean)
    axes.plot((low, high), (y - 0.3, y - 0.3), color=style["color"], linewidth=2.2, solid_capstyle="round")
    axes.plot([strip.mean], [y - 0.3], "o", markersize=5, **style)
    axes.plot([strip.iqm], [y - 0.3], "|", color=STRONG_GREY, markersize=8, markeredgewidth=1.2)
    if strip.target is not None:
        marker: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": STRONG_GREY, "markeredgewidth": 0.9}
        axes.plot([strip.target], [y + 0.24], "v", markersize=5, **marker)
    halo = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.8}
    place = (0, y + 0.36)
    axes.annotate(strip.label, place, xycoords=("axes fraction", "data"), fontsize=7.5, va="center", bbox=halo)


def swarm(values: Sequence[float], distance: float) -> np.ndarray:
    """How many lanes each dot moves up or down, so that few that are closer than `distance` cover each other."""
    lanes = [(lane + 1) // 2 * (1 if lane % 2 else -1) for lane in range(NUM_LANES)]
    last = dict.fromkeys(lanes, -np.inf)
    offsets = np.zeros(len(values))
    for index in np.argsort(values, kind="stable"):
        free = [lane for lane in lanes if values[index] - last[lane] > distance]
        lane = free[0] if free else min(lanes, key=last.__getitem__)
        last[lane], offsets[index] = values[index], lane
    return offsets
