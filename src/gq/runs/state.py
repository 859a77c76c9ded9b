"""What a run is doing: running, finished, failed or broken off; the lock and the note that tell. Loads no engine."""

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import filelock

from gq.errors import GqError, Interrupted
from gq.files import write_error, write_json
from gq.paths import checkpoint_folders, is_run, json_or_empty

State = Literal["running", "finished", "interrupted", "failed"]
STATES: tuple[State, ...] = ("running", "finished", "interrupted", "failed")
FAILURE_FILE = "failure.json"
PATIENCE_S = 0.3  # whoever looks whether a run is running holds its lock for a moment


@contextmanager
def hold_run(run: Path) -> Iterator[None]:
    """Hold a run's lock for this process; the folder is made if it is not there.

    Raises:
        GqError: another process holds it, or the folder cannot be written.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(run / ".lock", timeout=PATIENCE_S)
        lock.acquire()
    except filelock.Timeout:
        raise GqError(f"another process is training {run}", hint="wait for it, or choose another --out") from None
    except OSError as error:
        if error.errno == errno.ENOLCK:
            message = f"cannot lock {run}: its file system has no locks at present"
            raise GqError(message, hint="choose another --out or GQ_HOME, on a local disk; or start lockd") from error
        raise write_error(run, error) from error
    try:
        yield
    finally:
        lock.release()


def is_held(lock: Path) -> bool:
    """Tell whether a living process holds a lock; the file of a dead one, which stays behind, is nobody's."""
    if not lock.exists():
        return False
    probe = filelock.FileLock(lock, timeout=0)
    try:
        probe.acquire()
    except filelock.Timeout:
        return True
    except OSError:  # of another user's run; whoever wants to change it is refused later
        return False
    probe.release()
    return False


def is_in_use(run: Path) -> bool:
    """Tell whether a process trains a run, or distils from it."""
    return any(is_held(lock) for lock in run.rglob(".lock"))


def state_of(run: Path, settings: Mapping[str, Any]) -> State:
    """Return what a run is doing, or how it ended.

    Args:
        settings: its config.toml, nested.
    """
    if is_held(run / ".lock"):
        return "running"
    steps = settings.get("train", {}).get("steps", 0)
    if not is_unfinished(run, str(settings.get("algo")), steps if isinstance(steps, int) else 0):
        return "finished"
    return "failed" if (run / FAILURE_FILE).is_file() else "interrupted"


def is_unfinished(run: Path, algo: str, num_steps: int) -> bool:
    """Tell whether a run stopped before its end; `num_steps` counts where its length is a number of updates."""
    if algo in ("finetune", "tdmpc2"):
        return not (run / "README.md").exists()  # written when it ends
    return last_step(run) < num_steps


def last_step(run: Path) -> int:
    """Return the step of the newest checkpoint, 0 without one."""
    folders = checkpoint_folders(run)
    return int(folders[-1].name.removeprefix("step-")) if folders else 0


def last_state(run: Path) -> dict[str, Any]:
    """Return the state.json of the newest checkpoint; empty without one, or where it is damaged."""
    folders = checkpoint_folders(run)
    return json_or_empty(folders[-1] / "state.json") if folders else {}


@contextmanager
def failures_recorded(run: Path) -> Iterator[None]:
    """Leave a note in a run whose training ends with an error; a new attempt removes it, a stop by signal is none."""
    with suppress(OSError):
        (run / FAILURE_FILE).unlink()
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        if is_run(run):
            lines = str(error).splitlines() or [""]
            document = {"error": type(error).__name__, "message": lines[0], "process": os.getpid()}
            with suppress(GqError):  # such as a full disk, which may be what ended it
                write_json(run / FAILURE_FILE, document)
        raise
