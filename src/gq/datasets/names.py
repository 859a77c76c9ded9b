"""The datasets and checkpoints that gq knows by name, and what people type for them. Imports nothing heavy."""

import re
from collections.abc import Iterable

from gq.datasets import hub, manifest
from gq.datasets.catalog import (
    BUILTIN_ENVIRONMENTS,
    BUILTIN_LEVELS,
    D4RL_ENVIRONMENTS,
    D4RL_LEVELS,
    D4RL_MEBIBYTES,
    MINARI_ENVIRONMENTS,
    MINARI_LEVELS,
    DatasetEntry,
    builtin_entry,
    d4rl_entry,
    minari_entry,
)
from gq.errors import UsageError, suggest
from gq.official.names import tdmpc2_entries

SOURCES = ("builtin", "minari", "mujoco", "d4rl", "tdmpc2")
ALIASES = {"walker": "walker2d", "cheetah": "halfcheetah"}
ENTRIES = {
    entry.id: entry
    for entry in [
        *(builtin_entry(environment, level) for environment in BUILTIN_ENVIRONMENTS for level in BUILTIN_LEVELS),
        *(minari_entry(environment, level) for environment in MINARI_ENVIRONMENTS for level in MINARI_LEVELS),
        *(
            d4rl_entry(environment, level, version)
            for version in ("v2", "v1", "v0")
            for environment in D4RL_ENVIRONMENTS
            for level, _ in zip(D4RL_LEVELS, D4RL_MEBIBYTES[f"{environment}-{version}"], strict=False)
        ),
        d4rl_entry("ant", "random-expert", "v0"),
        *tdmpc2_entries(),
    ]
}
GROUPS: dict[str, dict[str, DatasetEntry]] = {}  # the levels of each group, by their names in lower case
for _entry in ENTRIES.values():
    GROUPS.setdefault(_entry.group, {})[_entry.level.lower()] = _entry


def known_ids() -> list[str]:
    """Return the ids of all datasets, the built-in ones first, without the checkpoints."""
    return [entry.id for entry in ENTRIES.values() if entry.kind != "tdmpc2"]


def cached(entry: DatasetEntry) -> bool:
    """Tell whether the file is in the cache; it is put there whole or not at all."""
    return entry.path.is_file() and not manifest.is_anothers(entry)


def resolve(name: str, *, level: str | None = None) -> DatasetEntry:
    """Return the dataset that a name stands for: an id, or a short form such as `hopper` or `ant-expert`.

    Without a level it is medium. Without a source it is Minari's, but for names that only D4RL has: those with
    its versions (`hopper-medium-v2`), without one the newest (`hopper-medium-replay`). As D4RL has no Humanoid,
    `humanoid_medium-v2`, which scripts use, can only mean Minari's. A checkpoint is `tdmpc2/<task>-<seed>`, a dataset
    on the Hub `hf://org/name`.

    Args:
        level: asked for beside the name, which then must not say one.

    Raises:
        UsageError: there is no such dataset.
    """
    if name.startswith(hub.PREFIX):
        if level is not None:
            raise UsageError("--level is for datasets that gq knows", hint="write hf://org/name/path/in/it")
        return hub.hub_entry(name)
    group, said = locate(name)
    levels = GROUPS.get(group, {})
    if level is not None and said:
        raise UsageError(f"{name} says its level already, so --level {level} is one too many")
    wanted = said or (level or "").lower().replace("_", "-") or default_level(levels.values())
    if wanted in levels:
        return levels[wanted]
    if level is not None and levels:
        raise UsageError(f"{group} has no level {level}", hint=other_levels(group, wanted))
    raise unknown(name)


def all_levels(name: str) -> list[DatasetEntry]:
    """Return all levels of the environment, in the source and version, that a name without a level stands for.

    Raises:
        UsageError: there is no such dataset, or the name says a level.
    """
    group, said = locate(name)
    if said:
        raise UsageError(f"{name} is one level, not all", hint=f"all of them: gq download {group} --all")
    if group not in GROUPS:
        raise unknown(name)
    return list(GROUPS[group].values())


def says_level(name: str) -> bool:
    """Tell whether a name says which level it means."""
    return name.startswith(hub.PREFIX) or bool(locate(name)[1])


def locate(name: str) -> tuple[str, str]:
    """Split a name into the group that it means and the level that it says, each empty where there is none."""
    words = re.split("[-_/]", name.lower().strip("/"))
    source = words.pop(0) if words[0] in SOURCES else ""
    if source == "tdmpc2":
        return locate_checkpoint("-".join(words))
    version = words.pop() if words and re.fullmatch(r"v\d+", words[-1]) else ""
    environment = ALIASES.get(words[0], words[0]) if words else ""
    level = "-".join(words[1:])
    if source == "builtin":
        return ("" if version else f"builtin/{environment}"), level
    if source == "d4rl" or (not source and is_spelt_as_d4rl(name.lower(), environment, level, version)):
        return locate_d4rl(environment, level, version)
    versions = ("", "v0", "v2") if environment == "humanoid" else ("", "v0")
    return (f"mujoco/{environment}" if version in (versions if level else ("",)) else ""), level


def locate_checkpoint(text: str) -> tuple[str, str]:
    """Return the group and the seed or size that a checkpoint's name without its source says."""
    task, _, last = text.rpartition("-")
    if last in GROUPS.get(f"tdmpc2/{task}", {}):
        return f"tdmpc2/{task}", last
    return f"tdmpc2/{text}", ""


def locate_d4rl(environment: str, level: str, version: str) -> tuple[str, str]:
    """Return the group and the level of a D4RL name; what is only in v0 needs no version."""
    if level in ("mixed", "random-expert"):
        version = version or "v0"
    if level == "mixed" and version == "v0":
        level = "medium-replay"
    return f"d4rl/{environment}-{version or 'v2'}", level


def is_spelt_as_d4rl(name: str, environment: str, level: str, version: str) -> bool:
    """Tell whether a name is D4RL's: `hopper-medium-v0`, `hopper-random`; Minari writes `hopper/medium-v0`."""
    if environment not in D4RL_ENVIRONMENTS or level not in (*D4RL_LEVELS, "mixed", "random-expert"):
        return False
    return level not in MINARI_LEVELS or (version != "" and not name.endswith(f"/{level}-v0"))


def default_level(entries: Iterable[DatasetEntry]) -> str:
    """Return medium, or of checkpoints the first seed without a defect, or the size of 5M."""
    levels = {entry.level.lower(): entry for entry in entries}
    for level in ("medium", "5m"):
        if level in levels:
            return level
    return next((level for level, entry in levels.items() if not entry.note), "")


def other_levels(group: str, level: str) -> str:
    """Return a hint that names the levels of a group, and where else the level asked for is found."""
    hint = "it has " + ", ".join(entry.level for entry in GROUPS[group].values())
    environment = re.split("[-/]", group)[1]
    elsewhere = [f"builtin/{environment}", f"d4rl/{environment}-v2", f"mujoco/{environment}"]
    found = [GROUPS[other][level].id for other in elsewhere if level in GROUPS.get(other, {})]
    return f"{hint}; there is also {' and '.join(found)}" if found else hint


def unknown(name: str) -> UsageError:
    """Return the error for a name that stands for nothing, with the closest ones that stand for something."""
    if "d4rl" in name.lower() and "humanoid" in name.lower():
        return UsageError("D4RL has no Humanoid", hint="Minari's: gq download humanoid, or builtin/humanoid")
    if name.lower().strip("/") in SOURCES:
        return UsageError(f"{name} names no dataset", hint=f"see gq download --list {name.strip('/')}")
    short = [f"{environment}/{level}" for environment in MINARI_ENVIRONMENTS for level in MINARI_LEVELS]
    otherwise = "known: " + ", ".join(MINARI_ENVIRONMENTS) + ", builtin/hopper and so on: see gq download --list"
    hint = suggest(name, [*MINARI_ENVIRONMENTS, *short, *ENTRIES], otherwise=otherwise)
    return UsageError(f"there is no dataset {name}", hint=hint)
