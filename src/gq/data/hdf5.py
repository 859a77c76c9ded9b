"""HDF5 files as strangers made them: only what lies in the file itself is read, and no more than it can mean.

HDF5 can refer to other files, by links, by external storage and by virtual datasets; and a dataset of any size can be
stated in a few bytes. Nothing of all that is in the data that gq reads.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gq.envs.tasks import ordered_keys
from gq.errors import DataError

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
AGAIN = "fetch it again: an interrupted download or a saved error page looks like this"
READ_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError)  # what h5py raises for damaged structures
FREE_BYTES = 256 << 20  # any file may mean this much
MAX_RATIO = 100  # bytes in memory per byte of larger files; data of simulations compress to half
NOT_TRUSTED = "no measured data compress so well: do not trust this file"
ELSEWHERE = "data files of robots do not refer to others: do not trust this one"


class ForeignError(DataError):
    """A file that asks for what no data file needs, so that nothing in it is to be trusted."""


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """Open an HDF5 file for reading; a truncated or damaged one raises DataError, also while it is being read."""
    import h5py

    try:
        with h5py.File(path, "r") as root:
            yield root
    except (OSError, RuntimeError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> DataError:
    """The error for a user that one of h5py's about a truncated or damaged file stands for."""
    sizes = re.search(r"eof = (\d+).*stored_eof = (\d+)", str(error))
    if sizes:
        message = f"{path} is truncated: it has {int(sizes[1]):,} of {int(sizes[2]):,} bytes"
    else:
        message = f"{path} is damaged: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    return DataError(message, hint=AGAIN)


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


def item_names(group: Any) -> list[str]:
    """Return the names in an HDF5 group; h5py gives bytes for what is no UTF-8, which is no name that gq knows.

    Raises:
        OSError: they are damaged, whatever h5py makes of that.
    """
    try:
        return [name for name in group if isinstance(name, str)]
    except READ_ERRORS as error:
        raise OSError(str(error)) from error


def own_item(where: str, container: Any, name: str) -> Any:
    """Return what a name in a dict or an HDF5 group stands for, or None.

    Args:
        where: file, and episode if there is one, for messages.

    Raises:
        ForeignError: it is a link, or its numbers lie in another file.
        DataError: it cannot be read.
    """
    if not hasattr(container, "attrs"):
        return container.get(name)
    import h5py

    try:
        link = container.get(name, getlink=True)
        if link is not None and not isinstance(link, h5py.HardLink):
            raise ForeignError(f"{where}: {name} is a link to elsewhere, which gq does not follow", hint=ELSEWHERE)
        item = container.get(name)
        getattr(item, "dtype", None)
    except (KeyError, ValueError, TypeError, OverflowError) as error:  # as a type of number that NumPy lacks
        raise DataError(f"{where}: {name} cannot be read: {error}", hint=ELSEWHERE) from error
    if isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
        raise ForeignError(f"{where}: the numbers of {name} lie in another file", hint=ELSEWHERE)
    return item


def pick_columns(where: str, container: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return columns of a dict or an HDF5 group by name, unread.

    Raises:
        DataError: one is missing or is not an array.
    """
    return {name: pick_column(where, container, name, names) for name in names}


def pick_column(where: str, container: Any, name: str, needed: Sequence[str]) -> Any:
    """Return one of the columns that are needed; see `pick_columns`."""
    if not isinstance(container, Mapping):
        raise DataError(f"{where} is not a group of arrays", hint="an episode needs " + ", ".join(needed))
    column = own_item(where, container, name)
    if column is None:
        found = ", ".join(str(key) for key in list(container)[:6]) or "nothing"
        raise DataError(f"{where} has no {name}, but {found}", hint="gq needs " + ", ".join(needed))
    if name == "observations" and isinstance(column, Mapping) and len(column):
        return _join(f"{where}: {name}", column)
    if not hasattr(column, "dtype") or not hasattr(column, "shape"):
        raise DataError(f"{where}: {name} is a {type(column).__name__.lower()}, not one array")
    return column


def _join(where: str, group: Mapping[str, Any]) -> "Joined":
    """Return the columns of a Dict, of Dicts perhaps, side by side in the order in which environments flatten them."""
    parts = {}
    for key in ordered_keys(group):
        part = own_item(where, group, key)
        is_group = isinstance(part, Mapping) and len(part)
        parts[key] = _join(f"{where}/{key}", part) if is_group else pick_column(where, group, key, (key,))
    return Joined(parts)


class Joined:
    """The columns of Dict observations side by side, as one column [T, S] that is not read yet."""

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self.parts = dict(parts)
        self.widths = [math.prod(map(int, part.shape[1:])) for part in self.parts.values()]
        self.dtype = np.result_type(*(part.dtype for part in self.parts.values()))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows that all columns have, and the width of all."""
        lengths = [int(part.shape[0]) if part.shape else 0 for part in self.parts.values()]
        return min(lengths), sum(self.widths)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Read some rows."""
        taken = [np.asarray(part[: self.shape[0]])[rows] for part in self.parts.values()]
        if not isinstance(rows, slice):
            return np.concatenate([np.ravel(one) for one in taken])
        return np.concatenate([one.reshape(len(one), -1) for one in taken], axis=1)


def check_size(path: Path, shapes: Iterable[Sequence[int]]) -> None:
    """Refuse columns that are far larger in memory, as float32, than their file can mean.

    Args:
        shapes: of all that is to be read, also several times of the same dataset.

    Raises:
        ForeignError: they are.
    """
    num_bytes = 4 * sum(math.prod(map(int, shape)) for shape in shapes)
    stored = sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size
    if num_bytes > max(FREE_BYTES, MAX_RATIO * stored):
        raise ForeignError(f"{path} has {stored:,} bytes and says that it holds {num_bytes:,}", hint=NOT_TRUSTED)
