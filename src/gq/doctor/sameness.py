"""Whether two runs are the same, bit for bit, except for the time that they took."""

from pathlib import Path
from typing import Any

from gq.files import sha256
from gq.paths import checkpoint_folders, read_json

TIMES = ("seconds", "rollout_seconds", "evaluation_seconds", "simulation_seconds")  # of a checkpoint's progress
LOGS = ("replay", "trajectories")  # what a run did, append-only


def differences(run: Path, reference: Path) -> list[str]:
    """Return the names of the files in which two finished runs differ: metrics, checkpoints, pointers, logs.

    Raises:
        GqError: a JSON file is damaged.
    """
    names = {"metrics.jsonl", "checkpoints/last.json", "checkpoints/best.json"}
    for folder in (run, reference):
        names |= {f"checkpoints/{one.name}/{file.name}" for one in checkpoint_folders(folder) for file in one.iterdir()}
        names |= {str(file.relative_to(folder)) for log in LOGS for file in (folder / log).rglob("*.bin")}
        names |= {str(file.relative_to(folder)) for file in (folder / "checkpoints").glob(".*")}  # half written
    return sorted(name for name in names if content(run / name) != content(reference / name))


def content(file: Path) -> Any:
    """Return what is compared of a file, None where it is missing."""
    if not file.exists():
        return None
    if file.name == "state.json":
        state = read_json(file)
        progress = {name: value for name, value in state["progress"].items() if name not in TIMES}
        return {name: value for name, value in state.items() if name != "times_bytes"} | {"progress": progress}
    if file.name == "MANIFEST.json":  # it has the hash of state.json
        return sorted(name for name in read_json(file)["files"])
    return sha256(file) if file.is_file() else "folder"
