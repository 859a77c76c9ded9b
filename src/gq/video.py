"""Frames to mp4 or gif files, and a text box on frames. Frames are uint8 [H, W, 3]."""

import contextlib
import functools
import io
import itertools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gq.files import atomic_path

CODEC: Final = "h264"
MIN_GIF_FRAME_MS = 20  # players slow shorter frames down to 100 ms
MIN_FONT_SIZE = 11
LINES_PER_FRAME = 30  # text height as a share of the frame's
STRIP_CELLS = 40
Colour = tuple[int, int, int]
WHITE: Final[Colour] = (255, 255, 255)
BOX_DARKNESS = 3  # the box behind text divides the picture's light by this


class Mp4Encoder:
    """Encode frames as h264 in an mp4 container; an odd height or width repeats its last row or column."""

    def __init__(self, target: Path | BinaryIO, fps: float) -> None:
        import av

        self.container = av.open(str(target) if isinstance(target, Path) else target, "w", format="mp4")
        self.stream = self.container.add_stream(CODEC, rate=Fraction(fps).limit_denominator(1000))
        self.stream.pix_fmt = "yuv420p"  # what every player shows; it needs even sizes

    def add(self, frame: np.ndarray) -> None:
        """Append a frame."""
        import av

        height, width = frame.shape[:2]
        even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if not self.stream.codec_context.is_open:
            self.stream.height, self.stream.width = even.shape[:2]
        self.container.mux(self.stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))

    def finish(self) -> None:
        """Write what is pending and the index."""
        self.container.mux(self.stream.encode(None))
        self.container.close()

    def abandon(self) -> None:
        """Release the file without making it readable."""
        import av

        with contextlib.suppress(OSError, av.FFmpegError):
            self.container.close()


class GifEncoder:
    """Collect frames in 256 colours and write them as a gif that loops."""

    def __init__(self, target: Path, fps: float) -> None:
        self.target, self.fps = target, fps
        self.images: list[Image.Image] = []

    def add(self, frame: np.ndarray) -> None:
        """Append a frame."""
        self.images.append(Image.fromarray(frame).quantize())

    def finish(self) -> None:
        """Write the file."""
        first, *others = self.images
        # In ms; of a frame's end, not its length, so that rounding does not add up.
        ends = [10 * round(100 * index / self.fps) for index in range(len(self.images) + 1)]
        durations = [max(MIN_GIF_FRAME_MS, end - start) for start, end in itertools.pairwise(ends)]
        first.save(self.target, format="GIF", save_all=True, append_images=others, duration=durations, loop=0)

    def abandon(self) -> None:
        """Forget the frames."""
        self.images.clear()


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
        self._shape: tuple[int, ...] = ()

    def __enter__(self) -> Self:
        is_gif = self.path.suffix.lower() == ".gif"
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self.path))
            self._encoder = GifEncoder(temporary, self.fps) if is_gif else Mp4Encoder(temporary, self.fps)
            stack.push(self._finish)
            self._stack = stack.pop_all()
        return self

    def add(self, frame: np.ndarray) -> None:
        """Append a frame; all have the same size."""
        assert frame.dtype == np.uint8, frame.dtype
        self._shape = self._shape or frame.shape
        assert frame.ndim == 3, frame.shape
        assert frame.shape == self._shape, (frame.shape, self._shape)
        self._encoder.add(frame)
        self.num_frames += 1

    def _finish(self, kind: type[BaseException] | None, *_details: object) -> None:
        if kind is not None:
            self._encoder.abandon()
            return
        assert self.num_frames, "a video needs a frame"
        self._encoder.finish()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)


def writer_path(path: Path) -> tuple[Path, str]:
    """Return the path to write a video to and "", or the path with .gif and why, if h264 cannot be encoded here."""
    if path.suffix.lower() == ".gif":
        return path, ""
    reason = h264_problem()
    return (path.with_suffix(".gif") if reason else path), reason


@functools.cache
def h264_problem() -> str:
    """Encode two frames in memory; return why that is impossible, or ""."""
    try:
        import av
    except (ImportError, OSError) as error:
        return f"PyAV cannot be imported ({error})"
    try:
        encoder = Mp4Encoder(io.BytesIO(), fps=30)
        for _ in range(2):
            encoder.add(np.zeros((64, 64, 3), np.uint8))
        encoder.finish()
    except (ValueError, OSError, av.FFmpegError) as error:  # ValueError: PyAV's unknown codec
        return f"PyAV cannot encode {CODEC} ({error})"
    return ""


def draw_overlay(frame: np.ndarray, lines: list[str], colours: Sequence[Colour] = ()) -> np.ndarray:
    """Return a copy of a frame with lines of text on a dark box in its top left corner.

    The text's size follows the frame's height; what does not fit is cut off.

    Args:
        colours: of a strip of cells below the text, which has room for `STRIP_CELLS`; the last is the last line's too.
    """
    size = max(MIN_FONT_SIZE, frame.shape[0] // LINES_PER_FRAME)
    typeface = font(size)
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
def font(size: int) -> Any:
    """Return Pillow's own font in pixels of height."""
    return ImageFont.load_default(size=size)
