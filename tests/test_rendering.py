"""Films show every episode, in real time, with the camera on the robot."""

import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from commandline import copy_run, gq, train_tiny
from gq import rendering, video
from gq.cli.output import Output
from gq.cli.report import record_video
from gq.envs.tasks import TASKS
from gq.errors import GqError, UsageError
from gq.rendering import VideoOptions, camera_option, render, tile
from gq.results.evaluate import evaluate
from gq.rollouts.episodes import EpisodeRequest, roll_out

pytestmark = pytest.mark.computes


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("trained"))


def decoded(path: Path) -> list[np.ndarray]:
    with av.open(path) as video:
        return [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]


def test_a_film_has_a_frame_every_stride_of_the_longest_episode(run: Path, tmp_path: Path) -> None:
    film = render(run, episodes=EpisodeRequest(2), video=VideoOptions(width=64, height=48), output=tmp_path / "a.mp4")
    assert film.path == tmp_path / "a.mp4"
    assert film.fps == pytest.approx(62.5)  # Hopper's step is 8 ms: every second one is nearest to 60 frames a second
    longest = max(episode.length for episode in film.episodes)
    frames = decoded(tmp_path / "a.mp4")
    assert len(frames) == film.num_frames == -(-longest // 2)
    assert frames[0].shape == (48, 128, 3), "two episodes side by side"


def test_a_gif_has_no_more_frames_than_players_show(run: Path, tmp_path: Path) -> None:
    film = render(run, video=VideoOptions(width=64, height=48), output=tmp_path / "a.gif")
    assert film.fps == pytest.approx(1 / 0.024)  # three steps of 8 ms; two would take 16 ms, and 20 are the least
    assert film.num_frames == -(-film.episodes[0].length // 3)


def test_two_films_at_once_have_names_of_their_own(run: Path, tmp_path: Path) -> None:
    copy = copy_run(run, tmp_path / "run")
    for _ in range(2):
        render(copy, video=VideoOptions(width=32, height=32, overlay=False))
    record_video(copy, Output(quiet=True))
    names = [path.name for path in (copy / "videos").iterdir()]
    assert all(re.fullmatch(r"\d{8}-\d{6}-\d{6}(-report)?\.mp4", name) for name in names), names
    assert len(names) == 3


def test_a_film_is_not_replaced_unasked(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, reason in (("a.mp4", ""), ("b.gif", "no h264 here")):
        monkeypatch.setattr(video, "h264_problem", lambda reason=reason: reason)
        (tmp_path / name).write_text("precious")
        command = ("render", run, "--size", "32x32", "--output", tmp_path / f"{name[0]}.mp4")
        refused = gq(*command)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert f"{name} is there already" in refused.stderr
        assert (tmp_path / name).read_text() == "precious"
        assert gq(*command, "--force").exit_code == 0
        assert (tmp_path / name).stat().st_size > 100


def test_a_run_that_was_renamed_meanwhile_is_not_begun_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = copy_run(run, tmp_path / "run")

    def rename_and_play(*arguments: Any, **options: Any) -> Any:
        copy.rename(tmp_path / "renamed")
        return roll_out(*arguments, **options)

    monkeypatch.setattr(rendering, "roll_out", rename_and_play)
    with pytest.raises(GqError, match="it was renamed or removed meanwhile"):
        render(copy, video=VideoOptions(width=32, height=32))
    assert not copy.exists()


def test_the_overlay_can_be_switched_off(run: Path, tmp_path: Path) -> None:
    films = {}
    for overlay in (True, False):
        path = tmp_path / f"{overlay}.mp4"
        render(run, video=VideoOptions(width=160, height=120, overlay=overlay), output=path)
        films[overlay] = decoded(path)[0].astype(int)
    difference = np.abs(films[True] - films[False])
    assert difference[:25, :60].mean() > 10, "text is at the top left"
    assert difference[60:].mean() < difference[:25, :60].mean() / 4, "the rest differs by compression only"


def test_the_same_seed_gives_the_same_episodes_as_evaluation(run: Path, tmp_path: Path) -> None:
    film = render(
        run,
        episodes=EpisodeRequest(targets=[50.0], seed=3),
        video=VideoOptions(width=64, height=64, fps=5),
        output=tmp_path / "a.gif",
    )
    measured = evaluate(run, episodes=EpisodeRequest(1, targets=[50.0], seed=3))
    assert measured.results[0].return_mean == pytest.approx(film.episodes[0].episode_return)


def test_the_camera_follows_the_robot_where_the_model_has_one() -> None:
    assert camera_option(TASKS["Hopper-v5"], None) == {"camera_name": "track"}
    assert camera_option(TASKS["Reacher-v5"], None) == {}
    with pytest.raises(UsageError, match="Hopper-v5 has no camera front") as refused:
        camera_option(TASKS["Hopper-v5"], "front")
    assert refused.value.hint == "it has: track"


@pytest.mark.parametrize(("num_pictures", "shape"), [(1, (2, 3)), (2, (2, 6)), (3, (4, 6)), (4, (4, 6)), (5, (4, 9))])
def test_pictures_are_tiled_in_reading_order(num_pictures: int, shape: tuple[int, int]) -> None:
    pictures = [np.full((2, 3, 3), index + 1, np.uint8) for index in range(num_pictures)]
    tiled = tile(pictures)
    assert tiled.shape == (*shape, 3)
    corners = tiled[::2, ::3, 0].flatten()
    assert corners[:num_pictures].tolist() == list(range(1, num_pictures + 1))
    assert not corners[num_pictures:].any()
