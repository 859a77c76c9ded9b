"""metrics.jsonl, the source of truth of a run, and its optional mirrors, which can never stop it."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from gq.config import LogConfig
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


def open_mirrors(config: LogConfig, run: Path, resolved: dict[str, Any], note: Callable[[str], None]) -> "Mirrors":
    """Start the mirrors that are configured; one that cannot start is reported and left out."""
    writers: dict[str, Callable[[int, dict[str, float]], None]] = {}
    if config.tensorboard:
        try:
            from torch.utils.tensorboard import SummaryWriter

            board = SummaryWriter(run / "tensorboard")

            def write_board(step: int, metrics: dict[str, float]) -> None:
                for name, value in metrics.items():
                    board.add_scalar(name, value, step)

            writers["TensorBoard"] = write_board
        except Exception as error:
            note(f"TensorBoard is off: {error}; pip install 'gym-qwen[tensorboard]'")
    if config.wandb:
        try:
            import wandb

            run_there = wandb.init(
                project=config.wandb_project, id=run.name, name=run.name, dir=run, config=resolved, resume="allow"
            )
            writers["W&B"] = lambda step, metrics: run_there.log(metrics, step=step)
        except Exception as error:
            note(f"W&B is off: {error}; pip install 'gym-qwen[wandb]'")
    return Mirrors(writers, note)


class Mirrors:
    """Copies of the numeric metrics elsewhere; a mirror that fails is dropped with one note."""

    def __init__(
        self, writers: dict[str, Callable[[int, dict[str, float]], None]], note: Callable[[str], None]
    ) -> None:
        self._writers, self._note = writers, note

    def write(self, step: int, record: dict[str, Any]) -> None:
        """Send the finite numbers of a record."""
        numbers = {k: float(v) for k, v in record.items() if isinstance(v, int | float) and math.isfinite(v)}
        for name, write in list(self._writers.items()):
            try:
                write(step, numbers)
            except Exception as error:
                self._note(f"{name} is off: {error}")
                del self._writers[name]
