"""The official TD-MPC2 checkpoints by name. They are fetched and kept as they are, and never unpickled here."""

import re
from pathlib import Path

from gq.datasets.catalog import DatasetEntry
from gq.envs.tasks import CONTROL_TASKS, resolve_task
from gq.errors import UsageError, suggest

DMCONTROL = """
acrobot-swingup cartpole-balance cartpole-balance-sparse cartpole-swingup cartpole-swingup-sparse cheetah-jump
cheetah-run cheetah-run-back cheetah-run-backwards cheetah-run-front cup-catch cup-spin dog-run dog-stand dog-trot
dog-walk finger-spin finger-turn-easy finger-turn-hard fish-swim hopper-hop hopper-hop-backwards hopper-stand
humanoid-run humanoid-stand humanoid-walk pendulum-spin pendulum-swingup quadruped-run quadruped-walk reacher-easy
reacher-hard reacher-three-easy reacher-three-hard walker-run walker-run-backwards walker-stand walker-walk
walker-walk-backwards
"""
METAWORLD = """
assembly basketball bin-picking box-close button-press button-press-topdown button-press-topdown-wall
button-press-wall coffee-button coffee-pull coffee-push dial-turn disassemble door-close door-lock door-open
door-unlock drawer-close drawer-open faucet-close faucet-open hammer hand-insert handle-press handle-press-side
handle-pull handle-pull-side lever-pull peg-insert-side peg-unplug-side pick-out-of-hole pick-place pick-place-wall
plate-slide plate-slide-back plate-slide-back-side plate-slide-side push push-back push-wall reach reach-wall
shelf-place soccer stick-pull stick-push sweep sweep-into window-close window-open
"""
MYOSUITE = "key-turn obj-hold pen-twirl pose reach"
MANISKILL2 = "lift-cube pick-cube pick-ycb stack-cube turn-faucet"
TASKS_OF = {
    "dmcontrol": DMCONTROL.split(),
    "metaworld": [f"mw-{task}" for task in METAWORLD.split()],
    "maniskill2": MANISKILL2.split(),
    "myosuite": [f"myo-hand-{task}{suffix}" for task in MYOSUITE.split() for suffix in ("", "-hard")],
}
SEEDS = ("1", "2", "3")
SINGLE_TASK_BYTES = 31_500_000
MULTITASK_BYTES = {  # 4 bytes a parameter, those of the target networks too
    "1M": 7_900_000,
    "5M": 34_000_000,
    "19M": 117_000_000,
    "48M": 294_000_000,
    "317M": 2_014_000_000,
}
OLD_LAYOUT = """
cartpole-balance-1 cartpole-balance-2 cartpole-swingup-1 cartpole-swingup-sparse-1 cartpole-swingup-sparse-2
pendulum-swingup-2 walker-walk-backwards-1 humanoid-run-3 humanoid-stand-3 humanoid-walk-3 pick-cube-2 stack-cube-1
stack-cube-2 myo-hand-pose-2
"""
# The first 30 tasks of the official multi-task models, in the order of their embeddings.
MT30_NAMES = """
walker-stand walker-walk walker-run cheetah-run reacher-easy reacher-hard acrobot-swingup pendulum-swingup
cartpole-balance cartpole-balance-sparse cartpole-swingup cartpole-swingup-sparse cup-catch finger-spin
finger-turn-easy finger-turn-hard fish-swim hopper-stand hopper-hop walker-walk-backwards walker-run-backwards
cheetah-run-backwards cheetah-run-front cheetah-run-back cheetah-jump hopper-hop-backwards reacher-three-easy
reacher-three-hard cup-spin pendulum-spin
"""
MT30 = MT30_NAMES.split()
MULTITASK = {"mt30": 30, "mt70": 70, "mt80": 80}  # tasks that each holds
REPOSITORY = "nicklashansen/tdmpc2/resolve/main"


def tdmpc2_entry(domain: str, task: str, level: str) -> DatasetEntry:
    """Return the entry of one checkpoint.

    Args:
        domain: the folder in the repository.
        level: the seed, or for a multi-task checkpoint its size.
    """
    name = f"{task}-{level}"
    note = "it is in a layout that no published code evaluates correctly" if name in OLD_LAYOUT.split() else ""
    if task == "mt70":
        note = "not every size of mt70 was published"
    return DatasetEntry(
        id=f"tdmpc2/{name}",
        kind="tdmpc2",
        task=task,
        group=f"tdmpc2/{task}",
        level=level,
        file=f"tdmpc2/{name}.pt",
        size_bytes=MULTITASK_BYTES.get(level, SINGLE_TASK_BYTES),
        licence="MIT",
        remote_paths=(f"{REPOSITORY}/{domain}/{name}.pt",),
        note=note,
    )


def tdmpc2_entries() -> list[DatasetEntry]:
    """Return the entries of all checkpoints, by domain, task and seed."""
    single = [
        tdmpc2_entry(domain, task, seed) for domain, tasks in TASKS_OF.items() for task in tasks for seed in SEEDS
    ]
    return single + [tdmpc2_entry("multitask", task, size) for task in MULTITASK for size in MULTITASK_BYTES]


def checkpoint_task(entry: DatasetEntry, asked: str | None) -> str:
    """Return the task that a checkpoint is imported for, or "" where gq has none of its tasks.

    Args:
        asked: what the user named, to choose one of many.

    Raises:
        UsageError: the checkpoint holds many tasks and none was asked for, or is not for the one that was.
    """
    task = resolve_task(asked).id if asked else ""
    if entry.task not in MULTITASK:
        if task and task != entry.task:
            raise UsageError(f"{entry.id} is for {entry.task}, not {task}", hint="leave --task away")
        return entry.task if entry.task in CONTROL_TASKS else ""
    usable = [name for name in MT30 if name in CONTROL_TASKS]
    listed = "one of " + ", ".join(usable)
    if not task:
        raise UsageError(f"{entry.id} holds {MULTITASK[entry.task]} tasks: choose with --task", hint=listed)
    if task not in usable:
        raise UsageError(f"{entry.id} does not hold {task}", hint=suggest(task, usable, otherwise=listed))
    return task


def task_in_file_name(path: Path) -> str:
    """Return the task that a file's name says as the official ones do, `dog-run-1.pt`, or ""."""
    name = re.sub(r"-[1-3]$", "", path.stem)
    return name if name in CONTROL_TASKS else ""
