"""Versions: what gq was tested with, and what does not work together. Imports none of it."""

import platform
import re
from collections.abc import Mapping
from importlib import metadata

from gq.doctor.findings import Finding

OLDEST_PYTHON = "3.11"
# From the oldest that works to the first that is not known to; those of pyproject.toml. Empty: no bound.
BOUNDS = {
    "torch": ("2.10", ""),
    "mujoco": ("3.17", "4"),
    "gymnasium": ("1.1", "2"),
    "numpy": ("1.26", ""),
    "h5py": ("3.11", ""),
    "safetensors": ("0.4.3", ""),
    "typer": ("0.29", "0.30"),
    "rich": ("13.8", ""),
    "pydantic": ("2.5.3", ""),
    "filelock": ("3.16", ""),
    "platformdirs": ("4", ""),
    "imageio": ("2.38", ""),
    "pillow": ("10.1", ""),
}
OPTIONAL = {  # by extra
    "dm-control": ("dmc", "1.0.50", "2", "DeepMind Control's tasks"),
    "matplotlib": ("plot", "3.9", "", "pictures of gq plot"),
}
# Two that do not work together, from these versions on, and what mends it.
BAD_PAIRS = [
    (("mujoco", "4"), ("dm-control", "1.0.50"), "dm_control 1.0.50 does not load with mujoco 4", "mujoco>=3.17,<4"),
]


def installed_versions() -> dict[str, str]:
    """Return the versions of what gq builds on, by name; what is missing is left out."""
    found = {"python": platform.python_version()}
    for name in (*BOUNDS, *OPTIONAL):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def examine_versions(installed: Mapping[str, str]) -> list[Finding]:
    """Compare versions with what works.

    Args:
        installed: by name, as from `installed_versions`.
    """
    python = installed["python"]
    if is_before(python, OLDEST_PYTHON):
        new = f"python{OLDEST_PYTHON} -m venv .venv"
        found = [Finding("python", "problem", f"{python} is older than {OLDEST_PYTHON}", new)]
    else:
        found = [Finding("python", "ok", python)]
    found += [examine_one(name, installed.get(name), *bounds) for name, bounds in BOUNDS.items()]
    for name, (extra, low, high, purpose) in OPTIONAL.items():
        if name not in installed:
            install = f'pip install "gym-qwen[{extra}]"'
            found.append(Finding(name, "note", f"not installed; {purpose} need it", install))
        else:
            found.append(examine_one(name, installed[name], low, high))
    for (first, first_low), (second, second_low), text, requirement in BAD_PAIRS:
        both = first in installed and second in installed
        if both and not is_before(installed[first], first_low) and not is_before(installed[second], second_low):
            found.append(Finding(f"{first} and {second}", "problem", text, f'pip install "{requirement}"'))
    return found


def examine_one(name: str, version: str | None, low: str, high: str) -> Finding:
    """Compare one version with its bounds; None is missing."""
    requirement = f"{name}>={low}" + (f",<{high}" if high else "")
    install = f'pip install "{requirement}"'
    if version is None:
        return Finding(name, "problem", "not installed", install)
    if is_before(version, low):
        return Finding(name, "problem", f"{version} is older than {low}", install)
    if high and not is_before(version, high):
        return Finding(name, "problem", f"{version} is not tested: gq needs one before {high}", install)
    return Finding(name, "ok", version)


def is_before(version: str, other: str) -> bool:
    """Tell whether a version is older than another; `2.10.0+cpu` is not older than `2.10`."""
    return numbers(version) < numbers(other)


def numbers(version: str) -> list[int]:
    """Return the release numbers of a version, without zeros at the end."""
    match = re.match(r"\d+(\.\d+)*", version)
    parts = [int(part) for part in match[0].split(".")] if match else []
    while parts and parts[-1] == 0:
        parts.pop()
    return parts
