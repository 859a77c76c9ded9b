"""The video of a report: one that the run has, or a small new one."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from gq.results.facts import VideoFacts

MIME = {".mp4": "video/mp4", ".gif": "image/gif"}
SIDE_PIXELS, FPS = 200, 15


def choose_video(run: Path, max_bytes: int, notes: list[str]) -> VideoFacts | None:
    """Return the newest video of a run that is small enough, or note that all are too large."""
    files = [path for path in (run / "videos").glob("*") if path.suffix.lower() in MIME and path.is_file()]
    sized = [(path.stat().st_mtime_ns, path, path.stat().st_size) for path in files]
    fitting = [entry for entry in sized if 0 < entry[2] <= max_bytes]
    if sized and not fitting:
        notes.append(
            f"its videos are above {max_bytes / 1e6:.1f} MB, too large to embed; gq report --video films small"
        )
    if not fitting:
        return None
    _, path, num_bytes = max(fitting)
    return VideoFacts(path=path, num_bytes=num_bytes)


def film(run: Path, begin: Callable[[Path, str], None]) -> None:
    """Film an episode of a run's best checkpoint, small.

    Raises:
        GqError: nothing can be rendered here, or the run has no checkpoint.
    """
    from gq.rendering import VideoOptions, render

    begin(run, "filming")
    path = run / "videos" / f"{datetime.now().strftime('%Y%m%d-%H%M%S-%f')}-report.mp4"
    render(run, video=VideoOptions(width=SIDE_PIXELS, height=SIDE_PIXELS, fps=FPS), output=path)
