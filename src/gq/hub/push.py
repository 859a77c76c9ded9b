"""`gq push`: a run or a dataset to the Hugging Face Hub, in one commit."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gq import __version__
from gq.datasets.hub import endpoint, hub_client, refuse_offline
from gq.datasets.names import parse_reference
from gq.errors import GqError, UsageError
from gq.hub.uploads import Upload, dataset_uploads, is_run_file, run_uploads
from gq.runs.card import CARD, is_own
from gq.runs.state import is_in_use

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TOKEN_HINT = "make one with write access at the Hub, then: hf auth login, or set HF_TOKEN"


@dataclass(frozen=True)
class Plan:
    """What would be put up."""

    kind: Literal["model", "dataset"]
    name: str  # of the repository, where none is given
    uploads: list[Upload]

    @property
    def size_bytes(self) -> int:
        """Size of all files."""
        return sum(upload.num_bytes for upload in self.uploads)


@dataclass(frozen=True)
class PushResult:
    """What was put up."""

    repo: str
    kind: Literal["model", "dataset"]
    url: str
    commit: str
    private: bool
    files: int
    size_bytes: int
    removed: list[str]  # checkpoints that it held before


def plan_run(run: Path, repo: str = "", *, with_state: bool = False) -> Plan:
    """Return what of a run would be put up.

    Args:
        repo: where to, for its card.
        with_state: with all that training on needs: optimiser, replay, the policy's own episodes.

    Raises:
        UsageError: it has no checkpoint, or is being trained.
        GqError: a file of it is damaged.
    """
    if is_in_use(run):
        raise UsageError(f"{run} is being trained", hint="push it when that has ended, or stop it: it saves first")
    name = run.resolve().name
    card_name = parse_reference(repo).repo.split("/")[1] if repo else name
    return Plan("model", name, run_uploads(run, card_name, with_state=with_state))


def plan_dataset(name: str) -> Plan:
    """Return what of a dataset, by id or path, would be put up: its file and a card.

    Raises:
        UsageError: there is no such dataset, or it was not downloaded.
        DataError: it is damaged.
    """
    repo_name, uploads = dataset_uploads(name)
    return Plan("dataset", repo_name, uploads)


def writing_client() -> "HfApi":
    """Return a client that may write.

    Raises:
        UsageError: there is no token.
    """
    from huggingface_hub import get_token

    token = get_token()
    if not token:
        raise UsageError("there is no token to write to the Hub with", hint=TOKEN_HINT)
    return hub_client(token)


def own_repo(client: "HfApi", plan: Plan) -> str:
    """Return the repository of the token's owner that is called as what is put up. Raises GqError."""
    with _failures_told("the Hub"):
        return f"{client.whoami()['name']}/{plan.name}"


def push(
    plan: Plan,
    repo: str,
    *,
    client: "HfApi",
    public: bool = False,
    offline: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> PushResult:
    """Put files up in one commit; the repository is made if there is none, and private unless `public`.

    Checkpoints of an earlier push that are not among the files are removed from it; its history keeps them. A card that
    somebody edited there stays.

    Raises:
        UsageError: the repository is public, and `public` is not set.
        GqError: the Hub refuses, or cannot be reached.
    """
    refuse_offline(
        f"{repo} is on the Hub", offline=offline, hint="push it when there is a network; --dry-run needs none"
    )
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    repo = parse_reference(repo).repo
    with _failures_told(repo):
        private = _prepare_repo(client, plan, repo, public=public)
        there = set(client.list_repo_files(repo, repo_type=plan.kind))
        uploads = [
            upload for upload in plan.uploads if not (upload.path == CARD and _is_edited(client, plan, repo, there))
        ]
        if len(uploads) < len(plan.uploads):
            note(f"the card of {repo} was edited there and stays")
        stale = sorted(path for path in there - {upload.path for upload in uploads} if _is_stale(path, plan))
        operations: list[Any] = [CommitOperationDelete(path) for path in stale]
        operations += [CommitOperationAdd(upload.path, upload.source) for upload in uploads]
        done = client.create_commit(
            repo, operations, commit_message=f"{plan.name}, by gq {__version__}", repo_type=plan.kind
        )
    return PushResult(
        repo=repo,
        kind=plan.kind,
        url=f"{endpoint()}/{'datasets/' if plan.kind == 'dataset' else ''}{repo}",
        commit=done.oid,
        private=private,
        files=len(uploads),
        size_bytes=sum(upload.num_bytes for upload in uploads),
        removed=stale,
    )


def _prepare_repo(client: "HfApi", plan: Plan, repo: str, *, public: bool) -> bool:
    """Make the repository if there is none; return whether it is private."""
    if not client.repo_exists(repo, repo_type=plan.kind):
        client.create_repo(repo, repo_type=plan.kind, private=not public)
        return not public
    private = bool(client.repo_info(repo, repo_type=plan.kind).private)
    if not private and not public:
        raise UsageError(f"{repo} is public", hint="say so with --public, or name another repository")
    return private


def _is_edited(client: "HfApi", plan: Plan, repo: str, there: set[str]) -> bool:
    """Whether a repository has a card that gq did not write as it is now."""
    if CARD not in there:
        return False
    with tempfile.TemporaryDirectory() as folder:
        file = client.hf_hub_download(repo, CARD, repo_type=plan.kind, local_dir=folder)
        return not is_own(Path(file).read_text(encoding="utf-8", errors="replace"))


def _is_stale(path: str, plan: Plan) -> bool:
    """Whether a file that is not put up again is of a checkpoint that a run had before."""
    return plan.kind == "model" and path.startswith("checkpoints/step-") and is_run_file(path)


@contextmanager
def _failures_told(what: str) -> Iterator[None]:
    """Turn what the Hub's client raises into a line with a next step."""
    from huggingface_hub import errors

    try:
        yield
    except (errors.HfHubHTTPError, errors.HTTPError, errors.HFValidationError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        status = getattr(getattr(error, "response", None), "status_code", None)
        hint = TOKEN_HINT if status in (401, 403) else "run it again; the Hub is at HF_ENDPOINT or huggingface.co"
        raise GqError(f"cannot write to {what}: {lines[0] if lines else type(error).__name__}", hint=hint) from error
