"""`gq pull`: a run from the Hub into the runs folder, checked and whole, or not at all. Nothing of it is executed."""

import hashlib
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from gq.datasets.cache import now
from gq.datasets.fetch import Expected, Note, RemoteFile, Report, fetch, silent
from gq.datasets.hub import HubFile, Snapshot, endpoint, hub_token, list_files, refuse_offline
from gq.datasets.names import Reference, parse_reference
from gq.errors import GqError, UsageError
from gq.files import sync, write_error, write_json
from gq.hub.uploads import is_run_file
from gq.paths import HUB_FILE, checkpoint_folders, json_or_empty, read_json, runs_folder
from gq.runs.checkpoint import verify_checkpoint
from gq.runs.folder import read_config

AGAIN = "run it again to resume where it stopped"
UNREMARKABLE = (".gitattributes", ".gitignore")


@dataclass(frozen=True)
class PullResult:
    """A run that was brought here, or found."""

    run: Path
    repo: str
    commit: str
    files: int
    size_bytes: int
    left_out: list[str]  # files that are no part of a run
    was_there: bool


def pull_run(
    name: str, *, out: Path | None = None, offline: bool = False, report: Report = silent, note: Note = silent
) -> PullResult:
    """Bring a run from a model repository, `org/name[@revision]`, into the runs folder or `out`.

    Args:
        report: called with the bytes so far and the total.
        note: called with lines of text for people.

    Raises:
        UsageError: that is no repository, or another run is there already.
        GqError: the network or the disk is at fault, or the repository's files are not what it says, or not a run.
    """
    reference = parse_reference(name)
    refuse_offline(f"{reference} is on the Hub", offline=offline, hint="the runs that are here: gq runs")
    if reference.path:
        raise UsageError(f"{name} names a part of a repository", hint=f"gq pull {reference.repo}")
    snapshot = list_files(reference, "model")
    chosen, left_out = _choose(snapshot)
    target = out or runs_folder() / reference.repo.split("/")[1]
    found = PullResult(
        run=target,
        repo=reference.repo,
        commit=snapshot.commit,
        files=len(chosen),
        size_bytes=sum(file.num_bytes for file in chosen),
        left_out=left_out,
        was_there=target.exists(),
    )
    if target.exists():
        _refuse_other(target, found)
        return found
    if left_out:
        note(f"left out, as no part of a run: {', '.join(left_out[:5])}{' ...' if len(left_out) > 5 else ''}")
    staging = target.parent / ".pulls" / f"{target.name}-{snapshot.commit[:12]}"
    try:
        staging.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(staging.with_name(f".{staging.name}.lock")):
            fetch_all(snapshot, chosen, staging, report, note)
            _check_run(staging, reference)
            write_json(
                staging / HUB_FILE,
                {"repo": reference.repo, "commit": snapshot.commit, "endpoint": endpoint(), "time": now()},
            )
            _install(staging, target)
    except OSError as error:
        raise write_error(target, error) from error
    return found


def _choose(snapshot: Snapshot) -> tuple[list[HubFile], list[str]]:
    """Return the files of a repository that a run consists of, and the names of the others."""
    if len({file.path for file in snapshot.files}) < len(snapshot.files):
        raise GqError(f"{snapshot.reference} lists a file more than once", hint="do not use it")
    for file in snapshot.files:
        parts = re.split(r"[/\\]", file.path)
        if any(part in ("", ".", "..") for part in parts) or ":" in parts[0] or not file.path.isprintable():
            raise GqError(
                f"{snapshot.reference} holds {file.path!r}, which is no name of a file in it", hint="do not use it"
            )
    chosen = [file for file in snapshot.files if is_run_file(file.path)]
    names = {file.path for file in chosen}
    if "config.toml" not in names or not any(name.endswith("/model.safetensors") for name in names):
        hint = f"a dataset is got with gq download hf://{snapshot.reference}"
        raise GqError(f"{snapshot.reference} is not a run of gq: it has no config.toml with checkpoints", hint=hint)
    left_out = sorted({file.path for file in snapshot.files} - names - set(UNREMARKABLE))
    return chosen, left_out


def _refuse_other(target: Path, wanted: PullResult) -> None:
    """Raise UsageError unless the run at a place is the one that is wanted."""
    known = json_or_empty(target / HUB_FILE)
    if (known.get("repo"), known.get("commit")) != (wanted.repo, wanted.commit):
        hint = f"put it elsewhere: gq pull {wanted.repo} --out DIR"
        raise UsageError(f"there is {target} already, and it is not this version of {wanted.repo}", hint=hint)


def fetch_all(snapshot: Snapshot, files: Iterable[HubFile], folder: Path, report: Report, note: Note) -> None:
    """Fetch files into a folder, each checked by its hash; those that are there whole are only hashed.

    Raises:
        GqError: a file cannot be had, or is not what the Hub lists.
    """
    files, token, done = list(files), hub_token(), 0
    total = sum(file.num_bytes for file in files)
    for file in files:
        before, target = done, folder / file.path
        expected = Expected(sha256=file.sha256, says="the Hub", hint=AGAIN) if file.sha256 else None
        target.parent.mkdir(parents=True, exist_ok=True)
        remote = RemoteFile(url=snapshot.url(file), magic=b"", hint=AGAIN, token=token, expected=expected)
        fetch(remote, target, report=lambda num, _: report(before + num, total), note=note)  # noqa: B023 - called at once
        if not file.sha256 and _git_sha1(target) != file.git_sha1:
            target.unlink()
            raise GqError(f"{snapshot.url(file)} is not what the Hub lists", hint=AGAIN)
        done += file.num_bytes
        report(done, total)


def _git_sha1(file: Path) -> str:
    """Return the hash by which git, and so the Hub, knows a small file."""
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _check_run(run: Path, reference: Reference) -> None:
    """Compare a run's checkpoints with their manifests, and see that its configuration and pointers can be read."""
    try:
        read_config(run)
        folders = checkpoint_folders(run)
        for folder in folders:
            verify_checkpoint(folder)
        for which in ("last", "best"):
            pointer = run / "checkpoints" / f"{which}.json"
            if pointer.is_file() and read_json(pointer).get("checkpoint") not in [folder.name for folder in folders]:
                raise GqError(f"{which}.json points at no checkpoint")
    except (GqError, KeyError, TypeError, AttributeError) as error:
        message = str(error).replace(f"{run}/", "")
        shutil.rmtree(run)
        raise GqError(
            f"{reference} is not a sound run: {message}", hint="nothing of it was kept; ask its owner"
        ) from None


def _install(staging: Path, target: Path) -> None:
    """Move a checked run to its place, durably."""
    for path in staging.rglob("*"):
        sync(path)
    if target.exists():
        raise UsageError(f"there is {target} already", hint="choose another place with --out")
    staging.rename(target)
    sync(target.parent)
    staging.with_name(f".{staging.name}.lock").unlink(missing_ok=True)
    if not any(staging.parent.iterdir()):
        staging.parent.rmdir()
