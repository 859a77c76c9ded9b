"""How a report puts things: numbers, names, and the sentence that sums a run up."""

from pathlib import PurePath

from gq.results.facts import Group, GroupRow, Measure, RunFacts

ALGORITHMS = {
    "dt": "A Decision Transformer",
    "bc": "A network that clones behaviour",
    "odt": "An Online Decision Transformer",
    "finetune": "An Online Decision Transformer, finetuned on its own episodes",
    "tdmpc2": "A TD-MPC2 agent",
}
MODES = {"plan": "planning", "baseline": "planning", "policy": "policy alone", "-": "all episodes"}


def show(value: float | None) -> str:
    """Return a number with as many digits as tables need."""
    if value is None:
        return "–"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}".replace("-", "−")


def between(interval: tuple[float, float] | None) -> str:
    """Return an interval."""
    return "–" if interval is None else f"{show(interval[0])} to {show(interval[1])}"


def way_of(label: str, target: float | None) -> str:
    """Return how a policy was to act."""
    return f"asked for {target:,.10g}" if target is not None else MODES.get(label, label)


def short(dataset: str) -> str:
    """Return a dataset's id, or its file's name."""
    return PurePath(dataset).name if PurePath(dataset).is_absolute() else dataset


def counted(progress: dict[str, int]) -> str:
    """Return how far a checkpoint had come."""
    return ", ".join(f"{number:,} {what}" for what, number in progress.items())


def describe_run(run: RunFacts) -> str:
    """Return what a run is, as a sentence."""
    parameters = run.environment.get("parameters")
    size = f"size {run.settings.get('size', 'unknown')}"
    amount = f" ({size}, {parameters:,} parameters)" if isinstance(parameters, int) else f" ({size})"
    source = f", learnt from {short(run.dataset)}" if run.dataset else ", learnt from what it did itself"
    return f"{ALGORITHMS.get(run.algo, run.algo)}{amount} for {run.task}{source}."


def describe_result(run: RunFacts) -> str:
    """Return what it returns, beside its data, in a sentence or two."""
    measure = run.headline
    parts = []
    if measure:
        asked = f"Asked for {measure.target:,.10g}, it" if measure.target is not None else "It"
        result = measure.summary
        interval = f"95 % interval {between(result.return_ci95)}; {len(measure.episodes)} episodes"
        parts.append(f"{asked} returns {show(result.return_mean)} on average ({interval}).")
    else:
        parts.append("It has not been evaluated yet.")
    if data := run.data:
        best, top = show(data.quantiles["p100"]), show(data.top_mean)
        parts.append(f"The data return {show(data.return_mean)} on average, {best} at best, {top} in their best tenth.")
    return " ".join(parts)


def row_name(group: Group, row: GroupRow, num_groups: int) -> str:
    """Return what a row of several groups is called."""
    way = way_of(row.label, row.target)
    return f"{group.name}, {way}" if num_groups > 1 else way


def say_episode(measure: Measure, index: int) -> str:
    """Return what one episode did."""
    episode = measure.episodes[index]
    end = "terminated" if episode.terminated else "at the time limit"
    return f"seed {episode.seed}: {episode.episode_return:,.1f} in {episode.length:,} steps, {end}"
