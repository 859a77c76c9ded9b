"""A run's card, its README.md: Markdown with a head that the Hugging Face Hub reads, from measured numbers only."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gq.config import RunConfig, flatten
from gq.errors import DataError
from gq.files import write_text
from gq.paths import json_or_empty
from gq.runs.card_results import comparison_lines, corrector_lines, evaluation_lines, index_entries, training_lines
from gq.runs.folder import read_config, repeat_command
from gq.runs.state import last_state

CARD, CARD_BESIDE = "README.md", "README.gq.md"
MARK = re.compile(r"\n<!-- written by gq, sha256 ([0-9a-f]{64}) -->\n?$")
KINDS = {
    "dt": ("Decision Transformer", "decision-transformer"),
    "bc": ("behaviour cloning policy", "behaviour-cloning"),
    "odt": ("Online Decision Transformer", "online-decision-transformer"),
    "finetune": ("Online Decision Transformer, finetuned on its own episodes,", "online-decision-transformer"),
    "tdmpc2": ("TD-MPC2 agent", "td-mpc2"),
}


def write_card(run: Path, config: RunConfig | None = None) -> Path:
    """Write a run's card and return its path; one that somebody else wrote or edited stays, and it goes beside it.

    Args:
        config: default: what its config.toml says.

    Raises:
        GqError: the run's configuration cannot be read, or the card not be written.
    """
    for name in (CARD, CARD_BESIDE):
        path = run / name
        if not path.exists() or is_own(path.read_text(encoding="utf-8", errors="replace")):
            write_text(path, card_text(run, config))
            return path
    return run / CARD


def refresh_card(run: Path) -> str:
    """Write the card of a run that has one anew; return what to tell the user of it, mostly nothing.

    A run without a card has not ended yet, and gets it then.
    """
    if not (run / CARD).exists():
        return ""
    try:
        written = write_card(run)
    except DataError as error:
        return f"{run / CARD} stays as it was: {error}"
    if written.name == CARD_BESIDE:
        return f"{run / CARD} was edited and stays; the new card is {written}"
    return "" if is_own(written.read_text(encoding="utf-8", errors="replace")) else f"{written} was edited and stays"


def is_own(text: str) -> bool:
    """Tell whether a card is as gq wrote it."""
    found = MARK.search(text)
    return found is not None and hashlib.sha256(text[: found.start()].encode()).hexdigest() == found[1]


def marked(text: str) -> str:
    """Return a card with the line that tells whether it was edited since."""
    body = text.rstrip("\n") + "\n"
    return f"{body}\n<!-- written by gq, sha256 {hashlib.sha256(body.encode()).hexdigest()} -->\n"


def card_text(run: Path, config: RunConfig | None = None, *, name: str = "") -> str:
    """Return the card of a run as its files are now.

    Args:
        config: default: what its config.toml says.
        name: what to call it; default: its folder's name.

    Raises:
        GqError: its configuration cannot be read.
        DataError: what else is on record of it cannot be understood.
    """
    config, name = config or read_config(run), name or run.resolve().name
    try:
        return compose(run, config, name)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        message = f"the records of {run} are damaged: {type(error).__name__}: {error}"
        raise DataError(
            message, hint="put its JSON files back from a copy, or remove the damaged evals/*.json"
        ) from error


def compose(run: Path, config: RunConfig, name: str) -> str:
    """Return the card; see `card_text`."""
    environment = json_or_empty(run / "environment.json")
    results = evaluation_lines(run)
    lines = [
        *front_matter(head(run, config, name, environment)),
        "",
        f"# {name}",
        "",
        summary(run, config, environment),
        "",
        *imported_lines(environment.get("imported") or {}),
        "## Results",
        "",
        *(results or [f"It was not evaluated yet: `gq eval {name}` does, and the results then stand here."]),
        *training_lines(run, config),
        *comparison_lines(run),
        *corrector_lines(run),
        "",
        "## Reproduce",
        "",
        *reproduce_lines(config, name, environment),
        "",
        "Made with " + ", ".join(f"{k} {v}" for k, v in environment.get("versions", {}).items()) + ".",
    ]
    return marked("\n".join(lines))


def summary(run: Path, config: RunConfig, environment: Mapping[str, Any]) -> str:
    """Return the sentence that says what a run is."""
    kind, _ = KINDS[config.algo]
    counts = [f"{environment['parameters']:,} parameters"] if "parameters" in environment else []
    state = last_state(run)
    progress = state.get("progress", {})
    if state and not environment.get("imported"):
        counts.append(f"{state['step']:,} updates")
    counts += [f"{progress[key]:,} {word}" for key, word in PROGRESS.items() if progress.get(key)]
    by = "imported" if environment.get("imported") else "trained"
    on = f" on `{without_folder(config.dataset)}`" if config.dataset else ""
    parent = environment.get("parent", {})
    start = f", starting from `{without_folder(parent['run'])}` {parent['checkpoint']}" if parent.get("run") else ""
    article = "An" if kind[0] in "AEIOU" else "A"
    return f"{article} {kind} for {config.task}, {by} by gq{on}{start}: {', '.join(counts) or 'no checkpoint yet'}."


PROGRESS = {"decisions": "decisions", "environment_steps": "environment steps of its own"}


def without_folder(name: str) -> str:
    """Return a dataset's id, or a file's name without its folder, which is nobody else's business."""
    return Path(name).name if Path(name).is_absolute() else name


def head(run: Path, config: RunConfig, name: str, environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the Hub shows and searches by."""
    tags = ["reinforcement-learning", "gq", KINDS[config.algo][1], "mujoco", config.task]
    found: dict[str, Any] = {"library_name": "gq", "pipeline_tag": "reinforcement-learning", "tags": tags}
    licence = (environment.get("imported") or {}).get("licence", "")
    if licence:
        found["license"] = licence.lower()
    if config.dataset.startswith("hf://"):
        found["datasets"] = ["/".join(config.dataset.removeprefix("hf://").split("@")[0].split("/")[:2])]
    elif config.dataset.startswith("mujoco/"):
        found["datasets"] = ["farama-minari/mujoco"]
    if entries := index_entries(run, config):
        found["model-index"] = [{"name": name, "results": entries}]
    return found


def front_matter(document: Mapping[str, Any]) -> list[str]:
    """Return plain values as YAML between its marks."""
    return ["---", *yaml_lines(document), "---"]


def yaml_lines(value: Any) -> Iterable[str]:
    """Yield the lines of nested mappings and lists in YAML; a text is written as JSON does, which YAML reads too."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(item, Mapping | list):
                yield f"{key}:"
                yield from (f"  {line}" for line in yaml_lines(item))
            else:
                yield f"{key}: {json.dumps(item, ensure_ascii=False)}"
    else:
        for item in value:
            lines = list(yaml_lines(item)) if isinstance(item, Mapping) else [json.dumps(item, ensure_ascii=False)]
            yield from (f"{'- ' if index == 0 else '  '}{line}" for index, line in enumerate(lines))


def imported_lines(imported: Mapping[str, Any]) -> list[str]:
    """Return where an imported model is from."""
    if not imported:
        return []
    return [
        f"- source: {without_folder(str(imported['source']))}",
        f"- sha256: {imported['sha256']}",
        f"- licence: {imported['licence'] or 'unknown'}",
        f"- layout: {imported['layout']}",
        *(f"- {note}" for note in imported["notes"]),
        "",
        "It has no optimiser and no replay, so it cannot be trained on.",
        "",
    ]


def reproduce_lines(config: RunConfig, name: str, environment: Mapping[str, Any]) -> list[str]:
    """Return the commands that make such a run, with `config.toml`, and that use this one."""
    commands, facts = [], []
    if config.dataset and not Path(config.dataset).is_absolute():
        commands.append(f"gq download {config.dataset}")
    if not environment.get("imported"):
        settings = flatten(config.to_dict())
        options = ["--config", "config.toml"]
        if config.algo == "finetune":
            settings["online.parent"] = without_folder(str(environment.get("parent", {}).get("run", "PARENT")))
        elif Path(config.dataset).is_absolute():
            options += ["--dataset", without_folder(config.dataset)]
        commands.append(repeat_command(settings, environment, options))
    commands += [f"gq eval {name}", f"gq render {name}"]
    if "dataset_sha256" in environment:
        facts.append(f"The arrays that it learnt from have the sha256 {environment['dataset_sha256']}.")
    if environment.get("compute"):
        facts.append(f"It was trained on {environment['compute']}.")
    text = "All settings are in `config.toml`, the history is in `metrics.jsonl`."
    return [*(f"    {command}" for command in commands), "", " ".join([text, *facts])]
