"""The grammar of names: what people type for datasets, checkpoints and repositories. Imports nothing heavy."""

import re
from dataclasses import dataclass

from gq.datasets.catalog import ENTRIES, GROUPS, DatasetEntry
from gq.errors import UsageError, suggest

# Minari's sets of Gymnasium-Robotics are in a namespace D4RL, whose own files of these robots are others.
SOURCES = ("builtin", "minari", "mujoco", "d4rl", "tdmpc2")
ALIASES = {"walker": "walker2d", "cheetah": "halfcheetah"}
ENVIRONMENTS = [group.removeprefix("mujoco/") for group in GROUPS if group.startswith("mujoco/")]
MINARI_LEVELS = list(GROUPS["mujoco/hopper"])
D4RL_LEVELS = {*GROUPS["d4rl/ant-v2"], "mixed", "random-expert"}
D4RL_V0_LEVELS = ("mixed", "random-expert")

PREFIX = "hf://"
SUFFIXES = (".hdf5", ".h5")  # of data files
_NAME = r"[A-Za-z0-9][\w.-]*"
_REFERENCE = re.compile(rf"({_NAME})/({_NAME})(?:@([\w.%-]+))?((?:/[^/@]+)*)(?:@([\w.%-]+))?/?")


@dataclass(frozen=True)
class Reference:
    """A repository on the Hub, or a part of one: `org/name[@revision][/path]`."""

    repo: str
    revision: str = ""  # branch, tag or commit; empty: main
    path: str = ""

    def __str__(self) -> str:
        revision, path = f"@{self.revision}" if self.revision else "", f"/{self.path}" if self.path else ""
        return f"{self.repo}{revision}{path}"


def parse_reference(text: str) -> Reference:
    """Parse `[hf://][datasets/]org/name[@revision][/path]`; the revision may also be last.

    Raises:
        UsageError: it is not such a name.
    """
    bare = text.removeprefix(PREFIX).removeprefix("datasets/").removeprefix("models/")
    found = _REFERENCE.fullmatch(bare)
    parts = (found[4].strip("/").split("/") if found[4] else []) if found else []
    if not found or (found[3] and found[5]) or any(part in (".", "..") or "\\" in part for part in parts):
        raise UsageError(f"{text} is not a repository's name", hint="write org/name, or org/name@revision")
    return Reference(f"{found[1]}/{found[2]}", (found[3] or found[5] or ""), "/".join(parts))


def hub_entry(name: str) -> DatasetEntry:
    """Return the entry of a dataset on the Hub, by `hf://org/name[@revision][/path]`; the network is not used.

    Raises:
        UsageError: it is not such a name.
    """
    reference = parse_reference(name)
    stem = str(reference).removesuffix(".hdf5") if reference.path else str(reference)
    return DatasetEntry(
        id=f"{PREFIX}{reference}",
        kind="hub",
        task="",
        group=f"{PREFIX}{reference.repo}",
        level=reference.path or reference.revision,
        file=f"hub/{stem}.hdf5",
        size_bytes=0,
        licence="see its repository",
    )


def known_ids() -> list[str]:
    """Return the ids of all datasets, the built-in ones first, without the checkpoints."""
    return [entry.id for entry in ENTRIES.values() if entry.kind != "tdmpc2"]


def locate(name: str) -> tuple[str, str]:
    """Split a name into the group that it means and the level that it says; each is empty where there is none.

    Words are separated by `-`, `_` or `/`: `[source] environment [level] [version]`, or `tdmpc2 task [seed or size]`.
    Without a source a name is Minari's, but for those that only D4RL has: a level of its own (`hopper-random`) or one
    with its spelling of versions (`hopper-medium-v2`, where Minari writes `hopper/medium-v0`). D4RL's version is v2
    unless said, or v0 for what is only there. As D4RL has no Humanoid, `humanoid_medium-v2` can only mean Minari's.
    """
    words = re.split("[-_/]", name.lower().strip("/"))
    source = words.pop(0) if words[0] in SOURCES else ""
    if source == "tdmpc2":
        task, _, last = "-".join(words).rpartition("-")
        has_level = last in GROUPS.get(f"tdmpc2/{task}", {})
        return (f"tdmpc2/{task}", last) if has_level else (f"tdmpc2/{'-'.join(words)}", "")
    version = words.pop() if words and re.fullmatch(r"v\d+", words[-1]) else ""
    environment = ALIASES.get(words[0], words[0]) if words else ""
    level = "-".join(words[1:])
    if (robot := f"D4RL/{environment}") in GROUPS and source != "builtin":
        return (robot if f"{robot}/{level}-{version or _version_of(robot)}" in ENTRIES or not level else ""), level
    if source == "builtin":
        return ("" if version else f"builtin/{environment}"), level
    has_d4rl = f"d4rl/{environment}-v2" in GROUPS and level in D4RL_LEVELS
    is_only_d4rl = level not in MINARI_LEVELS or (version and not name.lower().endswith(f"/{level}-v0"))
    if source == "d4rl" or (not source and has_d4rl and is_only_d4rl):
        version = version or ("v0" if level in D4RL_V0_LEVELS else "v2")
        is_v0_replay = (level, version) == ("mixed", "v0")  # which is what v0 calls it
        return f"d4rl/{environment}-{version}", "medium-replay" if is_v0_replay else level
    versions = ["", "v0"] if level else [""]
    if level and environment == "humanoid":
        versions.append("v2")
    return (f"mujoco/{environment}" if version in versions else ""), level


def resolve(name: str, *, level: str | None = None) -> DatasetEntry:
    """Return the dataset that a name stands for: an id, or a short form such as `hopper` or `ant-expert`.

    Without a level it is medium, of checkpoints the first seed without a defect or the size of 5M. `locate` says which
    source and version it is; a dataset on the Hub is `hf://org/name`.

    Args:
        level: given beside the name, which then must not say one.

    Raises:
        UsageError: there is no such dataset.
    """
    if name.startswith(PREFIX):
        if level is not None:
            raise UsageError("--level is for datasets that gq knows", hint="write hf://org/name/path/in/it")
        return hub_entry(name)
    group, said = locate(name)
    levels = GROUPS.get(group, {})
    if level is not None and said:
        raise UsageError(f"{name} says its level already, so --level {level} is one too many")
    wanted = said or (level or "").lower().replace("_", "-")
    if not wanted and levels:
        sound = [key for key, entry in levels.items() if not entry.note]
        wanted = next((key for key in ("medium", "5m", *sound) if key in levels), "")
    if wanted in levels:
        return levels[wanted]
    if level is not None and levels:
        raise UsageError(f"{group} has no level {level}", hint=_other_levels(group, wanted))
    raise _unknown(name)


def _version_of(robot: str) -> str:
    return next(iter(GROUPS[robot].values())).id.rpartition("-")[2]


def all_levels(name: str) -> list[DatasetEntry]:
    """Return all levels of the environment, in the source and version, that a name without a level stands for.

    Raises:
        UsageError: there is no such dataset, or the name says a level.
    """
    group, said = locate(name)
    if said:
        raise UsageError(f"{name} is one level, not all", hint=f"all of them: gq download {group} --all")
    if group not in GROUPS:
        raise _unknown(name)
    return list(GROUPS[group].values())


def says_level(name: str) -> bool:
    """Whether a name says which level it means."""
    return name.startswith(PREFIX) or bool(locate(name)[1])


def _other_levels(group: str, level: str) -> str:
    """Return a hint that names the levels of a group, and where else a level is found."""
    hint = "it has " + ", ".join(entry.level for entry in GROUPS[group].values())
    environment = re.split("[-/]", group)[1]
    elsewhere = [f"builtin/{environment}", f"d4rl/{environment}-v2", f"mujoco/{environment}"]
    found = [GROUPS[other][level].id for other in elsewhere if level in GROUPS.get(other, {})]
    return f"{hint}; there is also {' and '.join(found)}" if found else hint


def _unknown(name: str) -> UsageError:
    """Return the error for a name that stands for nothing, with the closest ones that stand for something."""
    if "d4rl" in name.lower() and "humanoid" in name.lower():
        return UsageError("D4RL has no Humanoid", hint="Minari's: gq download humanoid, or builtin/humanoid")
    if name.lower().strip("/") in SOURCES:
        return UsageError(f"{name} is not a dataset's name", hint=f"see gq download --list {name.strip('/')}")
    short = [f"{environment}/{level}" for environment in ENVIRONMENTS for level in MINARI_LEVELS]
    otherwise = "known: " + ", ".join(ENVIRONMENTS) + ", builtin/hopper and so on: see gq download --list"
    hint = suggest(name, [*ENVIRONMENTS, *short, *ENTRIES], otherwise=otherwise)
    return UsageError(f"there is no dataset {name}", hint=hint)
