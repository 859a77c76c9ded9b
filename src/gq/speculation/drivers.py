"""Collecting a planner's decisions: it drives, or a student does, and the planner says what it would have done.

Shapes: T decisions, L latent_dim, A action_dim, H the planner's horizon, P plans a label. Actions are within [-1, 1].
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from gq.envs.make import make
from gq.envs.tasks import Task
from gq.models.corrector import Corrector, CorrectorInputs
from gq.planning.acting import PlanningPolicy, generator_of
from gq.planning.modes import Mode
from gq.planning.mppi import Plan, Planner
from gq.rollouts.collect import episode_start
from gq.rollouts.episodes import Start, run_episodes
from gq.speculation.samples import PlanEpisode


class Opinion(NamedTuple):
    """What the teacher says in one state."""

    plan: Plan  # E = 1
    label: Tensor  # [A]
    label_std: Tensor  # [A]
    elite_std: Tensor  # [A]


class Choice(NamedTuple):
    """What a driver does in one state, and with what of a plan."""

    action: Tensor  # [A] to execute
    age: int
    predicted: Tensor  # [L]
    queued: Tensor  # [A]
    queued_std: Tensor  # [A]


class Driver(Protocol):
    """What chooses the actions of an episode."""

    name: str

    def reset(self, seed: int) -> None:
        """Begin an episode."""

    def decide(self, observation: np.ndarray, latent: Tensor, opinion: Opinion) -> Choice:
        """Return what to do after an observation [S], whose latent is [1, L]."""


class Teacher:
    """A planner that plans several times in each state, each time from its own first plan one decision before.

    That first plan draws what `PlanningPolicy` would: where it drives, episodes are those of an evaluation, to the bit.
    """

    def __init__(self, planner: Planner, num_plans: int) -> None:
        assert num_plans >= 1
        self.planner, self.num_plans = planner, num_plans
        self.device = next(planner.model.parameters()).device

    def reset(self, seed: int) -> None:
        """Begin an episode."""
        self.generator = generator_of(seed, self.device)
        states = np.random.SeedSequence([seed, *b"labels"]).generate_state(self.num_plans - 1, np.uint64)
        self.others = [torch.Generator(self.device).manual_seed(int(state)) for state in states]
        shape = (1, self.planner.config.horizon, self.planner.model.action_dim)
        self.warm_start = torch.zeros(shape, device=self.device)

    def consider(self, latent: Tensor) -> Opinion:
        """Return what it would do in a latent [1, L]."""
        warm_start = self.warm_start
        plan = self.planner.plan(latent, self.planner.draw(self.generator), warm_start)
        self.warm_start = plan.mean
        means, elites = plan.mean[:, 0], plan.elite[:, 0]
        if num := len(self.others):
            draws = self.planner.draw_each(self.others)
            more = self.planner.plan(latent.expand(num, -1), draws, warm_start.expand(num, -1, -1))
            means, elites = torch.cat([means, more.mean[:, 0]]), torch.cat([elites, more.elite[:, 0]])
        return Opinion(plan, means.mean(dim=0), means.std(dim=0, correction=0), elites.std(dim=0, correction=0))


class PlannerDriver:
    """Execute the first action of every plan."""

    name = "planner"

    def reset(self, seed: int) -> None:
        """Nothing is kept between decisions."""

    def decide(self, observation: np.ndarray, latent: Tensor, opinion: Opinion) -> Choice:
        """Return the first action of the teacher's plan."""
        plan = opinion.plan
        return Choice(plan.mean[0, 0], 0, latent[0], plan.mean[0, 0], plan.std[0, 0])


class Recorder:
    """A corrector that remembers what it was last asked."""

    def __init__(self, corrector: Corrector) -> None:
        self.corrector, self.history_length = corrector, corrector.history_length
        self.asked: CorrectorInputs | None = None

    def __call__(self, inputs: CorrectorInputs) -> Tensor:
        """Return the correction."""
        self.asked = inputs
        actions: Tensor = self.corrector(inputs)
        return actions


class StudentDriver:
    """Execute plans for several decisions each, corrected, and never plan before their time."""

    def __init__(
        self, planner: Planner, corrector: Corrector, name: str, *, execution_horizon: int, task: Task
    ) -> None:
        self.name, self.task, self.recorder = name, task, Recorder(corrector)
        mode = Mode(name="student", execution_horizon=execution_horizon, between="corrector")
        self.policy = PlanningPolicy(planner, task=task, mode=mode, corrector=self.recorder)

    def reset(self, seed: int) -> None:
        """Begin an episode, with plans of its own."""
        states = np.random.SeedSequence([seed, *b"student"]).generate_state(1)
        self.policy.reset(np.zeros(1), [int(states[0])])

    def decide(self, observation: np.ndarray, latent: Tensor, opinion: Opinion) -> Choice:
        """Return the corrected action of the plan in use, or the first of a new one."""
        self.recorder.asked = None
        acted = self.task.unscale(self.policy.act(np.zeros(1, np.int64), observation[None])[0])
        action = torch.from_numpy(acted.astype(np.float32)).clamp(-1, 1).to(latent.device)
        asked = self.recorder.asked
        if asked is None:  # a new plan
            return Choice(action, 0, latent[0], action, opinion.plan.std[0, 0])
        return Choice(action, int(asked.age[0]), asked.predicted[0], asked.plan_action[0], asked.plan_std[0])


class TaughtPolicy:
    """Do what a driver decides in a single episode, and keep every decision with what the teacher thinks of it."""

    is_rowwise = True
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext
    returns_to_go = np.zeros(0)

    def __init__(self, teacher: Teacher, driver: Driver, task: Task) -> None:
        self.teacher, self.driver, self.task = teacher, driver, task
        self.model = teacher.planner.model.eval()
        self.decisions: list[dict[str, Any]] = []

    def reset(self, target_returns: np.ndarray, seeds: Sequence[int]) -> None:
        """Begin the episode."""
        (seed,) = seeds
        self.teacher.reset(seed)
        self.driver.reset(seed)

    @torch.no_grad()
    def act(self, rows: np.ndarray, observations: np.ndarray) -> np.ndarray:
        """Return the driver's action [1, A] for the observation [1, S]."""
        latent = self.model.encode(torch.from_numpy(observations).to(self.teacher.device))
        opinion = self.teacher.consider(latent)
        choice = self.driver.decide(observations[0], latent, opinion)
        self.decisions.append(row_of(observations[0], latent, opinion, choice))
        return self.task.scale(self.decisions[-1]["actions"][None])

    def record(self, rows: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> None:
        """Keep the reward."""
        self.decisions[-1]["rewards"] = float(rewards[0])


def collect_episode(
    teacher: Teacher,
    driver: Driver,
    task: Task,
    *,
    seed: int,
    number: int,
    round_number: int,
    stepped: Callable[[int], bool],
) -> PlanEpisode | None:
    """Run one episode; it depends on the seed, its number, the teacher and the driver alone.

    Args:
        stepped: called with the decisions so far; True stops the episode, and nothing is returned.
    """
    start, _ = episode_start(seed, number)
    policy = TaughtPolicy(teacher, driver, task)
    environment = make(task)
    try:
        if not run_episodes(policy, [environment], [Start(start)], on_step=lambda step: stepped(step.index + 1)):
            return None
    finally:
        environment.close()
    rows = policy.decisions
    arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    arrays["rewards"], arrays["ages"] = arrays["rewards"].astype(np.float32), arrays["ages"].astype(np.int16)
    return PlanEpisode(**arrays, number=number, round=round_number, driver=driver.name, seed=start)


def row_of(observed: np.ndarray, latent: Tensor, opinion: Opinion, choice: Choice) -> dict[str, Any]:
    """Return what is kept of a decision but for its reward, copied from the device at once."""
    plan = opinion.plan
    tensors = {
        "latents": latent[0],
        "actions": choice.action,
        "predicted": choice.predicted,
        "queued": choice.queued,
        "queued_std": choice.queued_std,
        "plan_mean": plan.mean[0],
        "plan_std": plan.std[0],
        "plan_elite": plan.elite[0],
        "label": opinion.label,
        "label_std": opinion.label_std,
        "elite_std": opinion.elite_std,
    }
    flat = torch.cat([tensor.float().flatten() for tensor in tensors.values()]).cpu().numpy()
    pieces = np.split(flat, np.cumsum([tensor.numel() for tensor in tensors.values()])[:-1])
    row = {name: piece.reshape(tensors[name].shape) for name, piece in zip(tensors, pieces, strict=True)}
    return {"observations": observed, "ages": choice.age, **row}
