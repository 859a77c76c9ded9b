"""From a configuration to a model, a loss and a policy, and back from a checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from gq.algos import bc, dt
from gq.algos.odt import ODTLearner, ODTPolicy
from gq.algos.supervised import SupervisedLearner, num_valid_steps, num_windows
from gq.config import (
    BCConfig,
    DataRunConfig,
    DTConfig,
    FinetuneConfig,
    ODTConfig,
    OfflineConfig,
    TDMPC2Config,
    TrainedConfig,
    TransformerConfig,
)
from gq.data.trajectories import Trajectories
from gq.data.windows import WHOLE, Sampler, Share, StreamingSampler, WindowSampler, is_to_be_streamed
from gq.envs.tasks import resolve_task
from gq.errors import GqError, UsageError
from gq.files import sha256
from gq.models.config import Context
from gq.models.decision_transformer import DecisionTransformer, TrajectoryTransformer
from gq.models.mlp import ObservationMLP
from gq.models.stochastic_transformer import StochasticTransformer
from gq.models.transformer import recompute
from gq.models.world_config import discount_factor
from gq.models.world_model import WorldModel
from gq.planning.acting import PlanningPolicy
from gq.planning.modes import Mode, resolve_mode
from gq.planning.mppi import Planner
from gq.policies.compilation import find_missing
from gq.policies.compute import Compute, choose_compute
from gq.policies.correctors import LoadedCorrector, find_corrector, load_corrector
from gq.rollouts.episodes import Policy
from gq.runs.checkpoint import choose_checkpoint, fill, load_checkpoint
from gq.runs.folder import read_config
from gq.training.processes import Processes
from gq.training.sharding import is_to_be_sharded, shard

MODE_OPTIONS = {  # the fields of a mode that have an option of their own
    "plan_horizon": "--spec-plan-horizon",
    "execution_horizon": "--spec-exec-horizon",
    "threshold": "--spec-mismatch-threshold",
    "history_length": "--history-len",
}

# Up to so many parameters, a GPU is done with an update as soon as the host has launched it, and logged the last one.
LAUNCH_BOUND = 2_000_000
BURST = 10  # updates in one graph then


def build_model(
    config: DataRunConfig, observation_dim: int, action_dim: int
) -> DecisionTransformer | StochasticTransformer | ObservationMLP:
    """Return the configured model with fresh weights."""
    dims = {"observation_dim": observation_dim, "action_dim": action_dim}
    if isinstance(config, DTConfig):
        return DecisionTransformer(config.model, **dims)
    if isinstance(config, ODTConfig | FinetuneConfig):
        return StochasticTransformer(config.model, **dims)
    assert isinstance(config, BCConfig)
    return ObservationMLP(config.model, **dims)


def build_world_model(config: TDMPC2Config) -> WorldModel:
    """Return the configured world model with fresh weights; it predicts terminations where the task has them."""
    task = resolve_task(config.task)
    return WorldModel(
        config.model,
        observation_dim=task.observation_dim,
        action_dim=task.action_dim,
        episodic=task.can_terminate,
    )


def build_planner(config: TDMPC2Config, model: WorldModel, compute: Compute) -> Planner:
    """Return what plans with a model that is on the device already."""
    return Planner(
        model,
        config.planner,
        discount=discount_of(config),
        bfloat16=compute.bfloat16,
        compiled=compute.device.type == "cuda" and find_missing(compute.device) is None,
    )


def discount_of(config: TDMPC2Config) -> float:
    """Return the discount per decision."""
    return config.train.discount or discount_factor(resolve_task(config.task).max_episode_steps)


def build_learner(
    config: OfflineConfig,
    trajectories: Trajectories,
    compute: Compute,
    processes: Processes | None = None,
    *,
    compiled: bool = False,
    captured: bool = False,
) -> SupervisedLearner:
    """Return the learner of a configuration with fresh weights, the data on the device.

    Args:
        processes: that train the model together; each learns from its share of every batch.
        compiled: compile the updates; see `gq.policies.compilation`.
        captured: replay them as graphs on a GPU, compiled or not.
    """
    task = resolve_task(config.task)
    model = build_model(config, task.observation_dim, task.action_dim)
    mean, std = trajectories.observation_statistics()
    bound = np.full(task.action_dim, task.action_bound, np.float32)
    model.scaling.set(
        observation_mean=mean,
        observation_std=std,
        action_low=-bound,
        action_high=bound,
        return_scale=config.data.return_scale,
    )
    if config.train.checkpoint_activations:
        if not isinstance(model, TrajectoryTransformer):
            raise UsageError("train.checkpoint_activations is for transformers", hint="leave it away")
        recompute(model.backbone.blocks, is_random=model.config.dropout > 0)  # type: ignore[arg-type]
    num_processes = processes.size if processes else 1
    if is_to_be_sharded(model, config.train, compute.device, num_processes):
        shard(model, compute.device)
    model.to(compute.device)
    average = processes.average if processes and num_processes > 1 else None
    streams = is_to_be_streamed(config.data.placement, trajectories, compute.device)
    sampler = (StreamingSampler if streams else WindowSampler)(
        trajectories.best(config.data.top_fraction),
        config.model.context_length,
        device=compute.device,
        seed=config.train.seed,
        delayed=config.data.mode == "delayed",
        backward=isinstance(config, BCConfig),
        share=Share(processes.rank, processes.size) if processes else WHOLE,
    )
    if isinstance(model, StochasticTransformer):
        return build_odt_learner(config, model, sampler, compute, average)
    is_dt = isinstance(config, DTConfig)
    is_small = sum(parameter.numel() for parameter in model.parameters()) <= LAUNCH_BOUND
    action_loss = dt.action_loss if is_dt else bc.action_loss
    return SupervisedLearner(
        model,
        lambda model, batch: {"loss": action_loss(model, batch)},
        sampler,
        config.optim,
        config.train,
        autocast=compute.autocast,
        num_terms=num_valid_steps if is_dt else num_windows,
        average=average,
        compiled=compiled,
        captured=captured or compiled,
        burst=BURST if is_small else 1,
    )


def build_odt_learner(
    config: TrainedConfig,
    model: StochasticTransformer,
    sampler: Sampler,
    compute: Compute,
    average: Callable[[Sequence[Tensor]], None] | None = None,
) -> ODTLearner:
    """Return the learner of an Online Decision Transformer that is on the device already."""
    assert isinstance(config, ODTConfig | FinetuneConfig)
    return ODTLearner(
        model, sampler, config.optim, config.train, config.entropy, autocast=compute.autocast, average=average
    )


def choose_modes(config: TrainedConfig, asked: Sequence[str], **changes: Any) -> list[Mode]:
    """Return how a run is to act, each way once: as asked, else in the way that all runs can.

    Args:
        changes: fields of the modes that execute plans for several decisions; those that are None change nothing.

    Raises:
        UsageError: there is no such mode, a change that concerns none of them, or the run has no planner, so that it
            acts in one way only.
    """
    changes = {name: value for name, value in changes.items() if value is not None}
    if (asked or changes) and not isinstance(config, TDMPC2Config):
        raise UsageError(f"{config.algo} runs have no planner and act in one way only", hint="leave --mode away")
    modes = [resolve_mode(name) for name in dict.fromkeys(asked or ["plan"])]
    for name in changes:
        if not any(concerns(mode, name) for mode in modes):
            raise UsageError(f"{MODE_OPTIONS[name]} changes none of these modes", hint="for example --mode spec3")
    return [
        resolve_mode(mode.name, **{name: value for name, value in changes.items() if concerns(mode, name)})
        for mode in modes
    ]


def concerns(mode: Mode, name: str) -> bool:
    """Tell whether a field of a mode is one that options change, and that makes a difference."""
    if name == "threshold":
        return mode.trigger != "never"
    if name == "history_length":
        return mode.between in ("corrector", "beam")
    return mode.execution_horizon > 1 and not (name == "execution_horizon" and mode.between == "beam")


def choose_targets(config: TrainedConfig, asked: Sequence[float]) -> list[float]:
    """Return the target returns of a run, each once: as asked, else its own; one that means nothing if it takes none.

    Raises:
        UsageError: some are asked of a planner, which would ignore them.
    """
    if asked and isinstance(config, TDMPC2Config):
        raise UsageError(f"{config.algo} runs plan for all they can get, not a target", hint="leave --target away")
    return list(dict.fromkeys(float(target) for target in asked or config.targets))


def build_policy(config: TrainedConfig, model: nn.Module, compute: Compute, *, stochastic: bool = False) -> Policy:
    """Return the policy that acts with a model, a world model's by planning at every decision.

    Raises:
        UsageError: `stochastic` of a model without a distribution to sample from.
    """
    if isinstance(config, TDMPC2Config):
        assert isinstance(model, WorldModel)
        planner = build_planner(config, model, compute)
        return build_planning_policy(config, planner, resolve_mode("plan"), stochastic=stochastic)
    how: Any = {
        "autocast": compute.autocast,
        "delayed": config.data.mode == "delayed",
        "context": config.eval.context,
    }
    if isinstance(model, StochasticTransformer):
        return ODTPolicy(model, **how, stochastic=stochastic)
    if stochastic:
        raise UsageError(f"a {config.algo} policy has no distribution to sample from", hint="leave --stochastic away")
    if isinstance(model, DecisionTransformer):
        return dt.DTPolicy(model, **how)
    assert isinstance(model, ObservationMLP)
    return bc.BCPolicy(model, autocast=compute.autocast)


def build_planning_policy(
    config: TDMPC2Config,
    planner: Planner,
    mode: Mode,
    corrector: LoadedCorrector | None = None,
    *,
    stochastic: bool = False,
    block_size: int = 0,
) -> PlanningPolicy:
    """Return the policy that acts with a planner; see there."""
    return PlanningPolicy(
        planner,
        action_bound=resolve_task(config.task).action_bound,
        mode=mode,
        corrector=corrector.corrector if corrector else None,
        stochastic=stochastic,
        block_size=block_size,
    )


@dataclass(frozen=True)
class LoadedRun:
    """A trained policy with everything known about it."""

    run: Path
    checkpoint: Path
    config: TrainedConfig
    model: nn.Module
    policy: Policy
    state: dict[str, Any]
    planner: Planner | None = None  # of a world model
    mode: Mode | None = None  # in which it acts
    corrector: LoadedCorrector | None = None  # that the mode needs


def load_run(
    run: Path,
    checkpoint: str | Path = "best",
    *,
    device: str = "auto",
    mode: Mode | str = "plan",
    corrector: str | None = None,
    stochastic: bool = False,
    context: Context | None = None,
) -> LoadedRun:
    """Load a run's policy; needs neither its dataset nor the machine it was trained on.

    Args:
        checkpoint: `best`, `last`, a step number, or a checkpoint folder.
        mode: how a world model acts.
        corrector: the name or path of what corrects plans, for modes that need it; default: the run's own.
        stochastic: sample actions instead of taking the distribution's mode, or the plan's mean.
        context: how a transformer moves on when its context is full; default: as the run's `eval.context` says.

    Raises:
        UsageError: no such checkpoint, mode or corrector, a policy that cannot be stochastic or has no context, or the
            device is not available.
        GqError: the checkpoint or the corrector is damaged or does not fit.
    """
    config = read_config(run)
    if context:
        config = with_context(config, context)
    folder = checkpoint if isinstance(checkpoint, Path) else choose_checkpoint(run, checkpoint)
    compute = choose_compute(device, config.train.precision)
    loaded = load_checkpoint(folder)
    try:
        model = fill(lambda: empty_model(config), loaded.model)
        model.to(compute.device)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise GqError(
            f"{folder} does not fit {run / 'config.toml'}: {reason}", hint="was one of them edited?"
        ) from None
    settings = resolve_mode(mode) if isinstance(mode, str) else mode
    policy = build_policy(config, model.eval(), compute, stochastic=stochastic)
    found = LoadedRun(run, folder, config, model, policy, loaded.state)
    if isinstance(policy, PlanningPolicy):
        return act_in(replace(found, planner=policy.planner), settings, corrector=corrector, stochastic=stochastic)
    if settings != resolve_mode("plan"):
        raise UsageError(f"a {config.algo} policy has no planner to do without", hint="leave --mode away")
    return found


def with_context(config: TrainedConfig, context: Context) -> TrainedConfig:
    """Return a run's configuration with another `eval.context`.

    Raises:
        UsageError: the run is not of a transformer.
    """
    if not isinstance(config, TransformerConfig):
        raise UsageError(f"a {config.algo} policy has no context that grows", hint="leave --context away")
    return replace(config, eval=replace(config.eval, context=context))


def act_in(
    loaded: LoadedRun, mode: Mode, *, corrector: str | None = None, stochastic: bool = False, block_size: int = 0
) -> LoadedRun:
    """Return a run of a world model with the same planner, acting in another mode.

    Args:
        block_size: decisions that are computed at a time, see `PlanningPolicy`.

    Raises:
        UsageError: the mode needs a corrector, and there is none, or not for these weights.
        GqError: the corrector is damaged.
    """
    assert loaded.planner
    assert isinstance(loaded.config, TDMPC2Config)
    found = load_corrector_for(loaded, mode, corrector)
    policy = build_planning_policy(
        loaded.config, loaded.planner, mode, found, stochastic=stochastic, block_size=block_size
    )
    return replace(loaded, policy=policy, mode=mode, corrector=found)


def load_corrector_for(loaded: LoadedRun, mode: Mode, name: str | None) -> LoadedCorrector | None:
    """Return the corrector of a mode; None where it needs none: a beam search takes the one that it is given."""
    if mode.between != "corrector" and not (mode.between == "beam" and name):
        return None
    teacher = sha256(loaded.checkpoint / "model.safetensors")
    device = next(loaded.model.parameters()).device
    return load_corrector(find_corrector(loaded.run, name), teacher, device=device)


def empty_model(config: TrainedConfig) -> nn.Module:
    """Return the configured model of any algorithm with fresh weights."""
    if isinstance(config, TDMPC2Config):
        return build_world_model(config)
    task = resolve_task(config.task)
    return build_model(config, task.observation_dim, task.action_dim)
