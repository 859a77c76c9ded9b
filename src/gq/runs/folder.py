"""What a run folder holds beside checkpoints, its configuration and its lock; how a run is begun and gone on with."""

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gq.config import CONFIGS, ENVIRONMENT, TrainedConfig, validate
from gq.envs.tasks import proper_id
from gq.errors import GqError, UsageError
from gq.files import parse_toml, write_error
from gq.paths import HUB_FILE, algo_of, all_runs, checkpoint_folders, is_run, read_json, runs_folder, section
from gq.runs.state import failures_recorded, hold_run, is_unfinished
from gq.settings import flatten


def read_config(run: Path) -> TrainedConfig:
    """Read the configuration of a run.

    Raises:
        GqError: it is damaged or from a version of gq that this one cannot read.
    """
    try:
        tree = parse_toml((run / "config.toml").read_text(encoding="utf-8"))
        if tree.get("train", {}).get("compile") == "on":  # what version 0.1 called it
            tree["train"]["compile"] = "full"
        return validate(CONFIGS[str(tree["algo"])], tree)
    except (OSError, ValueError, KeyError, UsageError) as error:
        raise GqError(
            f"cannot use {run / 'config.toml'}: {error}", hint="it may be from another version of gq"
        ) from None


def refuse_module(run: Path, config: TrainedConfig, allowed: str = "") -> None:
    """Raise UsageError if a run of somebody else has an environment whose module would be imported, unless allowed."""
    module, colon, _ = config.task.partition(":")
    if colon and (run / HUB_FILE).is_file() and module != allowed:
        message = f"{run.name} was pulled, and its environment runs code of the module {module}"
        raise UsageError(message, hint=f"if you trust it: --allow-module {module}")


SELECTION_SEED = 1_000_000  # episodes that choose the best checkpoint are never those that `gq eval` reports
# What may change when a run goes on: where and how long, not what is learnt.
CHANGEABLE = (
    "train.steps",
    "train.decisions",
    "train.device",
    "train.log_every",
    "train.compile",
    "planner.compile",
    "train.checkpoint_activations",
    "train.parallel",
    "data.placement",
    "eval.",
    "checkpoint.",
    "log.",
    "online.environment_steps",
    "online.iterations",
    "online.minutes",
)


def resume_config(algo: str, size: str | None, given: dict[str, Any], out: Path | None) -> tuple[Path, TrainedConfig]:
    """Return the run to resume and its configuration, with the given settings merged in.

    Args:
        given: settings by dotted key; those that determine what is learnt must be what the run began with.
        out: the run's folder; None: the newest run of the algorithm that is not finished.

    Raises:
        UsageError: there is nothing to resume, or a setting differs that must not.
    """
    run = out or newest_unfinished(algo)
    if not is_run(run):
        raise UsageError(f"there is no run in {run} to resume", hint="choose an empty folder to begin one")
    stored = read_config(run)
    if stored.algo != algo:
        raise UsageError(f"{run} is a {stored.algo} run", hint=resume_command(stored.algo, run))
    refuse_imported(run)
    refuse_module(run, stored)
    wanted = dict(given) | ({"size": size} if size else {})
    if "task" in wanted:
        wanted["task"] = proper_id(wanted["task"])
    own = flatten(stored.to_dict().get("environment", {}))
    for key in [key for key in wanted if key.startswith(ENVIRONMENT)]:
        value, began = wanted.pop(key), own.get(key.removeprefix(ENVIRONMENT))
        if own and json.dumps(value) != json.dumps(began) and not key.endswith("ignore_env_spec"):
            raise UsageError(f"the run began with {key} = {began}, not {value}", hint="start a new run")
    config = stored.replace(wanted)
    before = flatten(stored.to_dict())
    for key, value in flatten(config.to_dict()).items():
        if before.get(key) != value and algo == "finetune" and key == "eval.targets":
            message = f"the run began with {key} = {before[key]}, not {value}"
            raise UsageError(message, hint="its start and its end are compared at the same targets: start a new run")
        if before.get(key) != value and not key.startswith(CHANGEABLE):
            raise UsageError(
                f"the run began with {key} = {before.get(key)}, not {value}",
                hint="a resumed run may change train.steps or its budgets, train.device, eval.*, checkpoint.*, log.*",
            )
    return run, config


def refuse_filled(run: Path, algo: str) -> None:
    """Raise UsageError if a new run's folder holds anything."""
    if run.is_dir() and any(not path.name.startswith(".") for path in run.iterdir()):
        hint = "choose another --out"
        if not is_imported(run):
            hint = f"resume it: {resume_command(algo, run)}; or {hint}"
        raise UsageError(f"{run} is not empty", hint=hint)


def is_imported(run: Path) -> bool:
    """Tell whether a run was made from another program's weights."""
    path = run / "environment.json"
    return path.is_file() and bool(read_json(path).get("imported"))


def refuse_imported(run: Path) -> None:
    """Raise UsageError if a run was imported, or shared by somebody: it has nothing to go on training with."""
    if is_imported(run):
        raise UsageError(
            f"{run} was imported: the official file has no optimiser and no replay, so it cannot be trained on",
            hint=f"gq eval {shlex.quote(str(run))}, gq render or gq collect; or train a new one without --resume, "
            "in another --out",
        )
    if is_without_optimizer(run):
        raise UsageError(
            f"{run} was shared without its optimiser, so it cannot be trained on",
            hint=f"train a new one: gq {'finetune' if algo_of(run) == 'finetune' else f'train {algo_of(run)}'} "
            f"--config {shlex.quote(str(run / 'config.toml'))}; its owner shares all of it with gq push --all",
        )


def is_without_optimizer(run: Path) -> bool:
    """Tell whether a run has checkpoints to evaluate, but none to go on from, as `gq push` shares them."""
    folders = checkpoint_folders(run)
    return bool(folders) and not (folders[-1] / "optimizer.safetensors").is_file() and (run / HUB_FILE).is_file()


def resume_command(algo: str, run: Path) -> str:
    """Return what to type to resume a run."""
    return f"gq {'finetune' if algo == 'finetune' else f'train {algo}'} --out {shlex.quote(str(run))} --resume"


def download_command(dataset: str, environment: Mapping[str, Any]) -> str:
    """Return what to type to get a run's data, as many as it had; empty for a file.

    Args:
        environment: environment.json.
    """
    if not dataset or Path(dataset).is_absolute():
        return ""
    number = section(environment, "dataset").get("transitions")
    options = ["--transitions", str(number)] if isinstance(number, int) else []
    return shlex.join(["gq", "download", dataset, *options])


def repeat_command(settings: Mapping[str, Any], environment: Mapping[str, Any], options: Sequence[str]) -> str:
    """Return what to type to train such a run again, or to import it; empty where that is not known.

    Args:
        settings: config.toml by dotted key.
        environment: environment.json.
        options: what sets it up as it was.
    """
    algo = settings.get("algo")
    if imported := section(environment, "imported"):
        return shlex.join(["gq", "download", str(imported.get("source", "")), "--task", str(settings.get("task", ""))])
    if algo not in CONFIGS:
        return ""
    words = ["train", str(algo)]
    if algo == "finetune":
        step = str(settings.get("online.checkpoint", "")).removeprefix("step-").lstrip("0") or "0"
        words = ["finetune", str(settings.get("online.parent", "")), "--checkpoint", step]
    return shlex.join(["gq", *words, *options])


def is_blank(run: Path) -> bool:
    """Whether a folder can become a run: it is not there, empty, or made by a process that was killed at once."""
    return not run.exists() or (run.is_dir() and not is_run(run) and all(p.name.startswith(".") for p in run.iterdir()))


def may_be_unfinished(run: Path, algo: str) -> bool:
    """Whether a run may be one of an algorithm with steps left, without parsing its configuration."""
    try:
        text = (run / "config.toml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    if f'algo = "{algo}"' not in text:
        return False
    steps = re.search(r"^\[train\]\n(?:[^\[\n][^\n]*\n)*?steps = (\d{1,15})\n", text, re.MULTILINE)
    if algo in ("finetune", "tdmpc2") or not steps:
        return is_unfinished(run, algo, sys.maxsize)
    try:
        names = [entry.name for entry in os.scandir(run / "checkpoints")]
    except OSError:
        return False
    return not any(
        name.startswith("step-") and name[5:].isdecimal() and int(name[5:]) >= int(steps[1]) for name in names
    )


def newest_unfinished(algo: str) -> Path:
    """Return the newest run of an algorithm in the runs folder that has steps left.

    Raises:
        UsageError: there is none.
    """
    for run in all_runs():
        if not may_be_unfinished(run, algo):  # at a glance: to read ten thousand configurations takes ten seconds
            continue
        try:
            config = read_config(run)
        except GqError:
            continue  # a run that nobody asked for must not stand in the way
        # Without a checkpoint there is nothing to resume: such a run is started again by its --out alone.
        is_candidate = config.algo == algo and checkpoint_folders(run) and not is_without_optimizer(run)
        if is_candidate and is_unfinished(run, algo, getattr(config.train, "steps", 0)):
            return run
    raise UsageError(f"there is no unfinished {algo} run in {runs_folder()}", hint="name one with --out DIR --resume")


@contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Hold a run for this process, to train it.

    Raises:
        GqError: another process trains it, or the folder cannot be written.
    """
    with hold_run(run), failures_recorded(run):
        try:
            for leftover in (run / "checkpoints").glob(".*.partial"):  # of a process that was killed while saving
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        except OSError as error:
            raise write_error(run, error) from error
        yield


def was_elsewhere(run: Path, device_type: str) -> bool:
    """Tell whether a run was computed on another kind of device so far."""
    file = run / "environment.json"
    compute = str(read_json(file).get("compute", "")) if file.is_file() else ""
    return bool(compute) and re.split("[:,]", compute)[0] != device_type
