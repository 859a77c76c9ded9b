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


def report() -> str:
    """Return what a bug report needs: versions, hardware, paths. Imports torch and probes OpenGL in a child process."""
    import torch

    from gq.envs.gl import select_backend
    from gq.errors import GqError
    from gq.paths import datasets_folder, runs_folder

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    try:
        backend = select_backend()
    except GqError as error:
        backend = f"none: {error}"
    lines = [f"{name} {version}" for name, version in versions().items()]
    lines += [
        f"platform {platform.platform()}",
        f"CUDA {torch.version.cuda or 'not built in'}, GPU {gpu}",
        f"CPU {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        f"OpenGL {backend}",
        f"datasets {datasets_folder()}",
        f"runs {runs_folder()}",
    ]
    return "\n".join(lines)
