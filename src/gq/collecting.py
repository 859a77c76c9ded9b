"""Roll a policy into a dataset: equal options and versions give equal bits, however often it was interrupted.

Episodes run as `gq.rollouts.collect` says. Equal bits hold for one type of processor and number of threads, or one
type of GPU; both are recorded with the data. Finished episodes are kept in `.NAME.parts` beside the output until it is
written.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gq.data.hdf5 import open_hdf5, plain_attributes
from gq.data.reading import read_trajectories, time_limits, write_canonical
from gq.data.replay import EpisodeLog
from gq.data.trajectories import Trajectories
from gq.envs.engines import CONTROL_ENGINES, ENGINES, engines_of, versions
from gq.envs.specs import spec_of
from gq.envs.tasks import TASKS, Task
from gq.errors import DataError, Interrupted, UsageError
from gq.files import sha256, sync, write_error
from gq.paths import find_run
from gq.policies.builtin import BuiltinPolicy
from gq.policies.compute import Compute, choose_compute
from gq.policies.loading import Acting, load_run
from gq.policies.packaged import load_policy
from gq.rollouts.collect import BLOCK_SIZE, Plan, Recipe, run_plan
from gq.rollouts.episodes import Policy
from gq.rollouts.parts import Request, begin, fingerprint, is_begun_with, lock_parts, remove
from gq.signals import StopRequest

DEFAULT_NUM_EPISODES = 100
MAX_NUM_TARGETS = 1000  # an attribute of the file holds them
FORMAT = 1  # of the parts, and of all that decides the bits besides what a request says


@dataclass(frozen=True)
class Collected:
    """A dataset that was collected; `to_dict` is the JSON document."""

    file: Path
    env_id: str
    policy: str
    episodes: int
    transitions: int
    return_mean: float
    return_std: float
    length_mean: float
    terminated_share: float  # of the episodes; the others reached the time limit
    sha256: str  # of the file

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**vars(self), "file": str(self.file)}


@dataclass(frozen=True, kw_only=True)
class CollectionRequest:
    """What is to be collected."""

    num_episodes: int | None = None  # DEFAULT_NUM_EPISODES if neither number is given
    num_transitions: int | None = None  # collect until there are this many rows; the last episode may go beyond
    targets: Sequence[float] = ()  # one episode after the other takes the next; default: the run's highest
    noise: float | None = None  # Gaussian, in half action ranges; None: none, or that of a built-in policy's dataset
    random_share: float = 0.0  # of the steps, which take a uniformly random action
    seed: int = 0  # episode i draws its start and its noise from (seed, i)
    num_envs: int = BLOCK_SIZE  # environments at a time, 1 to BLOCK_SIZE; the data do not depend on it


@dataclass(frozen=True)
class Source:
    """A policy to collect with."""

    policy: Policy
    task: Task
    description: dict[str, Any]  # what a file says about it
    target: float  # where none is asked for
    noise: float


def collect(
    source: str | Path,
    output: str | Path,
    wanted: CollectionRequest | None = None,
    acting: Acting | None = None,
    *,
    force: bool = False,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> Collected:
    """Run whole episodes of a policy and write them as a canonical dataset.

    A call that was stopped or killed is resumed by repeating it, and ends with the same file. A file that is there
    already is returned as it is if the same request made it.

    Args:
        source: a run's folder or name, or the name of a policy that comes with gq, such as `builtin/hopper/expert`.
        force: replace another file at `output`, and throw away unfinished parts of another request.
        note: told when a signal came, or that unfinished parts were found.
        progress: called after each step with the steps so far and an estimate of all.

    Raises:
        UsageError: no such run, policy or mode, a value out of range, or `output` is there or begun by another request.
        GqError: another process collects into `output`, or it cannot be written.
        Interrupted: after SIGINT or SIGTERM; finished episodes are kept.
    """
    output, wanted = Path(output).expanduser(), wanted or CollectionRequest()
    check(wanted, output)
    if wanted.num_episodes is None and wanted.num_transitions is None:
        wanted = replace(wanted, num_episodes=DEFAULT_NUM_EPISODES)
    loaded = load_source(source, acting or Acting())
    recipe = Recipe(
        seed=wanted.seed,
        targets=choose_targets(loaded, wanted.targets),
        noise=float(loaded.noise if wanted.noise is None else wanted.noise),
        random_share=float(wanted.random_share),
    )
    request = make_request(loaded, recipe, wanted)
    with lock_parts(output) as parts:
        if output.exists() and not force:
            collected = existing(output, parts, request)
            note(f"{output} is there already")
            return collected
        begin(parts, request, force=force, note=note)
        dims = {"observation_dim": loaded.task.observation_dim, "action_dim": loaded.task.action_dim}
        with StopRequest(note) as stop, EpisodeLog(parts / "episodes", **dims) as log:
            plan = Plan(log, loaded.task, num_episodes=wanted.num_episodes, num_transitions=wanted.num_transitions)
            run_plan(
                plan,
                loaded.policy,
                recipe,
                num_envs=wanted.num_envs,
                is_stopped=lambda: bool(stop.requested),
                progress=progress,
            )
            if not plan.is_complete:
                message = f"stopped by {stop.requested}, {len(log.lengths)} finished episodes are kept"
                raise Interrupted(message, hint="the same command resumes")
            collected = write_output(output, parts, request, assemble(log, plan.first, request))
        remove(parts)
    return collected


def check(wanted: CollectionRequest, output: Path) -> None:
    """Raise UsageError for values out of range, or a folder as output."""
    if wanted.num_episodes is not None and wanted.num_transitions is not None:
        raise UsageError("both a number of episodes and one of transitions are given", hint="omit one of them")
    for name, number in (("episodes", wanted.num_episodes), ("transitions", wanted.num_transitions)):
        if number is not None and number < 1:
            raise UsageError(f"cannot collect {number} {name}", hint="ask for 1 or more")
    if len(wanted.targets) > MAX_NUM_TARGETS or not all(math.isfinite(target) for target in wanted.targets):
        raise UsageError(f"targets must be at most {MAX_NUM_TARGETS} numbers", hint="for example --target 1800,3600")
    if wanted.noise is not None and not 0 <= wanted.noise < math.inf:
        hint = "in half action ranges, for example --noise 0.2"
        raise UsageError(f"the noise {wanted.noise:g} is not 0 or more", hint=hint)
    if not 0 <= wanted.random_share <= 1:
        message = f"the share {wanted.random_share:g} of random actions is not from 0 to 1"
        raise UsageError(message, hint="--random-share 0.1")
    if not 0 <= wanted.seed < 2**63:
        raise UsageError(f"the seed {wanted.seed} is negative or too large", hint="give 0 or more, below 2^63")
    if not 1 <= wanted.num_envs <= BLOCK_SIZE:
        raise UsageError(f"cannot run {wanted.num_envs} environments at a time", hint=f"1 to {BLOCK_SIZE}")
    if output.is_dir():
        raise UsageError(f"{output} is a folder", hint=f"name a file, for example {output / 'data.hdf5'}")


def load_source(source: str | Path, acting: Acting) -> Source:
    """Load a run's policy or a built-in one.

    Raises:
        UsageError: there is no such run, checkpoint, policy, mode or device.
        GqError: the checkpoint is damaged.
    """
    if isinstance(source, str) and source.startswith("builtin/"):
        if acting.mode is not None:
            raise UsageError(f"{source} has no planner and acts in one way only", hint="omit --mode")
        packaged = load_policy(source)
        description = {"policy": source, "policy_sha256": packaged.sha256}
        return Source(BuiltinPolicy(packaged), TASKS[packaged.env_id], description, 0.0, packaged.noise)
    run, folder = find_run(source) if isinstance(source, str) else (source, None)
    loaded = load_run(run, replace(acting, checkpoint=folder) if folder else acting)
    description = {
        "policy": run.resolve().name,
        "checkpoint": loaded.checkpoint.name,
        "policy_sha256": sha256(loaded.checkpoint / "model.safetensors"),
        "device": describe(choose_compute(acting.device, loaded.config.train.precision)),
    }
    if loaded.mode:
        description["mode"] = loaded.mode.name
    if loaded.corrector:
        description["corrector_sha256"] = loaded.corrector.document["sha256"]
    target = max(loaded.config.targets, default=0.0)
    return Source(loaded.policy, loaded.config.environment, description, float(target), 0.0)


def describe(compute: Compute) -> str:
    """Return what the last bits of a policy's actions depend on."""
    precision = "bfloat16" if compute.bfloat16 else "float32"
    if compute.device.type == "cuda":
        return f"{torch.cuda.get_device_name(compute.device)}, {precision}"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{compute.device.type} {capability}, {torch.get_num_threads()} threads, {precision}"


def choose_targets(source: Source, targets: Sequence[float]) -> tuple[float, ...]:
    """Return the target returns asked for, or the source's own; none for a policy that takes none.

    Raises:
        UsageError: some are asked for that the policy would ignore.
    """
    source.policy.reset(np.zeros(1), [0])
    if len(source.policy.returns_to_go):
        return tuple(float(target) for target in targets) or (source.target,)
    if len(targets):
        raise UsageError(f"{source.description['policy']} takes no target return", hint="omit --target")
    return ()


def make_request(source: Source, recipe: Recipe, wanted: CollectionRequest) -> Request:
    """Return everything that the data depend on."""
    return {
        "format": FORMAT,
        "env_id": source.task.id,
        **({} if source.task.is_known else {"env_spec": spec_of(source.task)}),
        **source.description,
        **asdict(recipe),
        "targets": list(recipe.targets),
        "num_requested_episodes": wanted.num_episodes,
        "num_requested_transitions": wanted.num_transitions,
        **{f"{name}_version": version for name, version in versions_for(source.task.id).items()},
    }


def versions_for(task: str) -> dict[str, str]:
    """Return the versions on which data of a task depend."""
    others = {*ENGINES, *CONTROL_ENGINES} - set(engines_of(task))
    return {name: version for name, version in versions().items() if name not in others}


def existing(output: Path, parts: Path, request: Request) -> Collected:
    """Return what is in an output that the same request made, and remove its parts if a kill left them over.

    Raises:
        UsageError: another request made it, or something else did.
        DataError: it is damaged.
    """
    hint = "replace it with --force, or choose another --output"
    try:
        with open_hdf5(output) as root:
            attributes = plain_attributes(root)
    except DataError:
        attributes = {}
    if "request_sha256" not in attributes:
        raise UsageError(f"{output} is there already, and gq collect did not make it", hint=hint)
    wanted = recorded(request)
    for name in request:
        if attributes.get(name) != wanted.get(name):
            made_with = f"made with {name} = {attributes.get(name)}, not {wanted.get(name)}"
            raise UsageError(f"{output} is there already, {made_with}", hint=hint)
    if attributes["request_sha256"] != fingerprint(request):
        raise UsageError(f"{output} is there already, made by another gq", hint=hint)
    trajectories = read_trajectories(output)
    if is_begun_with(parts, request):
        remove(parts)
    return summarise(output, request, trajectories)


def recorded(request: Request) -> dict[str, Any]:
    """Return what the file records of a request, by attribute."""
    return {name: value for name, value in request.items() if value not in (None, []) and name != "format"}


def assemble(log: EpisodeLog, num_episodes: int, request: Request) -> Trajectories:
    """Put the first episodes of a log back to back.

    Raises:
        DataError: the log was damaged since it was opened.
    """
    offsets = np.cumsum([0] + [log.lengths[number] for number in range(num_episodes)], dtype=np.int64)
    num_rows = int(offsets[-1])
    trajectories = Trajectories(
        observations=np.empty((num_rows, log.observation_dim), np.float32),
        actions=np.empty((num_rows, log.action_dim), np.float32),
        rewards=np.empty(num_rows, np.float32),
        terminals=np.zeros(num_rows, bool),
        offsets=offsets,
        source=f"collected from {request['policy']}",
        task=request["env_id"],
    )
    for number in range(num_episodes):
        episode, rows = log.read(number), slice(offsets[number], offsets[number + 1])
        trajectories.observations[rows] = episode.observations
        trajectories.actions[rows] = episode.actions
        trajectories.rewards[rows] = episode.rewards
        trajectories.terminals[rows.stop - 1] = episode.terminated
    return trajectories


def write_output(output: Path, parts: Path, request: Request, trajectories: Trajectories) -> Collected:
    """Write the canonical file, whole or not at all.

    Raises:
        GqError: it cannot be written.
    """
    returns = trajectories.returns
    attributes = recorded(request) | {
        "origin": "collected by gq",
        "licence": "belongs to whoever collected it",
        "command": command(request),
        "request_sha256": fingerprint(request),
        "episode_starts": "episode i: reset(seed=int(numpy.random.default_rng([seed, i]).integers(2**31)))",
        "num_episodes": trajectories.num_episodes,
        "num_transitions": trajectories.num_transitions,
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "length_mean": float(trajectories.lengths.mean()),
    }
    written = parts / "data.hdf5"  # in there, so that a kill while writing leaves nothing beside the output
    write_canonical(written, trajectories, timeouts=time_limits(trajectories), attributes=attributes)
    try:
        written.replace(output)
        sync(output.parent)
    except OSError as error:
        raise write_error(output, error) from error
    return summarise(output, request, trajectories)


def summarise(output: Path, request: Request, trajectories: Trajectories) -> Collected:
    """Return the figures of a file."""
    returns = trajectories.returns
    return Collected(
        file=output,
        env_id=request["env_id"],
        policy=request["policy"],
        episodes=trajectories.num_episodes,
        transitions=trajectories.num_transitions,
        return_mean=float(returns.mean()),
        return_std=float(returns.std()),
        length_mean=float(trajectories.lengths.mean()),
        terminated_share=float(trajectories.terminals.sum() / trajectories.num_episodes),
        sha256=sha256(output),
    )


def command(request: Request) -> str:
    """Return the command that collects the same data."""
    options = {
        "checkpoint": request.get("checkpoint", "").removeprefix("step-").lstrip("0"),
        "mode": request.get("mode"),
        "target": ",".join(f"{target!r}" for target in request["targets"]),
        "noise": request["noise"],
        "random-share": request["random_share"],
        "seed": request["seed"],
        "episodes": request["num_requested_episodes"],
        "transitions": request["num_requested_transitions"],
    }
    given = [f"--{name} {value}" for name, value in options.items() if value not in ("", None)]
    return " ".join(["gq collect", request["policy"], *given])
