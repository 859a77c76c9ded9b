"""Normalised scores: 100 (return - minimum) / (maximum - minimum), always with the name of the references used."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from gq.envs.tasks import Task


@dataclass(frozen=True)
class Reference:
    """A named pair of returns that a score is measured between."""

    name: str
    minimum: float  # a uniform random policy
    maximum: float  # a good policy
    table: str = ""  # version of gq's own table
    note: str = ""  # what to know before comparing scores

    @property
    def title(self) -> str:
        """The name, with the table's version where there is one: `gq-v5 (table 1)`."""
        return f"{self.name} (table {self.table})" if self.table else self.name

    def score(self, episode_return: float) -> float:
        """Return the normalised score."""
        return 100 * (episode_return - self.minimum) / (self.maximum - self.minimum)


def read_own_references() -> dict[str, Reference]:
    """Return gq's own references by task, from the packaged table; tasks without an expert have none.

    scripts/measure_reference_scores.py writes the table, with intervals and provenance.
    """
    table = json.loads((resources.files("gq.envs") / "reference_scores.json").read_text(encoding="utf-8"))
    return {
        task: Reference(table["name"], entry["random"]["mean"], entry["expert"]["mean"], table=table["version"])
        for task, entry in table["tasks"].items()
        if "expert" in entry
    }


# d4rl/infos.py of D4RL, the same for v0, v1 and v2. It has no Humanoid.
D4RL = {
    "hopper": Reference("d4rl", -20.272305, 3234.3),
    "halfcheetah": Reference("d4rl", -280.178953, 12135.0),
    "walker2d": Reference("d4rl", 1.629008, 4592.3),
    "ant": Reference("d4rl", -325.6, 3879.7, note="D4RL's Ant paid another contact cost: compare with care"),
}
GQ_V5 = read_own_references()


def reference_for(task: Task | None, dataset: str) -> Reference | None:
    """Return the references for results on a dataset: D4RL's for D4RL data only, else the task's own, or None.

    An environment with other arguments, limits or wrappers than those of the table has none: its returns are others.

    Args:
        dataset: id, or what `origin_of` says.
    """
    if task is None or not task.is_known:
        return None
    return D4RL.get(task.id.split("-")[0].lower()) if dataset.startswith("d4rl/") else GQ_V5.get(task.id)


def origin_of(dataset: str, attributes: Mapping[str, Any]) -> str:
    """Return the id that a file's attributes record as its source where it is D4RL's, else the dataset as it is named.

    A repaired or copied D4RL file so keeps its references.
    """
    source = str(attributes.get("source", ""))
    return source if source.startswith("d4rl/") else dataset
