"""`gq download`: datasets and checkpoints into the cache, and runs of checkpoints."""

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gq.cli import options
from gq.cli.output import Output
from gq.errors import UsageError

if TYPE_CHECKING:
    from gq.datasets.catalog import DatasetEntry

CHECKPOINT_SUFFIXES = (".pt", ".pth")

EXAMPLES = """\b
Examples:
  gq download builtin/hopper/medium      simulated here, needs no network
  gq download builtin/hopper/expert --transitions 200000
  gq download humanoid                   Minari's mujoco/humanoid/medium-v0
  gq download humanoid --level expert    or --all for every level
  gq download hopper-medium-replay-v2    D4RL's
  gq download tdmpc2/dog-run-1           an official TD-MPC2 agent, as a run
  gq download tdmpc2/mt30-19M --task walker-walk
  gq download mine.pt --task dog-run     the same from a file
  gq download hf://me/data@v1            a dataset of the Hub
  gq download --list humanoid
  gq download --verify"""


def _known_names() -> list[str]:
    """Return the ids of all datasets and checkpoints."""
    from gq.datasets.catalog import ENTRIES

    return list(ENTRIES)


@dataclass(frozen=True)
class Subjects:
    """What is named."""

    names: Annotated[
        list[str] | None,
        options.completed(
            "[ID]...",
            "Names of datasets and checkpoints, hf://ORG/NAME, or .pt files; with --list words to look for.",
            _known_names,
            kind=typer.Argument,
            show_default=False,
        ),
    ] = None
    level: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="medium, expert, ... for an ID that says none.")
    ] = None
    all_levels: Annotated[bool, typer.Option("--all", help="Every level of an environment.")] = False


@dataclass(frozen=True)
class Instead:
    """What is done instead of downloading."""

    list_all: Annotated[bool, typer.Option("--list", help="List what gq knows: size, rows, returns, licence.")] = False
    verify: Annotated[bool, typer.Option("--verify", help="Hash what is cached again, of one ID or of all.")] = False
    remove: Annotated[bool, typer.Option("--remove", help="Remove an ID from the cache.")] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be fetched, and do nothing.")] = False

    def chosen(self) -> list[str]:
        """Return the flag that was given, if any. Raises UsageError."""
        flags = {"--list": self.list_all, "--verify": self.verify, "--remove": self.remove, "--dry-run": self.dry_run}
        chosen = [name for name, is_on in flags.items() if is_on]
        if len(chosen) > 1:
            raise UsageError(f"{' and '.join(chosen)} do not go together", hint="give one of them")
        return chosen


@dataclass(frozen=True)
class Fetching:
    """How datasets and checkpoints are fetched."""

    offline: options.Offline = False
    transitions: Annotated[int | None, options.number("How many to simulate (built-in datasets only).")] = None
    force: Annotated[bool, typer.Option("--force", help="Replace a dataset or run that is there already.")] = False


@options.grouped_as("subjects list_all verify remove yes dry_run offline transitions task force output")
def download(
    *,
    subjects: Subjects,
    instead: Instead,
    yes: options.Yes = False,
    fetching: Fetching,
    task: Annotated[
        str | None,
        options.completed("ID", "What a checkpoint is for: one of its many, or a file's.", options.known_control_tasks),
    ] = None,
    output: Output,
) -> None:
    """Fetch or simulate datasets, check them, and keep them in the cache; make runs of TD-MPC2 checkpoints.

    `gq train` takes the dataset downloaded last unless told otherwise.
    """
    chosen = instead.chosen()
    from gq.cli import datasets

    names = subjects.names or []
    if instead.list_all:
        datasets.show_list(output, names)
        return
    files = [] if chosen else [name for name in names if name.endswith(CHECKPOINT_SUFFIXES)]
    ids = [name for name in names if name not in files]
    entries = selected(ids, subjects.level, subjects.all_levels)
    if instead.verify:
        datasets.show_verified(output, entries)
        return
    if not entries and not files:
        what = "nothing named to remove" if instead.remove else "no dataset given"
        raise UsageError(what, hint="gq download builtin/hopper/medium, or see gq download --list")
    if instead.remove:
        datasets.show_removed(output, entries, yes=yes)
    elif instead.dry_run:
        datasets.show_plan(output, entries, transitions=fetching.transitions, force=fetching.force)
    else:
        tasks = _tasks_of(entries, files, task)
        documents = fetch_all(output, entries, fetching, tasks)
        for file in files:
            documents.append({"path": file, **_import_file(output, Path(file), task, force=fetching.force)})
        show_results(output, documents, is_single=len(names) == 1 and not subjects.all_levels)
        if not (subjects.level or subjects.all_levels):
            _tell_other_levels(output, ids)


def selected(names: list[str], level: str | None, all_levels: bool) -> "list[DatasetEntry]":
    """Return what the names stand for, each once."""
    from gq.datasets import names as registry

    if level and all_levels:
        raise UsageError("--level and --all do not go together", hint="give one of them")
    if (level or all_levels) and not names:
        raise UsageError("--level and --all need an environment", hint="gq download humanoid --all")
    found = [
        entry
        for name in names
        for entry in (registry.all_levels(name) if all_levels else [registry.resolve(name, level=level)])
    ]
    return list({entry.id: entry for entry in found}.values())


# --- getting ----------------------------------------------------------------------------------------------------------


def fetch_all(
    output: Output, entries: "list[DatasetEntry]", fetching: Fetching, tasks: dict[str, str]
) -> list[dict[str, Any]]:
    """Get datasets and checkpoints one after the other, import the latter for their tasks, and return documents."""
    from gq.cli.datasets import size_text
    from gq.datasets.cache import cached
    from gq.datasets.download import address_of
    from gq.datasets.loading import download as download_dataset

    missing = [entry for entry in entries if fetching.force or not cached(entry)]
    if len(entries) > 1:
        size = size_text(sum(entry.size_bytes for entry in missing))
        output.note(f"{len(entries)} datasets, {len(missing)} of them to get: {size} in all")
    documents = []
    for entry in entries:
        if entry.kind != "builtin" and entry in missing:
            output.note(f"{entry.id}: {size_text(entry.size_bytes, entry.size_is_exact)} from {address_of(entry)}")
        verb, unit = ("simulating", "steps") if entry.kind == "builtin" else ("downloading", "bytes")
        with output.progress(verb, unit=unit) as move:  # without the id, so that rate and time left fit
            done = download_dataset(
                entry.id,
                num_transitions=fetching.transitions,
                force=fetching.force,
                offline=fetching.offline,
                progress=move,
                note=output.note,
            )
        document = {**asdict(done), "path": str(done.path)}
        if entry.id in tasks:
            document |= _import_fetched(output, entry, done.path, tasks[entry.id], force=fetching.force)
        else:
            output.note(
                f"{done.id}: {done.num_transitions:,} transitions, {done.num_episodes:,} episodes, "
                f"return {done.return_mean:.0f} ± {done.return_std:.0f}"
            )
        documents.append(document)
    return documents


def show_results(output: Output, documents: list[dict[str, Any]], *, is_single: bool) -> None:
    """Print where datasets and runs are."""
    paths = "\n".join(document.get("run") or document["path"] for document in documents)
    output.result(documents[0] if is_single else {"datasets": documents}, quiet=paths, human=paths)


def _tell_other_levels(output: Output, names: list[str]) -> None:
    """Say how the other levels are downloaded, and how large they are."""
    from gq.cli.datasets import size_text
    from gq.datasets import names as registry
    from gq.datasets.catalog import GROUPS

    for name in names:
        if registry.says_level(name):
            continue
        got = registry.resolve(name)
        others = [entry for entry in GROUPS[got.group].values() if entry is not got]
        sizes = [f"--level {entry.level} ({size_text(entry.size_bytes, entry.size_is_exact)})" for entry in others]
        output.note(f"this was {got.level}; gq download {name} {', '.join(sizes)}, or --all")


# --- official TD-MPC2 checkpoints, of which runs are made -------------------------------------------------------------


def _tasks_of(entries: "list[DatasetEntry]", files: list[str], asked: str | None) -> dict[str, str]:
    """Return the task that each checkpoint is imported for, by id; "" where gq has none of its tasks."""
    from gq.official.names import checkpoint_task

    for file in files:
        if not Path(file).expanduser().is_file():
            raise UsageError(f"there is no file {file}", hint="name a .pt file, or see gq download --list tdmpc2")
    tasks = {entry.id: checkpoint_task(entry, asked) for entry in entries if entry.kind == "tdmpc2"}
    if asked and not tasks and not files:
        raise UsageError("--task is for checkpoints", hint="for example gq download tdmpc2/mt30-19M --task walker-walk")
    return tasks


def _import_fetched(output: Output, entry: "DatasetEntry", file: Path, task: str, *, force: bool) -> dict[str, Any]:
    """Make a run of a checkpoint in the cache; return what the document says of it, without a run nothing."""
    if not task:
        output.note(f"{entry.id} is kept as it is: gq does not simulate {entry.task}")
        return {"run": None}
    from gq.datasets.cache import read_record

    source = read_record(entry).source
    kind = "official" if entry.task == task else f"official-{entry.task}"
    settings = {"source": source.where if source else "", "licence": entry.licence, "force": force}
    return _import_file(output, file, task, label=f"{kind}-{entry.level.lower()}", **settings)


def _import_file(output: Output, file: Path, task: str | None, **settings: Any) -> dict[str, Any]:
    """Make a run of a file, say so, and return what the document says of it."""
    from gq import threads

    threads.prepare()
    from gq.official.imported_runs import import_run

    found = import_run(file.expanduser(), task or "", **settings)
    state = "; it was imported before" if found.was_there else ""
    output.note(
        f"{found.task}: size {found.size}, {found.parameters:,} parameters, layout {found.provenance.layout}{state}"
    )
    for note in found.provenance.notes:
        output.note(f"known of it: {note}")
    output.note(f"next: gq eval {shlex.quote(found.run.name)}")
    document = {**asdict(found), "run": str(found.run), **asdict(found.provenance)}
    del document["provenance"]
    return document


def simulate_missing(output: Output, name: str) -> None:
    """Make a built-in dataset that is not in the cache; what needs the network is left to `gq download`."""
    from gq.datasets.cache import cached
    from gq.datasets.catalog import ENTRIES
    from gq.datasets.loading import canonical_name

    entry = ENTRIES.get(canonical_name(name))
    if entry and entry.kind == "builtin" and not cached(entry):
        output.note(f"{entry.id} is not in the cache: simulating it first")
        fetch_all(output, [entry], Fetching(), {})
