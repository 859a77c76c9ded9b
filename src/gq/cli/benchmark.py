"""`gq benchmark`."""

import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gq.cli import options
from gq.cli.output import Output
from gq.errors import UsageError

if TYPE_CHECKING:
    from gq.benchmark.benchmark import Request
    from gq.benchmark.suites import Suite

EXAMPLES = """\b
Examples:
  gq benchmark builtin --dry-run         what it would cost
  gq benchmark builtin --jobs 2          again, to resume it
  gq benchmark builtin --dataset medium-replay --method bc-10,td3bc,rebrac
  gq benchmark d4rl --seeds 0,1 --jobs 8 --out d4rl
  gq benchmark builtin --page            the page of what is there so far
Suites: builtin, minari-mujoco, d4rl. Each run is an ordinary one, in
OUT/runs; OUT has index.html, table.md and results.json. Each run is
shown three ways: its last checkpoint and its best one, on fresh
episodes, and the maximum while training, as papers often report."""


def known_suites() -> list[str]:
    """Return the suites."""
    from gq.benchmark.suites import SUITES

    return list(SUITES)


def known_methods() -> list[str]:
    """Return the methods of all suites."""
    from gq.benchmark.suites import SUITES

    return list(dict.fromkeys(method.name for suite in SUITES.values() for method in suite.methods))


@dataclass(frozen=True)
class Part:
    """What of a suite is to be run, and how."""

    dataset: Annotated[str, typer.Option(metavar="A,B", help="Datasets whose names contain these; default: all.")] = ""
    method: Annotated[str, options.completed("A,B", "Methods; default: all.", known_methods)] = ""
    seeds: Annotated[str, typer.Option(metavar="A,B,C", help="Training seeds.")] = "0,1,2"
    steps: Annotated[int | None, options.number("Updates of every run; default: the suite's.", min=1)] = None
    episodes: Annotated[int, options.number("Fresh ones, of each last and best checkpoint.", min=1)] = 20
    jobs: Annotated[int, options.number("Runs at a time.", min=1)] = 1

    def request(self, suite: str) -> "Request":
        """Return what is asked of a suite. Raises UsageError."""
        from gq.benchmark.benchmark import Request
        from gq.benchmark.suites import choose

        chosen = choose(suite, datasets=_words(self.dataset), only=_words(self.method), updates=self.steps)
        return Request(chosen, _seeds(self.seeds), self.episodes, self.jobs)

    def command(self, suite: str) -> str:
        """Return the command that asks for it."""
        given = {"--dataset": self.dataset, "--method": self.method, "--seeds": self.seeds, "--steps": self.steps}
        words = [word for key, value in given.items() if value for word in (key, str(value))]
        return shlex.join(["gq", "benchmark", suite, *words, "--episodes", str(self.episodes)])


@options.grouped
def benchmark(
    *,
    name: Annotated[
        str, options.completed("SUITE", "builtin, minari-mujoco or d4rl.", known_suites, kind=typer.Argument)
    ],
    part: Part,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Where to; default: benchmarks/SUITE in the cache.")
    ] = None,
    only_page: Annotated[
        bool, typer.Option("--page", help="Write the page of what is there, and run nothing.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is left to do and what it will cost.")] = False,
    output: Output,
) -> None:
    """Train and evaluate algorithms on the same data and seeds, and put them in one table; resumes what it began."""
    from gq.benchmark.benchmark import cost, page, run
    from gq.paths import home

    request, folder = part.request(name), out or home() / "benchmarks" / name
    if dry_run:
        left = cost(request, folder)
        output.note(f"{left.runs} runs, {left.finished} of them finished, {left.updates:,} updates left")
        output.note(f"about {left.core_hours:g} hours of one core in training; evaluation comes on top")
        if left.datasets:
            output.note(f"not in the cache: {', '.join(left.datasets)}")
        headings = ["method", "runs", "updates each", "core hours"]
        human = output.table(headings, _plan(request.suite, len(request.seeds)))
        output.result({**vars(left), "folder": str(folder)}, quiet=folder, human=human)
        return
    from gq import threads

    threads.prepare()
    command = part.command(name)
    make = page if only_page else partial(run, say=output.note)
    results = make(request, folder, command=command)
    from gq.benchmark.results import HEADINGS, table

    output.note(f"page: {folder / 'index.html'}")
    human = output.table(list(HEADINGS[:6]), [row[:6] for row in table(results)])
    output.result(results.document(), quiet=folder / "index.html", human=human)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _seeds(text: str) -> tuple[int, ...]:
    """Return seeds. Raises UsageError."""
    words = _words(text)
    if not words or not all(word.isdecimal() for word in words):
        raise UsageError(f"--seeds {text!r} is not a list of seeds", hint="for example --seeds 0,1,2")
    return tuple(dict.fromkeys(map(int, words)))


def _plan(suite: "Suite", num_seeds: int) -> list[list[str]]:
    """Return a row for each method: its runs and what they take."""
    num = len(suite.datasets) * num_seeds
    return [
        [one.name, str(num), f"{one.updates:,}", f"{num * one.updates * one.update_seconds / 3600:.2f}"]
        for one in suite.methods
    ]
