"""Files that are either whole or absent: temporary sibling, fsync, rename."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gq.errors import GqError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` to write; on success it is fsynced and renamed to `path`.

    Raises:
        GqError: the folder cannot be written or the disk is full. Nothing of the old file is lost.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):  # gone after the rename, or never there
            temporary.unlink()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success everything in it is fsynced and it is renamed to `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        remove_folder(path)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder if it is there: at one moment whole, at the next gone, whenever the process is killed."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}.removed.partial")
    if path.exists():
        path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def write_error(path: Path, error: OSError) -> GqError:
    """Turn an operating system's refusal into a message with a next step."""
    reason = error.strerror or str(error)
    return GqError(
        f"cannot write {path}: {reason}", hint="free some space or choose another folder with --out or GQ_HOME"
    )


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file atomically, indented, with a final newline."""
    write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk; Windows cannot open folders and does not need to."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
