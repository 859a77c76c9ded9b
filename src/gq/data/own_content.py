"""What a data file may make a reader take: only what lies in the file itself, and no more memory than it can mean.

HDF5 can refer to other files, by links, by external storage and by virtual datasets; and a dataset of any size can be
stated in a few bytes. Nothing of all that is in the data that gq reads.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gq.errors import DataError

FREE_BYTES = 256 << 20  # any file may mean so much
MAX_RATIO = 100  # bytes in memory per byte of larger files; data of simulations compress to half
NOT_TRUSTED = "no measured data compress so well: do not trust this file"
ELSEWHERE = "data files of robots do not refer to others: do not trust this one"


class ForeignError(DataError):
    """A file that asks for what no data file needs, so that nothing in it is to be trusted."""


def own_item(where: str, container: Any, name: str) -> Any:
    """Return what a name in a dict or an HDF5 group stands for, or None.

    Raises:
        ForeignError: it is a link, or its numbers lie in another file.
    """
    if not hasattr(container, "attrs"):
        return container.get(name)
    import h5py

    link = container.get(name, getlink=True)
    if link is not None and not isinstance(link, h5py.HardLink):
        raise ForeignError(f"{where}: {name} is a link to elsewhere, which gq does not follow", hint=ELSEWHERE)
    try:
        item = container.get(name)
        getattr(item, "dtype", None)
    except (KeyError, ValueError, TypeError, OverflowError) as error:  # as a type of number that NumPy lacks
        raise DataError(f"{where}: {name} cannot be read: {error}", hint=ELSEWHERE) from error
    if isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
        raise ForeignError(f"{where}: the numbers of {name} lie in another file", hint=ELSEWHERE)
    return item


def check_size(path: Path, shapes: Iterable[Sequence[int]]) -> None:
    """Refuse columns that are far larger in memory, as float32, than their file can mean.

    Args:
        shapes: of all that is to be read, also several times of the same dataset.

    Raises:
        ForeignError: they are.
    """
    num_bytes = 4 * sum(math.prod(map(int, shape)) for shape in shapes)
    stored = path.stat().st_size
    if num_bytes > max(FREE_BYTES, MAX_RATIO * stored):
        raise ForeignError(f"{path} has {stored:,} bytes and says that it holds {num_bytes:,}", hint=NOT_TRUSTED)
