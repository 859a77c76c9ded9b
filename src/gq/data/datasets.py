"""Datasets by name or path: get one into the cache, and load one for training."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gq.data import registry
from gq.data.builtin import DEFAULT_NUM_TRANSITIONS, download_builtin
from gq.data.download import fetch_minari
from gq.data.formats import AGAIN, read_trajectories
from gq.data.trajectories import Trajectories
from gq.errors import DataError, UsageError
from gq.files import write_json
from gq.paths import datasets_folder


@dataclass(frozen=True)
class Downloaded:
    """A dataset in the cache."""

    id: str
    path: Path
    task: str
    num_transitions: int
    num_episodes: int
    return_mean: float
    return_std: float
    was_cached: bool


def download(
    name: str,
    *,
    num_transitions: int | None = None,
    force: bool = False,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
    note: Callable[[str], None] = lambda text: None,
) -> Downloaded:
    """Fetch or simulate a dataset unless it is in the cache, read it whole as a check, and make it the default.

    Args:
        num_transitions: how many to simulate, for built-in datasets.
        force: get it again; the old file is replaced only by a complete new one.
        progress: called with what is done and the total, in bytes or simulated steps.

    Raises:
        UsageError: no such dataset, or another size of it is cached already.
        GqError: it could not be fetched or written.
    """
    entry = registry.resolve(name)
    if num_transitions is not None and entry.kind != "builtin":
        raise UsageError(f"{entry.id} has a fixed size", hint="--transitions is for builtin/... datasets")
    stored = None if force else stored_trajectories(entry)
    was_cached = stored is not None
    if stored is None and entry.kind == "builtin":
        num_wanted = DEFAULT_NUM_TRANSITIONS if num_transitions is None else num_transitions
        download_builtin(entry.id, entry.path, num_transitions=num_wanted, progress=progress)
    elif stored is None:
        fetch_minari(entry, progress, force=force)
    trajectories = stored or read_trajectories(entry.path, source=entry.id)
    if was_cached:
        asked = trajectories.attributes.get("num_requested_transitions")
        if num_transitions is not None and num_transitions != asked:
            message = f"{entry.id} is in the cache with {asked} transitions, not {num_transitions}"
            raise UsageError(
                message, hint=f"replace it: gq download {entry.id} --transitions {num_transitions} --force"
            )
        note(f"{entry.id} is in the cache already")
    write_json(datasets_folder() / "last.json", {"dataset": entry.id})
    return Downloaded(
        id=entry.id,
        path=entry.path,
        task=entry.task,
        num_transitions=trajectories.num_transitions,
        num_episodes=trajectories.num_episodes,
        return_mean=float(trajectories.returns.mean()),
        return_std=float(trajectories.returns.std()),
        was_cached=was_cached,
    )


def stored_trajectories(entry: registry.DatasetEntry) -> Trajectories | None:
    """Return what the cache holds of a dataset, or None if there is nothing or it is damaged."""
    if not registry.cached(entry):
        return None
    try:
        return read_trajectories(entry.path, source=entry.id)
    except DataError:
        return None


def canonical_name(name: str) -> str:
    """Return the absolute path of an existing file or folder, else the id that a name stands for.

    A folder goes before an id of the same name only if it holds a Minari dataset.

    Raises:
        UsageError: neither a file nor a dataset.
    """
    path = Path(name).expanduser()
    is_dataset_folder = (path / "main_data.hdf5").is_file() or (path / "data" / "main_data.hdf5").is_file()
    if path.is_file() or is_dataset_folder:
        return str(path.resolve())
    is_path = bool(path.suffix) or name.startswith((".", "/", "~"))
    if is_path and not path.is_dir():
        raise UsageError(f"there is no dataset file {name}", hint="check the path, or see gq download --list")
    try:
        return registry.resolve(name).id
    except UsageError:
        if path.is_dir():
            return str(path.resolve())  # reading it will say what it lacks
        raise


def load_dataset(name: str, *, task: str | None = None) -> Trajectories:
    """Load a dataset by id or path.

    Raises:
        UsageError: no such file or dataset, or one that was not downloaded.
        DataError: the file must not be trained on.
    """
    found = canonical_name(name)
    if Path(found).is_absolute():
        return read_trajectories(Path(found), task=task)
    entry = registry.resolve(found)
    if not registry.cached(entry):
        raise UsageError(f"{entry.id} is not in the cache", hint=f"gq download {entry.id}")
    try:
        return read_trajectories(entry.path, task=task, source=entry.id)
    except DataError as error:
        hint = f"gq download {entry.id} --force" if error.hint == AGAIN else error.hint
        raise DataError(str(error), hint=hint) from error
