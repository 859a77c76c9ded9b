"""The facts of a report from run folders: what is on record, and episodes of our own where that does not do."""

import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gq import __version__
from gq.envs.scores import Reference, reference_for
from gq.envs.tasks import resolve_task
from gq.errors import GqError
from gq.paths import checkpoint_folders, read_json, read_settings, section
from gq.results.curves import Learning, read_learning
from gq.results.data import read_data
from gq.results.facts import Baseline, CheckpointFacts, DataFacts, Facts, Measure, RunFacts
from gq.results.footage import choose_video, film
from gq.results.history import read_settings as read_flat_settings
from gq.results.report_groups import group_runs
from gq.rollouts.episodes import EpisodeRequest, Step
from gq.runs.checkpoint import choose_checkpoint, pointed
from gq.runs.evaluations import EvaluationRow, Evaluations, Way, read_evaluations, recorded_origin
from gq.runs.folder import SELECTION_SEED, repeat_command
from gq.runs.metrics import UNITS
from gq.runs.state import state_of

NUM_EPISODES = 20
ENOUGH_EPISODES = 5  # on record: fewer were a trial
VIDEO_BYTES = 3_000_000  # of all videos of a page, so that it stays below 5 MB when they are written as text


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a report may do to get its facts."""

    num_episodes: int | None = None  # per target; None: as on record, at least 5, else 20
    rollouts: bool = True
    video: bool = False  # make one of each run
    begin: Callable[[Path, str], None] = lambda run, what: None
    watch: Callable[[Step], None] = lambda step: None


@dataclass
class Shelf:
    """What several runs share, read once."""

    data: dict[str, DataFacts | str] = field(default_factory=dict)  # or why there is none

    def look_up(self, dataset: str, task: str) -> DataFacts | str:
        """Return a dataset's facts, or a line that says why there are none."""
        if dataset not in self.data:
            try:
                self.data[dataset] = read_data(dataset, task)
            except GqError as error:
                self.data[dataset] = f"the data's own returns are missing: {error}"
        return self.data[dataset]


def gather(runs: Sequence[Path], wishes: Wishes) -> Facts:
    """Return the facts of a report.

    Raises:
        GqError: a run's configuration or a checkpoint that is to be evaluated is damaged, or a video cannot be made.
    """
    shelf = Shelf()
    found = [gather_run(run, runs, wishes, shelf, VIDEO_BYTES // len(runs)) for run in runs]
    learning: dict[str, Learning] = {}
    notes: list[str] = []
    for facts in found:
        try:
            learning[str(facts.path)] = read_learning([facts.path])
        except GqError as error:
            facts.notes.append(f"no learning curve: {error}")
    if len(runs) > 1 and (joint := all_curves([one for one in found if str(one.path) in learning], notes)):
        learning[""] = joint
    return Facts(
        created=datetime.now(UTC).strftime("%Y-%m-%d"),
        version=__version__,
        runs=found,
        groups=group_runs(found, notes),
        learning=learning,
        command="gq report " + " ".join(shlex.quote(str(run)) for run in runs),
        notes=notes,
    )


def all_curves(runs: Sequence[RunFacts], notes: list[str]) -> Learning | None:
    """Return the curves of several runs, seeds together, or note why there are none."""
    if len(runs) < 2:
        return None
    try:
        return read_learning([run.path for run in runs])
    except GqError as error:
        notes.append(f"learning curves are shown run by run: {error}")
        return None


def gather_run(run: Path, runs: Sequence[Path], wishes: Wishes, shelf: Shelf, video_bytes: int) -> RunFacts:
    """Return the facts of one run."""
    settings = read_flat_settings(run)
    notes: list[str] = []
    environment = {}
    try:
        environment = read_json(run / "environment.json")
    except GqError:
        notes.append("environment.json is missing: versions and hashes of the training are unknown")
    state = state_of(run, read_settings(run))
    if state != "finished":
        notes.append(f"the training is {state}: figures are of what there is so far")
    task, dataset = str(settings["task"]), str(settings.get("data.dataset", ""))
    reference = reference_for(task, recorded_origin(run, dataset)) if environment else reference_for(task, dataset)
    best, last = gather_checkpoints(run, wishes, reference, notes)
    data: DataFacts | None = None
    if dataset:
        known = shelf.look_up(dataset, task)
        if isinstance(known, str):
            notes.append(known)
        else:
            data = known
            if environment.get("dataset_sha256") not in (None, data.fingerprint):
                notes.append(f"{dataset} has changed since the training: its returns are not those of the run's data")
    if wishes.video:
        film(run, wishes.begin)
    video = choose_video(run, video_bytes, notes)
    return RunFacts(
        name=run.name,
        path=run,
        state=state,
        settings=settings,
        config_text=(run / "config.toml").read_text(encoding="utf-8"),
        environment=environment,
        best=best,
        last=last,
        selection=describe_selection(run, settings),
        reference=reference,
        baselines=find_baselines(run, runs, environment, data),
        data=data,
        video=video,
        commands=commands_of(run, settings, environment, best),
        notes=notes,
    )


def gather_checkpoints(
    run: Path, wishes: Wishes, reference: Reference | None, notes: list[str]
) -> tuple[CheckpointFacts | None, CheckpointFacts | None]:
    """Return the best checkpoint and the last; the second is None where it is the first."""
    if not checkpoint_folders(run):
        notes.append("there is no checkpoint yet, so nothing can be evaluated")
        return None, None
    best, last = choose_checkpoint(run, "best"), choose_checkpoint(run, "last")
    first = gather_checkpoint(run, best, wishes, reference, notes)
    return first, None if last == best else gather_checkpoint(run, last, wishes, reference, notes)


def gather_checkpoint(
    run: Path, folder: Path, wishes: Wishes, reference: Reference | None, notes: list[str]
) -> CheckpointFacts:
    """Return a checkpoint with its evaluations, those that are lacking made."""
    recorded = read_evaluations(run).of(folder)
    notes += recorded.problems
    ways = [recorded.ways(target) for target in recorded.targets or [None]]
    if wishes.rollouts and not all(choose(recorded.rows, names, wishes.num_episodes) for names in ways):
        from gq.policies.loading import Acting
        from gq.results.evaluate import evaluate

        wishes.begin(run, f"evaluating {folder.name}")
        try:
            evaluate(run, Acting(checkpoint=folder), EpisodeRequest(wishes.num_episodes), watch=wishes.watch)
        except GqError as error:  # a page about several runs has to say so, and can still be made
            notes.append(f"{folder.name} cannot be evaluated: {error}")
        recorded = read_evaluations(run).of(folder)
    measures = [
        one_measure(row, reference, is_own=True)
        for names in ways
        if (row := choose(recorded.rows, names, wishes.num_episodes))
    ]
    if len(measures) < len(ways):
        wanted = f"{wishes.num_episodes or ENOUGH_EPISODES} episodes or more"
        command = f"gq eval {shlex.quote(str(run))} --checkpoint {int(folder.name[5:])}"
        notes.append(f"{folder.name} has no evaluation of {wanted}: {command}")
    own = {name for names in ways for name in names}
    for way in dict.fromkeys(row.way for row in recorded.rows):
        if way not in own and (row := choose(recorded.rows, [way], None)):
            measures.append(one_measure(row, reference, is_own=False))
    measures.sort(key=lambda measure: (measure.target is None, measure.target or 0.0))
    return CheckpointFacts(
        name=folder.name,
        progress=read_progress(run, folder),
        measures=measures,
        model_sha256=read_model_hash(folder),
    )


def choose(rows: Sequence[EvaluationRow], names: Sequence[Way], num_episodes: int | None) -> EvaluationRow | None:
    """Return the newest evaluation in a way with enough episodes, of fewer than were asked for none."""
    enough = num_episodes or ENOUGH_EPISODES
    return next((row for row in rows if row.way in names and len(row.episodes) >= enough), None)


def one_measure(row: EvaluationRow, reference: Reference | None, *, is_own: bool) -> Measure:
    """Return the summary and the episodes of an evaluation in one way."""
    return Measure(
        label=row.way.label,
        target=row.way.target,
        is_own=is_own,
        summary=row.summary(reference),
        episodes=list(row.episodes),
        versions=row.versions,
        source=row.file.name,
    )


def read_progress(run: Path, folder: Path) -> dict[str, int]:
    """Return how far a checkpoint had come, in all that was counted."""
    found = {"updates": int(folder.name.removeprefix("step-"))}
    with suppress(GqError):
        progress = section(read_json(folder / "state.json"), "progress")
        if isinstance(decisions := progress.get("decisions"), int):
            repeat = resolve_task(str(read_flat_settings(run)["task"])).action_repeat
            found |= {"decisions": decisions, "frames": decisions * repeat}
        if isinstance(steps := progress.get("environment_steps"), int):
            found["environment steps"] = steps
    return found


def read_model_hash(folder: Path) -> str:
    """Return the hash of the weights that is on record."""
    try:
        return str(read_json(folder / "MANIFEST.json")["files"]["model.safetensors"]["sha256"])
    except (GqError, KeyError, TypeError):
        return "not on record"


def describe_selection(run: Path, settings: dict[str, object]) -> str:
    """Say how the best checkpoint was chosen."""
    if not pointed(run, "best"):
        return "no checkpoint was marked as the best: the last one stands for it"
    unit = UNITS.get(str(settings["algo"]), "updates")
    what = "mean return" if settings["algo"] in ("bc", "tdmpc2") else "mean return at the highest target"
    every, num = settings.get("eval.every"), settings.get("eval.num_episodes")
    return (
        f"the highest {what} of evaluations while training, every {every:,} {unit} on {num} episodes of their own "
        f"(seeds from {SELECTION_SEED:,} on), never those reported here"
    )


def find_baselines(
    run: Path, runs: Sequence[Path], environment: dict[str, Any], data: DataFacts | None
) -> list[Baseline]:
    """Return what cloning the same data gives: a measured run of it, and the best tenth of the data."""
    from gq.paths import algo_of, all_runs

    found: list[Baseline] = []
    digest = environment.get("dataset_sha256")
    for other in dict.fromkeys([*runs, *all_runs()]):
        if algo_of(other) != "bc" or other == run or algo_of(run) == "bc" or not digest or found:
            continue
        with suppress(GqError):
            if read_json(other / "environment.json").get("dataset_sha256") == digest:
                found += measured_baseline(read_evaluations(other).of(choose_checkpoint(other, "best")))
    if data:
        name = f"the best tenth of the data ({data.top_episodes:,} episodes)"
        found.append(Baseline(name=name, return_mean=data.top_mean, return_ci95=None, is_policy=False))
    return found


def measured_baseline(recorded: Evaluations) -> list[Baseline]:
    """Return a run of behaviour cloning as a baseline, if it was evaluated."""
    if not (row := choose(recorded.rows, recorded.ways(None), None)):
        return []
    summary = row.summary(None)
    name = f"behaviour cloning ({recorded.run.name})"
    return [Baseline(name=name, return_mean=summary.return_mean, return_ci95=summary.return_ci95, is_policy=True)]


def commands_of(
    run: Path, settings: dict[str, object], environment: dict[str, Any], best: CheckpointFacts | None
) -> list[tuple[str, str]]:
    """Return what to type to do it all again."""
    name = shlex.quote(str(run))
    train = repeat_command(settings, environment, ["--config", str(run / "config.toml"), "--out", "NEW"])
    num = max((len(measure.episodes) for measure in best.measures if measure.is_own), default=0) if best else 0
    found = [("Train it again", train), ("Evaluate it", f"gq eval {name} --episodes {num or NUM_EPISODES}")]
    return [*found, ("Film it", f"gq render {name}"), ("This report", f"gq report {name}")]
