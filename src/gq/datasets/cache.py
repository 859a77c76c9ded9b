"""The cache of datasets: one process at a time at each, what is whole and what is not, and removal."""

import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from gq.data.reading import read_trajectories
from gq.data.trajectories import Trajectories
from gq.datasets import manifest
from gq.datasets.catalog import DatasetEntry
from gq.datasets.download import raw_folder, refused_file
from gq.datasets.fetch import Note, silent
from gq.datasets.hub import hub_entries
from gq.datasets.manifest import Record, Source, Stored
from gq.datasets.names import ENTRIES
from gq.errors import DataError, GqError
from gq.files import write_error


@dataclass(frozen=True)
class Verified:
    """What a cached file was found to be."""

    id: str
    path: Path
    problem: str  # empty where there is none
    mend: str  # the command that mends it, empty where nothing is to be mended


@contextmanager
def holding(entry: DatasetEntry, note: Note = silent) -> Iterator[None]:
    """Hold a dataset's place in the cache, waiting for whoever has it; half-written files of killed processes go.

    Args:
        note: called with a line of text if there is somebody to wait for.

    Raises:
        GqError: its folder cannot be written.
    """
    folder = entry.path.parent
    lock = FileLock(entry.path.with_name(f".{entry.path.name}.get.lock"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            note(f"waiting for another process that is getting {entry.id}")
            lock.acquire()
        for leftover in folder.glob(f".{entry.path.name}*.partial"):
            leftover.unlink(missing_ok=True)
    except OSError as error:
        message = f"cannot write in {folder}: {error.strerror or error}"
        raise GqError(message, hint="let GQ_HOME name a folder that you can write") from error
    try:
        yield
    finally:
        lock.release()


def sound_record(entry: DatasetEntry) -> Stored | None:
    """Return the record of a cached file that is whole, or None; the file is read for it.

    A file without a record, as older versions and killed processes leave them, gets one if it can be read.

    Raises:
        GqError: the cache cannot be written.
    """
    state = manifest.state_of(entry)
    if state == "absent":
        return None
    if state == "unrecorded":
        return adopt(entry)
    if not manifest.has_recorded_content(entry):
        return None
    if state == "touched":
        manifest.accept_time(entry)
    shutil.rmtree(raw_folder(entry), ignore_errors=True)  # a kill may have left it
    return manifest.read_record(entry).stored


def adopt(entry: DatasetEntry) -> Stored | None:
    """Put a file that can be read on record; return None for one that cannot."""
    if entry.kind == "tdmpc2":
        return put_on_record(entry, None) if is_whole_zip(entry.path) else None
    try:
        trajectories = read_trajectories(entry.path, source=entry.id)
    except DataError:
        return None
    attributes = trajectories.attributes
    where = attributes.get("source_url") or attributes.get("source_path")
    source = None
    if where:
        num_bytes, time = int(attributes.get("source_bytes", 0)), attributes.get("downloaded") or manifest.now()
        source = Source(where=where, num_bytes=num_bytes, sha256=attributes["source_sha256"], time=time)
    return put_on_record(entry, source, trajectories)


def is_whole_zip(path: Path) -> bool:
    """Tell whether a file is a ZIP archive whose members all have their checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def put_on_record(entry: DatasetEntry, source: Source | None, trajectories: Trajectories | None = None) -> Stored:
    """Write the record of a file that is whole, and return what it says of the file; other forms of it go.

    Raises:
        GqError: the cache cannot be written.
    """
    try:
        stored = manifest.describe_stored(entry.path)
    except OSError as error:
        raise write_error(entry.path, error) from error
    if trajectories is not None:
        stored = replace(
            stored,
            num_transitions=trajectories.num_transitions,
            num_episodes=trajectories.num_episodes,
            return_mean=float(trajectories.returns.mean()),
            return_std=float(trajectories.returns.std()),
            num_requested_transitions=trajectories.attributes.get("num_requested_transitions"),
        )
    first = manifest.read_record(entry).source  # the first download's, which later ones were compared with
    manifest.write_record(entry, Record(id=entry.id, source=first or source, stored=stored))
    shutil.rmtree(raw_folder(entry), ignore_errors=True)
    refused_file(entry).unlink(missing_ok=True)
    return stored


def check_unchanged(entry: DatasetEntry) -> None:
    """Compare a cached file with its record before it is used: by size and time, and by its hash if the time differs.

    Raises:
        DataError: it is not the file that gq put there.
    """
    state = manifest.state_of(entry)
    if state == "touched" and manifest.has_recorded_content(entry):
        manifest.accept_time(entry)
    elif state in ("touched", "changed", "absent"):
        raise DataError(f"{entry.path} has changed since gq put it there", hint=f"gq download {entry.id}")


def verify(entries: list[DatasetEntry]) -> list[Verified]:
    """Read and hash cached files, and compare them with their records; without a record, only read them.

    Raises:
        GqError: a file cannot be read.
    """
    return [
        Verified(entry.id, entry.path, problem, f"gq download {entry.id}" if problem else "")
        for entry in entries
        for problem in [problem_of(entry)]
    ]


def problem_of(entry: DatasetEntry) -> str:
    """Return what is wrong with a cached file, or nothing."""
    state = manifest.state_of(entry)
    if state == "absent":
        return "it is not in the cache"
    if state == "unrecorded":
        return check_unrecorded(entry)
    stored = manifest.read_record(entry).stored
    assert stored is not None, "a state other than unrecorded has a record"
    num_bytes = entry.path.stat().st_size
    if num_bytes != stored.num_bytes:
        return f"it has {num_bytes:,} bytes, not {stored.num_bytes:,}"
    try:
        return "" if manifest.has_recorded_content(entry) else "its content is not what was put there"
    except OSError as error:
        raise GqError(f"cannot read {entry.path}: {error.strerror}") from error


def check_unrecorded(entry: DatasetEntry) -> str:
    """Return what is wrong with a file that has no record, or nothing."""
    if entry.kind == "tdmpc2":
        return "" if is_whole_zip(entry.path) else "it is not a whole PyTorch file"
    try:
        read_trajectories(entry.path)
    except DataError as error:
        return str(error)
    return ""


def in_cache() -> list[DatasetEntry]:
    """Return the entries whose files are in the cache."""
    return [entry for entry in [*ENTRIES.values(), *hub_entries()] if entry.path.is_file()]


def remove(entry: DatasetEntry) -> int:
    """Remove a dataset and what is left of its download; return the bytes that this frees.

    The hash of its source stays on record, for the next download.

    Raises:
        GqError: the cache cannot be written.
    """
    with holding(entry):
        if manifest.is_anothers(entry):
            return 0
        raw = raw_folder(entry)
        doomed = [path for path in (entry.path, refused_file(entry), *raw.rglob("*")) if path.is_file()]
        num_bytes = sum(path.stat().st_size for path in doomed)
        record = manifest.read_record(entry)
        try:
            if record.source is not None:
                manifest.write_record(entry, replace(record, stored=None))
            else:
                manifest.record_path(entry).unlink(missing_ok=True)
            entry.path.unlink(missing_ok=True)
            refused_file(entry).unlink(missing_ok=True)
            if raw.exists():
                shutil.rmtree(raw)
        except OSError as error:
            message = f"cannot remove {entry.path}: {error.strerror or error}"
            raise GqError(message, hint="it needs permission to write in that folder") from error
    return num_bytes
