"""From a run to the policy that it learnt, in the way that it is to act."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from gq.config import DataRunConfig, TrainedConfig
from gq.errors import GqError, UsageError
from gq.files import sha256
from gq.models.config import Context
from gq.planning.acting import PlanningPolicy
from gq.planning.modes import Mode, resolve_mode
from gq.planning.mppi import Planner
from gq.policies.algorithms import ALGORITHMS, build_model, build_policy
from gq.policies.compute import choose_compute
from gq.policies.correctors import LoadedCorrector, find_corrector, load_corrector
from gq.rollouts.episodes import Policy
from gq.runs.bound import check_config
from gq.runs.checkpoint import choose_checkpoint, fill, load_checkpoint
from gq.runs.folder import read_config, refuse_module

MODE_OPTIONS = {  # the fields of a mode that have an option of their own
    "plan_horizon": "--spec-plan-horizon",
    "execution_horizon": "--spec-exec-horizon",
    "threshold": "--spec-mismatch-threshold",
    "history_length": "--history-len",
}


@dataclass(frozen=True, kw_only=True)
class Acting:
    """How a run is to act, beside what its configuration says."""

    checkpoint: str | Path = "best"  # best, last, a step number, or a checkpoint folder
    mode: str | None = None  # of a planner, one of `gq.planning.modes`; None: plan at every decision
    mode_options: Mapping[str, float | None] = field(default_factory=dict)  # fields of the mode to change, MODE_OPTIONS
    corrector: str | None = None  # name or path of what corrects plans, for modes that need it; None: the run's own
    stochastic: bool = False  # sample actions instead of taking the distribution's mode, or the plan's mean
    context: Context | None = None  # how a transformer moves on when its context is full; None: as its `eval.context`
    device: str = "auto"
    allow_module: str = ""  # that the environment of a pulled run may import


def choose_modes(config: TrainedConfig, asked: Sequence[str], options: Mapping[str, float | None]) -> list[Mode]:
    """Return how a run is to act, each way once: as asked, else in the way that all runs can.

    Args:
        options: fields of the modes that execute plans for several decisions; those that are None change nothing.

    Raises:
        UsageError: there is no such mode, a change that concerns none of them, or the run has no planner, so that it
            acts in one way only.
    """
    changes: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if (asked or changes) and not ALGORITHMS[config.algo].plans:
        raise UsageError(f"{config.algo} runs have no planner and act in one way only", hint="omit --mode")
    modes = [resolve_mode(name) for name in dict.fromkeys(asked or ["plan"])]
    for name in changes:
        if not any(concerns(mode, name) for mode in modes):
            raise UsageError(f"{MODE_OPTIONS[name]} changes none of these modes", hint="for example --mode spec3")
    return [
        resolve_mode(mode.name, **{name: value for name, value in changes.items() if concerns(mode, name)})
        for mode in modes
    ]


def concerns(mode: Mode, name: str) -> bool:
    """Whether a field of a mode is one that options change, and that makes a difference."""
    if name == "threshold":
        return mode.trigger != "never"
    if name == "history_length":
        return mode.between in ("corrector", "beam")
    return mode.execution_horizon > 1 and not (name == "execution_horizon" and mode.between == "beam")


def choose_targets(config: TrainedConfig, asked: Sequence[float]) -> list[float]:
    """Return the target returns of a run, each once: as asked, else its own; one that means nothing if it takes none.

    Raises:
        UsageError: some are asked of a planner, which would ignore them.
    """
    if asked and ALGORITHMS[config.algo].plans:
        raise UsageError(f"{config.algo} runs plan for all they can get, not a target", hint="omit --target")
    return list(dict.fromkeys(float(target) for target in asked or config.targets))


@dataclass(frozen=True)
class LoadedRun:
    """A trained policy with everything known about it."""

    run: Path
    checkpoint: Path
    acting: Acting
    config: TrainedConfig
    model: nn.Module
    policy: Policy
    state: dict[str, Any]
    planner: Planner | None = None  # of a world model
    mode: Mode | None = None  # in which it acts
    corrector: LoadedCorrector | None = None  # that the mode needs


def load_run(run: Path, acting: Acting | None = None) -> LoadedRun:
    """Load a run's policy; needs neither its dataset nor the machine it was trained on.

    Raises:
        UsageError: no such checkpoint, mode or corrector, a policy that cannot be stochastic or has no context, or the
            device is not available.
        GqError: the checkpoint or the corrector is damaged or does not fit.
    """
    acting, config = acting or Acting(), read_config(run)
    began = config
    refuse_module(run, config, acting.allow_module)
    (mode,) = choose_modes(config, [acting.mode] if acting.mode is not None else [], acting.mode_options)
    if acting.context:
        config = with_context(config, acting.context)
    folder = checkpoint_of(run, acting)
    compute = choose_compute(acting.device, config.train.precision)
    loaded = load_checkpoint(folder)
    check_config(run, began, loaded.state)
    try:
        model = fill(lambda: build_model(config), loaded.model)
        model.to(compute.device)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise GqError(
            f"{folder} does not fit {run / 'config.toml'}: {reason}", hint="was one of them edited?"
        ) from None
    policy = build_policy(config, model.eval(), compute, stochastic=acting.stochastic)
    found = LoadedRun(run, folder, acting, config, model, policy, loaded.state)
    return act_in(replace(found, planner=policy.planner), mode) if isinstance(policy, PlanningPolicy) else found


def checkpoint_of(run: Path, acting: Acting) -> Path:
    """Return the folder of the checkpoint that is to act. Raises UsageError if there is none."""
    return acting.checkpoint if isinstance(acting.checkpoint, Path) else choose_checkpoint(run, acting.checkpoint)


def with_context(config: TrainedConfig, context: Context) -> TrainedConfig:
    """Return a run's configuration with another `eval.context`.

    Raises:
        UsageError: the run is not of a transformer.
    """
    if not isinstance(config, DataRunConfig) or not ALGORITHMS[config.algo].has_context:
        raise UsageError(f"a {config.algo} policy has no context that grows", hint="omit --context")
    return replace(config, eval=replace(config.eval, context=context))


def act_in(loaded: LoadedRun, mode: Mode, *, block_size: int = 0) -> LoadedRun:
    """Return a run of a world model with the same planner, acting in another mode.

    Args:
        block_size: decisions that are computed at a time, see `PlanningPolicy`.

    Raises:
        UsageError: the mode needs a corrector, and there is none, or not for these weights.
        GqError: the corrector is damaged.
    """
    assert loaded.planner
    found = load_corrector_for(loaded, mode)
    policy = PlanningPolicy(
        loaded.planner,
        task=loaded.config.environment,
        mode=mode,
        corrector=found.corrector if found else None,
        stochastic=loaded.acting.stochastic,
        block_size=block_size,
    )
    return replace(loaded, policy=policy, mode=mode, corrector=found)


def load_corrector_for(loaded: LoadedRun, mode: Mode) -> LoadedCorrector | None:
    """Return the corrector of a mode; None where it needs none: a beam search takes the one that it is given."""
    name = loaded.acting.corrector
    if mode.between != "corrector" and not (mode.between == "beam" and name):
        return None
    teacher = sha256(loaded.checkpoint / "model.safetensors")
    device = next(loaded.model.parameters()).device
    return load_corrector(find_corrector(loaded.run, name), teacher, device=device)
