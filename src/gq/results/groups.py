"""Which runs belong together: seeds of one experiment; and what tells experiments apart, in few words."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gq.errors import GqError
from gq.paths import json_or_empty
from gq.results.history import History, read_settings
from gq.runs.folder import CHANGEABLE

# Runs that differ in these alone are seeds of the same experiment. A schedule that falls depends on train.steps.
INCIDENTAL = (*(key for key in CHANGEABLE if key != "train.steps"), "train.seed")
# Curves may be of different lengths; what runs came to in the end can be compared only after as long a training.
BUDGETS = ("train.decisions", "online.environment_steps", "online.iterations", "online.minutes")
NAMES_OF_KINDS = ("algo", "size", "data.dataset")  # these tell groups apart without saying which key they are
MAX_DIFFERENCES = 3  # settings that a label names; where more differ, it names the run


def groups_by_task(histories: Sequence[History], *, final: bool = False) -> list[tuple[str, str, list[History]]]:
    """Return task, name and runs of each experiment, in the order of the runs.

    Args:
        final: they are to be compared by what they came to in the end, so that their budgets must agree too.
    """
    experiments: dict[str, list[History]] = {}
    for history in histories:
        experiments.setdefault(experiment_of(history.settings, final=final), []).append(history)
    found = []
    for task in dict.fromkeys(str(history.settings["task"]) for history in histories):
        members = [group for group in experiments.values() if group[0].settings["task"] == task]
        found += [(task, name, group) for name, group in zip(group_names(members, final=final), members, strict=True)]
    return found


def repeated_seeds(group: Sequence[History]) -> str:
    """Return a note about runs of a group that have the same seed, so that they are not independent; "" without any."""
    owners: dict[str, list[str]] = {}
    for history in group:
        owners.setdefault(seed_of(history), []).append(history.run.name)
    alike = [names for names in owners.values() if len(names) > 1]
    return "; ".join(f"{' and '.join(names)} have the same seed: no interval over runs" for names in alike)


def seed_of(history: History) -> str:
    """Return what makes a run independent of others: its seed, with that of its parent; else the run itself."""
    settings = history.settings
    if imported := json_or_empty(history.run / "environment.json").get("imported"):
        return json.dumps(imported)  # config.toml does not know with which seed these weights were trained
    seeds = [settings.get("train.seed", str(history.run))]
    if parent := str(settings.get("online.parent", "")):
        try:
            seeds.append(read_settings(Path(parent)).get("train.seed", parent))
        except GqError:
            seeds.append(parent)
    return json.dumps(seeds)


def experiment_of(settings: dict[str, Any], *, final: bool = False) -> str:
    """Return what seeds of one experiment have in common; of finetuned runs, their parents' settings too."""
    kept = without_incidentals(settings, final=final)
    if parent := str(kept.get("online.parent", "")):
        with suppress(GqError):  # it is gone: runs belong together only if they name the same one
            kept["online.parent"] = without_incidentals(read_settings(Path(parent)), final=final)
    return json.dumps(kept, sort_keys=True)


def without_incidentals(settings: dict[str, Any], *, final: bool) -> dict[str, Any]:
    """Return the settings that tell experiments apart."""
    incidental = [key for key in INCIDENTAL if not (final and key in BUDGETS)]
    sections = tuple(key for key in incidental if key.endswith("."))
    return {key: value for key, value in settings.items() if key not in incidental and not key.startswith(sections)}


def group_names(groups: Sequence[Sequence[History]], *, final: bool) -> list[str]:
    """Return what tells groups of runs apart, as short as can be; "" for a single group."""
    settings = [json.loads(experiment_of(group[0].settings, final=final)) for group in groups]
    names = [name_by(one, differing(settings, NAMES_OF_KINDS)) for one in settings]
    if len(set(names)) < len(names):
        for name in dict.fromkeys(names):
            alike = [index for index, other in enumerate(names) if other == name]
            keys = differing([settings[index] for index in alike])
            for index in alike if keys else []:
                few = len(keys) <= MAX_DIFFERENCES and "online.parent" not in keys
                more = name_by(settings[index], keys) if few else groups[index][0].run.name
                names[index] = ", ".join(filter(None, [name, more]))
    return names


def differing(settings: Sequence[dict[str, Any]], keys: Sequence[str] | None = None) -> list[str]:
    """Return the keys, of all or of the given ones, whose values are not the same everywhere."""
    chosen = keys or sorted({key for one in settings for key in one})
    return [key for key in chosen if len({json.dumps(one.get(key)) for one in settings}) > 1]


def name_by(settings: dict[str, Any], keys: Sequence[str]) -> str:
    """Return the values of the keys as words."""
    words = []
    for key in keys:
        value = settings.get(key, "none")
        if key == "size":
            words.append(f"size {value}")
        elif key in NAMES_OF_KINDS:
            words.append(str(value).rsplit("/", 1)[-1] if str(value).startswith("/") else str(value))
        else:
            words.append(f"{key} {value}")
    return ", ".join(words)
