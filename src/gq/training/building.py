"""From a configuration and its data to what learns from them: where the data lie, how updates are run, the learner."""

from dataclasses import dataclass

import numpy as np
from torch import nn

from gq.algos.captured import Program
from gq.algos.supervised import Execution, SupervisedLearner
from gq.algos.td3bc import TD3BCLearner
from gq.config import OfflineConfig, TD3BCConfig, TrainedConfig
from gq.data.returns import suggested_scale
from gq.data.trajectories import Trajectories
from gq.data.transitions import TransitionSampler
from gq.data.windows import WHOLE, Share, StreamingSampler, WindowSampler, is_to_be_streamed
from gq.errors import UsageError
from gq.models.decision_transformer import TrajectoryTransformer
from gq.models.transformer import recompute
from gq.policies.algorithms import ALGORITHMS, build_model
from gq.policies.compute import Compute, choose_program
from gq.training.processes import Processes, is_to_be_sharded, shard

# Up to this many parameters, a GPU is done with an update as soon as the host has launched it, and logged the last one.
LAUNCH_BOUND = 2_000_000
BURST = 10  # updates in one graph then
MIN_STEPS = 500  # fewer updates do not win back the minute or so that compiling takes


@dataclass(frozen=True)
class Placement:
    """On what a run is computed and how; decided once, before there is a folder, since it may refuse."""

    compute: Compute
    is_streamed: bool  # the data stay in host memory or in their file
    program: Program  # of updates


def choose_placement(
    config: OfflineConfig, trajectories: Trajectories, compute: Compute, *, num_processes: int = 1
) -> Placement:
    """Decide where the data lie and how updates are run.

    Raises:
        UsageError: something is asked for and not possible.
    """
    if isinstance(config, TD3BCConfig):
        refuse_meaningless(config, num_processes)
    takes_windows = not isinstance(config, TD3BCConfig)
    is_streamed = takes_windows and is_to_be_streamed(config.data.placement, trajectories, compute.device)
    few = f"{config.train.steps} updates are too few to compile" if config.train.steps < MIN_STEPS else None
    few = few if takes_windows else "there is nothing to fuse in so small networks"
    return Placement(compute, is_streamed, choose_update_program(config, compute, num_processes, unprofitable=few))


def refuse_meaningless(config: TD3BCConfig, num_processes: int) -> None:
    """Raise UsageError for settings of sequence models that mean nothing to an algorithm with a critic."""
    if num_processes > 1:
        raise UsageError("td3bc trains in one process", hint="start it without torchrun: its networks are small")
    train = config.train
    wrong = {
        "data.mode": config.data.mode != "normal",
        "data.placement": config.data.placement == "stream",
        "optim.optimizer": config.optim.optimizer != "adamw",
        "train.num_micro_batches": train.num_micro_batches != 1,
        "train.checkpoint_activations": train.checkpoint_activations,
        "train.parallel": train.parallel == "sharded",
        "train.compile": train.compile == "full",
        "train.precision": train.precision == "bfloat16",
    }
    if key := next((key for key, is_wrong in wrong.items() if is_wrong), None):
        raise UsageError(f"{key} cannot be changed for td3bc", hint=f"omit --set {key}")


def choose_update_program(
    config: TrainedConfig, compute: Compute, num_processes: int, *, unprofitable: str | None = None
) -> Program:
    """Decide how updates are run: as one graph each, unless several processes share them.

    Raises:
        UsageError: what is asked for is not possible.
    """
    obstacle = "several processes share each update" if num_processes > 1 else None
    return choose_program(config.train.compile, compute.device, obstacle=obstacle, unprofitable=unprofitable)


def build_learner(
    config: OfflineConfig,
    trajectories: Trajectories,
    placement: Placement,
    processes: Processes | None = None,
) -> SupervisedLearner | TD3BCLearner:
    """Return the learner of a configuration with fresh weights, the data on the device.

    Args:
        processes: that train the model together; each learns from its share of every batch.
    """
    algorithm, model, device = ALGORITHMS[config.algo], build_model(config), placement.compute.device
    mean, std = trajectories.observation_statistics(1e-3 if isinstance(config, TD3BCConfig) else 1e-6)
    if isinstance(config, TD3BCConfig) and config.model.observations == "raw":
        mean, std = np.zeros_like(mean), np.ones_like(std)
    scale = config.data.return_scale
    model.scaling.set(  # type: ignore[operator, union-attr]
        observation_mean=mean,
        observation_std=std,
        action_low=np.array(config.environment.action_low, np.float32),
        action_high=np.array(config.environment.action_high, np.float32),
        return_scale=suggested_scale(trajectories.returns) if scale == "auto" else scale,
    )
    if isinstance(config, TD3BCConfig):
        return _build_value_learner(config, model, trajectories, placement)
    assert algorithm.build_learner
    if config.train.checkpoint_activations:
        if not isinstance(model, TrajectoryTransformer):
            raise UsageError("train.checkpoint_activations is for transformers", hint="omit it")
        recompute(model.backbone.blocks, is_random=model.config.dropout > 0)  # type: ignore[arg-type]
    num_processes = processes.size if processes else 1
    if is_to_be_sharded(model, config.train, device, num_processes):
        shard(model, device)
    model.to(device)
    sampler = (StreamingSampler if placement.is_streamed else WindowSampler)(
        trajectories.best(config.data.top_fraction),
        config.model.context_length,
        device=device,
        seed=config.train.seed,
        delayed=config.data.mode == "delayed",
        backward=algorithm.ends_windows,
        share=Share(processes.rank, processes.size) if processes else WHOLE,
    )
    is_small = sum(parameter.numel() for parameter in model.parameters()) <= LAUNCH_BOUND
    execution = Execution(
        autocast=placement.compute.autocast,
        average=processes.average if processes and num_processes > 1 else None,
        program=placement.program,
        burst=BURST if is_small else 1,
    )
    return algorithm.build_learner(config, model, sampler, execution)


def _build_value_learner(
    config: TD3BCConfig, model: nn.Module, trajectories: Trajectories, placement: Placement
) -> TD3BCLearner:
    """Return the learner of an algorithm with a critic, its transitions in the units of the model's networks."""
    build, device = ALGORITHMS[config.algo].build_value_learner, placement.compute.device
    assert build
    sampler = TransitionSampler(
        trajectories.best(config.data.top_fraction),
        model.scaling,  # type: ignore[arg-type]
        device=device,
        seed=config.train.seed,
        reward_scale=config.critic.reward_scale,
    )
    return build(config, model.to(device), sampler, Execution(program=placement.program))
