"""A suite's results as files: results.json, table.md, and index.html with a figure of what selection is worth."""

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from gq.benchmark.results import HEADINGS, THRESHOLDS, WAYS, Results, markdown, overall_table, table
from gq.files import write_json, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_page(folder: Path, results: Results) -> Path:
    """Write all three files and return the page."""
    write_json(folder / "results.json", results.document())
    write_text(folder / "table.md", markdown(results))
    page = folder / "index.html"
    write_text(page, html(results))
    return page


def html(results: Results) -> str:
    """Return the page."""
    import jinja2
    from markupsafe import Markup

    source = resources.files("gq.benchmark").joinpath("page.html.j2").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
    figure = selection_figure(results) if results.rows else ""
    improvements = [
        [one["of"], one["over"], f"{one['value']:.2f}", _ends(one["interval"])] for one in results.improvements
    ]
    runs = [
        [run.place, run.seed, *(f"{run.returns[way]:,.0f}" for way in WAYS), run.dataset_sha256[:12]]
        for run in results.runs
    ]
    return template.render(
        results=results,
        headings=HEADINGS,
        rows=table(results),
        overall=overall_table(results),
        overall_headings=["method", *(f"mean, {way}" for way in WAYS), "IQM of last"],
        figure=Markup(figure),
        improvements=improvements,
        thresholds=[f"{value:g}" for value in THRESHOLDS],
        profiles=[[name, *(f"{value:.2f}" for value in own)] for name, own in results.profiles.items()],
        runs=runs,
    )


def _ends(interval: tuple[float, float] | None) -> str:
    return f"[{interval[0]:.2f}, {interval[1]:.2f}]" if interval else ""


def selection_figure(results: Results) -> str:
    """Return an SVG of each method's mean, over datasets, of maximum less last return, in percent."""
    from gq.results.style import inline_svg

    highest: dict[str, float] = {}
    for row in results.rows:
        highest[row.dataset] = max(highest.get(row.dataset, 1e-9), row.returns["last"])
    shares: dict[str, list[float]] = {}
    for row in results.rows:
        shares.setdefault(row.method, []).append(100 * row.selection / highest[row.dataset])
    values = {name: sum(found) / len(found) for name, found in shares.items()}

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.barh(list(values), list(values.values()))
        axes.invert_yaxis()
        axes.set_xlabel("maximum less last, percent")

    told = "; ".join(f"{name} {value:.0f}" for name, value in values.items())
    size = (6.4, 0.8 + 0.35 * len(values))
    return inline_svg(size, draw, name="selection", title="What selection is worth", description=told)
