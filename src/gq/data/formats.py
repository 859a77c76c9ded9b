"""Open data files: what a file is by its first bytes, and where its columns lie.

D4RL's and gq's flat HDF5 files, Minari's episodes, the Decision Transformer's pickle and archives of NumPy are read
here; `gq.data.other_formats` has what other programs write.
"""

import os
import re
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gq.data.hdf5 import (
    AGAIN,
    HDF5_MAGIC,
    READ_ERRORS,
    check_size,
    damaged,
    item_names,
    plain_attributes,
)
from gq.data.layouts import (
    D4RL,
    MINARI,
    PICKLE,
    Place,
    Problem,
    Problems,
    Stored,
    UnusableError,
    find_episodes,
    find_part,
)
from gq.data.other_formats import stored_d3rlpy, stored_robomimic
from gq.data.pickle_reader import GZIP_MAGIC, load_pickle, whole_dicts
from gq.errors import DataError
from gq.files import parse_json

TEXT_PICKLES = (b"(", b"]", b"}", b"c")  # what pickles of the protocols 0 and 1 begin with
OTHER_CONTENT = {
    b"PK\x03\x04": ("a zip archive", "unpack it; a PyTorch file (.pt) is for gq download FILE --task"),
    b"ARROW1": ("an Arrow table", "give the folder of the Minari dataset that it is of"),
    b"version https://git-lfs": ("a pointer of Git LFS, not the file", "fetch the file: git lfs pull"),
    b"SQLite format 3": ("an SQLite database", "write its columns as HDF5 (see the tutorial)"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "decompress it: zstd -d FILE"),
    b"\xfd7zXZ": ("compressed by xz", "decompress it: xz -d FILE"),
    b"BZh": ("compressed by bzip2", "decompress it: bzip2 -d FILE"),
    b"<!DOCTYPE": ("a web page", AGAIN),
    b"<html": ("a web page", AGAIN),
}
PICKLE_MAGICS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # the protocols 2 to 5
MINARI_PROVENANCE = ("dataset_id", "algorithm_name", "author", "code_permalink", "minari_version", "requirements")


def format_of(path: Path) -> Literal["hdf5", "pickle", "npz", "parquet", "minari tables"]:
    """Tell by its first bytes what a file is; a folder is Minari's, with a table for each episode.

    Raises:
        DataError: it is nothing that gq reads, or cannot be read; the hint is for what it seems to be.
    """
    if path.is_dir():
        return "minari tables"
    try:
        with path.open("rb") as file:
            head = file.read(60)
            is_ended = head[:1] in TEXT_PICKLES and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) == b"."
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if head.startswith(HDF5_MAGIC):
        return "hdf5"
    if head.startswith(b"PK\x03\x04") and b".npy" in head:
        return "npz"
    if head.startswith(b"PAR1"):
        return "parquet"
    for magic, (what, advice) in OTHER_CONTENT.items():
        if head.startswith(magic):
            raise DataError(f"{path} is neither an HDF5 file nor a pickle: it is {what}", hint=advice)
    if head.startswith((*PICKLE_MAGICS, GZIP_MAGIC)) or is_ended:
        return "pickle"
    text = head.decode("utf-8", errors="replace").split("\n")[0]
    is_text = text.isprintable() and "\ufffd" not in text
    looks = f"it is text that starts with {text[:30]!r}" if is_text else "unknown content"
    raise DataError(f"{path} is neither an HDF5 file nor a pickle: {looks if head else 'it is empty'}", hint=AGAIN)


def stored_hdf5(path: Path, root: Any, problems: Problems) -> Stored:
    """Look at an open file of D4RL, Minari, robomimic or d3rlpy. Raises UnusableError, ForeignError."""
    if root.id.links.exists(b"observations"):  # where the link may lead is for `own_item` to say
        attributes = _root_attributes(path, root, problems)
        return Stored(D4RL, [find_part(Place(path, "", D4RL, problems), root)], attributes=attributes)
    names = item_names(root)
    if other := stored_robomimic(path, root, problems) or stored_d3rlpy(path, root, problems):
        return other
    episodes = [name for name in names if re.fullmatch(r"episode_\d{1,18}", name)]
    if not episodes:
        found = ", ".join(names[:5]) or "nothing"
        message = f"neither observations (D4RL) nor episode_0 (Minari) at its root, but {found}"
        hint = "gq reads D4RL and Minari HDF5 files and pickled lists of episodes"
        raise UnusableError(Problem("bad-shape", message, DataError(f"{path} has {message}", hint=hint)))
    try:
        attributes = minari_metadata(path)
    except DataError as error:
        problems.add(Problem("bad-shape", str(error), error))
        attributes = {}
    stored = Stored(MINARI, attributes=attributes)
    find_episodes(stored, path, root, sorted(episodes, key=lambda name: (int(name[8:]), name)), problems)
    return stored


def stored_npz(path: Path, problems: Problems) -> Stored:
    """Read a NumPy archive of flat columns. Raises UnusableError, ForeignError, DataError."""
    try:
        with zipfile.ZipFile(path) as archive:
            check_size(path, [(-(-info.file_size // 4),) for info in archive.infolist()])
        with np.load(path, allow_pickle=False) as arrays:
            columns = {name: arrays[name] for name in arrays.files}
    except (zipfile.BadZipFile, OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged or holds no plain arrays: {error}", hint=AGAIN) from error
    if "rewards" not in columns and {"observations", "actions", "terminals"} <= columns.keys():
        # OGBench's: play without rewards, each piece as long as the others, its end in `terminals`
        columns["timeouts"] = columns["terminals"] != 0
        columns |= {name: np.zeros(len(columns["terminals"]), np.float32) for name in ("rewards", "terminals")}
        problems.add(Problem("bad-shape", "there are no rewards: 0 for each step", None))
    return Stored(D4RL, [find_part(Place(path, "", D4RL, problems), columns)])


def stored_pickle(path: Path, problems: Problems) -> Stored:
    """Read a pickled list of dicts, one an episode, or one dict of flat columns.

    Raises:
        UnusableError: it holds something else.
        DataError: the pickle asks for what no dataset needs, so that nothing in it is to be trusted.
    """
    try:
        episodes = load_pickle(path)
    except DataError as error:
        if error.__cause__ is None:  # not damaged
            raise
        episodes = whole_dicts(path)
        message = f"{error}; the {len(episodes):,} episodes before that can be read"
        problems.add(Problem("truncated-file", message, error))
    if isinstance(episodes, dict) and "observations" in episodes:
        return Stored(D4RL, [find_part(Place(path, "", D4RL, problems), episodes)])
    kind = type(episodes).__name__
    if isinstance(episodes, dict | tuple):
        episodes = list(episodes.values() if isinstance(episodes, dict) else episodes)
    if not isinstance(episodes, list) or not episodes or not all(isinstance(episode, dict) for episode in episodes):
        found = "an empty list" if episodes == [] else f"a {kind}"
        hint = "it should be a list of dicts, one an episode: observations, actions, rewards, terminals"
        refusal = DataError(f"{path} holds {found}, not episodes", hint=hint)
        raise UnusableError(Problem("bad-shape", "the pickle holds no list of episodes", refusal))
    labelled = {}
    for number, episode in enumerate(episodes):
        flag = {"terminals": episode["dones"]} if "dones" in episode else {}
        labelled[f"episode {number}"] = flag | episode
    stored = Stored(PICKLE)
    find_episodes(stored, path, labelled, list(labelled), problems)
    return stored


def minari_metadata(path: Path) -> dict[str, Any]:
    """Return the provenance in metadata.json beside a Minari file or in its folder, with `env_id`; empty without one.

    Raises:
        DataError: metadata.json is not JSON.
    """
    file = path / "metadata.json" if path.is_dir() else path.with_name("metadata.json")
    if not file.is_file():
        return {}
    try:
        metadata = parse_json(file.read_text(encoding="utf-8"))
        specification = parse_json(metadata.get("env_spec") or "{}")  # JSON in a string, with bare Infinity in it
        env_id = specification.get("id")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{file} is damaged: {error}", hint=AGAIN) from error
    found = {name: metadata[name] for name in MINARI_PROVENANCE if metadata.get(name)}
    found = {name: ", ".join(map(str, value)) if isinstance(value, list) else value for name, value in found.items()}
    return found | ({"env_id": env_id, "env_spec": metadata["env_spec"]} if env_id else {})


def _root_attributes(path: Path, root: Any, problems: Problems) -> dict[str, Any]:
    try:
        return plain_attributes(root)
    except READ_ERRORS as error:
        problems.add(Problem("truncated-file", "the file's attributes cannot be read", damaged(path, error)))
        return {}
