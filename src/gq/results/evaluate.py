"""Evaluation of a trained run: fixed seeds, every episode counted, the result written beside the run."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from gq.config import TransformerConfig
from gq.envs.engines import installed_engines, mismatch, versions
from gq.envs.scores import Reference, reference_for
from gq.errors import UsageError
from gq.files import sha256, write_json
from gq.paths import check_still_there
from gq.planning.acting import PlanningPolicy
from gq.planning.modes import Mode, label_of
from gq.policies.algorithms import ALGORITHMS
from gq.policies.correctors import fitting_corrector, known_correctors
from gq.policies.loading import Acting, LoadedRun, act_in, checkpoint_of, choose_modes, choose_targets, load_run
from gq.results.behaviour import SWEEP, DecisionLog, Frontier, ModeSummary, frontiers, plain, standard_modes
from gq.rollouts.episodes import EpisodeRequest, Start, Step, Watch, roll_out
from gq.rollouts.statistics import Episode, Summary, retention, summarise
from gq.runs.card import refresh_card
from gq.runs.folder import read_config

NUM_EPISODES = 20
Begin = Callable[[str, int, int], None]
LEFT_OUT = "its correctors were distilled from other weights than this checkpoint's: the sweep is without their modes"


@dataclass(frozen=True)
class Evaluation:
    """The results of one run; `to_dict` is the JSON document."""

    run: str
    task: str
    dataset: str
    checkpoint: str
    step: int  # updates so far
    decisions: int | None  # taken by then; None: not by this run, or not recorded
    frames: int | None
    action_repeat: int  # frames per decision, in which lengths are
    seed: int
    stochastic: bool  # actions were sampled
    context: str | None  # how a transformer moved on when its context was full
    results: Sequence[Summary]  # of each target return; ModeSummary of each mode
    frontiers: list[Frontier]  # of several modes
    corrector: str | None  # that a mode used
    reference: Reference | None  # that the scores refer to
    versions: dict[str, str]
    warnings: list[str]  # of what differs from the training, of the run or the corrector
    file: Path | None = None  # where it was written, with all episodes

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; results that have a mode have no target return."""
        rows = [asdict(row) | ({"target_return": None} if row.mode else {}) for row in self.results]
        document = asdict(self) | {"results": rows}
        return {name: value for name, value in document.items() if name != "file"}


def evaluate(
    run: Path,
    acting: Acting | None = None,
    episodes: EpisodeRequest | None = None,
    *,
    modes: Sequence[str] = (),
    watch: Watch | None = None,
    begin: Begin = lambda name, index, number: None,
) -> Evaluation:
    """Run all episodes of each target return, or of each mode, at once; write evals/*.json under the run.

    Episode i of each target and mode has seed `seed + i`, so they and runs are compared on the same starts. Where
    actions are sampled, an Online Decision Transformer's are drawn from that seed too, and TD-MPC2 acts as the original
    does when it evaluates.

    Args:
        modes: of a planner: several in place of `acting.mode`, and `sweep` for a list of them. Returns are compared
            with those of the baseline, which is `baseline` or `plan`, where it is among them.
        begin: called before each mode with its name, index and the number of all.

    Raises:
        UsageError: no such checkpoint, mode or corrector, a number of episodes below 1, a negative seed, nothing to
            sample from, no context, or targets for a run that takes none.
        GqError: the checkpoint or the corrector is damaged.
    """
    acting, config = acting or Acting(), read_config(run)
    episodes = (episodes or EpisodeRequest()).by_default(NUM_EPISODES)
    assert episodes.number is not None
    if episodes.seed < 0:
        raise UsageError(f"the seed {episodes.seed} is negative", hint="give 0 or more")
    if episodes.number < 1:
        raise UsageError(f"cannot evaluate {episodes.number} episodes", hint="ask for one at least, e.g. --episodes 20")
    asked = list(modes) or ([acting.mode] if acting.mode else [])
    if SWEEP in asked and acting.corrector is None:
        acting = replace(acting, corrector=corrector_for_sweep(run, acting))
    swept = standard_modes(corrected=acting.corrector is not None)
    names = [name for mode in asked for name in (swept if mode == SWEEP else [mode])]
    chosen_modes = choose_modes(config, names, acting.mode_options)
    targets = choose_targets(config, episodes.targets)
    if not ALGORITHMS[config.algo].takes_target:
        targets = targets[-1:]  # it does the same whatever the target
    starts = episodes.starts(targets)
    loaded = load_run(run, replace(acting, mode=None, mode_options={}))
    if not loaded.planner:
        finished = roll_out(loaded.policy, config.environment, starts, on_step=watch)
        evaluation = report(loaded, summarise(finished, reference_of(loaded)), seed=episodes.seed)
        return write(run, evaluation, [asdict(episode) for episode in finished])
    evaluation, rows = evaluate_modes(loaded, chosen_modes, starts, watch, begin)
    if SWEEP in asked and acting.corrector is None and known_correctors(run):
        evaluation = replace(evaluation, warnings=[*evaluation.warnings, LEFT_OUT])
    return write(run, evaluation, rows)


def corrector_for_sweep(run: Path, acting: Acting) -> str | None:
    """Return a corrector that was distilled from the very weights that act; None where there is none."""
    weights = checkpoint_of(run, acting) / "model.safetensors"
    return fitting_corrector(run, sha256(weights)) if known_correctors(run) and weights.is_file() else None


def evaluate_modes(
    run: LoadedRun, modes: Sequence[Mode], starts: Sequence[Start], watch: Watch | None, begin: Begin
) -> tuple[Evaluation, list[dict[str, Any]]]:
    """Evaluate a world model in each of the modes; return the results and all episodes as plain values."""
    is_on_cpu = next(run.model.parameters()).device.type == "cpu"
    # One at a time on a CPU, so that each decision has its own time; on a GPU that would take too long.
    ways = [act_in(run, mode, block_size=1 if is_on_cpu else 0) for mode in modes]
    results: list[ModeSummary] = []
    rows: list[dict[str, Any]] = []
    baseline: np.ndarray | None = None
    returns: list[np.ndarray] = []
    for index, way in enumerate(ways):
        assert way.mode
        begin(way.mode.name, index, len(ways))
        finished, log = play_and_log(way, starts, watch)
        results.append(summarise_mode(way, finished, log))
        rows += [describe(episode, results[-1]) for episode in finished]
        returns.append(np.array([episode.episode_return for episode in finished]))
        if baseline is None and is_baseline(way.mode):
            baseline = returns[-1]
    results = [with_retention(result, each, baseline) for result, each in zip(results, returns, strict=True)]
    evaluation = report(ways[-1], results, seed=starts[0].seed)
    used = [way for way in ways if way.corrector]
    evaluation = replace(
        evaluation,
        corrector=used[0].corrector.folder.name if used and used[0].corrector else None,
        warnings=[*evaluation.warnings, *(warning for way in used for warning in corrector_warnings(way))],
        frontiers=frontiers(results, None if baseline is None else float(baseline.mean())) if len(results) > 1 else [],
    )
    return evaluation, rows


def play_and_log(
    way: LoadedRun, starts: Sequence[Start], watch: Watch | None = None, **options: Any
) -> tuple[list[Episode], DecisionLog]:
    """Run one episode per start, and keep what happened in each decision; options as of `roll_out`."""
    policy, log = way.policy, DecisionLog()
    assert isinstance(policy, PlanningPolicy)

    def watch_and_log(step: Step) -> bool | None:
        log.steps.append(policy.events[-1])
        return watch(step) if watch else None

    return roll_out(policy, way.config.environment, starts, on_step=watch_and_log, **options), log


def summarise_mode(way: LoadedRun, episodes: Sequence[Episode], log: DecisionLog) -> ModeSummary:
    """Return the results of a mode, not yet compared with others."""
    assert way.mode
    policy = way.policy
    assert isinstance(policy, PlanningPolicy)
    (summary,) = summarise(episodes, reference_of(way), mode=way.mode.name)
    settings = asdict(way.mode) | {"plan_horizon": policy.planner.config.horizon}
    if way.corrector:
        settings["corrector"] = way.corrector.folder.name
    return ModeSummary(
        **plain(summary),
        **plain(log.behaviour(decided_at_once=policy.block_size)),
        label=label_of(way.mode, settings.get("corrector")),
        settings=settings,
        retention=None,
        retention_ci95=None,
    )


def is_baseline(mode: Mode) -> bool:
    """Whether a mode is to plan at every decision, as the planner is set."""
    return mode == Mode(name=mode.name)


def with_retention(result: ModeSummary, returns: np.ndarray, baseline: np.ndarray | None) -> ModeSummary:
    """Return a result with what it keeps of the baseline's return."""
    kept = retention(returns, baseline) if baseline is not None else None
    return replace(result, retention=kept[0], retention_ci95=kept[1]) if kept else result


def corrector_warnings(way: LoadedRun) -> list[str]:
    """Return a line for each way in which a mode uses a corrector that it was not trained for."""
    policy, corrector = way.policy, way.corrector
    assert isinstance(policy, PlanningPolicy)
    assert corrector
    assert way.mode
    name, horizon, found = corrector.folder.name, policy.planner.config.horizon, []
    if way.mode.between == "corrector" and way.mode.execution_horizon > corrector.execution_horizon:
        found.append(f"{way.mode.name} executes plans for longer than {name} learnt to: {corrector.execution_horizon}")
    if horizon != corrector.plan_horizon:
        found.append(
            f"{way.mode.name} makes plans of {horizon}, and {name} learnt from plans of {corrector.plan_horizon}"
        )
    return found


def write(run: Path, evaluation: Evaluation, episodes: list[dict[str, Any]]) -> Evaluation:
    """Write an evaluation with its episodes under a run, and its card again; return it."""
    date = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    file = run / "evals" / f"{date}.json"
    check_still_there(file, run)
    write_json(file, {**evaluation.to_dict(), "episodes": episodes})
    edited = refresh_card(run)
    return replace(evaluation, file=file, warnings=[*evaluation.warnings, *([edited] if edited else [])])


def describe(episode: Episode, result: ModeSummary) -> dict[str, Any]:
    """Return an episode as plain values, with the mode that it was run in instead of a target return."""
    values = {name: value for name, value in asdict(episode).items() if name != "target_return"}
    return {"mode": result.mode, "label": result.label} | values


def reference_of(loaded: LoadedRun) -> Reference | None:
    """Return what the scores of a run refer to."""
    return reference_for(
        loaded.config.environment, loaded.state.get("dataset", {}).get("origin", loaded.config.dataset)
    )


def report(loaded: LoadedRun, results: Sequence[Summary], *, seed: int) -> Evaluation:
    """Return the results with all that they depend on."""
    config, state = loaded.config, loaded.state
    decisions, repeat = state.get("progress", {}).get("decisions"), config.environment.action_repeat
    return Evaluation(
        run=loaded.run.name,
        task=config.task,
        dataset=config.dataset,
        checkpoint=loaded.checkpoint.name,
        step=state["step"],
        decisions=decisions,
        frames=None if decisions is None else decisions * repeat,
        action_repeat=repeat,
        seed=seed,
        stochastic=loaded.acting.stochastic,
        context=config.eval.context if isinstance(config, TransformerConfig) else None,
        results=results,
        frontiers=[],
        corrector=None,
        reference=reference_of(loaded),
        versions=versions(),
        warnings=version_warnings(state, config.task, config.dataset),
    )


def version_warnings(state: dict[str, Any], task: str, dataset: str) -> list[str]:
    """Return a line, with the next step, for each way in which a checkpoint's numbers come from other versions.

    Args:
        state: the checkpoint's, with `versions` at training and, in `dataset`, those that the data record; what it does
            not have is not compared.
    """
    installed, found = installed_engines(task), []
    if difference := mismatch(state.get("versions", {}), installed, task):
        found.append(f"the run was trained with {difference}: evaluate all runs that you compare with one version")
    if difference := mismatch(state.get("dataset", {}), installed, task):
        found.append(f"its data come from {difference}: see how they differ, gq repair {dataset} --replay 5")
    return found
