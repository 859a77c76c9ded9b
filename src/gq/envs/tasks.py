"""The MuJoCo tasks of Gymnasium and of DeepMind Control that gq knows by name, with what needs no MuJoCo to check."""

from dataclasses import dataclass
from typing import Literal

from gq.errors import UsageError, suggest


@dataclass(frozen=True)
class Task:
    """One environment's interface, as `gq.envs.make.make` gives it."""

    id: str
    observation_dim: int
    action_dim: int
    action_bound: float  # the action box is [-bound, bound] in each dimension
    max_episode_steps: int = 1000  # in decisions
    kind: Literal["gymnasium", "control"] = "gymnasium"
    action_repeat: int = 1  # frames, which are control steps of the simulator, per decision
    can_terminate: bool = False  # else an episode only ends at its time limit, which is a truncation


TASKS = {
    task.id: task
    for task in [
        Task("Hopper-v5", 11, 3, 1.0, can_terminate=True),
        Task("HalfCheetah-v5", 17, 6, 1.0),
        Task("Walker2d-v5", 17, 6, 1.0, can_terminate=True),
        Task("Ant-v5", 105, 8, 1.0, can_terminate=True),
        Task("Humanoid-v5", 348, 17, 0.4, can_terminate=True),
        Task("HumanoidStandup-v5", 348, 17, 0.4),
        Task("Swimmer-v5", 8, 2, 1.0),
        Task("Reacher-v5", 10, 2, 1.0, 50),
        Task("Pusher-v5", 23, 7, 2.0, 100),
        Task("InvertedPendulum-v5", 4, 1, 3.0, can_terminate=True),
        Task("InvertedDoublePendulum-v5", 9, 1, 1.0, can_terminate=True),
        Task("Hopper-v4", 11, 3, 1.0, can_terminate=True),
        Task("HalfCheetah-v4", 17, 6, 1.0),
        Task("Walker2d-v4", 17, 6, 1.0, can_terminate=True),
        Task("Ant-v4", 27, 8, 1.0, can_terminate=True),
        Task("Humanoid-v4", 376, 17, 0.4, can_terminate=True),
    ]
}

# Domain, widths of observations and actions, tasks. The names are those of the TD-MPC2 paper; in dm_control `cup` is
# ball_in_cup, `pointmass` point_mass and `humanoid-cmu` humanoid_CMU. Seen through the environment, actions are scaled.
CONTROL_SUITE = [
    ("acrobot", 6, 1, "swingup swingup-sparse"),
    ("cartpole", 5, 1, "balance balance-sparse swingup swingup-sparse"),
    ("cartpole", 8, 1, "two-poles"),
    ("cartpole", 11, 1, "three-poles"),
    ("cheetah", 17, 6, "run run-back run-backwards run-front jump"),
    ("cup", 8, 2, "catch spin"),
    ("dog", 223, 38, "stand walk trot run"),
    ("dog", 232, 38, "fetch"),
    ("finger", 9, 2, "spin"),
    ("finger", 12, 2, "turn-easy turn-hard"),
    ("fish", 21, 5, "upright"),
    ("fish", 24, 5, "swim"),
    ("hopper", 15, 4, "stand hop hop-backwards"),
    ("humanoid", 67, 21, "stand walk run"),
    ("humanoid", 55, 21, "run-pure-state"),
    ("humanoid-cmu", 137, 56, "stand walk run"),
    ("manipulator", 44, 5, "bring-ball bring-peg insert-ball insert-peg"),
    ("pendulum", 3, 1, "swingup spin"),
    ("pointmass", 4, 2, "easy hard"),
    ("quadruped", 78, 12, "walk run"),
    ("quadruped", 90, 12, "fetch"),
    ("reacher", 6, 2, "easy hard"),
    ("stacker", 49, 5, "stack-2"),
    ("stacker", 63, 5, "stack-4"),
    ("swimmer", 25, 5, "swimmer6"),
    ("swimmer", 61, 14, "swimmer15"),
    ("walker", 24, 6, "stand walk run walk-backwards run-backwards"),
]
CONTROL_TASKS = {
    f"{domain}-{name}": Task(
        f"{domain}-{name}", observation_dim, action_dim, 1.0, max_episode_steps=500, kind="control", action_repeat=2
    )
    for domain, observation_dim, action_dim, names in CONTROL_SUITE
    for name in names.split()
}
LEFT_OUT = {
    "reacher-three-": "its robot is not part of dm_control",
    "quadruped-escape": "it wants a display for every new terrain",
    "lqr-": "its episodes have no time limit",
}


def resolve_task(name: str) -> Task:
    """Return the task of a Gymnasium id in any case, without a version the newest; or of a DeepMind Control name.

    The latter are `domain-task`, such as dog-run, with dm_control's own spelling as good: ball_in_cup-catch.

    Raises:
        UsageError: no such task.
    """
    for task in TASKS.values():  # v5 comes first
        if name.lower() in (task.id.lower(), task.id.split("-")[0].lower()):
            return task
    wanted = name.lower().replace("_", "-").replace("ball-in-cup-", "cup-").replace("point-mass-", "pointmass-")
    if wanted in CONTROL_TASKS:
        return CONTROL_TASKS[wanted]
    newest = ", ".join(known for known in TASKS if known.endswith("v5"))
    otherwise = f"known tasks: {newest}, and DeepMind Control's such as dog-run"
    reason = next((f": {reason}" for start, reason in LEFT_OUT.items() if wanted.startswith(start)), "")
    raise UsageError(
        f"there is no task {name}{reason}", hint=suggest(name, [*TASKS, *CONTROL_TASKS], otherwise=otherwise)
    )


def task_in_name(text: str) -> Task | None:
    """Return the v5 task whose name a dataset id or file name contains (`hopper_medium-v2.hdf5`), or None."""
    words = text.lower().replace("_", "-").replace("/", "-").replace(".", "-").split("-")
    aliases = {"walker": "walker2d", "cheetah": "halfcheetah"}
    for word in reversed(words):
        for task in TASKS.values():
            if aliases.get(word, word) == task.id.split("-")[0].lower():
                return task
    return None
