"""What a sweep consists of: members with settings and names of their own, from a TOML file or from seeds."""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gq.config import RunConfig
from gq.errors import UsageError, suggest
from gq.paths import last_dataset
from gq.settings import flatten, read_config_file

ALGORITHMS = ("dt", "bc", "odt", "td3bc", "tdmpc2")  # finetuning needs a parent each
KEYS = ("name", "note", "tags", "algo", "seeds", "episodes", "base", "axes", "zip", *ALGORITHMS)
RANGE_KEYS = {"low", "high", "num", "log"}
SEED = "train.seed"
UNLABELLED = ("algo", "size", "task", "data.dataset")  # values that say by themselves what they are
MAX_MEMBERS = 10_000
LETTERS = re.compile(r"[^A-Za-z0-9.+-]+")


@dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    name: str
    algo: str
    settings: dict[str, Any]  # by dotted key, as --config takes them
    values: dict[str, Any]  # its place on the axes, by dotted key


@dataclass(frozen=True)
class Axes:
    """What varies: each axis is a list of choices, and a choice sets one key, or several of a zip."""

    choices: list[list[dict[str, Any]]]

    def points(self) -> list[dict[str, Any]]:
        """Return the product of all axes; the last varies fastest."""
        num = math.prod(map(len, self.choices))
        if num > MAX_MEMBERS:
            raise UsageError(f"these axes have {num:,} members", hint=f"at most {MAX_MEMBERS:,}: leave some values out")
        return [{k: v for one in point for k, v in one.items()} for point in itertools.product(*self.choices)]


@dataclass(frozen=True)
class Plan:
    """A sweep before it has a folder."""

    name: str
    members: tuple[Member, ...]
    num_episodes: int = 0  # fresh ones, on which trained members' last and best checkpoints are evaluated


@dataclass(frozen=True)
class Base:
    """What all members share."""

    name: str
    algo: str
    settings: dict[str, Any]  # of all
    own: dict[str, dict[str, Any]]  # of one algorithm alone, by its name


def read_plan(file: Path, name: str | None = None) -> Plan:
    """Read a sweep from a TOML file.

    Args:
        name: instead of the file's.

    Raises:
        UsageError: no such file, an unknown key, or a member whose configuration is wrong.
    """
    tree = read_config_file(file)
    for key in tree:
        if key not in KEYS:
            otherwise = "settings that all members share belong into [base]"
            raise UsageError(f"{file}: a sweep has no {key}", hint=suggest(key, KEYS, otherwise=otherwise))
    name = check_name(str(name or tree.get("name") or file.stem))
    about = {"log.tags": tree.get("tags"), "log.note": tree.get("note")}
    shared = {key: value for key, value in about.items() if value} | flatten(table_of(tree, "base"))
    own = {algo: flatten(table_of(tree, algo)) for algo in ALGORITHMS if algo in tree}
    base = Base(name, str(tree.get("algo", shared.pop("algo", ""))), shared, own)
    axes = [axis(key, values) for key, values in flat_axes(table_of(tree, "axes")).items()]
    groups = tree.get("zip", [])
    axes += [zipped(group) for group in (groups if isinstance(groups, list) else [groups])]
    if "seeds" in tree:
        axes.append([{SEED: seed} for seed in parse_seeds(tree["seeds"])])
    if not axes:
        raise UsageError(f"{file} varies nothing", hint='add seeds = "0-4", or lists under [axes]')
    num_episodes = tree.get("episodes", 0)
    if not isinstance(num_episodes, int) or isinstance(num_episodes, bool) or num_episodes < 0:
        raise UsageError(f"{file}: episodes = {num_episodes!r} is not a number of episodes", hint="episodes = 20")
    return Plan(name, tuple(members_of(base, Axes(axes).points())), num_episodes)


def seeds_plan(name: str, algo: str, settings: Mapping[str, Any], seeds: Sequence[int]) -> Plan:
    """Return the sweep of one configuration over seeds."""
    base = Base(check_name(name), algo, dict(settings), {})
    return Plan(base.name, tuple(members_of(base, [{SEED: seed} for seed in seeds])))


def sweep_name(algo: str, settings: Mapping[str, Any]) -> str:
    """Return the name of a sweep over seeds that was given none: the same for the same settings, so it continues."""
    about = {"algo": algo} | {k: settings[k] for k in ("task", "data.dataset", "size") if settings.get(k)}
    letters = hashlib.sha256(json.dumps([algo, settings], sort_keys=True).encode()).hexdigest()[:4]
    return f"{name_at(about)}-{letters}"


def members_of(base: Base, points: Iterable[Mapping[str, Any]]) -> list[Member]:
    """Return the members at points of the axes, their configurations checked.

    Raises:
        UsageError: a configuration is wrong, or two are the same.
    """
    found: dict[str, Member] = {}
    for point in points:
        settings = {"algo": base.algo} | base.settings
        settings |= base.own.get(str(point.get("algo", settings["algo"])), {})
        settings |= point
        algo = str(settings.pop("algo"))
        if algo not in ALGORITHMS:
            message = f"there is no algorithm {algo} to sweep" if algo else "the sweep names no algorithm"
            raise UsageError(message, hint=f"algo = {', '.join(ALGORITHMS)}; or a list of them under [axes]")
        completed = complete(algo, settings)
        member = Member(name_at(point), algo, completed | {"log.sweep": base.name}, dict(point))
        if (other := found.get(member.name)) and (other.algo, other.settings) != (algo, member.settings):
            letters = hashlib.sha256(json.dumps([algo, completed], sort_keys=True).encode()).hexdigest()[:4]
            member = Member(f"{member.name}-{letters}", algo, member.settings, member.values)
        if member.name in found:
            raise UsageError(f"two members are the same: {member.name}", hint="name every value of an axis once")
        found[member.name] = member
    return list(found.values())


def complete(algo: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a member's settings with its dataset by its full name, after their configuration was built for a trial.

    Raises:
        UsageError: a key or a value is wrong.
    """
    settings = dict(settings)
    if "size" in settings:
        settings["size"] = str(settings["size"])
    if algo != "tdmpc2":
        from gq.datasets.loading import canonical_name

        settings["data.dataset"] = canonical_name(str(settings.get("data.dataset") or last_dataset()))
    configuration(algo, settings)
    return settings


def configuration(algo: str, settings: Mapping[str, Any]) -> RunConfig:
    """Return the configuration that a member's command will resolve, but for what follows from its data."""
    from gq.datasets.recipes import by_name

    given = dict(settings)
    preset = by_name(algo, None, given)
    config: RunConfig = preset.replace(given)
    return config


def table_of(tree: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a table of the file. Raises UsageError if it is something else."""
    found = tree.get(key, {})
    if not isinstance(found, dict):
        raise UsageError(f"{key} is not a table", hint=f"begin it with [{key}]")
    return found


def flat_axes(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the axes by dotted key; a table with low and high is a range, not a section."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        is_section = isinstance(value, dict) and not ("low" in value or "high" in value)
        found |= flat_axes(value, f"{prefix}{key}.") if is_section else {prefix + key: value}
    return found


def axis(key: str, values: Any) -> list[dict[str, Any]]:
    """Return the choices of one axis: a list, a range, or seeds as text."""
    if key == SEED and not isinstance(values, list):
        return [{SEED: seed} for seed in parse_seeds(values)]
    if isinstance(values, dict):
        return [{key: value} for value in spread(key, values)]
    if not isinstance(values, list) or not values:
        hint = f"for example {key} = [1, 2], or {key} = {{low = 1e-4, high = 1e-2, num = 3, log = true}}"
        raise UsageError(f"the axis {key} is not a list of values", hint=hint)
    return [{key: value} for value in values]


def zipped(group: Any) -> list[dict[str, Any]]:
    """Return the choices of keys that vary together. Raises UsageError unless all lists are equally long."""
    lists = flat_axes(group) if isinstance(group, dict) else {}
    values = {key: [one[key] for one in axis(key, each)] for key, each in lists.items()}
    if len({len(each) for each in values.values()}) != 1:
        lengths = ", ".join(f"{key} has {len(each)}" for key, each in values.items())
        raise UsageError(f"[[zip]] needs lists of one length: {lengths or 'it is empty'}", hint="or use [axes]")
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def spread(key: str, bounds: Mapping[str, Any]) -> list[float]:
    """Return `num` values from low to high, evenly spaced, or evenly in their logarithm. Raises UsageError."""
    low, high, num = bounds.get("low"), bounds.get("high"), bounds.get("num")
    is_log = bool(bounds.get("log", False))
    hint = f"for example {key} = {{low = 1e-4, high = 1e-2, num = 3, log = true}}"
    if set(bounds) - RANGE_KEYS or not isinstance(num, int) or num < 2:
        raise UsageError(f"the range {key} needs low, high and num of 2 or more", hint=hint)
    if not isinstance(low, int | float) or not isinstance(high, int | float) or low >= high or (is_log and low <= 0):
        raise UsageError(f"the range {key} goes from {low} to {high}", hint=hint)
    if is_log:
        return [float(f"{low * (high / low) ** (i / (num - 1)):.6g}") for i in range(num)]
    values = [low + (high - low) * i / (num - 1) for i in range(num)]
    is_whole = isinstance(low, int) and isinstance(high, int) and all(value == int(value) for value in values)
    return [int(value) if is_whole else float(f"{value:.6g}") for value in values]


def parse_seeds(text: Any) -> list[int]:
    """Parse `0-4`, `0,3,5-7`, a number or a list of numbers. Raises UsageError."""
    found: list[int] = []
    for part in text if isinstance(text, list) else str(text).split(","):
        match = re.fullmatch(r"\s*(\d{1,18})\s*(?:-\s*(\d{1,18})\s*)?", str(part))
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not match or last < first or last - first >= MAX_MEMBERS:
            raise UsageError(f"seeds {text} are not a range or a list", hint="for example 0-4, or 0,3,7")
        found += range(first, last + 1)
    if len(set(found)) < len(found):
        raise UsageError(f"seeds {text} name one twice", hint="for example 0-4, or 0,3,7")
    return found


def check_name(name: str) -> str:
    """Return a name that can be a folder's. Raises UsageError."""
    if not name or name.startswith((".", "-")) or name != Path(name).name or not name.isprintable():
        raise UsageError(f"{name!r} cannot be the name of a sweep", hint="for example --name hopper-sizes")
    return name


def name_at(point: Mapping[str, Any]) -> str:
    """Return what the member at a point of the axes is called: every axis has its part, so that it never changes."""
    parts = []
    for key, value in point.items():
        label = {SEED: "seed", "optim.learning_rate": "lr"}.get(key, key.rsplit(".", 1)[-1])
        text = str(value)
        if key == "data.dataset":
            path = Path(text)
            text = path.stem if path.suffix else "-".join(path.parts[-2:])
        elif isinstance(value, float):
            text = f"{value:g}"
        word = LETTERS.sub("-", text).strip("-.")[:60]
        parts.append(word if key in UNLABELLED else f"{label}{'' if key == SEED else '-'}{word}")
    return "-".join(filter(None, parts)).lower() or "only"
