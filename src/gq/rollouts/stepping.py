"""Step many environments at once, in as many threads as there are cores where that pays."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from gq.threads import num_cores

MIN_SHARE = 4  # environments of a thread below which handing them over costs more than it gains


class Outcome(NamedTuple):
    """What a step of E' environments gave."""

    observations: np.ndarray  # float64 [E', S], or as the environments give them
    rewards: np.ndarray  # float64 [E']
    terminated: np.ndarray  # bool [E']
    ended: np.ndarray  # bool [E'], by termination or time limit


class Stepper:
    """Step environments that know nothing of each other; each gives what it would give alone.

    MuJoCo lets go of the interpreter while it computes, which is most of a step's time, so that threads gain and no
    environment needs a process of its own. A context manager: its threads end with it.
    """

    def __init__(self, environments: Sequence[Any], num_threads: int = 0) -> None:
        """Take environments that are reset already; 0 threads: one per core that this process may use.

        Those that draw into a window do so as they step, and only in this thread.
        """
        self.environments = environments
        has_window = any(getattr(environment, "render_mode", None) == "human" for environment in environments)
        self.num_threads = 1 if has_window else num_threads or num_cores()
        self.pool = ThreadPoolExecutor(self.num_threads - 1) if self.num_threads > 1 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.pool:
            self.pool.shutdown()

    def step(self, rows: np.ndarray, actions: np.ndarray) -> Outcome:
        """Take one step of the environments `rows` with actions [E', A]; an error in one of them is raised."""
        observations: list[Any] = [None] * len(rows)
        rewards, terminated, ended = np.zeros(len(rows)), np.zeros(len(rows), bool), np.zeros(len(rows), bool)

        def step_share(share: range) -> None:
            for index in share:
                outcome = self.environments[int(rows[index])].step(actions[index])
                observations[index], rewards[index], terminated[index], truncated, _ = outcome
                ended[index] = terminated[index] or truncated

        first, *others = shares(len(rows), self.num_threads)
        waiting = [self.pool.submit(step_share, share) for share in others] if self.pool else []
        try:
            step_share(first)
        finally:
            for future in waiting:
                future.result()
        return Outcome(np.stack(observations), rewards, terminated, ended)


def shares(num_environments: int, num_threads: int) -> list[range]:
    """Return the environments of each thread, nearly as many each and never only a few."""
    number = max(1, min(num_threads, num_environments // MIN_SHARE))
    bounds = [num_environments * index // number for index in range(number + 1)]
    return [range(*pair) for pair in pairwise(bounds)]
