"""From a configuration and its data to what learns from them: where the data lie, what is compiled, the learner."""

from dataclasses import dataclass

import numpy as np
import torch

from gq.algos.supervised import Execution, SupervisedLearner
from gq.config import OfflineConfig
from gq.data.trajectories import Trajectories
from gq.data.windows import WHOLE, Share, StreamingSampler, WindowSampler, is_to_be_streamed
from gq.errors import UsageError
from gq.models.decision_transformer import TrajectoryTransformer
from gq.models.transformer import recompute
from gq.policies.algorithms import ALGORITHMS, build_model
from gq.policies.compute import Compute, find_missing
from gq.training.processes import Processes, is_to_be_sharded, shard

# Up to this many parameters, a GPU is done with an update as soon as the host has launched it, and logged the last one.
LAUNCH_BOUND = 2_000_000
BURST = 10  # updates in one graph then
MIN_STEPS = 500  # fewer updates do not win back the minute or so that compiling takes


@dataclass(frozen=True)
class Compilation:
    """Whether updates are compiled, with the reason."""

    is_on: bool
    reason: str

    def __str__(self) -> str:
        return f"updates are {'compiled' if self.is_on else 'not compiled'}: {self.reason}"


@dataclass(frozen=True)
class Placement:
    """On what a run is computed; decided once, before there is a folder, since it may refuse."""

    compute: Compute
    is_streamed: bool  # the data stay in host memory or in their file
    compilation: Compilation


def choose_placement(
    config: OfflineConfig, trajectories: Trajectories, compute: Compute, *, num_processes: int = 1
) -> Placement:
    """Decide where the data lie and whether updates are compiled.

    Raises:
        UsageError: something is asked for and not possible.
    """
    is_streamed = is_to_be_streamed(config.data.placement, trajectories, compute.device)
    compilation = choose_compilation(config, compute.device, num_processes=num_processes, is_streamed=is_streamed)
    return Placement(compute, is_streamed, compilation)


def choose_compilation(
    config: OfflineConfig, device: torch.device, *, num_processes: int = 1, is_streamed: bool = False
) -> Compilation:
    """Decide whether to compile the updates of a run.

    Raises:
        UsageError: it is asked for and not possible.
    """
    wanted = config.train.compile
    if wanted == "off":
        return Compilation(False, "as asked")
    if obstacle := find_obstacle(config, device, num_processes=num_processes, is_streamed=is_streamed):
        if wanted == "on":
            raise UsageError(f"updates cannot be compiled: {obstacle}", hint="leave --set train.compile=on away")
        return Compilation(False, obstacle)
    if wanted == "on":
        return Compilation(True, "as asked")
    if device.type != "cuda":
        # Compiling takes minutes there, and gq.models.kernels has made the passes over memory few without it.
        return Compilation(False, f"it does not pay on {device.type}")
    if config.train.steps < MIN_STEPS:
        return Compilation(False, f"{config.train.steps} updates are too few for it")
    return Compilation(True, "the GPU replays each update as one graph")


def find_obstacle(config: OfflineConfig, device: torch.device, *, num_processes: int, is_streamed: bool) -> str | None:
    """Return why updates cannot be compiled, or None."""
    if not ALGORITHMS[config.algo].can_compile:
        return f"an update of {config.algo} also tunes its temperature, which waits for the update"
    if num_processes > 1:
        return "several processes share each update"
    if device.type == "cuda" and is_streamed:
        return "its windows come from outside the GPU"
    return find_missing(device)


def build_learner(
    config: OfflineConfig,
    trajectories: Trajectories,
    placement: Placement,
    processes: Processes | None = None,
) -> SupervisedLearner:
    """Return the learner of a configuration with fresh weights, the data on the device.

    Args:
        processes: that train the model together; each learns from its share of every batch.
    """
    algorithm, model, device = ALGORITHMS[config.algo], build_model(config), placement.compute.device
    assert algorithm.build_learner
    mean, std = trajectories.observation_statistics()
    model.scaling.set(  # type: ignore[operator, union-attr]
        observation_mean=mean,
        observation_std=std,
        action_low=np.array(config.environment.action_low, np.float32),
        action_high=np.array(config.environment.action_high, np.float32),
        return_scale=config.data.return_scale,
    )
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
        compiled=placement.compilation.is_on,
        burst=BURST if is_small else 1,
    )
    return algorithm.build_learner(config, model, sampler, execution)
