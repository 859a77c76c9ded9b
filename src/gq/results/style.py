"""How figures look, and how they become files or SVG inside a page: matplotlib draws all of them."""

import csv
import io
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gq.errors import UsageError
from gq.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What a file says of itself; None leaves out the date, so that equal data give equal files.
METADATA: dict[str, dict[str, Any]] = {
    ".png": {"Software": "gq"},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}
FORMATS = tuple(METADATA)
# Okabe and Ito's colours, which colour-blind readers tell apart, without the yellow that is pale on white. Dashes and
# markers change with them, for those who print in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1, 1.2)),
    (0, (5, 1.5, 1, 1.5)),
    (0, (9, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY, STRONG_GREY, PALE_GREY, GRID, PAPER = "#808080", "#404040", "#b0b0b0", "#e6e6e6", "#ffffff"
# In a page, colours are those of its style sheet, which has them for light and for dark screens.
CSS_COLOURS = {colour.lower(): f"var(--c{index})" for index, colour in enumerate(COLOURS)} | {
    GREY: "var(--grey)",
    STRONG_GREY: "var(--muted)",
    PALE_GREY: "var(--bar)",
    GRID: "var(--rule)",
    PAPER: "var(--page)",
}
PANEL_INCHES = (3.35, 2.2)  # a column of a paper, so that what is 8 points here is 8 points there
MAX_COLUMNS = 2  # a page's width
LEGEND_ROW_INCHES, LABEL_INCHES = 0.145, 0.38
LEGEND_CHARACTERS = 48  # in the width of a panel
DOTS_PER_INCH = 300
STYLE: Any = {
    "font.family": "DejaVu Sans",  # it comes with matplotlib
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.edgecolor": STRONG_GREY,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "legend.labelspacing": 0.3,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "lines.markeredgewidth": 0,
    "text.parse_math": False,  # names of runs may hold dollar signs
    "xtick.color": STRONG_GREY,
    "ytick.color": STRONG_GREY,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "figure.facecolor": PAPER,
    "svg.hashsalt": "gq",
    "pdf.fonttype": 42,  # journals refuse the default, type 3
}
Row = list[tuple[str, str]]  # of characters in a terminal, each with its colour


@dataclass(frozen=True)
class Table:
    """A table for people; the first column is text."""

    headings: Sequence[str]
    rows: Sequence[tuple[str, ...]]
    caption: str = ""
    classes: Sequence[str] = ()  # of the rows, in a page


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure with all that it shows: for files, pages, terminals, tables, JSON and CSV."""

    name: str  # of its file where the user gives none
    size: tuple[float, float]  # inches
    draw: Callable[["Figure"], None]
    in_terminal: Callable[[int], "list[Row]"]  # by the width in characters
    document: dict[str, Any]  # for JSON
    fields: Sequence[str]  # of the points, for CSV
    points: list[Sequence[Any]]
    numbers: list[float]  # the most important ones
    tables: list[Table]
    caption: str = ""
    notes: list[str] = field(default_factory=list)

    def csv(self) -> str:
        """All points, one a row."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(self.fields)
        writer.writerows(self.points)
        return stream.getvalue().rstrip("\n")

    def write(self, path: Path) -> None:
        """Write a .png, .svg or .pdf; see `write_figure`."""
        write_figure(path, self.size, self.draw)


def check_name(path: Path) -> None:
    """Raise UsageError if a file's name is not that of a picture."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(
            f"{path} is not a picture's name", hint=f"end it in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        )


def write_figure(path: Path, size: tuple[float, float], draw: Callable[["Figure"], None]) -> None:
    """Draw a figure into a file, which is replaced if it is there.

    Args:
        path: .png, .svg or .pdf.
        size: width and height in inches.

    Raises:
        UsageError: the name ends in something else.
        GqError: the file cannot be written.
    """
    check_name(path)
    kind = path.suffix.lower()
    with atomic_path(path) as temporary:
        _save(temporary, size, draw, {}, format=kind[1:], dpi=DOTS_PER_INCH, metadata=METADATA[kind])


def inline_svg(
    size: tuple[float, float], draw: Callable[["Figure"], None], *, name: str, title: str, description: str
) -> str:
    """Draw a figure as SVG for a page of HTML: text as text, colours from `CSS_COLOURS`, nothing from elsewhere.

    Args:
        name: unique in the page; ids begin with it.
        title, description: for those who do not see the figure; escaped here.
    """
    from html import escape

    stream = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": name}
    _save(stream, size, draw, settings, format="svg", metadata=METADATA[".svg"], transparent=True)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'font-family: [^;"]*;? ?', "", re.sub(r"\s*\n\s*", " ", text)).replace("xlink:href", "href")
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", text)
    text = re.sub(r'(href="|url\()#', rf"\g<1>#{name}-", text)
    text = re.sub(r"#[0-9a-f]{6}\b", lambda found: CSS_COLOURS.get(found[0], found[0]), text)
    shape = re.search(r'viewBox="[^"]*"', text)
    assert shape
    labels = f"{name}-title {name}-desc"
    start = f'<svg {shape[0]} role="img" aria-labelledby="{labels}"><title id="{name}-title">{escape(title)}</title>'
    start += f'<desc id="{name}-desc">{escape(description)}</desc>'
    return start + text[text.index(">") + 1 :]


def _save(
    target: Any, size: tuple[float, float], draw: Callable[["Figure"], None], settings: dict[str, Any], **options: Any
) -> None:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.text import Text

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the user's own settings would change the file
        matplotlib.rcParams.update(STYLE | settings)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(wspace=0.04, hspace=0.06))
        draw(figure)
        for text in figure.findobj(Text):  # names of files may hold what is not a character
            text.set_text(text.get_text().encode("utf-8", "replace").decode("utf-8"))
        figure.savefig(target, **options)


def panel_grid(num_panels: int, legends: Iterable[Iterable[str]], more_inches: float = 0.0) -> tuple[float, float]:
    """The size of a figure of panels on up to `MAX_COLUMNS` columns, with room for their legends below them.

    Args:
        legends: the names below each panel.
        more_inches: of height of each panel.
    """
    num_columns = min(num_panels, MAX_COLUMNS)
    width, height = PANEL_INCHES
    height += more_inches + max(map(_legend_inches, legends))
    return width * num_columns, height * -(-num_panels // num_columns)


def draw_panels(figure: "Figure", draws: Sequence[Callable[["Axes"], None]]) -> None:
    """Draw panels on the columns of `panel_grid`."""
    num_columns = min(len(draws), MAX_COLUMNS)
    grid = figure.subplots(-(-len(draws) // num_columns), num_columns, squeeze=False).flat
    for axes in grid[len(draws) :]:
        axes.set_axis_off()
    for axes, draw in zip(grid, draws, strict=False):
        draw(axes)


def line_style(index: int) -> dict[str, Any]:
    """What tells the line of an index from others: colour, dashes and marker."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[index % len(DASHES)],
        "marker": MARKERS[(index + index // len(COLOURS)) % len(MARKERS)],
    }


def add_legend(axes: "Axes", order: Sequence[str] = ()) -> None:
    """Put the names of the lines below the panel, where they hide nothing.

    Args:
        order: names that come first; the others follow as they were drawn.
    """
    from matplotlib.transforms import ScaledTranslation

    below_labels = ScaledTranslation(0, -LABEL_INCHES, axes.figure.dpi_scale_trans)
    handles, names = axes.get_legend_handles_labels()
    drawn = dict(zip(names, handles, strict=True))
    names = list(dict.fromkeys([*order, *names]))
    axes.legend(
        [drawn[name] for name in names],
        [textwrap.fill(name, LEGEND_CHARACTERS) for name in names],
        loc="upper left",
        bbox_to_anchor=(-0.02, 0),
        bbox_transform=axes.transAxes + below_labels,
        borderaxespad=0,
    )


def _legend_inches(names: Iterable[str]) -> float:
    return LEGEND_ROW_INCHES * sum(len(textwrap.wrap(name, LEGEND_CHARACTERS)) for name in names)


def number_axis(axis: Any) -> None:
    """Write an axis' numbers short."""
    axis.set_major_formatter(lambda value, _: brief(value))


def count_axis(axis: Any) -> None:
    """Write an axis' numbers of steps short, to the last digit."""
    axis.set_major_formatter(lambda value, _: compact(value))


def compact(number: float) -> str:
    """Return a number of steps as for an axis: 500, 20k, 1.5M."""
    for size, unit in ((1_000_000, "M"), (1000, "k")):
        if abs(number) >= size:
            return f"{number / size:g}{unit}"
    return f"{number:g}"


def shorter(number: float) -> str:
    """Return a number of steps or seconds that need not be round, in few characters: 20k, 2078."""
    return min(compact(number), brief(number), key=len)


def brief(value: float) -> str:
    """Return a value in few characters: 2801, 0.0125, 1.5M."""
    if abs(value) >= 100_000:
        return compact(float(f"{value:.3g}"))
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def between(low: float, high: float) -> str:
    """An interval in few characters."""
    return f"{brief(low)} … {brief(high)}"
