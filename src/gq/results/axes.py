"""Scales, ticks and the frame of a chart, as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gq.results.markup import Markup, tag

LETTER_WIDTH = 6.1  # of small text, on average
LEFT = 58  # where charts with values at their left begin


@dataclass(frozen=True)
class Scale:
    """A straight line from values to pixels."""

    low: float
    high: float
    start: float  # pixel of `low`
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def scale_of(values: Sequence[float], start: float, end: float, *, margin: float = 0.04) -> Scale:
    """Return the scale that shows all values, with a margin at both ends."""
    low, high = min(values), max(values)
    pad = margin * (high - low) or max(1.0, 0.05 * abs(high))
    return Scale(low - pad, high + pad, start, end)


def ticks(scale: Scale, spacing: float) -> list[float]:
    """Return round values on a scale, about `spacing` pixels apart."""
    num = max(2.0, abs(scale.end - scale.start) / spacing)
    rough = (scale.high - scale.low) / num
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= 0.75 * rough)
    first, last = math.ceil(scale.low / step), math.floor(scale.high / step)
    return [index * step for index in range(first, last + 1)]


def tick_label(value: float) -> str:
    """Return a tick's text."""
    return f"{value:,.10g}"


def text(x: float, y: float, words: Any, anchor: str = "start", class_: str = "small") -> Markup:
    """Return a line of text."""
    return tag("text", words, x=x, y=y, text_anchor=anchor, class_=class_)


def x_axis(scale: Scale, top: float, bottom: float, label: str, spacing: float = 90) -> list[Markup]:
    """Return vertical grid lines with their values below, and what they count."""
    parts = []
    for value in ticks(scale, spacing):
        x = scale(value)
        parts.append(tag("line", x1=x, x2=x, y1=top, y2=bottom, class_="grid"))
        parts.append(text(x, bottom + 15, tick_label(value), "middle"))
    return [*parts, text((scale.start + scale.end) / 2, bottom + 33, label, "middle", "small muted")]


def y_axis(scale: Scale, left: float, right: float, spacing: float = 48) -> list[Markup]:
    """Return horizontal grid lines with their values at the left."""
    parts = []
    for value in ticks(scale, spacing):
        y = scale(value)
        parts.append(tag("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(text(left - 7, y + 4, tick_label(value), "end"))
    return parts


def svg(width: float, height: float, title: str, description: str, *children: Any, name: str) -> Markup:
    """Return a picture with a title and a description for those who do not see it.

    Args:
        name: unique in the page.
    """
    return tag(
        "svg",
        tag("title", title, id=f"{name}-title"),
        tag("desc", description, id=f"{name}-desc"),
        *children,
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
    )
