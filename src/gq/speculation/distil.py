"""`gq distill`: collect a planner's decisions, first where it drives, then where its students do, and train correctors.

RUN/correctors/decisions.hdf5                                        what was collected
RUN/correctors/<name>/{model.safetensors, corrector.json}            what was learnt of it
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gq.config import with_settings
from gq.envs.engines import versions
from gq.errors import DataError, UsageError
from gq.files import sha256
from gq.models.corrector import Architecture
from gq.paths import read_json
from gq.policies.correctors import correctors_folder, save_corrector
from gq.policies.loading import Acting
from gq.runs.card import refresh_card
from gq.signals import StopRequest
from gq.speculation.rounds import Distillation, DistillSettings, Progress, collect, prepare, samples_of, train
from gq.speculation.samples import PlanEpisode, Samples, read_plan_data
from gq.speculation.training import Trained, measure

DATA_FILE = "decisions.hdf5"
OF_THE_DATA = ("archs", "rounds", "num_episodes")  # settings that one corrector's training does not see


@dataclass(frozen=True)
class DistilledCorrector:
    """A corrector that was made."""

    arch: Architecture
    folder: Path
    parameters: int
    epochs: int
    best_epoch: int
    samples: int
    validation_samples: int
    errors: dict[str, Any]  # by age, and for all; see gq.speculation.training.measure
    history: list[dict[str, float]]  # losses by epoch


@dataclass(frozen=True)
class Distilled:
    """What `distill` did; `to_dict` is the JSON document."""

    run: str
    task: str
    checkpoint: str
    teacher_sha256: str
    data: Path
    episodes: int
    decisions: int
    label_std: float  # of a label over planner seeds, root mean square
    elite_std: float  # of one plan's drawn elite over planner seeds
    returns: list[float]  # mean return of each round's episodes
    correctors: list[DistilledCorrector]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        rows = [asdict(corrector) | {"folder": str(corrector.folder)} for corrector in self.correctors]
        return vars(self) | {"data": str(self.data), "correctors": rows}


def distill(
    run: Path,
    settings: DistillSettings | None = None,
    acting: Acting | None = None,
    *,
    data: Path | None = None,
    out: Path | None = None,
    force: bool = False,
    note: Callable[[str], None] = lambda text: None,
    progress: Progress = lambda what, done, total: None,
) -> Distilled:
    """Collect, unless `data` is given, and train a corrector of each architecture.

    A call that was stopped or killed continues when it is repeated, and ends with the same data.

    Args:
        data: use this file's decisions instead of collecting.
        out: folder of the data and the correctors; default: `correctors` in the run's.
        force: replace other data and correctors in `out`, and throw away what was begun of them.
        progress: told what is being done, how much of it, and of how much.

    Raises:
        UsageError: the run has no planner, a setting is out of range, or data of another teacher or request.
        DataError: the data are damaged, or too few.
        Interrupted: after SIGINT or SIGTERM; finished episodes are kept.
    """
    settings = with_settings(settings or DistillSettings(), {})  # raises for those out of range
    job = replace(prepare(run, acting or Acting(), settings), note=note, progress=progress)
    folder = out or correctors_folder(run)
    file, episodes = data or folder / DATA_FILE, [] if data is None else _read_for(job, data)
    if not force:
        _refuse_to_replace(job, folder, file)
    with StopRequest(note) as stop:
        job = replace(job, is_stopped=lambda: bool(stop.requested))
        if data is None:
            episodes = collect(job, file, force=force)
        note(f"{file}: {len(episodes)} episodes, {sum(e.num_decisions for e in episodes):,} decisions")
        samples = samples_of(job, episodes)
        correctors = [_save(job, samples, arch, train(job, samples, arch), folder, file) for arch in settings.archs]
    if edited := refresh_card(run):
        note(edited)
    return _report(job, file, episodes, correctors)


def _refuse_to_replace(job: Distillation, folder: Path, data: Path) -> None:
    """Raise UsageError where a corrector would take the place of one of other data or settings."""
    wanted = {name: value for name, value in asdict(job.settings).items() if name not in OF_THE_DATA}
    for arch in job.settings.archs:
        file = folder / job.settings.name(arch) / "corrector.json"
        if not file.is_file():
            continue
        known = read_json(file)
        is_same = wanted.items() <= known.get("settings", {}).items()
        is_same &= known.get("teacher_sha256") == job.teacher_sha256
        is_same &= data.is_file() and known.get("data_sha256") == sha256(data)
        if not is_same:
            again = f"--force --data {data}" if data.is_file() else "--force"
            hint = f"replace it with {again}, or choose another folder with --out"
            raise UsageError(f"{file.parent} was distilled in another way", hint=hint)


def _read_for(job: Distillation, data: Path) -> list[PlanEpisode]:
    """The episodes of a file that the teacher made.

    Raises:
        UsageError: there is no such file, or another teacher or planner made it.
        DataError: it is damaged, or holds one episode only.
    """
    found = read_plan_data(data, teacher_sha256=job.teacher_sha256)
    horizon = found.attributes.get("plan_horizon")
    if horizon != job.planner.config.horizon:
        hint = f"match it with --set plan_horizon={horizon}"
        raise UsageError(f"{data} holds plans of {horizon} decisions, not {job.planner.config.horizon}", hint=hint)
    if len(found.episodes) < 2:
        raise DataError(f"{data} holds one episode, which leaves none to validate with", hint="collect more")
    return found.episodes


def _save(
    job: Distillation, samples: Samples, arch: Architecture, trained: Trained, folder: Path, data: Path
) -> DistilledCorrector:
    """Write a corrector with its errors on the episodes that it did not learn from."""
    settings, corrector = job.settings, trained.corrector
    made = DistilledCorrector(
        arch=arch,
        folder=folder / settings.name(arch),
        parameters=sum(parameter.numel() for parameter in corrector.parameters()),
        epochs=len(trained.history) - 1,
        best_epoch=trained.best_epoch,
        samples=int((~samples.is_validation).sum()),
        validation_samples=int(samples.is_validation.sum()),
        errors=measure(corrector, samples, job.model),
        history=trained.history,
    )
    document = {
        "teacher": job.run.resolve().name,
        "checkpoint": job.checkpoint.name,
        "teacher_sha256": job.teacher_sha256,
        "task": job.task.id,
        "execution_horizon": settings.execution_horizon,
        "plan_horizon": job.planner.config.horizon,
        "settings": asdict(settings),
        "data_sha256": sha256(data),
        "parameters": made.parameters,
        "metrics": {
            name: getattr(made, name)
            for name in ("epochs", "best_epoch", "samples", "validation_samples", "errors", "history")
        },
        "versions": versions(),
    }
    save_corrector(made.folder, corrector, document)
    return made


def _report(
    job: Distillation, data: Path, episodes: list[PlanEpisode], correctors: list[DistilledCorrector]
) -> Distilled:
    """What was done."""

    def root_mean_square(name: str) -> float:
        squares = [(getattr(episode, name).astype(float) ** 2).mean(axis=1) for episode in episodes]
        return math.sqrt(sum(map(sum, squares)) / sum(map(len, squares)))

    rounds = sorted({episode.round for episode in episodes})
    of_round = [[float(e.rewards.sum()) for e in episodes if e.round == number] for number in rounds]
    return Distilled(
        run=job.run.resolve().name,
        task=job.task.id,
        checkpoint=job.checkpoint.name,
        teacher_sha256=job.teacher_sha256,
        data=data,
        episodes=len(episodes),
        decisions=sum(episode.num_decisions for episode in episodes),
        label_std=root_mean_square("label_std"),
        elite_std=root_mean_square("elite_std"),
        returns=[sum(values) / len(values) for values in of_round],
        correctors=correctors,
    )
