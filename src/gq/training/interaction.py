"""TD-MPC2 in its environments: acting by plans, keeping every step for learning and for going on exactly."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gq.algos.state import restore_generator
from gq.config import TDMPC2Config
from gq.data.pieces import FIRST, GOES_ON, TERMINATED, TRUNCATED
from gq.data.steps import StepLog, StepRing, row_width
from gq.envs.make import make
from gq.errors import GqError
from gq.planning.mppi import Planner

FREE_SHARE = 0.4  # of the device's free memory that the ring may take; else it is kept in the host's


@dataclass(frozen=True)
class FinishedEpisode:
    """An episode that ended."""

    episode_return: float
    length: int  # decisions
    terminated: bool


class Interaction:
    """Environments that a planner acts in, one tick after another: each begins an episode or takes one decision.

    Every environment has random numbers of its own, so what happens in it depends on the model alone.
    """

    def __init__(self, config: TDMPC2Config, planner: Planner, run: Path, device: torch.device, rank: int = 0) -> None:
        """Take the settings, what plans, the run's folder, the model's device and the number of this process."""
        self.task, self.planner, self.device, self.run, self.rank = (
            config.environment,
            planner,
            device,
            run,
            rank,
        )
        num, task = config.train.num_environments, self.task
        self.seed, self.num_environments, self.first_environment = config.train.seed, num, rank * num
        self.width = row_width(task.observation_dim, task.action_dim)
        num_ticks = max(-(-config.train.buffer_size // num), config.update.horizon + 1)
        self.ring = StepRing(
            num_ticks,
            num,
            observation_dim=task.observation_dim,
            action_dim=task.action_dim,
            horizon=config.update.horizon,
            device=device,
            storage=choose_storage(device, num_ticks * num * self.width * 4),
            seed=self.seed_of(rank, "batches"),
            by_episode=config.train.replay == "episodes",
        )
        self.environments = [make(task) for _ in range(num)]
        self.generators = [
            torch.Generator(device).manual_seed(self.seed_of(self.first_environment + i, "plans")) for i in range(num)
        ]
        self.warm_start = torch.zeros(num, config.planner.horizon, task.action_dim, device=device)
        self.rows = np.zeros((num, self.width), np.float32)  # of the last tick
        self.rows[:, -1] = TRUNCATED  # so that all begin an episode
        self.episode_numbers = np.full(num, -1)
        self.returns, self.lengths = np.zeros(num), np.zeros(num, np.int64)
        self.simulation_seconds = 0.0

    def open(self, state: Mapping[str, Any] | None = None, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Begin with nothing, or go on from what `state` and `tensors` returned.

        Raises:
            DataError: the steps that were taken have been lost or changed.
            GqError: the simulator does not repeat the unfinished episodes.
        """
        folder = self.run / "replay"
        folder.mkdir(exist_ok=True)
        shape = {"num_environments": self.num_environments, "width": self.width}
        self.log = StepLog(folder / f"rank-{self.rank}", **shape, position=state["log"] if state else None)
        if state is None or tensors is None or not self.log.num_ticks:
            return
        self.episode_numbers = np.array(state["episode_numbers"])
        self.warm_start.copy_(tensors[f"rank-{self.rank}/warm_start"])
        restore_generator(self.ring.generator, tensors[f"rank-{self.rank}/rng/batches"])
        for i, generator in enumerate(self.generators):
            restore_generator(generator, tensors[f"rank-{self.rank}/rng/plans-{i}"])
        first = max(self.log.num_ticks - self.ring.num_ticks, 0)
        longest = self.log.num_ticks - self.task.max_episode_steps - 1
        rows = self.log.read(max(min(first, longest), 0))
        self.ring.restore(rows[-(self.log.num_ticks - first) :], self.log.num_ticks)
        self.rows = rows[-1].copy()
        for i in range(self.num_environments):
            if self.rows[i, -1] in (FIRST, GOES_ON):
                self._repeat(i, rows[:, i])

    def tick(self, *, uniform: bool) -> list[FinishedEpisode]:
        """Take a decision, or begin an episode, in every environment; return the episodes that ended.

        Args:
            uniform: draw actions uniformly instead of planning.
        """
        begins = self.rows[:, -1] >= TERMINATED
        actions = np.zeros((self.num_environments, self.task.action_dim), np.float32)
        if deciding := np.flatnonzero(~begins).tolist():
            actions[deciding] = self._uniform_actions(deciding) if uniform else self._planned_actions(deciding)
        began, finished = monotonic(), []
        for i in range(self.num_environments):
            if begins[i]:
                self.episode_numbers[i] += 1
                self.rows[i] = 0
                self.rows[i, : self.task.observation_dim] = self._reset(i)
                self.returns[i], self.lengths[i] = 0, 0
            else:
                self._step(i, actions[i])
                if self.rows[i, -1] != GOES_ON:
                    terminated = bool(self.rows[i, -1] == TERMINATED)
                    finished.append(FinishedEpisode(float(self.returns[i]), int(self.lengths[i]), terminated))
        if begins.any():
            self.warm_start[torch.from_numpy(begins).to(self.device)] = 0
        if not np.isfinite(self.rows).all():
            hint = "nothing of it was kept: go on from the last checkpoint with --resume"
            raise GqError(f"{self.task.id} gave observations or rewards that are not finite", hint=hint)
        self.ring.add(self.rows)
        self.log.append(self.rows)
        self.simulation_seconds += monotonic() - began
        return finished

    @property
    def num_deciding(self) -> int:
        """Environments that took a decision in the last tick."""
        return int((self.rows[:, -1] != FIRST).sum())

    def state(self) -> dict[str, Any]:
        """Bring all steps to the disk; return what going on needs beside `tensors`, as plain values."""
        return {"log": self.log.sync(), "episode_numbers": self.episode_numbers.tolist()}

    def tensors(self) -> dict[str, Tensor]:
        """Return warm starts and random states, on the CPU."""
        states = {f"rng/plans-{i}": generator.get_state() for i, generator in enumerate(self.generators)}
        states |= {"rng/batches": self.ring.generator.get_state(), "warm_start": self.warm_start.cpu()}
        return {f"rank-{self.rank}/{name}": tensor.clone() for name, tensor in states.items()}

    def close(self) -> None:
        """Close the environments."""
        for environment in self.environments:
            environment.close()

    def seed_of(self, number: int, purpose: str, *more: int) -> int:
        """Return a seed below 2^32 from the run's, apart from those for all other numbers and purposes."""
        return int(np.random.SeedSequence([self.seed, *purpose.encode(), number, *more]).generate_state(1)[0])

    def _uniform_actions(self, deciding: list[int]) -> np.ndarray:
        """Return uniform actions [E', A] for some environments."""
        shape = self.task.action_dim
        draws = [torch.rand(shape, generator=self.generators[i], device=self.device) for i in deciding]
        return (2 * torch.stack(draws) - 1).cpu().numpy()

    def _planned_actions(self, deciding: list[int]) -> np.ndarray:
        """Return the actions [E', A] to explore with in some environments."""
        num, chosen = len(deciding), list[torch.Generator | None](self.generators[i] for i in deciding)
        if (
            self.planner.program.compiled or self.planner.program.captured
        ):  # for all environments, so that there is one size to compile for
            chosen += [None] * (self.num_environments - num)
        deciding = deciding + [deciding[-1]] * (len(chosen) - num)
        observations = torch.from_numpy(self.rows[deciding, : self.task.observation_dim]).to(self.device)
        plan = self.planner.plan_each(observations, chosen, self.warm_start[deciding], encoded=False)
        self.warm_start[deciding[:num]] = plan.mean[:num]
        return plan.explored[:num].cpu().numpy()

    def _reset(self, i: int) -> np.ndarray:
        """Begin the environment's present episode; return its first observation."""
        seed = self.seed_of(self.first_environment + i, "episodes", int(self.episode_numbers[i]))
        observation: np.ndarray = self.environments[i].reset(seed=seed)[0]
        return observation

    def _step(self, i: int, action: np.ndarray) -> None:
        """Take one decision, with an action [A] within [-1, 1], and write its row."""
        observation, reward, terminated, truncated, _ = self.environments[i].step(self.task.scale(action))
        kind = TERMINATED if terminated else TRUNCATED if truncated else GOES_ON
        self.rows[i] = np.concatenate([observation, action, [float(reward), kind]], dtype=np.float32)
        self.returns[i] += float(reward)
        self.lengths[i] += 1

    def _repeat(self, i: int, rows: np.ndarray) -> None:
        """Bring an environment to where it was, by the rows [T, W] that end with its unfinished episode's last."""
        begin = int(np.flatnonzero(rows[:, -1] == FIRST)[-1])
        self._reset(i)
        for row in rows[begin + 1 :]:
            self._step(i, row[self.task.observation_dim : -2])
            if not np.array_equal(self.rows[i], row):
                message = f"{self.task.id} does not repeat what this run saw: another simulator, or another processor"
                raise GqError(message, hint="go on where the versions in environment.json are installed")


def choose_storage(device: torch.device, num_bytes: int) -> torch.device:
    """Return the device for so many bytes of steps: the given one where they fit easily, else the host."""
    if device.type == "cuda" and num_bytes > FREE_SHARE * torch.cuda.mem_get_info(device)[0]:
        return torch.device("cpu")
    return device


def num_seed_decisions(config: TDMPC2Config) -> int:
    """Return how many decisions are uniform: five episodes, at least 1000, unless the settings say otherwise."""
    return config.train.seed_decisions or max(1000, 5 * config.environment.max_episode_steps)
