"""`gq benchmark`."""

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gq.cli import options
from gq.cli.output import Output
from gq.cli.sweep import Machine, fetch_missing, watching
from gq.errors import GqError

if TYPE_CHECKING:
    from gq.benchmark.benchmark import Request
    from gq.benchmark.suites import Suite

EXAMPLES = """\b
Examples:
  gq benchmark builtin --dry-run         what it would cost
  gq benchmark builtin --jobs 2          again, to resume it
  gq benchmark builtin --dataset medium-replay --method bc-10,td3bc,rebrac
  gq benchmark d4rl --seeds 0-1 --jobs 8 --out d4rl
  gq benchmark builtin --page            the page of what is there so far
Suites: builtin, minari-mujoco, d4rl. OUT is a sweep (gq sweep status OUT)
with index.html, table.md and results.json. Each run is shown three ways:
its last checkpoint and its best one, on fresh episodes, and the maximum
while training, as papers often report."""


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
    seeds: Annotated[str, typer.Option(metavar="SEEDS", help="Training seeds, such as 0-4 or 0,3.")] = "0-2"
    steps: Annotated[int | None, options.number("Updates of every run; default: the suite's.", min=1)] = None
    episodes: Annotated[int, options.number("Fresh ones, of each last and best checkpoint.", min=1)] = 20

    def request(self, suite: str) -> "Request":
        """Return what of a suite is to be run. Raises UsageError."""
        from gq.benchmark.benchmark import Request
        from gq.benchmark.suites import choose
        from gq.sweeps.plan import parse_seeds

        chosen = choose(suite, datasets=_words(self.dataset), only=_words(self.method), updates=self.steps)
        return Request(chosen, tuple(parse_seeds(self.seeds)), self.episodes)

    def command(self, suite: str) -> str:
        """Return the command that runs it."""
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
    machine: Machine,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Where to; default: benchmarks/SUITE in the cache.")
    ] = None,
    only_page: Annotated[
        bool, typer.Option("--page", help="Write the page of what is there, and run nothing.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is left to do and what it will cost.")] = False,
    output: Output,
) -> None:
    """Train and evaluate algorithms on the same data and seeds, and put them in one table.

    The runs are members of a sweep: everything may be killed, and the same command resumes it.
    """
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
        human = output.table(headings, _costs(request.suite, len(request.seeds)))
        output.result({**vars(left), "folder": str(folder)}, quiet=folder, human=human)
        return
    from gq import threads

    threads.prepare()
    command = part.command(name)
    if only_page:
        results = page(folder, command=command)
    else:
        members = request.plan.members
        fetch_missing(output, members)
        with watching(output, len(members)) as local:
            choice = dataclasses.replace(local, jobs=machine.jobs, gpus=machine.gpu_names())
            results = run(request, folder, machine.threads_each, choice, command=command)
    from gq.benchmark.results import HEADINGS, table

    output.note(f"page: {folder / 'index.html'}")
    human = output.table(list(HEADINGS[:6]), [row[:6] for row in table(results)], num_left=2)
    output.result(results.document(), quiet=folder / "index.html", human=human)
    if results.failed:
        place, why = next(iter(results.failed.items()))
        hint = f"then gq sweep retry {shlex.quote(str(folder))}"
        raise GqError(f"{len(results.failed)} runs failed, {place}: {why}", hint=hint)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _costs(suite: "Suite", num_seeds: int) -> list[list[str]]:
    """Return a row for each method: its runs and what they take."""
    num = len(suite.datasets) * num_seeds
    return [
        [one.name, str(num), f"{one.updates:,}", f"{num * one.updates * one.update_seconds / 3600:.2f}"]
        for one in suite.methods
    ]
