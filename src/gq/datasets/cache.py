"""The cache of datasets: what lies there, its records, one process at a time at each place, and removal.

`medium.hdf5` has `medium.hdf5.json` beside it: where it came from, and its size and hash. The record is written last
and atomically, so a file that agrees with its record is whole. The source's hash stays on record when the file is
removed: it is what later downloads must have. Imports nothing heavy.
"""

import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gq import __version__
from gq.datasets.catalog import ENTRIES, DatasetEntry
from gq.datasets.names import hub_entry
from gq.errors import DataError, GqError
from gq.files import parse_json, sha256, write_error, write_json
from gq.paths import datasets_folder, read_json

if TYPE_CHECKING:
    from gq.data.trajectories import Trajectories

# intact: size and time are those on record; touched: only the time is not; unrecorded: there is no record;
# absent: there is no file, or that of another dataset, as hf://o/n/a and hf://o/n/a.hdf5 share a place
State = Literal["absent", "unrecorded", "intact", "touched", "changed"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file that a dataset was made from."""

    where: str  # address or path
    num_bytes: int
    sha256: str
    time: str  # when it was first seen, UTC, ISO 8601


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A file in the cache."""

    num_bytes: int
    sha256: str
    mtime_ns: int
    time: str  # when it was written, UTC, ISO 8601
    gq_version: str
    num_transitions: int | None = None  # this and what follows: None for checkpoints
    num_episodes: int | None = None
    return_mean: float | None = None
    return_std: float | None = None
    num_requested_transitions: int | None = None  # of simulated datasets


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is written beside a file."""

    id: str
    source: Source | None = None  # None where it was simulated
    stored: Stored | None = None  # None where it was removed


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def cached(entry: DatasetEntry) -> bool:
    """Whether the file is in the cache; it is put there whole or not at all."""
    return entry.path.is_file() and not _is_anothers(entry)


def record_path(entry: DatasetEntry) -> Path:
    """Return where the record of a dataset lies."""
    return entry.path.with_name(entry.path.name + ".json")


def read_record(entry: DatasetEntry) -> Record:
    """Return the record of a dataset; an empty one if there is none, it is another's, or it cannot be understood."""
    record = _record_there(entry)
    return record if record is not None and record.id == entry.id else Record(id=entry.id)


def _record_there(entry: DatasetEntry) -> Record | None:
    """Return the record in a dataset's place, whatever it is of; None if there is none or it cannot be understood."""
    try:
        document = parse_json(record_path(entry).read_text(encoding="utf-8"))
        source, stored = document["source"], document["stored"]
        return Record(
            id=document["id"],
            source=Source(**source) if source else None,
            stored=Stored(**stored) if stored else None,
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _is_anothers(entry: DatasetEntry) -> bool:
    """Whether the file in a dataset's place is on record as another dataset."""
    record = _record_there(entry)
    return record is not None and record.stored is not None and record.id != entry.id


def write_record(entry: DatasetEntry, record: Record) -> None:
    """Write a record atomically.

    Raises:
        GqError: the cache cannot be written.
    """
    write_json(record_path(entry), asdict(record))


def _describe_stored(path: Path) -> Stored:
    """Read and hash a file that was written just now."""
    status = path.stat()
    return Stored(
        num_bytes=status.st_size,
        sha256=sha256(path),
        mtime_ns=status.st_mtime_ns,
        time=now(),
        gq_version=__version__,
    )


def state_of(entry: DatasetEntry) -> State:
    """Compare a file with its record by size and time, without reading it."""
    try:
        status = entry.path.stat()
    except OSError:
        return "absent"
    if _is_anothers(entry):
        return "absent"
    stored = read_record(entry).stored
    if stored is None:
        return "unrecorded"
    if status.st_size != stored.num_bytes:
        return "changed"
    return "intact" if status.st_mtime_ns == stored.mtime_ns else "touched"


def _has_recorded_content(entry: DatasetEntry) -> bool:
    """Whether a file that has a record is the one on record, by reading it whole."""
    stored = read_record(entry).stored
    return stored is not None and entry.path.stat().st_size == stored.num_bytes and sha256(entry.path) == stored.sha256


def _accept_time(entry: DatasetEntry) -> None:
    """Put the time of a file with the recorded content on record; where that cannot be written, nothing happens."""
    record = read_record(entry)
    if record.stored is not None and os.access(record_path(entry).parent, os.W_OK):
        write_record(entry, replace(record, stored=replace(record.stored, mtime_ns=entry.path.stat().st_mtime_ns)))


@dataclass(frozen=True)
class Verified:
    """What a cached file was found to be."""

    id: str
    path: Path
    problem: str  # empty where there is none
    fix: str  # the command that repairs it, empty where there is nothing to repair


@contextmanager
def holding(entry: DatasetEntry, note: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Hold a dataset's place in the cache, waiting for whoever has it; half-written files of killed processes go.

    Args:
        note: called with a line of text if there is somebody to wait for.

    Raises:
        GqError: its folder cannot be written.
    """
    from filelock import FileLock, Timeout

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
    state = state_of(entry)
    if state == "absent":
        return None
    if state == "unrecorded":
        return _adopt(entry)
    if not _has_recorded_content(entry):
        return None
    if state == "touched":
        _accept_time(entry)
    shutil.rmtree(entry.raw_folder, ignore_errors=True)  # a kill may have left it
    return read_record(entry).stored


def _adopt(entry: DatasetEntry) -> Stored | None:
    """Put a file that can be read on record; return None for one that cannot."""
    if entry.kind == "tdmpc2":
        return put_on_record(entry, None) if _is_whole_zip(entry.path) else None
    from gq.data.reading import read_trajectories

    try:
        trajectories = read_trajectories(entry.path, source=entry.id)
    except DataError:
        return None
    attributes = trajectories.attributes
    where = attributes.get("source_url") or attributes.get("source_path")
    source = None
    if where:
        num_bytes, time = int(attributes.get("source_bytes", 0)), attributes.get("downloaded") or now()
        source = Source(where=where, num_bytes=num_bytes, sha256=attributes["source_sha256"], time=time)
    return put_on_record(entry, source, trajectories)


def _is_whole_zip(path: Path) -> bool:
    """Whether a file is a ZIP archive whose members all have their checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def put_on_record(entry: DatasetEntry, source: Source | None, trajectories: "Trajectories | None" = None) -> Stored:
    """Write the record of a file that is whole, and return what it says of the file; other forms of it go.

    Raises:
        GqError: the cache cannot be written.
    """
    try:
        stored = _describe_stored(entry.path)
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
    first = read_record(entry).source  # the first download's, which later ones were compared with
    write_record(entry, Record(id=entry.id, source=first or source, stored=stored))
    shutil.rmtree(entry.raw_folder, ignore_errors=True)
    entry.refused_path.unlink(missing_ok=True)
    return stored


def check_unchanged(entry: DatasetEntry) -> None:
    """Compare a cached file with its record before it is used: by size and time, and by its hash if the time differs.

    Raises:
        DataError: it is not the file that gq put there.
    """
    state = state_of(entry)
    if state == "touched" and _has_recorded_content(entry):
        _accept_time(entry)
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
        for problem in [_problem_of(entry)]
    ]


def _problem_of(entry: DatasetEntry) -> str:
    """Return what is wrong with a cached file, or nothing."""
    state = state_of(entry)
    if state == "absent":
        return "it is not in the cache"
    if state == "unrecorded":
        return _check_unrecorded(entry)
    stored = read_record(entry).stored
    assert stored is not None, "a state other than unrecorded has a record"
    num_bytes = entry.path.stat().st_size
    if num_bytes != stored.num_bytes:
        return f"it has {num_bytes:,} bytes, not {stored.num_bytes:,}"
    try:
        return "" if _has_recorded_content(entry) else "its content is not what was put there"
    except OSError as error:
        raise GqError(f"cannot read {entry.path}: {error.strerror}") from error


def _check_unrecorded(entry: DatasetEntry) -> str:
    """Return what is wrong with a file that has no record, or nothing."""
    if entry.kind == "tdmpc2":
        return "" if _is_whole_zip(entry.path) else "it is not a whole PyTorch file"
    from gq.data.reading import read_trajectories

    try:
        read_trajectories(entry.path)
    except DataError as error:
        return str(error)
    return ""


def _hub_entries() -> list[DatasetEntry]:
    """Return the entries of the Hub's datasets that the cache has a record of."""
    entries = []
    for record in sorted((datasets_folder() / "hub").glob("**/*.hdf5.json")):
        try:
            entry = hub_entry(str(read_json(record)["id"]))
        except (GqError, KeyError, TypeError):
            continue  # not a record of ours
        if entry.path == record.with_suffix(""):
            entries.append(entry)
    return entries


def in_cache() -> list[DatasetEntry]:
    """Return the entries whose files are in the cache."""
    return [entry for entry in [*ENTRIES.values(), *_hub_entries()] if entry.path.is_file()]


def remove(entry: DatasetEntry) -> int:
    """Remove a dataset and what is left of its download; return the bytes that this frees.

    The hash of its source stays on record, for the next download.

    Raises:
        GqError: the cache cannot be written.
    """
    with holding(entry):
        if _is_anothers(entry):
            return 0
        raw = entry.raw_folder
        paths = [path for path in (entry.path, entry.refused_path, *raw.rglob("*")) if path.is_file()]
        num_bytes = sum(path.stat().st_size for path in paths)
        record = read_record(entry)
        try:
            if record.source is not None:
                write_record(entry, replace(record, stored=None))
            else:
                record_path(entry).unlink(missing_ok=True)
            entry.path.unlink(missing_ok=True)
            entry.refused_path.unlink(missing_ok=True)
            if raw.exists():
                shutil.rmtree(raw)
        except OSError as error:
            message = f"cannot remove {entry.path}: {error.strerror or error}"
            raise GqError(message, hint="it needs permission to write in that folder") from error
    return num_bytes
