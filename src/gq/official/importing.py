"""From an official TD-MPC2 checkpoint to the state dict and the configuration of our world model.

The official code wrote its networks under the same names all along, but its Q ensemble in several layouts:

    A   numbered tensors (the published checkpoints)
    B   named tensors, `_target_Qs.params` (end of 2024)
    C   named tensors, `_target_Qs_params`, and entries about the tensors (since 2025)
    C'  as C without those entries, and with tensors without data (newer libraries)

Every key of a file is used, checked against another one, or an error.

The embedding of a task is a constant that every network of a multi-task model gets beside its input (input, embedding,
action), so what the first layer makes of it is a bias. Observations and actions are padded with zeros to the largest of
all tasks, and the policy's padding is masked, so its weights may be left out.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gq.datasets.catalog import TDMPC2
from gq.envs.tasks import Task, resolve_task
from gq.errors import DataError, UsageError, suggest
from gq.models.world_config import WORLD_MODEL_SIZES, WorldModelConfig
from gq.models.world_model import WorldModel
from gq.official.names import MT30, usable_tasks
from gq.official.torch_files import has_data, read_torch_file

NETWORKS = {
    "encoder": "_encoder.state",
    "dynamics": "_dynamics",
    "reward_head": "_reward",
    "termination_head": "_termination",
    "policy_head": "_pi",
}
FIELDS = ("weight", "bias", "norm_weight", "norm_bias")  # in the order of layout A's numbers
KEY = re.compile(r"[\w.]{1,100}", re.ASCII)
DETACHED = re.compile(r"_detach_Qs(_|\.)params\.")  # a second copy of the online Q
WITHOUT_CONTENT = re.compile(r"_(detach_|target_)?Qs(\.module\..+|[._]params\.__(batch_size|device))")
MAX_ENCODER_LAYERS = 16  # the largest size has 5; each takes time to build
NOT_OURS = "gq imports what the official tdmpc2 code saved; fetch the file again if it is one"
KNOWN_NUM_TASKS = (30, 80)  # the other 50 of mt80 are of Meta-World, which gq does not simulate
WITH_ACTIONS = ("dynamics", "reward_head", "q_heads", "target_q_heads")


@dataclass(frozen=True)
class ImportedModel:
    """An official checkpoint, ready for `WorldModel(config, ...).load_state_dict(state)`."""

    layout: str  # A, B, C or C'
    size: str  # 1, 5, 19, 48 or 317; empty if the shape is none of these
    config: WorldModelConfig
    observation_dim: int
    action_dim: int
    episodic: bool  # whether it predicts terminations
    state: dict[str, Tensor]  # float32, each with memory of its own
    notes: tuple[str, ...]  # what the user should know of the import, a line each


@dataclass(frozen=True)
class PaddedDims:
    """The inputs of a multi-task model: of the largest tasks."""

    observation_dim: int
    action_dim: int
    latent_dim: int


def import_tdmpc2(path: Path, task: str = "") -> ImportedModel:
    """Return the world model of an official checkpoint, with the weights as they are in the file.

    A multi-task file gives the model of one task: its embedding, a constant, goes into the biases (float32 rounding
    apart, the same network), and the observation and action dimensions outside the task, always 0, are dropped.

    Args:
        task: the task that the model is for; a multi-task file needs it, another one is checked against it.

    Raises:
        DataError: the file is damaged, of another program, or in the layout that cannot be evaluated correctly.
        UsageError: the task is unknown, or not in the file, or none was chosen.
    """
    chosen = resolve_task(task) if task else None
    source, notes = _state_dict_of(path)
    layout = _layout_of(path, source)
    config, observation_dim, action_dim, episodic = infer_shape(path, source)
    _drop_copies(path, source, layout)
    if not any(key.startswith("_target_Qs") for key in source):
        notes.append("it has no target Q networks: the online ones were copied")
    with torch.device("meta"):
        shapes = WorldModel(config, observation_dim=observation_dim, action_dim=action_dim, episodic=episodic)
    state = _take_parameters(path, source, layout, shapes.state_dict())
    mask = source.pop("_action_masks", None) if config.num_tasks else None
    if source:
        more = f" and {len(source) - 1} more" if len(source) > 1 else ""
        raise DataError(f"{path} holds {next(iter(source))}{more}, which is in no world model", hint=NOT_OURS)
    if config.num_tasks:
        chosen, row = _choose_row(path, chosen, config.num_tasks)
        _check_mask(path, mask, row, chosen, (config.num_tasks, action_dim))
        state = _slice_task(path, state, chosen, row, PaddedDims(observation_dim, action_dim, config.latent_dim))
        observation_dim, action_dim = chosen.observation_dim, chosen.action_dim
        config = replace(config, num_tasks=0, task_dim=0)
    elif chosen:
        _check_dims(path, chosen, observation_dim, action_dim)
    size = next((name for name, known in WORLD_MODEL_SIZES.items() if known == config), "")
    return ImportedModel(layout, size, config, observation_dim, action_dim, episodic, state, tuple(notes))


def _state_dict_of(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the state dict of a file, which may hold it bare or as `model`, and notes about what lies beside it."""
    content = read_torch_file(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no state dict", hint=NOT_OURS)
    beside = [key for key in content if key != "model"] if "model" in content else []
    for key in beside:
        if isinstance(content[key], Tensor):
            raise DataError(f"{path} holds the tensor {key!a:.60} beside the model", hint=NOT_OURS)
    source = content.get("model", content)
    if not isinstance(source, dict) or not all(isinstance(key, str) and KEY.fullmatch(key) for key in source):
        raise DataError(f"{path} holds no state dict", hint=NOT_OURS)
    return dict(source), [f"{key!a:.60}, beside the model, was left out" for key in beside]


def _layout_of(path: Path, source: dict[str, Any]) -> str:
    """Return the layout of a state dict."""
    if "_dynamics.0.0.weight" in source:
        message = f"{path} is in the layout from before the release, of which an operation is unknown"
        raise DataError(f"{message}: its actions would be wrong", hint=_other_seeds(path))
    if any(key.startswith("_encoder.rgb.") for key in source):
        raise DataError(f"{path} encodes images", hint="gq imports models of state observations")
    if "_Qs.params.0" in source:
        return "A"
    if "_Qs.params.0.weight" not in source:
        raise DataError(f"{path} has no Q networks (_Qs.params.0)", hint=NOT_OURS)
    if "_target_Qs.params.0.weight" in source or "_detach_Qs.params.0.weight" in source:
        return "B"
    return "C'" if any(key.startswith("_Qs.module.") for key in source) else "C"


def _other_seeds(path: Path) -> str:
    """Return a hint that names the checkpoints of the same task in a layout that can be read."""
    task, _, _ = path.stem.rpartition("-")
    old = TDMPC2["old_layout"]
    usable = [f"{task}-{seed}" for seed in TDMPC2["seeds"] if f"{task}-{seed}" not in old]
    if path.stem not in old:
        return "other seeds of the same task can be read: gq download --list tdmpc2"
    return "these can be read: " + ", ".join(f"gq download tdmpc2/{name}" for name in usable)


def infer_shape(path: Path, source: dict[str, Any]) -> tuple[WorldModelConfig, int, int, bool]:
    """Return the configuration, observation_dim, action_dim (of all tasks) and episodic that a state dict is of.

    It takes `log_std_min` and `log_std_dif`, which are no parameters, out of the state dict.
    """

    def shape(key: str, num_dims: int) -> tuple[int, ...]:
        if not isinstance(source.get(key), Tensor):
            raise DataError(f"{path}: {key} is missing", hint=NOT_OURS)
        if source[key].ndim != num_dims:
            raise DataError(f"{path}: {key} has {source[key].ndim} dimensions, not {num_dims}", hint=NOT_OURS)
        return tuple(source[key].shape)

    num_layers = len({key.split(".")[2] for key in source if re.match(r"_encoder\.state\.\d+\.", key)})
    num_tasks, task_dim = shape("_task_emb.weight", 2) if "_task_emb.weight" in source else (0, 0)
    encoder_dim, observation_and_task = shape("_encoder.state.0.weight", 2)
    num_outputs, _ = shape("_pi.2.weight", 2)
    low, span = (_number_of(path, source, key, value) for key, value in (("log_std_min", -10), ("log_std_dif", 12)))
    config = WorldModelConfig(
        encoder_dim=encoder_dim,
        num_encoder_layers=num_layers,
        mlp_dim=shape("_pi.0.weight", 2)[0],
        latent_dim=shape(f"_encoder.state.{num_layers - 1}.weight", 2)[0],
        num_q=shape("_Qs.params.0" if "_Qs.params.0" in source else "_Qs.params.0.weight", 3)[0],
        num_bins=shape("_reward.2.weight", 2)[0],
        log_std_min=low,
        log_std_max=low + span,
        num_tasks=num_tasks,
        task_dim=task_dim,
    )
    problem = config.problem()
    if config.num_bins < 3 or config.num_q < 2 or not 2 <= num_layers <= MAX_ENCODER_LAYERS:
        problem = f"{config.num_bins} bins, {config.num_q} Q networks, {num_layers} layers in the encoder"
    if num_outputs % 2 or observation_and_task <= task_dim:
        problem = "_pi.2.weight or _encoder.state.0.weight has an impossible shape"
    if problem:
        raise DataError(f"{path} has a shape that gq has no model for: {problem}", hint=NOT_OURS)
    episodic = any(key.startswith("_termination.") for key in source)
    return config, observation_and_task - task_dim, num_outputs // 2, episodic


def _number_of(path: Path, source: dict[str, Any], key: str, default: float) -> float:
    """Take a number out of a state dict, where it is a tensor without dimensions; layout A has none."""
    value = source.pop(key, None)
    if value is None:
        return float(default)
    if not has_data(value) or value.ndim or not -20 < float(value) < 40:
        raise DataError(f"{path}: {key} is no plausible number", hint=NOT_OURS)
    return float(value)


def _drop_copies(path: Path, source: dict[str, Any], layout: str) -> None:
    """Take out of a state dict what holds nothing of its own."""
    if layout == "A":
        return
    for key in [key for key in source if WITHOUT_CONTENT.fullmatch(key)]:
        value = source.pop(key)
        if not (isinstance(value, torch.Size | torch.device) or (isinstance(value, Tensor) and value.is_meta)):
            raise DataError(f"{path} holds {key}, which should be empty", hint=NOT_OURS)
    for key in [key for key in source if DETACHED.match(key)]:
        copy, online = source.pop(key), source.get(DETACHED.sub("_Qs.params.", key))
        if not has_data(copy) or not has_data(online) or not torch.equal(copy, online):
            raise DataError(f"{path}: {key} is not equal to the same of _Qs", hint=NOT_OURS)


def _take_parameters(path: Path, source: dict[str, Any], layout: str, shapes: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take all parameters out of a state dict, by our names, and check shape, dtype and that they are finite.

    Args:
        shapes: our state dict, of which only names and shapes are used.
    """
    state: dict[str, Tensor] = {}
    has_targets = any(key.startswith("_target_Qs") for key in source)
    for name, expected in shapes.items():
        if name.startswith("target_") and not has_targets:
            state[name] = state[name.removeprefix("target_")].clone()
            continue
        key = official_name(name, layout)
        value = source.pop(key, None)
        if not has_data(value):
            raise DataError(f"{path}: {key} is missing", hint=NOT_OURS)
        if value.shape != expected.shape:
            found, wanted = list(value.shape), list(expected.shape)
            raise DataError(f"{path}: {key} has shape {found}, the other shapes ask for {wanted}", hint=NOT_OURS)
        if value.dtype != torch.float32:
            raise DataError(f"{path}: {key} is of {value.dtype}, not float32", hint=NOT_OURS)
        if not value.isfinite().all():
            raise DataError(f"{path}: {key} has numbers that are not finite", hint="its training diverged")
        state[name] = value.detach().clone(memory_format=torch.contiguous_format)
    return state


def official_name(ours: str, layout: str) -> str:
    """Return the official key of one of our parameters in a layout."""
    network, _, rest = ours.partition(".")
    if network == "task_embedding":
        return "_task_emb.weight"
    if network in NETWORKS:
        return f"{NETWORKS[network]}.{rest.replace('norm.', 'ln.')}"
    target = "_target_Qs.params" if layout in ("A", "B") else "_target_Qs_params"
    prefix = {"q_heads": "_Qs.params", "target_q_heads": target}[network]
    _, layer, field = rest.split(".")
    if layout == "A":
        return f"{prefix}.{4 * int(layer) + FIELDS.index(field)}"
    return f"{prefix}.{layer}.{field.replace('norm_', 'ln.')}"


# --- one task of many -------------------------------------------------------------------------------------------------


def _choose_row(path: Path, task: Task | None, num_tasks: int) -> tuple[Task, int]:
    """Return a task and which row of a file's embeddings is its."""
    if num_tasks not in KNOWN_NUM_TASKS:
        raise DataError(
            f"{path} holds {num_tasks} tasks, in an order that was never published",
            hint="gq knows the order of those with 30 and 80: gq download tdmpc2/mt30-19M",
        )
    usable = usable_tasks()
    if task is None:
        raise UsageError(f"{path} holds {num_tasks} tasks, and none was chosen", hint="one of " + ", ".join(usable))
    if task.id not in MT30:
        hint = suggest(task.id, usable, otherwise="it has " + ", ".join(usable))
        raise UsageError(f"{path} does not hold {task.id}", hint=hint)
    return task, MT30.index(task.id)


def _check_dims(path: Path, task: Task, observation_dim: int, action_dim: int) -> None:
    """Check that a model of one task has the inputs of the task that it is said to be for."""
    if (task.observation_dim, task.action_dim) != (observation_dim, action_dim):
        raise UsageError(
            f"{path} is for {observation_dim} observations and {action_dim} actions, "
            f"{task.id} has {task.observation_dim} and {task.action_dim}",
            hint="name the task that it was trained on",
        )


def _slice_task(path: Path, state: dict[str, Tensor], task: Task, row: int, padded: PaddedDims) -> dict[str, Tensor]:
    """Return the state dict of one task's model, by the names of `WorldModel`.

    Args:
        state: of the whole model; `task_embedding.weight` is [num_tasks, task_dim].
        row: of the task in it.
    """
    observation_dim, action_dim = task.observation_dim, task.action_dim
    if observation_dim > padded.observation_dim or action_dim > padded.action_dim:
        raise DataError(f"{path} is too small for {task.id}", hint="fetch the file again")
    embedding = state["task_embedding.weight"][row].double()
    embedding = embedding / embedding.norm().clamp(min=1)  # rows that training did not touch last may be longer
    policy_rows = torch.arange(2 * padded.action_dim).reshape(2, -1)[:, :action_dim].flatten()  # means, then spreads
    sliced = {name: value for name, value in state.items() if name != "task_embedding.weight"}
    for name in [name for name in sliced if name.split(".")[-2:] == ["0", "weight"]]:
        network = name.split(".")[0]
        before = padded.observation_dim if network == "encoder" else padded.latent_dim
        kept = observation_dim if network == "encoder" else padded.latent_dim
        after = before + len(embedding)
        weight, bias_name = state[name], name.replace("weight", "bias")
        bias = state[bias_name].double() + weight[..., before:after].double() @ embedding
        actions = weight[..., after : after + action_dim] if network in WITH_ACTIONS else weight[..., :0]
        sliced[bias_name] = bias.float()
        sliced[name] = torch.cat([weight[..., :kept], actions], dim=-1)
    for field in ("weight", "bias"):
        sliced[f"policy_head.2.{field}"] = state[f"policy_head.2.{field}"][policy_rows]
    return sliced


def _check_mask(path: Path, mask: Any, row: int, task: Task, shape: tuple[int, int]) -> None:
    """Check that a file's action masks [num_tasks, action_dim], if it has them, are those of the task."""
    if mask is None:
        return
    expected = torch.arange(shape[1]) < task.action_dim
    if not has_data(mask) or tuple(mask.shape) != shape or not torch.equal(mask[row] != 0, expected):
        message = f"{path}: _action_masks does not give {task.id} its {task.action_dim} actions"
        raise DataError(message, hint="fetch the file again")
