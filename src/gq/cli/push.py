"""`gq push`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gq.cli import options
from gq.cli.output import Output, ask
from gq.errors import UsageError

if TYPE_CHECKING:
    from gq.hub.push import Plan

EXAMPLES = """\b
Examples:
  gq push hopper-v5-dt-1m me/hopper-dt   a run, into a private repository
  gq push --latest me/hopper-dt --public
  gq push --latest --dry-run             what would go up
  gq push builtin/hopper/medium me/data  a dataset of the cache
  gq push data.hdf5 me/data --yes        or a file; asks nothing
Needs a token with write access: hf auth login, or HF_TOKEN."""


class Subject:
    """What goes where; its arguments are options."""

    def __init__(
        self,
        *,
        what: Annotated[
            str | None,
            options.completed(
                "RUN|DATASET",
                "A run, or a dataset's id or file; omit it with --latest.",
                options.known_runs,
                options.known_datasets,
                kind=typer.Argument,
                show_default=False,
            ),
        ] = None,
        repo: Annotated[
            str | None,
            typer.Argument(metavar="REPO", help="ORG/NAME; default: your own, of the same name.", show_default=False),
        ] = None,
        latest: options.Latest = False,
    ) -> None:
        if latest and repo:
            raise UsageError(f"both {what} and --latest", hint="give one of them: gq push --latest ORG/NAME")
        if latest:
            what, repo = None, what
        if repo:
            from gq.datasets.names import parse_reference

            repo = parse_reference(repo).repo
        self.what, self.repo, self.latest = what, repo or "", latest

    def plan(self, *, with_state: bool) -> "Plan":
        """Return what is to be put up: a dataset where the name is that of a file or has a slash, else a run."""
        from pathlib import Path

        from gq.paths import find_run

        what = self.what
        path = Path(what).expanduser() if what else None
        is_file = path is not None and path.is_file() and path.suffix in (".hdf5", ".h5", ".pkl")
        is_id = what is not None and path is not None and "/" in what and not path.exists()
        folder = None if is_file or is_id else find_run(what, latest=self.latest)[0]
        from gq.hub.push import plan_dataset, plan_run

        return plan_run(folder, self.repo, with_state=with_state) if folder else plan_dataset(what or "")


@options.grouped
def push(
    *,
    subject: Subject,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it; default: a private one.")] = False,
    with_state: Annotated[
        bool, typer.Option("--all", help="With optimiser and replay, so that others can train on.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files and their sizes, and do nothing.")] = False,
    yes: options.Yes = False,
    offline: options.Offline = False,
    output: Output,
) -> None:
    """Put a run or a dataset on the Hugging Face Hub: what another person needs, with a card of measured numbers.

    Of a run: weights of the last and the best checkpoint, configuration, metrics, evaluations, one video.
    """
    plan = subject.plan(with_state=with_state)
    if dry_run:
        _show_plan(output, plan)
        return
    from gq.datasets.hub import refuse_offline
    from gq.hub.push import own_repo, writing_client
    from gq.hub.push import push as push_plan

    refuse_offline("the Hub is elsewhere", offline=offline, hint="push when there is a network; --dry-run needs none")
    client = writing_client()
    repo = subject.repo or own_repo(client, plan)
    visibility = "public" if public else "private"
    amount = f"{len(plan.uploads)} files ({size(plan.size_bytes)})"
    ask(
        f"put {amount} into the {visibility} {plan.kind} repository {repo}?",
        refusal=f"not putting {amount} into {repo} without being sure",
        yes=yes,
    )
    output.note(f"{repo}: {amount}")
    done = push_plan(plan, repo, client=client, public=public, note=output.note)
    if done.removed:
        output.note(f"removed {len(done.removed)} files of earlier checkpoints")
    output.note(f"next: gq {'pull ' if done.kind == 'model' else 'download hf://'}{done.repo}")
    output.result(vars(done), quiet=done.url, human=done.url)


def _show_plan(output: Output, plan: "Plan") -> None:
    """Print what would be put up."""
    files = [{"path": upload.path, "size_bytes": upload.num_bytes} for upload in plan.uploads]
    rows = [(upload.path, size(upload.num_bytes)) for upload in plan.uploads]
    document: dict[str, Any] = {"kind": plan.kind, "name": plan.name, "files": files, "size_bytes": plan.size_bytes}
    output.result(
        document, quiet="\n".join(upload.path for upload in plan.uploads), human=output.table(["file", "size"], rows)
    )
    output.note(f"{len(rows)} files, {size(plan.size_bytes)} in all; nothing was done")


def size(num_bytes: int) -> str:
    """Return a size for people."""
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 100_000 else f"{num_bytes / 1e3:,.1f} kB"
