"""Where things lie: the cache, datasets, runs, and how a run is named and found."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import platformdirs

from gq.errors import GqError, UsageError, suggest
from gq.files import parse_json, parse_toml

HUB_FILE = "hub.json"  # in a run that was pulled: where it is from
SWEEP_FILE = "sweep.json"  # in a sweep's folder: what its members are


def home() -> Path:
    """Return GQ_HOME, or the platform's cache folder for gq."""
    return Path(os.environ.get("GQ_HOME") or platformdirs.user_cache_dir("gq")).expanduser()


def datasets_folder() -> Path:
    """Return GQ_DATA_DIR, or `datasets` in the home."""
    return Path(os.environ.get("GQ_DATA_DIR") or home() / "datasets").expanduser()


def runs_folder() -> Path:
    """Return GQ_RUNS_DIR, or `runs` in the home."""
    return Path(os.environ.get("GQ_RUNS_DIR") or home() / "runs").expanduser()


def sweeps_folder() -> Path:
    """Return `sweeps` in the home."""
    return home() / "sweeps"


def run_in_sweep(sweep: Path, member: str) -> Path:
    """Return the folder of a member's run."""
    return sweep / "runs" / member


def find_sweep(name: str) -> Path:
    """Return the folder of a sweep by its name, a unique prefix or its path.

    Raises:
        UsageError: no sweep or more than one fits.
    """
    if (path := existing(name)) and (path / SWEEP_FILE).is_file():
        return path
    folder = sweeps_folder()
    known = sorted(path.parent.name for path in folder.glob(f"*/{SWEEP_FILE}"))
    fitting = [one for one in known if one == name] or [one for one in known if name and one.startswith(name)]
    if len(fitting) == 1:
        return folder / fitting[0]
    if fitting:
        message = f"{name} fits {len(fitting)} sweeps"
        raise UsageError(message, hint="type more of one: " + ", ".join(fitting[:3]))
    otherwise = f"there are {', '.join(known[:3])}" if known else "start one: gq sweep FILE.toml"
    raise UsageError(f"there is no sweep {name}", hint=suggest(name, known, otherwise=otherwise))


def runs_of_sweep(sweep: Path) -> list[Path]:
    """Return the folders of a sweep's members that are runs already, in the order of its axes."""
    members = read_json(sweep / SWEEP_FILE).get("members")
    names = [str(member["name"]) for member in members or [] if isinstance(member, dict) and "name" in member]
    return [run for name in names if is_run(run := run_in_sweep(sweep, name))]


def members_of(name: str) -> list[Path]:
    """Return the runs of the sweep that a name is, whole, or a path to one; empty where it is none.

    Raises:
        UsageError: no member has begun.
    """
    here = existing(name)
    sweep = here if here and (here / SWEEP_FILE).is_file() else sweeps_folder() / name
    if not name or not (sweep / SWEEP_FILE).is_file():
        return []
    if not (runs := runs_of_sweep(sweep)):
        raise UsageError(f"no member of the sweep {sweep.name} has begun", hint=f"see gq sweep status {sweep.name}")
    return runs


def new_run_folder(task: str, algo: str, size: str) -> Path:
    """Return a path in the runs folder that nothing has yet: <task>-<algo>-<size>-<date>-<hash>."""
    date = datetime.now().strftime("%Y%m%d-%H%M%S")
    return runs_folder() / f"{task.lower()}-{algo}-{size}-{date}-{os.urandom(2).hex()}"


def is_run(folder: Path) -> bool:
    """Tell whether a folder holds a run."""
    return (folder / "config.toml").is_file()


def check_still_there(path: Path, run: Path) -> None:
    """Raise GqError if a path lies in a folder that was a run, and is none any more: nothing is to be written there."""
    if run.resolve() in path.resolve().parents and not is_run(run):
        raise GqError(f"{run} is gone: it was renamed or removed meanwhile", hint="see what is there: gq runs")


def all_runs() -> list[Path]:
    """Return the runs of the runs folder, newest first."""
    folder = runs_folder()
    if not folder.is_dir():
        return []
    runs = [path for path in folder.iterdir() if not path.name.startswith(".") and is_run(path)]
    return sorted(runs, key=lambda run: ((run / "config.toml").stat().st_mtime_ns, run.name), reverse=True)


def read_settings(run: Path) -> dict[str, Any]:
    """Return config.toml, nested and not validated: runs of other versions of gq have other keys. Empty if damaged."""
    try:
        return parse_toml((run / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def algo_of(run: Path) -> str:
    """Return the algorithm that a run's configuration names, or "" where it cannot be read."""
    try:  # gq writes it first; parsing ten thousand configurations would take seconds
        with (run / "config.toml").open(encoding="utf-8") as file:
            if found := re.match(r'algo = "(\w+)"$', file.readline()):
                return found[1]
    except (OSError, ValueError):
        return ""
    return str(read_settings(run).get("algo", ""))


def existing(name: str) -> Path | None:
    """Return the path that a name is, if something is there; what can be no path of this system leads nowhere.

    Neither does "", which as a path would be the folder that one stands in.
    """
    try:
        path = Path(name).expanduser()
        return path if name and path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, with a null character, of no user's home
        return None


def checkpoint_folders(run: Path) -> list[Path]:
    """Return the complete checkpoint folders of a run, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", path.name))


def find_run(name: str | None, *, latest: bool = False, algos: tuple[str, ...] = ()) -> tuple[Path, Path | None]:
    """Return a run folder, and a checkpoint folder in it if the name points at one.

    Args:
        name: a run id, a unique prefix of one, a path to a run, to a checkpoint folder or to a file in it.
        latest: take the newest run that has a checkpoint.
        algos: what the newest one may be; default: any.

    Raises:
        UsageError: nothing or more than one run fits.
    """
    runs = all_runs()
    if name is None:
        with_checkpoint = (run for run in runs if (run / "checkpoints" / "last.json").is_file())
        newest = next((run for run in with_checkpoint if not algos or algo_of(run) in algos), None) if latest else None
        if newest:
            return newest, None
        if latest:
            kind = f"{algos[0]} run" if algos else "run"
            hint = f"train one: gq train {algos[0] if algos else 'dt'}"
            raise UsageError(f"there is no {kind} with a checkpoint in {runs_folder()}", hint=hint)
        raise UsageError("no run given", hint="name one, or take the newest with --latest")
    if not name:
        raise UsageError("the run's name is empty", hint="name one, or take the newest with --latest")
    if path := existing(name):
        for folder in (path, *path.resolve().parents):
            if is_run(folder):
                return folder, checkpoint_folder_of(path)
        raise UsageError(
            f"{path} is not a gq run or inside one", hint=f"runs are in {runs_folder()}; the newest is --latest"
        )
    sweep, slash, member = name.partition("/")
    if slash and is_run(run := run_in_sweep(sweeps_folder() / sweep, member)):
        return run, None
    fitting = [run for run in runs if run.name == name] or [run for run in runs if run.name.startswith(name)]
    if len(fitting) == 1:
        return fitting[0], None
    if fitting:
        raise UsageError(
            f"{name} fits {len(fitting)} runs", hint="type more of one: " + ", ".join(r.name for r in fitting[:3])
        )
    known = [run.name for run in runs]
    otherwise = f"the newest run is {known[0]}" if known else "train one first: gq train dt"
    raise UsageError(f"there is no run {name}", hint=suggest(name, known, otherwise=otherwise))


def find_runs(names: Iterable[str]) -> list[Path]:
    """Return the runs that names, paths and patterns (`hopper-*`, `runs/*`) stand for, each once, in their order.

    The name of a sweep stands for the runs of its members.

    Raises:
        UsageError: nothing, or for a name more than one run, fits.
    """
    found: list[Path] = []
    for name in names:
        if not any(mark in name for mark in "*?[") or existing(name):
            found += [run.resolve() for run in members_of(name) or [find_run(name)[0]]]
            continue
        fitting = [run for run in reversed(all_runs()) if fnmatchcase(run.name, name)]
        folder = Path(name).expanduser()
        below = Path(folder.anchor) if folder.is_absolute() else Path()
        fitting += sorted(path for path in below.glob(str(folder.relative_to(folder.anchor))) if is_run(path))
        if not fitting:
            raise UsageError(f"no run fits {name}", hint="see gq runs")
        found += [run.resolve() for run in fitting]
    return list(dict.fromkeys(found))


def find_whole_run(name: str) -> Path:
    """Return a run by its id, a unique prefix or its own path; a path to something inside it is refused.

    Raises:
        UsageError: no run or more than one fits, or the path leads into one.
    """
    run, _ = find_run(name)
    path = existing(name)
    if path and path.resolve() != run.resolve():
        raise UsageError(f"{path} is inside a run, not a run", hint=f"to mean all of it, name {run}")
    return run


def checkpoint_folder_of(path: Path) -> Path | None:
    """Return the checkpoint folder that a path is or lies in, or None."""
    for folder in (path.resolve(), *path.resolve().parents):
        if folder.parent.name == "checkpoints" and folder.is_dir():
            return folder
    return None


def last_dataset() -> str:
    """Return the id of the dataset that was downloaded last.

    Raises:
        UsageError: none was.
    """
    try:
        return str(parse_json((datasets_folder() / "last.json").read_text())["dataset"])
    except (OSError, ValueError, KeyError, TypeError):
        hint = "gq download builtin/hopper/medium (offline), or name one with --dataset ID|PATH"
        raise UsageError("no dataset given and none downloaded yet", hint=hint) from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        GqError: the file is missing or damaged.
    """
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
        json.dumps(document, allow_nan=False)  # 1e400 would be read as an infinite number, which no JSON of ours holds
    except (OSError, ValueError) as error:
        raise GqError(f"cannot read {path}: {error}", hint="put the file back from a copy") from error
    if not isinstance(document, dict):
        raise GqError(f"{path} holds no JSON object", hint="put the file back from a copy")
    return document


def json_or_empty(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one where the file is missing or damaged."""
    try:
        return read_json(path)
    except GqError:
        return {}


def section(document: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return an object in a document that was read; an empty one where there is none, or something else."""
    found = document.get(key)
    return found if isinstance(found, dict) else {}
