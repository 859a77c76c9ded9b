"""What `gq distill` is asked for, and the teacher that it loads."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import torch

from gq.config import TDMPC2Config
from gq.envs.tasks import Task, resolve_task
from gq.errors import UsageError
from gq.files import sha256
from gq.models.corrector import ARCHITECTURES, Architecture
from gq.models.world_model import WorldModel
from gq.planning.mppi import Planner
from gq.policies.algorithms import build_planner
from gq.policies.compute import choose_compute
from gq.policies.loading import load_run
from gq.runs.folder import read_config
from gq.speculation.samples import Target
from gq.speculation.training import TrainSettings


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """What is collected and learnt."""

    archs: tuple[Architecture, ...] = ("two-tower",)
    rounds: int = 3  # in which students drive, after the one in which the planner does
    num_episodes: int = 10  # of each round
    history_length: int = 4
    execution_horizon: int = 6  # decisions that a plan is executed for at most: correctors see ages below it
    plan_horizon: int = 0  # 0: the run's own
    min_distance: float = 0.0  # of a latent from its prediction, for a sample to count
    max_samples: int | None = None
    num_plans: int = 3  # that a label is the mean of
    target: Target = "mean"
    plan_blind: bool = False
    use_age: bool = True
    published: bool = False
    train: TrainSettings = field(default_factory=TrainSettings)

    def name(self, arch: Architecture) -> str:
        """Return what a corrector is called: by its architecture and by what was left out or changed in it."""
        changes = {"plan-blind": self.plan_blind, "no-age": not self.use_age, "published": self.published}
        changes[self.target] = self.target != "mean"
        return "-".join([arch, *(change for change, is_made in changes.items() if is_made)])


def check(settings: DistillSettings) -> None:
    """Raise UsageError for settings out of range."""
    # Of two episodes, students learn from one and are validated with the other.
    least = {"rounds": 0, "num_episodes": 2, "history_length": 1, "execution_horizon": 2, "plan_horizon": 0}
    for name, minimum in least.items():
        if getattr(settings, name) < minimum:
            what = name.removeprefix("num_").replace("_", " ")
            raise UsageError(f"{what} is {getattr(settings, name)}", hint=f"give {minimum} or more")
    if settings.train.num_epochs < 1 or settings.num_plans < 1:
        raise UsageError("there are no epochs, or no plans, to learn from", hint="ask for 1 or more")
    if not 0 <= settings.min_distance < float("inf"):
        raise UsageError(f"the distance {settings.min_distance} is not 0 or more", hint="leave --min-distance away")
    if settings.max_samples is not None and settings.max_samples < 2:
        raise UsageError(f"{settings.max_samples} samples are too few", hint="leave --max-samples away for all")
    if not 0 <= settings.train.seed < 2**63:
        raise UsageError(f"the seed {settings.train.seed} is negative or too large", hint="give 0 or more, below 2^63")


def choose_archs(name: str) -> tuple[Architecture, ...]:
    """Return the architectures that `two-tower`, `temporal` or `both` stands for. Raises UsageError for another."""
    if name == "both":
        return ARCHITECTURES
    for arch in ARCHITECTURES:
        if name == arch:
            return (arch,)
    raise UsageError(f"there is no architecture {name}", hint="choose two-tower, temporal or both")


def choose_target(name: str) -> Target:
    """Return the target of a name. Raises UsageError if there is none."""
    targets: tuple[Target, ...] = get_args(Target)
    for target in targets:
        if name == target:
            return target
    raise UsageError(f"there is no target {name}", hint="choose mean or elite")


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


def prepare(run: Path, checkpoint: str | Path, device: str, settings: DistillSettings) -> Lecture:
    """Load the teacher.

    Raises:
        UsageError: the run has no planner, or no such checkpoint.
    """
    config = read_config(run)
    if not isinstance(config, TDMPC2Config):
        raise UsageError(f"{config.algo} runs have no planner to learn from", hint="train one: gq train tdmpc2")
    loaded = load_run(run, checkpoint, device=device)
    assert isinstance(loaded.model, WorldModel)
    model = loaded.model.eval().requires_grad_(False)
    if settings.plan_horizon:
        config = replace(config, planner=replace(config.planner, horizon=settings.plan_horizon))
    planner = build_planner(config, model, choose_compute(device, config.train.precision))
    digest = sha256(loaded.checkpoint / "model.safetensors")
    return Lecture(run, loaded.checkpoint, digest, resolve_task(config.task), model, planner, settings)
