"""The policies that come with gq, acting like any other."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from gq.policies.packaged import PackagedPolicy, Slots


class BuiltinPolicy:
    """Act without noise; each episode has one of the policy's networks, drawn when it starts."""

    is_rowwise = False

    def __init__(self, packaged: PackagedPolicy) -> None:
        self.packaged = packaged
        self.autocast: Callable[[], AbstractContextManager[None]] = nullcontext
        self.returns_to_go = np.zeros(0)

    def reset(self, target_returns: np.ndarray, seeds: Sequence[int] = ()) -> None:
        """Start one episode per entry; targets and seeds are not used."""
        num_episodes = len(target_returns)
        self._slots = Slots(self.packaged.networks, num_episodes)
        edges = np.cumsum(self.packaged.probabilities)
        draws = torch.rand(num_episodes, dtype=torch.float64).numpy() * edges[-1]
        for row, network in enumerate(np.searchsorted(edges, draws, side="right")):
            self._slots.choose(row, int(network))

    def act(self, rows: np.ndarray, observations: np.ndarray) -> np.ndarray:
        """Return actions [E, A] in environment units, not clipped, for the observations of all episodes."""
        assert len(rows) == len(observations)
        actions = self._slots.act(observations.astype(np.float64))  # in half action ranges
        low, high = self.packaged.action_low, self.packaged.action_high
        scaled: np.ndarray = low + (actions + 1) / 2 * (high - low)
        return scaled

    def record(self, rows: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> None:
        """Ignore what happened."""
