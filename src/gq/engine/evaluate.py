"""Evaluation of a trained run: fixed seeds, every episode counted, the result written beside the run."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from gq.engine.building import load_run
from gq.envs.engines import installed_engines, mismatch
from gq.envs.scores import Reference, reference_for
from gq.errors import UsageError
from gq.evaluation.recording import seeded_draws
from gq.evaluation.rollout import Step, roll_out
from gq.evaluation.statistics import Summary, summarise
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
    step: int
    seed: int
    stochastic: bool  # actions were sampled
    results: list[Summary]
    reference: Reference | None  # that the scores refer to
    versions: dict[str, str]
    warnings: list[str]  # of engine or environment versions that differ from those of the training or the data

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def evaluate(
    run: Path,
    *,
    targets: Sequence[float] = (),
    num_episodes: int = 20,
    checkpoint: str | Path = "best",
    seed: int = EVALUATION_SEED,
    stochastic: bool = False,
    device: str = "auto",
    watch: Callable[[Step], None] | None = None,
) -> Evaluation:
    """Run `num_episodes` episodes per target return, all at once; write evals/*.json under the run.

    Episode i of each target has seed `seed + i`, so targets and runs are compared on the same starts. With
    `stochastic`, an Online Decision Transformer's actions are sampled, from `seed` too.

    Raises:
        UsageError: no such checkpoint, a number of episodes below 1, a negative seed, or nothing to sample from.
        GqError: the checkpoint is damaged.
    """
    if seed < 0:
        raise UsageError(f"the seed {seed} is negative", hint="give 0 or more")
    if num_episodes < 1:
        raise UsageError(f"cannot evaluate {num_episodes} episodes", hint="ask for one at least, e.g. --episodes 20")
    loaded = load_run(run, checkpoint, device=device, stochastic=stochastic)
    config = loaded.config
    chosen = list(dict.fromkeys(targets or config.targets))
    if config.algo == "bc":
        chosen = chosen[-1:]  # behaviour cloning has no target
    pairs = [(seed + index, float(target)) for target in chosen for index in range(num_episodes)]
    with seeded_draws(seed):
        episodes = roll_out(
            loaded.policy, config.task, seeds=[p[0] for p in pairs], target_returns=[p[1] for p in pairs], watch=watch
        )
    origin = loaded.state.get("dataset", {}).get("origin", config.dataset)
    reference = reference_for(config.task, origin)
    evaluation = Evaluation(
        run=run.name,
        task=config.task,
        dataset=config.dataset,
        checkpoint=loaded.checkpoint.name,
        step=loaded.state["step"],
        seed=seed,
        stochastic=stochastic,
        results=summarise(episodes, reference),
        reference=reference,
        versions=versions(),
        warnings=version_warnings(loaded.state, config.task, config.dataset),
    )
    date = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    document = {**evaluation.to_dict(), "episodes": [asdict(episode) for episode in episodes]}
    write_json(run / "evals" / f"{date}.json", document)
    return evaluation


def version_warnings(state: dict[str, Any], task: str, dataset: str) -> list[str]:
    """Return a line, with the next step, for each way in which a checkpoint's numbers come from other versions.

    Args:
        state: the checkpoint's, with `versions` at training and, in `dataset`, those that the data record; what it does
            not have is not compared.
    """
    installed, found = installed_engines(), []
    if difference := mismatch(state.get("versions", {}), installed, task):
        found.append(f"the run was trained with {difference}: evaluate all runs that you compare with one version")
    if difference := mismatch(state.get("dataset", {}), installed, task):
        found.append(f"its data come from {difference}: see how they differ, gq repair {dataset} --replay 5")
    return found
