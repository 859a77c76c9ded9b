"""Evaluation of a trained run: fixed seeds, every episode counted, the result written beside the run."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from gq.config import TDMPC2Config
from gq.engine.building import LoadedRun, choose_modes, choose_targets, load_run
from gq.engine.runs import read_config
from gq.envs.engines import installed_engines, mismatch
from gq.envs.scores import Reference, reference_for
from gq.envs.tasks import resolve_task
from gq.errors import UsageError
from gq.evaluation.recording import seeded_draws
from gq.evaluation.rollout import Step, roll_out
from gq.evaluation.statistics import Episode, Summary, summarise
from gq.files import write_json
from gq.versions import versions

EVALUATION_SEED = 0


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
    results: list[Summary]  # of each target return, or of each mode
    reference: Reference | None  # that the scores refer to
    versions: dict[str, str]
    warnings: list[str]  # of engine or environment versions that differ from those of the training or the data

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; results that have a mode have no target return."""
        rows = [asdict(row) | ({"target_return": None} if row.mode else {}) for row in self.results]
        return asdict(self) | {"results": rows}


def evaluate(
    run: Path,
    *,
    targets: Sequence[float] = (),
    modes: Sequence[str] = (),
    num_episodes: int = 20,
    checkpoint: str | Path = "best",
    seed: int = EVALUATION_SEED,
    stochastic: bool = False,
    device: str = "auto",
    watch: Callable[[Step], None] | None = None,
) -> Evaluation:
    """Run `num_episodes` episodes per target return, or per mode, all at once; write evals/*.json under the run.

    Episode i of each target and mode has seed `seed + i`, so they and runs are compared on the same starts. With
    `stochastic`, an Online Decision Transformer's actions are sampled, from `seed` too, and TD-MPC2 acts as the
    original does when it evaluates.

    Args:
        modes: of TD-MPC2: `plan`, which is the default, and `policy` for the policy network alone.

    Raises:
        UsageError: no such checkpoint or mode, a number of episodes below 1, a negative seed, nothing to sample from,
            or targets for a run that takes none.
        GqError: the checkpoint is damaged.
    """
    if seed < 0:
        raise UsageError(f"the seed {seed} is negative", hint="give 0 or more")
    if num_episodes < 1:
        raise UsageError(f"cannot evaluate {num_episodes} episodes", hint="ask for one at least, e.g. --episodes 20")
    config = read_config(run)
    chosen_modes, chosen = choose_modes(config, modes), choose_targets(config, targets)
    if config.algo == "bc":
        chosen = chosen[-1:]  # behaviour cloning has no target
    pairs = [(seed + index, target) for target in chosen for index in range(num_episodes)]
    results: list[Summary] = []
    episodes: list[dict[str, Any]] = []
    for mode in chosen_modes:
        loaded = load_run(run, checkpoint, device=device, mode=mode, stochastic=stochastic)
        finished = play(loaded, pairs, watch)
        label = mode if isinstance(config, TDMPC2Config) else None
        results += summarise(finished, reference_of(loaded), mode=label)
        episodes += [asdict(episode) if label is None else describe(episode, label) for episode in finished]
    evaluation = report(loaded, results, seed=seed, stochastic=stochastic)
    date = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    write_json(run / "evals" / f"{date}.json", {**evaluation.to_dict(), "episodes": episodes})
    return evaluation


def play(
    loaded: LoadedRun, pairs: Sequence[tuple[int, float]], watch: Callable[[Step], None] | None, **options: Any
) -> list[Episode]:
    """Run one episode per pair of seed and target return; options are for the environments' constructor."""
    seeds, targets = [seed for seed, _ in pairs], [target for _, target in pairs]
    with seeded_draws(seeds[0]):
        return roll_out(loaded.policy, loaded.config.task, seeds=seeds, target_returns=targets, watch=watch, **options)


def describe(episode: Episode, mode: str) -> dict[str, Any]:
    """Return an episode as plain values, with the mode that it was run in instead of a target return."""
    return {"mode": mode} | {name: value for name, value in asdict(episode).items() if name != "target_return"}


def reference_of(loaded: LoadedRun) -> Reference | None:
    """Return what the scores of a run refer to."""
    return reference_for(loaded.config.task, loaded.state.get("dataset", {}).get("origin", loaded.config.dataset))


def report(loaded: LoadedRun, results: list[Summary], *, seed: int, stochastic: bool) -> Evaluation:
    """Return the results with all that they depend on."""
    config, state = loaded.config, loaded.state
    decisions, repeat = state.get("progress", {}).get("decisions"), resolve_task(config.task).action_repeat
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
        stochastic=stochastic,
        results=results,
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
