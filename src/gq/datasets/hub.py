"""The Hugging Face Hub, read through its own client: what lies in a repository at a commit, with the hash of each file.

The bytes themselves come by `gq.datasets.fetch`, because the Hub's client keeps nothing of a file that breaks off.
"""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, unquote, urljoin

from gq import __version__
from gq.datasets import fetch as transfer
from gq.datasets.catalog import DatasetEntry
from gq.datasets.names import PREFIX, SUFFIXES, Reference, parse_reference
from gq.errors import GqError, UsageError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

DEFAULT_ENDPOINT = "https://huggingface.co"
MAX_NUM_PAGES = 100  # of a listing; the Hub puts a thousand files on one

Kind = Literal["model", "dataset"]


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
        folder = "datasets/" if self.kind == "dataset" else ""
        return f"{endpoint()}/{folder}{self.reference.repo}/resolve/{self.commit}/{quote(file.path)}"


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
    """Whether HF_HUB_OFFLINE forbids the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def refuse_offline(what: str, *, offline: bool, hint: str) -> None:
    """Raise GqError if the network must not be used."""
    if offline or is_offline():
        reason = "--offline forbids the network" if offline else "HF_HUB_OFFLINE is set"
        raise GqError(f"{what}, and {reason}", hint=hint)


def hub_client(token: str | Literal[False]) -> "HfApi":
    """Return the Hub's client, for the endpoint and the token of now."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars, logging

    disable_progress_bars()
    logging.set_verbosity_error()  # it would tell of each attempt in several lines
    return HfApi(endpoint=endpoint(), token=token, library_name="gq", library_version=__version__)


def list_files(reference: Reference, kind: Kind) -> Snapshot:
    """Return the files of a repository, or below the path of the reference, at the newest commit of its revision.

    Raises:
        GqError: there is no such repository, revision or folder, or the Hub cannot be reached.
    """
    client = hub_client(hub_token() or False)
    revision = unquote(reference.revision) or None
    folder = f"/{quote(reference.path)}" if reference.path and not reference.path.endswith(SUFFIXES) else ""
    with _failures_told(reference, kind):
        commit = _newest_commit(client, reference, revision, kind)
        listed = _listed(f"{endpoint()}/api/{kind}s/{reference.repo}/tree/{commit}{folder}?recursive=true")
        files = [
            HubFile(str(one["path"]), int(one["size"]), str((one.get("lfs") or {}).get("oid", "")), str(one["oid"]))
            for one in listed
            if one["type"] == "file"
        ]
    return Snapshot(reference, kind, commit, files)


def _listed(url: str) -> Iterator[dict[str, Any]]:
    """Yield the entries of a listing, page by page: the client itself would show the token wherever the next one is."""
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

    headers = build_hf_headers(token=hub_token() or False, library_name="gq", library_version=__version__)
    page = url
    for _ in range(MAX_NUM_PAGES):
        response = http_backoff("GET", page, headers=headers, timeout=transfer.TIMEOUT_S)
        hf_raise_for_status(response)
        yield from response.json()
        target = response.links.get("next", {}).get("url")
        if not target:
            return
        page = urljoin(page, target)
        if transfer.origin_of(page) != transfer.origin_of(url):
            raise GqError(f"{url} continues at another host, {ascii(target)[1:-1][:100]}", hint="see HF_ENDPOINT")
    raise GqError(f"{url} has more than {MAX_NUM_PAGES} pages", hint="name a folder or a file in the repository")


def _newest_commit(client: "HfApi", reference: Reference, revision: str | None, kind: Kind) -> str:
    """Return the commit of a revision, in as many attempts as it takes: the client itself makes only one."""
    from huggingface_hub.errors import HfHubHTTPError

    attempt = 1
    while True:
        try:
            commit = client.repo_info(reference.repo, revision=revision, repo_type=kind).sha
        except HfHubHTTPError as error:
            if error.response.status_code not in transfer.PASSING_STATUSES or attempt == transfer.NUM_ATTEMPTS:
                raise
            time.sleep(transfer.BACK_OFF_S * 2 ** (attempt - 1))
            attempt += 1
            continue
        if not re.fullmatch(r"[0-9a-f]{40}", str(commit)):  # it becomes a part of folders' names
            raise ValueError("a repository without a commit")
        return str(commit)


@contextmanager
def _failures_told(reference: Reference, kind: Kind) -> Iterator[None]:
    """Turn what the Hub's client raises into a line with a next step."""
    from huggingface_hub import errors

    try:
        yield
    except (errors.HfHubHTTPError, errors.HTTPError, errors.HFValidationError, OSError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403, 404):
            other = f"gq pull {reference}" if kind == "dataset" else f"gq download {PREFIX}{reference}"
            hint = f"a private one needs HF_TOKEN; or is it a {'run' if kind == 'dataset' else 'dataset'}? {other}"
            raise GqError(f"the Hub shows no {kind} {reference}", hint=hint) from error
        reason = str(error).strip().splitlines() or [type(error).__name__]
        hint = "check its name, HF_ENDPOINT and the network, then run it again"
        raise GqError(f"cannot read {reference} at {endpoint()}: {reason[0]}", hint=hint) from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise GqError(f"{endpoint()} is not answered as the Hub does", hint="see HF_ENDPOINT") from error


def dataset_files(entry: DatasetEntry) -> list[tuple[str, str]]:
    """Return addresses and SHA-256s of a dataset's files on the Hub, the data last: one HDF5 file, or Minari's two.

    A hash is empty where the Hub lists none.

    Raises:
        GqError: the repository cannot be read.
        UsageError: it holds no such data, or several.
    """
    reference = parse_reference(entry.id)
    snapshot = list_files(reference, "dataset")
    by_path = {file.path: file for file in snapshot.files}
    place = reference.path
    inside = [path for path in by_path if not place or path == place or path.startswith(place + "/")]
    data = [path for path in inside if path.endswith(SUFFIXES)]
    if len(data) != 1:
        found = "no HDF5 file" if not data else f"{len(data)} HDF5 files"
        example = f"{PREFIX}{Reference(reference.repo, reference.revision, data[0])}" if data else ""
        hint = f"name one, for example {example}" if data else "gq reads HDF5 files as D4RL's, Minari's and its own"
        raise UsageError(f"{entry.id} has {found}", hint=hint)
    metadata = by_path.get(data[0].rpartition("/")[0] + "/metadata.json")
    is_minari = data[0].endswith("main_data.hdf5") and metadata is not None
    files = ([metadata] if is_minari and metadata else []) + [by_path[data[0]]]
    return [(snapshot.url(file), file.sha256) for file in files]
