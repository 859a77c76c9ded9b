"""Losses by epoch as a PNG or SVG, by matplotlib, which is an extra."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gq.errors import GqError
from gq.files import atomic_path
from gq.plotting.picture import COLOURS, INSTALL, PANEL_INCHES, STYLE, can_draw


def write_losses(history: Sequence[dict[str, float]], best_epoch: int, path: Path, *, title: str) -> None:
    """Draw a training's losses, and mark the epoch whose weights were kept.

    Args:
        history: of each epoch: epoch, train_loss, validation_loss.
        path: .png or .svg; replaced if it is there.

    Raises:
        GqError: matplotlib is not installed, or the file cannot be written.
    """
    if not can_draw():
        raise GqError("a picture needs matplotlib", hint=INSTALL)
    import matplotlib
    from matplotlib.figure import Figure

    epochs = [entry["epoch"] for entry in history]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=PANEL_INCHES, layout="constrained")
        axes = figure.subplots()
        for colour, name in zip(COLOURS, ("train", "validation"), strict=False):
            axes.plot(epochs, [entry[f"{name}_loss"] for entry in history], color=colour, label=name, linewidth=1.4)
        axes.axvline(best_epoch, color="#808080", linewidth=1, linestyle="--", label="kept")
        axes.set_xlabel("epoch")
        axes.set_ylabel("weighted Huber loss")
        axes.set_title(title, loc="left")
        if min(entry[name] for entry in history for name in ("train_loss", "validation_loss")) > 0:
            axes.set_yscale("log")
        axes.legend()
        kind = path.suffix.lower().removeprefix(".")
        metadata: Any = {"Date": None} if kind == "svg" else {"Software": "gq"}
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=200, metadata=metadata)
