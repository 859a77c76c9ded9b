"""A run's card, its README.md: Markdown with a head that the Hugging Face Hub reads, from measured numbers only."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from gq.config import RunConfig, TDMPC2Config
from gq.errors import DataError
from gq.files import write_text
from gq.paths import checkpoint_folders, json_or_empty, section
from gq.rollouts.statistics import Summary
from gq.runs.checkpoint import pointed
from gq.runs.evaluations import PROTOCOL, EvaluationRow, chosen_rows, read_evaluations, selection_text
from gq.runs.folder import download_command, read_config, repeat_command
from gq.runs.metrics import last_evaluation
from gq.settings import flatten

CARD, CARD_BESIDE = "README.md", "README.gq.md"
COMPARISON_FILE = "comparison.json"  # what finetuning measured
PROGRESS = {"decisions": "decisions", "environment_steps": "environment steps of its own"}
Row = tuple[EvaluationRow, str, Summary]  # an evaluation, how it acted, its statistics
MARK = re.compile(r"\n<!-- written by gq, sha256 ([0-9a-f]{64}) -->\n?$")
KINDS = {
    "dt": ("Decision Transformer", "decision-transformer"),
    "bc": ("behaviour cloning policy", "behaviour-cloning"),
    "td3bc": ("policy with a critic (TD3+BC or ReBRAC)", "td3-bc"),
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
    """Write the card of a run that has one again; return what to tell the user of it, mostly nothing.

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
    """Whether a card is as gq wrote it."""
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
    import jinja2

    config, name = config or read_config(run), name or run.resolve().name
    damage = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, jinja2.TemplateError)
    try:
        return _compose(run, config, name)
    except damage as error:
        message = f"the records of {run} are damaged: {type(error).__name__}: {error}"
        raise DataError(
            message, hint="put its JSON files back from a copy, or remove the damaged evals/*.json"
        ) from error


def _compose(run: Path, config: RunConfig, name: str) -> str:
    """The card: its head in YAML, in which JSON is values too, and the filled template."""
    import jinja2

    evaluations = read_evaluations(run)
    rows = [(row, _way_text(row), row.summary(evaluations.reference)) for row in chosen_rows(evaluations)]
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    template.filters |= {"basename": _basename, "known": partial(_checkpoint_text, run)}
    kind, tag = KINDS[config.algo]
    environment = json_or_empty(run / "environment.json")
    imported = environment.get("imported") or {}
    text = template.from_string((resources.files("gq.runs") / "card.md.j2").read_text(encoding="utf-8")).render(
        name=name,
        config=config,
        environment=environment,
        imported=imported,
        parent=environment.get("parent", {}),
        article="An" if kind[0] in "AEIOU" else "A",
        kind=kind,
        by="imported" if imported else "trained",
        counts=_counts(run, environment),
        rows=rows,
        protocol=PROTOCOL,
        selection=selection_text(run, flatten(config.to_dict())),
        engines=sorted({f"{k} {v}" for row, *_ in rows for k, v in row.versions.items() if k not in ("gq", "python")}),
        warnings=dict.fromkeys(warning for row, *_ in rows for warning in row.warnings),
        last=_last_evaluation(run, config),
        changes=json_or_empty(run / COMPARISON_FILE).get("targets", []),
        correctors=_correctors(run),
        commands=_commands(config, name, environment),
    )
    tags = ["reinforcement-learning", "gq", tag, "mujoco", config.task]
    return marked("\n".join([*front_matter(_head(config, tags, imported, name, rows)), "", text]))


def _counts(run: Path, environment: Mapping[str, Any]) -> list[str]:
    counts = [f"{environment['parameters']:,} parameters"] if "parameters" in environment else []
    folders = checkpoint_folders(run)
    state = json_or_empty(folders[-1] / "state.json") if folders else {}
    progress = state.get("progress", {})
    if state and not environment.get("imported"):
        counts.append(f"{state['step']:,} updates")
    return counts + [f"{progress[key]:,} {word}" for key, word in PROGRESS.items() if progress.get(key)]


def _basename(name: str) -> str:
    """A dataset's id, or a file's name without its folder, which is nobody else's business."""
    return Path(name).name if Path(name).is_absolute() else name


def _checkpoint_text(run: Path, name: str) -> str:
    known = [which for which in ("best", "last") if pointed(run, which) == name]
    return f"{name} ({', '.join(known)})" if known else name


def _way_text(row: EvaluationRow) -> str:
    """How the policy acted: its target return or its mode, and what is not as usual."""
    text = f"mode {row.way.mode}" if row.way.mode else f"target {row.way.label}" if row.way.target is not None else ""
    parts = [text, "sampled" * row.stochastic, "contexts in blocks" * (row.context == "blocks")]
    return ", ".join(filter(None, parts))


def _last_evaluation(run: Path, config: RunConfig) -> dict[str, Any]:
    """The last evaluation while training, which chose the best checkpoint and so flatters it; {} without one."""
    ways: dict[str, dict[str, Any]] = {}
    record = last_evaluation(run / "metrics.jsonl")
    for key, value in record.items():
        way, _, what = key.removeprefix("eval/").rpartition("/")
        if key.startswith("eval/") and what in ("return_mean", "return_std", "policy_return_mean"):
            label = way.replace("target_", "target ") or ("planning" if isinstance(config, TDMPC2Config) else "-")
            missing: dict[str, Any] = dict.fromkeys(("return_mean", "return_std", "policy_return_mean"))
            ways.setdefault(label, missing)[what] = value
    return {"step": record["step"], "ways": ways} if record else {}


def _correctors(run: Path) -> dict[str, dict[str, Any]]:
    found = {file.parent.name: json_or_empty(file) for file in sorted((run / "correctors").glob("*/corrector.json"))}
    return {name: one for name, one in found.items() if "all" in section(section(one, "metrics"), "errors")}


def _head(
    config: RunConfig, tags: list[str], imported: Mapping[str, Any], name: str, rows: Sequence[Row]
) -> dict[str, Any]:
    found: dict[str, Any] = {"library_name": "gq", "pipeline_tag": "reinforcement-learning", "tags": tags}
    if licence := imported.get("licence", ""):
        found["license"] = licence.lower()
    if config.dataset.startswith("hf://"):
        found["datasets"] = ["/".join(config.dataset.removeprefix("hf://").split("@")[0].split("/")[:2])]
    elif config.dataset.startswith("mujoco/"):
        found["datasets"] = ["farama-minari/mujoco"]
    if rows:
        found["model-index"] = [{"name": name, "results": [_index_entry(config, *row) for row in rows]}]
    return found


def _index_entry(config: RunConfig, row: EvaluationRow, way: str, result: Summary) -> dict[str, Any]:
    how = ", ".join(filter(None, [way, row.checkpoint]))
    of = f"{result.num_episodes} episodes from seed {row.episodes[0].seed}"
    value = f"{result.return_mean:.2f} +/- {result.return_std:.2f}"
    metrics = [{"type": "mean_reward", "name": f"mean return over {of}", "value": value, "verified": False}]
    if result.normalized_mean is not None:
        score = {"name": f"score by {result.reference}", "value": round(result.normalized_mean, 2)}
        metrics.append({"type": "normalized_score", **score, "verified": False})
    return {
        "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
        "dataset": {"name": config.task, "type": config.task, "config": f"{how}, {of}"},
        "metrics": metrics,
    }


def front_matter(document: Mapping[str, Any]) -> list[str]:
    """Plain values as YAML between its marks, a line each; JSON is YAML too."""
    return ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in document.items()), "---"]


def _commands(config: RunConfig, name: str, environment: Mapping[str, Any]) -> list[str]:
    """The commands that make such a run, with `config.toml`, and that use this one."""
    is_file = Path(config.dataset).is_absolute()
    commands = [command] if (command := download_command(config.dataset, environment)) else []
    if not environment.get("imported"):
        settings = flatten(config.to_dict())
        options = ["--config", "config.toml"]
        if config.algo == "finetune":
            settings["online.parent"] = _basename(str(environment.get("parent", {}).get("run", "PARENT")))
        elif is_file:
            options += ["--dataset", _basename(config.dataset)]
        commands.append(repeat_command(settings, environment, options))
    return [*commands, f"gq eval {name}", f"gq render {name}"]
