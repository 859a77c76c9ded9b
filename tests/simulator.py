"""Environments by the names of their tasks."""

from typing import Any

import gymnasium

from gq.envs import make as module
from gq.envs.tasks import resolve_task


def make(task: str, **options: Any) -> gymnasium.Env:
    """Return the environment of a task."""
    return module.make(resolve_task(task), **options)
