"""What goes up to the Hub, and so may come down: the files of a run without private paths, a dataset with its card."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gq.config import FinetuneConfig, TrainedConfig, to_toml
from gq.data.formats import format_of
from gq.data.reading import data_file
from gq.data.trajectories import Trajectories
from gq.datasets import names as registry
from gq.datasets.loading import canonical_name, load_dataset
from gq.errors import DataError
from gq.files import sha256
from gq.paths import read_json
from gq.runs.card import CARD, card_text, is_own, marked
from gq.runs.checkpoint import OPTIMIZER, choose_checkpoint, verify_checkpoint
from gq.runs.folder import read_config

STEP = r"checkpoints/step-\d{9}"
RUN_FILES = (
    r"config\.toml|environment\.json|comparison\.json|(metrics|times)\.jsonl|README\.md",
    rf"checkpoints/(last|best)\.json|{STEP}/(model\.safetensors|state\.json|MANIFEST\.json)",
    r"evals/[\w.-]+\.json|videos/[\w.-]+\.(mp4|gif)|plots/[\w.-]+\.(png|svg)",
    r"correctors/[\w-]+/(model\.safetensors|corrector\.json)",
)
STATE_FILES = (rf"{STEP}/optimizer\.safetensors", r"replay/rank-\d+/[\w-]+\.bin|trajectories/episodes\.bin")
# What of them goes up besides configuration, card, checkpoints and the newest video.
SHARED_FILES = (
    *("metrics.jsonl", "times.jsonl", "environment.json", "comparison.json", "checkpoints/last.json"),
    *("checkpoints/best.json", "evals/*.json", "correctors/*/corrector.json", "correctors/*/model.safetensors"),
)
STATE_SHARED_FILES = ("replay/*/*.bin", "trajectories/*.bin")
VIDEO_SUFFIXES = (".mp4", ".gif")
SIZES = ((10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))
LICENCES = {"CC BY 4.0": "cc-by-4.0", "MIT": "mit"}
ORIGIN = ("source", "source_url", "source_sha256", "licence", "policy", "noise", "mujoco", "gymnasium", "gq")


@dataclass(frozen=True)
class Upload:
    """A file to put up: as it lies there, or, where something is left out of it, its content."""

    path: str  # in the repository, with slashes
    source: Path | bytes

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size


def is_run_file(path: str) -> bool:
    """Whether a path is that of a file which runs consist of; no other comes down."""
    return any(re.fullmatch(pattern, path) for pattern in (*RUN_FILES, *STATE_FILES))


def run_uploads(run: Path, name: str, *, with_state: bool = False) -> list[Upload]:
    """Return what another person needs to evaluate a run, render it and make another: last and best, one video.

    Args:
        name: what the card calls it.
        with_state: what training on needs too: optimiser, replay, the policy's own episodes.

    Raises:
        UsageError: it has no checkpoint.
        GqError: a checkpoint is damaged, or the configuration cannot be read.
    """
    config = _without_paths_in(read_config(run))
    uploads = [Upload("config.toml", to_toml(config).encode()), Upload(CARD, _shared_card(run, name))]
    for folder in dict.fromkeys(choose_checkpoint(run, which) for which in ("best", "last")):
        uploads += _checkpoint_uploads(folder, with_state=with_state)
    videos = [file for file in (run / "videos").glob("*") if file.suffix in VIDEO_SUFFIXES]
    files = sorted(videos, key=lambda file: file.stat().st_mtime)[-1:]
    for pattern in SHARED_FILES + STATE_SHARED_FILES * with_state:
        files += sorted(run.glob(pattern))
    for file in files:
        path = file.relative_to(run).as_posix()
        assert is_run_file(path), "what goes up must come down"
        uploads.append(Upload(path, _as_json(_without_paths(read_json(file))) if file.suffix == ".json" else file))
    return sorted(uploads, key=lambda upload: upload.path)


def _checkpoint_uploads(folder: Path, *, with_state: bool) -> Iterable[Upload]:
    """Yield the files of a checkpoint, with a manifest of them."""
    verify_checkpoint(folder)
    place = f"checkpoints/{folder.name}"
    state = _as_json(_without_paths(read_json(folder / "state.json")))
    manifest = {"state.json": {"bytes": len(state), "sha256": hashlib.sha256(state).hexdigest()}}
    yield Upload(f"{place}/state.json", state)
    for name in ("model.safetensors", OPTIMIZER)[: 1 + with_state]:
        file = folder / name
        if file.is_file():
            manifest[name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
            yield Upload(f"{place}/{name}", file)
    yield Upload(f"{place}/MANIFEST.json", _as_json({"format": 1, "files": manifest}))


def _shared_card(run: Path, name: str) -> bytes:
    """Return a run's card as it stands now, or the one that somebody wrote in its place."""
    path = run / CARD
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return (text if text and not is_own(text) else card_text(run, name=name)).encode()


def _without_paths(value: Any) -> Any:
    """Return plain values in which absolute paths are their last parts."""
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    return Path(value).name if Path(value).is_absolute() else value.replace(str(Path.home()), "~")


def _without_paths_in(config: TrainedConfig) -> TrainedConfig:
    """Return a configuration that names its dataset and its parent without their folders."""
    found = {"data.dataset": config.dataset} if config.dataset else {}
    if isinstance(config, FinetuneConfig):
        found["online.parent"] = config.online.parent
    return config.replace({key: _without_paths(value) for key, value in found.items()})


def _as_json(document: Any) -> bytes:
    """Return a JSON file's content."""
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()


def dataset_uploads(name: str) -> tuple[str, list[Upload]]:
    """Return a name for the repository of a dataset and the files to put up: one HDF5 file and a card.

    Raises:
        UsageError: there is no such dataset.
        DataError: it is damaged, or a pickle.
    """
    trajectories = load_dataset(name)  # it is read whole, so that nothing damaged goes up
    found = canonical_name(name)
    file = data_file(Path(found) if Path(found).is_absolute() else registry.resolve(found).path)
    if format_of(file) != "hdf5":
        hint = "make an HDF5 file of it: gq repair FILE --apply -o data.hdf5"
        what = "a pickle, which nobody should have to open" if format_of(file) == "pickle" else "not an HDF5 file"
        raise DataError(f"{file} is {what}", hint=hint)
    is_file = Path(found).is_absolute()
    label = Path(found).stem if is_file else found.removeprefix("builtin/").removeprefix("hf://").replace("/", "-")
    metadata = file.with_name("metadata.json")
    uploads = [Upload(f"{label}.hdf5", file)]
    if file.name == "main_data.hdf5" and metadata.is_file():
        uploads = [Upload("data/main_data.hdf5", file), Upload("data/metadata.json", metadata)]
    card = _dataset_card(label, trajectories, file).encode()
    return label, [Upload(CARD, card), *uploads]


def _dataset_card(name: str, data: Trajectories, file: Path) -> str:
    """Return the card of a dataset."""
    from huggingface_hub import DatasetCardData

    returns, lengths = data.returns, data.lengths
    origin = {key: value for key, value in data.attributes.items() if key in ORIGIN and value not in (None, "")}
    size = next((text for limit, text in SIZES if data.num_transitions < limit), "n>10M")
    head = DatasetCardData(
        license=LICENCES.get(str(origin.get("licence"))),
        tags=["reinforcement-learning", "offline-rl", "gq", "mujoco", *([data.task] if data.task else [])],
        task_categories=["reinforcement-learning"],
        size_categories=[size],
    )
    low, middle, high = np.percentile(returns, [10, 50, 90])
    lines = [
        "---",
        head.to_yaml(),
        "---",
        "",
        f"# {name}",
        "",
        f"Episodes of {data.task or 'an unnamed task'} for offline reinforcement learning, counted in the file:",
        "",
        "| | |",
        "|---|---|",
        f"| transitions | {data.num_transitions:,} |",
        f"| episodes | {data.num_episodes:,}, {int(data.terminals.sum()):,} of them terminated |",
        f"| return | {returns.mean():.1f} ± {returns.std():.1f} (p10 {low:.1f}, p50 {middle:.1f}, p90 {high:.1f}) |",
        f"| length | {lengths.mean():.1f}, at most {lengths.max():,} |",
        f"| observations, actions | {data.observations.shape[1]}, {data.actions.shape[1]} |",
        f"| sha256 of the file | {sha256(file)} |",
        *(f"| {key} | {value} |" for key, value in _without_paths(origin).items()),
        "",
        "    gq download hf://ORG/NAME",
        "    gq train dt --dataset hf://ORG/NAME",
    ]
    return marked("\n".join(lines))
