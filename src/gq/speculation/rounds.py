"""What is distilled, and its rounds: the planner drives the first, students of earlier ones the others."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge

from gq.config import Natural, NonNegative
from gq.envs.engines import versions
from gq.envs.tasks import Task
from gq.errors import Interrupted, UsageError
from gq.files import sha256
from gq.models.config import Count
from gq.models.corrector import Architecture, CorrectorConfig
from gq.models.world_model import WorldModel
from gq.planning.mppi import Planner
from gq.policies.loading import Acting, load_run
from gq.rollouts.parts import Request, begin, lock_parts, remove
from gq.speculation.drivers import Driver, PlannerDriver, StudentDriver, Teacher, collect_episode
from gq.speculation.samples import PlanEpisode, Samples, Target, build_samples, read_plan_data, write_plan_data
from gq.speculation.training import Trained, TrainSettings, train_corrector

MIN_EPISODES = 2  # of a round: one to learn from, one to validate with
Progress = Callable[[str, int, int | None], None]  # what is being done, how much of it, and of how much


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """What is collected and learnt; stored in each corrector's corrector.json."""

    archs: tuple[Architecture, ...] = ("two-tower",)
    rounds: Natural = 3  # in which students drive, after the one in which the planner does
    num_episodes: Annotated[int, Ge(MIN_EPISODES)] = 10  # of each round
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
class Distillation:
    """A loaded teacher, what is wanted of it, and whom to tell about it."""

    run: Path
    checkpoint: Path
    teacher_sha256: str
    task: Task
    model: WorldModel
    planner: Planner
    settings: DistillSettings
    note: Callable[[str], None] = lambda text: None
    progress: Progress = lambda what, done, total: None
    is_stopped: Callable[[], bool] = lambda: False

    @property
    def seed(self) -> int:
        """The seed of everything."""
        return self.settings.train.seed

    @property
    def device(self) -> torch.device:
        """Where the teacher is."""
        return next(self.model.parameters()).device


def prepare(run: Path, acting: Acting, settings: DistillSettings) -> Distillation:
    """Load the teacher.

    Raises:
        UsageError: the run has no planner, or no such checkpoint.
    """
    loaded = load_run(run, acting)
    if not loaded.planner:
        message = f"{loaded.config.algo} runs have no planner to learn from"
        raise UsageError(message, hint="train one: gq train tdmpc2")
    digest = sha256(loaded.checkpoint / "model.safetensors")
    planner = loaded.planner.resized(horizon=settings.plan_horizon)
    model, task = planner.model.eval().requires_grad_(False), loaded.config.environment
    return Distillation(run, loaded.checkpoint, digest, task, model, planner, settings)


# --- rounds -----------------------------------------------------------------------------------------------------------


def collect(job: Distillation, file: Path, *, force: bool) -> list[PlanEpisode]:
    """Return the episodes of all rounds, continuing what was begun, and write them to a file.

    Raises:
        UsageError: another request's data are there, and not `force`.
        Interrupted: it was stopped; finished episodes are kept.
    """
    request = _request_of(job)
    attributes = {
        "teacher_sha256": job.teacher_sha256,
        "teacher": job.run.resolve().name,
        "checkpoint": job.checkpoint.name,
        "task": job.task.id,
        "plan_horizon": job.planner.config.horizon,
        "execution_horizon": job.settings.execution_horizon,
        "request": json.dumps(request, sort_keys=True),
    }
    with lock_parts(file) as parts:
        if file.exists() and not force:
            found = read_plan_data(file, teacher_sha256=job.teacher_sha256)
            if found.attributes.get("request") != attributes["request"]:
                hint = f"reuse it with --data {file}, replace it with --force, or choose another --out"
                raise UsageError(f"{file} was collected with other settings", hint=hint)
            remove(parts)
            job.note(f"{file} is there already")
            return found.episodes
        begin(parts, request, force=force, note=job.note)
        episodes: list[PlanEpisode] = []
        for number in range(job.settings.rounds + 1):
            episodes += _collect_round(job, parts, attributes, episodes, number)
        write_plan_data(file, episodes, attributes)
        remove(parts)
    return episodes


def _collect_round(
    job: Distillation, parts: Path, attributes: dict[str, Any], before: list[PlanEpisode], number: int
) -> list[PlanEpisode]:
    """Return the episodes of a round, each of which is a file of its own in `parts` until all rounds are finished.

    Students learn from the episodes `before` it, once one of this round's is missing.
    """
    settings, longest = job.settings, job.task.max_episode_steps
    share = None if settings.max_samples is None else -(-settings.max_samples // (settings.rounds + 1))
    teacher = Teacher(job.planner, settings.num_plans)
    drivers: list[Driver] = []
    episodes: list[PlanEpisode] = []
    num_samples = 0
    for index in range(settings.num_episodes):
        if share is not None and num_samples >= share and index >= MIN_EPISODES:
            break
        part = parts / f"episode-{len(before) + index:06d}.hdf5"
        if not part.is_file():
            drivers = drivers or _drivers_of(job, before, number)

            def stepped(done: int, index: int = index) -> bool:
                job.progress(f"round {number}", index * longest + done, settings.num_episodes * longest)
                return job.is_stopped()

            episode = collect_episode(
                teacher,
                drivers[index % len(drivers)],
                job.task,
                seed=job.seed,
                number=len(before) + index,
                round_number=number,
                stepped=stepped,
            )
            if episode is None:
                kept = f"{len(before) + index} finished episodes are kept"
                raise Interrupted(f"stopped, {kept}", hint="the same command continues")
            write_plan_data(part, [episode], attributes)
        episodes += read_plan_data(part).episodes
        num_samples += _count_samples(episodes[-1], settings.execution_horizon)
    mean = sum(float(episode.rewards.sum()) for episode in episodes) / len(episodes)
    job.note(f"round {number}, {'students drive' if number else 'the planner drives'}: return {mean:.1f}")
    return episodes


def _count_samples(episode: PlanEpisode, execution_horizon: int) -> int:
    if episode.driver == "planner":
        return sum(max(episode.num_decisions - age, 0) for age in range(1, execution_horizon))
    return int((episode.ages > 0).sum())


def _drivers_of(job: Distillation, episodes: list[PlanEpisode], number: int) -> list[Driver]:
    """Who drives in turn: the planner, or a student of each architecture, with long and with shorter plans."""
    if number == 0:
        return [PlannerDriver()]
    longest, samples = job.settings.execution_horizon, samples_of(job, episodes)
    students = {arch: train(job, samples, arch).corrector for arch in job.settings.archs}
    return [
        StudentDriver(job.planner, corrector, arch, execution_horizon=horizon, task=job.task)
        for horizon in dict.fromkeys([longest, max(longest // 2, 2)])
        for arch, corrector in students.items()
    ]


def _request_of(job: Distillation) -> Request:
    """Everything that the collected data depend on; how students are trained matters where there are some."""
    wanted = asdict(job.settings)
    if not job.settings.rounds:
        collecting = ("rounds", "num_episodes", "plan_horizon", "num_plans", "max_samples", "execution_horizon")
        wanted = {name: wanted[name] for name in collecting} | {"train": {"seed": job.seed}}
    return {
        "teacher_sha256": job.teacher_sha256,
        "checkpoint": job.checkpoint.name,
        "device": job.device.type,
        "planner": asdict(job.planner.config),
        **{name: list(value) if isinstance(value, tuple) else value for name, value in wanted.items()},
        **{f"{name}_version": version for name, version in versions().items()},
    }


# --- what is learnt ---------------------------------------------------------------------------------------------------


def samples_of(job: Distillation, episodes: list[PlanEpisode]) -> Samples:
    """The samples of episodes, as the settings say."""
    settings = job.settings
    return build_samples(
        episodes,
        job.model,
        execution_horizon=settings.execution_horizon,
        min_distance=settings.min_distance,
        max_samples=settings.max_samples,
        target=settings.target,
        seed=job.seed,
    )


def train(job: Distillation, samples: Samples, arch: Architecture) -> Trained:
    """Train a corrector. Raises Interrupted if it was stopped."""
    settings = job.settings
    config = CorrectorConfig(
        latent_dim=job.model.config.latent_dim,
        action_dim=job.model.action_dim,
        arch=arch,
        history_length=settings.history_length,
        max_age=settings.execution_horizon - 1,
        plan_blind=settings.plan_blind,
        use_age=settings.use_age,
        published=settings.published,
    )

    def moved(done: int, total: int) -> None:
        job.progress(f"training {arch}", done, total)

    trained = train_corrector(samples, job.model, config, settings.train, is_stopped=job.is_stopped, progress=moved)
    if trained is None:
        raise Interrupted("stopped while training", hint="the same command continues; what was collected is kept")
    return trained
