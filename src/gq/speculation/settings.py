"""What `gq distill` is asked for, and the teacher that it loads."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge

from gq.config import Natural, NonNegative, TDMPC2Config
from gq.envs.tasks import Task, resolve_task
from gq.errors import UsageError
from gq.files import sha256
from gq.models.config import Count
from gq.models.corrector import Architecture
from gq.models.world_model import WorldModel
from gq.planning.mppi import Planner
from gq.policies.algorithms import build_planner
from gq.policies.compute import choose_compute
from gq.policies.loading import Acting, load_run
from gq.runs.folder import read_config
from gq.speculation.samples import Target
from gq.speculation.training import TrainSettings


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """What is collected and learnt; stored in each corrector's corrector.json."""

    archs: tuple[Architecture, ...] = ("two-tower",)
    rounds: Natural = 3  # in which students drive, after the one in which the planner does
    num_episodes: Annotated[int, Ge(2)] = 10  # of each round: students learn from one, the other validates them
    history_length: Count = 4  # decisions that `temporal` sees
    execution_horizon: Annotated[int, Ge(2)] = 6  # decisions that a plan is executed for at most: ages are below it
    plan_horizon: Natural = 0  # decisions that plans look ahead; 0: the run's own
    min_distance: NonNegative = 0.0  # of a latent from its prediction, for a sample to count
    max_samples: Annotated[int, Ge(2)] | None = None  # of all rounds; None: all there are
    num_plans: Count = 3  # that a label is the mean of
    target: Target = "mean"  # of several plans, or one plan's drawn elite
    plan_blind: bool = False  # an ablation: correct the policy's action, and see nothing of the plan
    use_age: bool = True  # whether the network knows how old the plan is
    published: bool = False  # the layers and inputs of the original prototype
    train: TrainSettings = field(default_factory=TrainSettings)

    def name(self, arch: Architecture) -> str:
        """What a corrector is called: its architecture and what was left out or changed in it."""
        changes = {"plan-blind": self.plan_blind, "no-age": not self.use_age, "published": self.published}
        changes[self.target] = self.target != "mean"
        return "-".join([arch, *(change for change, is_made in changes.items() if is_made)])


@dataclass(frozen=True)
class Lecture:
    """A loaded teacher, with all that collecting and training need of it."""

    run: Path
    checkpoint: Path
    teacher_sha256: str
    task: Task
    model: WorldModel
    planner: Planner
    settings: DistillSettings

    @property
    def seed(self) -> int:
        """Return the seed of everything."""
        return self.settings.train.seed

    @property
    def device(self) -> torch.device:
        """Return where the teacher is."""
        return next(self.model.parameters()).device


def prepare(run: Path, acting: Acting, settings: DistillSettings) -> Lecture:
    """Load the teacher.

    Raises:
        UsageError: the run has no planner, or no such checkpoint.
    """
    config = read_config(run)
    if not isinstance(config, TDMPC2Config):
        raise UsageError(f"{config.algo} runs have no planner to learn from", hint="train one: gq train tdmpc2")
    loaded = load_run(run, acting)
    assert isinstance(loaded.model, WorldModel)
    model = loaded.model.eval().requires_grad_(False)
    if settings.plan_horizon:
        config = replace(config, planner=replace(config.planner, horizon=settings.plan_horizon))
    planner = build_planner(config, model, choose_compute(acting.device, config.train.precision))
    digest = sha256(loaded.checkpoint / "model.safetensors")
    return Lecture(run, loaded.checkpoint, digest, resolve_task(config.task), model, planner, settings)
