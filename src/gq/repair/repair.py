"""Say what is wrong with a data file, and write a copy without it. The original is never touched."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gq.data.reading import data_file
from gq.datasets import names as registry
from gq.datasets.cache import cached
from gq.datasets.catalog import ENTRIES
from gq.datasets.loading import canonical_name
from gq.envs.tasks import resolve_task
from gq.errors import DataError, UsageError
from gq.files import sha256, write_json
from gq.repair.boundaries import Simulate
from gq.repair.examination import Examined, Progress, examine_file
from gq.repair.findings import Finding
from gq.repair.health import Health, measure
from gq.repair.repaired_copy import Fragments, check_target, report_path, write_copy


@dataclass(frozen=True, kw_only=True)
class RepairReport:
    """What `gq repair` found and did."""

    file: Path
    task: str | None
    layout: str | None  # d4rl, minari or pickle; None: nothing can be read
    num_transitions: int
    num_episodes: int  # whole ones
    num_fragments: int  # pieces of episodes
    findings: tuple[Finding, ...]
    evidence: str | None = None  # what told where episodes end: next_observations, simulator or statistics
    num_replayed: int = 0  # steps that the simulator looked at
    physics: str | None = None  # the task whose simulator reproduces the data
    health: Health | None = None  # None: there is no whole episode
    output: Path | None = None  # the repaired copy
    repairs: tuple[str, ...] = ()  # what was done in it, in words

    @property
    def problems(self) -> tuple[Finding, ...]:
        """The findings that are more than facts."""
        return tuple(finding for finding in self.findings if finding.is_problem)

    def document(self) -> dict[str, Any]:
        """Return what --json prints and the report beside a copy holds."""
        return {
            "file": str(self.file),
            "episodes": self.num_episodes,
            "fragments": self.num_fragments,
            "findings": [finding.document() for finding in self.findings],
            "output": str(self.output) if self.output else None,
            "repairs": list(self.repairs),
            "task": self.task,
            "layout": self.layout,
            "transitions": self.num_transitions,
            "boundaries": {"evidence": self.evidence, "replayed_steps": self.num_replayed, "physics": self.physics},
            "health": self.health.document() if self.health else None,
        }


def repair(
    name: str | Path,
    *,
    task: str | None = None,
    output: str | Path | None = None,
    force: bool = False,
    fragments: Fragments = "drop",
    simulate: Simulate = "auto",
    progress: Progress = lambda what, done, total: None,
) -> RepairReport:
    """Examine a data file and, if `output` is given, write a repaired copy there and a JSON report beside it.

    Args:
        name: id of a dataset in the cache, or path of a D4RL or canonical HDF5 file, Minari file or folder, or pickled
            list of episodes; it may be damaged.
        task: Gymnasium id; by default what the file records or its name implies.
        output: where the copy goes; the report goes to the same name with `.report.json` behind it.
        force: replace an existing copy. The original is never replaced.
        fragments: what becomes of pieces of episodes in the copy: dropped; kept, marked in its dataset `fragments`; or
            kept with an estimate of the return that they miss in its dataset `bootstrap_values`.
        simulate: whether the simulator looks at suspicious steps, at all steps or at none.
        progress: called with what is being done, how much of it is and how much there is.

    Raises:
        UsageError: there is no such file or task, or `output` is taken or the original.
        DataError: a copy was asked for and there is nothing to write.
    """
    named, file = _locate(name)
    asked = resolve_task(task).id if task else None
    if output is not None:
        output = Path(output).expanduser()
        check_target(file, output, force=force)
    examined = examine_file(file, asked, simulate, progress)
    if not isinstance(examined, Examined):
        if output is not None:
            raise DataError(f"nothing can be saved: {examined[-1].message}", hint="fetch the file again")
        return RepairReport(
            file=file,
            task=asked,
            layout=None,
            num_transitions=0,
            num_episodes=0,
            num_fragments=0,
            findings=tuple(examined),
        )
    report = _describe(file, examined)
    if output is None:
        return report
    progress("writing", 0, None)
    recorded = str(examined.raw.attributes.get("source", ""))
    source = recorded if recorded.startswith("d4rl/") else named  # D4RL's references are for these
    repairs = write_copy(examined, file, output, fragments=fragments, source=source)
    report = replace(report, output=output, repairs=repairs)
    write_json(report_path(output), report.document())
    return report


def _locate(name: str | Path) -> tuple[str, Path]:
    """Return a dataset's id, or its path as it was given, and its file; one that a download kept aside has an id too.

    Raises:
        UsageError: there is no such file or dataset, or it is not in the cache.
    """
    found = canonical_name(str(name))
    if Path(found).is_absolute():
        path = Path(found)
        aside = (entry.id for entry in ENTRIES.values() if entry.refused_path.resolve() == path)
        return next(aside, str(name)), data_file(path)
    entry = registry.resolve(found)
    if not cached(entry):
        raise UsageError(f"{entry.id} is not in the cache", hint=f"gq download {entry.id}")
    return entry.id, entry.path


@np.errstate(invalid="ignore", over="ignore")  # pieces with infinite rewards are left out after summing
def _describe(file: Path, examined: Examined) -> RepairReport:
    """Return the report about an examined file."""
    raw, segments = examined.raw, examined.segments
    whole = segments.whole & examined.usable
    health = None
    if whole.any():
        health = measure(
            np.add.reduceat(raw.rewards.astype(np.float64), segments.offsets[:-1])[whole],
            np.diff(segments.offsets)[whole],
            segments.terminals[whole],
            attributes=raw.attributes,
            sha256=sha256(file),
        )
    return RepairReport(
        file=file,
        task=raw.task,
        layout=raw.layout,
        num_transitions=raw.num_rows,
        num_episodes=int(segments.whole.sum()),
        num_fragments=int((~segments.whole).sum()),
        findings=examined.findings,
        evidence=examined.evidence.method,
        num_replayed=examined.evidence.num_replayed,
        physics=examined.evidence.physics,
        health=health,
    )
