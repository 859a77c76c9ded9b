"""`gq render`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from gq.cli import options
from gq.cli.output import Output

EXAMPLES = """\b
Examples:
  gq render --latest                     an mp4 in the run's folder, headless
  gq render --latest --target 1000,2000,3000
  gq render dog-run-tdmpc2 --mode spec3
  gq render runs/a --episodes 4 --size 320x240 --fps 30 --output four.gif"""


@dataclasses.dataclass(frozen=True)
class Episodes(options.Episodes):
    """Which episodes are recorded."""

    target: Annotated[str | None, options.targets("Target returns; default: the run's highest.")] = None
    episodes: Annotated[int | None, options.number("Episodes per target.")] = 1


@dataclasses.dataclass(frozen=True)
class Picture:
    """What the video looks like."""

    size: Annotated[str, typer.Option(metavar="WxH", help="Pixels of each picture.")] = "480x480"
    fps: Annotated[float, options.number("Frames a second, about; playback is in real time.")] = 60
    camera: Annotated[str | None, typer.Option(metavar="NAME", help="A camera of the MuJoCo model.")] = None
    overlay: Annotated[bool, typer.Option(help="Time, return and return-to-go or plan in the picture.")] = True
    live: Annotated[bool, typer.Option("--live", help="Open a window instead.")] = False


@options.grouped_as("run target mode episodes video picture seed force output")
def render(
    run: options.ActingRun,
    mode: options.ActingMode = None,
    video: Annotated[Path | None, typer.Option("--output", metavar="FILE", help="An .mp4 or .gif file.")] = None,
    force: options.Force = False,
    *,
    episodes: Episodes,
    picture: Picture,
    output: Output,
) -> None:
    """Record a video of a run and print its path. Works without a display."""
    from gq import threads

    threads.prepare()
    wanted = episodes.request()
    width, height = options.parse_size(picture.size)
    from gq.envs.gl import select_backend

    if not picture.live:
        output.detail(f"GL backend: {select_backend()}")  # before anything imports mujoco, which binds it
    from gq.rendering import VideoOptions
    from gq.rendering import render as render_run
    from gq.video import writer_path

    if video:
        options.refuse_existing(writer_path(video)[0], force=force)
    looks: dict[str, Any] = {
        "fps": picture.fps,
        "camera": picture.camera,
        "overlay": picture.overlay,
        "live": picture.live,
    }
    limit = options.max_steps(run.folder)
    with output.progress("rendering", unit="steps") as move:
        rendering = render_run(
            run.folder,
            run.acting(mode=mode),
            wanted,
            VideoOptions(width=width, height=height, **looks),
            output=video,
            note=output.note,
            progress=lambda done, total: move(done, limit),
        )
    document = {**dataclasses.asdict(rendering), "path": str(rendering.path) if rendering.path else None}
    for episode in rendering.episodes:
        how = rendering.mode or f"target {episode.target_return:g}"
        output.note(f"{how}: return {episode.episode_return:.0f} in {episode.length} steps")
    path = str(rendering.path or "")
    output.result(document, quiet=path, human=path)
