"""Checkpoints: a folder of safetensors and JSON with a manifest of hashes, whole or absent.

    checkpoints/step-000010000/{model.safetensors, optimizer.safetensors, state.json, MANIFEST.json}
    checkpoints/{last,best}.json    pointers, replaced after the folder is durable

`optimizer.safetensors` holds everything else that resuming needs as tensors: moments and random generator states.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gq.errors import GqError, UsageError
from gq.files import atomic_folder, remove_folder, sha256, write_error, write_json
from gq.paths import algo_of, checkpoint_folders, read_json
from gq.runs.bound import read_state
from gq.runs.folder import resume_command

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMAT = 1
OPTIMIZER = "optimizer.safetensors"
NEEDED_FILES = {"model.safetensors", "state.json"}


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint folder."""

    path: Path
    model: "dict[str, Tensor]"
    optimizer: "dict[str, Tensor]"
    state: dict[str, Any]


def save_checkpoint(
    run: Path,
    step: int,
    *,
    model: "dict[str, Tensor]",
    optimizer: "dict[str, Tensor]",
    state: dict[str, Any],
    is_best: bool,
    keep: int,
) -> Path:
    """Write a checkpoint, then the pointers, then remove the oldest beyond `keep`; the best is always kept.

    Raises:
        GqError: it could not be written. Older checkpoints and pointers are untouched then.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = run / "checkpoints" / f"step-{step:09d}"
    with atomic_folder(folder) as temporary:
        try:
            save_file(model, temporary / "model.safetensors")
            save_file(optimizer, temporary / OPTIMIZER)
        except SafetensorError as error:  # its form of a full disk
            raise write_error(folder, OSError(str(error))) from error
        write_json(temporary / "state.json", {"format": FORMAT, "step": step, **state})
        files = ["model.safetensors", OPTIMIZER, "state.json"]
        for name in files:  # safetensors files are private by default; these are like all others
            (temporary / name).chmod((temporary / "state.json").stat().st_mode)
        manifest = {
            name: {"bytes": (temporary / name).stat().st_size, "sha256": sha256(temporary / name)} for name in files
        }
        write_json(temporary / "MANIFEST.json", {"format": FORMAT, "files": manifest})
    point(run, "last", folder)
    if is_best:
        point(run, "best", folder)
    remove_old(run, keep)
    return folder


def remove_old(run: Path, keep: int) -> None:
    """Remove all checkpoints but the newest `keep`, the last and the best."""
    for old in checkpoint_folders(run)[:-keep]:
        if old.name not in (pointed(run, "best"), pointed(run, "last")):
            remove_folder(old)


def point(run: Path, which: str, folder: Path) -> None:
    """Let last.json or best.json point at a checkpoint."""
    write_json(run / "checkpoints" / f"{which}.json", {"checkpoint": folder.name})


def pointed(run: Path, which: str) -> str | None:
    """Return the name of the checkpoint that last.json or best.json points at, if it is there."""
    pointer = run / "checkpoints" / f"{which}.json"
    if not pointer.is_file():
        return None
    name = str(read_json(pointer).get("checkpoint"))
    is_one = re.fullmatch(r"step-\d+", name) and (run / "checkpoints" / name).is_dir()  # not a path to elsewhere
    return name if is_one else None


def choose_checkpoint(run: Path, which: str) -> Path:
    """Return the checkpoint folder for `last`, `best` (the last where none is marked best) or a step number.

    Raises:
        UsageError: there is none.
    """
    folders = checkpoint_folders(run)
    if not folders:
        raise UsageError(f"{run} has no checkpoint yet", hint=f"go on training: {resume_command(algo_of(run), run)}")
    if which in ("last", "best"):
        name = pointed(run, which) or pointed(run, "last") or folders[-1].name
        return run / "checkpoints" / name
    for folder in folders:
        if which.isdecimal() and folder.name.removeprefix("step-").lstrip("0") == which.lstrip("0"):
            return folder
    steps = ", ".join(str(int(folder.name.removeprefix("step-"))) for folder in folders)
    raise UsageError(f"{run.name} has no checkpoint {which}", hint=f"choose last, best or one of the steps {steps}")


def last_checkpoint(run: Path) -> Checkpoint | None:
    """Return the checkpoint to go on from, None where there is none yet. Raises GqError for a damaged one."""
    return load_checkpoint(choose_checkpoint(run, "last")) if checkpoint_folders(run) else None


def load_checkpoint(folder: Path, *, device: str = "cpu") -> Checkpoint:
    """Read a checkpoint after comparing every file with the manifest.

    Raises:
        GqError: a file is missing, its bytes are not those that were written, or they hold no tensors.
    """
    verify_checkpoint(folder)
    return Checkpoint(
        path=folder,
        model=load_tensors(folder / "model.safetensors", device=device),
        optimizer=load_tensors(folder / OPTIMIZER) if (folder / OPTIMIZER).is_file() else {},  # shared runs have none
        state=read_state(folder),
    )


def load_tensors(file: Path, *, device: str = "cpu") -> "dict[str, Tensor]":
    """Read a safetensors file, which holds nothing that could be executed.

    Raises:
        GqError: it cannot be read, or its header contradicts itself or the file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file, device=device)
    except (SafetensorError, OSError, KeyError, ValueError) as error:  # KeyError: of a type that PyTorch lacks
        raise GqError(f"{file} cannot be read: {error}", hint="get it again from where it came from") from error


def fill(build: "Callable[[], nn.Module]", tensors: "dict[str, Tensor]") -> "nn.Module":
    """Return a model that holds the given tensors; no memory is taken for one that they do not fit.

    Raises:
        ValueError: they do not fit.
    """
    import torch

    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if differing := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        name = differing[0]
        raise ValueError(f"{name} is {found.get(name, 'missing')}, and {wanted.get(name, 'nothing')} is expected")
    model = build()
    model.load_state_dict(tensors)
    return model


def verify_checkpoint(folder: Path, *, deep: bool = True) -> None:
    """Raise GqError unless every file of the manifest is there with its size and, if `deep`, its hash."""
    try:
        manifest = read_json(folder / "MANIFEST.json")
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
        if not NEEDED_FILES <= expected.keys() <= NEEDED_FILES | {OPTIMIZER}:
            raise KeyError("files")
    except (GqError, KeyError, TypeError, AttributeError):
        raise GqError(f"{folder} has no readable MANIFEST.json", hint=another_checkpoint(folder)) from None
    for name, (num_bytes, digest) in expected.items():
        file = folder / name
        if not file.is_file():
            raise GqError(f"{file} is missing", hint=another_checkpoint(folder))
        if file.stat().st_size != num_bytes or (deep and sha256(file) != digest):
            raise GqError(
                f"{file} is damaged: its bytes are not those that were written", hint=another_checkpoint(folder)
            )


def another_checkpoint(folder: Path) -> str:
    """Return a hint that names another checkpoint of the run to use instead."""
    others = [path for path in checkpoint_folders(folder.parents[1]) if path.name != folder.name]
    if others:
        return f"remove {folder} to go on from {others[-1].name}"
    return "it is the only checkpoint of its run: train again"
