"""A suite's results as files: results.json, table.md, and index.html with a figure of what selection is worth."""

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from gq.benchmark.results import HEADINGS, Results, table
from gq.files import write_json, write_text
from gq.results.tables import THRESHOLDS, WHICH, Which, ends_text, lines_of, markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_page(folder: Path, results: Results) -> Path:
    """Write all three files and return the page."""
    write_json(folder / "results.json", results.document())
    parts = [markdown(HEADINGS, table(results), num_left=2)]
    parts += [
        f"Normalised scores, {which}:\n\n{markdown(*lines_of(results.scores[which]))}" for which in results.scores
    ]
    write_text(folder / "table.md", "\n\n".join(parts) + "\n")
    page = folder / "index.html"
    write_text(page, html(results))
    return page


def html(results: Results) -> str:
    """Return the page."""
    import jinja2
    from markupsafe import Markup

    source = resources.files("gq.benchmark").joinpath("page.html.j2").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
    last = results.scores.get("last")
    improvements = [
        [one, other, f"{value:.2f}", ends_text(ends, 2)]
        for one, other, value, ends in (last.improvements if last else [])
    ]
    profiles = last.profiles.items() if last else ()
    return template.render(
        results=results,
        headings=HEADINGS,
        rows=table(results),
        scores={which: lines_of(results.scores[which]) for which in results.scores},
        figure=Markup(selection_figure(results)) if results.returns else "",
        improvements=improvements,
        thresholds=[f"{value:g}" for value in THRESHOLDS],
        profiles=[[name, *(f"{value:.2f}" for value in own)] for name, own in profiles],
        runs=[
            [run.name, run.seed, *(value_of(results, run.name, which) for which in WHICH), run.dataset_sha256[:12]]
            for run in results.runs
        ],
    )


def value_of(results: Results, name: str, which: Which) -> str:
    """Return a run's return in characters; "" where it has none."""
    for cell in results.returns[which].cells.values() if which in results.returns else ():
        if name in cell.runs:
            return f"{cell.values[cell.runs.index(name)]:,.0f}"
    return ""


def selection_figure(results: Results) -> str:
    """Return an SVG of each method's mean, over datasets, of maximum less last return, in percent."""
    from gq.results.style import inline_svg

    rows = [(row, row.cells["last"], row.selection) for row in results.rows()]
    highest: dict[str, float] = {}
    for row, last, _ in rows:
        highest[row.dataset] = max(highest.get(row.dataset, 1e-9), last.value if last else 0.0)
    shares: dict[str, list[float]] = {}
    for row, _, selection in rows:
        if selection is not None:
            shares.setdefault(row.method, []).append(100 * selection / highest[row.dataset])
    values = {name: sum(found) / len(found) for name, found in shares.items()}

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.barh(list(values), list(values.values()))
        axes.invert_yaxis()
        axes.set_xlabel("maximum less last, percent")

    told = "; ".join(f"{name} {value:.0f}" for name, value in values.items())
    size = (6.4, 0.8 + 0.35 * len(values))
    return inline_svg(size, draw, name="selection", title="What selection is worth", description=told)
