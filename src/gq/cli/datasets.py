"""What `gq download` says of datasets without fetching any: the list, a plan, a verification, a removal."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from gq.cli.output import Output, ask
from gq.errors import GqError, UsageError

if TYPE_CHECKING:
    from gq.datasets.catalog import DatasetEntry

LEGEND = "~ is about; returns with ~ are read off a training curve. More of a row: gq download --list WORD"


def size_text(num_bytes: int, is_exact: bool = False) -> str:
    """Return a size for people: `about 110 MB`, or `2.95 GB` where it is known; 0 bytes are of an unknown size."""
    if not num_bytes:
        return "unknown size"
    text = f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.3g} MB"
    return text if is_exact else f"about {text}"


def _document_of(entry: "DatasetEntry") -> dict[str, Any]:
    """Return what is known of a dataset; what was counted in a cached file goes before what others say."""
    from gq.datasets.cache import read_record, state_of

    state = state_of(entry)
    record = read_record(entry)
    stored = record.stored if state in ("intact", "touched") else None
    counted = stored is not None and stored.num_transitions is not None
    source = record.source or stored  # what a download was, or the simulation itself
    return {
        "id": entry.id,
        "kind": entry.kind,
        "task": entry.task,
        "level": entry.level,
        "size_bytes": source.num_bytes if source else entry.size_bytes,
        "size_is_exact": entry.size_is_exact or source is not None,
        "num_transitions": stored.num_transitions if stored and counted else entry.num_transitions,
        "return_mean": stored.return_mean if stored and counted else entry.return_mean,
        "return_std": stored.return_std if stored and counted else entry.return_std,
        "returns_source": "counted in the file" if counted else entry.returns_source,
        "licence": entry.licence,
        "cached": state not in ("absent", "changed"),
        "state": {"absent": "", "changed": "damaged"}.get(state, "cached"),
        "cached_bytes": entry.path.stat().st_size if state != "absent" else 0,
        "path": str(entry.path),
        "note": entry.note,
    }


def show_list(output: Output, words: list[str]) -> None:
    """Print the datasets that fit all words; without words, those that are many of a kind in one row."""
    from gq.datasets.catalog import ENTRIES

    documents = [_document_of(entry) for entry in ENTRIES.values()]
    searched = ("id", "task", "licence", "state")
    documents = [d for d in documents if all(w.lower() in " ".join(d[k] for k in searched).lower() for w in words)]
    if not documents:
        raise UsageError(f"no dataset fits {' '.join(words)}", hint="see all of them: gq download --list")
    rows = list(_list_rows(documents, fold=not words))
    table = output.table(["dataset", "size", "rows", "return", "licence", "cached"], rows)
    output.result({"datasets": documents}, quiet="\n".join(d["id"] for d in documents), human=table)
    if not (output.json_mode or output.quiet):
        output.note(LEGEND)


def _list_rows(documents: list[dict[str, Any]], *, fold: bool) -> Iterable[tuple[str, ...]]:
    """Yield the rows of the list.

    Args:
        fold: put checkpoints and D4RL's older files that are not cached into one row a kind.
    """
    folded: dict[str, list[dict[str, Any]]] = {}
    for document in documents:
        is_old = document["id"].endswith(("-v0", "-v1")) and document["kind"] == "d4rl"
        if fold and not document["state"] and (is_old or document["kind"] == "tdmpc2"):
            folded.setdefault(document["id"][-2:] if is_old else "tdmpc2", []).append(document)
            continue
        yield (
            document["id"],
            size_text(document["size_bytes"], document["size_is_exact"]).replace("about ", "~"),
            _rows_text(document),
            _return_text(document),
            document["licence"],
            {"cached": "yes", "damaged": "damaged"}.get(document["state"], "no"),
        )
    for word, of_kind in folded.items():
        sizes = [size_text(size(document["size_bytes"] for document in of_kind), True) for size in (min, max)]
        name = f"{of_kind[0]['kind']}: {len(of_kind)} more with --list {word}"
        yield name, f"~{sizes[0]} to {sizes[1]}", "", "", of_kind[0]["licence"], "no"


def _rows_text(document: dict[str, Any]) -> str:
    """Return a number of rows for people."""
    sign = "" if document["returns_source"] == "counted in the file" else "~"
    return "" if document["num_transitions"] is None else f"{sign}{document['num_transitions']:,}"


def _return_text(document: dict[str, Any]) -> str:
    """Return a mean return for people, with its standard deviation where that is known."""
    mean, std = document["return_mean"], document["return_std"]
    if mean is None:
        return ""
    return f"~{mean:.0f}" if std is None else f"{mean:.0f} ± {std:.0f}"


def show_plan(output: Output, entries: "list[DatasetEntry]", *, transitions: int | None, force: bool) -> None:
    """Print what a download would do."""
    from gq.datasets.download import address_of

    documents: list[dict[str, Any]] = []
    for entry in entries:
        known = _document_of(entry)
        is_needed = force or not known["cached"]
        if entry.kind == "builtin" and entry.num_transitions and transitions is not None:
            known["size_bytes"] = known["size_bytes"] * transitions // entry.num_transitions
        action = ("simulate" if entry.kind == "builtin" else "fetch") if is_needed else "nothing: it is cached"
        keys = ("id", "size_bytes", "size_is_exact", "cached", "path", "licence", "note")
        documents.append({"action": action, "from": address_of(entry), **{key: known[key] for key in keys}})
    total = sum(document["size_bytes"] for document in documents if not document["action"].startswith("nothing"))
    lines = []
    for document in documents:
        size = size_text(document["size_bytes"], document["size_is_exact"])
        lines.append(f"{document['id']}: {document['action']}, {size}, {document['licence']}")
        lines += [f"  from {document['from']}", f"  to   {document['path']}"]
    lines.append(f"{size_text(total)} in all; nothing was done")
    paths = "\n".join(document["path"] for document in documents)
    output.result({"datasets": documents, "total_bytes": total}, quiet=paths, human="\n".join(lines))


def show_verified(output: Output, entries: "list[DatasetEntry]") -> None:
    """Print which cached files are what was put there; without entries, of all that are cached."""
    from gq.datasets.cache import in_cache, verify

    found = verify(entries or in_cache())
    documents = [
        {"id": one.id, "path": str(one.path), "sound": not one.problem, "problem": one.problem, "fix": one.fix}
        for one in found
    ]
    damaged = [one for one in found if one.problem]
    rows = [(one.id, one.problem or "sound", one.fix) for one in found]
    output.result(
        {"datasets": documents, "num_damaged": len(damaged)},
        quiet="\n".join(one.id for one in damaged),
        human=output.table(["dataset", "state", "fix"], rows) if rows else "the cache holds no datasets",
    )
    if damaged:
        names = ", ".join(one.id for one in damaged)
        raise GqError(f"{len(damaged)} of {len(found)} not sound: {names}", hint=damaged[0].fix)


def show_removed(output: Output, entries: "list[DatasetEntry]", *, yes: bool) -> None:
    """Remove datasets from the cache after asking, and print what that freed."""
    from gq.datasets.cache import remove

    names = ", ".join(entry.id for entry in entries)
    ask(f"remove {names} from the cache?", refusal=f"not removing {names} without being sure", yes=yes)
    documents: list[dict[str, Any]] = []
    for entry in entries:
        num_bytes = remove(entry)
        documents.append({"id": entry.id, "path": str(entry.path), "freed_bytes": num_bytes})
        output.note(f"{entry.id}: {num_bytes / 1e6:,.1f} MB freed" if num_bytes else f"{entry.id} was not in the cache")
    paths = "\n".join(document["path"] for document in documents)
    output.result({"removed": documents}, quiet=paths, human=paths)
