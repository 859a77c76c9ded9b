"""Versions of everything that can change a number, without importing any of it."""

import platform
from importlib import metadata


def versions() -> dict[str, str]:
    """Return versions of gq, Python and the engines by name; what is not installed is left out."""
    from gq import __version__

    found = {"gq": __version__, "python": platform.python_version()}
    for name in ("torch", "mujoco", "gymnasium", "dm_control", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
