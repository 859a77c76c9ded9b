"""Which run came from which: finetuned runs name their parents, distilled correctors their teachers."""

from dataclasses import dataclass
from pathlib import Path

from gq.paths import all_runs, checkpoint_folders, is_run, json_or_empty, read_settings, section


@dataclass(frozen=True)
class Parent:
    """Where a finetuned run began."""

    run: Path
    checkpoint: str
    is_there: bool


@dataclass(frozen=True)
class CorrectorRecord:
    """A corrector of a run's plans."""

    name: str
    checkpoint: str  # of the teacher
    teacher_sha256: str


def parent_of(run: Path) -> Parent | None:
    """Return the run that a run was finetuned from, None for others."""
    online = section(read_settings(run), "online")
    if not online.get("parent"):
        return None
    folder = Path(str(online["parent"]))
    return Parent(folder, str(online.get("checkpoint", "")), is_run(folder))


def children_of(run: Path) -> list[Path]:
    """Return the runs that were finetuned from a run, of those in the runs folder and beside it."""
    beside = [path for path in run.resolve().parent.iterdir() if is_run(path)]
    candidates = {path.resolve() for path in (*all_runs(), *beside)}
    return sorted(path for path in candidates if (parent := parent_of(path)) and parent.run.resolve() == run.resolve())


def dependants_of(run: Path) -> list[Path]:
    """Return the children that cannot go on without a run: they have no checkpoint of their own yet."""
    return [child for child in children_of(run) if not checkpoint_folders(child)]


def correctors_of(run: Path) -> list[CorrectorRecord]:
    """Return the correctors in a run's folder."""
    found = []
    for file in sorted((run / "correctors").glob("*/corrector.json")):
        document = json_or_empty(file)
        names = (file.parent.name, document.get("checkpoint", ""), document.get("teacher_sha256", ""))
        found.append(CorrectorRecord(*map(str, names)))
    return found
