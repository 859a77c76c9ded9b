"""The model of one task out of a multi-task TD-MPC2 model, as a model that knows no tasks.

The embedding of a task is a constant that every network gets beside its input (input, embedding, action), so what the
first layer makes of it is a bias. Observations and actions are padded with zeros to the largest of all tasks, and the
policy's padding is masked, so its weights may be left out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gq.envs.tasks import Task
from gq.errors import DataError, UsageError, suggest
from gq.official.names import MT30, usable_tasks
from gq.official.torch_files import has_data

KNOWN_NUM_TASKS = (30, 80)  # the other 50 of mt80 are of Meta-World, which gq does not simulate
WITH_ACTIONS = ("dynamics", "reward_head", "q_heads", "target_q_heads")


@dataclass(frozen=True)
class PaddedDims:
    """The inputs of a multi-task model: of the largest tasks."""

    observation_dim: int
    action_dim: int
    latent_dim: int


def choose_row(path: Path, task: Task | None, num_tasks: int) -> tuple[Task, int]:
    """Return a task and which row of a file's embeddings is its.

    Raises:
        UsageError: no task was chosen, or the file does not have it.
        DataError: nobody knows the tasks of such a file.
    """
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


def check_dims(path: Path, task: Task, observation_dim: int, action_dim: int) -> None:
    """Check that a model of one task has the inputs of the task that it is said to be for.

    Raises:
        UsageError: it has not.
    """
    if (task.observation_dim, task.action_dim) != (observation_dim, action_dim):
        raise UsageError(
            f"{path} is for {observation_dim} observations and {action_dim} actions, "
            f"{task.id} has {task.observation_dim} and {task.action_dim}",
            hint="name the task that it was trained on",
        )


def slice_task(path: Path, state: dict[str, Tensor], task: Task, row: int, padded: PaddedDims) -> dict[str, Tensor]:
    """Return the state dict of one task's model, by the names of `WorldModel`.

    Args:
        state: of the whole model; `task_embedding.weight` is [num_tasks, task_dim].
        row: of the task in it.

    Raises:
        DataError: the task does not fit into the model.
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


def check_mask(path: Path, mask: Any, row: int, task: Task, shape: tuple[int, int]) -> None:
    """Check that a file's action masks [num_tasks, action_dim], if it has them, are those of the task.

    Raises:
        DataError: they are not.
    """
    if mask is None:
        return
    expected = torch.arange(shape[1]) < task.action_dim
    if not has_data(mask) or tuple(mask.shape) != shape or not torch.equal(mask[row] != 0, expected):
        message = f"{path}: _action_masks does not give {task.id} its {task.action_dim} actions"
        raise DataError(message, hint="fetch the file again")
