"""What several environments did, tick by tick, in append-only files; a checkpoint only notes how far they go.

In a tick, each environment either begins an episode or takes one decision, and gives one row:

    observation (what the row led to), action (what led to it), reward, kind     all float32

Files are `steps-000000.bin` and so on, of SEGMENT_ROWS rows or less. Up to the noted tick their bytes must have the
noted checksums; what lies behind was written after the checkpoint and is forgotten.
"""

import errno
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from gq.errors import DataError
from gq.files import sync, write_error

FIRST, GOES_ON, TERMINATED, TRUNCATED = range(4)  # kinds of rows: before the first decision of an episode, after others
SEGMENT_ROWS = 2**16


def row_width(observation_dim: int, action_dim: int) -> int:
    """Return the numbers in a row: observation, action, reward, kind."""
    return observation_dim + action_dim + 2


class StepLog:
    """Append ticks, and read them again. One process at a time."""

    def __init__(self, folder: Path, *, num_environments: int, width: int, position: dict[str, Any] | None = None):
        """Open the log of so many environments at a `position` that `sync` returned, or empty.

        Raises:
            DataError: what was written up to there has been lost or changed.
            GqError: it cannot be written.
        """
        self.folder, self.shape = folder, (num_environments, width)
        self.ticks_per_segment = max(SEGMENT_ROWS // num_environments, 1)
        try:
            self.num_ticks = int(position["ticks"]) if position else 0
            self.checksums = [int(checksum) for checksum in position["checksums"]] if position else []
            if self.num_ticks < 0 or len(self.checksums) != -(-self.num_ticks // self.ticks_per_segment):
                raise ValueError("ticks")
        except (KeyError, TypeError, ValueError, OverflowError):
            raise DataError(f"the checkpoint says no place in {folder}", hint="go on from another one") from None
        try:
            folder.mkdir(exist_ok=True)
            for segment, checksum in enumerate(self.checksums):
                if zlib.crc32(self._read(segment)) != checksum:
                    message = f"{self._path(segment)} is not what this run wrote"
                    raise DataError(message, hint="put the file back from a copy, or start a new run")
            self._forget_later()
        except OSError as error:
            raise write_error(folder, error) from error
        self._pending: list[bytes] = []

    def append(self, rows: np.ndarray) -> None:
        """Add a tick, float32 [E, W]; it reaches the files with `sync`."""
        assert rows.shape == self.shape, rows.shape
        self._pending.append(rows.astype(np.float32, copy=False).tobytes())

    def sync(self) -> dict[str, Any]:
        """Write all ticks to the disk; return the position, to be opened at later.

        Raises:
            GqError: the disk is full. What was there before stays as it was.
        """
        try:
            while self._pending:
                segment, used = divmod(self.num_ticks, self.ticks_per_segment)
                content = b"".join(self._pending[: self.ticks_per_segment - used])
                with self._path(segment).open("ab", buffering=0) as file:
                    if file.write(content) != len(content):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.fsync(file.fileno())
                if not used:
                    self.checksums.append(0)
                    sync(self.folder)
                self.checksums[-1] = zlib.crc32(content, self.checksums[-1])
                self.num_ticks += len(content) // self._tick_bytes
                del self._pending[: self.ticks_per_segment - used]
        except OSError as error:
            raise write_error(self.folder, error) from error
        return {"ticks": self.num_ticks, "checksums": list(self.checksums)}

    def read(self, first_tick: int) -> np.ndarray:
        """Return all synced ticks from `first_tick` on, float32 [T, E, W]."""
        segments = range(first_tick // self.ticks_per_segment, len(self.checksums))
        content = bytearray().join(self._read(segment) for segment in segments)
        rows = np.frombuffer(content, np.float32).reshape(-1, *self.shape)
        return rows[first_tick - segments.start * self.ticks_per_segment :]

    @property
    def _tick_bytes(self) -> int:
        return 4 * self.shape[0] * self.shape[1]

    def _path(self, segment: int) -> Path:
        return self.folder / f"steps-{segment:06d}.bin"

    def _num_bytes(self, segment: int) -> int:
        """Return how long a segment is at the present position."""
        num_ticks = min(self.num_ticks - segment * self.ticks_per_segment, self.ticks_per_segment)
        return num_ticks * self._tick_bytes

    def _read(self, segment: int) -> bytes:
        """Return a segment's bytes up to the present position, less where they are missing."""
        try:
            with self._path(segment).open("rb") as file:
                return file.read(self._num_bytes(segment))
        except FileNotFoundError:
            return b""

    def _forget_later(self) -> None:
        """Cut off what was written after the present position."""
        for path in sorted(self.folder.glob("steps-*.bin")):
            segment = int(path.stem.removeprefix("steps-"))
            if segment >= len(self.checksums):
                path.unlink()
            elif path.stat().st_size > self._num_bytes(segment):
                os.truncate(path, self._num_bytes(segment))
