"""Frames to mp4 or gif files, and a text box on frames. Frames are uint8 [H, W, 3]."""

import contextlib
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gq.errors import GqError
from gq.files import atomic_path

CODEC: Final = "h264"
MIN_GIF_FRAME_MS = 20  # players slow shorter frames down to 100 ms
MIN_FONT_SIZE = 11
LINES_PER_FRAME = 30  # text height as a share of the frame's
STRIP_CELLS = 40
Colour = tuple[int, int, int]
WHITE: Final[Colour] = (255, 255, 255)
BOX_DARKNESS = 3  # the box behind text divides the picture's light by this


class VideoWriter:
    """Write frames to a video: mp4 (h264), or gif for a path that ends in .gif.

    A context manager. The file appears when the block ends; when it raises, nothing is left behind. An mp4 pads odd
    sizes to even ones. A gif shows a frame for a multiple of 10 ms, at least 20, in real time up to 50 frames a second,
    and joins equal neighbours into one.

    Raises:
        GqError: the folder cannot be written or the disk is full.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps, self.num_frames = path, fps, 0
        self._is_gif = path.suffix.lower() == ".gif"
        self._shape: tuple[int, ...] = ()
        self._durations_ms: list[int] = []  # of a gif's frames

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self.path))
            self._file = _open(temporary, is_gif=self._is_gif)
            stack.push(self._finish)
            if not self._is_gif:
                # yuv420p is what every player shows; it needs even sizes.
                self._file.init_video_stream(CODEC, fps=float(self.fps), pixel_format="yuv420p")
            self._stack = stack.pop_all()
        return self

    def add(self, frame: np.ndarray) -> None:
        """Append a frame; all have the same size."""
        assert frame.dtype == np.uint8, frame.dtype
        self._shape = self._shape or frame.shape
        assert frame.ndim == 3, frame.shape
        assert frame.shape == self._shape, (frame.shape, self._shape)
        self.num_frames += 1
        if self._is_gif:
            # Differences of rounded ends, so that rounding does not add up.
            start, end = (10 * round(100 * index / self.fps) for index in (self.num_frames - 1, self.num_frames))
            self._durations_ms.append(max(MIN_GIF_FRAME_MS, end - start))
            self._file.write(frame, is_batch=False, bits=8, save_all=True, duration=self._durations_ms, loop=0)
        else:
            height, width = frame.shape[:2]
            self._file.write_frame(np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))

    def _finish(self, kind: type[BaseException] | None, *_details: object) -> None:
        if kind is None and self.num_frames:
            self._file.close()
            return
        if self._is_gif:
            self._file.images_to_write.clear()  # closing, and even forgetting, the file would write them
        with contextlib.suppress(Exception):
            self._file.close()
        assert kind, "a video needs a frame"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)


def _open(path: Path, *, is_gif: bool) -> Any:
    import imageio.v3 as imageio

    gif = {"plugin": "pillow", "extension": ".gif"}
    # With faststart the index comes first, so that browsers play what they have.
    mp4 = {"plugin": "pyav", "extension": ".mp4", "container": "mp4", "options": {"movflags": "faststart"}}
    settings: dict[str, Any] = gif if is_gif else mp4
    return imageio.imopen(path, "w", **settings)


def writer_path(path: Path) -> tuple[Path, str]:
    """Return the path to write a video to and "", or the path with .gif and why, if h264 cannot be encoded here."""
    if path.suffix.lower() == ".gif":
        return path, ""
    reason = h264_problem()
    return (path.with_suffix(".gif") if reason else path), reason


@functools.cache
def h264_problem() -> str:
    """Encode two frames; return why that is impossible, or ""."""
    try:
        import av  # imageio's plugin
    except (ImportError, OSError) as error:
        return f"PyAV cannot be imported ({error})"
    try:
        with tempfile.TemporaryDirectory() as folder, VideoWriter(Path(folder, "probe.mp4"), fps=30) as writer:
            for _ in range(2):
                writer.add(np.zeros((64, 64, 3), np.uint8))
    except (GqError, ValueError, OSError, av.FFmpegError) as error:  # ValueError: PyAV's unknown codec
        return f"PyAV cannot encode {CODEC} ({error})"
    return ""


def draw_overlay(frame: np.ndarray, lines: list[str], colours: Sequence[Colour] = ()) -> np.ndarray:
    """Return a copy of a frame with lines of text on a dark box in its top left corner.

    The text's size follows the frame's height; what does not fit is cut off.

    Args:
        colours: of a strip of cells below the text, which has room for `STRIP_CELLS`; the last is the last line's too.
    """
    size = max(MIN_FONT_SIZE, frame.shape[0] // LINES_PER_FRAME)
    typeface = _font(size)
    margin, line_height = size // 2, round(1.3 * size)
    text_width = max(typeface.getlength(line) for line in lines)
    step = 2 * size  # the box grows in steps, not with every digit
    cell, strip_height = max(size // 3, 2), line_height // 2 if colours else 0
    strip_width = cell * STRIP_CELLS if colours else 0
    width = 2 * margin + max(step * -(-int(text_width) // step), strip_width)
    height = 2 * margin + line_height * len(lines) + strip_height
    result = frame.copy()
    corner = result[:height, :width]
    box = Image.fromarray(corner // BOX_DARKNESS)
    draw = ImageDraw.Draw(box)
    for row, line in enumerate(lines):
        colour = colours[-1] if colours and row == len(lines) - 1 else WHITE
        draw.text((margin, margin + row * line_height), line, font=typeface, fill=colour)
    for index, colour in enumerate(colours):
        left, top = margin + index * cell, height - margin - strip_height
        draw.rectangle((left, top, left + cell - 2, top + strip_height - 1), fill=colour)
    corner[:] = np.asarray(box)
    return result


@functools.cache
def _font(size: int) -> Any:
    """Return Pillow's own font in pixels of height."""
    return ImageFont.load_default(size=size)
