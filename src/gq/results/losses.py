"""Losses by epoch as a picture."""

from collections.abc import Sequence
from pathlib import Path

from gq.results.style import COLOURS, DASHES, GREY, PANEL_INCHES, picture


def write_losses(history: Sequence[dict[str, float]], best_epoch: int, path: Path, *, title: str) -> None:
    """Draw a training's losses, and mark the epoch whose weights were kept.

    Args:
        history: of each epoch: epoch, train_loss, validation_loss.
        path: .png, .svg or .pdf; replaced if it is there.

    Raises:
        GqError: matplotlib is not installed, or the file cannot be written.
    """
    epochs = [entry["epoch"] for entry in history]
    with picture(path, PANEL_INCHES) as figure:
        axes = figure.subplots()
        for colour, dashes, name in zip(COLOURS, DASHES, ("train", "validation"), strict=False):
            losses = [entry[f"{name}_loss"] for entry in history]
            axes.plot(epochs, losses, color=colour, linestyle=dashes, label=name)
        axes.axvline(best_epoch, color=GREY, linewidth=0.8, linestyle="--", label="kept")
        axes.set_xlabel("epoch")
        axes.set_ylabel("weighted Huber loss")
        axes.set_title(title, loc="left")
        if min(entry[name] for entry in history for name in ("train_loss", "validation_loss")) > 0:
            axes.set_yscale("log")
        axes.legend()
