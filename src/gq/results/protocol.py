"""How the numbers of a report came about."""

from gq.paths import section
from gq.results.facts import CheckpointFacts, RunFacts
from gq.results.words import counted

WEIGHTS, ARRAYS = "weights sha256", "arrays sha256"  # how lines with hashes begin


def protocol_of(run: RunFacts) -> list[tuple[str, list[str]]]:
    """Return what was done, as names and lines of text; what is not known is left out."""
    found: list[tuple[str, list[str]]] = [("Run", [str(run.path)]), ("State", [run.state])]
    found.append(("Seed", [str(run.settings.get("train.seed", "not on record"))]))
    for which, checkpoint in (("Best checkpoint", run.best), ("Last checkpoint", run.last)):
        if checkpoint:
            found.append((which, describe_checkpoint(checkpoint)))
    found += [("Best chosen by", [run.selection]), *episodes_of(run)]
    environment = run.environment
    if run.dataset:
        digest = environment.get("dataset_sha256")
        found.append(("Data", [run.dataset, *([f"{ARRAYS} {digest}"] if digest else [])]))
        recorded = {name: value for name, value in section(environment, "dataset").items() if name != "origin"}
        found.append(("Data made with", [listed(recorded)]))
    if parent := section(environment, "parent"):
        found.append(("Finetuned from", [f"{parent.get('run')}, {parent.get('checkpoint')}"]))
    found.append(("Computed on", [str(environment.get("compute", ""))]))
    found.append(("Trained with", [listed(section(environment, "versions"))]))
    found.append(("Evaluated with", versions_of(run)))
    return [(name, lines) for name, lines in found if any(lines)]


def describe_checkpoint(checkpoint: CheckpointFacts) -> list[str]:
    """Return a checkpoint, how far it had come, and the hash of its weights."""
    return [f"{checkpoint.name}, {counted(checkpoint.progress)}", f"{WEIGHTS} {checkpoint.model_sha256}"]


def episodes_of(run: RunFacts) -> list[tuple[str, list[str]]]:
    """Return which episodes were run."""
    measure = run.headline
    if not measure:
        return []
    seeds = sorted(episode.seed for episode in measure.episodes)
    targets = [m.target for m in run.best.measures if m.is_own and m.target is not None] if run.best else []
    asked = ", ".join(f"{target:,.10g}" for target in targets)
    return [
        ("Targets", [f"{asked}: fixed with the run, not chosen by these results"] if asked else []),
        ("Episodes", [f"{len(seeds)} each, seeds {seeds[0]} to {seeds[-1]}; every started episode counts"]),
        ("Actions", ["deterministic"]),
        ("Intervals", ["95 %; by bootstrap, of fewer than five episodes or runs by Student's t"]),
    ]


def versions_of(run: RunFacts) -> list[str]:
    """Return the versions that gave the returns; several lines where evaluations differ."""
    checkpoints = [checkpoint for checkpoint in (run.best, run.last) if checkpoint]
    return list(
        dict.fromkeys(listed(measure.versions) for checkpoint in checkpoints for measure in checkpoint.measures)
    )


def listed(versions: dict[str, str]) -> str:
    """Return versions as text."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())
