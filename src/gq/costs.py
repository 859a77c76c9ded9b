"""What a model costs before anyone trains it: parameters, FLOPs, memory, and whether the data can feed it.

H embed_dim, L num_layers, N query heads, G key/value heads, D head width, F mlp_dim, T max_timestep, S observation_dim,
A action_dim, K context_length in steps of three tokens.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gq.config import TDMPC2Config
from gq.envs.tasks import resolve_task
from gq.models import transformer_costs, world_costs
from gq.models.config import ModelConfig, StochasticModelConfig
from gq.models.sizes import SIZES, resolve_size
from gq.models.world_config import parameter_counts

if TYPE_CHECKING:
    from torch.overrides import TorchFunctionMode

TOKENS_PER_STEP = 3
TRAINING_FLOPS = 3  # over the forward pass: the backward pass costs twice as much
TRAINED_BYTES = 16  # per parameter: float32 weight, gradient and the two moments of AdamW
BFLOAT16_BYTES = 2
FLOAT32_BYTES = 4
FEWEST_TOKENS_PER_PARAMETER = 0.1  # the original model on its smallest dataset, medium-replay, has about 1


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


@dataclass(frozen=True, kw_only=True)
class WorldParamsReport:
    """The cost of one TD-MPC2 agent on one task, all by formula.

    Published counts are of trained parameters without a network that predicts terminations, which only tasks have whose
    episodes end early. So is `parameters`; `parameters_in_all` leaves nothing out.
    """

    size: str
    parameters: int  # trained, without those of the target and of the termination network
    parameters_with_target: int
    parameters_termination: int  # 0 where episodes only end at their time limit
    parameters_in_all: int  # of all networks, as a checkpoint holds them
    networks: dict[str, int]  # trained parameters of each; the target has as many as q once more
    weights_bytes: int  # of all networks, float32
    batch_size: int  # sequences in an update
    training_memory_bytes: int  # of an update, without the replay
    replay_bytes: int  # of the decisions that are kept to learn from, at its largest
    policy_multiply_adds: int  # of a decision without planning: encoder and policy
    plan_multiply_adds: int  # of a plan
    original_plan_multiply_adds: int  # of the same plan in the original, which computes all heads of Q
    update_multiply_adds: int


def report_world(config: TDMPC2Config, *, batch_size: int | None = None) -> WorldParamsReport:
    """Report on a TD-MPC2 agent for its task. `batch_size` is another than that of the configuration.

    Raises:
        UsageError: no such task.
    """
    task, model = resolve_task(config.task), config.model
    dims = {"observation_dim": task.observation_dim, "action_dim": task.action_dim}
    networks = parameter_counts(model, **dims, episodic=task.can_terminate)
    rows = world_costs.row_costs(model, **dims, episodic=task.can_terminate)
    trained, batch_size = sum(networks.values()), batch_size or config.train.batch_size
    parameters = trained - networks["termination"]
    num_kept = min(config.train.buffer_size, config.train.decisions)
    planned = (model, config.planner, rows, task.action_dim)
    update = {"horizon": config.update.horizon, "batch_size": batch_size}
    return WorldParamsReport(
        size=config.size,
        parameters=parameters,
        parameters_with_target=parameters + networks["q"],
        parameters_termination=networks["termination"],
        parameters_in_all=trained + networks["q"],
        networks=networks,
        weights_bytes=FLOAT32_BYTES * (trained + networks["q"]),
        batch_size=batch_size,
        training_memory_bytes=world_costs.update_memory_bytes(
            model, parameters=trained, action_dim=task.action_dim, episodic=task.can_terminate, **update
        ),
        replay_bytes=FLOAT32_BYTES * num_kept * (task.observation_dim + task.action_dim + 2),
        policy_multiply_adds=rows.encoder + rows.policy,
        plan_multiply_adds=world_costs.plan_cost(*planned),
        original_plan_multiply_adds=world_costs.original_plan_cost(*planned),
        update_multiply_adds=world_costs.update_cost(model, rows, observation_dim=task.observation_dim, **update),
    )


def report(size: str, *, task: str, num_transitions: int | None = None, batch_size: int = 64) -> ParamsReport:
    """Report on a named size for a Gymnasium id.

    Raises:
        UsageError: unknown size or task.
    """
    config, interface = resolve_size(size), resolve_task(task)
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
    parameters = count_parameters(config, *dims)
    flops = forward_flops_per_token(config, *dims)
    ratio = None if num_transitions is None else TOKENS_PER_STEP * num_transitions / parameters
    return ParamsReport(
        size=size,
        embed_dim=config.embed_dim,
        num_layers=config.num_layers,
        parameters=parameters,
        parameters_formula=parameter_formula(config, *dims),
        parameters_published=published_formula(config, *dims),
        published_difference=published_difference(config, observation_dim),
        flops_per_token=flops,
        training_flops_per_token=TRAINING_FLOPS * flops,
        batch_size=batch_size,
        training_memory_bytes=training_memory_bytes(config, parameters, batch_size),
        kv_cache_bytes=kv_cache_bytes(config),
        num_transitions=num_transitions,
        tokens_per_parameter=ratio,
        warning=data_warning(size, parameters, num_transitions, dims),
    )


def parameter_formula(config: ModelConfig, observation_dim: int, action_dim: int) -> int:
    """Return the parameters of DecisionTransformer, or of StochasticTransformer for its configuration, in closed form.

    qwen3: H(T+S+2A+5) + A + L(2H + 2HD(N+G) + 2D + 3HF) + H
    gpt2:  H(T+S+2A+6) + A + L(4H + 4HND + 3ND + H + 2HF + F + H) + 2H

    The first term is the embeddings of return, observation, action (with biases) and timestep, the norm over them and
    the action head; T is the rows of the table of positions. A second head, for the log-std, adds HA + A.
    """
    width, mlp_dim, head_dim = config.embed_dim, config.mlp_dim, config.attention_head_dim
    query_dim = config.num_heads * head_dim
    outside = width * (config.num_positions + observation_dim + 2 * action_dim + 5) + action_dim
    if isinstance(config, StochasticModelConfig):
        outside += (width + 1) * action_dim
    if config.backbone == "gpt2":  # LayerNorm and linear layers have biases
        attention = 4 * width * query_dim + 3 * query_dim + width
        layer = 4 * width + attention + 2 * width * mlp_dim + mlp_dim + width
        return outside + width + config.num_layers * layer + 2 * width
    attention = 2 * width * head_dim * (config.num_heads + config.num_kv_heads) + 2 * head_dim
    return outside + config.num_layers * (2 * width + attention + 3 * width * mlp_dim) + width


def published_formula(config: ModelConfig, observation_dim: int, action_dim: int) -> int | None:
    """Return what the public Qwen3-style Decision Transformer of this shape counts, parts that never train included.

    H(T+S+A+5) + L(2H + 2HH(1+G/N) + 3HF) + H + (HS+S) + (HA+A) + (H+1). None for shapes that it cannot have: gpt2, a
    head width of its own, no timestep table.
    """
    width = config.embed_dim
    is_tied = config.num_heads * config.attention_head_dim == width
    if config.backbone != "qwen3" or config.positions != "timestep" or not is_tied:
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


def forward_flops_per_token(config: ModelConfig, observation_dim: int, action_dim: int) -> int:
    """Return the FLOPs of the forward pass over a full window, per token.

    Two per weight that a token is multiplied with (a step's three embeddings and one head are shared by its three
    tokens), and 4 N D per key that it attends to, of which causality leaves (3K + 1) / 2 on average.
    """
    query_dim = config.num_heads * config.attention_head_dim
    kv_dim = config.num_kv_heads * config.attention_head_dim
    num_mlp_matrices = 2 if config.backbone == "gpt2" else 3
    layer = 2 * config.embed_dim * (query_dim + kv_dim) + num_mlp_matrices * config.embed_dim * config.mlp_dim
    per_step = config.embed_dim * (1 + observation_dim + 2 * action_dim)
    attention = 2 * query_dim * (TOKENS_PER_STEP * config.context_length + 1)
    return config.num_layers * (2 * layer + attention) + 2 * per_step // TOKENS_PER_STEP


def training_memory_bytes(config: ModelConfig, parameters: int, batch_size: int) -> int:
    """Return the memory of a training step in float32, without the data and the allocator's reserve.

    16 bytes per parameter, and what the forward pass keeps for the backward pass on a CPU; gq.predictions knows others.
    """
    arithmetic = transformer_costs.Arithmetic(bfloat16=False, on_cpu=True)
    kept = transformer_costs.activation_bytes(
        config, arithmetic, observation_dim=0, action_dim=0, batch_size=batch_size
    )
    return TRAINED_BYTES * parameters + kept


def kv_cache_bytes(config: ModelConfig, number_bytes: int = BFLOAT16_BYTES) -> int:
    """Return the size of one episode's keys and values at full context, in bfloat16 unless said otherwise."""
    per_token = 2 * config.num_layers * config.num_kv_heads * config.attention_head_dim
    return per_token * TOKENS_PER_STEP * config.context_length * number_bytes


def data_warning(size: str, parameters: int, num_transitions: int | None, dims: tuple[int, int]) -> str:
    """Return a warning with a better size when the data has less than a tenth of a token per parameter, else ""."""
    if num_transitions is None or TOKENS_PER_STEP * num_transitions >= FEWEST_TOKENS_PER_PARAMETER * parameters:
        return ""
    num_tokens = TOKENS_PER_STEP * num_transitions
    fed = [name for name, config in SIZES.items() if parameter_formula(config, *dims) <= num_tokens]
    better = fed[-1] if fed else next(iter(SIZES))
    ratio = num_tokens / parameters
    return (
        f"{size} has {parameters:,} parameters for {num_tokens:,} tokens of data ({ratio:.2g} per parameter): "
        f"it can learn the data by heart" + ("" if better == size else f"; {better} fits better")
    )
