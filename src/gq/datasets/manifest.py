"""The record beside each file in the cache: where it came from, and its size and hash. Imports nothing heavy.

`medium.hdf5` has `medium.hdf5.json`. It is written last and atomically, so a file that agrees with its record is whole.
The source's hash stays on record when the file is removed: it is what later downloads must have.
"""

import os
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from gq import __version__
from gq.datasets.catalog import DatasetEntry
from gq.files import parse_json, sha256, write_json

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


def record_path(entry: DatasetEntry) -> Path:
    """Return where the record of a dataset lies."""
    return entry.path.with_name(entry.path.name + ".json")


def read_record(entry: DatasetEntry) -> Record:
    """Return the record of a dataset; an empty one if there is none, it is another's, or it cannot be understood."""
    record = record_there(entry)
    return record if record is not None and record.id == entry.id else Record(id=entry.id)


def record_there(entry: DatasetEntry) -> Record | None:
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


def is_anothers(entry: DatasetEntry) -> bool:
    """Tell whether the file in a dataset's place is on record as another dataset."""
    record = record_there(entry)
    return record is not None and record.stored is not None and record.id != entry.id


def write_record(entry: DatasetEntry, record: Record) -> None:
    """Write a record atomically.

    Raises:
        GqError: the cache cannot be written.
    """
    write_json(record_path(entry), asdict(record))


def describe_stored(path: Path) -> Stored:
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
    if is_anothers(entry):
        return "absent"
    stored = read_record(entry).stored
    if stored is None:
        return "unrecorded"
    if status.st_size != stored.num_bytes:
        return "changed"
    return "intact" if status.st_mtime_ns == stored.mtime_ns else "touched"


def has_recorded_content(entry: DatasetEntry) -> bool:
    """Tell whether a file that has a record is the one on record, by reading it whole."""
    stored = read_record(entry).stored
    return stored is not None and entry.path.stat().st_size == stored.num_bytes and sha256(entry.path) == stored.sha256


def accept_time(entry: DatasetEntry) -> None:
    """Put the time of a file with the recorded content on record; where that cannot be written, nothing happens."""
    record = read_record(entry)
    if record.stored is not None and os.access(record_path(entry).parent, os.W_OK):
        write_record(entry, replace(record, stored=replace(record.stored, mtime_ns=entry.path.stat().st_mtime_ns)))
