"""The one sink for what commands say: results on stdout, everything else on stderr."""

import json
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gq.errors import UsageError
from gq.training.processes import rank

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

HARD_SPACE = "\u00a0"  # where lines do not break
ANY_WIDTH = 100_000  # more than tables have
JsonMode = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only what a script needs: a path, or numbers.")]
Verbose = Annotated[
    int, typer.Option("--verbose", "-v", count=True, show_default=False, help="Say more; -vv shows tracebacks.")
]
NoColor = Annotated[bool, typer.Option("--no-color", help="No colours, as with NO_COLOR.")]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="No progress bar.")]


def visible(text: str, *, kept: str = "\n") -> str:
    """Return a text from wherever that shows all that a terminal would obey: control and bidirectional characters.

    Names of files, runs and datasets, and what these hold, may be anybody's.

    Args:
        kept: control characters that stay.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in kept or letter == HARD_SPACE else ascii(letter)[1:-1]
        for letter in text
    )


def _visible_parts(renderable: Any) -> Any:
    """Return a Rich renderable whose texts show what a terminal would obey; a table does that itself."""
    from rich.console import Group
    from rich.text import Text

    if isinstance(renderable, str):
        return visible(renderable)
    if isinstance(renderable, Group):
        return Group(*map(_visible_parts, renderable.renderables))
    if isinstance(renderable, Text) and visible(renderable.plain) != renderable.plain:
        return Text(visible(renderable.plain), no_wrap=renderable.no_wrap, overflow=renderable.overflow)
    return renderable


class Output:
    """Three modes: tables for people, one JSON document, or only the path or id; its arguments are options."""

    def __init__(
        self,
        *,
        json_mode: JsonMode = False,
        quiet: Quiet = False,
        verbose: Verbose = 0,
        no_color: NoColor = False,
        no_progress: NoProgress = False,
    ) -> None:
        self.is_heard = rank() == 0  # of several processes, one speaks
        quiet = quiet or not self.is_heard
        self.json_mode, self.quiet, self.verbose = json_mode, quiet, verbose
        self.no_color = no_color or bool(os.environ.get("NO_COLOR"))
        self.show_progress = not (no_progress or quiet) and sys.stderr.isatty()
        if verbose > 1:
            os.environ["GQ_DEBUG"] = "1"  # tracebacks, see gq.cli.errors

    def console(self, *, stderr: bool = False) -> "Console":
        """Return a Rich console on stdout or stderr; in a pipe it has no colours, and room for any table."""
        from rich.console import Console

        stream = sys.stderr if stderr else sys.stdout
        return Console(
            file=stream,
            no_color=self.no_color,
            width=None if stream.isatty() else ANY_WIDTH,
            soft_wrap=True,  # commands and paths are to be copied: a terminal breaks lines by itself
            highlight=False,
            markup=False,  # paths may hold brackets and colons
            emoji=False,
        )

    def note(self, text: str) -> None:
        """Say something that is not a result."""
        if not self.quiet:
            print(visible(text), file=sys.stderr, flush=True)

    def detail(self, text: str) -> None:
        """Say something that only -v asks for."""
        if self.verbose:
            self.note(text)

    def warn(self, text: str) -> None:
        """Say something that the user should act on, even with -q."""
        print(f"warning: {visible(text)}", file=sys.stderr, flush=True)

    def result(self, document: Any, *, quiet: Any, human: Any) -> None:
        """Print the result: `document` with --json, `quiet` with -q, else `human`, text or a Rich renderable."""
        if not self.is_heard:
            return
        if self.json_mode:
            print(json.dumps(document, indent=2, allow_nan=False), flush=True)
        elif self.quiet:
            print(visible(str(quiet)) if sys.stdout.isatty() else quiet, flush=True)  # a script gets names as they are
        elif isinstance(human, str):
            print(visible(human), flush=True)
        else:
            self.console().print(_visible_parts(human))

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]], *, num_left: int = 1) -> Any:
        """Return a table for `result`; the first columns are aligned to the left, all others to the right."""
        return Listing(headings, rows, num_left=num_left, ruled=sys.stdout.isatty())

    @contextmanager
    def progress(self, description: str, *, unit: str = "bytes") -> Iterator[Any]:
        """Yield a function (done, total or None) that moves a bar on stderr, if there is a terminal."""
        if not self.show_progress:
            yield lambda done, total: None
            return
        from rich import progress

        rate = progress.TransferSpeedColumn() if unit == "bytes" else progress.TextColumn("{task.fields[rate]}")
        amount = progress.DownloadColumn() if unit == "bytes" else progress.MofNCompleteColumn()
        name = progress.TextColumn("{task.description}", markup=False)
        columns = (name, progress.BarColumn(bar_width=24), amount, rate, progress.TimeRemainingColumn())
        with progress.Progress(*columns, console=self.console(stderr=True), transient=True) as bars:
            bar = bars.add_task(description, total=None, rate="")

            def move(done: int, total: int | None) -> None:
                speed = bars.tasks[0].speed
                bars.update(bar, completed=done, total=total, rate=f"{speed:,.0f} {unit}/s" if speed else "")

            yield move


class Listing:
    """A table that Rich can print; where the terminal is too narrow for it, every row becomes a paragraph.

    The first columns are aligned to the left, all others to the right.
    """

    def __init__(self, headings: Sequence[str], rows: Sequence[Sequence[str]], *, num_left: int, ruled: bool) -> None:
        self.headings, self.num_left, self.ruled = headings, num_left, ruled
        self.rows = [[visible(cell, kept="") for cell in row] for row in rows]

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> Iterator[Any]:
        from rich import box
        from rich.measure import Measurement
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD if self.ruled else None, pad_edge=False)
        for index, heading in enumerate(self.headings):
            table.add_column(heading, justify="left" if index < self.num_left else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        if Measurement.get(console, options.update(max_width=ANY_WIDTH), table).maximum <= options.max_width:
            yield table
        else:
            yield "\n".join(self.narrow(options.max_width))

    def narrow(self, width: int) -> list[str]:
        """Return a paragraph for each row: the columns on the left, and below them the values, named by headings."""
        lines = []
        widths = [max(map(len, column)) for column in zip(*self.rows, strict=True)][: self.num_left - 1]
        for row in self.rows:
            *padded, last = row[: self.num_left]
            lines.append("  ".join([*(cell.ljust(n) for cell, n in zip(padded, widths, strict=True)), last]))
            named = zip(self.headings[self.num_left :], row[self.num_left :], strict=True)
            pairs = [f"{heading} {value}".strip().replace(" ", HARD_SPACE) for heading, value in named if value]
            options: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
            wrapped = textwrap.wrap("  ".join(pairs), max(width - 2, 1), **options)
            lines += [f"  {line.replace(HARD_SPACE, ' ')}" for line in wrapped]
        return lines


class ForgivingStream:
    """A text stream that drops what cannot be written: its reader went away, it is closed, its disk is full."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write what can be written."""
        with suppress(OSError, ValueError):  # ValueError: it was closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Pass on what is pending."""
        with suppress(OSError, ValueError):
            self._stream.flush()


def prepare_streams() -> None:
    """Let no command fail at saying something: progress on a broken stderr must not cost a training its last steps."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # in the order of their descriptors
        if getattr(sys, name) is None:  # closed by the caller, whose descriptor the next file would get
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
    sys.stderr = ForgivingStream(sys.stderr)


def is_terminal() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty()


def ask(question: str, *, refusal: str, yes: bool) -> None:
    """Return if the answer is yes, given beforehand or now; end the command if it is no.

    Raises:
        UsageError: there is nobody to ask; the message is `refusal`.
    """
    if yes:
        return
    if not is_terminal():
        raise UsageError(refusal, hint="add --yes")
    typer.confirm(question, abort=True, err=True)
