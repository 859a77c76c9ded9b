"""What `gq download` does with official TD-MPC2 checkpoints: runs are made of them."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gq.cli.output import Output
from gq.errors import UsageError

if TYPE_CHECKING:
    from gq.datasets.catalog import DatasetEntry
    from gq.datasets.loading import Downloaded

SUFFIXES = (".pt", ".pth")


def is_file_name(name: str) -> bool:
    """Tell whether a name is that of a checkpoint's file, not of something to fetch."""
    return name.endswith(SUFFIXES)


def tasks_of(entries: "list[DatasetEntry]", files: list[str], asked: str | None) -> dict[str, str]:
    """Return the task that each checkpoint is imported for, by id; "" where gq has none of its tasks.

    Raises:
        UsageError: a checkpoint holds many tasks and none was asked for, or is not for the one that was, or a file or
            any checkpoint is missing.
    """
    from gq.official.names import checkpoint_task

    for file in files:
        if not Path(file).expanduser().is_file():
            raise UsageError(f"there is no file {file}", hint="name a .pt file, or see gq download --list tdmpc2")
    tasks = {entry.id: checkpoint_task(entry, asked) for entry in entries if entry.kind == "tdmpc2"}
    if asked and not tasks and not files:
        raise UsageError("--task is for checkpoints", hint="for example gq download tdmpc2/mt30-19M --task walker-walk")
    return tasks


def import_fetched(
    output: Output, entry: "DatasetEntry", done: "Downloaded", task: str, *, force: bool
) -> dict[str, Any]:
    """Make a run of a checkpoint in the cache; return what the document says of it, without a run nothing."""
    if not task:
        output.note(f"{entry.id} is kept as it is: gq does not simulate {entry.task}")
        return {"run": None}
    from gq.datasets.cache import read_record

    source = read_record(entry).source
    options = {"source": source.where if source else "", "licence": entry.licence, "force": force}
    kind = "official" if entry.task == task else f"official-{entry.task}"
    return import_file(output, done.path, task, label=f"{kind}-{entry.level.lower()}", **options)


def import_file(output: Output, file: Path, task: str | None, **options: Any) -> dict[str, Any]:
    """Make a run of a file, say so, and return what the document says of it."""
    from dataclasses import asdict

    from gq import threads

    threads.prepare()
    from gq.official.imported_runs import import_run

    found = import_run(file.expanduser(), task or "", **options)
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
