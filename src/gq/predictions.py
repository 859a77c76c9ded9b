"""What training will take on a device, before anyone rents it: memory by part, the time of an update, how many devices.

An update's time is a roofline: every matrix product takes as long as its arithmetic or its numbers' way from memory,
whichever is longer; everything else takes its numbers' way. On a GPU, starting kernels overlaps with running them.
"""

from dataclasses import asdict, dataclass
from math import ceil
from typing import Literal

from gq.config import DTConfig, FinetuneConfig, ODTConfig
from gq.costs import BFLOAT16_BYTES, FLOAT32_BYTES, TOKENS_PER_STEP, kv_cache_bytes, parameter_formula
from gq.devices import CPU, Device
from gq.models import transformer_costs as costs
from gq.models.config import ModelConfig

Parallelism = Literal["replicated", "sharded"]

GPU_SHARE = 0.7  # of the peak, by large matrix products; an H100 was measured at 0.8
CPU_SHARE = 0.9  # of the products that were measured
GPU_BANDWIDTH_SHARE = 0.8  # of the peak
CPU_BANDWIDTH_SHARE = 0.6  # of what adding two arrays was measured at, the kindest kernel
LINK_SHARE = 0.75
GPU_LAUNCH_S = 6e-6  # by an eager program; a captured one needs a fifth
CPU_CALL_S = 4e-6
GPU_CONTEXT_BYTES = 10**9  # CUDA, its libraries' workspaces
RESIDENT_SHARE = 0.25  # of the memory that data may take; more are streamed
RESERVE = 0.05  # of the memory, lost between blocks

ADAM_BYTES_PER_PARAMETER = 8  # two moments
ROW_BYTES = 2 * costs.INT64_BYTES + FLOAT32_BYTES  # on the device, of a transition besides observation and action
# Passes over an update's numbers, each of four bytes per parameter: reading the gradients for their norm, scaling them
# (2), AdamW reading weight, gradient and two moments and writing all but the gradient (7), clearing (1).
OPTIMISER_PASSES = 11
# What kernels other than matrix products read and write in an update, over what is kept for the backward pass, by
# backbone and bfloat16: counted on eager programs.
EAGER_PASSES = {("qwen3", False): 10.3, ("qwen3", True): 15.0, ("gpt2", False): 6.7, ("gpt2", True): 9.7}
FORWARD_SHARE = 0.4  # of these in the forward pass
KERNELS_PER_BLOCK = {"qwen3": 120, "gpt2": 55}  # forward and backward, a little more with dropout and bfloat16
KERNELS_OUTSIDE = 120  # embeddings, heads, loss, batch, clipping, optimiser
DEVICE_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ASSUMED_TRANSITIONS = 1_000_000
NEARLY = 1.05  # a way that is this much slower is as good, if it is simpler


@dataclass(frozen=True, kw_only=True)
class MemoryPrediction:
    """Bytes on each device."""

    weights: int  # float32
    gradients: int
    optimizer: int
    copies: int  # of weights and gradients, see copied_bytes
    activations: int
    data: int  # the dataset; 0 if it is too large to lie there and streams
    kv_cache: int  # of the evaluation's episodes
    context: int  # of the device's own programs

    @property
    def total(self) -> int:
        """The sum; evaluation comes between updates, so that its cache takes the activations' place."""
        parts = asdict(self)
        num_bytes: int = sum(parts.values()) - min(self.activations, self.kv_cache)
        return num_bytes


@dataclass(frozen=True, kw_only=True)
class StepPrediction:
    """Seconds of an update, by part. On a GPU launching overlaps with computing, and so does what shards exchange."""

    products: float
    memory: float  # all that is bound by bandwidth besides the optimiser
    optimizer: float
    launches: float
    exchange: float
    total: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What training one model takes on so many devices of a kind."""

    size: str
    parameters: int
    parallel: Parallelism  # train.parallel: weights on every device, or a share of them on each
    checkpoint_activations: bool  # train.checkpoint_activations
    bfloat16: bool
    world_size: int
    batch_size: int  # windows in an update, over all devices
    windows_per_device: int  # computed at once
    num_micro_batches: int
    memory: MemoryPrediction
    memory_bytes: int  # of it all
    device_memory_bytes: int
    fits: bool
    step: StepPrediction
    flops: int  # of an update, over all devices
    tokens_per_second: float
    mfu: float  # of the peak
    steps: int
    training_seconds: float  # of all steps, without evaluation


def predict(
    config: DTConfig | ODTConfig | FinetuneConfig,
    device: Device,
    *,
    observation_dim: int,
    action_dim: int,
    world_size: int = 1,
    num_transitions: int = ASSUMED_TRANSITIONS,
    parallel: Parallelism = "replicated",
    checkpointing: bool = False,
) -> Prediction:
    """Predict memory and time of training a configuration; without bfloat16 where the device has none."""
    model, train = config.model, config.train
    dims = {"observation_dim": observation_dim, "action_dim": action_dim}
    bfloat16 = train.precision != "float32" and device.bfloat16_flops > device.float32_flops
    arithmetic = costs.Arithmetic(bfloat16=bfloat16, on_cpu=device.name == CPU)
    parameters = parameter_formula(model, observation_dim, action_dim)
    on_each = ceil(train.batch_size / world_size)
    at_once = min(ceil(train.batch_size / train.num_micro_batches), on_each)
    num_micro_batches = ceil(on_each / at_once)
    activations = costs.activation_bytes(
        model,
        arithmetic,
        observation_dim=observation_dim,
        action_dim=action_dim,
        batch_size=at_once,
        checkpointing=checkpointing,
    )
    shards = world_size if parallel == "sharded" else 1
    data = num_transitions * (FLOAT32_BYTES * (observation_dim + action_dim) + ROW_BYTES)
    num_evaluated = config.eval.num_episodes * max(1, len(config.eval.targets or (0, 0, 0)))
    memory = MemoryPrediction(
        weights=ceil(FLOAT32_BYTES * parameters / shards),
        gradients=ceil(FLOAT32_BYTES * parameters / shards),
        optimizer=ceil(ADAM_BYTES_PER_PARAMETER * parameters / shards),
        copies=copied_bytes(model, arithmetic, parameters, world_size, parallel),
        activations=activations,
        data=data if data <= RESIDENT_SHARE * device.memory_bytes else 0,
        kv_cache=ceil(num_evaluated / world_size) * kv_cache_bytes(model, arithmetic.element_bytes),
        context=0 if arithmetic.on_cpu else GPU_CONTEXT_BYTES,
    )
    kept = costs.activation_bytes(
        model, arithmetic, observation_dim=observation_dim, action_dim=action_dim, batch_size=on_each
    )
    step = predict_step(
        model,
        device,
        arithmetic,
        products=costs.training_products(model, batch_size=on_each, **dims),
        parameters=parameters,
        kept_bytes=kept,
        num_micro_batches=num_micro_batches,
        world_size=world_size,
        parallel=parallel,
        checkpointing=checkpointing,
    )
    flops = costs.training_flops(model, batch_size=train.batch_size, **dims)
    steps = getattr(train, "steps", 0)
    return Prediction(
        size=config.size,
        parameters=parameters,
        parallel=parallel,
        checkpoint_activations=checkpointing,
        bfloat16=bfloat16,
        world_size=world_size,
        batch_size=train.batch_size,
        windows_per_device=at_once,
        num_micro_batches=num_micro_batches,
        memory=memory,
        memory_bytes=memory.total,
        device_memory_bytes=device.memory_bytes,
        fits=memory.total <= (1 - RESERVE) * device.memory_bytes,
        step=step,
        flops=flops,
        tokens_per_second=train.batch_size * TOKENS_PER_STEP * model.context_length / step.total,
        mfu=flops / (step.total * world_size * device.flops(bfloat16)),
        steps=steps,
        training_seconds=steps * step.total,
    )


def copied_bytes(
    model: ModelConfig, arithmetic: costs.Arithmetic, parameters: int, world_size: int, parallel: Parallelism
) -> int:
    """Return what copies of weights and gradients take.

    In bfloat16, the blocks' weights for the matrix products. Replicated on several devices, gradients side by side to
    be sent. Sharded, two blocks' weights that are gathered at a time, and the whole model that evaluates.
    """
    block = costs.block_parameters(model)
    copies = BFLOAT16_BYTES * model.num_layers * block * arithmetic.bfloat16
    if world_size == 1:
        return copies
    return copies + FLOAT32_BYTES * (parameters + (2 * block if parallel == "sharded" else 0))


def predict_step(
    model: ModelConfig,
    device: Device,
    arithmetic: costs.Arithmetic,
    *,
    products: list[costs.Product],
    parameters: int,
    kept_bytes: int,
    num_micro_batches: int,
    world_size: int,
    parallel: Parallelism,
    checkpointing: bool,
) -> StepPrediction:
    """Predict the time of an update on one of the devices.

    Args:
        products: of the device's share of the batch.
        kept_bytes: what that would keep for the backward pass without checkpointing.
    """
    flops_rate = device.flops(arithmetic.bfloat16) * (CPU_SHARE if arithmetic.on_cpu else GPU_SHARE)
    byte_rate = device.bandwidth * (CPU_BANDWIDTH_SHARE if arithmetic.on_cpu else GPU_BANDWIDTH_SHARE)
    again = 1 if checkpointing else 0  # forward passes that are computed again
    in_products = 0.0
    for product in products:
        bytes_moved = arithmetic.element_bytes * product.elements
        once = max(product.flops / flops_rate, bytes_moved / byte_rate)
        in_products += (1 + again + product.num_gradients) * once
    casts = (FLOAT32_BYTES + BFLOAT16_BYTES) * parameters * num_micro_batches * arithmetic.bfloat16
    passes = EAGER_PASSES[model.backbone, arithmetic.bfloat16] * (1 + again * FORWARD_SHARE)
    in_memory = (passes * kept_bytes + casts) / byte_rate
    shards = world_size if parallel == "sharded" else 1
    in_optimizer = OPTIMISER_PASSES * FLOAT32_BYTES * parameters / shards / byte_rate
    kernels = num_kernels(model) * num_micro_batches * (1 + again / 3)
    in_launches = kernels * (CPU_CALL_S if arithmetic.on_cpu else GPU_LAUNCH_S)
    sent = exchanged_bytes(parameters, world_size, parallel, num_micro_batches)
    in_exchange = sent / (LINK_SHARE * device.interconnect)
    computing = in_products + in_memory + in_optimizer
    total = computing + in_launches if arithmetic.on_cpu else max(computing, in_launches)
    total = total + in_exchange if parallel == "replicated" else max(total, in_exchange)
    return StepPrediction(
        products=in_products,
        memory=in_memory,
        optimizer=in_optimizer,
        launches=in_launches,
        exchange=in_exchange,
        total=total,
    )


def num_kernels(model: ModelConfig) -> int:
    """Return about how many kernels an eager update starts."""
    return KERNELS_OUTSIDE + KERNELS_PER_BLOCK[model.backbone] * model.num_layers


def exchanged_bytes(parameters: int, world_size: int, parallel: Parallelism, num_micro_batches: int) -> float:
    """Return what a device sends in an update, in a ring.

    Replicated: gradients are added up and handed round, once, after the backward pass. Sharded: weights are handed
    round for each forward and each backward pass, and gradients added up.
    """
    passes = 2 if parallel == "replicated" else 3 * num_micro_batches
    return passes * FLOAT32_BYTES * parameters * (world_size - 1) / world_size


def ways_to_train(
    config: DTConfig | ODTConfig | FinetuneConfig,
    device: Device,
    *,
    observation_dim: int,
    action_dim: int,
    world_size: int = 1,
    num_transitions: int = ASSUMED_TRANSITIONS,
) -> list[Prediction]:
    """Predict all ways to train: replicated, and on several devices sharded, each without and with checkpointing."""
    kinds: tuple[Parallelism, ...] = ("replicated", "sharded") if world_size > 1 else ("replicated",)
    return [
        predict(
            config,
            device,
            observation_dim=observation_dim,
            action_dim=action_dim,
            world_size=world_size,
            num_transitions=num_transitions,
            parallel=kind,
            checkpointing=checkpointing,
        )
        for kind in kinds
        for checkpointing in (False, True)
    ]


def best_way(ways: list[Prediction]) -> Prediction:
    """Return the plainest way that fits and is nearly the fastest; where none fits, the smallest one."""
    fitting = [way for way in ways if way.fits]
    if not fitting:
        return min(ways, key=lambda way: way.memory_bytes)
    fastest = min(way.step.total for way in fitting)
    return next(way for way in fitting if way.step.total <= NEARLY * fastest)


def devices_needed(
    config: DTConfig | ODTConfig | FinetuneConfig,
    device: Device,
    *,
    observation_dim: int,
    action_dim: int,
    num_transitions: int = ASSUMED_TRANSITIONS,
) -> int | None:
    """Return how many devices it takes for some way to fit; None where no number does."""
    for world_size in DEVICE_COUNTS:
        ways = ways_to_train(
            config,
            device,
            observation_dim=observation_dim,
            action_dim=action_dim,
            world_size=world_size,
            num_transitions=num_transitions,
        )
        if any(way.fits for way in ways):
            return world_size
    return None
