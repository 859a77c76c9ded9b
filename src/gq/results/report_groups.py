"""Runs that differ by their seeds alone, together: means over runs with intervals over runs."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gq.results.facts import CheckpointFacts, Group, GroupRow, Measure, RunFacts
from gq.results.groups import groups_by_task, repeated_seeds
from gq.results.history import History
from gq.rollouts.statistics import interquartile_mean, mean_interval


def group_runs(runs: Sequence[RunFacts], notes: list[str]) -> list[Group]:
    """Return the groups, task by task in the order of the runs; note which runs repeat a seed."""
    facts = {run.path: run for run in runs}
    found = []
    for task, name, histories in groups_by_task([History(run.path, run.settings, []) for run in runs], final=True):
        members = [facts[history.run] for history in histories]
        repeated = repeated_seeds(histories)
        notes += [repeated] if repeated else []
        label = name or (members[0].name if len(members) == 1 else f"{len(members)} {'runs' if repeated else 'seeds'}")
        rows = rows_of(members, independent=not repeated)
        found.append(Group(name=label, task=task, runs=[run.name for run in members], rows=rows))
    return found


def rows_of(group: Sequence[RunFacts], *, independent: bool) -> list[GroupRow]:
    """Return what a group's runs have in common: the ways that all were evaluated in, by their best checkpoints.

    Args:
        independent: each run has a seed of its own, so that there is an interval over runs.
    """
    if any(run.best is None for run in group):
        group = [run for run in group if run.best]
    labels = [measure.label for run in group[:1] for measure in own_measures(run.best)]
    rows = []
    for label in labels:
        measures = [find(run.best, label) for run in group]
        found = [measure for measure in measures if measure]
        if len(found) == len(group):
            last = [find(run.last or run.best, label) for run in group]
            row = one_row(label, found, [measure for measure in last if measure], group)
            rows.append(row if independent or len(group) == 1 else replace(row, ci95=None))
    return rows


def own_measures(checkpoint: CheckpointFacts | None) -> list[Measure]:
    """Return the measures of a checkpoint that the run is judged by."""
    return [measure for measure in checkpoint.measures if measure.is_own] if checkpoint else []


def find(checkpoint: CheckpointFacts | None, label: str) -> Measure | None:
    """Return a checkpoint's measure by its label; planning has two names."""
    names = {"plan", "baseline"} if label in ("plan", "baseline") else {label}
    return next((measure for measure in own_measures(checkpoint) if measure.label in names), None)


def one_row(label: str, best: Sequence[Measure], last: Sequence[Measure], group: Sequence[RunFacts]) -> GroupRow:
    """Return the row of one way."""
    means = np.array([measure.summary.return_mean for measure in best])
    episodes = np.array([episode.episode_return for measure in best for episode in measure.episodes])
    reference = group[0].reference
    return GroupRow(
        label=label,
        target=best[0].target,
        means=means.tolist(),
        mean=float(means.mean()),
        ci95=mean_interval(means) if len(means) > 1 else best[0].summary.return_ci95,
        iqm=interquartile_mean(episodes),
        score=reference.score(float(means.mean())) if reference else None,
        last_mean=float(np.mean([one.summary.return_mean for one in last])) if len(last) == len(best) else None,
        num_episodes=len(episodes),
        measures=list(best),
    )
