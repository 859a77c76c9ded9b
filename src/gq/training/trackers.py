"""Copies of a run's metrics in TensorBoard, W&B and trackio, none of which can stop it."""

import io
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gq.config import LogConfig
from gq.errors import GqError
from gq.files import write_json
from gq.paths import read_json, runs_folder

LOGIN_TIMEOUT_S = 60  # for an answer to W&B's question who one is


@dataclass(frozen=True)
class Tracked:
    """A run as trackers know it."""

    folder: Path
    id: str  # the same after every interruption
    name: str
    step: int  # of the checkpoint that it goes on from; 0 for a new run
    config: dict[str, Any]


class Tracker(Protocol):
    """Where metrics are copied to."""

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Take numbers that belong to a step."""

    def close(self, *, failed: bool) -> None:
        """Send what is left; the run has ended, or was interrupted or failed."""


Start = Callable[[LogConfig, Tracked], Tracker]


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, log: LogConfig, run: Tracked) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What was written after the checkpoint is written again, and hidden here.
        purge_step = run.step + 1 if run.step else None
        self.writer = SummaryWriter(run.folder / "tensorboard", purge_step=purge_step)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Write scalars."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self, *, failed: bool) -> None:
        """Write what is left."""
        self.writer.close()


class WandB:
    """A run on a W&B server or, with WANDB_MODE=offline, in the run's folder.

    A server leaves out the steps that it has already.
    """

    def __init__(self, log: LogConfig, run: Tracked) -> None:
        import wandb

        self.run = wandb.init(
            project=log.wandb_project,
            id=run.id,
            name=run.name,
            dir=run.folder,
            config=run.config,
            group=log.sweep or None,
            tags=list(log.tags) or None,
            notes=log.note or None,
            resume="allow",
            settings=wandb.Settings(silent=True, console="off", login_timeout=LOGIN_TIMEOUT_S),
        )

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Send numbers."""
        self.run.log(numbers, step=step)

    def close(self, *, failed: bool) -> None:
        """Wait until all is sent."""
        self.run.finish(exit_code=int(failed))


class Trackio:
    """A run in trackio's own folder, TRACKIO_DIR, which it is found in again by its name."""

    def __init__(self, log: LogConfig, run: Tracked) -> None:
        import trackio

        self.run = trackio.init(
            project=log.trackio_project,
            name=run.name,
            group=log.sweep or None,
            config=run.config,
            resume="allow",
            embed=False,
        )

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Store numbers."""
        self.run.log(numbers, step=step)

    def close(self, *, failed: bool) -> None:
        """Wait until all is stored."""
        import trackio

        trackio.finish()  # the run's own `finish` would come a second time when the process ends


class Trackers:
    """The trackers that a configuration asks for; one that fails is dropped with one note."""

    def __init__(self, log: LogConfig, run: Path, config: dict[str, Any], note: Callable[[str], None]) -> None:
        """Remember what to open.

        Args:
            config: the whole configuration of the run, as plain values.
        """
        self._log, self._run, self._config, self._note = log, run, config, note
        self._open: dict[str, Tracker] = {}

    def wanted(self) -> dict[str, tuple[Start, str]]:
        """Return the kind and the extra of each tracker that is asked for, by its name for people."""
        log = self._log
        known: dict[str, tuple[bool, Start, str]] = {
            "TensorBoard": (log.tensorboard, TensorBoard, "tensorboard"),
            "W&B": (log.wandb, WandB, "wandb"),
            "trackio": (log.trackio, Trackio, "trackio"),
        }
        return {name: (start, extra) for name, (is_wanted, start, extra) in known.items() if is_wanted}

    @contextmanager
    def opened(self, step: int) -> Iterator[None]:
        """Start the trackers at a step, and close them at the end; one that cannot start is left out with a note."""
        wanted = self.wanted()
        if wanted:
            tracked = Tracked(self._run, *identity(self._run, self._log.sweep), step, self._config)
        for name, (start, extra) in wanted.items():
            try:
                with redirect_stdout(io.StringIO()):  # stdout is for results
                    self._open[name] = start(self._log, tracked)
            except ImportError as error:
                self._note(f"{name} is off: {first_line(error)}; pip install 'gym-qwen[{extra}]'")
            except Exception as error:
                self._note(f"{name} is off: {first_line(error)}")
        failed = True
        try:
            yield
            failed = False
        finally:
            self._close(failed)

    def write(self, step: int, record: dict[str, Any]) -> None:
        """Send the finite numbers of a record."""
        numbers = {k: float(v) for k, v in record.items() if isinstance(v, int | float) and math.isfinite(v)}
        for name, tracker in list(self._open.items()):
            try:
                tracker.log(step, numbers)
            except Exception as error:
                self._note(f"{name} is off: {first_line(error)}")
                del self._open[name]

    def _close(self, failed: bool) -> None:
        while self._open:
            name, tracker = self._open.popitem()
            try:
                with redirect_stdout(io.StringIO()):
                    tracker.close(failed=failed)
            except Exception as error:
                self._note(f"{name} could not be closed: {first_line(error)}")


def identity(run: Path, sweep: str = "") -> tuple[str, str]:
    """Return the id and the name that a run is tracked by, kept in its tracking.json.

    Raises:
        GqError: it cannot be written.
    """
    path = run / "tracking.json"
    try:
        stored = read_json(path)
        return str(stored["id"]), str(stored["name"])
    except (GqError, KeyError, TypeError):  # a new run, or the file is damaged
        identifier = os.urandom(4).hex()
    # Folders that a user named may be called the same.
    name = run.name if run.parent == runs_folder() else f"{sweep or run.name}-{run.name if sweep else identifier[:4]}"
    write_json(path, {"id": identifier, "name": name})
    return identifier, name


def first_line(error: Exception) -> str:
    """Return what an exception says, on one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
