"""An append-only file of whole episodes, from which all that was completely written can be read after a kill."""

import errno
import hashlib
import os
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gq.errors import DataError
from gq.files import write_error

# Each record: header, then observations, actions and rewards as float32, then the SHA-256 of all that.
HEADER = struct.Struct("<III")  # number, steps, 1 if it ended by itself
DIGEST_BYTES = 32
FLOAT_BYTES = 4


class LoggedEpisode(NamedTuple):
    """One whole episode of T steps; arrays are float32."""

    observations: np.ndarray  # [T, S]
    actions: np.ndarray  # [T, A]
    rewards: np.ndarray  # [T]
    terminated: bool  # False: stopped by the time limit


class EpisodeLog:
    """Hold numbered episodes in a file, in the order in which they were added.

    Opening it checks every record and cuts the file off at the first one that is not whole. One process at a time.
    """

    def __init__(self, path: Path, *, observation_dim: int, action_dim: int) -> None:
        """Open or create the file.

        Raises:
            GqError: it cannot be written.
        """
        self.path, self.observation_dim, self.action_dim = path, observation_dim, action_dim
        self.lengths: dict[int, int] = {}  # steps of each episode by its number
        self.num_rows = 0  # of all episodes
        self._positions: dict[int, int] = {}  # where its record begins
        try:
            path.touch()
            self._file = path.open("r+b", buffering=0)  # a full disk is noticed at once, not on closing
            self._scan()
        except OSError as error:
            raise write_error(path, error) from error

    def __enter__(self) -> "EpisodeLog":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def append(self, number: int, episode: LoggedEpisode) -> None:
        """Add an episode that is not there yet; after this, a kill of the process does not lose it.

        Raises:
            GqError: the disk is full. What was there before stays whole.
        """
        assert number not in self.lengths, number
        num_steps = len(episode.rewards)
        header = HEADER.pack(number, num_steps, episode.terminated)
        arrays = (episode.observations, episode.actions, episode.rewards)
        record = header + b"".join(np.ascontiguousarray(array, np.float32).tobytes() for array in arrays)
        assert len(record) == HEADER.size + self._num_bytes(num_steps)
        position = self._file.seek(0, os.SEEK_END)
        try:
            whole = record + hashlib.sha256(record).digest()
            if self._file.write(whole) != len(whole):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise write_error(self.path, error) from error
        self._add(number, num_steps, position)

    def forget_from(self, number: int) -> None:
        """Cut the file off at the first episode with this number or a later one.

        Raises:
            GqError: the file cannot be written.
        """
        later = [position for known, position in self._positions.items() if known >= number]
        if not later:
            return
        try:
            self._file.truncate(min(later))
            self.lengths, self._positions, self.num_rows = {}, {}, 0
            self._file.seek(0)
            self._scan()
        except OSError as error:
            raise write_error(self.path, error) from error

    def sync(self) -> None:
        """Flush to the disk, so that a power failure does not lose what was added.

        Raises:
            GqError: the disk refuses.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise write_error(self.path, error) from error

    def read(self, number: int) -> LoggedEpisode:
        """Return an episode.

        Raises:
            DataError: its bytes are not those that were written.
        """
        self._file.seek(self._positions[number])
        record = self._read_record()
        if record is None or record[0] != number:
            raise DataError(f"{self.path} was damaged while in use", hint="the same command mends it and goes on")
        return record[1]

    def _num_bytes(self, num_steps: int) -> int:
        """Return the size of the arrays of an episode."""
        return num_steps * (self.observation_dim + self.action_dim + 1) * FLOAT_BYTES

    def _read_record(self) -> tuple[int, LoggedEpisode] | None:
        """Return the number and content of the record at the file's position, or None if it is not whole."""
        header = self._file.read(HEADER.size)
        if len(header) < HEADER.size:
            return None
        number, num_steps, terminated = HEADER.unpack(header)
        num_bytes = self._num_bytes(num_steps)
        if num_bytes > os.fstat(self._file.fileno()).st_size:  # a damaged header asks for the impossible
            return None
        content, digest = self._file.read(num_bytes), self._file.read(DIGEST_BYTES)
        if hashlib.sha256(header + content).digest() != digest:
            return None
        values = np.frombuffer(content, np.float32)
        num_observed, num_acted = num_steps * self.observation_dim, num_steps * self.action_dim
        return number, LoggedEpisode(
            values[:num_observed].reshape(num_steps, self.observation_dim),
            values[num_observed : num_observed + num_acted].reshape(num_steps, self.action_dim),
            values[num_observed + num_acted :],
            bool(terminated),
        )

    def _scan(self) -> None:
        """Find all whole records and cut off what follows them."""
        position = 0
        while record := self._read_record():
            number, episode = record
            self._add(number, len(episode.rewards), position)
            position = self._file.tell()
        self._file.truncate(position)

    def _add(self, number: int, num_steps: int, position: int) -> None:
        """Note that an episode is there."""
        self.lengths[number], self._positions[number] = num_steps, position
        self.num_rows += num_steps
