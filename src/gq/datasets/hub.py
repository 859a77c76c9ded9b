"""The Hugging Face Hub: names of repositories, what lies in them, and datasets there by `hf://org/name`.

Reading needs no more than HTTP; what is listed is pinned to one commit, with the hash of each file.
"""

import os
import re
import time
import urllib.error
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, urljoin

from gq.datasets import fetch as transfer
from gq.datasets.catalog import DatasetEntry
from gq.datasets.connection import BrokenTransferError, open_url, origin_of
from gq.errors import GqError, UsageError
from gq.files import parse_json
from gq.paths import datasets_folder, read_json

DEFAULT_ENDPOINT = "https://huggingface.co"
PREFIX = "hf://"
NAME = r"[A-Za-z0-9][\w.-]*"
REFERENCE = re.compile(rf"({NAME})/({NAME})(?:@([\w.%-]+))?((?:/[^/@]+)*)(?:@([\w.%-]+))?/?")
SUFFIXES = (".hdf5", ".h5")
MAX_NUM_PAGES = 100  # of a listing; the Hub puts a thousand files on one
MAX_PAGE_BYTES = 64 << 20
READ_HINT = "check its name and revision; for a private one set HF_TOKEN"

Kind = Literal["models", "datasets"]


@dataclass(frozen=True)
class Reference:
    """A repository, or a part of one: `org/name[@revision][/path]`."""

    repo: str
    revision: str = ""  # branch, tag or commit; empty: main
    path: str = ""

    def __str__(self) -> str:
        revision, path = f"@{self.revision}" if self.revision else "", f"/{self.path}" if self.path else ""
        return f"{self.repo}{revision}{path}"


@dataclass(frozen=True)
class HubFile:
    """A file in a repository."""

    path: str
    num_bytes: int
    sha256: str  # empty where the Hub does not know it: for small texts
    git_sha1: str  # of git's blob


@dataclass(frozen=True)
class Snapshot:
    """A repository's files at a commit."""

    reference: Reference
    kind: Kind
    commit: str
    files: list[HubFile]

    def url(self, file: HubFile) -> str:
        """Return where a file is."""
        folder = "datasets/" if self.kind == "datasets" else ""
        return f"{endpoint()}/{folder}{self.reference.repo}/resolve/{self.commit}/{quote(file.path)}"


def parse_reference(text: str) -> Reference:
    """Parse `[hf://][datasets/]org/name[@revision][/path]`; the revision may also be last.

    Raises:
        UsageError: it is none.
    """
    bare = text.removeprefix(PREFIX).removeprefix("datasets/").removeprefix("models/")
    found = REFERENCE.fullmatch(bare)
    parts = (found[4].strip("/").split("/") if found[4] else []) if found else []
    if not found or (found[3] and found[5]) or any(part in (".", "..") or "\\" in part for part in parts):
        raise UsageError(f"{text} names no repository", hint="write org/name, or org/name@revision")
    return Reference(f"{found[1]}/{found[2]}", (found[3] or found[5] or ""), "/".join(parts))


def server(variable: str, default: str) -> str:
    """Return a server's address, from the environment or the default, without a slash at its end.

    Raises:
        UsageError: the variable holds no web address.
    """
    base = os.environ.get(variable) or default
    if not base.startswith(("http://", "https://")):
        raise UsageError(f"{variable} is {base}, not a web address", hint=f"the default is {default}")
    return base.rstrip("/")


def endpoint() -> str:
    """Return the Hub's address: HF_ENDPOINT, or the default."""
    return server("HF_ENDPOINT", DEFAULT_ENDPOINT)


def hub_token() -> str:
    """Return HF_TOKEN, or nothing.

    Raises:
        UsageError: it cannot be a token.
    """
    token = os.environ.get("HF_TOKEN", "").strip()
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise UsageError("HF_TOKEN holds characters that no token has", hint="set it again, or unset it")
    return token


def is_offline() -> bool:
    """Tell whether HF_HUB_OFFLINE forbids the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def refuse_offline(what: str, *, offline: bool, hint: str) -> None:
    """Raise GqError if the network must not be used."""
    if offline or is_offline():
        reason = "--offline forbids the network" if offline else "HF_HUB_OFFLINE is set"
        raise GqError(f"{what}, and {reason}", hint=hint)


def list_files(reference: Reference, kind: Kind) -> Snapshot:
    """Return the files of a repository, or below the path of the reference, at the newest commit of its revision.

    Raises:
        GqError: there is no such repository, revision or folder, or the Hub cannot be reached.
    """
    base = f"{endpoint()}/api/{kind}/{reference.repo}"
    try:
        commit = str(get_json(f"{base}/revision/{quote(reference.revision or 'main', safe='%')}", "{").get("sha") or "")
    except GqError as error:
        if not is_missing(error):
            raise
        other = f"gq pull {reference}" if kind == "datasets" else f"gq download hf://{reference}"
        hint = f"a private one needs HF_TOKEN; or is it a {'run' if kind == 'datasets' else 'dataset'}? {other}"
        raise GqError(f"the Hub shows no {kind.removesuffix('s')} {reference}", hint=hint) from error
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise GqError(f"{base} is not answered as the Hub does", hint="see HF_ENDPOINT")
    folder = f"/{quote(reference.path)}" if reference.path and not reference.path.endswith(SUFFIXES) else ""
    listed = get_json(f"{base}/tree/{commit}{folder}?recursive=true", "[")
    try:
        files = [listed_file(entry) for entry in listed if entry.get("type") == "file"]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise GqError(f"{base} is not answered as the Hub does", hint="see HF_ENDPOINT") from None
    return Snapshot(reference, kind, commit, files)


def listed_file(entry: dict[str, Any]) -> HubFile:
    """Return a file that the Hub lists. Raises what an entry that is none raises."""
    return HubFile(
        path=str(entry["path"]),
        num_bytes=int(entry["size"]),
        sha256=str((entry.get("lfs") or {}).get("oid", "")).removeprefix("sha256:"),
        git_sha1=str(entry["oid"]),
    )


def get_json(url: str, first: str) -> Any:
    """Return the JSON document at an address of the Hub; a list together with its further pages.

    Args:
        first: the character that it begins with.

    Raises:
        GqError: it cannot be had.
    """
    document: Any = None
    following = url
    for _ in range(MAX_NUM_PAGES):
        content, following = get_page(following)
        try:
            page = parse_json(content)
        except ValueError:
            page = None
        if not isinstance(page, dict if first == "{" else list):
            raise GqError(f"{url} is not answered as the Hub does", hint="see HF_ENDPOINT")
        document = page if document is None else document + page
        if first == "{" or not following:
            return document
    raise GqError(f"{url} has more than {MAX_NUM_PAGES} pages", hint="name a folder or a file in the repository")


def get_page(url: str) -> tuple[bytes, str]:
    """Return what is at an address of the Hub, in as many attempts as it takes, and where the next page is, or nothing.

    Raises:
        GqError: it cannot be had, or goes on at another host.
    """
    for attempt in range(1, transfer.NUM_ATTEMPTS + 1):
        try:
            content, target = read_page(url)
            break
        except BrokenTransferError as error:
            wait_s = max(error.wait_s, transfer.BACK_OFF_S * 2 ** (attempt - 1))
            if attempt == transfer.NUM_ATTEMPTS or wait_s > transfer.LONGEST_WAIT_S:
                raise GqError(f"cannot download {url}: {error}", hint=READ_HINT) from error
        time.sleep(wait_s)
    try:
        following = urljoin(url, target) if target else ""
        is_same_host = not following or origin_of(following) == origin_of(url)
    except ValueError:  # no address at all
        is_same_host = False
    if not is_same_host:
        raise GqError(f"{url} goes on at another host, {target}", hint="see HF_ENDPOINT")
    return content, following


def read_page(url: str) -> tuple[bytes, str]:
    """Make one attempt at `get_page`; the next page's address is as the server writes it.

    Raises:
        BrokenTransferError: trying again may help.
        GqError: the server refuses for good.
    """
    response, _ = open_url(url, {"Accept-Encoding": "identity"}, token=hub_token(), hint=READ_HINT)
    with response:
        content = transfer.read_from(response.read, MAX_PAGE_BYTES)
        if response.length:
            raise BrokenTransferError(f"it broke off after {len(content):,} bytes")
        following = re.search(r'<([^>]*)>[^<]*?\brel="?next\b', response.headers["Link"] or "")
    return content, following[1] if following else ""


def is_missing(error: GqError) -> bool:
    """Tell whether the Hub has no such thing, or hides it from those without a token."""
    cause = error.__cause__
    return isinstance(cause, urllib.error.HTTPError) and cause.code in (401, 403, 404)


def hub_entry(name: str) -> DatasetEntry:
    """Return the entry of a dataset on the Hub, by `hf://org/name[@revision][/path]`; the network is not used.

    Raises:
        UsageError: that is no such name.
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


def hub_entries() -> list[DatasetEntry]:
    """Return the entries of the Hub's datasets that the cache has a record of."""
    entries = []
    for record in sorted((datasets_folder() / "hub").glob("**/*.hdf5.json")):
        try:
            entry = hub_entry(str(read_json(record)["id"]))
        except (GqError, KeyError, TypeError):
            continue  # not a record of ours
        if entry.path == record.with_suffix(""):
            entries.append(entry)
    return entries


def dataset_urls(entry: DatasetEntry) -> list[str]:
    """Return the addresses of a dataset's files on the Hub, the data last: a single HDF5 file, or Minari's two.

    Raises:
        GqError: the repository cannot be read.
        UsageError: it holds no such data, or several.
    """
    reference = parse_reference(entry.id)
    snapshot = list_files(reference, "datasets")
    by_path = {file.path: file for file in snapshot.files}
    data = [path for path in by_path if path.endswith(SUFFIXES) and within(path, reference.path)]
    if len(data) != 1:
        found = "no HDF5 file" if not data else f"{len(data)} HDF5 files"
        example = f"{PREFIX}{Reference(reference.repo, reference.revision, data[0])}" if data else ""
        hint = f"name one, for example {example}" if data else "gq reads HDF5 files as D4RL's, Minari's and its own"
        raise UsageError(f"{entry.id} has {found}", hint=hint)
    metadata = by_path.get(data[0].rpartition("/")[0] + "/metadata.json")
    is_minari = data[0].endswith("main_data.hdf5") and metadata is not None
    return [snapshot.url(file) for file in ([metadata] if is_minari and metadata else []) + [by_path[data[0]]]]


def within(path: str, place: str) -> bool:
    """Tell whether a path is a place or below it."""
    return not place or path == place or path.startswith(place + "/")
