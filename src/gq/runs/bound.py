"""A checkpoint knows its configuration: what is beside it in config.toml must be what it was trained with.

state.json, whose hash is in the manifest, holds every setting by its dotted key. So a config.toml that was edited, or
is of another run, is found before it makes the same weights give other numbers.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from gq.config import RunConfig
from gq.errors import GqError
from gq.paths import read_json
from gq.runs.folder import CHANGEABLE, read_config
from gq.settings import flatten

# What may differ from what a checkpoint was made with: what may change on resumption, and names of what may have moved.
MOVABLE = (*CHANGEABLE, "data.dataset", "online.parent")
MAX_BYTES = 1 << 50  # of a log
OBJECTS = ("progress", "config", "versions", "dataset", "imported", "parent")
T = TypeVar("T")


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Return a configuration's settings by dotted key, as JSON keeps them."""
    plain: dict[str, Any] = json.loads(json.dumps(flatten(config.to_dict())))
    return plain


def check_config(run: Path, config: RunConfig, state: Mapping[str, Any]) -> None:
    """Compare a run's configuration with the one that a checkpoint was made with; older ones hold none.

    Raises:
        GqError: a setting differs that determines what the checkpoint does.
    """
    now = settings_of(config)
    for key, began in (state.get("config") or {}).items():
        if now.get(key) != began and not key.startswith(MOVABLE):
            message = f"{run / 'config.toml'} says {key} = {json.dumps(now.get(key))}"
            raise GqError(f"{message}, and the checkpoint was made with {json.dumps(began)}", hint="put it back")


def check_run(run: Path, folder: Path) -> None:
    """Compare config.toml with a checkpoint of the run. Raises GqError if they differ or cannot be read."""
    check_config(run, read_config(run), read_state(folder))


def read_state(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's state.json.

    Raises:
        GqError: it cannot be read, or holds what no checkpoint does.
    """
    file = folder / "state.json"
    state = read_json(file)
    problems = [f"{name} is no object" for name in OBJECTS if not isinstance(state.get(name, {}), dict)]
    sizes = {name: state.get(name, 0) for name in ("step", "metrics_bytes", "times_bytes")}
    problems += [f"{name} is {ascii(value)[:40]}" for name, value in sizes.items() if not _is_size(value)]
    if folder.name.removeprefix("step-").isdecimal() and state.get("step") != int(folder.name.removeprefix("step-")):
        problems.append(f"step is {ascii(state.get('step'))[:40]}")
    if problems:
        raise GqError(f"{file} is damaged: {problems[0]}", hint="put the file back from a copy")
    return state


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_BYTES


def progress_in(folder: Path, state: Mapping[str, Any], kind: type[T]) -> T:
    """Return how far a checkpoint is, as a dataclass of numbers. Raises GqError if it is of another kind."""
    found = state.get("progress", {})
    bad = [name for name, value in found.items() if _is_out_of_range(value)]
    try:
        if bad:
            raise ValueError(f"{bad[0]} is {ascii(found[bad[0]])[:40]}")
        if unknown := found.keys() - kind.__annotations__.keys() - _inherited(kind):
            raise ValueError(f"{sorted(unknown)[0]} is unknown")
        return TypeAdapter(kind).validate_python(found)
    except (ValidationError, ValueError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise GqError(
            f"{folder / 'state.json'} is damaged: progress, {first}", hint="put it back from a copy"
        ) from None


def _inherited(kind: type) -> set[str]:
    return {name for base in kind.__mro__ for name in getattr(base, "__annotations__", {})}


def _is_out_of_range(value: Any) -> bool:
    return isinstance(value, int | float) and not (math.isfinite(value) and abs(value) <= MAX_BYTES)


@contextmanager
def damage_told(folder: Path) -> Iterator[None]:
    """Turn what a state raises that does not fit into a line: its values are used in many places."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise GqError(
            f"{folder} does not fit its run: {what}", hint="was it edited? put it back from a copy"
        ) from error
