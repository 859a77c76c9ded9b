"""The MuJoCo tasks of Gymnasium that gq knows by name, with what can be checked without loading MuJoCo."""

from dataclasses import dataclass

from gq.errors import UsageError, suggest


@dataclass(frozen=True)
class Task:
    """One environment's interface."""

    id: str
    observation_dim: int
    action_dim: int
    action_bound: float  # the action box is [-bound, bound] in each dimension
    max_episode_steps: int = 1000


TASKS = {
    task.id: task
    for task in [
        Task("Hopper-v5", 11, 3, 1.0),
        Task("HalfCheetah-v5", 17, 6, 1.0),
        Task("Walker2d-v5", 17, 6, 1.0),
        Task("Ant-v5", 105, 8, 1.0),
        Task("Humanoid-v5", 348, 17, 0.4),
        Task("HumanoidStandup-v5", 348, 17, 0.4),
        Task("Swimmer-v5", 8, 2, 1.0),
        Task("Reacher-v5", 10, 2, 1.0, 50),
        Task("Pusher-v5", 23, 7, 2.0, 100),
        Task("InvertedPendulum-v5", 4, 1, 3.0),
        Task("InvertedDoublePendulum-v5", 9, 1, 1.0),
        Task("Hopper-v4", 11, 3, 1.0),
        Task("HalfCheetah-v4", 17, 6, 1.0),
        Task("Walker2d-v4", 17, 6, 1.0),
        Task("Ant-v4", 27, 8, 1.0),
        Task("Humanoid-v4", 376, 17, 0.4),
    ]
}


def resolve_task(name: str) -> Task:
    """Return the task of a Gymnasium id in any case; without a version, the newest.

    Raises:
        UsageError: no such task.
    """
    for task in TASKS.values():  # v5 comes first
        if name.lower() in (task.id.lower(), task.id.split("-")[0].lower()):
            return task
    hint = suggest(name, TASKS, otherwise="known tasks: " + ", ".join(t for t in TASKS if t.endswith("v5")))
    raise UsageError(f"there is no task {name}", hint=hint)


def task_in_name(text: str) -> Task | None:
    """Return the v5 task whose name a dataset id or file name contains (`hopper_medium-v2.hdf5`), or None."""
    words = text.lower().replace("_", "-").replace("/", "-").replace(".", "-").split("-")
    aliases = {"walker": "walker2d", "cheetah": "halfcheetah"}
    for word in reversed(words):
        for task in TASKS.values():
            if aliases.get(word, word) == task.id.split("-")[0].lower():
                return task
    return None
