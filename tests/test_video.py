"""Videos have the frames they were given, or do not exist."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from gq import video
from gq.video import VideoWriter, draw_overlay, writer_path

SOURCE = Path(__file__).parents[1] / "src"


def moving_frames(num_frames: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """A bright square that moves over a grey ground."""
    frames = []
    for index in range(num_frames):
        frame = np.full((height, width, 3), 100, np.uint8)
        frame[8:24, index % (width - 16) : index % (width - 16) + 16] = (250, 40, 40)
        frames.append(frame)
    return frames


def write(path: Path, frames: Iterable[np.ndarray], fps: float = 30) -> None:
    with VideoWriter(path, fps) as writer:
        for frame in frames:
            writer.add(frame)


def read(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("num_frames", [1, 2, 47])
def test_an_mp4_decodes_to_the_frames_added(num_frames: int, tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.mp4"
    frames = moving_frames(num_frames)
    write(path, frames, fps=25)
    decoded = read(path)
    assert len(decoded) == num_frames
    assert [file.name for file in path.parent.iterdir()] == ["a.mp4"]
    for expected, shown in zip(frames, decoded, strict=True):
        assert np.abs(expected.astype(int) - shown).mean() < 8
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 25
        assert float(stream.duration * stream.time_base) == pytest.approx(num_frames / 25)


def test_a_fractional_rate_is_kept(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", moving_frames(10), fps=125 / 3)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].average_rate == Fraction(125, 3)
    assert len(read(tmp_path / "a.mp4")) == 10


def test_odd_sizes_are_padded_by_one(tmp_path: Path) -> None:
    write(tmp_path / "odd.mp4", moving_frames(5, height=47, width=63))
    decoded = read(tmp_path / "odd.mp4")
    assert [frame.shape for frame in decoded] == [(48, 64, 3)] * 5
    assert np.abs(decoded[0][47].astype(int) - decoded[0][46]).mean() < 4  # not a black bar


def test_a_gif_has_the_frames_added_and_loops(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    write(path, moving_frames(12, height=47), fps=25)
    with Image.open(path) as image:
        assert (image.n_frames, image.size, image.info["duration"], image.info["loop"]) == (12, (64, 47), 40, 0)
    assert [file.name for file in tmp_path.iterdir()] == ["a.gif"]


@pytest.mark.parametrize("fps", [50, 1 / 0.024, 30, 7])
def test_a_gif_takes_as_long_as_its_frames_whatever_it_rounds_them_to(fps: float, tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    write(path, moving_frames(47), fps=fps)
    durations = []
    with Image.open(path) as image:
        for index in range(image.n_frames):
            image.seek(index)
            durations.append(image.info["duration"])
    assert sum(durations) == pytest.approx(1000 * 47 / fps, abs=5)
    assert min(durations) >= 20
    assert max(durations) - min(durations) <= 10


def test_a_gif_can_have_one_frame(tmp_path: Path) -> None:
    write(tmp_path / "a.gif", moving_frames(1), fps=25)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 1


def failing_frames() -> Iterator[np.ndarray]:
    yield from moving_frames(40)
    raise RuntimeError("the episode failed")


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_an_exception_leaves_nothing_and_keeps_the_old_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="the episode failed"):
        write(path, failing_frames())
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_a_video_without_frames_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="needs a frame"), VideoWriter(tmp_path / name, 30):
        pass
    assert list(tmp_path.iterdir()) == []


def test_frames_of_another_type_or_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="float32"):
        write(tmp_path / "a.mp4", [np.zeros((48, 64, 3), np.float32)])
    with pytest.raises(AssertionError, match=r"62.*64"):
        write(tmp_path / "a.mp4", [np.zeros((48, 64, 3), np.uint8), np.zeros((48, 62, 3), np.uint8)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits are POSIX")
@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_a_full_disk_is_an_error_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    program = f"""
import resource, pathlib, numpy
from gq.errors import GqError
from gq.video import VideoWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # stands for a full disk
noise = numpy.random.default_rng(0)
try:
    with VideoWriter(pathlib.Path({str(tmp_path / name)!r}), 30) as writer:
        for _ in range(100):
            writer.add(noise.integers(0, 255, (96, 96, 3), dtype=numpy.uint8))
except GqError as error:
    print("refused:", error, error.hint)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True
    )
    assert done.stdout.startswith("refused: cannot write"), done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_mp4_is_kept_where_h264_works(tmp_path: Path) -> None:
    assert writer_path(tmp_path / "a.mp4") == (tmp_path / "a.mp4", "")
    assert writer_path(tmp_path / "a.gif") == (tmp_path / "a.gif", "")


@pytest.fixture
def fresh_probe() -> Iterator[None]:
    video.h264_problem.cache_clear()
    yield
    video.h264_problem.cache_clear()


@pytest.mark.usefixtures("fresh_probe")
def test_without_an_h264_encoder_a_gif_is_written_and_the_reason_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video, "CODEC", "h264_missing")
    path, reason = writer_path(tmp_path / "a.mp4")
    assert path == tmp_path / "a.gif"
    assert reason.startswith("PyAV cannot encode h264_missing")


@pytest.mark.usefixtures("fresh_probe")
def test_without_pyav_a_gif_is_written_and_the_reason_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    path, reason = writer_path(tmp_path / "a.mp4")
    assert path.suffix == ".gif"
    assert "PyAV cannot be imported" in reason
    write(path, moving_frames(3))
    with Image.open(path) as image:
        assert image.n_frames == 3


def test_the_overlay_darkens_a_corner_and_leaves_the_rest() -> None:
    frame = np.full((480, 480, 3), 200, np.uint8)
    shown = draw_overlay(frame, ["time 1.23 s", "return-to-go 2400"])
    assert (frame == 200).all()
    assert (shown.shape, shown.dtype) == (frame.shape, frame.dtype)
    rows, columns = np.nonzero((shown != frame).any(axis=2))
    assert (rows.min(), columns.min()) == (0, 0)
    assert rows.max() < 80
    assert columns.max() < 240
    box = shown[: rows.max() + 1, : columns.max() + 1]
    assert (box == 66).all(axis=2).mean() > 0.5  # a third of the light
    assert (box == 255).all(axis=2).sum() > 100  # letters


def test_the_overlay_does_not_change_width_with_a_digit() -> None:
    frame = np.full((480, 480, 3), 200, np.uint8)
    widths = {int((draw_overlay(frame, [f"return {value}"])[0, :, 0] != 200).sum()) for value in (1000, 1111, 2384)}
    assert len(widths) == 1


def test_an_overlay_larger_than_the_frame_is_cut_off() -> None:
    frame = np.full((20, 30, 3), 200, np.uint8)
    shown = draw_overlay(frame, ["a very long line of text"] * 5)
    assert shown.shape == frame.shape
    assert (shown != frame).any(axis=2).mean() > 0.9


def test_the_overlay_is_fast() -> None:
    frame = np.full((480, 480, 3), 200, np.uint8)
    lines = ["Hopper-v5   episode 2 of 3", "time 3.21 s", "reward 3.02   return 1203.4", "return-to-go 2396.6"]
    draw_overlay(frame, lines)
    passing = fastest(lambda: np.linalg.norm(frame, axis=2))  # over all pixels
    assert fastest(lambda: draw_overlay(frame, lines)) < passing / 2


def fastest(work: Callable[[], object]) -> float:
    """Return the seconds of this thread that some work takes when nothing disturbs it."""
    times = []
    for _ in range(20):
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
    return min(times)
