"""Bring Minari's datasets into the cache, from the network or an installed copy."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from gq.data.formats import HDF5_MAGIC, data_file, read_trajectories, time_limits, write_canonical
from gq.data.registry import DatasetEntry, cached
from gq.data.transfer import Report, fetch, silent
from gq.errors import DataError, GqError, UsageError
from gq.files import sha256

DEFAULT_ENDPOINT = "https://huggingface.co"
OFFLINE_HINT = "offline? this needs no network: gq download builtin/hopper/medium"
RETRY_HINT = f"run it again to go on where it stopped; {OFFLINE_HINT}"


def fetch_minari(entry: DatasetEntry, report: Report = silent, *, force: bool = False) -> Path:
    """Put a Minari dataset into the cache and return its canonical file.

    What is there already is read as a check, and kept if it is sound. Else the dataset comes from an installed Minari
    folder (MINARI_DATASETS_PATH) that has it, or from HF_ENDPOINT. One process fetches, others wait for it.

    Args:
        report: called with the bytes so far and the total.
        force: fetch again, even if the cache holds it.

    Raises:
        GqError: the network, the source's file or the cache is at fault.
    """
    with holding(entry.path):
        if not force and is_sound(entry):
            return entry.path
        installed = installed_minari(entry)
        if installed:
            convert(installed, entry, {"source_path": str(installed), "source_sha256": sha256(data_file(installed))})
            return entry.path
        metadata_url, data_url = remote_urls(entry)
        raw = entry.path.with_suffix(".download")
        fetch(metadata_url, raw / "metadata.json", magic=b"{", hint=RETRY_HINT)
        digest = fetch(data_url, raw / "main_data.hdf5", magic=HDF5_MAGIC, report=report, hint=RETRY_HINT)
        try:
            convert(raw, entry, {"source_url": data_url, "source_sha256": digest})
        except DataError:
            shutil.rmtree(raw)  # otherwise the next try would stop at the same bad file
            raise
        shutil.rmtree(raw)
    return entry.path


def is_sound(entry: DatasetEntry) -> bool:
    """Tell whether the cache holds a dataset undamaged, by reading it."""
    if not cached(entry):
        return False
    try:
        read_trajectories(entry.path)
    except DataError:
        return False
    return True


@contextmanager
def holding(path: Path) -> Iterator[None]:
    """Hold the lock of a file in the cache, waiting for whoever has it.

    Raises:
        GqError: its folder cannot be written.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        message = f"cannot write in {path.parent}: {error.strerror or error}"
        raise GqError(message, hint="let GQ_HOME name a folder that you can write") from error
    try:
        yield
    finally:
        lock.release()


def installed_minari(entry: DatasetEntry) -> Path | None:
    """Return the folder of a dataset in an installed Minari root, if it is there in HDF5 format."""
    root = Path(os.environ.get("MINARI_DATASETS_PATH") or "~/.minari/datasets").expanduser()
    return root / entry.id if (root / entry.id / "data" / "main_data.hdf5").is_file() else None


def remote_urls(entry: DatasetEntry) -> list[str]:
    """Return where the entry's remote files are.

    Raises:
        GqError: HF_HUB_OFFLINE forbids the network, or HF_ENDPOINT is no web address.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise GqError(f"{entry.id} is not here, and HF_HUB_OFFLINE is set", hint=OFFLINE_HINT)
    endpoint = os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
    if not endpoint.startswith(("http://", "https://")):
        raise UsageError(f"HF_ENDPOINT is {endpoint}, not a web address", hint=f"the default is {DEFAULT_ENDPOINT}")
    return [f"{endpoint.rstrip('/')}/{path}" for path in entry.remote_paths]


def convert(folder: Path, entry: DatasetEntry, provenance: dict[str, Any]) -> None:
    """Write a Minari folder's episodes to the canonical file.

    Raises:
        DataError: its file must not be trained on.
        GqError: the cache cannot be written.
    """
    trajectories = read_trajectories(folder, task=entry.task, source=entry.id)
    attributes = {**trajectories.attributes, **provenance, "licence": "none declared by the source"}
    write_canonical(entry.path, trajectories, timeouts=time_limits(trajectories), attributes=attributes)
