"""Correctors on disk, RUN/correctors/<name>/{model.safetensors, corrector.json}, tied to their teacher's weights."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import save_file

from gq.errors import GqError, UsageError, suggest
from gq.files import atomic_folder, sha256, write_error, write_json
from gq.models.corrector import Corrector, CorrectorConfig
from gq.paths import read_json
from gq.runs.checkpoint import fill, load_tensors

FORMAT = 1
AGAIN = "distil it again: gq distill RUN"


@dataclass(frozen=True)
class LoadedCorrector:
    """A corrector with everything known about it."""

    folder: Path
    corrector: Corrector  # in evaluation mode
    document: dict[str, Any]  # corrector.json

    @property
    def execution_horizon(self) -> int:
        """The oldest plans that it was trained for are one decision less old than this."""
        return int(self.document["execution_horizon"])

    @property
    def plan_horizon(self) -> int:
        """Return how far the plans looked ahead that it was trained to correct."""
        return int(self.document["plan_horizon"])


def correctors_folder(run: Path) -> Path:
    """Return where a run's correctors lie."""
    return run / "correctors"


def known_correctors(run: Path) -> list[str]:
    """Return the names of a run's correctors."""
    return sorted(file.parent.name for file in correctors_folder(run).glob("*/corrector.json"))


def fitting_corrector(run: Path, teacher_sha256: str) -> str | None:
    """Return the name of a run's corrector that was distilled from these weights, the one named two-tower first."""
    names = [
        name
        for name in known_correctors(run)
        if read_json(correctors_folder(run) / name / "corrector.json").get("teacher_sha256") == teacher_sha256
    ]
    return min(names, key=lambda name: (name != "two-tower", name), default=None)


def find_corrector(run: Path, name: str | None = None) -> Path:
    """Return the folder of a run's corrector by its name, or of any by its path; without, of the run's only one.

    Where there are several, the one named two-tower is taken.

    Raises:
        UsageError: there is none, or it is not clear which.
    """
    known = known_correctors(run)
    if name is None:
        if len(known) == 1 or "two-tower" in known:
            return correctors_folder(run) / ("two-tower" if "two-tower" in known else known[0])
        if not known:
            raise UsageError(f"{run.name} has no corrector", hint=f"make one: gq distill {run.name}")
        raise UsageError(f"{run.name} has several correctors", hint=f"choose one with --corrector: {', '.join(known)}")
    if name in known:
        return correctors_folder(run) / name
    path = Path(name).expanduser()
    if (path / "corrector.json").is_file():
        return path
    otherwise = f"it has {', '.join(known)}" if known else f"make one: gq distill {run.name}"
    raise UsageError(f"{run.name} has no corrector {name}", hint=suggest(name, known, otherwise=otherwise))


def save_corrector(folder: Path, corrector: Corrector, document: dict[str, Any]) -> Path:
    """Write a corrector, whole or not at all, with `document` in its corrector.json; return the folder.

    Args:
        document: plain values, among them teacher_sha256, checkpoint, execution_horizon and plan_horizon.

    Raises:
        GqError: it cannot be written.
    """
    with atomic_folder(folder) as temporary:
        file = temporary / "model.safetensors"
        try:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in corrector.state_dict().items()}
            save_file(tensors, file)
        except SafetensorError as error:  # its form of a full disk
            raise write_error(folder, OSError(str(error))) from error
        facts = {"format": FORMAT, "model": asdict(corrector.config), "sha256": sha256(file)}
        write_json(temporary / "corrector.json", facts | document)
        file.chmod((temporary / "corrector.json").stat().st_mode)  # private by default; it is like all others
    return folder


def load_corrector(folder: Path, teacher_sha256: str, *, device: str | torch.device = "cpu") -> LoadedCorrector:
    """Load a corrector for a teacher.

    Args:
        teacher_sha256: of the teacher's model.safetensors.

    Raises:
        UsageError: it was distilled from another teacher.
        GqError: it is missing, damaged, or from another version of gq.
    """
    file, document = folder / "model.safetensors", read_json(folder / "corrector.json")
    try:
        if document["format"] != FORMAT:
            raise GqError(f"{folder} is from another version of gq", hint=AGAIN)
        if document["teacher_sha256"] != teacher_sha256:
            found, wanted = document["teacher_sha256"][:12], teacher_sha256[:12]
            message = f"{folder} was distilled from another teacher: weights {found}, not {wanted}"
            hint = f"it belongs to {document.get('teacher', 'another run')}, {document.get('checkpoint', '')}: " + AGAIN
            raise UsageError(message, hint=hint)
        if not file.is_file() or sha256(file) != document["sha256"]:
            raise GqError(f"{file} is damaged: its bytes are not those that were written", hint=AGAIN)
        config = TypeAdapter(CorrectorConfig).validate_python(document["model"])
        corrector = fill(lambda: Corrector(config), load_tensors(file))
        assert isinstance(corrector, Corrector)
        loaded = LoadedCorrector(folder, corrector.eval().to(device).requires_grad_(False), document)
        if min(loaded.execution_horizon, loaded.plan_horizon) < 1:
            raise ValueError("its horizons are not positive")
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise GqError(f"{folder} cannot be used: {reason}", hint=AGAIN) from None
    return loaded
