"""Environments as gq runs them: quiet, without Gymnasium's checking wrapper."""

from typing import Any

from gq.envs.tasks import Task
from gq.errors import GqError

try:
    import gymnasium
    import mujoco
except (AttributeError, ImportError, RuntimeError) as error:  # what MuJoCo raises for a MUJOCO_GL that is not there
    raise GqError(f"MuJoCo does not load: {error}", hint="unset MUJOCO_GL, or set it to egl, osmesa or glfw") from error


def make(task: Task, **options: Any) -> gymnasium.Env:
    """Return an environment; options go to its constructor (render_mode, width, height, camera_name, ...).

    Raises:
        GqError: the task is DeepMind Control's, and dm_control is not installed.
    """
    if task.kind == "control":
        from gq.envs.control import ControlEnvironment

        environment: gymnasium.Env = ControlEnvironment(task, **options)
        return environment
    # MuJoCo warns about HalfCheetah's model into MUJOCO_LOG.TXT in the current folder unless a handler is set.
    mujoco.set_mju_user_warning(lambda message: None)
    gymnasium.logger.min_level = gymnasium.logger.ERROR  # v4 ids are out of date on purpose
    return gymnasium.make(task.id, disable_env_checker=True, **options)
