"""What several environments did, tick by tick: append-only files, and the newest steps on the device to learn from.

In a tick, each environment either begins an episode or takes one step, and gives one row:

    observation (what the row led to), action (what led to it), reward, kind     all float32

Files are `steps-000000.bin` and so on, of SEGMENT_ROWS rows or less. A checkpoint only notes how far they go: up to the
noted tick their bytes must have the noted checksums; what lies behind was written after the checkpoint and is ignored.
"""

import errno
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gq.data.pieces import TERMINATED, EveryPiece, PiecesByEpisode
from gq.errors import DataError
from gq.files import sync, write_error

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


class SequenceBatch(NamedTuple):
    """Pieces of episodes; row t + 1 of the observations is what action t led to."""

    observations: Tensor  # float32 [H + 1, B, S]
    actions: Tensor  # float32 [H, B, A], scaled to [-1, 1]
    rewards: Tensor  # float32 [H, B]
    terminated: Tensor  # bool [H, B]; where an episode ended by itself, not by its time limit


class StepRing:
    """Hold the newest `num_ticks` ticks of E environments: rows as above, a tick's side by side.

    Pieces of horizon + 1 rows lie within one episode, so a termination can only be in their last row.
    """

    def __init__(
        self,
        num_ticks: int,
        num_environments: int,
        *,
        observation_dim: int,
        action_dim: int,
        horizon: int,
        device: torch.device | str = "cpu",
        storage: torch.device | str | None = None,
        seed: int = 0,
        by_episode: bool = False,
    ) -> None:
        """Reserve the memory, on `storage`; batches are on `device`, which is the same without `storage`.

        Args:
            by_episode: draw as `PiecesByEpisode` does, else as `EveryPiece`.
        """
        assert num_ticks > horizon
        self.num_ticks, self.num_environments, self.horizon = num_ticks, num_environments, horizon
        self.observation_dim, self.device = observation_dim, torch.device(device)
        storage = torch.device(storage or device)
        width = row_width(observation_dim, action_dim)
        self.is_pinned = storage.type == "cpu" and self.device.type == "cuda"
        self._rows = torch.empty(
            num_ticks * num_environments, width, device=storage
        )  # a CPU gives memory as it is used
        self._offsets = torch.arange(horizon + 1)[:, None]
        self.generator = torch.Generator().manual_seed(seed)
        self.next_tick = 0
        self.pieces = (PiecesByEpisode if by_episode else EveryPiece)(num_environments, horizon)

    def add(self, rows: np.ndarray) -> None:
        """Append a tick, float32 [E, W]; the oldest makes room."""
        tick, num = self.next_tick, self.num_environments
        slot = tick % self.num_ticks * num
        self._rows[slot : slot + num] = torch.from_numpy(np.ascontiguousarray(rows))
        self.next_tick += 1
        self.pieces.add(tick, rows[:, -1], self.next_tick - self.num_ticks)

    def restore(self, rows: np.ndarray, next_tick: int) -> None:
        """Fill the empty ring with the last ticks before `next_tick`, float32 [T, E, W]."""
        self.next_tick = next_tick - len(rows)
        for tick in rows:
            self.add(tick)

    def sample(self, batch_size: int) -> SequenceBatch:
        """Draw pieces; advances `generator` only."""
        starts = self.pieces.draw(batch_size, self.generator)
        num_rows = self.num_ticks * self.num_environments
        index = (starts + self._offsets * self.num_environments) % num_rows  # [H + 1, B]
        rows = self._gather(index.flatten()).unflatten(0, index.shape)  # [H + 1, B, W]
        observations, actions, rewards, kinds = rows.split(
            [self.observation_dim, rows.shape[-1] - self.observation_dim - 2, 1, 1], dim=-1
        )
        return SequenceBatch(
            observations.contiguous(), actions[1:].contiguous(), rewards[1:, :, 0], kinds[1:, :, 0] == TERMINATED
        )

    def _gather(self, index: Tensor) -> Tensor:
        """Return rows [N, W] on the device."""
        if not self.is_pinned:
            return self._rows.index_select(0, index.to(self._rows.device, non_blocking=True))
        rows = torch.empty(len(index), self._rows.shape[1], pin_memory=True)
        torch.index_select(self._rows, 0, index, out=rows)
        return rows.to(self.device, non_blocking=True)
