"""Which versions, of physics engines above all, numbers come from, and whether others give the same.

Measured on one-step predictions from stored states (mujoco 2.3.7 to 4.0.0, gymnasium 1.4.0): contacts are solved
differently since mujoco 3.5 in Hopper, Ant and Humanoid, by up to a typical step; Walker2d and HalfCheetah agree to
rounding from 2.3.7 on; 4.0 moves Ant and Humanoid by about 1e-4 of a typical step. dm_control defines the robots and
rewards of its tasks, and matters to no other.
"""

import platform
import re
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from gq.envs.tasks import CONTROL_TASKS

ENGINES = ("mujoco", "gymnasium")
CONTROL_ENGINES = ("mujoco", "dm_control")


def versions() -> dict[str, str]:
    """Return versions of everything that can change a number, by name; what is not installed is left out."""
    from gq import __version__

    found = {"gq": __version__, "python": platform.python_version()}
    for name in ("torch", "mujoco", "gymnasium", "dm_control", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def engines_of(task: str) -> tuple[str, ...]:
    """Return the packages that decide what a task does: of a Gymnasium id, or of a DeepMind Control name."""
    return CONTROL_ENGINES if task in CONTROL_TASKS else ENGINES


def installed_engines(task: str = "") -> dict[str, str]:
    """Return the versions in this environment of a task's engines, by name; default: of Gymnasium's tasks."""
    return {name: metadata.version(name) for name in engines_of(task)}


def recorded_engines(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Return what a dataset's attributes say of its engine: versions by name and env_id, each where it is recorded.

    Understands gq's own `mujoco_version` and the like, and Minari's `requirements` ("mujoco==3.2.3, ...").
    """
    requirements = str(attributes.get("requirements", ""))
    found = {}
    for name in engines_of(str(attributes.get("env_id", ""))):
        pinned = re.search(rf"(?<![\w-]){name}(?:\[\w+\])?\s*==\s*([\w.]+)", requirements)
        if version := attributes.get(f"{name}_version") or (pinned and pinned[1]):
            found[name] = str(version)
    if attributes.get("env_id"):
        found["env_id"] = str(attributes["env_id"])
    return found


def differing_engines(recorded: Mapping[str, str], installed: Mapping[str, str]) -> list[str]:
    """Return the engines that both sides know in another release; patch releases of the first two keep the physics."""
    return [
        name
        for name in (*ENGINES, "dm_control")
        if name in recorded and name in installed and release(name, recorded[name]) != release(name, installed[name])
    ]


def release(name: str, version: str) -> list[str]:
    """Return the first two parts of an engine's version; of dm_control, which only ever counts the third, all."""
    return version.split(".")[: None if name == "dm_control" else 2]


def mismatch(recorded: Mapping[str, str], installed: Mapping[str, str], task: str) -> str:
    """Return how what was recorded differs from what is used now: `mujoco 3.2.3, not 3.17.0`; "" if it does not.

    Args:
        recorded: versions by name and `env_id`, each where it is known.
        task: the environment used now; only its engines count.
    """
    differing = [name for name in differing_engines(recorded, installed) if name in engines_of(task)]
    pairs = [(f"{name} {recorded[name]}", installed[name]) for name in differing]
    if recorded.get("env_id", task) != task:
        pairs.insert(0, (recorded["env_id"], task))
    return " and ".join(f"{there}, not {here}" for there, here in pairs)
