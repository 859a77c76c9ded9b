"""TD-MPC2 as a policy for evaluation, rendering and collection."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from time import perf_counter

import numpy as np
import torch

from gq.envs.tasks import Task
from gq.errors import UsageError
from gq.planning.execution import Execution
from gq.planning.interfaces import CorrectionNetwork, Events
from gq.planning.modes import Mode, resolve_mode
from gq.planning.mppi import Planner
from gq.planning.skills import NUM_REFINING_SAMPLES, NetworkSkills

MAX_BLOCK_SIZE = 16  # episodes at a time on a GPU, or by the policy network


class PlanningPolicy:
    """Act by plans, as often as a mode says, or by the policy network alone.

    Each episode has random numbers of its own, by its seed, and actions are computed in blocks of the same size from
    beginning to end: what an episode does depends, to the bit, neither on which others run nor on their lengths. On a
    CPU each plan is a block of its own: two or four at once are a tenth faster, but plan on for episodes that ended.

    Args:
        task: whose action box the planner's actions within [-1, 1] are scaled to.
        mode: how plans are executed, or the name of a mode: `plan` at every decision, `policy` for the policy network
            alone, or any other of `gq.planning.modes`.
        corrector: what corrects actions, for the modes that need it.
        stochastic: take the actions of an elite drawn by weight, as the original's evaluation does, or where nothing is
            planned a sample of the policy; without, the mean of either.
        block_size: episodes that are computed at a time; 0: as above. With 1, `Events.milliseconds` are those of one
            decision alone, otherwise those of a block's.

    Raises:
        UsageError: no such mode, or one that needs a corrector.
    """

    autocast: Callable[[], AbstractContextManager[None]] = nullcontext  # the planner has its own number format
    is_rowwise = True

    def __init__(
        self,
        planner: Planner,
        *,
        task: Task,
        mode: Mode | str = "plan",
        corrector: CorrectionNetwork | None = None,
        stochastic: bool = False,
        block_size: int = 0,
    ) -> None:
        settings = resolve_mode(mode) if isinstance(mode, str) else mode
        if settings.between == "corrector" and corrector is None:
            raise UsageError(f"mode {settings.name} needs a corrector", hint="gq distill RUN trains one")
        self.mode, self.settings = settings.name, settings
        self.stochastic, self.corrector = stochastic, corrector
        self.planner = planner.resized(horizon=settings.plan_horizon)
        num_samples = min(NUM_REFINING_SAMPLES, self.planner.config.num_samples)
        self.refiner = self.planner.resized(iterations=1, num_samples=num_samples)
        self.task, self.fixed_block_size = task, block_size
        self.returns_to_go = np.zeros(0)
        self.device = next(planner.model.parameters()).device

    def reset(self, target_returns: np.ndarray, seeds: Sequence[int]) -> None:
        """Start one episode per seed [E], 0 or more; the targets are not used."""
        is_single = self.settings.is_planning and self.device.type == "cpu"
        self.block_size = self.fixed_block_size or (1 if is_single else min(len(seeds), MAX_BLOCK_SIZE))
        num_spare = -len(seeds) % self.block_size  # rows that fill the last block, and that nobody uses
        self.generators = [generator_of(seed, self.device) for seed in [*seeds, *[0] * num_spare]]
        self.executions: dict[int, Execution] = {}
        self.given = np.zeros((len(self.generators), self.planner.model.action_dim), np.float32)
        self.planned_values = np.full(len(self.generators), np.nan)  # discounted, of each episode's last plan
        self.events: list[Events] = []  # of each call of `act`, whose rows they are in the order of

    @torch.no_grad()
    def act(self, rows: np.ndarray, observations: np.ndarray) -> np.ndarray:
        """Return actions [E', A] in environment units for the running episodes `rows` and their observations."""
        self.planner.model.eval()
        actions = np.zeros((len(rows), self.planner.model.action_dim), np.float32)
        parts: list[tuple[np.ndarray, Events]] = []
        for block in np.unique(rows // self.block_size):
            began = perf_counter()
            chosen = np.flatnonzero(rows // self.block_size == block)
            inside = rows[chosen] % self.block_size
            padded = np.zeros((self.block_size, observations.shape[1]), np.float32)
            padded[inside] = observations[chosen]
            latents = self.planner.model.encode(torch.from_numpy(padded).to(self.device))
            if len(inside) < self.block_size:
                latents = latents[torch.from_numpy(inside).to(self.device)]
            actions[chosen], events = self._execution(int(block)).act(inside, latents)
            milliseconds = np.full(len(inside), 1000 * (perf_counter() - began))
            parts.append((chosen, replace(events, rows=rows[chosen], milliseconds=milliseconds)))
        self.events.append(join(parts))
        planned = self.events[-1].planned
        self.planned_values[rows[planned]] = self.events[-1].value[planned]
        self.given[rows] = self.task.scale(actions)
        given: np.ndarray = self.given[rows]
        return given

    def record(self, rows: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> None:
        """Take in the actions [E', A] that were executed: the model expects other things of others than were given."""
        differs = (actions.astype(np.float32) != self.given[rows]).any(axis=1)
        for block in np.unique(rows // self.block_size):
            chosen = differs & (rows // self.block_size == block)
            executed = np.clip(self.task.unscale(actions[chosen]), -1, 1)
            self._execution(int(block)).record(rows[chosen] % self.block_size, executed)
            self._execution(int(block)).settle()

    def _execution(self, block: int) -> Execution:
        """Return what executes the plans of a block."""
        if block not in self.executions:
            skills = NetworkSkills(
                self.planner,
                self.refiner,
                self.generators[block * self.block_size : (block + 1) * self.block_size],
                corrector=self.corrector,
                drawn=self.stochastic,
                sampled=self.stochastic and not self.settings.is_planning,
            )
            self.executions[block] = Execution(self.settings, skills, self.block_size)
        return self.executions[block]


def join(parts: Sequence[tuple[np.ndarray, Events]]) -> Events:
    """Return the events of blocks in the order of all rows, from each block's indices [N] among them and its events."""
    order = np.argsort(np.concatenate([chosen for chosen, _ in parts]))
    names = [field.name for field in fields(Events)]
    return Events(**{name: np.concatenate([getattr(events, name) for _, events in parts])[order] for name in names})


def generator_of(seed: int, device: torch.device) -> torch.Generator:
    """Return a generator for an episode's own draws, apart from what its environment draws from the same seed."""
    state = np.random.SeedSequence([seed, *b"acting"]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]))
