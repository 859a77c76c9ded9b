"""What is on record of a checkpoint: whose it is, and how it was evaluated. Loads no engine."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gq.envs.engines import engines_of
from gq.errors import GqError
from gq.paths import read_json, read_settings, section
from gq.runs.checkpoint import choose_checkpoint
from gq.runs.evaluations import StoredEvaluation, Way, read_evaluations

PLANNING = ("plan", "baseline")  # the modes that plan at every decision, as the planner is set


@dataclass(frozen=True)
class Recorded:
    """A checkpoint of a run, and what is on record of it."""

    run: Path
    checkpoint: Path
    algo: str
    task: str
    dataset: str
    targets: tuple[float, ...]  # its own; none where it is not asked for a return
    evaluations: list[StoredEvaluation]  # of the checkpoint, acting as the run does by default, the newest first

    @property
    def asks(self) -> bool:
        """Whether it is asked for a return."""
        return takes_target(self.algo)

    def ways(self, target: float | None) -> list[Way]:
        """Return how it acts when it is asked for a target, by all names that this goes by."""
        if self.algo == "tdmpc2":
            return [Way(mode=mode) for mode in PLANNING]
        return [Way(target if self.asks else None)]


def read_recorded(run: Path, folder: Path | None, checkpoint: str, notes: list[str]) -> Recorded:
    """Return a run with what is on record of its checkpoint; damaged records are noted.

    Its configuration is not validated: what is on record of runs of other versions of gq can be compared too.
    """
    settings = read_settings(run)
    algo, task = str(settings.get("algo", "")), str(settings.get("task", ""))
    if not (algo and task):
        raise GqError(f"{run / 'config.toml'} names no algorithm or no task", hint="name another run")
    chosen = folder or choose_checkpoint(run, checkpoint)
    evaluations, problems = read_evaluations(run, asks=takes_target(algo))
    notes += problems
    context = section(settings, "eval").get("context", "sliding")
    targets = section(settings, "eval").get("targets")
    fitting = [
        one
        for one in evaluations
        if one.checkpoint == chosen.name and not one.stochastic and one.context in (None, context)
    ]
    return Recorded(
        run=run,
        checkpoint=chosen.resolve(),
        algo=algo,
        task=task,
        dataset=str(section(settings, "data").get("dataset", "")),
        targets=tuple(targets) if takes_target(algo) and isinstance(targets, list) else (),
        evaluations=fitting,
    )


def takes_target(algo: str) -> bool:
    """Tell whether a run's policy is asked for a return."""
    return algo not in ("bc", "tdmpc2")


def engines_in(versions: Mapping[str, str], task: str) -> dict[str, str]:
    """Return the versions of a task's engines."""
    return {name: versions[name] for name in engines_of(task) if name in versions}


def recorded_origin(run: Path, dataset: str) -> str:
    """Return where a run's data come from, as its training put it on record."""
    path = run / "environment.json"
    facts = section(read_json(path), "dataset") if path.is_file() else {}
    return str(facts.get("origin", dataset))
