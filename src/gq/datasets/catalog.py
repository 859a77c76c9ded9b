"""What can be downloaded or simulated: tables of names, sizes, rows, returns and known defects. Imports nothing heavy.

Sizes and rows are about right unless an entry says otherwise. Those of Minari are computed from its format and the
numbers of steps it was collected with, those of D4RL are the ones that the TensorFlow Datasets catalogue lists.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gq.envs.tasks import TASKS, Task, resolve_task
from gq.paths import datasets_folder

MINARI_FILES = ("metadata.json", "main_data.hdf5")
MINARI_LEVELS = ("simple", "medium", "expert")
MINARI_ENVIRONMENTS = (
    *("hopper", "walker2d", "halfcheetah", "ant", "humanoid", "swimmer", "reacher", "pusher"),
    *("invertedpendulum", "inverteddoublependulum", "humanoidstandup"),
)
MINARI_TRANSITIONS = {"reacher": 500_000, "pusher": 500_000, "invertedpendulum": 100_000}  # the others: a million
MINARI_TRANSITIONS |= {"inverteddoublependulum": 100_000}
MINARI_WITHOUT_SIMPLE = ("swimmer", "reacher", "pusher", "invertedpendulum", "inverteddoublependulum")
PRINTED, READ_OFF = "printed by others", "read off a training curve, within 5 %"
MINARI_RETURNS: dict[str, tuple[str, tuple[tuple[float, float | None] | None, ...]]] = {  # simple, medium, expert
    "hopper": (PRINTED, ((1656, 1140), (2818, 877), (3858, 644))),
    "halfcheetah": (PRINTED, ((6927, 413), (12089, 3009), (16243, 1018))),
    "walker2d": (PRINTED, ((4076, 493), (5702, 1179), (6848, 190))),
    "ant": (READ_OFF, (None, (6200, None), None)),
    "humanoid": (READ_OFF, ((5700, None), (8000, None), (10600, None))),
}
PINNED = {"mujoco/humanoid/expert-v0": (2_946_805_796, "8253be69")}  # bytes, first digits of the SHA-256

BUILTIN_ENVIRONMENTS = ("hopper", "halfcheetah", "walker2d", "ant", "humanoid")
BUILTIN_LEVELS = ("medium", "medium-replay", "expert")
BUILTIN_RETURNS = {  # of the first 50 episodes of seed 0, as the packaged files state
    "builtin/hopper/medium": (2113, 839),
    "builtin/hopper/medium-replay": (792, 760),
    "builtin/hopper/expert": (3368, 162),
    "builtin/halfcheetah/medium": (2614, 911),
    "builtin/halfcheetah/medium-replay": (1784, 1138),
    "builtin/halfcheetah/expert": (5542, 79),
    "builtin/walker2d/medium": (2258, 743),
    "builtin/walker2d/medium-replay": (628, 428),
    "builtin/walker2d/expert": (4640, 93),
    "builtin/ant/medium": (1304, 824),
    "builtin/ant/medium-replay": (826, 635),
    "builtin/ant/expert": (3258, 66),
    "builtin/humanoid/medium": (3249, 1627),
    "builtin/humanoid/medium-replay": (1151, 1538),
    "builtin/humanoid/expert": (6051, 535),
}
NUM_BUILTIN_TRANSITIONS = 100_000

D4RL_ENVIRONMENTS = ("hopper", "halfcheetah", "walker2d", "ant")
D4RL_LEVELS = ("random", "medium", "expert", "medium-expert", "medium-replay", "full-replay")
D4RL_MEBIBYTES = {  # in the order of D4RL_LEVELS
    "hopper-v0": (51.83, 51.74, 51.56, 62.01, 10.48),
    "hopper-v1": (91.11, 92.03, 93.19, 184.59, 55.65, 183.32),
    "hopper-v2": (132.99, 134.93, 134.46, 268.78, 73.67, 182.80),
    "halfcheetah-v0": (84.79, 82.92, 83.44, 166.36, 8.60),
    "halfcheetah-v1": (145.19, 146.65, 146.94, 293.00, 57.68, 285.01),
    "halfcheetah-v2": (208.68, 209.48, 209.48, 418.37, 57.68, 285.01),
    "walker2d-v0": (78.41, 80.83, 78.41, 159.24, 8.42),
    "walker2d-v1": (132.36, 144.23, 143.06, 286.69, 84.37, 278.95),
    "walker2d-v2": (195.28, 206.94, 205.56, 411.91, 84.37, 278.95),
    "ant-v0": (139.50, 131.39, 131.34, 262.73, 104.63),
    "ant-v1": (225.18, 222.39, 220.72, 442.25, 132.05, 437.57),
    "ant-v2": (326.67, 320.11, 317.69, 637.02, 132.05, 437.57),
}
D4RL_REPLAY_TRANSITIONS = {"hopper-v0": 200_000, "halfcheetah-v0": 100_000, "walker2d-v0": 100_000}
D4RL_REPLAY_TRANSITIONS |= {"ant-v0": 1_000_000, "hopper-v2": 400_000}
D4RL_REPLAY_TRANSITIONS |= {"halfcheetah-v1": 200_000, "halfcheetah-v2": 200_000}  # the others: 300,000
OLD_FILES = {("walker2d", "medium-replay"): "walker_mixed"}  # v0 has names of its own

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
    def canonical_bytes(self) -> int:
        """About the size of the file in the cache; of a checkpoint 0, because it is kept as it comes."""
        task = TASKS.get(self.task)
        if task is None or self.num_transitions is None:
            return 0
        return self.num_transitions * bytes_per_row(task, observation_bytes=4, other_bytes=6)


def bytes_per_row(task: Task, *, observation_bytes: int, other_bytes: int) -> int:
    """Return the size of a transition: float32 actions, observations as said, reward and two flags."""
    return observation_bytes * task.observation_dim + 4 * task.action_dim + other_bytes


def minari_entry(environment: str, level: str) -> DatasetEntry:
    """Return the entry of a set of Minari's mujoco namespace."""
    identifier = f"mujoco/{environment}/{level}-v0"
    task = resolve_task(environment)
    num_transitions = MINARI_TRANSITIONS.get(environment, 1_000_000)
    computed_bytes = num_transitions * bytes_per_row(task, observation_bytes=8, other_bytes=10)
    size_bytes, sha256_start = PINNED.get(identifier, (computed_bytes, ""))
    source, returns = MINARI_RETURNS.get(environment, ("", (None, None, None)))
    mean, std = returns[MINARI_LEVELS.index(level)] or (None, None)
    doubtful = level == "simple" and environment in MINARI_WITHOUT_SIMPLE
    folder = f"datasets/farama-minari/mujoco/resolve/main/{environment}/{level}-v0/data"
    return DatasetEntry(
        id=identifier,
        kind="minari",
        task=task.id,
        group=f"mujoco/{environment}",
        level=level,
        file=f"minari/{environment}/{level}.hdf5",
        size_bytes=size_bytes,
        size_is_exact=identifier in PINNED,
        num_transitions=num_transitions,
        return_mean=mean,
        return_std=std,
        returns_source=source if mean is not None else "",
        licence="none declared",
        remote_paths=tuple(f"{folder}/{name}" for name in MINARI_FILES),
        sha256_start=sha256_start,
        note="Minari's generator makes no simple set of it, so the server may not have it" if doubtful else "",
    )


def builtin_entry(environment: str, level: str) -> DatasetEntry:
    """Return the entry of a set that gq simulates."""
    identifier = f"builtin/{environment}/{level}"
    task = resolve_task(environment)
    mean, std = BUILTIN_RETURNS.get(identifier, (None, None))
    return DatasetEntry(
        id=identifier,
        kind="builtin",
        task=task.id,
        group=f"builtin/{environment}",
        level=level,
        file=f"builtin/{environment}/{level}.hdf5",
        size_bytes=NUM_BUILTIN_TRANSITIONS * bytes_per_row(task, observation_bytes=4, other_bytes=6),
        num_transitions=NUM_BUILTIN_TRANSITIONS,
        return_mean=mean,
        return_std=std,
        returns_source="measured" if mean is not None else "",
        licence="MIT",
    )


def d4rl_entry(environment: str, level: str, version: str) -> DatasetEntry:
    """Return the entry of one of D4RL's MuJoCo files."""
    stem, folder = f"{environment}_{level.replace('-', '_')}", "gym_mujoco"
    if version == "v0":
        stem = OLD_FILES.get((environment, level), stem.replace("medium_replay", "mixed"))
    else:
        stem, folder = f"{stem}-{version}", f"gym_mujoco_{version}"
    sizes = D4RL_MEBIBYTES[f"{environment}-{version}"]
    parts = ("random", "expert") if level == "random-expert" else (level,)  # such files hold both of their parts
    return DatasetEntry(
        id=f"d4rl/{environment}-{level}-{version}",
        kind="d4rl",
        task=resolve_task(environment).id,
        group=f"d4rl/{environment}-{version}",
        level=level,
        file=f"d4rl/{environment}/{level}-{version}.hdf5",
        size_bytes=round(sum(sizes[D4RL_LEVELS.index(part)] for part in parts) * 2**20),
        num_transitions=d4rl_transitions(environment, level, version),
        licence="CC BY 4.0",
        remote_paths=(f"{folder}/{stem}.hdf5",),
        note=d4rl_note(environment, level, version),
    )


def d4rl_transitions(environment: str, level: str, version: str) -> int:
    """Return about how many rows a D4RL file has."""
    if (environment, level, version) == ("hopper", "medium-expert", "v0"):
        return 1_200_919
    if level == "medium-replay":
        return D4RL_REPLAY_TRANSITIONS.get(f"{environment}-{version}", 300_000)
    return 2_000_000 if level in ("medium-expert", "random-expert") else 1_000_000


def d4rl_note(environment: str, level: str, version: str) -> str:
    """Return what is known to be wrong with a D4RL file, with the numbers of D4RL's issues."""
    found = []
    if (environment, version) == ("hopper", "v1"):
        found.append("no time limit is flagged (#86); an episode is taken to end at 1,000 steps")
        if level in ("medium", "expert"):
            found.append("medium and expert were once swapped (#76)")
    elif version == "v0":
        found.append("time limits may not be flagged; an episode is then taken to end at 1,000 steps")
    if level == "medium-replay" and version != "v0":
        found.append("timeouts follow the sampling iteration, so returns-to-go of cut episodes are too low (#162)")
    if (environment, level, version) == ("hopper", "medium-expert", "v0"):
        found.append("it is expert and medium-replay, not expert and medium (#19)")
    if environment == "ant":
        found.append("contact forces are all zero (#143), in Ant-v5 they are not")
    return "; ".join(found)
