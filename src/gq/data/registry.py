"""The datasets that gq knows by name, and where each lies in the cache. Imports nothing heavy."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gq.envs.tasks import TASKS, Task
from gq.errors import UsageError, suggest
from gq.paths import datasets_folder

ENVIRONMENTS = {"hopper": "Hopper-v5", "walker2d": "Walker2d-v5", "halfcheetah": "HalfCheetah-v5"}
ENVIRONMENTS |= {"ant": "Ant-v5", "humanoid": "Humanoid-v5"}
MINARI_LEVELS = ("simple", "medium", "expert")
MINARI_FILES = ("metadata.json", "main_data.hdf5")
NUM_MINARI_TRANSITIONS = 1_000_000
NUM_BUILTIN_TRANSITIONS = 100_000


@dataclass(frozen=True, kw_only=True)
class DatasetEntry:
    """One dataset that can be downloaded or simulated."""

    id: str  # what configurations and messages call it
    kind: Literal["builtin", "minari"]
    task: str  # Gymnasium id
    level: str  # simple, medium or expert
    size_bytes: int  # about what is transferred, or written where nothing is
    remote_paths: tuple[str, ...] = ()  # of metadata.json and main_data.hdf5, on a server like huggingface.co

    @property
    def path(self) -> Path:
        """The canonical file in the cache, whether it is there or not."""
        environment = self.task.split("-")[0].lower()
        return datasets_folder() / self.kind / environment / f"{self.level}.hdf5"


def minari_entry(environment: str, level: str) -> DatasetEntry:
    """Return the entry of a set of Minari's mujoco namespace."""
    task = TASKS[ENVIRONMENTS[environment]]
    folder = f"datasets/farama-minari/mujoco/resolve/main/{environment}/{level}-v0/data"
    return DatasetEntry(
        id=f"mujoco/{environment}/{level}-v0",
        kind="minari",
        task=task.id,
        level=level,
        size_bytes=NUM_MINARI_TRANSITIONS * bytes_per_row(task, observation_bytes=8, other_bytes=10),
        remote_paths=tuple(f"{folder}/{name}" for name in MINARI_FILES),
    )


def builtin_entry(environment: str, level: str) -> DatasetEntry:
    """Return the entry of a set that gq simulates."""
    task = TASKS[ENVIRONMENTS[environment]]
    return DatasetEntry(
        id=f"builtin/{environment}/{level}",
        kind="builtin",
        task=task.id,
        level=level,
        size_bytes=NUM_BUILTIN_TRANSITIONS * bytes_per_row(task, observation_bytes=4, other_bytes=6),
    )


def bytes_per_row(task: Task, *, observation_bytes: int, other_bytes: int) -> int:
    """Return the size of a transition: float32 actions, observations as said, reward and two flags."""
    return observation_bytes * task.observation_dim + 4 * task.action_dim + other_bytes


ENTRIES = {
    entry.id: entry
    for entry in [
        *(builtin_entry("hopper", level) for level in ("medium", "expert")),
        *(minari_entry(environment, level) for environment in ENVIRONMENTS for level in MINARI_LEVELS),
    ]
}


def known_ids() -> list[str]:
    """Return the ids of all known datasets, the built-in ones first."""
    return list(ENTRIES)


def cached(entry: DatasetEntry) -> bool:
    """Tell whether the canonical file is in the cache; it is put there whole or not at all."""
    return entry.path.is_file()


def resolve(name: str) -> DatasetEntry:
    """Return the dataset that a name stands for: an id, or a short form such as `hopper` or `ant-expert`.

    Without a level it is medium; without `builtin/` in front it is Minari's. D4RL's names are different data and are
    refused, except that there is no Humanoid in D4RL, so `humanoid-medium-v2` can only mean Minari's.

    Raises:
        UsageError: no dataset or a D4RL one is named.
    """
    lowered = name.lower().strip("/")
    if lowered in ENTRIES:
        return ENTRIES[lowered]
    source, environment, level, version = parts_of(lowered)
    if source == "d4rl" or (environment in ENVIRONMENTS and is_d4rl(environment, level, version)):
        hint = "D4RL files are read from a path for now: gq train dt --dataset FILE.hdf5"
        if environment in ENVIRONMENTS:
            hint += f" (Minari's is other data: mujoco/{environment}/medium-v0)"
        raise UsageError(f"{name} is a D4RL dataset, which gq cannot download yet", hint=hint)
    identifier = f"{source or 'mujoco'}/{environment}/{level or 'medium'}" + ("" if source == "builtin" else "-v0")
    if identifier in ENTRIES and (version is None or source != "builtin"):
        return ENTRIES[identifier]
    short = [f"{environment}/{level}" for environment in ENVIRONMENTS for level in MINARI_LEVELS]
    otherwise = "known: builtin/hopper/{medium,expert}, {" + ",".join(ENVIRONMENTS) + "}/{" + ",".join(MINARI_LEVELS) + "}"
    raise UsageError(f"there is no dataset {name}", hint=suggest(name, [*ENVIRONMENTS, *short, *ENTRIES], otherwise=otherwise))


def parts_of(name: str) -> tuple[str | None, str | None, str | None, str | None]:
    """Split a lower-case name into source, environment, level and version, each None where it is not said.

    The version keeps the sign before it, since `hopper/medium-v0` is Minari's way to write and `hopper-medium-v0` D4RL's.
    """
    match = re.fullmatch(r"(?:(mujoco|minari|builtin|d4rl)/)?([a-z0-9]+)(?:([-_/])([a-z_-]+?))?(?:-v(\d+))?", name)
    if match is None:
        return ("d4rl" if name.startswith("d4rl") else None), None, None, None
    source, environment, separator, level, version = match.groups()
    if version is not None:
        version = (separator or "") + version
    return ("mujoco" if source == "minari" else source), environment, level, version


def is_d4rl(environment: str, level: str | None, version: str | None) -> bool:
    """Tell whether a name is spelt as D4RL spells its own, and D4RL has that environment."""
    if environment == "humanoid" or level is None:
        return False
    return level not in MINARI_LEVELS or version not in (None, "/0")
