"""The pictures of a report, as SVG in the page's own colours."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gq.results.axes import LEFT, LETTER_WIDTH, Scale, scale_of, svg, text, x_axis, y_axis
from gq.results.facts import DataFacts
from gq.results.markup import Markup, join, tag

WIDE, NARROW = 760, 350  # pixels; the page shows the one that fits
DOT = 3.2  # radius
NUM_LANES = 5
ROW_HEIGHT, HISTOGRAM_HEIGHT, CHART_HEIGHT = 58, 62, 300
NUM_COLOURS = 6
Draw = Callable[[float, str], Markup]  # width, name that is unique in the page


@dataclass(frozen=True)
class Strip:
    """The episodes of one row."""

    label: str
    dots: list[tuple[float, str]]  # return, what to say of it
    mean: float
    ci95: tuple[float, float] | None
    iqm: float
    asked: float | None
    colour: int = 0


@dataclass(frozen=True)
class Landmark:
    """A return to compare with."""

    label: str
    value: float


@dataclass(frozen=True)
class Answer:
    """What was returned for what was asked."""

    asked: float
    mean: float
    ci95: tuple[float, float]
    what: str
    is_best: bool


def responsive(draw: Draw, name: str) -> Markup:
    """Return a picture drawn twice, for wide pages and for phones; one of them is shown."""
    wide = tag("div", draw(WIDE, f"{name}-wide"), class_="wide")
    return join(wide, tag("div", draw(NARROW, f"{name}-narrow"), class_="narrow"))


def draw_returns(
    strips: Sequence[Strip],
    data: DataFacts | None,
    landmarks: Sequence[Landmark],
    title: str,
    width: float,
    name: str,
) -> Markup:
    """Draw one row of episodes per strip over one axis of returns, below a histogram of the data."""
    values = [value for strip in strips for value, _ in strip.dots] + [mark.value for mark in landmarks]
    values += [strip.asked for strip in strips if strip.asked is not None]
    scale = scale_of(values + (data.edges if data else []), 8, width - 8)
    levels = place_labels(landmarks, scale, width)
    top = 14 * (max(levels, default=-1) + 1) + 8
    parts: list[Markup] = []
    y = float(top)
    if data:
        parts.append(histogram(data, scale, y))
        y += HISTOGRAM_HEIGHT + 12
    for strip in strips:
        parts.append(row(strip, scale, y))
        y += ROW_HEIGHT
    marks = [landmark(mark, scale, 12 + 14 * level, y) for mark, level in zip(landmarks, levels, strict=True)]
    axis = x_axis(scale, top, y, "return of an episode", 90 if width > NARROW else 75)
    said = "; ".join(f"{strip.label}: mean {strip.mean:,.0f} of {len(strip.dots)} episodes" for strip in strips)
    return svg(width, y + 38, title, said or "no episodes", axis, marks, parts, name=name)


def place_labels(landmarks: Sequence[Landmark], scale: Scale, width: float) -> list[int]:
    """Return a line for each label, so that none covers another."""
    taken: list[list[tuple[float, float]]] = []
    levels = []
    for mark in landmarks:
        start, end = label_span(mark, scale, width)
        level = 0
        while level < len(taken) and any(start < other + 8 and first < end + 8 for first, other in taken[level]):
            level += 1
        if level == len(taken):
            taken.append([])
        taken[level].append((start, end))
        levels.append(level)
    return levels


def label_span(mark: Landmark, scale: Scale, width: float) -> tuple[float, float]:
    """Return from where to where a label reaches, within the picture."""
    half = LETTER_WIDTH * len(mark.label) / 2
    middle = min(max(scale(mark.value), half + 2), width - half - 2)
    return middle - half, middle + half


def landmark(mark: Landmark, scale: Scale, y: float, bottom: float) -> Markup:
    """Return a dashed line with its name on top."""
    x = scale(mark.value)
    start, end = label_span(mark, scale, scale.end + 8)
    line = tag("line", x1=x, x2=x, y1=y + 4, y2=bottom, class_="landmark")
    return tag(
        "g", tag("title", f"{mark.label}: {mark.value:,.0f}"), line, text((start + end) / 2, y, mark.label, "middle")
    )


def histogram(data: DataFacts, scale: Scale, top: float) -> Markup:
    """Return the data's returns as bars."""
    highest = max(data.counts)
    bars = []
    for low, high, count in zip(data.edges[:-1], data.edges[1:], data.counts, strict=True):
        height = (HISTOGRAM_HEIGHT - 16) * count / highest
        hover = tag("title", f"{count:,} episodes of the data from {low:,.0f} to {high:,.0f}")
        shape = {"x": scale(low), "width": max(0.6, scale(high) - scale(low) - 0.8), "height": height}
        bars.append(tag("rect", hover, y=top + HISTOGRAM_HEIGHT - height, **shape, class_="bar"))
    base = top + HISTOGRAM_HEIGHT
    line = tag("line", x1=scale.start, x2=scale.end, y1=base, y2=base, class_="base")
    return join(
        bars, line, text(scale.start, top + 12, f"the data's {data.num_episodes:,} episodes", class_="label halo")
    )


def row(strip: Strip, scale: Scale, top: float) -> Markup:
    """Return a strip: its label, its episodes, below them the mean with its interval and the interquartile mean."""
    middle, below = top + 30.0, top + 48.0
    colour = f"c{strip.colour % NUM_COLOURS}"
    dots = [
        tag("circle", tag("title", hover), cx=scale(value), cy=middle + offset, r=DOT)
        for (value, hover), offset in zip(strip.dots, swarm([scale(value) for value, _ in strip.dots]), strict=True)
    ]
    parts = [tag("line", x1=scale.start, x2=scale.end, y1=top + 55, y2=top + 55, class_="rule")]
    if strip.asked is not None:
        x = scale(strip.asked)
        mark = tag("path", d=f"M{x - 5:.1f} {top + 15:.1f}h10l-5 7z", class_="asked")
        parts.append(tag("g", tag("title", f"asked for {strip.asked:,.10g}"), mark))
    if strip.ci95:
        low, high = (scale(end) for end in strip.ci95)
        hover = f"mean {strip.mean:,.1f}, 95 % interval {strip.ci95[0]:,.1f} to {strip.ci95[1]:,.1f}"
        bar = tag("line", x1=low, x2=max(high, low + 1), y1=below, y2=below, class_="interval")
        parts.append(tag("g", tag("title", hover), bar, tag("circle", cx=scale(strip.mean), cy=below, r=4.2)))
    x = scale(strip.iqm)
    tick = tag("line", x1=x, x2=x, y1=below - 6, y2=below + 6, class_="iqm")
    parts.append(tag("g", tag("title", f"interquartile mean {strip.iqm:,.1f}"), tick))
    label = text(scale.start, top + 12, strip.label, class_="label halo")
    return tag("g", parts, tag("g", dots, class_="dots"), label, class_=colour)


def swarm(places: Sequence[float]) -> list[float]:
    """Return how far each dot is moved up or down, so that few cover one another."""
    lanes = [(lane + 1) // 2 * (1 if lane % 2 else -1) for lane in range(NUM_LANES)]
    last = dict.fromkeys(lanes, float("-inf"))
    offsets = [0.0] * len(places)
    for index in sorted(range(len(places)), key=places.__getitem__):
        free = [lane for lane in lanes if places[index] - last[lane] >= 2 * DOT]
        lane = free[0] if free else min(lanes, key=last.__getitem__)
        last[lane], offsets[index] = places[index], 1.35 * DOT * lane
    return offsets


def draw_answers(answers: Sequence[Answer], data: DataFacts | None, title: str, width: float, name: str) -> Markup:
    """Draw returns over what was asked for, with the diagonal where policies do as asked, and the data's highest."""
    height = CHART_HEIGHT
    asked = [answer.asked for answer in answers]
    span = [value for answer in answers for value in (*answer.ci95, answer.mean)]
    highest = [data.quantiles["p100"]] if data else []
    x = scale_of(asked, LEFT, width - 14, margin=0.12)
    y = scale_of([*span, *asked, *highest], height - 44, 26)
    parts = [*x_axis(x, 26, height - 44, "return asked for", 80), *y_axis(y, LEFT, width - 14)]
    parts.append(text(2, 12, "mean return", class_="small muted"))
    for value in highest:
        line = tag("line", x1=LEFT, x2=width - 14, y1=y(value), y2=y(value), class_="landmark")
        parts += [line, text(LEFT + 6, y(value) - 5, "highest return in the data", class_="small halo")]
    ends = max(x.low, y.low), min(x.high, y.high)
    if ends[0] < ends[1]:
        line = tag("line", x1=x(ends[0]), y1=y(ends[0]), x2=x(ends[1]), y2=y(ends[1]), class_="landmark")
        parts += [tag("g", tag("title", "as asked"), line)]
    for answer in sorted(answers, key=lambda one: one.is_best):
        centre = x(answer.asked) + (0 if answer.is_best else 5)
        bar = tag("line", x1=centre, x2=centre, y1=y(answer.ci95[0]), y2=y(answer.ci95[1]), class_="interval")
        dot = tag("circle", cx=centre, cy=y(answer.mean), r=4.6)
        parts.append(tag("g", tag("title", answer.what), bar, dot, class_="c0" if answer.is_best else "c0 hollow"))
    said = "; ".join(answer.what for answer in answers)
    return svg(width, height, title, said, parts, name=name)
