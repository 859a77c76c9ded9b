"""Datasets by name or path: get one into the cache, and load one for training."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gq.data.hdf5 import AGAIN, open_hdf5, plain_attributes
from gq.data.reading import read_trajectories
from gq.data.trajectories import Trajectories
from gq.datasets import names as registry
from gq.datasets.builtin import DEFAULT_NUM_TRANSITIONS, download_builtin
from gq.datasets.cache import Stored, cached, check_unchanged, holding, put_on_record, sound_record
from gq.datasets.catalog import DatasetEntry
from gq.datasets.download import fetch_dataset
from gq.datasets.names import PREFIX
from gq.envs.specs import EnvironmentRequest
from gq.envs.tasks import Task
from gq.errors import DataError, UsageError
from gq.files import write_json
from gq.paths import datasets_folder, existing


@dataclass(frozen=True)
class Downloaded:
    """A dataset or checkpoint in the cache; what is counted over transitions is None for a checkpoint."""

    id: str
    path: Path
    task: str
    num_transitions: int | None
    num_episodes: int | None
    return_mean: float | None
    return_std: float | None
    was_cached: bool
    size_bytes: int
    sha256: str


def download(
    name: str,
    *,
    level: str | None = None,
    num_transitions: int | None = None,
    force: bool = False,
    offline: bool = False,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
    note: Callable[[str], None] = lambda text: None,
) -> Downloaded:
    """Fetch or simulate a dataset unless it is in the cache undamaged, and make it the default; or fetch a checkpoint.

    What is in the cache is hashed and compared with its record. One process works, others wait for it.

    Args:
        level: medium, expert, ... where the name says none.
        num_transitions: how many to simulate, for built-in datasets.
        force: get it again; the old file is replaced only by a complete new one.
        offline: never use the network.
        progress: called with what is done and the total, in bytes or simulated steps.
        note: called with lines of text for people, such as known defects of the data.

    Raises:
        UsageError: no such dataset, or another size of it is cached already.
        GqError: it could not be fetched or written.
    """
    entry = registry.resolve(name, level=level)
    if num_transitions is not None and entry.kind != "builtin":
        raise UsageError(f"{entry.id} has a fixed size", hint="--transitions is for builtin/... datasets")
    with holding(entry, note):
        stored = None if force else sound_record(entry)
        was_cached = stored is not None
        if stored is None and cached(entry) and not force:
            note(f"{entry.path} is damaged; getting it again")
        if stored is None and entry.kind == "builtin":
            num_wanted = DEFAULT_NUM_TRANSITIONS if num_transitions is None else num_transitions
            download_builtin(entry.id, entry.path, num_transitions=num_wanted, progress=progress)
            stored = put_on_record(entry, None, read_trajectories(entry.path, source=entry.id))
        elif stored is None:
            source, trajectories = fetch_dataset(entry, offline=offline, report=progress, note=note)
            stored = put_on_record(entry, source, trajectories)
    if was_cached:
        _check_size(entry, stored, num_transitions)
        note(f"{entry.id} is in the cache already")
    if entry.note:
        look = "" if entry.kind != "d4rl" else f"; look at it: gq repair {entry.id}"
        note(f"known of {entry.id}: {entry.note}{look}")
    if entry.kind != "tdmpc2":
        write_json(datasets_folder() / "last.json", {"dataset": entry.id})
    return Downloaded(
        id=entry.id,
        path=entry.path,
        task=entry.task or _recorded_task(entry.path),
        num_transitions=stored.num_transitions,
        num_episodes=stored.num_episodes,
        return_mean=stored.return_mean,
        return_std=stored.return_std,
        was_cached=was_cached,
        size_bytes=stored.num_bytes,
        sha256=stored.sha256,
    )


def _recorded_task(file: Path) -> str:
    """Return the task that a file of the cache says it is of, or nothing."""
    with open_hdf5(file) as root:
        return str(plain_attributes(root).get("env_id", ""))


def _check_size(entry: DatasetEntry, stored: Stored, num_transitions: int | None) -> None:
    """Raise UsageError for a cached simulation where another number of transitions is wanted."""
    asked = stored.num_requested_transitions
    if num_transitions in (None, asked):
        return
    message = f"{entry.id} is in the cache with {asked} transitions, not {num_transitions}"
    raise UsageError(message, hint=f"replace it: gq download {entry.id} --transitions {num_transitions} --force")


def canonical_name(name: str) -> str:
    """Return the absolute path of an existing file or folder, else the id that a name stands for.

    A folder goes before an id of the same name only if it holds a Minari dataset.

    Raises:
        UsageError: neither a file nor a dataset.
    """
    if name.startswith(PREFIX):
        return registry.resolve(name).id
    path = existing(name)
    is_folder = path is not None and path.is_dir()
    files = ("", "main_data.hdf5", "data/main_data.hdf5")  # itself, or what a Minari dataset's folder holds
    if path and any((path / file).is_file() for file in files):
        return str(path.resolve())
    is_path = bool(Path(name).suffix) or name.startswith((".", "/", "~"))
    if is_path and not is_folder:
        raise UsageError(f"there is no dataset file {name}", hint="check the path, or see gq download --list")
    try:
        return registry.resolve(name).id
    except UsageError:
        if path and is_folder:
            return str(path.resolve())  # reading it will say what is missing
        raise


def load_dataset(
    name: str, *, task: str | None = None, environment: Task | EnvironmentRequest | None = None
) -> Trajectories:
    """Load a dataset by id or path; see `read_trajectories` for what is said of its environment.

    Raises:
        UsageError: no such file or dataset, or one that was not downloaded.
        DataError: the file must not be trained on.
    """
    found = canonical_name(name)
    if Path(found).is_absolute():
        return read_trajectories(Path(found), task=task, environment=environment)
    entry = registry.resolve(found)
    if entry.kind == "tdmpc2":
        raise UsageError(f"{entry.id} is a TD-MPC2 checkpoint, not a dataset", hint="see gq download --list")
    if not cached(entry):
        raise UsageError(f"{entry.id} is not in the cache", hint=f"gq download {entry.id}")
    try:
        trajectories = read_trajectories(entry.path, task=task, environment=environment, source=entry.id)
    except DataError as error:
        hint = f"gq download {entry.id}" if error.hint == AGAIN else error.hint
        raise DataError(str(error), hint=hint) from error
    check_unchanged(entry)
    return trajectories
