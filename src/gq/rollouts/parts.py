"""The folder `.NAME.parts` beside an output, for what a long job has done of it so far."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from gq.errors import GqError, UsageError
from gq.files import write_error, write_json
from gq.paths import json_or_empty, read_json

REQUEST_FILE = "request.json"

Request = dict[str, Any]  # everything that the content of the output depends on, as JSON


@contextmanager
def lock_parts(output: Path) -> Iterator[Path]:
    """Hold the folder for this process; it goes again if no request was begun in it.

    Raises:
        GqError: another process holds it, or it cannot be written.
    """
    parts = output.with_name(f".{output.name}.parts")
    try:
        parts.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(parts / ".lock", timeout=0)
        lock.acquire()
    except filelock.Timeout:
        raise GqError(f"another process is making {output}", hint="wait for it, or choose another output") from None
    except OSError as error:
        raise write_error(output, error) from error
    try:
        yield parts
    finally:
        if not (parts / REQUEST_FILE).exists():
            remove(parts)
        lock.release()


def begin(parts: Path, request: Request, *, force: bool, note: Callable[[str], None]) -> None:
    """Make the folder ready for a request, keeping what the same request left there.

    Raises:
        UsageError: another request's parts are there, and not `force`.
        GqError: the folder cannot be written.
    """
    file = parts / REQUEST_FILE
    stored = read_json(file) if file.exists() else {}
    if stored == request:
        note(f"resuming with what is in {parts}")
        return
    if stored and not force:
        key = next(key for key in {**stored, **request} if stored.get(key) != request.get(key))
        message = f"{parts} was begun with {key} = {stored.get(key)}, not {request.get(key)}"
        raise UsageError(message, hint="resume the first command, or discard what it made with --force")
    for old in parts.iterdir():  # also what a process left that was killed before it had written the request
        if old.name not in (".lock", REQUEST_FILE):
            old.unlink()
    write_json(file, request)


def is_begun_with(parts: Path, request: Request) -> bool:
    """Whether what is in the folder is of a request."""
    return json_or_empty(parts / REQUEST_FILE) == request


def remove(parts: Path) -> None:
    """Remove the folder with all that is in it; the request goes first, so that a kill leaves nothing to resume."""
    (parts / REQUEST_FILE).unlink(missing_ok=True)
    shutil.rmtree(parts, ignore_errors=True)


def fingerprint(request: Request) -> str:
    """Return the SHA-256 of a request."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
