"""What lies on the disk: free space, datasets against their records, runs and checkpoints against their manifests."""

import os
import shlex
import shutil
from pathlib import Path

from gq.doctor.findings import Finding
from gq.errors import GqError
from gq.files import sha256
from gq.paths import all_runs, checkpoint_folders, datasets_folder, json_or_empty, read_settings, runs_folder
from gq.runs.checkpoint import pointed, verify_checkpoint
from gq.runs.state import is_in_use

LITTLE_BYTES = 5_000_000_000  # a dataset and a few checkpoints
NOTHING_BYTES = 200_000_000  # one checkpoint of a small model


def examine_folders() -> list[Finding]:
    """Say where datasets and runs lie, whether one can write there, and how much space is left."""
    places = {"datasets": (datasets_folder(), "GQ_DATA_DIR"), "runs": (runs_folder(), "GQ_RUNS_DIR")}
    return [examine_folder(name, folder, variable) for name, (folder, variable) in places.items()]


def examine_folder(name: str, folder: Path, variable: str) -> Finding:
    """Examine where something lies; `variable` moves it."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    text = f"{folder}, {free / 1e9:.1f} GB free"
    elsewhere = f"export {variable}=/path/with/space"
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Finding(name, "problem", f"cannot write in {there}", f"export {variable}=/path/that/can/be/written")
    if free < NOTHING_BYTES:
        return Finding(name, "problem", text, elsewhere if name == "datasets" else "gq runs prune --checkpoints")
    if free < LITTLE_BYTES:
        return Finding(name, "warning", text, elsewhere if name == "datasets" else "gq runs prune --checkpoints")
    return Finding(name, "ok", text)


def examine_cache(*, deep: bool) -> list[Finding]:
    """Compare cached datasets with their records: size and time, or (`deep`) every byte."""
    from gq.datasets import cache, manifest

    entries = cache.in_cache()
    if deep:
        problems = {one.id: one.problem for one in cache.verify(entries)}
    else:
        says = {"changed": "it does not have the size on record"}
        problems = {entry.id: says.get(manifest.state_of(entry), "") for entry in entries}
    found = [
        Finding(f"dataset {name}", "problem", text, f"gq download {name}") for name, text in problems.items() if text
    ]
    how = "by hash" if deep else "by size; --verify hashes them"
    return [*found, Finding("cache", "ok", f"{len(entries) - len(found)} of {len(entries)} datasets are sound ({how})")]


def examine_runs(*, deep: bool) -> list[Finding]:
    """Compare the checkpoints of all runs with their manifests, by size or (`deep`) by hash."""
    runs = all_runs()
    found = [finding for run in runs for finding in examine_run(run, deep=deep)]
    bad = {finding.subject for finding in found}
    num_sound = len(runs) - len(bad)
    how = "by hash" if deep else "by size; --verify hashes them"
    return [*found, Finding("checkpoints", "ok", f"those of {num_sound} of {len(runs)} runs are sound ({how})")]


def examine_run(run: Path, *, deep: bool) -> list[Finding]:
    """Return what is wrong with a run; of one that is running, whose files come and go, nothing."""
    if is_in_use(run):
        return []
    subject, found = f"run {run.name}", list[Finding]()
    if not read_settings(run).get("algo"):
        return [Finding(subject, "problem", "config.toml is damaged", shlex.join(["gq", "runs", "remove", run.name]))]
    folders = checkpoint_folders(run)
    for folder in folders:
        try:
            verify_checkpoint(folder, deep=deep)
        except GqError as error:
            words = ["rm", "-r", str(folder)] if len(folders) > 1 else ["gq", "runs", "remove", run.name]
            found.append(Finding(subject, "problem", str(error), shlex.join(words)))
    for which in ("last", "best"):
        pointer = run / "checkpoints" / f"{which}.json"
        try:
            pointed(run, which)
        except GqError as error:
            found.append(Finding(subject, "problem", str(error), shlex.join(["rm", str(pointer)])))
    for file in sorted((run / "correctors").glob("*/corrector.json")):
        weights, document = file.with_name("model.safetensors"), json_or_empty(file)
        is_whole = weights.is_file() and "sha256" in document
        if not is_whole or (deep and sha256(weights) != document["sha256"]):
            mend = shlex.join(["gq", "distill", run.name, "--force"])
            found.append(Finding(subject, "problem", f"the corrector {file.parent.name} is damaged", mend))
    return found
