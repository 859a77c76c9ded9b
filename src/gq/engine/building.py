"""From a configuration to a model, a loss and a policy, and back from a checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from gq.algos import bc, dt
from gq.algos.supervised import SupervisedLearner, num_valid_steps, num_windows
from gq.config import BCConfig, DTConfig
from gq.data.sampler import WindowSampler
from gq.data.trajectories import Trajectories
from gq.engine.checkpoint import choose_checkpoint, load_checkpoint
from gq.engine.precision import Compute, choose_compute
from gq.engine.runs import read_config
from gq.envs.tasks import resolve_task
from gq.errors import GqError
from gq.evaluation.rollout import Policy
from gq.models.decision_transformer import DecisionTransformer
from gq.models.mlp import ObservationMLP


def build_model(
    config: DTConfig | BCConfig, observation_dim: int, action_dim: int
) -> DecisionTransformer | ObservationMLP:
    """Return the configured model with fresh weights."""
    if isinstance(config, DTConfig):
        return DecisionTransformer(config.model, observation_dim=observation_dim, action_dim=action_dim)
    return ObservationMLP(config.model, observation_dim=observation_dim, action_dim=action_dim)


def build_learner(config: DTConfig | BCConfig, trajectories: Trajectories, compute: Compute) -> SupervisedLearner:
    """Return the learner of a configuration with fresh weights, the data on the device."""
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
    model.to(compute.device)
    sampler = WindowSampler(
        trajectories.best(config.data.top_fraction),
        config.model.context_length,
        device=compute.device,
        seed=config.train.seed,
        delayed=config.data.mode == "delayed",
        backward=isinstance(config, BCConfig),
    )
    is_dt = isinstance(config, DTConfig)
    return SupervisedLearner(
        model,
        dt.action_loss if is_dt else bc.action_loss,
        sampler,
        config.optim,
        config.train,
        autocast=compute.autocast,
        num_terms=num_valid_steps if is_dt else num_windows,
    )


def build_policy(config: DTConfig | BCConfig, model: nn.Module, compute: Compute) -> Policy:
    """Return the policy that acts with a model."""
    if isinstance(model, DecisionTransformer):
        return dt.DTPolicy(model, autocast=compute.autocast, delayed=config.data.mode == "delayed")
    assert isinstance(model, ObservationMLP)
    return bc.BCPolicy(model, autocast=compute.autocast)


@dataclass(frozen=True)
class LoadedRun:
    """A trained policy with everything known about it."""

    run: Path
    checkpoint: Path
    config: DTConfig | BCConfig
    model: nn.Module
    policy: Policy
    state: dict[str, Any]


def load_run(run: Path, checkpoint: str | Path = "best", *, device: str = "auto") -> LoadedRun:
    """Load a run's policy; needs neither its dataset nor the machine it was trained on.

    Args:
        checkpoint: `best`, `last`, a step number, or a checkpoint folder.

    Raises:
        UsageError: no such checkpoint, or the device is not available.
        GqError: the checkpoint is damaged or does not fit the configuration.
    """
    config = read_config(run)
    folder = checkpoint if isinstance(checkpoint, Path) else choose_checkpoint(run, checkpoint)
    compute = choose_compute(device, config.train.precision)
    loaded = load_checkpoint(folder)
    try:
        observation_dim = len(loaded.model["scaling.observation_mean"])
        action_dim = len(loaded.model["scaling.action_low"])
        model = build_model(config, observation_dim, action_dim)
        model.load_state_dict(loaded.model)
        model.to(compute.device)
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise GqError(
            f"{folder} does not fit {run / 'config.toml'}: {reason}", hint="was one of them edited?"
        ) from None
    return LoadedRun(run, folder, config, model.eval(), build_policy(config, model, compute), loaded.state)
