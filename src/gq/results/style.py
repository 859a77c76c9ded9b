"""How pictures look, and how they get into a file: by matplotlib, which is an extra."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gq.errors import GqError, UsageError
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
INSTALL = 'pip install "gym-qwen[plot]"'
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
GREY, STRONG_GREY = "#808080", "#404040"
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
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "legend.labelspacing": 0.3,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "lines.markeredgewidth": 0,
    "xtick.color": STRONG_GREY,
    "ytick.color": STRONG_GREY,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "figure.facecolor": "white",
    "svg.hashsalt": "gq",
    "pdf.fonttype": 42,  # journals refuse the default, type 3
}


def can_draw() -> bool:
    """Tell whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def check_name(path: Path) -> None:
    """Raise UsageError if a file's name is not that of a picture."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(
            f"{path} is not a picture's name", hint=f"end it in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        )


@contextmanager
def picture(path: Path, size_inches: tuple[float, float]) -> Iterator["Figure"]:
    """Yield a figure to draw, and write it.

    Args:
        path: .png, .svg or .pdf; replaced if it is there.

    Raises:
        UsageError: the name ends in something else.
        GqError: matplotlib is not installed, or the file cannot be written.
    """
    check_name(path)
    if not can_draw():
        raise GqError("a picture needs matplotlib", hint=INSTALL)
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    kind = path.suffix.lower()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the user's own settings would change the file
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=size_inches, layout=ConstrainedLayoutEngine(wspace=0.04, hspace=0.06))
        yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=kind[1:], dpi=DOTS_PER_INCH, metadata=METADATA[kind])


def line_style(index: int) -> dict[str, Any]:
    """Return what tells the line of an index from others: colour, dashes and marker."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[index % len(DASHES)],
        "marker": MARKERS[(index + index // len(COLOURS)) % len(MARKERS)],
    }


def legend_text(name: str) -> str:
    """Return a name on as many lines as fit below a panel."""
    return textwrap.fill(name, LEGEND_CHARACTERS)


def legend_inches(names: Iterable[str]) -> float:
    """Return how high a legend of some names is."""
    return LEGEND_ROW_INCHES * sum(len(legend_text(name).splitlines()) for name in names)


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
        [legend_text(name) for name in names],
        loc="upper left",
        bbox_to_anchor=(-0.02, 0),
        bbox_transform=axes.transAxes + below_labels,
        borderaxespad=0,
    )


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
