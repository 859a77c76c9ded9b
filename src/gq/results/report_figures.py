"""Figures that a page has of one run and of several, with their captions."""

from collections.abc import Sequence

from gq.results import pieces
from gq.results.charts import NUM_COLOURS, Landmark, Strip, draw_returns
from gq.results.curves import Learning
from gq.results.facts import DataFacts
from gq.results.learning_chart import draw_learning
from gq.results.markup import Markup
from gq.results.words import short, show

MAX_POINTS = 40  # of each curve in its table


def returns_figure(
    strips: Sequence[Strip],
    data: DataFacts | None,
    landmarks: Sequence[Landmark],
    title: str,
    dots: str,
    name: str,
    *,
    numbers: Markup | None = None,
) -> Markup:
    """Return episodes, one row per strip, over the data's.

    Args:
        dots: what a dot is.
    """

    def draw(width: float, picture: str) -> Markup:
        return draw_returns(strips, data, landmarks, title, width, picture)

    caption = f"{dots} Below them, the mean with its 95 % interval, and as a tick the interquartile mean."
    if any(strip.asked is not None for strip in strips):
        caption += " The triangle is the return that was asked for."
    if data:
        caption += f" On top, the episodes of {short(data.dataset)}."
    return pieces.figure(draw, name, caption, numbers=numbers)


def learning_figure(learning: Learning, task: str, marked: Sequence[tuple[str, float]], name: str) -> Markup:
    """Return the learning curves of a task with their legend and their last values."""
    curves, official = learning.shown(task), learning.official.get(task)

    def draw(width: float, picture: str) -> Markup:
        return draw_learning(learning, task, marked, f"Learning on {task}", width, picture)

    entries = [(curve.name, f"c{index % NUM_COLOURS}") for index, curve in enumerate(curves)]
    entries += [(official.label, "official")] if official else []
    caption = (
        "Evaluations while training, on the episodes that choose the best checkpoint. "
        + learning.caption().capitalize()
    )
    rows = [
        (curve.name, f"{x:,.10g}", show(float(mean)))
        for curve in curves
        for x, mean in list(zip(curve.x.tolist(), curve.mean.tolist(), strict=True))[-MAX_POINTS:]
    ]
    headings = ["curve", learning.x_name.replace("-", " "), "mean return"]
    numbers = pieces.table(headings, rows, caption="Points of the curves, the last forty of each")
    return pieces.figure(draw, name, caption, legend=pieces.legend(entries), numbers=numbers)
