"""Everything about one run: what is special about its configuration, what it holds, and how to make it again."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gq import presets
from gq.config import CONFIGS, ENVIRONMENT, FinetuneConfig, ODTConfig, RunConfig
from gq.envs.tasks import TASKS
from gq.errors import GqError
from gq.paths import checkpoint_folders, json_or_empty, read_settings
from gq.runs.checkpoint import pointed
from gq.runs.evaluations import read_evaluations
from gq.runs.folder import download_command, read_config, repeat_command
from gq.runs.records import (
    CorrectorRecord,
    Parent,
    RunRecord,
    children_of,
    correctors_of,
    measure,
    parent_of,
    read_run,
)
from gq.settings import flatten, toml_value

NAMING = (
    "algo",
    "task",
    "size",
    "data.dataset",
    "online.parent",
    "online.checkpoint",
)  # shown apart from the differences


@dataclass(frozen=True)
class CheckpointRecord:
    """A checkpoint of a run."""

    name: str
    step: int
    num_bytes: int
    is_best: bool
    is_last: bool


@dataclass(frozen=True)
class EvaluationRecord:
    """A result of gq eval."""

    file: Path
    checkpoint: str
    results: dict[str, float]  # mean returns by target or mode


@dataclass(frozen=True, kw_only=True)
class RunDetails:
    """Everything about a run; `to_dict` is the JSON document."""

    record: RunRecord
    differing: dict[str, tuple[Any, Any]]  # settings by key: the run's value, the preset's
    checkpoints: list[CheckpointRecord]
    evaluations: list[EvaluationRecord]
    videos: list[Path]
    disk: dict[str, int]  # bytes by what lies in the folder
    parent: Parent | None
    children: list[Path]
    correctors: list[CorrectorRecord]
    versions: dict[str, str]
    data_command: str  # that gets its data, empty for files
    command: str  # that trains such a run again, empty if it is not known

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        parent = asdict(self.parent) | {"run": str(self.parent.run)} if self.parent else None
        return self.record.to_dict() | {
            "differing": {key: {"run": pair[0], "preset": pair[1]} for key, pair in self.differing.items()},
            "checkpoints": [asdict(checkpoint) for checkpoint in self.checkpoints],
            "evaluations": [asdict(one) | {"file": str(one.file)} for one in self.evaluations],
            "videos": [str(path) for path in self.videos],
            "disk": self.disk,
            "parent": parent,
            "children": [str(path) for path in self.children],
            "correctors": [asdict(corrector) for corrector in self.correctors],
            "versions": self.versions,
            "data_command": self.data_command,
            "command": self.command,
        }


def describe(run: Path) -> RunDetails:
    """Return everything about a run."""
    settings = flatten(read_settings(run))
    record = read_run(run)
    differing = differing_settings(settings)
    environment = json_or_empty(run / "environment.json")
    versions = environment.get("versions")
    return RunDetails(
        record=record,
        differing=differing,
        checkpoints=read_checkpoints(run),
        evaluations=evaluation_records(run),
        videos=sorted(path for path in (run / "videos").glob("*") if path.is_file()),
        disk=disk_use(run),
        parent=parent_of(run),
        children=children_of(run),
        correctors=correctors_of(run),
        versions={str(k): str(v) for k, v in versions.items()} if isinstance(versions, dict) else {},
        data_command=download_command(str(settings.get("data.dataset", "")), environment),
        command=repeat_command(settings, environment, explicit_options(settings, differing)),
    )


def named_preset(settings: Mapping[str, Any]) -> RunConfig | None:
    """Return the preset that a run began with, or what it took over from its parent.

    None where the size has no name, the parent cannot be read, or the algorithm is unknown.
    """
    algo, size = str(settings.get("algo")), str(settings.get("size"))
    makers: dict[str, Callable[[], RunConfig]] = {
        "dt": lambda: presets.dt(size),
        "bc": presets.bc,
        "td3bc": lambda: presets.td3bc(size, str(settings.get("data.dataset", ""))),
        "odt": lambda: presets.odt(size, str(settings.get("data.dataset", ""))),
        "tdmpc2": lambda: presets.tdmpc2(size, str(settings.get("task", ""))),
        "finetune": lambda: inherited_from(Path(str(settings.get("online.parent", "")))),
    }
    try:
        return makers[algo]() if algo in makers else None
    except GqError:
        return None


def inherited_from(parent: Path) -> RunConfig:
    """Return what finetuning takes over from a parent.

    Raises:
        GqError: it is not there, or not an Online Decision Transformer.
    """
    stored = read_config(parent)
    if not isinstance(stored, ODTConfig | FinetuneConfig):
        raise GqError(f"{parent} is not an Online Decision Transformer")
    return presets.finetune(stored)


def differing_settings(settings: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ from the preset's, or without one from the algorithm's defaults.

    Those that name the run are left out.

    Args:
        settings: config.toml by dotted key.
    """
    algo = str(settings.get("algo"))
    if algo not in CONFIGS:
        return {}
    usual = flatten((named_preset(settings) or CONFIGS[algo]()).to_dict())
    return {
        key: (value, usual.get(key))
        for key, value in settings.items()
        if key not in NAMING and not key.startswith(ENVIRONMENT) and plain(usual.get(key)) != plain(value)
    }


def plain(value: Any) -> Any:
    """Return a value in which lists and tuples are equal."""
    return list(value) if isinstance(value, tuple) else value


def explicit_options(settings: Mapping[str, Any], differing: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Return options that set a run up without its config.toml, which another version of gq may have written."""
    words = []
    if settings.get("algo") in ("dt", "odt", "tdmpc2") and named_preset(settings):
        words += ["--size", str(settings.get("size"))]
    if settings.get("algo") == "td3bc" and named_preset(settings):
        words += ["--recipe", str(settings.get("size"))]
    if settings.get("algo") in ("dt", "bc", "odt", "td3bc"):
        words += ["--dataset", str(settings.get("data.dataset", ""))]
    if settings.get("algo") != "finetune":
        words += ["--task", str(settings.get("task", "")), *_environment_options(settings)]
    for key, (value, usual) in differing.items():
        if usual is not None:  # else of another version of gq, and this one would refuse it
            words += ["--set", f"{key}={toml_value(value)}"]
    return words


def _environment_options(settings: Mapping[str, Any]) -> list[str]:
    """Return options that make an environment that is not as the table has it."""
    arguments = f"{ENVIRONMENT}kwargs."
    kwargs = {key.removeprefix(arguments): value for key, value in settings.items() if key.startswith(arguments)}
    limit, known = settings.get(f"{ENVIRONMENT}max_episode_steps"), TASKS.get(str(settings.get("task")))
    words = ["--env-kwargs", json.dumps(kwargs)] if kwargs else []
    return words + (["--max-episode-steps", str(limit)] if known and limit != known.max_episode_steps and limit else [])


def read_checkpoints(run: Path) -> list[CheckpointRecord]:
    """Return a run's checkpoints, oldest first."""
    marked = {}
    for which in ("best", "last"):
        try:
            marked[which] = pointed(run, which)
        except GqError:  # a damaged pointer; gq doctor says so
            marked[which] = None
    return [
        CheckpointRecord(
            name=folder.name,
            step=int(folder.name.removeprefix("step-")),
            num_bytes=measure(folder)[0],
            is_best=folder.name == marked["best"],
            is_last=folder.name == marked["last"],
        )
        for folder in checkpoint_folders(run)
    ]


def evaluation_records(run: Path) -> list[EvaluationRecord]:
    """Return what gq eval found, oldest first; damaged files are left out."""
    found: dict[Path, EvaluationRecord] = {}
    for row in sorted(read_evaluations(run).rows, key=lambda row: row.file):
        record = found.setdefault(row.file, EvaluationRecord(row.file, row.checkpoint, {}))
        name = row.way.mode or str(row.episodes[0].target_return)
        record.results[name] = float(row.returns.mean())
    return list(found.values())


def disk_use(run: Path) -> dict[str, int]:
    """Return bytes by the names in a run's folder, the largest first; files count together as `files`."""
    use: dict[str, int] = {}
    for path in run.iterdir():
        name = path.name if path.is_dir() else "files"
        use[name] = use.get(name, 0) + (measure(path)[0] if path.is_dir() else path.stat().st_size)
    return dict(sorted(use.items(), key=lambda item: -item[1]))
