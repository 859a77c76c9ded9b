"""The MuJoCo tasks of Gymnasium and of DeepMind Control that gq knows by name, with what needs no MuJoCo to check."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

from gq.errors import UsageError, suggest

if TYPE_CHECKING:
    import numpy as np


GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")


@dataclass(frozen=True)
class Task:
    """One environment's interface, as `gq.envs.make.make` gives it; S observation_dim, A action_dim."""

    id: str
    observation_dim: int
    action_low: tuple[float, ...]  # [A], ends of the action box
    action_high: tuple[float, ...]  # [A]
    max_episode_steps: int = 1000  # in decisions
    kind: Literal["gymnasium", "control"] = "gymnasium"
    action_repeat: int = 1  # frames, which are control steps of the simulator, per decision
    can_terminate: bool = False  # else an episode only ends at its time limit, which is a truncation
    kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)  # of the environment's constructor
    wrappers: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)  # name, kwargs; the innermost first
    observation_keys: tuple[str, ...] = ()  # of a Dict observation, in the order in which they are flattened

    @property
    def action_dim(self) -> int:
        """A."""
        return len(self.action_low)

    @property
    def is_known(self) -> bool:
        """Whether this is one of gq's own tasks as it stands in the table."""
        return self in (TASKS.get(self.id), CONTROL_TASKS.get(self.id))

    @property
    def action_bound(self) -> float:
        """The largest size of an action's component."""
        return max(*self.action_high, *(-low for low in self.action_low))

    def scale(self, actions: "np.ndarray") -> "np.ndarray":
        """Return actions [..., A] within [-1, 1] in the environment's units, float32 for float32."""
        middle, half_range = self._box
        scaled: np.ndarray = actions * half_range
        return scaled + middle if middle.any() else scaled  # adding 0 would turn -0 into 0

    def unscale(self, actions: "np.ndarray") -> "np.ndarray":
        """Return actions [..., A] in the environment's units as they are within [-1, 1], float32 for float32."""
        middle, half_range = self._box
        unscaled: np.ndarray = (actions - middle if middle.any() else actions) / half_range
        return unscaled

    @cached_property
    def _box(self) -> "tuple[np.ndarray, np.ndarray]":
        import numpy as np

        low, high = np.array(self.action_low, np.float32), np.array(self.action_high, np.float32)
        return (high + low) / 2, (high - low) / 2


def box(action_dim: int, bound: float) -> dict[str, Any]:
    """Return the ends of an action box that is [-bound, bound] in each dimension."""
    return {"action_low": (-bound,) * action_dim, "action_high": (bound,) * action_dim}


def read_tasks(table: dict[str, Any]) -> tuple[dict[str, Task], dict[str, Task]]:
    """Return Gymnasium's tasks and those of DeepMind Control by name.

    The latter's names are those of the TD-MPC2 paper; in dm_control `cup` is ball_in_cup, `pointmass` point_mass and
    `humanoid-cmu` humanoid_CMU. Seen through the environment, their actions are scaled.
    """
    gymnasium = {
        entry["id"]: Task(**box(entry.pop("action_dim"), entry.pop("action_bound")), **entry)
        for entry in table["gymnasium"]
    }
    names = [(f"{entry['domain']}-{name}", entry) for entry in table["control"] for name in entry["tasks"]]
    shared: dict[str, Any] = {"max_episode_steps": 500, "kind": "control", "action_repeat": 2}
    control = {
        name: Task(name, entry["observation_dim"], **box(entry["action_dim"], 1.0), **shared) for name, entry in names
    }
    return gymnasium, control


_TABLE = json.loads((resources.files("gq.envs") / "tasks.json").read_text(encoding="utf-8"))
TASKS, CONTROL_TASKS = read_tasks(_TABLE)


def resolve_task(name: str) -> Task:
    """Return the task of a Gymnasium id in any case, without a version the newest; or of a DeepMind Control name.

    The latter are `domain-task`, such as dog-run, with dm_control's own spelling as good: ball_in_cup-catch.

    Raises:
        UsageError: no such task.
    """
    for task in TASKS.values():  # v5 comes first
        if name.lower() in (task.id.lower(), task.id.split("-")[0].lower()):
            return task
    wanted = name.lower().replace("_", "-").replace("ball-in-cup-", "cup-").replace("point-mass-", "pointmass-")
    if wanted in CONTROL_TASKS:
        return CONTROL_TASKS[wanted]
    newest = ", ".join(known for known in TASKS if known.endswith("v5"))
    otherwise = f"known tasks: {newest}, and DeepMind Control's such as dog-run"
    hint = suggest(name, [*TASKS, *CONTROL_TASKS], otherwise=otherwise)
    raise UsageError(f"there is no task {name}{reason_for_missing(name)}", hint=hint)


def reason_for_missing(name: str) -> str:
    """Return why a task of DeepMind Control was omitted, after a colon; empty for any other name."""
    wanted = name.lower().replace("_", "-")
    return next((f": {reason}" for start, reason in _TABLE["left_out"].items() if wanted.startswith(start)), "")


def ordered_keys(parts: Iterable[str]) -> list[str]:
    """Return the keys of Dict observations in the order in which they are flattened: those of goals, then by name."""
    names = sorted(parts)
    return [*(key for key in GOAL_KEYS if key in names), *(key for key in names if key not in GOAL_KEYS)]


def leaves(parts: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return what a Dict, of Dicts perhaps, holds, in the order of flattening, by names such as `goal/kettle`."""
    found: dict[str, Any] = {}
    for key in ordered_keys(parts):
        part = parts[key]
        found |= leaves(part, f"{above}{key}/") if isinstance(part, Mapping) else {f"{above}{key}": part}
    return found


def proper_id(name: str) -> str:
    """Return the id of one of gq's own tasks, or the name as it is: Gymnasium may know it."""
    try:
        return resolve_task(name).id
    except UsageError:
        return name


def task_in_name(text: str) -> Task | None:
    """Return the v5 task whose name a dataset id or file name contains (`hopper_medium-v2.hdf5`), or None."""
    words = text.lower().replace("_", "-").replace("/", "-").replace(".", "-").split("-")
    aliases = {"walker": "walker2d", "cheetah": "halfcheetah"}
    for word in reversed(words):
        for task in TASKS.values():
            if aliases.get(word, word) == task.id.split("-")[0].lower():
                return task
    return None
