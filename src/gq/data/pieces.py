"""Which pieces of episodes can be drawn from a ring of steps, and how likely each is.

A piece is named by its start, tick * E + environment: the row of the first of its horizon + 1 ticks.
"""

import numpy as np
import torch

FIRST, GOES_ON, TERMINATED, TRUNCATED = range(4)  # kinds of rows: before an episode's first decision, after others


class EveryPiece:
    """All pieces with equal probability, each from the moment that its last step was taken."""

    def __init__(self, num_environments: int, horizon: int) -> None:
        self.num_environments, self.horizon = num_environments, horizon
        self._ages = np.zeros(num_environments, np.int64)  # decisions since the first row of each present episode
        self._starts = Queue()  # ascending

    def __len__(self) -> int:
        """Pieces that can be drawn."""
        return len(self._starts)

    def add(self, tick: int, kinds: np.ndarray, oldest: int) -> None:
        """Take in a tick's kinds of rows [E]; pieces that begin before the tick `oldest` are gone."""
        self._ages = np.where(kinds == FIRST, 0, self._ages + 1)
        first = (tick - self.horizon) * self.num_environments
        self._starts.append(first + np.flatnonzero(self._ages >= self.horizon))
        self._starts.drop_below(oldest * self.num_environments)

    def draw(self, number: int, generator: torch.Generator) -> torch.Tensor:
        """Return so many starts, int64 [B]."""
        draws = torch.randint(len(self), (number,), generator=generator)
        return torch.from_numpy(self._starts.values)[draws]


class PiecesByEpisode:
    """As the original draws them: an episode, all with equal probability, then a piece of it.

    An episode is there once it has ended. Steps of short episodes are drawn more often than those of long ones.
    """

    def __init__(self, num_environments: int, horizon: int) -> None:
        self.num_environments, self.horizon = num_environments, horizon
        self._begins = np.full(num_environments, -1)  # tick of each present episode's first row; -1: before the ring
        self._oldest = 0
        self._lasts = Queue()  # the last start of each episode, ascending
        self._firsts = Queue()  # its first one

    def __len__(self) -> int:
        """Episodes that can be drawn from."""
        return len(self._lasts)

    def add(self, tick: int, kinds: np.ndarray, oldest: int) -> None:
        """Take in a tick's kinds of rows [E]; pieces that begin before the tick `oldest` are gone."""
        num = self.num_environments
        self._begins[kinds == FIRST] = tick
        ended = np.flatnonzero((kinds >= TERMINATED) & (tick - self.horizon >= self._begins))
        self._lasts.append((tick - self.horizon) * num + ended)
        self._firsts.append(self._begins[ended] * num + ended)
        self._firsts.drop(self._lasts.drop_below(oldest * num))
        self._oldest = oldest

    def draw(self, number: int, generator: torch.Generator) -> torch.Tensor:
        """Return so many starts, int64 [B]."""
        num = self.num_environments
        episodes = torch.randint(len(self), (number,), generator=generator)
        lasts = torch.from_numpy(self._lasts.values)[episodes]
        firsts = torch.from_numpy(self._firsts.values)[episodes]
        firsts = torch.maximum(firsts, self._oldest * num + lasts % num)  # of a long one the ring may hold the end only
        counts = (lasts - firsts) // num + 1
        share = torch.rand(number, generator=generator, dtype=torch.float64)
        return firsts + num * (share * counts).long()


class Queue:
    """Integers, appended at the end and dropped from the front; room is made seldom."""

    def __init__(self) -> None:
        self._room, self._head, self._tail = np.zeros(1024, np.int64), 0, 0

    def __len__(self) -> int:
        return self._tail - self._head

    @property
    def values(self) -> np.ndarray:
        """What it holds, without a copy."""
        return self._room[self._head : self._tail]

    def append(self, numbers: np.ndarray) -> None:
        """Add numbers, moving those that live to the front of a larger array when it is full."""
        if self._tail + len(numbers) > len(self._room):
            larger = np.zeros(2 * (len(self) + len(numbers)) + 1024, np.int64)
            larger[: len(self)] = self.values
            self._room, self._head, self._tail = larger, 0, len(self)
        self._room[self._tail : self._tail + len(numbers)] = numbers
        self._tail += len(numbers)

    def drop(self, number: int) -> None:
        """Drop so many from the front."""
        self._head += number

    def drop_below(self, bound: int) -> int:
        """Drop those below a bound, of ascending numbers; return how many they were."""
        number = int(np.searchsorted(self.values, bound))
        self.drop(number)
        return number
