"""Windows of consecutive steps, drawn on the device with the data, or fetched ahead from host memory or a file."""

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from gq.data.trajectories import Trajectories


class Batch(NamedTuple):
    """B windows of K steps, in the units of the environment."""

    observations: Tensor  # [B, K, S]
    actions: Tensor  # [B, K, A]
    returns_to_go: Tensor  # [B, K, 1]
    timesteps: Tensor  # int64 [B, K]
    valid: Tensor  # bool [B, K]; False outside the episode


class Sampler(Protocol):
    """What learning needs of data."""

    generator: torch.Generator  # of the draws, all that is random
    is_static: bool  # it draws on the device, always from the same tensors: a CUDA graph may do it

    def sample(self, batch_size: int) -> Batch:
        """Draw a batch and return this process's share of it; advances `generator` only."""


class Share(NamedTuple):
    """Which part of every batch a process takes, where several draw the same one."""

    rank: int = 0
    num_processes: int = 1

    def of(self, anchors: Tensor) -> Tensor:
        """Return the part of anchors [B] that is this process's; B is a multiple of the number of processes."""
        return anchors if self.num_processes == 1 else anchors.chunk(self.num_processes)[self.rank]


WHOLE = Share()


class Rows(NamedTuple):
    """Episodes back to back on a device, R rows in all."""

    observations: Tensor  # [R, S]
    actions: Tensor  # [R, A]
    returns_to_go: Tensor  # [R, 1]
    timesteps: Tensor  # int64 [R]
    limits: Tensor  # int64 [R], the row at which a window from here stops


def gather_windows(rows: Rows, anchors: Tensor, window: Tensor, *, backward: bool = False) -> Batch:
    """Return the windows [B, K] at the given rows [B] plus the steps `window` [K], stopped at the anchors' limits."""
    chosen, limits = anchors[:, None] + window, rows.limits[anchors][:, None]  # [B, K], [B, 1]
    valid = chosen >= limits if backward else chosen <= limits
    chosen = torch.maximum(chosen, limits) if backward else torch.minimum(chosen, limits)
    return Batch(
        rows.observations[chosen], rows.actions[chosen], rows.returns_to_go[chosen], rows.timesteps[chosen], valid
    )


class WindowSampler:
    """Draw windows around an anchor row that is uniform over all transitions.

    The anchor is the window's first step, which equals the original's draw of a trajectory by length and of a start
    within it; or, with `backward`, its last. Where a window would leave the episode it repeats the episode's last (or
    first) row and is marked invalid. Causality keeps rows after the episode's end from the valid ones.
    """

    is_static = True

    def __init__(
        self,
        trajectories: Trajectories,
        context_length: int,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        delayed: bool = False,
        backward: bool = False,
        share: Share = WHOLE,
    ) -> None:
        def resident(array: np.ndarray) -> Tensor:
            return torch.as_tensor(array).to(device)

        offsets, lengths = trajectories.offsets, trajectories.lengths
        limits = np.repeat(offsets[:-1] if backward else offsets[1:] - 1, lengths)
        self.rows = Rows(
            resident(trajectories.observations),
            resident(trajectories.actions),
            resident(trajectories.returns_to_go(delayed=delayed))[:, None],
            resident(trajectories.timesteps()),
            resident(limits),
        )
        self.backward, self.share = backward, share
        self.window = torch.arange(context_length, device=device) - (context_length - 1 if backward else 0)
        self.generator = torch.Generator(device=device).manual_seed(seed)

    def sample(self, batch_size: int) -> Batch:
        """Draw a batch and return this process's share of it; advances `generator` only."""
        num_rows = len(self.rows.timesteps)
        anchors = torch.randint(num_rows, (batch_size,), generator=self.generator, device=self.window.device)
        return self.gather(self.share.of(anchors))

    def gather(self, anchors: Tensor) -> Batch:
        """Return the windows at the given rows [B]."""
        return gather_windows(self.rows, anchors, self.window, backward=self.backward)


RESIDENT_SHARE = 0.25  # of a device's free memory that data may take: weights' moments and activations come later
NUM_AHEAD = 3  # batches that are being fetched, or are ready
NUM_THREADS = 2  # that fetch them


def is_to_be_streamed(placement: str, trajectories: Trajectories, device: torch.device) -> bool:
    """Tell whether data are to be fetched batch by batch; with `auto`, those too large to lie on the device."""
    if placement != "auto":
        return placement == "stream"
    num_bytes = trajectories.observations.nbytes + trajectories.actions.nbytes
    return num_bytes > RESIDENT_SHARE * free_memory_bytes(device)


def free_memory_bytes(device: torch.device) -> float:
    """Return a GPU's free memory, for a CPU all of the machine's; infinite where it cannot be known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return float("inf")


class Moved(NamedTuple):
    """Tensors, and what tells that copying them to or from a GPU is done."""

    tensors: tuple[Tensor, ...]
    copied: "torch.cuda.Event | None"


class StreamingSampler:
    """Draw the windows that `WindowSampler` draws, in the same order and with the same bits.

    Rows are drawn ahead by a generator of its own; `generator` stays where the batch in use comes from, so that a run
    which goes on from its state repeats nothing and leaves nothing out. Setting it discards what was fetched.
    """

    is_static = False

    def __init__(
        self,
        trajectories: Trajectories,
        context_length: int,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        delayed: bool = False,
        backward: bool = False,
        share: Share = WHOLE,
    ) -> None:
        self.device, self.backward, self.share = torch.device(device), backward, share
        self.arrays = (
            np.asarray(trajectories.observations),
            np.asarray(trajectories.actions),
            trajectories.returns_to_go(delayed=delayed)[:, None],
        )
        self.offsets = trajectories.offsets
        self.window = np.arange(context_length) - (context_length - 1 if backward else 0)
        self.generator = torch.Generator(device=device).manual_seed(seed)
        self._ahead = torch.Generator(device=device)
        self._state = torch.empty(0, dtype=torch.uint8)  # of `generator`, if nobody else set it
        self._batch_size = 0
        self._pending: deque[tuple[Future[Moved], Tensor]] = deque()
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="windows")
        self._stream = torch.cuda.Stream(device) if self.device.type == "cuda" else None

    def sample(self, batch_size: int) -> Batch:
        """Draw a batch and return this process's share of it; advances `generator` only."""
        state = self.generator.get_state()
        if batch_size != self._batch_size or not torch.equal(state, self._state):
            self._pending.clear()
            self._ahead.set_state(state)
            self._batch_size = batch_size
        while len(self._pending) < NUM_AHEAD:
            self._request()
        future, self._state = self._pending.popleft()
        tensors, copied = future.result()
        self.generator.set_state(self._state)
        if copied is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(copied)
            for tensor in tensors:
                tensor.record_stream(current)
        return Batch(*tensors)

    def _request(self) -> None:
        """Draw a batch's rows and let a thread fetch them."""
        num_rows = len(self.arrays[0])
        anchors = torch.randint(num_rows, (self._batch_size,), generator=self._ahead, device=self.device)
        copied = None
        anchors = self.share.of(anchors).to("cpu", non_blocking=True)
        if self._stream is not None:
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(self.device))
        future = self._threads.submit(self._fetch, anchors, copied)
        self._pending.append((future, self._ahead.get_state()))

    def _fetch(self, anchors: Tensor, drawn: "torch.cuda.Event | None") -> Moved:
        """Return the windows at the given rows, which are there once `drawn` is; on their way to the device."""
        if drawn is None or self._stream is None:
            return Moved(self.gather(anchors.numpy()), None)
        drawn.synchronize()
        windows = [tensor.pin_memory() for tensor in self.gather(anchors.numpy())]
        with torch.cuda.stream(self._stream):
            moved = tuple(tensor.to(self.device, non_blocking=True) for tensor in windows)
            copied = torch.cuda.Event()
            copied.record(self._stream)
        return Moved(moved, copied)

    def gather(self, anchors: np.ndarray) -> Batch:
        """Return the windows at the given rows [B], in host memory."""
        episodes = np.searchsorted(self.offsets, anchors, side="right") - 1
        first, last = self.offsets[episodes][:, None], self.offsets[episodes + 1][:, None] - 1  # [B, 1]
        rows = anchors[:, None] + self.window  # [B, K]
        valid = rows >= first if self.backward else rows <= last
        rows = np.maximum(rows, first) if self.backward else np.minimum(rows, last)
        observations, actions, returns_to_go = (array.take(rows, axis=0, mode="clip") for array in self.arrays)
        return Batch(*map(torch.from_numpy, (observations, actions, returns_to_go, rows - first, valid)))
