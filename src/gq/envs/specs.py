"""From what is asked for and what data record to one `Task`: any environment of Gymnasium, by its spaces."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gq.envs.tasks import CONTROL_TASKS, TASKS, Task, proper_id
from gq.errors import UsageError
from gq.settings import flatten

if TYPE_CHECKING:
    import gymnasium

# Constructor arguments that change pictures only.
RENDERING = {"render_mode", "width", "height", "camera_id", "camera_name", "default_camera_config", "max_geom"}
# Gymnasium's wrappers whose arguments say all that they do. What others do depends on what they saw, or is a function.
REBUILT = {
    "FilterObservation",
    "FlattenObservation",
    "RescaleAction",
    "RescaleObservation",
    "ReshapeObservation",
    "TimeAwareObservation",
    "TimeLimit",
}
CLIPPING = "ClipAction"  # takes any action for the nearest one within the bounds: so do the data, without it
HARMLESS = {CLIPPING, "OrderEnforcing", "PassiveEnvChecker", "RecordEpisodeStatistics", "RecordVideo", "HumanRendering"}


@dataclass(frozen=True)
class EnvironmentRequest:
    """What a command line or a configuration says of an environment; None was not said."""

    id: str | None = None
    kwargs: Mapping[str, Any] | None = field(default=None, hash=False)
    max_episode_steps: int | None = None
    wrappers: tuple[Mapping[str, Any], ...] | None = field(default=None, hash=False)
    ignore_env_spec: bool = False  # take the data as they are, whatever they record


@dataclass(frozen=True)
class Record:
    """What data record of the environment that made them, as Gymnasium's `EnvSpec` has it."""

    id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    max_episode_steps: int | None = None
    wrappers: tuple[Mapping[str, Any], ...] = ()
    clips_actions: bool = False  # before the environment took them

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> "Record | None":
        """Return what a file's attributes record, None if that is nothing."""
        try:
            found = json.loads(str(attributes.get("env_spec") or "{}"))
            recorded = found.get("additional_wrappers") or ()
            wrappers = [wrapper for wrapper in recorded if wrapper["name"] not in HARMLESS]
            clips = any(wrapper["name"] == CLIPPING for wrapper in recorded)
            kwargs = {key: value for key, value in (found.get("kwargs") or {}).items() if key not in RENDERING}
            name = found.get("id") or attributes.get("env_id")
            if not isinstance(name, str) or not name:
                return None
            wrappers = [{"name": one["name"], "kwargs": one.get("kwargs")} for one in wrappers]
            return cls(proper_id(name), kwargs, found.get("max_episode_steps"), tuple(wrappers), clips)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    def problems(self) -> dict[str, str]:
        """Return what of it differs from the plain environment, in words, by the names of `gq repair`'s findings."""
        plain, found = TASKS.get(self.id), {}
        if self.wrappers:
            found["env-wrapper"] = ", ".join(wrapper["name"] for wrapper in self.wrappers)
        if self.kwargs:
            found["env-kwargs"] = json.dumps(dict(self.kwargs))
        if plain and self.max_episode_steps not in (None, plain.max_episode_steps):
            found["env-limit"] = f"{self.max_episode_steps} steps instead of {plain.max_episode_steps}"
        return found


def spec_of(task: Task) -> str:
    """Return a task as data record it: JSON with the keys of Gymnasium's `EnvSpec`."""
    return json.dumps(
        {
            "id": task.id,
            "kwargs": dict(task.kwargs),
            "max_episode_steps": task.max_episode_steps,
            "additional_wrappers": [dict(wrapper) for wrapper in task.wrappers],
        }
    )


def settle(request: EnvironmentRequest, record: Record | None = None, hint: str | None = None) -> Task:
    """Return the task that is asked for, of the data that record what they record.

    Args:
        hint: the id that is taken where neither says one.

    Raises:
        UsageError: the two contradict each other, or there is no such environment, or gq cannot use it.
        GqError: it cannot be made here.
    """
    if request.ignore_env_spec:
        record = None
    if request.id and record and proper_id(request.id) != record.id:
        describe(proper_id(request.id), {})  # a name that is none is said first
    name = _agreed("task", proper_id(request.id) if request.id else None, record.id if record else None) or hint
    if not name:
        raise UsageError("nothing says which environment this is", hint="name it, for example --task Hopper-v5")
    if record and ":" in name and not request.id:
        message = f"the data are of {name}, whose code is run only if you name it"
        raise UsageError(message, hint=f"if you trust it: --task {name}")
    kwargs = _agreed("env-kwargs", request.kwargs, record.kwargs if record else None)
    limit = _agreed("max-episode-steps", request.max_episode_steps, record.max_episode_steps if record else None)
    wrappers = request.wrappers or (record.wrappers if record else ())
    for wrapper in wrappers:
        if wrapper["name"] not in REBUILT or wrapper["kwargs"] is None:
            message = f"the data were recorded through {wrapper['name']}, which cannot be made again"
            advice = "--ignore-env-spec trains on them all the same, and evaluates without it"
            raise UsageError(message, hint=f"record them without it; {advice}")
    if None in flatten({"kwargs": kwargs or {}, **{str(i): one for i, one in enumerate(wrappers)}}).values():
        raise UsageError("arguments of the environment are null, which config.toml cannot hold", hint="omit them")
    return describe(name, kwargs or {}, limit, tuple(wrappers))


def _agreed(option: str, asked: Any, recorded: Any) -> Any:
    """Return what both say, or one where the other says nothing."""
    if asked is not None and recorded is not None and asked != recorded and (recorded or option != "env-kwargs"):
        shown = [json.dumps(dict(x)) if isinstance(x, Mapping) else x for x in (asked, recorded)]
        message = f"--{option} {shown[0]} contradicts the data, which record {shown[1]}"
        raise UsageError(message, hint=f"omit --{option}; --ignore-env-spec takes them for what you say")
    return recorded if asked is None else asked


def describe(
    name: str, kwargs: Mapping[str, Any], limit: int | None = None, wrappers: tuple[Mapping[str, Any], ...] = ()
) -> Task:
    """Return the task of an environment: from the table if it is one of gq's own, else by making it once.

    Raises:
        UsageError: there is none of that name, or gq cannot use it; with the reason and the way out.
    """
    known = CONTROL_TASKS.get(name) or TASKS.get(name)
    if known and not kwargs and not wrappers and limit in (None, known.max_episode_steps):
        return known
    if known and known.kind == "control":
        raise UsageError(f"{name} takes neither --env-kwargs nor another limit", hint="omit them")
    from gq.envs.make import construct

    environment = construct(name, kwargs, limit, wrappers)
    try:
        return _look_at(environment, name, known, kwargs, wrappers)
    finally:
        environment.close()


def _look_at(
    environment: "gymnasium.Env[Any, Any]",
    name: str,
    known: Task | None,
    kwargs: Mapping[str, Any],
    wrappers: tuple[Mapping[str, Any], ...],
) -> Task:
    """Return the task of an environment by its spaces and its limit. Raises UsageError if gq cannot use them."""
    import numpy as np
    from gymnasium import spaces

    from gq.envs.make import observed

    space = environment.action_space
    if not isinstance(space, spaces.Box):
        message = f"{name} takes {type(space).__name__} actions ({space}), and gq's policies give continuous ones"
        raise UsageError(message, hint="choose an environment with a Box of actions, such as Pendulum-v1")
    if len(space.shape) != 1:
        raise UsageError(f"{name} takes actions of shape {space.shape}, not a vector", hint="wrap it so that it does")
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if not np.isfinite([low, high]).all() or (low >= high).any():
        message = f"{name} has no finite box of actions: {space}"
        raise UsageError(message, hint="wrap it with gymnasium.wrappers.RescaleAction, or give its space bounds")
    keys, width = observed(environment.observation_space, name)
    spec = environment.spec
    limit = spec.max_episode_steps if spec else None
    if limit is None:
        raise UsageError(f"{name} has no time limit", hint="give one, for example --max-episode-steps 1000")
    return Task(
        id=name,
        observation_dim=width,
        action_low=tuple(low.tolist()),
        action_high=tuple(high.tolist()),
        max_episode_steps=limit,
        can_terminate=known.can_terminate if known else True,  # nothing says that it cannot
        kwargs=dict(kwargs),
        wrappers=wrappers,
        observation_keys=keys,
    )
