"""What the runs of a suite came to, three ways of the same runs side by side, with what selection is worth."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gq.benchmark.suites import METHOD
from gq.errors import UsageError
from gq.paths import json_or_empty
from gq.results.tables import WHICH, Cell, ResultTable, Which, result_table, text_of
from gq.runs.checkpoint import choose_checkpoint
from gq.sweeps.folder import Sweep, is_trained
from gq.sweeps.plan import SEED, Member

HEADINGS = ("dataset", "method", *WHICH, "maximum - last", "seconds", "parameters")


@dataclass(frozen=True)
class Measured:
    """What there is to say of one run beside its returns."""

    name: str
    dataset: str
    method: str
    seed: int
    seconds: float  # of training
    parameters: int
    dataset_sha256: str


@dataclass(frozen=True)
class Row:
    """A method on a dataset, over seeds."""

    dataset: str
    method: str
    cells: dict[Which, Cell | None]  # of returns
    selection: float | None  # maximum less last, in returns
    seconds: float  # of training a run, the mean
    parameters: int


@dataclass(frozen=True)
class Results:
    """Everything that a suite's page says."""

    suite: str
    command: str
    runs: list[Measured] = field(default_factory=list)
    returns: dict[Which, ResultTable] = field(default_factory=dict)  # empty where no run has been evaluated
    scores: dict[Which, ResultTable] = field(default_factory=dict)  # empty unless all datasets have references
    failed: dict[str, str] = field(default_factory=dict)  # why, by run

    def document(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        tables = {
            name: {which: table.document() for which, table in found.items()}
            for name, found in (("returns", self.returns), ("scores", self.scores))
        }
        about = {"suite": self.suite, "command": self.command, "failed": self.failed}
        rows = [asdict(row) for row in self.rows()]
        return about | {"runs": [asdict(run) for run in self.runs], "rows": rows} | tables

    def rows(self) -> list[Row]:
        """Return mean returns of each method on each dataset, and what selection is worth."""
        found = []
        for row, column in self.returns["last"].cells if self.returns else ():
            cells = {which: table.cells.get((row, column)) for which, table in self.returns.items()}
            last, maximum = cells["last"], cells["maximum"]
            own = [run for run in self.runs if (run.dataset, run.method) == (row, column)]
            assert own
            selection = maximum.value - last.value if maximum and last else None
            seconds = float(np.mean([run.seconds for run in own]))
            found.append(Row(row, column, cells, selection, seconds, own[0].parameters))
        return found


def gather(sweep: Sweep, *, command: str) -> Results:
    """Return the results of all runs that have been trained and evaluated."""
    members = {sweep.run(member.name): member for member in sweep.members if is_trained(sweep.run(member.name))}
    methods = {run: str(member.values[METHOD]) for run, member in members.items()}
    failed = {
        member.name: str(failure.get("message"))
        for member in sweep.members
        if (failure := json_or_empty(sweep.failure(member.name)))
    }
    results = Results(sweep.name, command, [measured(run, member) for run, member in members.items()], failed=failed)
    try:
        for which in WHICH:
            results.returns[which] = result_table(list(members), unit="return", which=which, methods=methods)
        for which in WHICH:
            results.scores[which] = result_table(list(members), unit="score", which=which, methods=methods)
    except UsageError:  # nothing has been evaluated yet, or a dataset has no reference for scores
        results.scores.clear()
    return results


def measured(run: Path, member: Member) -> Measured:
    """Return what a trained run says of itself."""
    state, facts = json_or_empty(choose_checkpoint(run, "last") / "state.json"), json_or_empty(run / "environment.json")
    return Measured(
        name=member.name,
        dataset=str(member.settings["data.dataset"]),
        method=str(member.values[METHOD]),
        seed=int(member.values[SEED]),
        seconds=float(state.get("progress", {}).get("seconds", 0.0)),
        parameters=int(facts.get("parameters", 0)),
        dataset_sha256=str(facts.get("dataset_sha256", "")),
    )


def table(results: Results) -> list[list[str]]:
    """Return the rows of the table, in characters, under HEADINGS."""
    return [
        [
            row.dataset,
            row.method,
            *(text_of(row.cells[which]) for which in WHICH),
            "" if row.selection is None else f"{row.selection:,.0f}",
            f"{row.seconds:,.0f}",
            f"{row.parameters:,}",
        ]
        for row in results.rows()
    ]
