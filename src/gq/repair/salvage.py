"""Read what is left of damaged files: HDF5 files that break off or have unreadable chunks, and broken pickles."""

import io
import pickletools
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gq.data.pickle_reader import Machine
from gq.data.reading import HDF5_MAGIC
from gq.errors import DataError

ROW_BLOCK = 8_192  # rows read at a time where a column cannot be read in one go
READ_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError)  # what h5py raises for damaged structures


def stored_size(path: Path) -> int | None:
    """Return how many bytes an HDF5 file says it has, or None if its superblock is of no known version."""
    with path.open("rb") as file:
        head = file.read(64)
    if len(head) < 48 or not head.startswith(HDF5_MAGIC):
        return None
    version = head[8]
    position = {0: 40, 1: 44, 2: 28, 3: 28}.get(version)
    size_of_offsets = head[13] if version < 2 else head[9]
    if position is None or size_of_offsets != 8:
        return None
    return int(struct.unpack_from("<Q", head, position)[0])


class PaddedFile(io.RawIOBase):
    """A truncated file that looks as long as it should be: zeros follow where it breaks off."""

    def __init__(self, path: Path, size: int) -> None:
        self.file, self.size, self.position = path.open("rb"), size, 0
        self.num_bytes = path.stat().st_size

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the position on."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self.size - self.position))
        self.file.seek(self.position)
        there = self.file.read(max(0, min(count, self.num_bytes - self.position)))
        view[: len(there)] = there
        view[len(there) : count] = bytes(count - len(there))
        self.position += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position."""
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    def tell(self) -> int:
        """Return the position."""
        return self.position

    def readable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def close(self) -> None:
        """Close the file."""
        self.file.close()
        super().close()


@contextmanager
def open_leniently(path: Path) -> Iterator[tuple[Any, int | None]]:
    """Open an HDF5 file, also one that breaks off; yield its root and, for such a one, the bytes it should have.

    Raises:
        DataError: not even its structure can be read.
    """
    import h5py

    size = stored_size(path)
    is_cut = size is not None and size > path.stat().st_size
    source = PaddedFile(path, size) if is_cut and size is not None else path
    try:
        root = h5py.File(source, "r")
        list(root)
    except READ_ERRORS as error:
        if isinstance(source, PaddedFile):
            source.close()
        raise DataError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
    try:
        yield root, size if is_cut else None
    finally:
        root.close()
        if isinstance(source, PaddedFile):
            source.close()


def readable_rows(dataset: Any, num_bytes: int) -> int:
    """Return how many leading rows of a dataset lie within the first `num_bytes` bytes of its file."""
    num_rows = int(dataset.shape[0])
    if num_rows == 0 or dataset.id.get_storage_size() == 0:
        return num_rows  # nothing is stored: the fill value
    if dataset.chunks is None:
        start = dataset.id.get_offset()
        if start is None:
            return num_rows
        row_bytes = max(1, dataset.dtype.itemsize * int(np.prod(dataset.shape[1:])))
        return int(np.clip((num_bytes - start) // row_bytes, 0, num_rows))
    end = num_rows
    present = 0
    for index in range(dataset.id.get_num_chunks()):
        chunk = dataset.id.get_chunk_info(index)
        if chunk.size and chunk.byte_offset + chunk.size <= num_bytes:
            present += 1
        else:
            end = min(end, int(chunk.chunk_offset[0]))
    expected = int(np.prod([-(-length // chunk) for length, chunk in zip(dataset.shape, dataset.chunks, strict=True)]))
    if present < expected and end == num_rows:  # the index of the chunks itself breaks off
        end = min(num_rows, present * dataset.chunks[0])
    return end


def read_rows(dataset: Any, out: np.ndarray) -> np.ndarray:
    """Read a dataset's leading rows into `out`, block by block where it is damaged; return which rows are lost."""
    lost = np.zeros(len(out), bool)
    try:
        dataset.read_direct(out, np.s_[: len(out)])
        return lost
    except READ_ERRORS:
        pass
    step = dataset.chunks[0] if dataset.chunks else ROW_BLOCK
    for start in range(0, len(out), step):
        stop = min(start + step, len(out))
        try:
            dataset.read_direct(out, np.s_[start:stop], np.s_[start:stop])
        except READ_ERRORS:
            lost[start:stop] = True
            out[start:stop] = 0
    return lost


def pickled_dicts(path: Path) -> list[dict[Any, Any]]:
    """Return the complete dicts of a pickle that breaks off, in order; empty if there is none."""
    machine = Machine(path)
    found: list[dict[Any, Any]] = []
    try:
        for opcode, argument, offset in pickletools.genops(path.read_bytes()):
            machine.offset = offset or 0
            machine.step(opcode.name, argument)
    except (DataError, ValueError, IndexError, KeyError, TypeError):
        for value in machine.stack:
            found += [value] if isinstance(value, dict) else value if isinstance(value, list) else []
    return [value for value in found if isinstance(value, dict) and value]
