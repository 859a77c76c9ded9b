"""Rounds of episodes: the planner drives the first, students that learnt from those before drive the others."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gq.errors import Interrupted, UsageError
from gq.models.corrector import Architecture, CorrectorConfig
from gq.rollouts.parts import Request, begin, lock_parts, remove
from gq.speculation.plan_collection import Driver, PlannerDriver, StudentDriver, Teacher, collect_episode
from gq.speculation.plan_data import EpisodeParts, PlanEpisode, read_plan_data, request_text, write_plan_data
from gq.speculation.samples import Samples, build_samples
from gq.speculation.settings import Lecture
from gq.speculation.training import Trained, train_corrector
from gq.versions import versions

MIN_EPISODES = 2  # of a round: one to learn from, one to validate with
Progress = Callable[[str, int, int | None], None]  # what is being done, how much of it, and of how much


def collect(
    lecture: Lecture,
    file: Path,
    *,
    force: bool,
    note: Callable[[str], None],
    progress: Progress,
    is_stopped: Callable[[], bool],
) -> list[PlanEpisode]:
    """Return the episodes of all rounds, going on with what is there, and write them to a file.

    Raises:
        UsageError: another request's data are there, and not `force`.
        Interrupted: `is_stopped`; finished episodes are kept.
    """
    request = request_of(lecture)
    attributes = attributes_of(lecture, request)
    with lock_parts(file) as parts:
        if file.exists() and not force:
            found = read_plan_data(file, teacher_sha256=lecture.teacher_sha256)
            if found.attributes.get("request") != attributes["request"]:
                hint = f"reuse it with --data {file}, replace it with --force, or choose another --out"
                raise UsageError(f"{file} was collected with other settings", hint=hint)
            remove(parts)
            note(f"{file} is there already")
            return found.episodes
        begin(parts, request, force=force, note=note)
        store, episodes = EpisodeParts(parts, attributes), list[PlanEpisode]()
        for round_number in range(lecture.settings.rounds + 1):
            episodes += collect_round(lecture, store, episodes, round_number, note, progress, is_stopped)
        write_plan_data(file, episodes, attributes)
        remove(parts)
    return episodes


def collect_round(
    lecture: Lecture,
    store: EpisodeParts,
    before: list[PlanEpisode],
    round_number: int,
    note: Callable[[str], None],
    progress: Progress,
    is_stopped: Callable[[], bool],
) -> list[PlanEpisode]:
    """Return the episodes of a round; students learn from those before it, once one of them is missing."""
    settings, drivers = lecture.settings, list[Driver]()
    share = None if settings.max_samples is None else -(-settings.max_samples // (settings.rounds + 1))
    episodes: list[PlanEpisode] = []
    num_samples = 0
    teacher = Teacher(lecture.planner, settings.num_plans)
    while len(episodes) < settings.num_episodes:
        if share is not None and num_samples >= share and len(episodes) >= MIN_EPISODES:
            break
        number = len(before) + len(episodes)
        if not store.has(number):
            drivers = drivers or drivers_of(lecture, before, round_number, is_stopped, progress)

            def stepped(done: int, index: int = len(episodes)) -> bool:
                longest = lecture.task.max_episode_steps
                progress(f"round {round_number}", index * longest + done, settings.num_episodes * longest)
                return is_stopped()

            episode = collect_episode(
                teacher,
                drivers[len(episodes) % len(drivers)],
                lecture.task,
                seed=lecture.seed,
                number=number,
                round_number=round_number,
                stepped=stepped,
            )
            if episode is None:
                raise interrupted(number)
            store.append(episode)
        episodes.append(store.read(number))
        num_samples += count_samples(episodes[-1], settings.execution_horizon)
    mean = sum(float(episode.rewards.sum()) for episode in episodes) / len(episodes)
    note(f"round {round_number}, {'students drive' if round_number else 'the planner drives'}: return {mean:.1f}")
    return episodes


def interrupted(num_kept: int) -> Interrupted:
    """Return what says that a signal stopped the collection."""
    return Interrupted(f"stopped, {num_kept} finished episodes are kept", hint="the same command goes on")


def count_samples(episode: PlanEpisode, execution_horizon: int) -> int:
    """Return how many samples there are in an episode."""
    if episode.driver == "planner":
        return sum(max(episode.num_decisions - age, 0) for age in range(1, execution_horizon))
    return int((episode.ages > 0).sum())


def drivers_of(
    lecture: Lecture,
    episodes: list[PlanEpisode],
    round_number: int,
    is_stopped: Callable[[], bool],
    progress: Progress,
) -> list[Driver]:
    """Return who drives in turn: the planner, or a student of each architecture, with long and with shorter plans."""
    if round_number == 0:
        return [PlannerDriver()]
    settings = lecture.settings
    samples = samples_of(lecture, episodes)
    students = {arch: train(lecture, samples, arch, is_stopped, progress).corrector for arch in settings.archs}
    horizons = dict.fromkeys([settings.execution_horizon, max(settings.execution_horizon // 2, 2)])
    return [
        StudentDriver(lecture.planner, corrector, arch, execution_horizon=horizon, action_bound=bound)
        for bound in [lecture.task.action_bound]
        for horizon in horizons
        for arch, corrector in students.items()
    ]


def samples_of(lecture: Lecture, episodes: list[PlanEpisode]) -> Samples:
    """Return the samples of episodes by the settings."""
    settings = lecture.settings
    return build_samples(
        episodes,
        lecture.model,
        execution_horizon=settings.execution_horizon,
        min_distance=settings.min_distance,
        max_samples=settings.max_samples,
        target=settings.target,
        seed=lecture.seed,
    )


def train(
    lecture: Lecture,
    samples: Samples,
    arch: Architecture,
    is_stopped: Callable[[], bool],
    progress: Progress,
) -> Trained:
    """Train a corrector. Raises Interrupted if `is_stopped`."""
    settings = lecture.settings
    config = CorrectorConfig(
        latent_dim=lecture.model.config.latent_dim,
        action_dim=lecture.model.action_dim,
        arch=arch,
        history_length=settings.history_length,
        max_age=settings.execution_horizon - 1,
        plan_blind=settings.plan_blind,
        use_age=settings.use_age,
        published=settings.published,
    )

    def moved(done: int, total: int) -> None:
        progress(f"training {arch}", done, total)

    trained = train_corrector(samples, lecture.model, config, settings.train, is_stopped=is_stopped, progress=moved)
    if trained is None:
        raise Interrupted("stopped while training", hint="the same command goes on; what was collected is kept")
    return trained


def request_of(lecture: Lecture) -> Request:
    """Return everything that the collected data depend on; how students are trained matters where there are some."""
    wanted = asdict(lecture.settings)
    collecting = ("rounds", "num_episodes", "plan_horizon", "num_plans", "max_samples", "execution_horizon")
    if not lecture.settings.rounds:
        seed = wanted["train"]["seed"]
        wanted = {name: wanted[name] for name in collecting} | {"train": {"seed": seed}}
    return {
        "teacher_sha256": lecture.teacher_sha256,
        "checkpoint": lecture.checkpoint.name,
        "device": lecture.device.type,
        "planner": asdict(lecture.planner.config),
        **{name: list(value) if isinstance(value, tuple) else value for name, value in wanted.items()},
        **{f"{name}_version": version for name, version in versions().items()},
    }


def attributes_of(lecture: Lecture, request: Request) -> dict[str, Any]:
    """Return what a file says of its decisions."""
    return {
        "teacher_sha256": lecture.teacher_sha256,
        "teacher": lecture.run.resolve().name,
        "checkpoint": lecture.checkpoint.name,
        "task": lecture.task.id,
        "plan_horizon": lecture.planner.config.horizon,
        "execution_horizon": lecture.settings.execution_horizon,
        "request": request_text(request),
    }
