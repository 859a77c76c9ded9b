"""Where episodes end in a flat file, whatever its flags are called: names and forms that other programs write."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gq.data.hdf5 import own_item, pick_column
from gq.errors import DataError

TERMINALS = ("terminals", "terminations", "terminateds", "terminated")
TIMEOUTS = ("timeouts", "truncations", "truncateds", "truncated")
ENDS = ("episode_terminals", "dones", "done")  # of an episode, by whichever of the two
PLACES = ("episode_ends",)  # the row behind each episode's last
NUMBERS = ("trajectory_ids", "trajectory_id", "episode_ids", "episode_id")  # of the episode that a row is of
HINT = "rename it to timeouts (True on the last row of an episode that a time limit ended), or remove it"


def find_flags(where: str, container: Mapping[str, Any], num_rows: int) -> dict[str, Any]:
    """Return the columns `terminals` and `timeouts` [N], those that there are, under gq's names.

    Where only ends are flagged, an end without a terminal is a timeout; with no terminals at all, every end is one.

    Raises:
        DataError: a column of ends does not fit the rows; or nothing says where episodes end by their time limit, and
            a column may, which gq does not understand.
    """
    found: dict[str, Any] = {}
    for name, names in (("terminals", TERMINALS), ("timeouts", TIMEOUTS)):
        if stored := _first(where, container, names):
            found[name] = pick_column(where, container, stored, (stored,))
    if "timeouts" in found:
        return found
    ends = _find_ends(where, container, num_rows)
    if ends is None:
        if unread := _unread(where, container, num_rows):
            message = f"{where}: the column {unread} may say where episodes end, and gq does not know it"
            raise DataError(message, hint=HINT)
    elif "terminals" in found:
        found["timeouts"] = ends & ~np.asarray(found["terminals"])[:num_rows].astype(bool).reshape(len(ends), -1).any(1)
    else:
        found["terminals"] = ends
    return found


def _first(where: str, container: Mapping[str, Any], names: Iterable[str]) -> str | None:
    return next((name for name in names if hasattr(own_item(where, container, name), "shape")), None)


def _find_ends(where: str, container: Mapping[str, Any], num_rows: int) -> np.ndarray | None:
    """Return the last rows of episodes as flags, bool [N]; None where no column that gq knows says so."""
    ends = np.zeros(num_rows, bool)
    if name := _first(where, container, ENDS):
        flags = np.asarray(container[name]).reshape(-1)
        ends[: len(flags)] = flags[:num_rows] != 0
        return ends
    if name := _first(where, container, PLACES):
        values = np.asarray(container[name]).reshape(-1)
        if values.dtype.kind == "b" or len(values) == num_rows:
            return np.asarray(values[:num_rows] != 0)
        places = values.astype(np.int64) - 1
        if not len(places) or (np.diff(places) <= 0).any() or places[0] < 0 or places[-1] >= num_rows:
            raise DataError(f"{where}: {name} are not rows of the file in order", hint="each is behind a last row")
        ends[places] = True
        return ends
    if name := _first(where, container, NUMBERS):
        numbers = np.asarray(container[name]).reshape(-1)[:num_rows]
        ends[: len(numbers) - 1] = numbers[1:] != numbers[:-1]
        ends[-1] = True
        return ends
    return None


def _unread(where: str, container: Mapping[str, Any], num_rows: int) -> str | None:
    """Return the name of a column that looks as if it marked episodes: flags, or numbers that never fall."""
    for name in container:
        column = own_item(where, container, name)
        if name in TERMINALS or getattr(column, "shape", None) != (num_rows,) or column.dtype.kind not in "bi":
            continue
        values = np.asarray(column)
        if values.dtype.kind == "b" or (values[0] < values[-1] and (np.diff(values) >= 0).all()):
            return str(name)
    return None
