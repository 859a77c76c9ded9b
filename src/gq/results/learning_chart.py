"""Learning curves as SVG."""

from collections.abc import Sequence

from gq.results.axes import LEFT, LETTER_WIDTH, Scale, scale_of, svg, text, x_axis, y_axis
from gq.results.charts import CHART_HEIGHT, NUM_COLOURS
from gq.results.curves import Curve, Learning
from gq.results.markup import Markup, tag
from gq.results.official import OfficialCurve
from gq.results.style import compact

MAX_DOTS, LARGE_DOTS = 200, 40  # on a curve with more points there are none, or small ones


def draw_learning(
    learning: Learning, task: str, marked: Sequence[tuple[str, float]], title: str, width: float, name: str
) -> Markup:
    """Draw the learning curves of a task, published ones in grey, with named places on the x axis."""
    curves, height = learning.shown(task), CHART_HEIGHT
    ends = [float(end) for curve in curves for end in (curve.x[0], curve.x[-1])]
    official = learning.official.get(task)
    published = up_to(official, max(ends)) if official else []
    x = scale_of([*ends, *(frames for frames, _, _ in published)], LEFT, width - 14, margin=0.02)
    heights = [float(v) for c in curves for line in (c.mean, c.low, c.high) if line is not None for v in line]
    heights += [mean + sign * sd for _, mean, sd in published for sign in (-1, 1)]
    top, bottom = 26 + (18 if marked else 0), height - 44
    y = scale_of(heights, bottom, top)
    unit = learning.x_name.replace("-", " ")
    parts = [*x_axis(x, top, bottom, unit, 80), *y_axis(y, LEFT, width - 14)]
    parts.append(text(2, 12, "mean return", class_="small muted"))
    if official and published:
        parts.append(published_line(official.name, published, x, y))
    for label, place in marked:
        if x.low <= place <= x.high:
            line = tag("line", x1=x(place), x2=x(place), y1=top - 4, y2=bottom, class_="landmark")
            half = LETTER_WIDTH * len(label) / 2
            parts += [line, text(min(max(x(place), half), width - half), top - 9, label, "middle")]
    parts += [one_line(curve, index, x, y, unit) for index, curve in enumerate(curves)]
    said = "; ".join(f"{curve.name}: {curve.mean[-1]:,.0f} at {compact(float(curve.x[-1]))}" for curve in curves)
    return svg(width, height, title, said, parts, name=name)


def up_to(official: OfficialCurve, last: float) -> list[tuple[float, float, float]]:
    """Return the published points until the first one at or after a place: frames, mean, standard deviation."""
    num = sum(frames < last for frames in official.frames) + 1
    return [(float(f), mean, sd) for f, mean, sd in zip(official.frames, official.mean, official.sd, strict=True)][:num]


def published_line(name: str, published: Sequence[tuple[float, float, float]], x: Scale, y: Scale) -> Markup:
    """Return a published curve with its band."""
    places = [x(frames) for frames, _, _ in published]
    area = outline(places, [y(mean + sd) for _, mean, sd in published], [y(mean - sd) for _, mean, sd in published])
    line = points([(x(frames), y(mean)) for frames, mean, _ in published])
    dots = [
        dot(x(frames), y(mean), f"{name}, {compact(frames)} frames: {mean:,.0f} ± {sd:,.0f}", 2.4)
        for frames, mean, sd in published
    ]
    bars = [tag("line", x1=x(f), x2=x(f), y1=y(mean - sd), y2=y(mean + sd), class_="bar") for f, mean, sd in published]
    drawn = bars if len(published) == 1 else [tag("path", d=area, class_="area"), tag("polyline", points=line)]
    return tag("g", drawn, dots, class_="official")


def one_line(curve: Curve, index: int, x: Scale, y: Scale, unit: str) -> Markup:
    """Return a curve with its band and a dot at each point."""
    places = [x(float(value)) for value in curve.x]
    parts = []
    if curve.low is not None and curve.high is not None:
        area = outline(places, [y(float(v)) for v in curve.high], [y(float(v)) for v in curve.low])
        parts.append(tag("path", d=area, class_="area"))
    heights = [y(float(value)) for value in curve.mean]
    parts.append(tag("polyline", points=points(list(zip(places, heights, strict=True)))))
    if len(places) <= MAX_DOTS:
        radius = 3.0 if len(places) <= LARGE_DOTS else 1.6
        for place, height, at, mean in zip(places, heights, curve.x, curve.mean, strict=True):
            parts.append(dot(place, height, f"{curve.name}, {compact(float(at))} {unit}: {mean:,.0f}", radius))
    return tag("g", parts, class_=f"curve c{index % NUM_COLOURS}{' dashed' if index >= NUM_COLOURS else ''}")


def dot(x: float, y: float, hover: str, radius: float) -> Markup:
    """Return a point that says what it is."""
    return tag("circle", tag("title", hover), cx=x, cy=y, r=radius)


def points(places: Sequence[tuple[float, float]]) -> str:
    """Return the corners of a line."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def outline(x: Sequence[float], high: Sequence[float], low: Sequence[float]) -> str:
    """Return the path around a band."""
    there = [f"{a:.1f} {b:.1f}" for a, b in zip(x, high, strict=True)]
    back = [f"{a:.1f} {b:.1f}" for a, b in reversed(list(zip(x, low, strict=True)))]
    return "M" + "L".join(there + back) + "Z"
