"""What a Decision Transformer costs before anyone trains it, and on which devices its training fits."""

from dataclasses import asdict, dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

from gq.config import DTConfig, FinetuneConfig, ODTConfig
from gq.devices import CPU, Device
from gq.envs.specs import EnvironmentRequest, settle
from gq.models import costs
from gq.models.config import ModelConfig, StochasticModelConfig, resolve_size

if TYPE_CHECKING:
    from torch.overrides import TorchFunctionMode

Parallelism = Literal["replicated", "sharded"]

UTILISATION = 0.4  # of the peak, assumed; large models reach it, small ones a fraction
GPU_CONTEXT_BYTES = 10**9  # CUDA, its libraries' workspaces
RESIDENT_SHARE = 0.25  # of the memory that data may take; more are streamed
RESERVE = 0.05  # of the memory, lost between blocks
ADAM_BYTES_PER_PARAMETER = 8  # two moments
ROW_BYTES = 2 * costs.INT64_BYTES + costs.FLOAT32_BYTES  # on the device, of a transition besides its vectors
DEVICE_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ASSUMED_TRANSITIONS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ParamsReport:
    """The cost of one model on one task."""

    size: str
    embed_dim: int
    num_layers: int
    parameters: int  # counted on the instantiated model; all of them are trained
    parameters_formula: int
    parameters_published: int | None  # see published_formula
    published_difference: dict[str, int]  # terms that add up to parameters_published - parameters_formula
    flops_per_token: int  # forward
    training_flops_per_token: int  # forward and backward
    batch_size: int  # windows computed at once
    training_memory_bytes: int  # see training_memory_bytes
    kv_cache_bytes: int  # one episode at full context, bfloat16
    num_transitions: int | None  # of the dataset, three tokens each
    tokens_per_parameter: float | None
    warning: str  # "" unless the model is too large for the data


def report(size: str, *, task: str, num_transitions: int | None = None, batch_size: int = 64) -> ParamsReport:
    """Report on a named size for a Gymnasium id.

    Raises:
        UsageError: unknown size or task.
    """
    config, interface = resolve_size(size), settle(EnvironmentRequest(task))
    return report_config(
        config,
        size=size,
        observation_dim=interface.observation_dim,
        action_dim=interface.action_dim,
        num_transitions=num_transitions,
        batch_size=batch_size,
    )


def report_config(
    config: ModelConfig,
    *,
    size: str,
    observation_dim: int,
    action_dim: int,
    num_transitions: int | None = None,
    batch_size: int = 64,
) -> ParamsReport:
    """Report on any shape, such as a run's; `size` is only its name. `batch_size` is windows computed at once."""
    dims = (observation_dim, action_dim)
    window: dict[str, int] = {"observation_dim": observation_dim, "action_dim": action_dim, "batch_size": 1}
    num_tokens = config.tokens_per_step * config.context_length
    parameters = count_parameters(config, *dims)
    ratio = None if num_transitions is None else costs.TOKENS_PER_STEP * num_transitions / parameters
    return ParamsReport(
        size=size,
        embed_dim=config.embed_dim,
        num_layers=config.num_layers,
        parameters=parameters,
        parameters_formula=costs.parameter_formula(config, *dims),
        parameters_published=published_formula(config, *dims),
        published_difference=published_difference(config, observation_dim),
        flops_per_token=costs.forward_flops(config, **window) // num_tokens,
        training_flops_per_token=costs.training_flops(config, **window) // num_tokens,
        batch_size=batch_size,
        training_memory_bytes=costs.training_memory_bytes(config, **window | {"batch_size": batch_size}),
        kv_cache_bytes=costs.kv_cache_bytes(config),
        num_transitions=num_transitions,
        tokens_per_parameter=ratio,
        warning=costs.data_warning(size, parameters, num_transitions, dims),
    )


def published_formula(config: ModelConfig, observation_dim: int, action_dim: int) -> int | None:
    """Return what the public Qwen3-style Decision Transformer of this shape counts, parts that never train included.

    H(T+S+A+5) + L(2H + 2HH(1+G/N) + 3HF) + H + (HS+S) + (HA+A) + (H+1). None for shapes that it cannot have: gpt2, a
    head width of its own, no timestep table, no return tokens.
    """
    width = config.embed_dim
    is_tied = config.num_heads * config.attention_head_dim == width
    is_public = config.backbone == "qwen3" and config.positions == "timestep" and config.conditioning == "token"
    if not is_public or not is_tied:
        return None
    kv_dim = config.num_kv_heads * config.attention_head_dim
    layer = 2 * width + 2 * width * (width + kv_dim) + 3 * width * config.mlp_dim
    heads = (width * observation_dim + observation_dim) + (width * action_dim + action_dim) + (width + 1)
    embeddings = width * (config.max_timestep + observation_dim + action_dim + 5)
    return embeddings + config.num_layers * layer + width + heads


def published_difference(config: ModelConfig, observation_dim: int) -> dict[str, int]:
    """Return the terms of published_formula - parameter_formula; empty where the former is None.

    The public model has two heads without a loss and an embedding norm that it never calls (gq calls its own, so that
    one cancels); it lacks the QK-norm that Qwen3 has.
    """
    if published_formula(config, observation_dim, 1) is None:
        return {}
    return {
        "unused observation head": config.embed_dim * observation_dim + observation_dim,
        "unused return head": config.embed_dim + 1,
        "missing QK-norm": -2 * config.num_layers * config.attention_head_dim,
    }


def count_parameters(config: ModelConfig, observation_dim: int, action_dim: int) -> int:
    """Instantiate the model without memory for its weights, and count those that are trained."""
    from gq.models.decision_transformer import DecisionTransformer
    from gq.models.stochastic_transformer import StochasticTransformer

    model: DecisionTransformer | StochasticTransformer
    with weights_without_memory():
        if isinstance(config, StochasticModelConfig):
            model = StochasticTransformer(config, observation_dim=observation_dim, action_dim=action_dim)
        else:
            model = DecisionTransformer(config, observation_dim=observation_dim, action_dim=action_dim)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def weights_without_memory() -> "TorchFunctionMode":
    """Return a context in which layers get weights on torch's meta device, with a shape only, and no initial values.

    Everything else stays on the CPU: computing on the meta device, as under `torch.device("meta")`, would import
    torch's compiler, which takes as long as importing torch.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class WeightsWithoutMemory(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if getattr(func, "__module__", "") == "torch.nn.init":
                return args[0] if args else kwargs["tensor"]
            if func is torch.empty:
                kwargs = kwargs | {"device": "meta"}
            return func(*args, **kwargs)

    return WeightsWithoutMemory()


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
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
        """The sum; evaluation comes between updates, so its cache takes the activations' place."""
        parts = asdict(self)
        num_bytes: int = sum(parts.values()) - min(self.activations, self.kv_cache)
        return num_bytes


@dataclass(frozen=True, kw_only=True)
class DevicePlan:
    """One way to train a model on a number of devices: what each holds, whether that fits, and how long it takes."""

    size: str
    parameters: int
    parallel: Parallelism  # train.parallel: weights on every device, or a share of them on each
    checkpoint_activations: bool  # train.checkpoint_activations
    bfloat16: bool
    world_size: int
    batch_size: int  # windows in an update, over all devices
    windows_per_device: int  # computed at once
    num_micro_batches: int
    memory: MemoryUse
    memory_bytes: int  # of it all
    device_memory_bytes: int
    fits: bool
    flops: int  # of an update, over all devices
    utilisation: float  # of the peak, assumed for the times
    update_seconds: float
    steps: int
    training_seconds: float  # of all steps, without evaluation


def plan_training(
    config: DTConfig | ODTConfig | FinetuneConfig,
    device: Device,
    *,
    world_size: int = 1,
    num_transitions: int = ASSUMED_TRANSITIONS,
    parallel: Parallelism = "replicated",
    checkpointing: bool = False,
) -> DevicePlan:
    """Memory and time of training a configuration for its task; without bfloat16 where the device has none."""
    model, train, task = config.model, config.train, config.environment
    dims = {"observation_dim": task.observation_dim, "action_dim": task.action_dim}
    bfloat16 = train.precision != "float32" and device.bfloat16_flops > device.float32_flops
    arithmetic = costs.Arithmetic(bfloat16=bfloat16, on_cpu=device.name == CPU)
    parameters = costs.parameter_formula(model, **dims)
    on_each = ceil(train.batch_size / world_size)
    at_once = min(ceil(train.batch_size / train.num_micro_batches), on_each)
    shards = world_size if parallel == "sharded" else 1
    data = num_transitions * (costs.FLOAT32_BYTES * (task.observation_dim + task.action_dim) + ROW_BYTES)
    num_evaluated = config.eval.num_episodes * max(1, len(config.eval.targets or (0, 0, 0)))
    memory = MemoryUse(
        weights=ceil(costs.FLOAT32_BYTES * parameters / shards),
        gradients=ceil(costs.FLOAT32_BYTES * parameters / shards),
        optimizer=ceil(ADAM_BYTES_PER_PARAMETER * parameters / shards),
        copies=copied_bytes(model, arithmetic, parameters, world_size, parallel),
        activations=costs.activation_bytes(model, arithmetic, **dims, batch_size=at_once, checkpointing=checkpointing),
        data=data if data <= RESIDENT_SHARE * device.memory_bytes else 0,
        kv_cache=ceil(num_evaluated / world_size) * costs.kv_cache_bytes(model, arithmetic.element_bytes),
        context=0 if arithmetic.on_cpu else GPU_CONTEXT_BYTES,
    )
    flops = costs.training_flops(model, **dims, batch_size=train.batch_size)
    again = costs.forward_flops(model, **dims, batch_size=train.batch_size) if checkpointing else 0
    seconds = (flops + again) / (UTILISATION * world_size * device.flops(bfloat16))
    steps = getattr(train, "steps", 0)
    return DevicePlan(
        size=config.size,
        parameters=parameters,
        parallel=parallel,
        checkpoint_activations=checkpointing,
        bfloat16=bfloat16,
        world_size=world_size,
        batch_size=train.batch_size,
        windows_per_device=at_once,
        num_micro_batches=ceil(on_each / at_once),
        memory=memory,
        memory_bytes=memory.total,
        device_memory_bytes=device.memory_bytes,
        fits=memory.total <= (1 - RESERVE) * device.memory_bytes,
        flops=flops,
        utilisation=UTILISATION,
        update_seconds=seconds,
        steps=steps,
        training_seconds=steps * seconds,
    )


def copied_bytes(
    model: ModelConfig, arithmetic: costs.Arithmetic, parameters: int, world_size: int, parallel: Parallelism
) -> int:
    """Bytes of copies of weights and gradients.

    In bfloat16, the blocks' weights for the matrix products. Replicated on several devices, gradients side by side to
    be sent. Sharded, two blocks' weights that are gathered at a time, and the whole model that evaluates.
    """
    block = costs.block_parameters(model)
    copies = costs.BFLOAT16_BYTES * model.num_layers * block * arithmetic.bfloat16
    if world_size == 1:
        return copies
    return copies + costs.FLOAT32_BYTES * (parameters + (2 * block if parallel == "sharded" else 0))


def ways_to_train(
    config: DTConfig | ODTConfig | FinetuneConfig,
    device: Device,
    *,
    world_size: int = 1,
    num_transitions: int = ASSUMED_TRANSITIONS,
) -> list[DevicePlan]:
    """All ways to train: replicated, and on several devices sharded, each without and with checkpointing."""
    kinds: tuple[Parallelism, ...] = ("replicated", "sharded") if world_size > 1 else ("replicated",)
    common: dict[str, Any] = {"world_size": world_size, "num_transitions": num_transitions}
    return [
        plan_training(config, device, **common, parallel=kind, checkpointing=checkpointing)
        for kind in kinds
        for checkpointing in (False, True)
    ]


def best_way(ways: list[DevicePlan]) -> DevicePlan:
    """The first of the fastest that fit; where none fits, the smallest one."""
    fitting = [way for way in ways if way.fits]
    if not fitting:
        return min(ways, key=lambda way: way.memory_bytes)
    return min(fitting, key=lambda way: way.update_seconds)


def devices_needed(
    config: DTConfig | ODTConfig | FinetuneConfig, device: Device, num_transitions: int = ASSUMED_TRANSITIONS
) -> int | None:
    """The fewest devices on which some way to train fits; None where no number does."""
    for world_size in DEVICE_COUNTS:
        ways = ways_to_train(config, device, world_size=world_size, num_transitions=num_transitions)
        if any(way.fits for way in ways):
            return world_size
    return None
