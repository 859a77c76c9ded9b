"""Environments as gq runs them: quiet, with flat observations, and checked against their task by one line each."""

import json
import math
import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from gq.envs.tasks import CONTROL_TASKS, TASKS, Task, leaves, reason_for_missing
from gq.errors import GqError, UsageError, suggest

try:
    import gymnasium
    import mujoco
except (AttributeError, ImportError, RuntimeError) as error:  # what MuJoCo raises for a MUJOCO_GL that is not there
    raise GqError(f"MuJoCo does not load: {error}", hint="unset MUJOCO_GL, or set it to egl, osmesa or glfw") from error


PLUGINS = "gq.environments"  # entry points of packages that register environments
ROBOTICS = "gymnasium_robotics"
ROBOTS = ("AntMaze", "PointMaze", "Adroit", "Fetch", "FrankaKitchen", "Hand", "MaMuJoCo")  # what its ids begin with


def be_quiet() -> None:
    """Keep MuJoCo and Gymnasium from writing of what is so on purpose."""
    # MuJoCo warns about HalfCheetah's model into MUJOCO_LOG.TXT in the current folder unless a handler is set.
    mujoco.set_mju_user_warning(lambda message: None)
    gymnasium.logger.min_level = gymnasium.logger.ERROR  # v4 ids are out of date


def construct(
    name: str,
    kwargs: Mapping[str, Any],
    limit: int | None,
    wrappers: tuple[Mapping[str, Any], ...] = (),
    **options: Any,
) -> gymnasium.Env:
    """Make an environment as Gymnasium does, with wrappers of its own around it, the first one innermost."""
    be_quiet()
    if ":" in name and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # a module of one's own lies in the current folder, as for `python -m`
    elif name not in gymnasium.registry:
        _register_more()
    try:
        environment: gymnasium.Env = gymnasium.make(
            name, max_episode_steps=limit, disable_env_checker=True, **{**kwargs, **options}
        )
        for wrapper in wrappers:
            environment = getattr(gymnasium.wrappers, wrapper["name"])(environment, **_arrays(wrapper["kwargs"]))
        return environment
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise _unknown(name, error) from None
    except TypeError as error:
        reason = str(error).split(" was raised from the environment")[0]
        message = f"{name} does not take {json.dumps(dict(kwargs))}: {reason}"
        raise UsageError(message, hint="--env-kwargs takes its constructor's arguments, as JSON") from None
    except GqError:
        raise
    except Exception as error:
        raise GqError(f"{name} cannot be made: {type(error).__name__}: {error}", hint="try it in Python") from error


def _register_more() -> None:
    """Let packages that are installed register their environments."""
    if find_spec(ROBOTICS):
        import_module(ROBOTICS)
        _compare_joints_as_numbers()
    for plugin in entry_points(group=PLUGINS):
        register = plugin.load()
        if callable(register):
            register()


def _compare_joints_as_numbers() -> None:
    """Let Fetch, the hands and the kitchen find their joints' kinds.

    Gymnasium-Robotics looks for a NumPy number in a tuple of MuJoCo's enumeration, whose members are equal to Python's
    numbers only, from MuJoCo 3.11 on or earlier. It gets a copy of the module's names with plain numbers.
    """
    utilities: Any = import_module(f"{ROBOTICS}.utils.mujoco_utils")
    kinds = SimpleNamespace(**{name: int(kind) for name, kind in mujoco.mjtJoint.__members__.items()})
    utilities.mujoco = SimpleNamespace(**{**vars(mujoco), "mjtJoint": kinds})


def _unknown(name: str, error: Exception) -> UsageError:
    """Return the error of an environment that is not there: the closest names, or what to install."""
    if name.startswith(ROBOTS) and not find_spec(ROBOTICS):
        return UsageError(f"{name} is in Gymnasium-Robotics", hint="pip install 'gq[robotics]'")
    if isinstance(error, gymnasium.error.NameNotFound):
        families = {known.split("-")[0] for known in TASKS}
        own = [key for key in gymnasium.registry if "/" not in key and key.split("-")[0] not in families]
        otherwise = "gq knows Gymnasium's ids, DeepMind Control's such as dog-run, and package.module:Id-v0"
        reason = reason_for_missing(name)
        hint = suggest(name, [*TASKS, *CONTROL_TASKS, *own], otherwise=otherwise)
        return UsageError(f"there is no task {name}{reason}", hint=hint)
    if "mujoco_py" in str(error):
        family, versions = name.rpartition("-v")[0], gymnasium.registry.keys()
        newest = max((key for key in versions if key.rpartition("-v")[0] == family), key=lambda key: (len(key), key))
        return UsageError(f"{name} needs mujoco_py, which nobody maintains", hint=f"its newest version is {newest}")
    hint = "install the package that registers it, or check the name"
    return UsageError(f"there is no task {name}: {str(error).splitlines()[0]}", hint=hint)


def _arrays(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a wrapper's arguments with lists of numbers as arrays."""

    def is_numbers(value: Any) -> bool:
        return isinstance(value, list) and not any(isinstance(item, str) for item in value)

    return {key: np.array(value, np.float32) if is_numbers(value) else value for key, value in kwargs.items()}


def observed(space: Any, name: str) -> tuple[tuple[str, ...], int]:
    """Return the keys of a Dict of observations in the order in which they are flattened, and the width S of all.

    Raises:
        UsageError: they are pictures, or not numbers.
    """
    parts = leaves(space) if isinstance(space, gymnasium.spaces.Dict) else {"": space}
    width = 0
    for key, part in parts.items():
        what = f"{name} shows {key or 'observations'}"
        if not isinstance(part, gymnasium.spaces.Box):
            raise UsageError(f"{what} as {type(part).__name__}, not as numbers", hint="gq takes Box observations")
        if len(part.shape) == 3 and part.dtype.name == "uint8":
            raise UsageError(
                f"{what} as pictures of shape {part.shape}", hint="gq learns from states, not from pictures"
            )
        width += math.prod(part.shape)
    return tuple(key for key in parts if key), width


def make(task: Task, **options: Any) -> gymnasium.Env:
    """Return an environment; options go to its constructor (render_mode, width, height, camera_name, ...).

    One of gq's own table is made as it is. Any other is looked at: its observations are flattened, and what it does is
    compared with what the task says.

    Raises:
        GqError: the task is DeepMind Control's, and dm_control is not installed; or it is not what it was.
    """
    if task.kind == "control":
        from gq.envs.control import ControlEnvironment

        environment: gymnasium.Env = ControlEnvironment(task, **options)
        return environment
    be_quiet()
    if task.is_known:
        return gymnasium.make(task.id, disable_env_checker=True, **options)
    return Checked(construct(task.id, task.kwargs, task.max_episode_steps, task.wrappers, **options), task)


class Checked(gymnasium.Wrapper):
    """An environment with flat observations that does what its task says, or stops with one line.

    Raises:
        GqError: its spaces are not the task's; a step's observation or reward is not of their shape, or not finite.
    """

    def __init__(self, environment: gymnasium.Env, task: Task) -> None:
        super().__init__(environment)
        self.task = task
        keys, width = observed(environment.observation_space, task.id)
        space = environment.action_space
        assert isinstance(space, gymnasium.spaces.Box)
        found = (keys, width, *(tuple(end.astype(np.float64).tolist()) for end in (space.low, space.high)))
        for what, now, then in zip(
            ("observation keys", "observation width", "lowest actions", "highest actions"),
            found,
            (task.observation_keys, task.observation_dim, task.action_low, task.action_high),
            strict=True,
        ):
            if now != then:
                message = f"{task.id} is not what it was: {what} are {now}, and were {then}"
                raise GqError(message, hint="install the version that the run or the data were made with")
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float64)
        self.success: bool | None = None  # whether the episode's goal was reached, where the environment says so

    def reset(self, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; return its first observation [S], float64."""
        self.success = None
        observation, information = self.env.reset(**options)
        return self.flat(observation), information

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take a step with an action [A]."""
        observation, reward, terminated, truncated, information = self.env.step(action)
        rewards = np.asarray(reward, np.float64)
        if rewards.shape not in ((), (1,)):
            raise self.problem(f"rewards of shape {rewards.shape}, not numbers")
        number = rewards.item()
        if not np.isfinite(number):
            raise self.problem(f"a reward of {number}")
        if terminated and not self.task.can_terminate:
            raise self.problem("an end of an episode before its limit, which it is known not to have")
        reached = information.get("success", information.get("is_success"))
        if reached is not None:
            self.success = bool(self.success or reached)
        return self.flat(observation), number, bool(terminated), bool(truncated), information

    def flat(self, observation: Any) -> np.ndarray:
        """Return an observation as a vector [S], float64."""
        keys = self.task.observation_keys
        values = leaves(observation) if keys else {}
        parts = [np.asarray(values[key], np.float64).ravel() for key in keys]
        vector = np.concatenate(parts) if keys else np.asarray(observation, np.float64).ravel()
        if vector.shape != (self.task.observation_dim,):
            raise self.problem(f"{vector.size} observed numbers, not the {self.task.observation_dim} of its space")
        if not np.isfinite(vector).all():
            raise self.problem("observations that are not finite")
        return vector

    def problem(self, what: str) -> GqError:
        """Return the error of an environment that gives something else than its task says."""
        return GqError(f"{self.task.id} gave {what}", hint="gq checks what environments give; correct the environment")
