"""Episodes of a policy: an append-only file of them on disk, and the replay buffer on the device.

From the file, all that was completely written can be read after a kill. The buffer is first in, first out; windows are
drawn uniformly over its rows.
"""

import errno
import hashlib
import os
import struct
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gq.data.trajectories import Trajectories
from gq.data.windows import Batch, Rows, gather_windows
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
            raise DataError(f"{self.path} was damaged while in use", hint="the same command repairs it and continues")
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


class Entry(NamedTuple):
    """A trajectory in the buffer."""

    name: str  # "offline/12" for episode 12 of the dataset, "online/3" for the policy's own episode 3
    num_rows: int
    episode_return: float


class ReplayBuffer:
    """Hold the newest `capacity` trajectories in the order of their age.

    The oldest always goes first, so the rows that live are back to back and a uniform draw over them is one integer;
    it equals the draw of a trajectory by its length and of a start within it. Returns-to-go are summed once, from the
    rewards that were earned: the return that a policy was asked for is never stored.
    """

    is_static = False  # it grows, and moves its rows

    def __init__(
        self,
        capacity: int,
        context_length: int,
        *,
        observation_dim: int,
        action_dim: int,
        device: torch.device | str = "cpu",
        seed: int = 0,
        delayed: bool = False,
    ) -> None:
        self.capacity, self.delayed = capacity, delayed
        self.entries: deque[Entry] = deque()
        self.window = torch.arange(context_length, device=device)
        self.generator = torch.Generator(device=device).manual_seed(seed)
        self._start = self._end = 0  # of the rows that live
        self._rows = Rows(
            torch.empty(0, observation_dim, device=device),
            torch.empty(0, action_dim, device=device),
            torch.empty(0, 1, device=device),
            torch.empty(0, dtype=torch.int64, device=device),
            torch.empty(0, dtype=torch.int64, device=device),
        )

    @property
    def num_rows(self) -> int:
        """Transitions in the buffer."""
        return self._end - self._start

    def add(self, name: str, episode: LoggedEpisode) -> None:
        """Append a copy of a trajectory; the oldest one makes room."""
        if len(self.entries) == self.capacity:
            self._start += self.entries.popleft().num_rows
        num_rows, rewards = len(episode.rewards), episode.rewards.astype(np.float64)
        self._make_room(num_rows)
        to_go = np.cumsum(rewards[::-1])[::-1]
        new = slice(self._end, self._end + num_rows)
        for stored, values in zip(
            self._rows[:3],
            (episode.observations, episode.actions, (np.full(num_rows, to_go[0]) if self.delayed else to_go)[:, None]),
            strict=True,
        ):
            stored[new] = torch.as_tensor(values.astype(np.float32)).to(stored.device)
        self._rows.timesteps[new] = torch.arange(num_rows, device=self.window.device)
        self._rows.limits[new] = new.stop - 1
        self._end = new.stop
        self.entries.append(Entry(name, num_rows, float(to_go[0])))

    def _make_room(self, num_rows: int) -> None:
        """Make sure that so many rows fit behind the last one, by moving what lives to the front of larger arrays."""
        if self._end + num_rows <= len(self._rows.timesteps):
            return
        live, room = slice(self._start, self._end), 2 * (self.num_rows + num_rows)

        def moved(array: Tensor) -> Tensor:
            larger = array.new_zeros((room, *array.shape[1:]))
            larger[: self.num_rows] = array[live]
            return larger

        rows = Rows(*map(moved, self._rows))
        rows.limits[: self.num_rows] -= self._start
        self._rows, self._start, self._end = rows, 0, self.num_rows

    def sample(self, batch_size: int) -> Batch:
        """Draw a batch of windows by their first steps; advances `generator` only."""
        draws = torch.randint(self.num_rows, (batch_size,), generator=self.generator, device=self.window.device)
        return gather_windows(self._rows, self._start + draws, self.window)


def starting_episodes(trajectories: Trajectories, which: str, capacity: int) -> list[int]:
    """Return the episodes that a buffer starts with, in the order in which they will leave it.

    `top`: those of highest return, the worst of them first; `all`: the last ones of the dataset; `none`.
    """
    if which == "none":
        return []
    if which == "all":
        return list(range(trajectories.num_episodes))[-capacity:]
    return [int(i) for i in np.argsort(trajectories.returns, kind="stable")[-capacity:]]


def dataset_episodes(trajectories: Trajectories, numbers: list[int]) -> Iterator[tuple[str, LoggedEpisode]]:
    """Yield episodes of a dataset with their names in the buffer."""
    for number in numbers:
        rows = slice(int(trajectories.offsets[number]), int(trajectories.offsets[number + 1]))
        yield (
            f"offline/{number}",
            LoggedEpisode(
                trajectories.observations[rows],
                trajectories.actions[rows],
                trajectories.rewards[rows],
                bool(trajectories.terminals[rows.stop - 1]),
            ),
        )
