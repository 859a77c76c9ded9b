"""Renaming and removing runs, with what points at them kept right; a run that is running is never touched."""

import os
import re
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gq.errors import GqError, UsageError
from gq.files import sync, write_error, write_json, write_text
from gq.paths import checkpoint_folders, json_or_empty, runs_folder, section
from gq.runs.card import CARD, card_text, is_own
from gq.runs.checkpoint import pointed
from gq.runs.records import RunRecord, children_of, measure
from gq.runs.state import hold_run, is_held, is_in_use
from gq.settings import toml_value

REMOVED = ".removed.partial"  # ending of what is being removed; what a kill leaves of it goes with the next removal
SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class Removal:
    """A run, or a checkpoint of one, that is to be removed."""

    run: Path
    path: Path  # the run, or what in it
    reason: str
    num_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"run": str(self.run), "path": str(self.path), "reason": self.reason, "num_bytes": self.num_bytes}


def refuse_in_use(run: Path) -> None:
    """Raise GqError if a process trains a run or distils from it."""
    if is_in_use(run):
        message = f"{run.name} is running: another process holds it"
        raise GqError(message, hint="stop it with Ctrl-C first, which saves everything, or wait for it")


def rename(run: Path, name: str) -> Path:
    """Give a run another name in the same folder, and return its new path.

    What names it is changed too: the runs that were finetuned from it, its card, its correctors. That comes first, so
    that a rename that was killed is completed when it is repeated.

    Raises:
        UsageError: the name cannot be one, or is taken.
        GqError: the run is running, or cannot be written.
    """
    target = run.parent / name
    if not name or name.startswith((".", "-")) or name != Path(name).name or not name.isprintable():
        raise UsageError(f"{name!r} cannot be the name of a run", hint="for example hopper-best")
    if os.path.lexists(target):
        raise UsageError(f"there is {target} already", hint="choose another name, or remove it: gq runs remove")
    refuse_in_use(run)
    old_path = str(run.resolve())
    new_path = str(run.resolve().parent / name) if not run.is_symlink() else old_path
    try:
        with hold_run(run):
            if new_path != old_path:
                rename_inside(run, name)
                for child in children_of(run):
                    point_to_parent(child, old_path, new_path)
            run.rename(target)
            sync(run.parent)
    except OSError as error:
        raise write_error(run, error) from error
    return target


def point_to_parent(child: Path, old: str, new: str) -> None:
    """Let a finetuned run's files name its parent's new path. Which run is the newest does not change by that."""
    path = child / "config.toml"
    status = path.stat()
    text = path.read_text(encoding="utf-8")
    write_text(path, text.replace(f"parent = {toml_value(old)}\n", f"parent = {toml_value(new)}\n"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    environment = json_or_empty(child / "environment.json")
    if section(environment, "parent").get("run") == old:
        write_json(child / "environment.json", environment | {"parent": environment["parent"] | {"run": new}})


def rename_inside(run: Path, name: str) -> None:
    """Let a run's card and its correctors use its new name."""
    rename_card(run, name)
    for file in (run / "correctors").glob("*/corrector.json"):
        if (document := json_or_empty(file)).get("teacher") == run.name:
            write_json(file, document | {"teacher": name})


def rename_card(run: Path, name: str) -> None:
    """Write a run's card for its new name; in one that somebody edited, change title and commands, and nothing else."""
    card = run / CARD
    if not card.is_file():
        return
    text = card.read_text(encoding="utf-8")
    if is_own(text):
        write_text(card, card_text(run, name=name))
        return
    old_name = re.compile(rf"(?<![\w./-]){re.escape(run.name)}(?![\w/-])")  # not a part of a longer name or a path
    lines = text.splitlines(keepends=True)
    renamed = [old_name.sub(name, line) if line.startswith("# ") or "gq " in line else line for line in lines]
    write_text(card, "".join(renamed))


def removal_of(run: Path, reason: str) -> Removal:
    """Return a run as something to remove."""
    return Removal(run, run, reason, measure(run)[0])


def plan_prune(
    records: Iterable[RunRecord],
    *,
    failed: bool = False,
    empty: bool = False,
    checkpoints: bool = False,
    older_than_days: float | None = None,
) -> list[Removal]:
    """Return what is to be removed of runs; of those that are running, nothing.

    Args:
        failed: runs whose training ended with an error.
        empty: runs without a checkpoint.
        checkpoints: of the other runs, the checkpoints that are neither the best nor the last.
        older_than_days: only what has not changed for this long; without any of the others, such runs.
    """
    found = []
    latest = time.time() - (older_than_days or 0.0) * SECONDS_PER_DAY
    for record in records:
        if is_in_use(record.run) or (older_than_days is not None and measure(record.run)[1] > latest):
            continue
        if failed and record.state == "failed":
            found.append(removal_of(record.run, "failed"))
        elif empty and record.num_checkpoints == 0:
            found.append(removal_of(record.run, "empty"))
        elif checkpoints:
            found += superfluous_checkpoints(record.run)
        elif older_than_days is not None and not (failed or empty):
            found.append(removal_of(record.run, f"unchanged for {older_than_days:g} days"))
    return found


def folders_without_run() -> list[Removal]:
    """Return the folders in the runs folder whose process ended before it had written a configuration."""
    folder = runs_folder()
    candidates = sorted(folder.glob("[!.]*/.lock")) if folder.is_dir() else []
    folders = [lock.parent for lock in candidates if not is_held(lock)]
    return [removal_of(path, "empty") for path in folders if [one.name for one in path.iterdir()] == [".lock"]]


def superfluous_checkpoints(run: Path) -> list[Removal]:
    """Return the checkpoints of a run that are neither the best nor the last; none where a pointer is damaged."""
    folders = checkpoint_folders(run)
    try:
        kept = {pointed(run, "best"), pointed(run, "last")}
    except GqError:
        return []
    if None in kept and len(kept) == 1:
        return []
    rest = [folder for folder in folders[:-1] if folder.name not in kept]
    return [Removal(run, folder, "neither the best nor the last", measure(folder)[0]) for folder in rest]


def remove(removals: Iterable[Removal]) -> int:
    """Remove runs and checkpoints; return the bytes that this frees.

    Raises:
        GqError: a run is running by now, or cannot be removed. What was removed before stays so.
    """
    num_bytes = 0
    for one in removals:
        refuse_in_use(one.run)
        try:
            if one.run.is_symlink() and one.path == one.run:
                one.run.unlink()
                continue
            with hold_run(one.run):
                gone = one.path.with_name(f".{one.path.name}{REMOVED}")  # no run and no checkpoint any more, at once
                shutil.rmtree(gone, ignore_errors=True)
                one.path.rename(gone)
            shutil.rmtree(gone)
        except OSError as error:
            message = f"cannot remove {one.path}: {error.strerror or error}"
            raise GqError(message, hint="it needs permission to write in that folder") from error
        num_bytes += one.num_bytes
    sweep()
    return num_bytes


def sweep() -> None:
    """Remove what killed removals have left in the runs folder."""
    for leftover in runs_folder().glob(f".*{REMOVED}"):
        shutil.rmtree(leftover, ignore_errors=True)
