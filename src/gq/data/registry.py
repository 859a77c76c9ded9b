"""The datasets that gq knows by name, and where each lies in the cache. Imports nothing heavy."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from gq.envs.tasks import TASKS, Task
from gq.errors import UsageError, suggest
from gq.paths import datasets_folder

ENVIRONMENTS = {"hopper": "Hopper-v5", "walker2d": "Walker2d-v5", "halfcheetah": "HalfCheetah-v5"}
ENVIRONMENTS |= {"ant": "Ant-v5", "humanoid": "Humanoid-v5"}
MINARI_LEVELS = ("simple", "medium", "expert")
MINARI_FILES = ("metadata.json", "main_data.hdf5")
D4RL_ENVIRONMENTS = ("hopper", "halfcheetah", "walker2d", "ant")
D4RL_LEVELS = ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert", "mixed", "random-expert")
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

    Without a level it is medium; without `builtin/` in front it is Minari's. D4RL's names are of other data and are
    refused; but D4RL has no Humanoid, so `humanoid_medium-v2`, which scripts use, can only mean Minari's.

    Raises:
        UsageError: there is no such dataset, or it is D4RL's.
    """
    words = split_name(name)
    if words.source == "d4rl" or is_spelt_as_d4rl(name.lower(), words):
        hint = "D4RL files are read from a path for now: gq train dt --dataset FILE.hdf5"
        raise UsageError(f"{name} is a D4RL dataset, which gq cannot download yet", hint=hint)
    versions = {"", "v0"} if words.environment != "humanoid" else {"", "v0", "v2"}
    identifier = f"mujoco/{words.environment}/{words.level or 'medium'}-v0"
    if words.source == "builtin":
        versions = {""}
        identifier = f"builtin/{words.environment}/{words.level or 'medium'}"
    if identifier in ENTRIES and words.version in (versions if words.level else {""}):
        return ENTRIES[identifier]
    short = [f"{environment}/{level}" for environment in ENVIRONMENTS for level in MINARI_LEVELS]
    otherwise = "known: " + ", ".join([*ENVIRONMENTS, *(i for i in ENTRIES if i.startswith("builtin"))])
    raise UsageError(
        f"there is no dataset {name}", hint=suggest(name, [*ENVIRONMENTS, *short, *ENTRIES], otherwise=otherwise)
    )


class NameParts(NamedTuple):
    """The words of a dataset's name in lower case, each empty where it is not said."""

    source: str
    environment: str
    level: str  # words joined by -
    version: str  # v and a number


def split_name(name: str) -> NameParts:
    """Split a dataset's name into its parts."""
    words = re.split("[-_/]", name.lower().strip("/"))
    source = words.pop(0) if words[0] in ("builtin", "minari", "mujoco", "d4rl") else ""
    version = words.pop() if words and re.fullmatch(r"v\d+", words[-1]) else ""
    environment = words.pop(0) if words else ""
    return NameParts(source, environment, "-".join(words), version)


def is_spelt_as_d4rl(name: str, words: NameParts) -> bool:
    """Tell whether a name is D4RL's: `hopper-medium-v0`, `hopper-random`; Minari writes `hopper/medium-v0`."""
    if words.source or words.environment not in D4RL_ENVIRONMENTS or words.level not in D4RL_LEVELS:
        return False
    return words.level not in MINARI_LEVELS or (words.version != "" and not name.endswith(f"/{words.level}-v0"))
