"""Learning curves, ready for every way out."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gq.results.curves import Curve, Learning
from gq.results.drawing import Drawing, Table, between
from gq.results.figures import write_picture
from gq.results.history import RETURN
from gq.results.style import brief, shorter
from gq.results.terminal import GREY, Line, Row, draw_lines, numbered

NUM_COLUMNS = 4  # of values in the table
MAX_RANK = 1  # see gq.results.history.MAIN; in a terminal, single episodes would hide all else


def learning_drawing(learning: Learning) -> Drawing:
    """Return learning curves with their values, and the official ones where both are."""
    metrics = list(dict.fromkeys(metric for _, metric in learning.panels))
    shown = [curve for panel in learning.panels for curve in learning.shown(*panel)]
    tables = [value_table(learning, shown)]
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
    return Drawing(
        name="learning" if metrics == [RETURN] else "-".join(metric.replace("/", "-") for metric in metrics),
        document=learning.document(),
        fields=(
            *("label", "task", "metric", "series", "x_name", "x", "mean", "low", "high", "num_runs"),
            *("aggregate", "band"),
        ),
        points=learning_points(learning),
        numbers=[float(curve.mean[-1]) for curve in shown],
        tables=tables,
        write=lambda path: write_picture(learning, path),
        in_terminal=lambda width: learning_rows(learning, width),
        caption=learning.caption(),
    )


def learning_points(learning: Learning) -> list[Sequence[Any]]:
    """Return all points; the official ones have the standard deviation as their band."""
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


def learning_rows(learning: Learning, width: int) -> list[Row]:
    """Return the curves in a terminal, each panel below its title."""
    rows: list[Row] = []
    for task, metric in learning.panels:
        x_name = learning.x_name.replace("-", " ")
        rows.append([(task, "")])
        lines = lines_of(learning, task, metric)
        rows += draw_lines(lines, width=width, x_name=x_name, y_name=metric, from_zero=metric == RETURN)
        rows.append([])
    return rows


def lines_of(learning: Learning, task: str, metric: str = RETURN) -> list[Line]:
    """Return a panel's lines without those of single episodes; what counts most is first, the official one last."""
    curves = learning.shown(task, metric)
    curves = [curve for curve in curves if curve.rank <= MAX_RANK] or curves
    lines = [numbered(curve.name, curve.x, curve.mean, index) for index, curve in enumerate(curves)]
    official = learning.official.get(task)
    if official and metric == RETURN:
        longest = max(float(curve.x[-1]) for curve in curves)
        num_points = max(sum(frames <= longest for frames in official.frames), 1)
        x, y = np.array(official.frames[:num_points], float), np.array(official.mean[:num_points], float)
        lines.append(Line(official.label, x, y, GREY, "*"))
    return lines


def value_table(learning: Learning, curves: Sequence[Curve]) -> Table:
    """Return the values at four places of the longest curve, and the band at the last point of each."""
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
