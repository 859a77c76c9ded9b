"""What of a run is shared, and how: which files go up and may come down, without what is nobody's business."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gq.config import FinetuneConfig, TrainedConfig, to_toml
from gq.files import sha256
from gq.paths import read_json
from gq.runs.card import CARD, card_text, is_own
from gq.runs.checkpoint import OPTIMIZER, choose_checkpoint, verify_checkpoint
from gq.runs.folder import read_config

HUB_FILE = "hub.json"  # where a pulled run is from
STEP = r"checkpoints/step-\d{9}"
RUN_FILES = (
    r"config\.toml|environment\.json|comparison\.json|(metrics|times)\.jsonl|README\.md",
    rf"checkpoints/(last|best)\.json|{STEP}/(model\.safetensors|state\.json|MANIFEST\.json)",
    r"evals/[\w.-]+\.json|videos/[\w.-]+\.(mp4|gif)|plots/[\w.-]+\.(png|svg)",
    r"correctors/[\w-]+/(model\.safetensors|corrector\.json)",
)
STATE_FILES = (rf"{STEP}/optimizer\.safetensors", r"replay/rank-\d+/[\w-]+\.bin|trajectories/episodes\.bin")
VIDEO_SUFFIXES = (".mp4", ".gif")


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
    """Tell whether a path is that of a file which runs consist of; no other comes down."""
    return any(re.fullmatch(pattern, path) for pattern in (*RUN_FILES, *STATE_FILES))


def run_uploads(run: Path, name: str, *, with_state: bool = False) -> list[Upload]:
    """Return what another person needs to evaluate a run, film it and make another: last and best, one video.

    Args:
        name: what the card calls it.
        with_state: what training on needs too: optimiser, replay, the policy's own episodes.

    Raises:
        UsageError: it has no checkpoint.
        GqError: a checkpoint is damaged, or the configuration cannot be read.
    """
    config = read_config(run)
    steps = dict.fromkeys(choose_checkpoint(run, which) for which in ("best", "last"))
    uploads = [Upload("config.toml", to_toml(without_paths_in(config)).encode()), Upload(CARD, shared_card(run, name))]
    uploads += [Upload(f"{name}.jsonl", run / f"{name}.jsonl") for name in ("metrics", "times")]
    for folder in steps:
        uploads += checkpoint_uploads(folder, with_state=with_state)
    uploads += [cleaned(run, run / "checkpoints" / f"{which}.json") for which in ("last", "best")]
    uploads += [cleaned(run, run / name) for name in ("environment.json", "comparison.json")]
    uploads += [cleaned(run, file) for file in sorted((run / "evals").glob("*.json"))]
    for file in sorted((run / "correctors").glob("*/corrector.json")):
        uploads += [
            cleaned(run, file),
            Upload(relative(run, file.parent / "model.safetensors"), file.parent / "model.safetensors"),
        ]
    videos = [file for file in (run / "videos").glob("*") if file.suffix in VIDEO_SUFFIXES]
    uploads += [Upload(relative(run, file), file) for file in sorted(videos, key=modified)[-1:]]
    if with_state:
        kept = sorted([*(run / "replay").glob("*/*.bin"), *(run / "trajectories").glob("*.bin")])
        uploads += [Upload(relative(run, file), file) for file in kept]
    present = [upload for upload in uploads if isinstance(upload.source, bytes) or upload.source.is_file()]
    assert all(is_run_file(upload.path) for upload in present), "what goes up must come down"
    return sorted(present, key=lambda upload: upload.path)


def checkpoint_uploads(folder: Path, *, with_state: bool) -> Iterable[Upload]:
    """Yield the files of a checkpoint, with a manifest of them.

    Raises:
        GqError: it is damaged.
    """
    verify_checkpoint(folder)
    place = f"checkpoints/{folder.name}"
    state = as_json(without_paths(read_json(folder / "state.json")))
    manifest = {"state.json": {"bytes": len(state), "sha256": hashlib.sha256(state).hexdigest()}}
    yield Upload(f"{place}/state.json", state)
    for name in ("model.safetensors", OPTIMIZER)[: 1 + with_state]:
        file = folder / name
        if file.is_file():
            manifest[name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
            yield Upload(f"{place}/{name}", file)
    yield Upload(f"{place}/MANIFEST.json", as_json({"format": 1, "files": manifest}))


def shared_card(run: Path, name: str) -> bytes:
    """Return a run's card as it stands now, or the one that somebody wrote in its place."""
    path = run / CARD
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return (text if text and not is_own(text) else card_text(run, name=name)).encode()


def cleaned(run: Path, file: Path) -> Upload:
    """Return a JSON file of a run without the folders of this machine."""
    path = relative(run, file)
    return Upload(path, as_json(without_paths(read_json(file)))) if file.is_file() else Upload(path, file)


def without_paths(value: Any) -> Any:
    """Return plain values in which absolute paths are their last parts."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    return Path(value).name if Path(value).is_absolute() else value.replace(str(Path.home()), "~")


def without_paths_in(config: TrainedConfig) -> TrainedConfig:
    """Return a configuration that names its dataset and its parent without their folders."""
    found = {"data.dataset": config.dataset} if config.dataset else {}
    if isinstance(config, FinetuneConfig):
        found["online.parent"] = config.online.parent
    return config.replace({key: without_paths(value) for key, value in found.items()})


def as_json(document: Any) -> bytes:
    """Return a JSON file's content."""
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()


def relative(run: Path, file: Path) -> str:
    """Return a file's path in its run, with slashes."""
    return file.relative_to(run).as_posix()


def modified(file: Path) -> float:
    """Return when a file was written."""
    return file.stat().st_mtime
