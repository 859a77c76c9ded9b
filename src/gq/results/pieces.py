"""What a page is put together from: tables, lists, figures with their numbers."""

from collections.abc import Sequence
from typing import Any

from gq.results.charts import Draw, responsive
from gq.results.markup import Markup, join, tag

Rows = Sequence[Sequence[Any]]


def table(
    headings: Sequence[str], rows: Rows, *, caption: str, classes: Sequence[str] = (), words: Sequence[int] = ()
) -> Markup:
    """Return a table that scrolls by itself where it is too wide; the first cell of a row is its heading.

    Args:
        classes: of the rows.
        words: columns that hold text and not numbers.
    """
    head = [
        tag("th", heading, scope="col", class_="words" if i in words else None) for i, heading in enumerate(headings)
    ]
    body = []
    for index, row in enumerate(rows):
        cells = [tag("th", row[0], scope="row", class_="words" if 0 in words else None)]
        cells += [tag("td", cell, class_="words" if i in words else None) for i, cell in enumerate(row[1:], 1)]
        body.append(tag("tr", cells, class_=(classes[index] or None) if classes else None))
    inner = tag("table", tag("thead", tag("tr", head)), tag("tbody", body), aria_label=caption)
    title = tag("p", caption, class_="caption")  # outside of what scrolls, so that a phone shows all of it
    return join(title, tag("div", inner, class_="scroll", role="region", tabindex="0", aria_label=caption))


def figure(draw: Draw, name: str, caption: Any, *, legend: Any = None, numbers: Markup | None = None) -> Markup:
    """Return a picture with its caption, and its numbers to unfold."""
    more = tag("details", tag("summary", "The numbers of this figure"), numbers) if numbers else None
    return tag("figure", responsive(draw, name), legend, tag("figcaption", caption), more)


def facts_list(pairs: Sequence[tuple[str, Sequence[str]]]) -> Markup:
    """Return names and the lines of what they are."""
    entries = []
    for name, lines in pairs:
        cells = [tag("div", tag("code", line) if " sha256 " in line else line) for line in lines]
        entries.append((tag("dt", name), tag("dd", cells)))
    return tag("dl", entries, class_="facts")


def tiles(entries: Sequence[tuple[str, str, str]]) -> Markup:
    """Return the few numbers that matter: what, value, what to know of it."""
    cells = [tag("div", tag("dt", what), tag("dd", value, tag("small", more))) for what, value, more in entries]
    return tag("dl", cells, class_="tiles")


def notes(lines: Sequence[str]) -> Markup | None:
    """Return what is missing or doubtful, None where nothing is."""
    if not lines:
        return None
    items = [tag("li", line) for line in dict.fromkeys(lines)]
    return tag("div", tag("ul", items), class_="notes", role="note", aria_label="Notes")


def legend(entries: Sequence[tuple[str, str]]) -> Markup:
    """Return the names of lines with their colours: text, class."""
    return tag("ul", [tag("li", words, class_=class_) for words, class_ in entries], class_="legend")
