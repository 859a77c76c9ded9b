"""What can be saved of damaged files: broken off, with unreadable parts, or no data files at all."""

import os
import pickle
import shutil
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest

from corruptions import Stream, only, problems
from gq.data.reading import read_trajectories
from gq.errors import DataError
from gq.repair.repair import repair

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
needs_shared = pytest.mark.usefixtures("shared_data")


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"<!DOCTYPE html><html>404</html>", "not-hdf5"), (b"", "not-hdf5"), (b"\x89HDF\r\n\x1a\n\0\0", "truncated-file")],
)
def test_what_is_no_data_file_is_said(content: bytes, code: str, tmp_path: Path) -> None:
    (tmp_path / "hopper.hdf5").write_bytes(content)
    report = repair(tmp_path / "hopper.hdf5")
    assert problems(report) == {code}
    assert "fetch it again" in report.findings[0].message
    assert (report.num_episodes, report.layout) == (0, None)


def test_a_truncated_file_is_named_with_what_is_there(hopper: Stream, tmp_path: Path) -> None:
    path = hopper.write(tmp_path / "hopper.hdf5")
    size = path.stat().st_size
    os.truncate(path, size // 2)
    report = repair(path)
    assert only(report, "truncated-file").message == (
        f"{path} is truncated: it has {size // 2:,} of {size:,} bytes; "
        "fetch it again: an interrupted download or a saved error page looks like this"
    )
    with pytest.raises(DataError, match="nothing can be saved"):
        repair(path, output=tmp_path / "good.hdf5")


def test_episodes_in_damaged_parts_of_a_file_are_left_out(hopper: Stream, tmp_path: Path) -> None:
    path = tmp_path / "hopper.hdf5"
    with h5py.File(path, "w") as root:
        for name, values in hopper.columns.items():
            root.create_dataset(name, data=values, chunks=(100, *values.shape[1:]), compression="gzip", fletcher32=True)
        place = root["rewards"].id.get_chunk_info(2).byte_offset
    content = bytearray(path.read_bytes())
    content[place + 30] ^= 0xFF
    path.write_bytes(content)
    report = repair(path, output=tmp_path / "good.hdf5")
    assert "truncated-file" in problems(report)
    assert only(report, "truncated-file").count == 100
    repaired = read_trajectories(tmp_path / "good.hdf5")
    starts = np.array([0, *(end + 1 for end in hopper.ends[:-1])])
    ends = np.array(hopper.ends)
    touched = (starts < 300) & (ends >= 200)
    assert repaired.num_episodes == hopper.num_whole - touched.sum()
    assert set(repaired.rewards.tolist()) <= set(hopper.columns["rewards"].tolist())


def as_episodes(stream: Stream) -> list[dict[str, np.ndarray]]:
    starts = [0, *(end + 1 for end in stream.ends[:-1])]
    names = ("observations", "actions", "rewards", "terminals")
    return [
        {name: stream.columns[name][start : end + 1] for name in names}
        for start, end in zip(starts, stream.ends, strict=True)
    ]


def test_pickles_keep_what_comes_before_the_damage(hopper: Stream, tmp_path: Path) -> None:
    path = tmp_path / "hopper.pkl"
    content = pickle.dumps(as_episodes(hopper), protocol=4)
    path.write_bytes(content)
    report = repair(path)
    assert problems(report) == {"trailing-fragment"}  # the reader takes it for a whole episode
    assert (report.num_episodes, report.layout) == (hopper.num_whole, "pickle")
    path.write_bytes(content[: len(content) * 2 // 3])
    report = repair(path, output=tmp_path / "good.hdf5")
    assert problems(report) == {"truncated-file"}
    assert 0 < report.num_episodes < hopper.num_whole
    assert read_trajectories(tmp_path / "good.hdf5").num_episodes == report.num_episodes
    path.write_bytes(b"\x80\x04cos\nsystem\n\x8c\x02ls\x85R.")
    with pytest.raises(DataError, match=r"os\.system"):
        repair(path)


def test_a_pickle_that_was_cut_at_999_steps_is_put_together_again(cheetah: Stream, tmp_path: Path) -> None:
    episodes = as_episodes(cheetah)
    columns = {name: np.concatenate([episode[name] for episode in episodes]) for name in episodes[0]}
    bounds = [0, 1000, 1999, 2998, 3000]  # the old readers' trap
    wrong = [{name: values[a:b] for name, values in columns.items()} for a, b in pairwise(bounds)]
    (tmp_path / "halfcheetah.pkl").write_bytes(pickle.dumps(wrong))
    report = repair(tmp_path / "halfcheetah.pkl", output=tmp_path / "good.hdf5")
    assert problems(report) == {"iteration-timeouts", "missing-timeouts"}
    assert read_trajectories(tmp_path / "good.hdf5").lengths.tolist() == [1000, 1000, 1000]


def write_minari(path: Path, *, flag: str) -> Path:
    generator = np.random.default_rng(0)
    with h5py.File(path, "w") as root:
        for number in range(3):
            group = root.create_group(f"episode_{number}")
            group["observations"] = generator.standard_normal((51, 7))
            group["actions"] = generator.uniform(-1, 1, (50, 2)).astype(np.float32)
            group["rewards"] = generator.standard_normal(50)
            group[flag] = np.arange(50) == 49
    return path


def test_a_minari_file_without_truncations_is_read(tmp_path: Path) -> None:
    path = write_minari(tmp_path / "main_data.hdf5", flag="terminations")
    assert read_trajectories(path).num_episodes == 3
    report = repair(path)
    assert (problems(report), report.num_episodes, report.layout) == (set(), 3, "minari")


def test_what_is_wrong_with_an_unreadable_minari_file_is_said_once(tmp_path: Path) -> None:
    report = repair(write_minari(tmp_path / "main_data.hdf5", flag="truncations"))
    assert [finding.message for finding in report.findings] == [
        "3 of 3 episodes cannot be read and are left out",
        "no episode can be read",
    ]


@needs_shared
def test_minari_files_are_saved_in_part(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SHARED / "minari" / "mujoco" / "hopper" / "medium-v0" / "data", tmp_path / "data"))
    file = folder / "main_data.hdf5"
    for path in (folder, file):
        path.chmod(0o755)
    with h5py.File(file, "a") as root:
        del root["episode_3/actions"]
        values = root["episode_5/rewards"][:-4]
        del root["episode_5/rewards"]
        root["episode_5/rewards"] = values
    good = read_trajectories(SHARED / "minari" / "mujoco" / "hopper" / "medium-v0")
    with pytest.raises(DataError):
        read_trajectories(folder)
    report = repair(folder, output=tmp_path / "good.hdf5")
    assert {"truncated-file", "length-mismatch"} <= problems(report)
    repaired = read_trajectories(tmp_path / "good.hdf5")
    assert repaired.lengths.tolist() == [n for i, n in enumerate(good.lengths.tolist()) if i not in (3, 5)]
