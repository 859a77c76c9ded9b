"""Files that are either whole or absent: temporary sibling, fsync, rename."""

import hashlib
import json
import os
import shutil
import tomllib
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
    """Return the hexadecimal SHA-256 of a file, or of a folder: of the names and hashes of all files in it."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        listed = "".join(f"{sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in files)
        return hashlib.sha256(listed.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


MAX_DEPTH = 64  # levels; no document of ours has ten
MAX_DIGITS = 18  # Python refuses to convert some thousands


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON document holds.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        document = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    check_depth(document)
    return document


def parse_toml(text: str) -> dict[str, Any]:
    """Return what a TOML document holds.

    Raises:
        ValueError: it is not TOML, nested too deeply, or has whole numbers of more than TOML's 64 bits.
    """
    try:
        document = tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    check_depth(document)
    check_numbers(document)
    return document


def parse_whole_number(text: str) -> int | None:
    """Return a number that is written in at most MAX_DIGITS digits, or None if the text is none."""
    text = text.strip()
    return int(text) if text.isdecimal() and len(text) <= MAX_DIGITS else None


def check_depth(document: Any) -> None:
    """Raise ValueError if lists and dictionaries are nested more than MAX_DEPTH levels deep."""
    level = [document] if isinstance(document, dict | list) else []
    for _ in range(MAX_DEPTH):
        insides = (outer.values() if isinstance(outer, dict) else outer for outer in level)
        level = [item for inside in insides for item in inside if isinstance(item, dict | list)]
        if not level:
            return
    raise ValueError("it is nested too deeply")


def check_numbers(document: Any) -> None:
    """Raise ValueError if a whole number does not fit into 64 bits; in hexadecimal some thousand digits are parsed."""
    if isinstance(document, int) and not -(2**63) <= document < 2**63:
        raise ValueError("a number in it has more than 64 bits")
    if isinstance(document, dict | list):
        for item in document.values() if isinstance(document, dict) else document:
            check_numbers(item)
