"""Runs that are stopped, killed or broken off at a chosen point, and what is compared afterwards."""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from commandline import gq
from gq.runs import checkpoint as checkpoints
from gq.runs.metrics import MetricsLog
from gq.training import session as sessions

NOT_REPEATED = ("seconds", "rollout_seconds", "evaluation_seconds", "simulation_seconds")  # of a run's progress


class Point(NamedTuple):
    """A call that a run makes again and again."""

    owner: Any
    name: str
    counts: Callable[..., bool] = lambda *_: True  # whether a call with these arguments is meant
    is_torn: bool = False  # it happens in the middle of the call's next write


# Calls that every run makes to keep what it has.
KEEPING = {
    "metrics": Point(MetricsLog, "write", is_torn=True),
    "saving": Point(sessions, "save_checkpoint"),
    "hashing": Point(checkpoints, "sha256"),  # not all files are there
    "renaming": Point(Path, "replace", lambda path, *_: path.name.startswith(".step-")),  # all are, under another name
    "last.json": Point(checkpoints, "point", lambda run, which, folder: which == "last"),
    "best.json": Point(checkpoints, "point", lambda run, which, folder: which == "best"),
    "removal": Point(shutil, "rmtree", lambda path, *_: ".removed" in Path(path).name),  # of an old checkpoint
}


class Torn:
    """A file whose next write ends in the middle."""

    def __init__(self, file: Any, happen: Callable[[], None]) -> None:
        self._file, self._happen = file, happen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, content: bytes) -> int:
        self._file.write(content[: len(content) // 2])
        self._file.flush()
        self._happen()
        raise AssertionError("it happened before the second half")


def at(
    points: Mapping[str, Point], patch: pytest.MonkeyPatch, point: str, number: int, happen: Callable[[], None]
) -> list[int]:
    """Let something happen before a run passes a point for the n-th time (from 0); return a growing list of passes."""
    owner, name, counts, is_torn = points[point]
    passes: list[int] = []
    plain = getattr(owner, name)

    def passed(*arguments: Any, **settings: Any) -> Any:
        if counts(*arguments):
            passes.append(len(passes))
            if passes[-1] == number and is_torn:
                arguments[0]._file = Torn(arguments[0]._file, happen)
            elif passes[-1] == number:
                happen()
        return plain(*arguments, **settings)

    patch.setattr(owner, name, passed)
    return passes


class Killed(BaseException):
    """What a kill is within this process: nothing that follows is done."""


def die() -> None:
    raise Killed


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def forked(work: Callable[..., object], *arguments: Any) -> BaseProcess:
    """Start work that can be killed in a fork of this process, which has loaded and patched all that it needs."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


def kill_at(points: Mapping[str, Point], point: str, number: int, *command: object) -> None:
    """Run a command in a process that is killed when it passes a point for the n-th time."""

    def live_until() -> None:
        with pytest.MonkeyPatch.context() as patch:
            at(points, patch, point, number, lambda: os.kill(os.getpid(), signal.SIGKILL))
            print(gq(*command).stderr)  # noqa: T201  # why it was not killed

    process = forked(live_until)
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it came to its end"


def repeated(state: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's state without what depends on the clock."""
    progress = {name: value for name, value in state["progress"].items() if name not in NOT_REPEATED}
    return {name: value for name, value in state.items() if name != "times_bytes"} | {"progress": progress}
