"""Evaluations that lie under a run: what `gq eval` measured, to be used again."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gq.errors import GqError
from gq.files import parse_json
from gq.rollouts.statistics import Episode


@dataclass(frozen=True)
class Way:
    """How a policy was to act: asked for a return, in a mode of its planner, or neither."""

    target: float | None = None
    mode: str | None = None

    @property
    def label(self) -> str:
        """What tables call it."""
        if self.target is not None:
            return f"{self.target:g}"
        return self.mode or "-"


@dataclass(frozen=True)
class StoredEvaluation:
    """A file of `evals`."""

    file: Path
    checkpoint: str
    stochastic: bool
    context: str | None  # how a transformer moved on when its context was full; None: not on record, or no transformer
    versions: dict[str, str]
    episodes: dict[Way, list[Episode]]

    @property
    def protocol(self) -> tuple[str, bool, str]:
        """What two evaluations must share to complete each other; a context that is not on record slid."""
        return self.checkpoint, self.stochastic, self.context or "sliding"


def read_evaluations(run: Path, *, asks: bool) -> tuple[list[StoredEvaluation], list[str]]:
    """Return a run's evaluations, the newest first, and a line about each file that cannot be used.

    Args:
        asks: the policy is asked for a return; else the target on record means nothing.
    """
    found, problems = [], []
    for file in sorted((run / "evals").glob("*.json"), reverse=True):
        try:
            found.append(read_evaluation(file, asks=asks))
        except GqError as error:
            problems.append(str(error))
    return found, problems


def read_evaluation(file: Path, *, asks: bool) -> StoredEvaluation:
    """Read one evaluation; those of older versions of gq too.

    Raises:
        GqError: it is damaged.
    """
    try:
        document = parse_json(file.read_text(encoding="utf-8"))
        episodes: dict[Way, list[Episode]] = {}
        for entry in document["episodes"]:
            way = Way(mode=way_name(entry)) if entry.get("mode") else Way(asked_of(entry) if asks else None)
            episodes.setdefault(way, []).append(one_episode(entry))
        return StoredEvaluation(
            file=file,
            checkpoint=str(document["checkpoint"]),
            stochastic=bool(document.get("stochastic")),
            context=document.get("context"),
            versions={str(name): str(version) for name, version in document["versions"].items()},
            episodes=episodes,
        )
    except (OSError, ValueError, OverflowError, KeyError, TypeError, AttributeError) as error:
        raise GqError(f"cannot use {file}: {error}", hint="remove it, and evaluate again") from None


def way_name(entry: Mapping[str, Any]) -> str:
    """Return how plans were executed in an episode or a result on record; older ones have the mode alone."""
    return str(entry.get("label") or entry["mode"])


def asked_of(entry: dict[str, Any]) -> float | None:
    """Return the return that an episode on record was asked for. Raises what a damaged one raises."""
    asked = entry["target_return"]
    return None if asked is None else finite(asked)


def finite(value: Any) -> float:
    """Return a number on record. Raises what a damaged one raises."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is no return")
    return number


def one_episode(entry: dict[str, Any]) -> Episode:
    """Return an episode on record. Raises what a damaged one raises."""
    return Episode(
        seed=int(entry["seed"]),
        target_return=finite(entry.get("target_return") or 0.0),
        episode_return=finite(entry["episode_return"]),
        length=int(entry["length"]),
        terminated=bool(entry["terminated"]),
    )
