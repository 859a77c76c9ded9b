"""Bring datasets and checkpoints into the cache: from the network, an installed Minari, or a simulation.

Whoever calls these functions holds the dataset's lock (`gq.datasets.cache.holding`).
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from gq.data.hdf5 import AGAIN, HDF5_MAGIC
from gq.data.old_columns import ATTRIBUTES, read_old_ant
from gq.data.reading import data_file, read_trajectories, time_limits, write_canonical
from gq.data.trajectories import Trajectories
from gq.datasets.cache import Record, Source, now, read_record, record_path, write_record
from gq.datasets.catalog import ENTRIES, DatasetEntry
from gq.datasets.fetch import Expected, Note, RemoteFile, Report, fetch, silent
from gq.datasets.hub import dataset_files, endpoint, hub_token, refuse_offline, server
from gq.datasets.names import PREFIX
from gq.errors import DataError
from gq.files import sha256

DEFAULT_D4RL_URL = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
ZIP_MAGIC = b"PK\x03\x04"  # of PyTorch's files
LARGE_BYTES = 300_000_000  # converting more than that takes seconds


def offline_hint(entry: DatasetEntry) -> str:
    """Return what gives data of the same robot without the network, where there is any; else of another."""
    robot = re.split("[-/]", entry.group)[1] if entry.kind in ("minari", "d4rl") else ""
    levels = (entry.level, "medium-replay" if "replay" in entry.level else "medium", "medium")
    names = [f"builtin/{robot}/{level}" for level in levels]
    name = next((name for name in names if name in ENTRIES), "builtin/hopper/medium")
    return f"offline? this needs no network: gq download {name}"


def retry_hint(entry: DatasetEntry) -> str:
    """Return what to do when a download broke off."""
    return f"run it again to resume where it stopped; {offline_hint(entry)}"


def fetch_dataset(
    entry: DatasetEntry, *, offline: bool = False, report: Report = silent, note: Note = silent
) -> tuple[Source, Trajectories | None]:
    """Put a dataset of Minari or D4RL, or a checkpoint, into the cache; an installed Minari goes before the network.

    Returns where it is from, and its episodes; None for a checkpoint.

    Args:
        offline: never use the network.
        report: called with the bytes so far and the total.
        note: called with a line of text for people.

    Raises:
        GqError: the network, the source's file or the cache is at fault.
    """
    installed = _installed_minari(entry)
    if installed:
        return _convert_installed(entry, installed, note)
    refuse_offline(f"{entry.id} is not here", offline=offline, hint=offline_hint(entry))
    files = dataset_files(entry) if entry.kind == "hub" else [(url, "") for url in _remote_urls(entry)]
    (*urls, url), listed_sha256 = [url for url, _ in files], files[-1][1]
    raw, token = entry.raw_folder, "" if entry.kind == "d4rl" else hub_token()
    for first in urls:
        fetch(RemoteFile(url=first, magic=b"{", hint=retry_hint(entry), token=token), raw / Path(first).name, note=note)
    remote = RemoteFile(
        url=url,
        magic=ZIP_MAGIC if entry.kind == "tdmpc2" else HDF5_MAGIC,
        hint=retry_hint(entry),
        token=token,
        expected=_expected_content(entry, listed_sha256),
        spare_bytes=entry.canonical_bytes,
    )
    file = raw / Path(url).name
    digest = fetch(remote, file, report=report, note=note)
    source = Source(where=url, num_bytes=file.stat().st_size, sha256=digest, time=now())
    if entry.kind == "tdmpc2":
        if read_record(entry).source is None:
            write_record(entry, Record(id=entry.id, source=source))  # first, so that a kill does not lose it
        file.replace(entry.path)
        return source, None
    if source.num_bytes > LARGE_BYTES:
        note(f"converting {source.num_bytes / 1e9:.1f} GB")
    try:
        return source, _convert(file, entry, source, note)
    except DataError as error:  # the next try must not stop at the same bad file
        hint = f"nothing of it was kept; try again: gq download {entry.id}"
        if error.hint != AGAIN:
            file.replace(entry.refused_path)
            hint = f"{error.hint}; it is kept aside: gq repair {entry.refused_path}".removeprefix("; ")
        shutil.rmtree(raw)
        message = str(error).replace(str(raw), url.rpartition("/")[0])  # it names files that are gone now
        raise DataError(message, hint=hint) from error


def _expected_content(entry: DatasetEntry, listed_sha256: str = "") -> Expected | None:
    """Return what the data file's hash must be: what gq knows, what the first download had, or what the Hub lists."""
    if entry.sha256_start:
        hint = "get it elsewhere and train from its path, if you trust it"
        return Expected(sha256=entry.sha256_start, says="the file that gq knows", hint=hint)
    source = read_record(entry).source
    if source is None:
        return Expected(sha256=listed_sha256, says="the Hub", hint=retry_hint(entry)) if listed_sha256 else None
    hint = f"if you trust the new file, delete {record_path(entry)} and download it again"
    return Expected(sha256=source.sha256, says=f"the first download, of {source.time[:10]},", hint=hint)


def _installed_minari(entry: DatasetEntry) -> Path | None:
    """Return the folder of a dataset in an installed Minari root, if it is there in HDF5 format."""
    if entry.kind != "minari":
        return None
    root = Path(os.environ.get("MINARI_DATASETS_PATH") or "~/.minari/datasets").expanduser()
    return root / entry.id if (root / entry.id / "data" / "main_data.hdf5").is_file() else None


def _convert_installed(entry: DatasetEntry, folder: Path, note: Note) -> tuple[Source, Trajectories]:
    """Write an installed Minari dataset to the canonical file."""
    file = data_file(folder)
    source = Source(where=str(folder), num_bytes=file.stat().st_size, sha256=sha256(file), time=now())
    expected = _expected_content(entry)
    if expected:
        expected.check(str(file), source.sha256)
    return source, _convert(file, entry, source, note)


def address_of(entry: DatasetEntry) -> str:
    """Return where a download would take the data from, for people: an address, a folder, or `simulation`.

    Raises:
        UsageError: HF_ENDPOINT or GQ_D4RL_URL is no web address.
    """
    installed = _installed_minari(entry)
    if installed or entry.kind == "builtin":
        return str(installed or "simulation")
    if entry.kind == "hub":
        return f"{endpoint()}/datasets/{entry.id.removeprefix(PREFIX)}"
    return _remote_urls(entry)[-1]


def _remote_urls(entry: DatasetEntry) -> list[str]:
    """Return where the entry's remote files are, the data last."""
    base = server("GQ_D4RL_URL", DEFAULT_D4RL_URL) if entry.kind == "d4rl" else endpoint()
    return [f"{base}/{path}" for path in entry.remote_paths]


def _convert(file: Path, entry: DatasetEntry, source: Source, note: Note) -> Trajectories:
    """Write the episodes of a file to the canonical file, and return them."""
    attributes: dict[str, Any] = {
        "source_url" if "://" in source.where else "source_path": source.where,
        "source_sha256": source.sha256,
        "source_bytes": source.num_bytes,
        "downloaded": source.time,
        "licence": entry.licence,
    }
    trajectories = None
    if entry.kind == "d4rl" and entry.task == "Ant-v5":
        trajectories = read_old_ant(file, entry.id)
        attributes |= ATTRIBUTES if trajectories else {}
    if trajectories is None:
        trajectories = read_trajectories(file, task=entry.task or None, source=entry.id)
    attributes = {**trajectories.attributes, **attributes, "num_dropped_rows": trajectories.num_dropped_rows}
    recorded = attributes.pop("env_id", entry.task)
    if entry.task and recorded != entry.task:
        note(f"{source.where} says it is of {recorded}, gq takes it for {entry.task}")
        attributes["source_env_id"] = recorded
    write_canonical(entry.path, trajectories, timeouts=time_limits(trajectories), attributes=attributes)
    return trajectories
