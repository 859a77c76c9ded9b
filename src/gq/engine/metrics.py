"""metrics.jsonl, the source of truth of a run, and who is told how it goes on."""

import json
import math
import os
from pathlib import Path
from typing import Any, Protocol

from gq.files import write_error


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


def finite(value: Any) -> Any:
    """Return the value with numbers that JSON does not have replaced by None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
