"""Official TD-MPC2 checkpoints as run folders, to evaluate, render and collect with, but not to train on."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gq.config import to_toml
from gq.envs.engines import versions
from gq.envs.tasks import CONTROL_TASKS, TASKS, Task, resolve_task
from gq.errors import DataError, GqError, UsageError
from gq.files import sha256, write_json, write_text
from gq.official.importing import ImportedModel, import_tdmpc2
from gq.official.names import task_in_file_name
from gq.paths import is_run, read_json, runs_folder
from gq.policies.algorithms import discount_of
from gq.presets import tdmpc2
from gq.runs.bound import settings_of
from gq.runs.card import write_card
from gq.runs.checkpoint import choose_checkpoint, save_checkpoint, verify_checkpoint
from gq.runs.folder import lock_run


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the weights of an imported run are from."""

    source: str  # address or path
    sha256: str  # of the file
    layout: str  # A, B, C or C'
    licence: str  # empty if unknown
    notes: list[str]  # what the user should know of the import


@dataclass(frozen=True, kw_only=True)
class ImportedRun:
    """A run that was made of a checkpoint, or found."""

    run: Path
    task: str
    size: str  # 1, 5, 19, 48, 317 or custom
    parameters: int  # trained ones, without those of the target
    was_there: bool
    provenance: Provenance


def import_run(
    file: Path, task: str = "", *, label: str = "imported", source: str = "", licence: str = "", force: bool = False
) -> ImportedRun:
    """Make a run of an official checkpoint in the runs folder, or find the one that was made of the same file.

    Args:
        task: what the model is for; without, what the file's name says.
        label: a word for the run's name.
        source: where the file is from, if that is not its path.
        force: write the run again.

    Raises:
        UsageError: no task is known, or the model does not fit it.
        DataError: the file is damaged, not official, or in the layout that cannot be evaluated correctly.
        GqError: the run cannot be written.
    """
    if not file.is_file():
        raise UsageError(f"there is no file {file}", hint="name a .pt file, or see gq download --list tdmpc2")
    if not (task := task or task_in_file_name(file)):
        raise UsageError(f"{file} does not say its task", hint=f"name it with --task: {_fitting_tasks(file)}")
    chosen, digest = resolve_task(task), sha256(file)
    if not force and (found := _existing_run(chosen, digest)):
        return found
    model = import_tdmpc2(file, chosen.id)
    _check_terminations(file, model, chosen)
    run = runs_folder() / f"{chosen.id.lower()}-tdmpc2-{model.size or 'custom'}-{label}-{digest[:8]}"
    provenance = Provenance(
        source=source or str(file.resolve()),
        sha256=digest,
        layout=model.layout,
        licence=licence,
        notes=list(model.notes),
    )
    return _write_run(run, chosen, model, provenance)


def _fitting_tasks(file: Path) -> str:
    """Return the tasks that have as many observations and actions as a model of one task, for people."""
    try:
        model = import_tdmpc2(file)
    except UsageError as error:  # it holds many tasks
        return error.hint
    dims = (model.observation_dim, model.action_dim)
    known = [*CONTROL_TASKS.values(), *TASKS.values()]
    names = [task.id for task in known if (task.observation_dim, task.action_dim) == dims]
    return ", ".join(names) or f"it has {dims[0]} observations and {dims[1]} actions"


def _check_terminations(file: Path, model: ImportedModel, task: Task) -> None:
    """Raise DataError unless a model predicts terminations just where the task has them."""
    if model.episodic == task.can_terminate:
        return
    has = "predicts terminations" if model.episodic else "does not predict terminations"
    can = "can end early" if task.can_terminate else "only end at their time limit"
    raise DataError(f"{file} {has}, but episodes of {task.id} {can}", hint="name the task that it was trained on")


def _existing_run(task: Task, digest: str) -> ImportedRun | None:
    """Return the run of a file's content and a task in the runs folder, if it is whole."""
    for run in sorted(runs_folder().glob(f"{task.id.lower()}-tdmpc2-*-{digest[:8]}")):
        try:
            document = read_json(run / "environment.json")
            if not is_run(run) or document["imported"]["sha256"] != digest:
                continue
            verify_checkpoint(choose_checkpoint(run, "last"))
            return ImportedRun(
                run=run,
                task=task.id,
                size=document["size"],
                parameters=document["parameters"],
                was_there=True,
                provenance=Provenance(**document["imported"]),
            )
        except (GqError, KeyError, TypeError):
            continue  # damaged, or of a killed process: it is written again
    return None


def _write_run(run: Path, task: Task, model: ImportedModel, provenance: Provenance) -> ImportedRun:
    """Write the folder; config.toml, without which it is no run, comes last."""
    config = tdmpc2(model.size or "5", task.id)
    if not model.size:
        config = replace(config, size="custom", model=model.config)
    parameters = sum(value.numel() for name, value in model.state.items() if not name.startswith("target_"))
    facts: dict[str, Any] = {"parameters": parameters, "imported": asdict(provenance)}
    with lock_run(run):
        state = {**facts, "config": settings_of(config)}
        save_checkpoint(run, 0, model=model.state, optimizer={}, state=state, is_best=True, keep=1)
        discount = discount_of(config)
        write_json(
            run / "environment.json", {**facts, "size": config.size, "versions": versions(), "discount": discount}
        )
        write_card(run, config)
        write_text(run / "config.toml", to_toml(config))
    return ImportedRun(
        run=run, task=task.id, size=config.size, parameters=parameters, was_there=False, provenance=provenance
    )
