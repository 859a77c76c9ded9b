"""Bring datasets into the cache, and load them from there or from any path."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from gq.data.formats import AGAIN, HDF5_MAGIC, data_file, read_trajectories, time_limits, write_canonical
from gq.data.registry import DatasetEntry, cached, resolve
from gq.data.trajectories import Trajectories
from gq.data.transfer import Report, fetch, silent
from gq.errors import DataError, GqError, UsageError
from gq.files import sha256, write_json
from gq.paths import datasets_folder

DEFAULT_ENDPOINT = "https://huggingface.co"
OFFLINE_HINT = "offline? this needs no network: gq download builtin/hopper/medium"
RETRY_HINT = f"run it again to go on where it stopped; {OFFLINE_HINT}"


def download(name: str, *, num_transitions: int | None = None, force: bool = False, report: Report = silent) -> Path:
    """Put a dataset into the cache, make it the one that training takes by default, and return its canonical file.

    A file that is there already is read and checked, and kept if it is sound.

    Args:
        name: an id or a short form; see `gq.data.registry.resolve`.
        num_transitions: of a built-in dataset, at least; its default size if None.
        force: fetch or simulate again.
        report: called with what is done and the total: bytes, or transitions of a built-in dataset.

    Raises:
        UsageError: no such dataset, or a number of transitions for one that is not simulated.
        GqError: the network, the source's file or the cache is at fault.
    """
    entry = resolve(name)
    if entry.kind == "builtin":
        from gq.data.builtin import DEFAULT_NUM_TRANSITIONS, download_builtin

        stored = None if force else stored_trajectories(entry)
        if stored is None or num_transitions not in (None, stored.attributes.get("num_requested_transitions")):
            num_wanted = DEFAULT_NUM_TRANSITIONS if num_transitions is None else num_transitions
            download_builtin(entry.id, entry.path, num_transitions=num_wanted, progress=report)
    elif num_transitions is not None:
        hint = "built-in datasets have any size: gq download builtin/hopper/medium"
        raise UsageError(f"{entry.id} is downloaded as it is, not simulated to a number of transitions", hint=hint)
    else:
        fetch_minari(entry, report, force=force)
    remember(entry.id)
    return entry.path


def fetch_minari(entry: DatasetEntry, report: Report = silent, *, force: bool = False) -> Path:
    """Put a Minari dataset into the cache and return its canonical file.

    It comes from an installed Minari folder (MINARI_DATASETS_PATH) that has it, else from HF_ENDPOINT. One process
    fetches, others that ask meanwhile wait for it.

    Raises:
        GqError: the network, the source's file or the cache is at fault.
    """
    if not force and stored_trajectories(entry):
        return entry.path  # also from a cache that cannot be written
    with holding(entry.path):
        if not force and stored_trajectories(entry):
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


def stored_trajectories(entry: DatasetEntry) -> Trajectories | None:
    """Return what the cache holds of a dataset, or None if there is nothing or it is damaged."""
    if not cached(entry):
        return None
    try:
        return read_trajectories(entry.path, source=entry.id)
    except DataError:
        return None


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


def remember(dataset_id: str) -> None:
    """Make a dataset the one that commands take when none is named."""
    write_json(datasets_folder() / "last.json", {"dataset": dataset_id})


def load_dataset(name_or_path: str, *, task: str | None = None) -> Trajectories:
    """Read a dataset file of any supported format, or a dataset of the cache by its id or a short form.

    Args:
        task: Gymnasium id; overrides what the file says.

    Raises:
        UsageError: no such file or dataset, or it is not in the cache.
        DataError: the file must not be trained on.
    """
    path = path_named(name_or_path)
    if path:
        return read_trajectories(path, task=task, source=canonical_name(name_or_path))
    entry = resolve(name_or_path)
    if not cached(entry):
        raise UsageError(f"{entry.id} is not in the cache", hint=f"gq download {entry.id}")
    try:
        return read_trajectories(entry.path, task=task, source=entry.id)
    except DataError as error:
        raise DataError(str(error), hint=f"gq download {entry.id}" if error.hint == AGAIN else error.hint) from error


def canonical_name(name_or_path: str) -> str:
    """Return a dataset's id for any of its names, and the absolute path of a file.

    Raises:
        UsageError: no such dataset.
    """
    path = path_named(name_or_path)
    return str(path.resolve()) if path else resolve(name_or_path).id


def path_named(text: str) -> Path | None:
    """Return the path that a text means, whether it exists or not, or None if it is a dataset's name."""
    path = Path(text).expanduser()
    is_dataset_folder = (path / "main_data.hdf5").is_file() or (path / "data" / "main_data.hdf5").is_file()
    if path.is_file() or is_dataset_folder or path.suffix or text.startswith((".", "~")) or path.is_absolute():
        return path
    try:
        resolve(text)
    except UsageError:
        return path if path.is_dir() else None
    return None
