"""`gq doctor`: examine everything that gq needs, and say what mends what is wrong."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gq.doctor.findings import Finding
from gq.doctor.machine import examine_graphics, examine_threads, examine_torch
from gq.doctor.network import examine_hosts
from gq.doctor.selftest import selftest as run_selftest
from gq.doctor.software import examine_versions, installed_versions
from gq.doctor.storage import examine_cache, examine_folders, examine_runs
from gq.paths import datasets_folder, runs_folder


@dataclass(frozen=True)
class Examination:
    """What was found, and where things lie."""

    findings: list[Finding]
    datasets: Path
    runs: Path

    @property
    def problems(self) -> list[Finding]:
        """What is to be mended."""
        return [finding for finding in self.findings if finding.status == "problem"]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "num_problems": len(self.problems),
            "findings": [asdict(finding) for finding in self.findings],
            "datasets": str(self.datasets),
            "runs": str(self.runs),
        }


def examine(
    *,
    offline: bool = False,
    verify: bool = False,
    num_kills: int = 0,
    note: Callable[[str], None] = lambda text: None,
) -> Examination:
    """Examine versions, the machine, folders, datasets, runs and servers.

    Args:
        offline: ask no server.
        verify: hash every file that has a hash on record, instead of comparing sizes.
        num_kills: of a small training that is killed and resumed, 0 for none.
        note: told what is being done.
    """
    findings = examine_versions(installed_versions())
    note("loading torch in a child process")
    found, num_threads = examine_torch()
    findings += [*found, *examine_threads(num_threads)]
    note("rendering with each OpenGL backend in a child process")
    findings += examine_graphics()
    note("reading datasets and runs")
    findings += [*examine_folders(), *examine_cache(deep=verify), *examine_runs(deep=verify)]
    findings += examine_hosts(offline=offline)
    if num_kills:
        findings.append(run_selftest(num_kills, note))
    return Examination(findings, datasets_folder(), runs_folder())
