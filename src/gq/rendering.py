"""Videos of a trained run: episodes side by side, in real time, off screen."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.error import DependencyNotInstalled

from gq.envs import gl
from gq.envs.make import make
from gq.envs.tasks import Task
from gq.errors import GqError, UsageError
from gq.paths import check_still_there
from gq.planning.acting import PlanningPolicy
from gq.planning.interfaces import Source
from gq.policies.loading import Acting, LoadedRun, choose_targets, load_run
from gq.rollouts.episodes import EpisodeRequest, Start, Step, roll_out
from gq.rollouts.statistics import Episode
from gq.runs.folder import read_config, refuse_module
from gq.video import MIN_GIF_FRAME_MS, STRIP_CELLS, Colour, VideoWriter, draw_overlay, writer_path

SIDE_PIXELS = (16, 4096)  # of each episode's picture; larger ones are beyond what OpenGL drivers promise
MAX_FPS = 1000
# Of what gave an action; a plan that is made is the brightest, and one that is followed pales beside it.
SOURCE_COLOURS: dict[Source, Colour] = {
    Source.PLAN: (255, 255, 255),
    Source.FOLLOW: (86, 180, 233),
    Source.CORRECT: (230, 159, 0),
    Source.REFINE: (0, 158, 115),
    Source.POLICY: (204, 121, 167),
    Source.BEAM: (240, 228, 66),
}


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """What a video looks like."""

    width: int = 480  # pixels of each episode's picture
    height: int = 480
    fps: float = 60  # frames a second of simulated time, about; of a gif at most 50; playback is in real time
    camera: str | None = None  # a camera's name in the MuJoCo model; None: the one that follows the robot
    # Write time, return and return-to-go on each picture; of a planner the reward and, by planning, the discounted
    # return that the plan is thought to earn, what gave the action (with the plan's age), the number of plans so far,
    # and a strip of what gave the last actions, by colours.
    overlay: bool = True
    live: bool = False  # open a window instead of writing a file


@dataclass(frozen=True)
class Rendering:
    """A finished video."""

    path: Path | None  # None: shown in a window only
    num_frames: int
    fps: float
    run: str
    checkpoint: str
    mode: str | None  # how it acted, where a run can act in more ways than one
    episodes: list[Episode]


def render(
    run: Path,
    acting: Acting | None = None,
    episodes: EpisodeRequest | None = None,
    video: VideoOptions | None = None,
    *,
    output: Path | None = None,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> Rendering:
    """Record episodes side by side, one of the run's highest target by default; one that has ended stands still.

    Args:
        output: .mp4 or .gif; default: a new mp4 in the run's `videos`.

    Raises:
        UsageError: a value out of range, no such camera, mode or corrector, no distribution to sample from, or targets
            for a run that takes none.
        GqError: no GL backend works, or the checkpoint is damaged.
    """
    episodes, video = (episodes or EpisodeRequest()).by_default(1), video or VideoOptions()
    check_request(episodes, video, output)
    if not video.live:
        gl.select_backend()
    config = read_config(run)
    refuse_module(run, config, acting.allow_module if acting else "")
    targets = choose_targets(config, episodes.targets)
    if not episodes.targets:
        targets = [max(targets)]
    loaded, starts = load_run(run, acting), episodes.starts(targets)
    options = picture_options(config.environment, video) | {"render_mode": "human" if video.live else "rgb_array"}
    if video.live:
        if reason := gl.probe("glfw"):  # in a child process: GLFW aborts the one that it has no display in
            raise GqError(f"cannot open a window: {reason}", hint="without --live a video is written")
        return watch_live(loaded, starts[:1], options)
    date = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    path, reason = writer_path(output or run / "videos" / f"{date}.mp4")
    if reason:
        note(f"writing {path.name} instead of mp4: {reason}")
    with VideoRecorder(loaded, [start.target for start in starts], path, video, progress) as recorder:
        try:
            finished = roll_out(loaded.policy, config.environment, starts, on_step=recorder.add, **options)
        except DependencyNotInstalled as error:
            raise GqError(f"{config.task} cannot be drawn: {error}", hint="install what it asks for") from None
    return Rendering(
        path, recorder.num_frames, recorder.fps, run.name, loaded.checkpoint.name, mode_of(loaded), finished
    )


def step_seconds(environment: Any) -> float:
    """Return the simulated time of a step; what is not known by `dt` shows its pictures at its own frame rate."""
    inner = environment.unwrapped
    return float(getattr(inner, "dt", 0) or 1 / inner.metadata.get("render_fps", 30))


def mode_of(loaded: LoadedRun) -> str | None:
    """Return how a planner acts; None for runs without one."""
    return loaded.policy.mode if isinstance(loaded.policy, PlanningPolicy) else None


def picture_options(task: Task, video: VideoOptions) -> dict[str, Any]:
    """Return the constructor options for the size and the camera of pictures; by default it follows the robot.

    Environments that are not drawn by Gymnasium's MuJoCo have neither.

    Raises:
        UsageError: there is no such camera.
    """
    if task.kind == "gymnasium" and not isinstance(make(task).unwrapped, MujocoEnv):
        if video.camera is not None:
            raise UsageError(f"{task.id} has no cameras to choose from", hint="omit --camera")
        return {}
    return {"width": video.width, "height": video.height, **camera_option(task, video.camera)}


def camera_option(task: Task, camera: str | None) -> dict[str, str]:
    """Return the constructor option that selects a camera; by default the one that follows the robot, if there is one.

    Raises:
        UsageError: the model has no such camera.
    """
    if camera is None and task.kind == "control":
        return {}  # these choose themselves, as their suite's videos do
    model = make(task).unwrapped.model  # type: ignore[attr-defined]
    names = [model.camera(index).name for index in range(model.ncam)]
    if camera is None:
        return {"camera_name": "track"} if "track" in names else {}
    if camera not in names:
        raise UsageError(f"{task.id} has no camera {camera}", hint=f"it has: {', '.join(names) or 'none'}")
    return {"camera_name": camera}


def check_request(episodes: EpisodeRequest, video: VideoOptions, output: Path | None) -> None:
    """Raise UsageError for a value out of range, or a file that is not a video's."""
    smallest, largest = SIDE_PIXELS
    if not (smallest <= min(video.width, video.height) and max(video.width, video.height) <= largest):
        message = f"width and height must be at least {smallest} and at most {largest} pixels"
        raise UsageError(message, hint="for example --size 480x480")
    assert episodes.number is not None
    if episodes.number < 1 or episodes.seed < 0 or not 0 < video.fps <= MAX_FPS:
        message = f"episodes must be at least 1, the seed at least 0, and fps above 0 and at most {MAX_FPS}"
        raise UsageError(message, hint="for example --episodes 1 --seed 0 --fps 60")
    if output and output.suffix.lower() not in (".mp4", ".gif"):
        raise UsageError(f"{output} is not a video's name", hint="end it in .mp4 or .gif")


def watch_live(loaded: LoadedRun, starts: Sequence[Start], options: dict[str, Any]) -> Rendering:
    """Show one episode in a window."""
    try:
        episodes = roll_out(loaded.policy, loaded.config.environment, starts, **options)
    except Exception as error:  # GLFW raises what it likes when there is no display
        raise GqError(
            f"cannot open a window: {error}", hint="is there a display? without --live a video is written"
        ) from None
    return Rendering(None, 0, 0.0, loaded.run.name, loaded.checkpoint.name, mode_of(loaded), episodes)


class VideoRecorder:
    """Tile the pictures of all episodes into frames and write them as they come."""

    def __init__(
        self,
        loaded: LoadedRun,
        targets: Sequence[float],
        path: Path,
        options: VideoOptions,
        progress: Callable[[int, int | None], None],
    ) -> None:
        self.loaded, self.targets, self.path, self.options = loaded, targets, path, options
        self.progress = progress
        self.num_frames, self.fps, self.stride = 0, 0.0, 0
        self.pictures: list[np.ndarray] = []
        self.sources: list[deque[Source]] = [deque(maxlen=STRIP_CELLS) for _ in targets]  # of the last actions
        self.num_plans = [0 for _ in targets]
        self.writer: VideoWriter | None = None

    def __enter__(self) -> "VideoRecorder":
        return self

    def __exit__(self, *error: Any) -> None:
        if self.writer:
            self.writer.__exit__(*error)

    def add(self, step: Step) -> None:
        """Take the pictures of the running episodes."""
        if not self.writer:
            self.open(step)
        self.observe(step)
        if step.index % self.stride:
            return
        for row in step.rows:
            picture = step.environments[row].render()
            if self.options.overlay:
                picture = draw_overlay(picture, self.lines(step, row), self.colours(row))
            self.pictures[row] = picture
        assert self.writer
        self.writer.add(tile(self.pictures))
        self.num_frames += 1
        self.progress(step.index + 1, None)

    def open(self, step: Step) -> None:
        """Choose the stride that gives real time at nearest to the asked frames a second, and open the file."""
        check_still_there(self.path, self.loaded.run)
        seconds_per_step = step_seconds(step.environments[0])
        shortest = MIN_GIF_FRAME_MS / 1000 if self.path.suffix.lower() == ".gif" else 0.0
        fewest = math.ceil(shortest / seconds_per_step - 1e-6)  # steps in a frame that players show as long as it takes
        self.stride = max(1, fewest, round(1 / (seconds_per_step * self.options.fps)))
        self.fps = 1 / (seconds_per_step * self.stride)
        self.pictures = [step.environments[row].render() for row in range(len(self.targets))]
        self.writer = VideoWriter(self.path, self.fps).__enter__()

    def lines(self, step: Step, row: int) -> list[str]:
        """Return the text on an episode's picture."""
        seconds = (step.index + 1) * step_seconds(step.environments[row])
        lines = [f"{seconds:6.2f} s   return {step.returns[row]:.0f}"]
        if len(returns_to_go := self.loaded.policy.returns_to_go):
            lines.append(f"to go {returns_to_go[row]:.0f} of {self.targets[row]:.0f}")
        if isinstance(policy := self.loaded.policy, PlanningPolicy):
            index = list(step.rows).index(row)
            is_planning = policy.settings.is_planning
            planned = f"   planned {policy.planned_values[row]:.0f}" if is_planning else ""
            lines.append(f"reward {step.rewards[index]:5.2f}{planned}")
            if is_planning:
                source, age = self.sources[row][-1], int(policy.events[-1].age[index])
                how = f"{source.name.lower()} {age}" if age > 0 else source.name.lower()
                lines.append(f"{how:<10} {self.num_plans[row]} plans in {step.index + 1}")
        return lines

    def observe(self, step: Step) -> None:
        """Keep what gave the actions of this step."""
        if isinstance(policy := self.loaded.policy, PlanningPolicy):
            events = policy.events[-1]
            for row, source, planned in zip(events.rows.tolist(), events.source, events.planned, strict=True):
                self.sources[row].append(Source(source))
                self.num_plans[row] += bool(planned)

    def colours(self, row: int) -> list[Colour]:
        """Return the colours of what gave an episode's last actions, the newest last; none without a planner."""
        policy = self.loaded.policy
        is_planning = isinstance(policy, PlanningPolicy) and policy.settings.is_planning
        return [SOURCE_COLOURS[source] for source in self.sources[row]] if is_planning else []


def tile(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Return one picture with all others in a grid, as wide as it is high or wider by one column."""
    num_columns = math.ceil(math.sqrt(len(pictures)))
    blank = np.zeros_like(pictures[0])
    padded = [*pictures, *[blank] * (-len(pictures) % num_columns)]
    rows = [np.concatenate(padded[i : i + num_columns], axis=1) for i in range(0, len(padded), num_columns)]
    return np.concatenate(rows, axis=0)
