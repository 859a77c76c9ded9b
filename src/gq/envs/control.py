"""Tasks of the DeepMind Control suite as Gymnasium environments. Importing this needs dm_control, the extra `dmc`."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer
from gymnasium.spaces import Box

from gq.envs.control_extras import EXTRAS
from gq.envs.tasks import Task
from gq.errors import GqError, UsageError


@contextmanager
def without_display() -> Iterator[None]:
    """Keep dm_control from opening a display of its own, with warnings where there is none; Gymnasium draws here."""
    backend = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = "disabled"
    try:
        yield
    finally:
        del os.environ["MUJOCO_GL"]
        if backend is not None:
            os.environ["MUJOCO_GL"] = backend


try:
    with without_display():
        from dm_control import suite
        from dm_control.rl.control import PhysicsError
except (AttributeError, ImportError, RuntimeError) as error:  # the first is what versions raise that do not fit
    message = f"DeepMind Control tasks need dm_control, which does not load: {error}"
    raise GqError(message, hint='pip install "gym-qwen[dmc]"') from error

SUITE_DOMAINS = {"cup": "ball_in_cup", "pointmass": "point_mass", "humanoid-cmu": "humanoid_CMU"}
NUM_START_ATTEMPTS = 10


class ControlEnvironment(gymnasium.Env[np.ndarray, np.ndarray]):
    """A task of the suite: each action is applied twice with summed rewards, an episode is 500 such decisions.

    Observations are float32 [S], the suite's in its order; actions [A] in [-1, 1] are scaled to the suite's bounds, and
    clipped. Episodes never terminate, they are truncated. One seed gives the same episode whatever ran before or runs
    beside it, and the episode that `suite.load(..., task_kwargs={"random": seed})` starts with.
    """

    def __init__(
        self,
        task: Task,
        *,
        render_mode: str | None = None,
        width: int = 480,
        height: int = 480,
        camera_id: int | None = None,
        camera_name: str | None = None,
    ) -> None:
        """Load a task of the suite. The size in pixels and the camera are those of `render`."""
        self.task = task
        # MuJoCo warns of cheetah's model, and of diverging states, which are errors here; dm_control would print it.
        mujoco.set_mju_user_warning(lambda message: None)
        self.environment = load(task.id)
        self.model, self.data = self.environment.physics.model.ptr, self.environment.physics.data.ptr
        spec = self.environment.action_spec()
        self.centre, self.half_range = (spec.maximum + spec.minimum) / 2, (spec.maximum - spec.minimum) / 2
        self.action_space = Box(-1.0, 1.0, (self.task.action_dim,), np.float32)
        self.observation_space = Box(-np.inf, np.inf, (self.task.observation_dim,), np.float32)
        self.num_decisions, self.is_running = 0, False
        self.observation = np.zeros(self.task.observation_dim, np.float32)
        self.render_mode, self.width, self.height = render_mode, width, height
        self.camera_id, self.camera_name = camera_id, camera_name
        self.renderer: MujocoRenderer | None = None

    @property
    def dt(self) -> float:
        """Simulated seconds per decision."""
        seconds: float = self.task.action_repeat * self.environment.control_timestep()
        return seconds

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; return its first observation and nothing else.

        Args:
            seed: below 2^32; None continues with the random numbers of the last one.

        Raises:
            UsageError: the seed is out of range.
            GqError: the simulation diverges from every start.
        """
        if seed is not None:
            if not 0 <= seed < 2**32:
                raise UsageError(f"{seed} is no seed for {self.task.id}", hint="it must be at least 0 and below 2^32")
            self.environment.task.random.seed(seed)
        for _ in range(NUM_START_ATTEMPTS):
            try:
                self.observation = flatten(self.environment.reset().observation)
                break
            except PhysicsError as error:
                reason = str(error)
        else:
            hint = 'pip install "gym-qwen[dmc]" in a fresh environment, if mujoco and dm_control may not fit'
            raise GqError(f"{self.task.id} diverges from every start: {reason}", hint=hint)
        self.num_decisions, self.is_running = 0, True
        if self.render_mode == "human":
            self.render()
        return self.observation.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Apply an action [A] twice; return observation, sum of both rewards, False, truncated and information.

        A simulation that diverges truncates the episode at its last observation and is told as `physics_error`.
        """
        assert self.is_running, "reset comes first"
        assert np.isfinite(action).all(), f"an action of {self.task.id} is not finite"
        control = self.centre + self.half_range * np.clip(action, -1.0, 1.0)
        reward, information = 0.0, {}
        try:
            for _ in range(self.task.action_repeat):
                moment = self.environment.step(control)
                assert moment.discount == 1.0, f"{self.task.id} terminated"
                reward += float(moment.reward)
            self.observation = flatten(moment.observation)
        except PhysicsError as error:
            information = {"physics_error": str(error)}
        self.num_decisions += 1
        self.is_running = not information and self.num_decisions < self.task.max_episode_steps
        if self.render_mode == "human":
            self.render()
        return self.observation.copy(), reward, False, not self.is_running, information

    def render(self) -> Any:
        """Return a picture, uint8 [height, width, 3], or show it in a window, as `render_mode` says.

        The camera is the model's first, or the one that follows the robot where that is another.
        """
        if not self.renderer:
            camera_id = self.camera_id
            if camera_id is None and self.camera_name is None:
                camera_id = 2 if self.task.id.startswith("quadruped-") else 0
            size = self.model.vis.global_
            size.offwidth, size.offheight = max(size.offwidth, self.width), max(size.offheight, self.height)
            self.renderer = MujocoRenderer(
                self.model,
                self.data,
                width=self.width,
                height=self.height,
                camera_id=camera_id,
                camera_name=self.camera_name,
            )
        return self.renderer.render(self.render_mode)

    def close(self) -> None:
        """Close the window or the drawing context, if there is one."""
        if self.renderer:
            self.renderer.close()
            self.renderer = None


def load(task: str) -> Any:
    """Return the suite's environment of a task's name, a `dm_control.rl.control.Environment`.

    It takes a tenth of a second to load, that of dog most of one.
    """
    extra = EXTRAS.get(task)
    environment = suite.load(*suite_name(extra.base if extra else task))
    if extra:
        environment.task.get_reward = extra.reward
    if extra and extra.start:
        environment.task.initialize_episode = partial(extra.start, random=environment.task.random)
    return environment


def suite_name(task: str) -> tuple[str, str]:
    """Return what dm_control calls a task's domain and the task: ball_in_cup and catch for cup-catch."""
    for name, domain in SUITE_DOMAINS.items():
        if task.startswith(f"{name}-"):
            return domain, task.removeprefix(f"{name}-").replace("-", "_")
    domain, _, rest = task.partition("-")
    return domain, rest.replace("-", "_")


def flatten(observation: Mapping[str, Any]) -> np.ndarray:
    """Return the numbers and arrays of an observation in their order, float32 [S]."""
    return np.concatenate([np.ravel(part) for part in observation.values()], dtype=np.float32)
