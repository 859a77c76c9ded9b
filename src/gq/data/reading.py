"""Read D4RL and Minari HDF5 files and the Decision Transformer's pickles into `Trajectories`; write gq's own file.

Layouts are told apart by content. gq's canonical file is a D4RL file: flat arrays and end-of-episode flags.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gq.data.layouts import from_episodes, from_flat, pick_columns
from gq.data.own_content import own_item
from gq.data.pickle_reader import load_pickle
from gq.data.trajectories import Trajectories
from gq.envs.tasks import resolve_task, task_in_name
from gq.errors import DataError, UsageError
from gq.files import atomic_path, parse_json

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
PICKLE_MAGICS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # the protocols 2 to 5
MINARI_PROVENANCE = ("dataset_id", "algorithm_name", "author", "code_permalink", "minari_version", "requirements")
AGAIN = "fetch it again: an interrupted download or a saved error page looks like this"


def read_trajectories(path: Path, *, task: str | None = None, source: str | None = None) -> Trajectories:
    """Read a D4RL or Minari HDF5 file, a Minari dataset folder or a pickled list of episodes.

    The task is the argument, else what the file records, else what its name implies, else None. An unfinished episode
    at the end of a flat file is left out and counted in `num_dropped_rows`.

    Args:
        task: Gymnasium id, in any case.
        source: what `Trajectories.source` says; the path if None.

    Raises:
        UsageError: no such file or task, or the file needs a task that nothing names.
        DataError: the file is damaged, incomplete, holds NaN, or has other widths than the task.
    """
    path = path.expanduser()
    asked = resolve_task(task).id if task else None
    file = data_file(path)
    if not starts_as_hdf5(file):
        return read_pickle(file, asked, source or str(path))
    return read_hdf5(file, asked, source or str(path))


def data_file(path: Path) -> Path:
    """Return the path, or for a Minari dataset's folder the HDF5 file in it.

    Raises:
        UsageError: there is no such file, or the folder holds no Minari HDF5 data.
    """
    if not path.exists():
        raise UsageError(f"there is no file {path}", hint="check the path, or name a dataset: gq download hopper")
    if not path.is_dir():
        return path
    for folder in (path, path / "data"):
        if (folder / "main_data.hdf5").is_file():
            return folder / "main_data.hdf5"
    hint = "give the folder of one Minari dataset in HDF5 format (mujoco/hopper/medium-v0), or a file"
    raise UsageError(f"{path} is a folder without main_data.hdf5 or data/main_data.hdf5", hint=hint)


def starts_as_hdf5(path: Path) -> bool:
    """Tell an HDF5 file (True) from a pickle (False) by its first bytes.

    Raises:
        DataError: it is neither, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(60)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if head.startswith(HDF5_MAGIC):
        return True
    if head.startswith(PICKLE_MAGICS):
        return False
    text = head.decode("utf-8", errors="replace").split("\n")[0]
    looks = (
        f"it is text that starts with {text[:30]!r}"
        if text.isprintable() and "\ufffd" not in text
        else "unknown content"
    )
    raise DataError(f"{path} is neither an HDF5 file nor a pickle: {looks if head else 'it is empty'}", hint=AGAIN)


def read_hdf5(path: Path, asked: str | None, source: str) -> Trajectories:
    """Read a D4RL or Minari HDF5 file; see `read_trajectories`."""
    with open_hdf5(path) as root:
        if "observations" in root:
            attributes = plain_attributes(root)
            task = choose_task(path, asked, attributes.get("env_id"))
            names = ["observations", "actions", "rewards", "terminals"] + ["timeouts"] * ("timeouts" in root)
            trajectories = from_flat(str(path), pick_columns(str(path), root, names), source=source, task=task)
            return replace(trajectories, attributes=attributes)
        if groups := episode_names(root):
            return read_minari(path, root, groups, asked, source)
        found = ", ".join(map(str, list(root)[:5])) or "nothing"
    message = f"{path} has neither observations (D4RL) nor episode_0 (Minari) at its root, but {found}"
    raise DataError(message, hint="gq reads D4RL and Minari HDF5 files and pickled lists of episodes")


def episode_names(root: Any) -> list[str]:
    """Return the names of Minari's groups in the order of their numbers."""
    texts = [name for name in root if isinstance(name, str)]  # h5py gives bytes for what is no UTF-8
    names = [name for name in texts if re.fullmatch(r"episode_\d{1,18}", name)]
    return sorted(names, key=lambda name: (int(name[8:]), name))


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """Open an HDF5 file for reading; a truncated or damaged one raises DataError, also while it is being read."""
    import h5py

    try:
        with h5py.File(path, "r") as root:
            yield root
    except (OSError, RuntimeError) as error:  # what h5py raises for damaged files
        sizes = re.search(r"eof = (\d+).*stored_eof = (\d+)", str(error))
        if sizes:
            message = f"{path} is truncated: it has {int(sizes[1]):,} of {int(sizes[2]):,} bytes"
        else:
            message = f"{path} is damaged: {str(error).splitlines()[0]}"
        raise DataError(message, hint=AGAIN) from error


def read_minari(path: Path, root: Any, names: list[str], asked: str | None, source: str) -> Trajectories:
    """Read Minari's layout, one group an episode; see `read_trajectories`.

    An episode without a flag on its last row was cut by its collector, and is kept: Minari stores whole episodes.
    """
    metadata = minari_metadata(path)
    wanted = ["observations", "actions", "rewards", "terminations"]
    episodes = {name: pick_columns(f"{path}: {name}", own_item(str(path), root, name), wanted) for name in names}
    task = choose_task(path, asked, metadata.get("env_id"))
    trajectories = from_episodes(str(path), episodes, source=source, task=task, num_final_observations=1)
    return replace(trajectories, attributes=metadata)


def minari_metadata(path: Path) -> dict[str, Any]:
    """Return the provenance in metadata.json beside a Minari file, with `env_id`; empty if there is no such file.

    Raises:
        DataError: metadata.json is not JSON.
    """
    file = path.with_name("metadata.json")
    if not file.is_file():
        return {}
    try:
        metadata = parse_json(file.read_text(encoding="utf-8"))
        specification = parse_json(metadata.get("env_spec") or "{}")  # JSON in a string, with bare Infinity in it
        env_id = specification.get("id")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{file} is damaged: {error}", hint=AGAIN) from error
    found = {name: metadata[name] for name in MINARI_PROVENANCE if metadata.get(name)}
    found = {name: ", ".join(map(str, value)) if isinstance(value, list) else value for name, value in found.items()}
    return found | ({"env_id": env_id} if env_id else {})


def read_pickle(path: Path, asked: str | None, source: str) -> Trajectories:
    """Read a pickled list of dicts, one an episode; see `read_trajectories`."""
    stored = load_pickle(path)
    if not isinstance(stored, list) or not stored or not all(isinstance(episode, dict) for episode in stored):
        found = "an empty list" if stored == [] else f"a {type(stored).__name__}"
        hint = "it should be a list of dicts, one an episode: observations, actions, rewards, terminals"
        raise DataError(f"{path} holds {found}, not episodes", hint=hint)
    episodes = {}
    for number, episode in enumerate(stored):
        flag = "dones" if "dones" in episode and "terminals" not in episode else "terminals"
        wanted = ["observations", "actions", "rewards", flag]
        episodes[f"episode {number}"] = pick_columns(f"{path}: episode {number}", episode, wanted)
    return from_episodes(str(path), episodes, source=source, task=choose_task(path, asked, None))


def choose_task(path: Path, asked: str | None, recorded: Any) -> str | None:
    """Return the task asked for, else the recorded environment id, else the one that the file's name implies."""
    if asked or (recorded and isinstance(recorded, str)):
        return asked or recorded
    inside_minari = path.name == "main_data.hdf5"
    named = task_in_name("/".join(path.resolve().parts[-4:-1]) if inside_minari else path.name)
    return named.id if named else None


def plain_attributes(holder: Any) -> dict[str, Any]:
    """Return an HDF5 object's attributes as Python values; arrays become lists, bytes become text.

    Raises:
        OSError: they are damaged, whatever h5py makes of that.
    """
    try:
        attributes = dict(holder.attrs.items())
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise OSError(f"its attributes cannot be read: {error}") from error
    plain = {}
    for name, value in attributes.items():
        value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        if isinstance(value, bytes):
            value = value.decode("utf-8", errors="replace")
        if isinstance(value, str | int | float | bool | list):
            plain[name] = value
    return plain


def time_limits(trajectories: Trajectories) -> np.ndarray:
    """Return the flags of rows where an episode ends without a terminal, bool [N]."""
    timeouts = np.zeros(trajectories.num_transitions, bool)
    timeouts[trajectories.offsets[1:] - 1] = True
    limits: np.ndarray = timeouts & ~trajectories.terminals
    return limits


def write_canonical(
    path: Path, trajectories: Trajectories, *, timeouts: np.ndarray, attributes: dict[str, Any]
) -> None:
    """Write gq's dataset file atomically: flat, contiguous arrays, float32 and bool.

    Args:
        timeouts: bool [N], True where an episode ends by its time limit; `time_limits` gives it.
        attributes: provenance as text and numbers; `env_id` and `source` are taken from the trajectories.

    Raises:
        GqError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    import h5py

    ends = np.flatnonzero(trajectories.terminals | timeouts)
    assert np.array_equal(ends, trajectories.offsets[1:] - 1), "flags must mark the ends of episodes and nothing else"
    recorded = {"env_id": trajectories.task, "source": trajectories.source, **attributes}
    arrays = {
        "observations": trajectories.observations,
        "actions": trajectories.actions,
        "rewards": trajectories.rewards,
        "terminals": trajectories.terminals,
        "timeouts": timeouts,
    }
    with atomic_path(path) as temporary:
        try:
            with h5py.File(temporary, "w") as root:
                root.attrs.update({name: value for name, value in recorded.items() if value is not None})
                for name, array in arrays.items():
                    root.create_dataset(name, data=array)
        except (OSError, RuntimeError) as error:  # h5py buries the number in a long text; RuntimeError on closing
            number = re.search(r"errno = (\d+)", str(error))
            code = int(number[1]) if number else errno.EIO
            raise OSError(code, os.strerror(code)) from error
