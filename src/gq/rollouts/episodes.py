"""Run a policy in many environments at once; every started episode counts."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import pairwise
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from gq.envs.make import make
from gq.envs.tasks import Task
from gq.rollouts.statistics import Episode
from gq.threads import num_cores

MAX_PARALLEL_EPISODES = 128
MIN_SHARE = 4  # environments of a thread below which handing them over costs more than it gains


class Policy(Protocol):
    """What evaluation, rendering and collection need of a policy."""

    returns_to_go: np.ndarray  # [E], what the policy is still asked to earn; empty where it is not conditioned
    autocast: Callable[[], AbstractContextManager[None]]  # entered around a whole rollout
    is_rowwise: bool  # the bits of an action depend on its own row alone, not on which others are in the batch

    def reset(self, target_returns: np.ndarray, seeds: Sequence[int]) -> None:
        """Start one episode per target return [E]; `seeds` [E], 0 or more, are for what each draws by itself."""

    def act(self, rows: np.ndarray, observations: np.ndarray) -> np.ndarray:
        """Return actions [E', A] in environment units for the running episodes `rows` and their observations."""

    def record(self, rows: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> None:
        """Take in the actions [E', A] that were executed, perhaps with noise, and the rewards [E'] that followed."""


class Start(NamedTuple):
    """What an episode starts with."""

    seed: int  # of its environment, and of what the policy draws in it
    target: float = 0.0  # return that the policy is asked for


@dataclass(frozen=True)
class EpisodeRequest:
    """Which episodes are wanted: `number` of each target return, episode i from the seed `seed + i`."""

    number: int | None = None  # None: as the command does by default
    targets: Sequence[float] = ()  # default: the run's own
    seed: int = 0

    def by_default(self, number: int) -> "EpisodeRequest":
        """Return the request with a number of episodes where it has none."""
        return self if self.number is not None else replace(self, number=number)

    def starts(self, targets: Sequence[float]) -> list[Start]:
        """Return the start of every episode, target by target."""
        assert self.number is not None
        return [Start(self.seed + index, target) for target in targets for index in range(self.number)]


@dataclass(frozen=True)
class Step:
    """What happened in one step of all running episodes."""

    index: int
    rows: np.ndarray  # [E'] the episodes that ran
    observations: np.ndarray  # float32 [E', S], what the policy saw
    actions: np.ndarray  # float32 [E', A], as executed
    rewards: np.ndarray  # [E']
    terminated: np.ndarray  # bool [E']
    ended: np.ndarray  # bool [E'], by termination or time limit
    returns: np.ndarray  # [E] earned so far, of all episodes
    environments: Sequence[Any]  # [E]


Watch = Callable[[Step], bool | None]  # called after each step; True stops, and no episode is returned
Explore = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of rows and proposed actions [E', A]


def roll_out(
    policy: Policy,
    task: Task,
    starts: Sequence[Start],
    *,
    on_step: Watch | None = None,
    max_steps: int | None = None,
    **environment_options: Any,
) -> list[Episode]:
    """Run one episode per start, in groups of at most MAX_PARALLEL_EPISODES; return them in that order.

    Args:
        max_steps: end episodes early, as a time limit would.
        environment_options: given to the environments' constructor.
    """
    episodes: list[Episode] = []
    for first in range(0, len(starts), MAX_PARALLEL_EPISODES):
        group = starts[first : first + MAX_PARALLEL_EPISODES]
        environments = [make(task, **environment_options) for _ in group]
        try:
            finished = run_episodes(policy, environments, group, on_step=on_step, max_steps=max_steps)
        finally:
            for environment in environments:
                environment.close()
        if not finished:
            return []
        episodes += finished
    return episodes


def run_episodes(
    policy: Policy,
    environments: Sequence[Any],
    starts: Sequence[Start],
    *,
    rows: Sequence[int] | None = None,
    explore: Explore | None = None,
    on_step: Watch | None = None,
    max_steps: int | None = None,
) -> list[Episode]:
    """Run episodes together, one in each environment, to their ends; return them in their order.

    Args:
        rows: run these of `starts` only, and let the policy act on all rows at every step, those without an episode
            too: a matrix product gives a row other bits when the batch has another size or the row lies elsewhere in
            it. A policy that sees to this itself, `is_rowwise`, acts on the running ones only. Default: all start, and
            those that end leave the policy's batch.
        explore: changes the actions that the policy proposes, before they are clipped to the environments' box.
        max_steps: end episodes early, as a time limit would.
    """
    running = np.arange(len(starts)) if rows is None else np.array(rows)
    whole = np.arange(len(starts)) if rows is not None and not policy.is_rowwise else None
    placed: list[Any] = [None] * len(starts)
    space, width = environments[0].action_space, environments[0].observation_space.shape[0]
    observations, returns, lengths = np.zeros((len(starts), width)), np.zeros(len(starts)), np.zeros(len(starts), int)
    for row, environment in zip(running.tolist(), environments, strict=False):
        placed[row] = environment
        observations[row] = environment.reset(seed=int(starts[row].seed))[0]
    policy.reset(np.array([start.target for start in starts], np.float64), [int(start.seed) for start in starts])
    terminated, chosen = np.zeros(len(starts), bool), running
    with Stepper(placed) as stepper, policy.autocast():
        for index in range(max_steps or 2**62):
            acting = running if whole is None else whole
            seen = observations[acting].astype(np.float32)
            proposed = policy.act(acting, seen)
            own = slice(None) if whole is None else running  # the running episodes among those that act
            wanted = explore(running, proposed[own]) if explore else proposed[own]
            # Clipped because the physics clamps the torque while the control cost is charged on the raw action.
            actions = np.clip(wanted, space.low, space.high).astype(np.float32, copy=False)
            observations[running], rewards, terminated[running], ended = stepper.step(running, actions)
            returns[running] += rewards
            lengths[running] += 1
            if whole is None:
                policy.record(running, actions, rewards)
            else:
                executed, earned = proposed.astype(np.float32), np.zeros(len(whole))
                executed[running], earned[running] = actions, rewards
                policy.record(whole, executed, earned)
            if on_step:
                outcome = terminated[running], ended, returns.copy(), placed
                if on_step(Step(index, running, seen[own], actions, rewards, *outcome)):
                    return []
            running = running[~ended]
            if not len(running):
                break
    return [
        Episode(
            seed=int(starts[i].seed),
            target_return=float(starts[i].target),
            episode_return=float(returns[i]),
            length=int(lengths[i]),
            terminated=bool(terminated[i]),
            success=getattr(placed[i], "success", None),
        )
        for i in chosen.tolist()
    ]


# --- many environments ------------------------------------------------------------------------------------------------


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
