"""What a dataset is like, as histograms: its returns, lengths and rewards."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gq.data.returns import observed_targets
from gq.datasets.loading import load_dataset
from gq.repair.health import Health, Histogram, histogram
from gq.results.style import (
    COLOURS,
    PANEL_INCHES,
    STRONG_GREY,
    Drawing,
    Row,
    Table,
    brief,
    count_axis,
    number_axis,
    write_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW_INCHES = (2 * PANEL_INCHES[0], 1.9)
MIN_BAR_WIDTH = 8  # characters
MIN_MARK_DISTANCE = 0.12  # share of the axis between names of marks


@dataclass(frozen=True)
class Quantity:
    """Something counted in a dataset."""

    name: str
    unit: str
    counted: str  # what is counted: episodes or steps
    histogram: Histogram
    marks: dict[str, float]  # places worth a line, by name


@dataclass(frozen=True)
class DataSummary:
    """Histograms of a dataset's whole episodes."""

    title: str
    quantities: tuple[Quantity, ...]
    facts: dict[str, Any]  # numbers for tables and JSON


def read_summary(name: str) -> DataSummary:
    """Count the returns, lengths and rewards of a dataset.

    Args:
        name: id or path.

    Raises:
        UsageError: there is no such dataset, or it was not downloaded.
        DataError: the file must not be trained on.
    """
    data = load_dataset(name)
    returns, lengths = data.returns, data.lengths
    facts = {
        "dataset": data.source,
        "task": data.task,
        "num_episodes": data.num_episodes,
        "num_transitions": data.num_transitions,
        "num_terminated": int(data.terminals[data.offsets[1:] - 1].sum()),
        **_statistics("return", returns),
        **_statistics("length", lengths),
        **_statistics("reward", data.rewards),
    }
    rewards = Quantity("reward", "per step", "steps", histogram(data.rewards.astype(np.float64)), {})
    quantities = (*_of_episodes(histogram(returns), histogram(lengths), observed_targets(returns)), rewards)
    source = Path(data.source).name if Path(data.source).is_absolute() else data.source
    return DataSummary(", ".join(filter(None, [source, data.task])), quantities, facts)


def of_health(health: Health, title: str) -> DataSummary:
    """Return the histograms that `gq repair` made of a file's whole episodes."""
    return DataSummary(title, _of_episodes(health.returns, health.lengths, health.targets), {})


def _of_episodes(returns: Histogram, lengths: Histogram, targets: dict[str, float]) -> tuple[Quantity, Quantity]:
    return (
        Quantity("return", "per episode", "episodes", returns, targets),
        Quantity("length", "steps", "episodes", lengths, {}),
    )


def _statistics(name: str, values: np.ndarray) -> dict[str, float]:
    wide = values.astype(np.float64)
    found = {"mean": wide.mean(), "std": wide.std(), "min": wide.min(), "max": wide.max()}
    return {f"{name}_{key}": float(value) for key, value in found.items()}


def write_histograms(summaries: Sequence[DataSummary], path: Path) -> None:
    """Draw a row of histograms per dataset.

    Args:
        path: .png, .svg or .pdf; replaced if it is there.

    Raises:
        GqError: the file cannot be written.
    """
    write_figure(path, _size(summaries), partial(_draw, summaries=summaries))


def _size(summaries: Sequence[DataSummary]) -> tuple[float, float]:
    return ROW_INCHES[0], ROW_INCHES[1] * len(summaries)


def _draw(figure: "Figure", summaries: Sequence[DataSummary]) -> None:
    grid = figure.subplots(len(summaries), max(len(one.quantities) for one in summaries), squeeze=False)
    for row, summary in zip(grid, summaries, strict=True):
        for axes in row[len(summary.quantities) :]:
            axes.set_axis_off()
        for axes, quantity in zip(row, summary.quantities, strict=False):
            _draw_histogram(axes, quantity)
        row[0].set_title(summary.title, loc="left", pad=14)


def _draw_histogram(axes: "Axes", quantity: Quantity) -> None:
    """Draw a histogram with its marks."""
    data = quantity.histogram
    axes.stairs(data.counts, data.edges, fill=True, color=COLOURS[0], alpha=0.35)
    axes.stairs(data.counts, data.edges, color=COLOURS[0], linewidth=1)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel(f"{quantity.name} ({quantity.unit})")
    axes.set_ylabel(quantity.counted)
    number_axis(axes.xaxis)
    count_axis(axes.yaxis)
    for value in quantity.marks.values():
        axes.axvline(value, color=STRONG_GREY, linewidth=0.7, linestyle=":")
    style: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "center"}
    for name, value in joined(quantity.marks, MIN_MARK_DISTANCE * (data.edges[-1] - data.edges[0])):
        axes.annotate(name, (value, 1), (0, 2), fontsize=6, color=STRONG_GREY, **style)


def joined(marks: dict[str, float], room: float) -> list[tuple[str, float]]:
    """Return names and places from left to right, those as one that are too close to be written side by side."""
    groups: list[list[tuple[str, float]]] = []
    for name, value in sorted(marks.items(), key=lambda mark: mark[1]):
        if groups and value - groups[-1][-1][1] < room:
            groups[-1].append((name, value))
        else:
            groups.append([(name, value)])
    return [(", ".join(name for name, _ in group), (group[0][1] + group[-1][1]) / 2) for group in groups]


def data_drawing(summaries: Sequence[DataSummary]) -> Drawing:
    """Return the histograms of datasets."""
    headings = ["dataset", "episodes", "transitions", "return", "best", "length"]
    rows = []
    for summary in summaries:
        facts = summary.facts
        spread = f"{brief(facts['return_mean'])} ± {brief(facts['return_std'])}"
        numbers = (f"{facts['num_episodes']:,}", f"{facts['num_transitions']:,}")
        rows.append((summary.title, *numbers, spread, brief(facts["return_max"]), brief(facts["length_mean"])))
    quantities = [(summary, quantity) for summary in summaries for quantity in summary.quantities]
    documents = [
        summary.facts | {"histograms": {one.name: _histogram_document(one) for one in summary.quantities}}
        for summary in summaries
    ]
    return Drawing(
        name="data",
        document={"datasets": documents},
        fields=("dataset", "quantity", "from", "to", "count"),
        points=[
            [summary.facts["dataset"], one.name, low, high, count]
            for summary, one in quantities
            for low, high, count in zip(
                one.histogram.edges, one.histogram.edges[1:], one.histogram.counts, strict=False
            )
        ],
        numbers=[summary.facts["return_mean"] for summary in summaries],
        tables=[Table(headings, rows)],
        size=_size(summaries),
        draw=partial(_draw, summaries=summaries),
        in_terminal=partial(_histogram_rows, summaries),
    )


def _histogram_document(quantity: Quantity) -> dict[str, Any]:
    histogram = quantity.histogram
    return {"counted": quantity.counted, "edges": list(histogram.edges), "counts": list(histogram.counts)}


def _histogram_rows(summaries: Sequence[DataSummary], width: int) -> list[Row]:
    rows: list[Row] = []
    for summary in summaries:
        rows += [[(summary.title, "")], []]
        for one in summary.quantities:
            others = max(len(line) for line in one.histogram.lines(0))
            lines = one.histogram.lines(max(width - others - 1, MIN_BAR_WIDTH))
            rows += [[(f"{one.name}, {one.counted}", "")], *([(line, "")] for line in lines), []]
    return rows
