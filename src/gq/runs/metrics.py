"""metrics.jsonl, the source of truth of a run, and who is told how it goes on."""

import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from gq.files import parse_json, write_error

TARGET = re.compile(r"eval/target_(-?[\d.]+(?:e[+-]?\d+)?)/return_mean", re.ASCII)
# What evaluations while training are counted in; else it is updates.
UNITS = {"tdmpc2": "decisions", "finetune": "environment steps"}


class Listener(Protocol):
    """What the engine tells whoever watches it; the command line shows it, the default ignores it."""

    def note(self, text: str) -> None:
        """Hear a fact worth a line."""

    def progress(self, step: int, total: int, metrics: dict[str, Any]) -> None:
        """Hear how far training is, with the newest metrics."""


class Silence:
    """A listener that ignores everything."""

    def note(self, text: str) -> None:
        """Ignore."""

    def progress(self, step: int, total: int, metrics: dict[str, Any]) -> None:
        """Ignore."""


class MetricsLog:
    """Append-only JSON lines; `size` goes into checkpoints, so that a resumed run continues where they stand."""

    def __init__(self, path: Path, *, size: int = 0) -> None:
        """Open the file and cut it to `size` bytes: what was logged after the checkpoint will be logged again."""
        self.path = path
        try:
            self._file = path.open("ab")
            self._file.truncate(min(size, self._file.tell()))
            self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise write_error(path, error) from error

    @property
    def size(self) -> int:
        """Bytes written and synced."""
        return self._file.tell()

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; numbers that are not finite become null."""
        try:
            self._file.write(json.dumps(finite(record)).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise write_error(self.path, error) from error

    def sync(self) -> None:
        """Make what was written durable; called before each checkpoint."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class NoLog:
    """What a process writes to that leaves writing to another."""

    size = 0

    def write(self, record: dict[str, Any]) -> None:
        """Forget a record."""

    def sync(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def keys_by_target(keys: Iterable[str]) -> dict[float, str]:
    """Return the keys of the mean returns of evaluations, by target return."""
    return {float(match[1]): key for key in keys if (match := TARGET.fullmatch(key))}


def last_evaluation(metrics: Path) -> dict[str, Any]:
    """Return the last evaluation in a metrics.jsonl, empty without one; damaged lines are left out."""
    try:
        lines = metrics.read_bytes().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        if b'"eval/' in line:
            try:
                record = parse_json(line)
            except ValueError:  # the last one may be half written
                continue
            if isinstance(record, dict):
                return record
    return {}


def finite(value: Any) -> Any:
    """Return the value with numbers that JSON does not have replaced by None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
