"""Which physics engine numbers come from, and whether another one gives the same.

Measured on one-step predictions from stored states (mujoco 2.3.7 to 4.0.0, gymnasium 1.4.0): contacts are solved
differently since mujoco 3.5 in Hopper, Ant and Humanoid, by up to a typical step; Walker2d and HalfCheetah agree to
rounding from 2.3.7 on; 4.0 moves Ant and Humanoid by about 1e-4 of a typical step.
"""

import re
from collections.abc import Mapping
from importlib import metadata
from typing import Any

ENGINES = ("mujoco", "gymnasium")


def installed_engines() -> dict[str, str]:
    """Return the versions of mujoco and gymnasium in this environment, by name."""
    return {name: metadata.version(name) for name in ENGINES}


def recorded_engines(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Return what a dataset's attributes say of its engine: mujoco, gymnasium and env_id, each where it is recorded.

    Understands gq's own `mujoco_version` and `gymnasium_version`, and Minari's `requirements` ("mujoco==3.2.3, ...").
    """
    requirements = str(attributes.get("requirements", ""))
    found = {}
    for name in ENGINES:
        pinned = re.search(rf"(?<![\w-]){name}(?:\[\w+\])?\s*==\s*([\w.]+)", requirements)
        if version := attributes.get(f"{name}_version") or (pinned and pinned[1]):
            found[name] = str(version)
    if attributes.get("env_id"):
        found["env_id"] = str(attributes["env_id"])
    return found


def differing_engines(recorded: Mapping[str, str], installed: Mapping[str, str]) -> list[str]:
    """Return the engines that both sides know in another minor or major version; patch releases keep the physics."""
    return [
        name
        for name in ENGINES
        if name in recorded and name in installed and minor(recorded[name]) != minor(installed[name])
    ]


def minor(version: str) -> list[str]:
    """Return the first two parts of a version."""
    return version.split(".")[:2]


def mismatch(recorded: Mapping[str, str], installed: Mapping[str, str], task: str) -> str:
    """Return how what was recorded differs from what is used now: `mujoco 3.2.3, not 3.17.0`; "" if it does not.

    Args:
        recorded: versions by name and `env_id`, each where it is known.
        task: the environment used now.
    """
    pairs = [(f"{name} {recorded[name]}", installed[name]) for name in differing_engines(recorded, installed)]
    if recorded.get("env_id", task) != task:
        pairs.insert(0, (recorded["env_id"], task))
    return " and ".join(f"{there}, not {here}" for there, here in pairs)
