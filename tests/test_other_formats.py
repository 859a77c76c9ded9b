"""Data as other programs write them: robomimic, d3rlpy 2, tables of Arrow and Parquet, Minari without last rows."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from gq.data import hdf5, tables
from gq.data.hdf5 import ForeignError
from gq.data.reading import read_trajectories
from gq.data.trajectories import Trajectories
from gq.datasets.loading import download
from gq.datasets.names import resolve
from gq.envs.specs import Record
from gq.errors import DataError, GqError
from gq.files import sha256
from gq.repair.repair import repair

LENGTHS = (5, 3, 9, 4, 2, 6, 7, 8, 3, 2, 5, 4)  # twelve, so that 10 sorts before 2 by name
FALLS = [number % 3 != 0 for number in range(12)]


def made() -> list[dict[str, np.ndarray]]:
    """Return random episodes of Hopper."""
    generator = np.random.default_rng(0)
    return [
        {
            "observations": generator.standard_normal((length, 11)).astype(np.float32),
            "actions": generator.uniform(-1, 1, (length, 3)).astype(np.float32),
            "rewards": generator.standard_normal(length).astype(np.float32),
            "terminals": np.arange(length) == (length - 1 if falls else -1),
        }
        for length, falls in zip(LENGTHS, FALLS, strict=True)
    ]


def joined(name: str) -> np.ndarray:
    return np.concatenate([episode[name] for episode in made()])


def check(found: Trajectories, *, falls: list[bool] = FALLS) -> None:
    """Compare data with what `made` makes."""
    for name in ("observations", "actions", "rewards"):
        np.testing.assert_array_equal(getattr(found, name), joined(name))
    assert found.lengths.tolist() == list(LENGTHS)
    assert found.terminals[found.offsets[1:] - 1].tolist() == falls
    assert found.terminals.sum() == sum(falls)


def write_robomimic(path: Path, **settings: Any) -> Path:
    with h5py.File(path, "w") as root:
        root.create_group("data").attrs["env_args"] = json.dumps(settings)
        for number, episode in enumerate(made()):
            group = root.create_group(f"data/demo_{number}")
            group["obs/a_position"], group["obs/velocity"] = np.split(episode["observations"], [5], axis=1)
            group["actions"], group["rewards"] = episode["actions"], episode["rewards"]
            group["dones"] = episode["terminals"].astype(np.int64)
    return path


def write_d3rlpy(path: Path) -> Path:
    with h5py.File(path, "w") as root:
        root["columns"] = ["observations", "actions", "rewards", "terminated"]
        root["num_episodes"], root["version"] = len(LENGTHS), "2.1"
        for number, episode in enumerate(made()):
            root[f"observations_{number}"], root[f"actions_{number}"] = episode["observations"], episode["actions"]
            root[f"rewards_{number}"] = episode["rewards"][:, None]
            root[f"terminated_{number}"] = FALLS[number]
    return path


def write_minari_tables(folder: Path, form: str, *, keys: bool = False) -> Path:
    """Write episodes as Minari's storages do: one row more than steps, the actions padded."""
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    dataset = pytest.importorskip("pyarrow.dataset")

    def vectors(values: np.ndarray) -> Any:
        kind = arrow.list_(arrow.from_numpy_dtype(values.dtype), values.shape[1])
        return arrow.FixedSizeListArray.from_arrays(values.reshape(-1), type=kind)

    for number, episode in enumerate(made()):
        padded = {name: np.pad(v, ((0, 1), *(((0, 0),) * (v.ndim - 1)))) for name, v in episode.items()}
        observations = padded["observations"].astype(np.float64)
        parts = np.split(observations, [5], axis=1)
        batch = arrow.RecordBatch.from_pydict(
            {
                "observations": arrow.StructArray.from_arrays([vectors(part) for part in parts], names=["a", "b"])
                if keys
                else vectors(observations),
                "actions": vectors(padded["actions"]),
                "rewards": padded["rewards"].astype(np.float64),
                "terminations": padded["terminals"],
                "truncations": np.zeros(len(observations), bool),
            }
        )
        dataset.write_dataset(batch, folder / "data" / str(number), format=form)
        (folder / "data" / str(number) / "metadata.json").write_text("{}")
    metadata = {"env_spec": json.dumps({"id": "Hopper-v5", "max_episode_steps": 1000}), "data_format": form}
    (folder / "data" / "metadata.json").write_text(json.dumps(metadata))
    return folder


def write_parquet(path: Path, columns: dict[str, Any]) -> Path:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")

    parquet.write_table(arrow.table(columns), path)
    return path


def flat() -> dict[str, Any]:
    """Return the columns of a table with a row for each step."""
    ends = np.cumsum(LENGTHS) - 1
    timeouts = np.zeros(sum(LENGTHS), bool)
    timeouts[ends] = np.logical_not(FALLS)
    return {
        "observations": list(joined("observations")),
        "actions": list(joined("actions")),
        "rewards": joined("rewards"),
        "terminals": joined("terminals"),
        "timeouts": timeouts,
    }


def test_demonstrations_of_robomimic_are_read_with_their_keys_side_by_side(tmp_path: Path) -> None:
    check(read_trajectories(write_robomimic(tmp_path / "a.hdf5"), task="Hopper-v5"))
    found = read_trajectories(write_robomimic(tmp_path / "b.hdf5", env_name="Hopper-v5", type=2, env_kwargs={}))
    check(found)
    assert found.task == "Hopper-v5"


def test_success_before_the_end_ends_no_demonstration(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as root:
        root["data/demo_2/dones"][3:] = 1
    check(read_trajectories(path, task="Hopper-v5"))


def test_pictures_of_robomimic_are_refused_by_name(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as root:
        root["data/demo_0/obs/agentview_image"] = np.zeros((5, 4, 4, 3), np.uint8)
    with pytest.raises(DataError, match="obs/agentview_image holds pictures") as raised:
        read_trajectories(path, task="Hopper-v5")
    assert "low-dimensional" in raised.value.hint


def test_a_demonstration_without_rewards_is_refused_by_name(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as root:
        del root["data/demo_4/rewards"]
    with pytest.raises(DataError, match="demo_4 has no rewards"):
        read_trajectories(path, task="Hopper-v5")


def test_dumps_of_d3rlpy_are_read(tmp_path: Path) -> None:
    path = write_d3rlpy(tmp_path / "a.h5")
    check(read_trajectories(path, task="Hopper-v5"))
    with h5py.File(path, "a") as root:
        for number in range(12):
            first, second = np.split(root[f"observations_{number}"][()], [5], axis=1)
            del root[f"observations_{number}"]
            root[f"observations_{number}_0"], root[f"observations_{number}_1"] = first, second
    check(read_trajectories(path, task="Hopper-v5"))


def test_discrete_actions_of_d3rlpy_are_called_so(tmp_path: Path) -> None:
    path = write_d3rlpy(tmp_path / "a.h5")
    with h5py.File(path, "a") as root:
        for number, length in enumerate(LENGTHS):
            del root[f"actions_{number}"]
            root[f"actions_{number}"] = np.zeros((length, 1), np.int64)
    with pytest.raises(DataError, match="actions are discrete"):
        read_trajectories(path, task="Hopper-v5")
    assert any(finding.code == "discrete-actions" for finding in repair(path, task="Hopper-v5").findings)


@pytest.mark.parametrize("form", ["arrow", "parquet"])
@pytest.mark.parametrize("keys", [False, True])
def test_tables_of_minari_are_read_without_their_padding(form: str, keys: bool, tmp_path: Path) -> None:
    folder = write_minari_tables(tmp_path / "hopper" / "mine-v0", form, keys=keys)
    for path in (folder, folder / "data"):
        found = read_trajectories(path)
        check(found)
        assert found.task == "Hopper-v5"
    assert repair(folder).num_transitions == sum(LENGTHS)
    before = sha256(folder)
    (folder / "data" / "3" / "metadata.json").write_text("{ }")
    assert sha256(folder) != before


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    folder = write_minari_tables(tmp_path / "hopper", "arrow")
    (file,) = (folder / "data" / "7").glob("part-*")
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DataError, match="7 is damaged"):
        read_trajectories(folder)
    file.unlink()
    with pytest.raises(DataError, match="7 holds no table"):
        read_trajectories(folder)


def test_parquet_with_a_row_for_each_step_or_each_episode_is_read(tmp_path: Path) -> None:
    check(read_trajectories(write_parquet(tmp_path / "a.parquet", flat()), task="Hopper-v5"))
    episodes: dict[str, Any] = {
        name: [list(episode[name]) for episode in made()] for name in ("observations", "actions", "rewards")
    }
    episodes["dones"] = [list(episode["terminals"]) for episode in made()]
    check(read_trajectories(write_parquet(tmp_path / "b.parquet", episodes), task="Hopper-v5"))


def test_parquet_of_lerobot_is_read_by_its_own_names(tmp_path: Path) -> None:
    columns = flat()
    columns["episode_index"] = np.repeat(np.arange(12), LENGTHS)
    renamed = {
        "observation.state": columns["observations"],
        "action": columns["actions"],
        "next.reward": columns["rewards"],
        "episode_index": columns["episode_index"],
        "task": ["walk"] * sum(LENGTHS),
    }
    check(
        read_trajectories(write_parquet(tmp_path / "a.parquet", renamed), task="Hopper-v5"),
        falls=[True] * 12,  # where only ends are known, every end counts as one
    )


def test_parquet_with_missing_or_ragged_values_is_refused(tmp_path: Path) -> None:
    columns = flat()
    columns["actions"] = [list(action) for action in columns["actions"]]
    columns["actions"][4] = columns["actions"][4][:2]
    with pytest.raises(DataError, match="differ in length"):
        read_trajectories(write_parquet(tmp_path / "a.parquet", columns), task="Hopper-v5")
    columns["actions"][4] = None
    with pytest.raises(DataError, match="1 of 58 values of a column are missing"):
        read_trajectories(write_parquet(tmp_path / "b.parquet", columns), task="Hopper-v5")
    del columns["actions"]
    with pytest.raises(DataError, match="no actions"):
        read_trajectories(write_parquet(tmp_path / "c.parquet", columns), task="Hopper-v5")


def test_a_table_of_one_value_repeated_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"rewards": np.zeros(3_000_000, np.float32)})
    monkeypatch.setattr(hdf5, "FREE_BYTES", 1 << 20)
    monkeypatch.setattr(tables, "FREE_BYTES", 1 << 20)
    with pytest.raises(ForeignError, match="says that it holds"):
        read_trajectories(path, task="Hopper-v5")


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", flat())
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(GqError, match=r"Apache Arrow") as raised:
        read_trajectories(path, task="Hopper-v5")
    assert "gq[arrow]" in raised.value.hint


def test_minari_episodes_without_a_last_observation_are_used_whole(tmp_path: Path) -> None:
    path = tmp_path / "main_data.hdf5"
    with h5py.File(path, "w") as root:
        for number, (episode, (start, stop)) in enumerate(zip(made(), pairwise(np.cumsum([0, *LENGTHS])), strict=True)):
            group = root.create_group(f"episode_{number}")
            extra = np.ones((number % 2, 11), np.float32)  # every other episode has one
            group["observations"] = np.concatenate([episode["observations"], extra])
            group["actions"], group["rewards"] = episode["actions"], episode["rewards"]
            group["terminations"] = episode["terminals"]
            group["truncations"] = np.zeros(stop - start, bool)
    check(read_trajectories(path, task="Hopper-v5"))
    report = repair(path, task="Hopper-v5")
    finding = next(finding for finding in report.findings if finding.code == "length-mismatch")
    assert finding.count == 6
    assert report.num_transitions == sum(LENGTHS)
    with h5py.File(path, "a") as root:
        del root["episode_3/rewards"]
        root["episode_3/rewards"] = np.zeros(2)
    with pytest.raises(DataError, match="episode_3: the arrays differ in length"):
        read_trajectories(path, task="Hopper-v5")


def test_a_set_of_robotics_keeps_its_record_and_the_order_of_its_goals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {"id": "PointMaze_UMaze-v3", "max_episode_steps": 1_000_000, "kwargs": {"maze_map": [[1, 1], [1, 0]]}}
    folder = tmp_path / "minari" / "D4RL" / "pointmaze" / "umaze-v2" / "data"
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_text(json.dumps({"env_spec": json.dumps(spec), "dataset_id": "D4RL/pointmaze"}))
    with h5py.File(folder / "main_data.hdf5", "w") as root:
        for number, episode in enumerate(made()):
            group = root.create_group(f"episode_{number}")
            position, goal, rest = np.split(np.concatenate([episode["observations"], np.ones((1, 11))]), [2, 4], axis=1)
            group["observations/achieved_goal"], group["observations/desired_goal"] = position, goal
            group["observations/observation"] = rest
            group["actions"], group["rewards"] = episode["actions"], episode["rewards"]
            group["terminations"] = episode["terminals"]
            group["truncations"] = np.logical_not(episode["terminals"])
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    entry = resolve("pointmaze-umaze")
    download(entry.id)
    found = read_trajectories(entry.path)
    assert found.task == "PointMaze_UMaze-v3"
    assert Record.of(found.attributes) == Record("PointMaze_UMaze-v3", spec["kwargs"], 1_000_000)
    np.testing.assert_array_equal(found.observations[:, :7], joined("observations")[:, 4:])
    np.testing.assert_array_equal(found.observations[:, 7:9], joined("observations")[:, :2])
