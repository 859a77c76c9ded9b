"""Tables for people: as they are where there is room, else a paragraph for each row, and never cut."""

import io

import pytest
from rich.console import Console

from gq.cli.output import Listing

HEADINGS = ["return by updates", "1k", "last", "band"]
ROWS = [("a run with a name", "1", "2 at 1k", "1 … 3"), ("another", "", "20 at 1k", "")]


def printed(listing: Listing, width: int) -> list[str]:
    """Return the lines on a console of so many columns."""
    stream = io.StringIO()
    Console(file=stream, width=width, soft_wrap=True, markup=False, highlight=False).print(listing)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("width", [40, 200])
def test_a_table_that_fits_is_a_table(width: int) -> None:
    assert printed(Listing(HEADINGS, ROWS, num_left=1, ruled=False), width) == [
        "return by updates  1k      last   band",
        "a run with a name   1   2 at 1k  1 … 3",
        "another                20 at 1k",
    ]


def test_a_table_too_wide_becomes_paragraphs() -> None:
    assert printed(Listing(HEADINGS, ROWS, num_left=1, ruled=False), 20) == [
        "a run with a name",
        "  1k 1  last 2 at 1k",
        "  band 1 … 3",
        "another",
        "  last 20 at 1k",
    ]


def test_words_stay_in_columns_where_only_the_last_of_them_is_long() -> None:
    rows = [("ok", "python", "a version"), ("problem", "x", "[red] a long text that no terminal of 20 has room for")]
    assert printed(Listing(["", "what", "found"], rows, num_left=3, ruled=False), 20) == [
        "ok       python  a version",
        "problem  x       [red] a long text that no terminal of 20 has room for",
    ]
