"""HDF5 files that other programs write: robomimic's demonstrations and d3rlpy 2's dumps."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gq.data.hdf5 import READ_ERRORS, damaged, item_names, own_item, plain_attributes
from gq.data.layouts import PICKLE, Problem, Problems, Stored, UnusableError, find_episodes
from gq.envs.tasks import TASKS
from gq.errors import DataError

GYM_TYPE = 2  # of robomimic's environments: those of Gymnasium, by their ids


def stored_robomimic(path: Path, root: Any, problems: Problems) -> Stored | None:
    """Look at demonstrations as robomimic stores them, `data/demo_N/{obs/*, actions, rewards, dones}`; None: it is not.

    Observations are those of all keys, side by side in the keys' order. `dones` may mark success long before the end,
    so only the last one ends an episode.

    Raises:
        UnusableError: the observations are pictures.
        ForeignError: something lies in another file.
    """
    holder = own_item(str(path), root, "data")
    if not isinstance(holder, Mapping):
        return None
    names = [name for name in item_names(holder) if re.fullmatch(r"demo_\d{1,18}", name)]
    if not names:
        return None
    names.sort(key=lambda name: int(name[5:]))
    episodes = {name: _demonstration(f"{path}: {name}", own_item(str(path), holder, name)) for name in names}
    try:
        settings = json.loads(plain_attributes(holder).get("env_args") or "{}")
    except (OSError, ValueError):
        settings = {}
    made_by = {key: settings[key] for key in ("env_name", "env_version") if isinstance(settings.get(key), str)}
    if settings.get("type") == GYM_TYPE or made_by.get("env_name") in TASKS:
        made_by["env_id"] = made_by.get("env_name", "")
    stored = Stored(PICKLE, attributes=made_by)
    find_episodes(stored, path, episodes, names, problems)
    return stored


def _demonstration(where: str, group: Any) -> dict[str, Any]:
    """Return the columns of one demonstration under gq's names, those that there are."""
    if not isinstance(group, Mapping):
        return {}
    columns = {name: own_item(where, group, name) for name in ("actions", "rewards")}
    observations = own_item(where, group, "obs")
    if isinstance(observations, Mapping):
        for name in item_names(observations):
            shape = getattr(own_item(where, observations, name), "shape", ())
            if len(shape) == 4:
                message = f"obs/{name} holds pictures, shape {tuple(shape)}, and gq's policies take vectors"
                hint = "make the low-dimensional version: robomimic's dataset_states_to_obs.py without cameras"
                raise UnusableError(Problem("bad-shape", message, DataError(f"{where}: {message}", hint=hint)))
        columns["observations"] = observations
    dones = own_item(where, group, "dones")
    if hasattr(dones, "shape") and len(dones.shape) == 1:
        columns["terminals"] = _only_last(dones)
    return {name: column for name, column in columns.items() if column is not None}


def _only_last(flags: Any) -> np.ndarray:
    """Return flags [T] with all but the last one off."""
    found = np.zeros(len(flags), bool)
    found[-1:] = np.asarray(flags[-1:]) != 0
    return found


def stored_d3rlpy(path: Path, root: Any, problems: Problems) -> Stored | None:
    """Look at episodes as d3rlpy 2 dumps them, `observations_N` and so on, `terminated_N` once each; None: it is not.

    Raises:
        ForeignError: something lies in another file.
        DataError: it is damaged.
    """
    where = str(path)
    names = item_names(root)
    numbers = sorted({int(found[1]) for name in names if (found := re.fullmatch(r"actions_(\d{1,18})", name))})
    if not numbers or "columns" not in names:
        return None
    of_parts: dict[int, dict[str, str]] = {}
    for name in names:
        if found := re.fullmatch(r"observations_(\d{1,18})_(\d{1,9})", name):
            of_parts.setdefault(int(found[1]), {})[found[2]] = name
    episodes = {}
    for number in numbers:
        columns = {name: own_item(where, root, f"{name}_{number}") for name in ("observations", "actions", "rewards")}
        if number in of_parts:
            columns["observations"] = {key: own_item(where, root, name) for key, name in of_parts[number].items()}
        actions = columns["actions"]
        if hasattr(actions, "shape") and actions.dtype.kind in "iu" and actions.shape[1:] == (1,):
            columns["actions"] = np.asarray(actions).reshape(-1)  # which is how d3rlpy stores discrete ones
        ended = own_item(where, root, f"terminated_{number}")
        if hasattr(columns["rewards"], "shape"):
            columns["terminals"] = np.zeros(columns["rewards"].shape[:1], bool)
            try:
                columns["terminals"][-1:] = bool(np.asarray(ended[()])) if ended is not None else False
            except READ_ERRORS as error:
                raise damaged(path, error) from error
        episodes[f"episode {number}"] = {name: column for name, column in columns.items() if column is not None}
    stored = Stored(PICKLE)
    find_episodes(stored, path, episodes, list(episodes), problems)
    return stored
