"""What a training says about its data in a line, at the cost of one pass and a few hundred replayed steps."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from gq.data.trajectories import Trajectories
from gq.envs.tasks import Task
from gq.errors import GqError
from gq.repair.drift import replay_drift
from gq.repair.findings import several
from gq.repair.robots import robot_of

REPLAYED_EPISODES, REPLAYED_STEPS = 4, 75  # of each of these
FINE = ("same physics", "unknown")


def doubts(trajectories: Trajectories) -> list[str]:
    """Return lines about what is odd in data that are to be trained on; none for sound ones."""
    lines, task = [], trajectories.environment
    if trajectories.num_episodes > 1 and not trajectories.rewards.any():
        lines.append("every reward is 0, so no return tells good episodes from bad; gq train bc imitates them all")
    if found := list(_oddities(trajectories, task)):
        lines.append(f"the data have {', '.join(found)}; more is said by gq repair {trajectories.source}")
    if task and task.is_known and robot_of(task.id):
        try:
            report = replay_drift(beginnings(trajectories), REPLAYED_EPISODES, task=task.id)
        except GqError as error:
            return [*lines, f"the data cannot be replayed: {error}"]
        if report.verdict not in FINE:
            lines.append(f"the data do not repeat in the installed {task.id}: {report.verdict}, {report.reason}")
    return lines


def _oddities(trajectories: Trajectories, task: Task | None) -> Iterator[str]:
    lengths, ends = trajectories.lengths, trajectories.offsets[1:] - 1
    if task:
        outside = int((np.abs(task.unscale(trajectories.actions)) > 1 + 1e-5).any(axis=1).sum())
        if outside:
            yield f"{several(outside, 'row')} with actions outside the bounds"
        cut = int((~trajectories.terminals[ends] & (lengths < task.max_episode_steps)).sum())
        if cut:
            yield f"{several(cut, 'episode')} cut before the limit of {task.max_episode_steps:,} steps"
    if copies := len(lengths) - len(set(_digests(trajectories))):
        yield f"{several(copies, 'episode')} that are there already"


def _digests(trajectories: Trajectories) -> Iterator[bytes]:
    for start, stop in zip(trajectories.offsets[:-1], trajectories.offsets[1:], strict=True):
        digest = hashlib.blake2b(np.ascontiguousarray(trajectories.observations[start:stop]).data, digest_size=16)
        digest.update(np.ascontiguousarray(trajectories.actions[start:stop]).data)
        yield digest.digest()


def beginnings(trajectories: Trajectories) -> Trajectories:
    """Return the first steps of a few episodes, spread over the data."""
    chosen = np.unique(np.linspace(0, trajectories.num_episodes - 1, REPLAYED_EPISODES).astype(int))
    starts = trajectories.offsets[chosen]
    stops = np.minimum(starts + REPLAYED_STEPS, trajectories.offsets[chosen + 1])
    rows = np.concatenate([np.arange(*span) for span in zip(starts, stops, strict=True)])
    return replace(
        trajectories,
        observations=trajectories.observations[rows],
        actions=trajectories.actions[rows],
        rewards=trajectories.rewards[rows],
        terminals=trajectories.terminals[rows],
        offsets=np.concatenate([[0], np.cumsum(stops - starts)]).astype(np.int64),
    )
