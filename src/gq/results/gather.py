"""The facts of a report from run folders: what is on record, and episodes of our own where that does not do."""

import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from gq import __version__
from gq.config import environment_of
from gq.datasets.loading import load_dataset
from gq.envs.scores import Reference, reference_for
from gq.envs.tasks import Task
from gq.errors import GqError
from gq.paths import checkpoint_folders, json_or_empty, read_json, read_settings, section
from gq.results.curves import Learning, action_repeat, read_learning
from gq.results.facts import Baseline, CheckpointFacts, DataFacts, Facts, Measure, RunFacts, group_runs
from gq.results.history import read_settings as read_flat_settings
from gq.results.targets import thinned
from gq.rollouts.episodes import EpisodeRequest, Step
from gq.runs.bound import check_run
from gq.runs.checkpoint import choose_checkpoint
from gq.runs.evaluations import (
    EvaluationRow,
    Evaluations,
    Way,
    read_evaluations,
    recorded_origin,
    selection_text,
)
from gq.runs.folder import download_command, repeat_command
from gq.runs.state import state_of

NUM_EPISODES = 20
ENOUGH_EPISODES = 5  # on record: fewer were a trial
NUM_BINS = 32
QUANTILES = (0, 10, 25, 50, 75, 90, 99, 100)
TOP_FRACTION = 0.1  # of all rows, as `gq train bc` takes them by default
MIME = {".mp4": "video/mp4", ".gif": "image/gif"}
VIDEO_BYTES = 3_000_000  # of all videos of a page, so that it stays below 5 MB when they are written as text


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What a report may do to get its facts."""

    num_episodes: int | None = None  # per target; None: as on record, at least 5, else 20
    rollouts: bool = True
    begin: Callable[[Path, str], None] = lambda run, what: None
    watch: Callable[[Step], None] = lambda step: None


def gather(runs: Sequence[Path], options: ReportOptions) -> Facts:
    """Return the facts of a report.

    Raises:
        GqError: a run's configuration or a checkpoint that is to be evaluated is damaged, or a video cannot be made.
    """
    data: dict[tuple[str, str], DataFacts | str] = {}  # read once, or why there is none
    found = [_gather_run(run, runs, options, data) for run in runs]
    learning: dict[str, Learning] = {}
    notes: list[str] = []
    for facts in found:
        try:
            learning[str(facts.path)] = read_learning([facts.path])
        except GqError as error:
            facts.notes.append(f"no learning curve: {error}")
    if len(runs) > 1 and (joint := _all_curves([one for one in found if str(one.path) in learning], notes)):
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


def _all_curves(runs: Sequence[RunFacts], notes: list[str]) -> Learning | None:
    if len(runs) < 2:
        return None
    try:
        return read_learning([run.path for run in runs])
    except GqError as error:
        notes.append(f"learning curves are shown run by run: {error}")
        return None


def _gather_run(
    run: Path, runs: Sequence[Path], options: ReportOptions, known: dict[tuple[str, str], DataFacts | str]
) -> RunFacts:
    settings = read_flat_settings(run)
    notes: list[str] = []
    environment = json_or_empty(run / "environment.json")
    if not environment:
        notes.append("environment.json is missing: versions and hashes of the training are unknown")
    state = state_of(run, read_settings(run))
    if state != "finished":
        notes.append(f"the training is {state}: figures are of what there is so far")
    task, dataset = str(settings["task"]), str(settings.get("data.dataset", ""))
    made = environment_of(read_settings(run))
    try:
        check_run(run, choose_checkpoint(run, "best"))
    except GqError as error:
        notes.append(f"{error}: what follows is of the checkpoint")
    best, last = _gather_checkpoints(run, options, notes)
    data = None
    if dataset:
        if (dataset, task) not in known:
            known[dataset, task] = _data_or_reason(dataset, made)
        found = known[dataset, task]
        if isinstance(found, str):
            notes.append(found)
        else:
            data = found
            if environment.get("dataset_sha256") not in (None, data.fingerprint):
                notes.append(f"{dataset} has changed since the training: its returns are not those of the run's data")
    return RunFacts(
        name=run.name,
        path=run,
        state=state,
        settings=settings,
        config_text=(run / "config.toml").read_text(encoding="utf-8"),
        environment=environment,
        best=best,
        last=last,
        selection=selection_text(run, settings),
        reference=reference_for(made, recorded_origin(run, dataset)),
        baselines=_find_baselines(run, runs, environment, data),
        data=data,
        video=_choose_video(run, VIDEO_BYTES // len(runs), notes),
        commands=_commands_of(run, settings, environment, best),
        notes=notes,
    )


def _data_or_reason(dataset: str, task: Task | None) -> DataFacts | str:
    try:
        trajectories = load_dataset(dataset, environment=task)
    except GqError as error:
        return f"the data's own returns are missing: {error}"
    returns = trajectories.returns
    best = trajectories.best(TOP_FRACTION).returns
    counts, edges = np.histogram(returns, bins=NUM_BINS)
    return DataFacts(
        dataset=dataset,
        num_episodes=trajectories.num_episodes,
        num_transitions=trajectories.num_transitions,
        return_mean=float(returns.mean()),
        return_std=float(returns.std()),
        quantiles={f"p{q}": float(np.percentile(returns, q)) for q in QUANTILES},
        edges=edges.tolist(),
        counts=counts.tolist(),
        top_mean=float(best.mean()),
        top_episodes=len(best),
        fingerprint=trajectories.sha256(),
        returns=thinned(returns),
    )


def _choose_video(run: Path, max_bytes: int, notes: list[str]) -> Path | None:
    files = [path for path in (run / "videos").glob("*") if path.suffix.lower() in MIME and path.is_file()]
    fitting = [path for path in files if 0 < path.stat().st_size <= max_bytes]
    if files and not fitting:
        limit = f"{max_bytes / 1e6:.1f} MB"
        notes.append(f"its videos are above {limit}, too large to embed; gq report --video records a small one")
    return max(fitting, key=lambda path: (path.stat().st_mtime_ns, path), default=None)


def _gather_checkpoints(
    run: Path, options: ReportOptions, notes: list[str]
) -> tuple[CheckpointFacts | None, CheckpointFacts | None]:
    if not checkpoint_folders(run):
        notes.append("there is no checkpoint yet, so nothing can be evaluated")
        return None, None
    best, last = choose_checkpoint(run, "best"), choose_checkpoint(run, "last")
    first = _gather_checkpoint(run, best, options, notes)
    return first, None if last == best else _gather_checkpoint(run, last, options, notes)


def _gather_checkpoint(run: Path, folder: Path, options: ReportOptions, notes: list[str]) -> CheckpointFacts:
    recorded = read_evaluations(run).of(folder)
    notes += recorded.problems
    ways = [recorded.ways(target) for target in recorded.targets or [None]]
    if options.rollouts and not all(_choose(recorded.rows, names, options.num_episodes) for names in ways):
        from gq.policies.loading import Acting
        from gq.results.evaluate import evaluate

        options.begin(run, f"evaluating {folder.name}")
        try:
            evaluate(run, Acting(checkpoint=folder), EpisodeRequest(options.num_episodes), watch=options.watch)
        except GqError as error:  # a page about several runs has to say so, and can still be made
            notes.append(f"{folder.name} cannot be evaluated: {error}")
        recorded = read_evaluations(run).of(folder)
    measures = [
        _one_measure(row, recorded.reference, is_own=True)
        for names in ways
        if (row := _choose(recorded.rows, names, options.num_episodes))
    ]
    if len(measures) < len(ways):
        wanted = f"{options.num_episodes or ENOUGH_EPISODES} episodes or more"
        command = f"gq eval {shlex.quote(str(run))} --checkpoint {int(folder.name[5:])}"
        notes.append(f"{folder.name} has no evaluation of {wanted}: {command}")
    own = {name for names in ways for name in names}
    for way in dict.fromkeys(row.way for row in recorded.rows):
        if way not in own and (row := _choose(recorded.rows, [way], None)):
            measures.append(_one_measure(row, recorded.reference, is_own=False))
    measures.sort(key=lambda measure: (measure.target is None, measure.target or 0.0))
    return CheckpointFacts(
        name=folder.name,
        progress=_read_progress(run, folder),
        measures=measures,
        model_sha256=_read_model_hash(folder),
    )


def _choose(rows: Sequence[EvaluationRow], names: Sequence[Way], num_episodes: int | None) -> EvaluationRow | None:
    enough = num_episodes or ENOUGH_EPISODES
    return next((row for row in rows if row.way in names and len(row.episodes) >= enough), None)


def _one_measure(row: EvaluationRow, reference: Reference | None, *, is_own: bool) -> Measure:
    return Measure(
        label=row.way.label,
        target=row.way.target,
        is_own=is_own,
        summary=row.summary(reference),
        episodes=list(row.episodes),
        versions=row.versions,
        source=row.file.name,
    )


def _read_progress(run: Path, folder: Path) -> dict[str, int]:
    found = {"updates": int(folder.name.removeprefix("step-"))}
    with suppress(GqError):
        progress = section(read_json(folder / "state.json"), "progress")
        if isinstance(decisions := progress.get("decisions"), int):
            repeat = action_repeat(str(read_flat_settings(run)["task"]))
            found |= {"decisions": decisions, "frames": decisions * repeat}
        if isinstance(steps := progress.get("environment_steps"), int):
            found["environment steps"] = steps
    return found


def _read_model_hash(folder: Path) -> str:
    try:
        return str(read_json(folder / "MANIFEST.json")["files"]["model.safetensors"]["sha256"])
    except (GqError, KeyError, TypeError):
        return "not on record"


def _find_baselines(
    run: Path, runs: Sequence[Path], environment: dict[str, Any], data: DataFacts | None
) -> list[Baseline]:
    from gq.paths import algo_of, all_runs

    found: list[Baseline] = []
    digest = environment.get("dataset_sha256")
    for other in dict.fromkeys([*runs, *all_runs()]):
        if algo_of(other) != "bc" or other == run or algo_of(run) == "bc" or not digest or found:
            continue
        with suppress(GqError):
            if read_json(other / "environment.json").get("dataset_sha256") == digest:
                found += _measured_baseline(read_evaluations(other).of(choose_checkpoint(other, "best")))
    if data:
        name = f"the best tenth of the data ({data.top_episodes:,} episodes)"
        found.append(Baseline(name=name, return_mean=data.top_mean, return_ci95=None, is_policy=False))
    return found


def _measured_baseline(recorded: Evaluations) -> list[Baseline]:
    if not (row := _choose(recorded.rows, recorded.ways(None), None)):
        return []
    summary = row.summary(None)
    name = f"behaviour cloning ({recorded.run.name})"
    return [Baseline(name=name, return_mean=summary.return_mean, return_ci95=summary.return_ci95, is_policy=True)]


def _commands_of(
    run: Path, settings: dict[str, object], environment: dict[str, Any], best: CheckpointFacts | None
) -> list[tuple[str, str]]:
    name = shlex.quote(str(run))
    train = repeat_command(settings, environment, ["--config", str(run / "config.toml"), "--out", "NEW"])
    num = max((len(measure.episodes) for measure in best.measures if measure.is_own), default=0) if best else 0
    data = download_command(str(settings.get("data.dataset", "")), environment)
    found = [("Get its data", data)] if data else []
    found += [("Train it again", train), ("Evaluate it", f"gq eval {name} --episodes {num or NUM_EPISODES}")]
    return [*found, ("Record a video", f"gq render {name}"), ("This report", f"gq report {name}")]
