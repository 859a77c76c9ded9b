"""What can be downloaded or simulated, from catalog.json: names, sizes, rows, returns, known defects. Nothing heavy.

Sizes and rows are approximate unless an entry says otherwise. Those of Minari are computed from its format and the
numbers of steps it was collected with, those of D4RL are the ones that the TensorFlow Datasets catalogue lists; returns
of built-in sets are those of the first 50 episodes of seed 0. Numbers with # are D4RL's issues.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from gq.envs.tasks import TASKS
from gq.paths import datasets_folder

Kind = Literal["builtin", "minari", "d4rl", "tdmpc2", "hub"]


@dataclass(frozen=True, kw_only=True)
class DatasetEntry:
    """One dataset, or one checkpoint, that can be downloaded or simulated."""

    id: str  # what configurations and messages call it
    kind: Kind
    task: str  # Gymnasium id; of a checkpoint the task's name upstream; empty: the file says it
    group: str  # what it shares with the other levels of its kind, environment and version
    level: str  # medium, expert, ...; of a checkpoint its seed or size
    file: str  # where it lies below the datasets' folder
    size_bytes: int  # what is transferred, or written where nothing is; 0 where that is not known
    size_is_exact: bool = False
    num_transitions: int | None = None
    return_mean: float | None = None
    return_std: float | None = None
    returns_source: str = ""  # who says so
    licence: str
    remote_paths: tuple[str, ...] = ()  # on the kind's server, the data last
    sha256_start: str = ""  # what is known of the hash of the data file before it is downloaded
    note: str = ""  # a known defect

    @property
    def path(self) -> Path:
        """The file in the cache, whether it is there or not: gq's own format, or the checkpoint as it came."""
        return datasets_folder() / self.file

    @property
    def raw_folder(self) -> Path:
        """Where files lie as they come from the network, until they are converted."""
        return self.path.with_suffix(".download")

    @property
    def refused_path(self) -> Path:
        """Where a file lies that arrived whole but must not be trained on."""
        return self.path.with_suffix(".refused.hdf5")

    @property
    def canonical_bytes(self) -> int:
        """About the size of the file in the cache; of a checkpoint 0, because it is kept as it comes."""
        task = TASKS.get(self.task)
        if task is None or self.num_transitions is None:
            return 0
        # float32 observations, actions and reward, and two flags
        return self.num_transitions * (4 * task.observation_dim + 4 * task.action_dim + 6)


def _robotics_entries(table: dict[str, Any]) -> Iterator[DatasetEntry]:
    """Yield Minari's sets of Gymnasium-Robotics, which it calls D4RL's; the files say which environment they are of."""
    for robot, sets in table["robotics"].items():
        for level in sets["levels"]:
            folder = f"{robot}/{level}-{sets['version']}"
            place = f"datasets/farama-minari/D4RL/resolve/main/{folder}/data"
            yield DatasetEntry(
                id=f"D4RL/{folder}",
                kind="minari",
                task="",
                group=f"D4RL/{robot}",
                level=level,
                file=f"minari/D4RL/{robot}/{level}.hdf5",
                size_bytes=0,
                licence=table["licence"],
                remote_paths=(f"{place}/metadata.json", f"{place}/main_data.hdf5"),
            )


def _checkpoint_entries(table: dict[str, Any]) -> Iterator[DatasetEntry]:
    """Yield the official TD-MPC2 checkpoints: each task with three seeds, and the multi-task models by size."""
    domains = {task: (domain, table["seeds"]) for domain, tasks in table["domains"].items() for task in tasks}
    domains |= {task: ("multitask", list(table["sizes"])) for task in table["multitask"]}
    for task, (domain, levels) in domains.items():
        for level in levels:
            name = f"{task}-{level}"
            is_old = name in table["old_layout"]
            note = "it is in a layout that no published code evaluates correctly" if is_old else ""
            yield DatasetEntry(
                id=f"tdmpc2/{name}",
                kind="tdmpc2",
                task=task,
                group=f"tdmpc2/{task}",
                level=level,
                file=f"tdmpc2/{name}.pt",
                size_bytes=table["sizes"].get(level, table["task_bytes"]),
                licence=table["licence"],
                remote_paths=(f"{table['repository']}/{domain}/{name}.pt",),
                note="not every size of mt70 was published" if task == "mt70" else note,
            )


def _read_catalog() -> tuple[dict[str, DatasetEntry], dict[str, Any]]:
    """Return all entries by id, and what the catalog says of TD-MPC2's checkpoints."""
    table = json.loads((resources.files("gq.datasets") / "catalog.json").read_text(encoding="utf-8"))
    entries: list[DatasetEntry] = []
    kinds: tuple[Kind, ...] = ("builtin", "minari", "d4rl")
    for kind in kinds:
        for row in table[kind]["sets"]:
            row["remote_paths"] = tuple(row.get("remote_paths", ()))
            entries.append(DatasetEntry(kind=kind, licence=table[kind]["licence"], **row))
    entries += _robotics_entries(table["minari"])
    entries += _checkpoint_entries(table["tdmpc2"])
    return {entry.id: entry for entry in entries}, table["tdmpc2"]


ENTRIES, TDMPC2 = _read_catalog()
GROUPS: dict[str, dict[str, DatasetEntry]] = {}  # the levels of each group, by their names in lower case
for _entry in ENTRIES.values():
    GROUPS.setdefault(_entry.group, {})[_entry.level.lower()] = _entry
