"""Reading every layout into the same Trajectories, and refusing what must not be trained on."""

import json
import pickle
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gq.data.reading import read_trajectories, time_limits, write_canonical
from gq.data.rows import read_rows
from gq.data.trajectories import Trajectories
from gq.errors import DataError, GqError, UsageError

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
needs_shared = pytest.mark.usefixtures("shared_data")


def rows(lengths: list[int], *, terminated: list[bool], width: int = 11, num_actions: int = 3) -> dict[str, np.ndarray]:
    """Return flat arrays of random episodes in D4RL's layout, each ending in a terminal or a timeout."""
    generator = np.random.default_rng(sum(lengths))
    total = sum(lengths)
    ends = np.cumsum(lengths) - 1
    terminals, timeouts = np.zeros(total, bool), np.zeros(total, bool)
    terminals[ends], timeouts[ends] = terminated, np.logical_not(terminated)
    return {
        "observations": generator.standard_normal((total, width)).astype(np.float32),
        "actions": generator.uniform(-1, 1, (total, num_actions)).astype(np.float32),
        "rewards": generator.standard_normal(total).astype(np.float32),
        "terminals": terminals,
        "timeouts": timeouts,
    }


def write_hdf5(path: Path, arrays: dict[str, Any], **attributes: Any) -> Path:
    """Write arrays, by path within the file, and attributes."""
    with h5py.File(path, "w") as root:
        root.attrs.update(attributes)
        for name, array in arrays.items():
            root[name] = array
    return path


def write_minari(folder: Path, flat: dict[str, np.ndarray], lengths: list[int], **metadata: Any) -> Path:
    """Write the same episodes as Minari does: a group each, one more observation, float64, metadata beside."""
    folder.mkdir(parents=True)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    arrays = {}
    for number, (start, stop) in enumerate(pairwise(offsets)):
        observations = flat["observations"][start:stop].astype(np.float64)
        arrays[f"episode_{number}/observations"] = np.concatenate([observations, np.ones((1, observations.shape[1]))])
        arrays[f"episode_{number}/actions"] = flat["actions"][start:stop]
        arrays[f"episode_{number}/rewards"] = flat["rewards"][start:stop].astype(np.float64)
        arrays[f"episode_{number}/terminations"] = flat["terminals"][start:stop]
        arrays[f"episode_{number}/truncations"] = flat["timeouts"][start:stop]
    write_hdf5(folder / "main_data.hdf5", arrays)
    if metadata:
        (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder


def write_pickle(path: Path, flat: dict[str, np.ndarray], lengths: list[int], *, flag: str = "terminals") -> Path:
    """Write the same episodes as the Decision Transformer's list of dicts."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    episodes = [
        {
            "observations": flat["observations"][start:stop],
            "next_observations": flat["observations"][start:stop],
            "actions": flat["actions"][start:stop],
            "rewards": flat["rewards"][start:stop],
            flag: flat["terminals"][start:stop],
        }
        for start, stop in pairwise(offsets)
    ]
    path.write_bytes(pickle.dumps(episodes))
    return path


def assert_equal(found: Trajectories, expected: Trajectories) -> None:
    """Compare data, boundaries, dtypes and task."""
    for name in ("observations", "actions", "rewards", "terminals", "offsets"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other, err_msg=name)
    assert found.task == expected.task


LENGTHS = [5, 3, 9, 4, 2, 6, 7, 8, 3, 2, 5, 4]  # twelve, so that episode_10 sorts before episode_2 by name
TERMINATED = [number % 3 != 0 for number in range(12)]


def test_the_three_layouts_of_the_same_episodes_are_equal(tmp_path):
    flat = rows(LENGTHS, terminated=TERMINATED)
    d4rl = read_trajectories(write_hdf5(tmp_path / "hopper-medium-v2.hdf5", flat))
    assert d4rl.num_episodes == 12
    assert d4rl.lengths.tolist() == LENGTHS
    assert d4rl.terminals[d4rl.offsets[1:] - 1].tolist() == TERMINATED
    assert d4rl.terminals.sum() == sum(TERMINATED)
    assert d4rl.task == "Hopper-v5"
    assert d4rl.source == str(tmp_path / "hopper-medium-v2.hdf5")
    for array in (d4rl.observations, d4rl.actions, d4rl.rewards):
        assert array.dtype == np.float32
    np.testing.assert_array_equal(d4rl.observations, flat["observations"])
    minari = write_minari(tmp_path / "hopper" / "medium-v0" / "data", flat, LENGTHS)
    for path in (minari, minari.parent, minari / "main_data.hdf5"):
        assert_equal(read_trajectories(path), d4rl)
    assert_equal(read_trajectories(write_pickle(tmp_path / "hopper-medium-v2.pkl", flat, LENGTHS)), d4rl)
    assert_equal(read_trajectories(write_pickle(tmp_path / "hopper.pkl", flat, LENGTHS, flag="dones")), d4rl)


def test_content_decides_and_not_the_suffix(tmp_path):
    flat = rows(LENGTHS, terminated=TERMINATED)
    expected = read_trajectories(write_hdf5(tmp_path / "hopper.hdf5", flat))
    assert_equal(read_trajectories(write_hdf5(tmp_path / "hopper.pkl", flat)), expected)
    assert_equal(read_trajectories(write_pickle(tmp_path / "hopper.h5", flat, LENGTHS)), expected)


def test_float64_column_rewards_and_extra_groups_are_accepted(tmp_path):
    flat = rows(LENGTHS, terminated=TERMINATED)
    expected = read_trajectories(write_hdf5(tmp_path / "hopper.hdf5", flat))
    wide = {name: array.astype(np.float64) for name, array in flat.items()}
    for name in ("rewards", "terminals", "timeouts"):
        wide[name] = wide[name].reshape(-1, 1)
    wide |= {
        "infos/qpos": np.full((len(flat["rewards"]), 6), np.nan),
        "infos/action_log_probs": np.zeros(3),
        "metadata/algorithm": np.bytes_(b"SAC"),
        "metadata/iteration": 12,
        "next_observations": flat["observations"],
    }
    path = write_hdf5(tmp_path / "hopper_medium-v1.hdf5", wide, algorithm=np.bytes_(b"SAC"), seeds=np.arange(2))
    found = read_trajectories(path)
    assert_equal(found, expected)
    assert found.attributes == {"algorithm": "SAC", "seeds": [0, 1]}


def test_without_timeouts_every_full_episode_has_exactly_the_limit(tmp_path):
    flat = rows([1000, 1000, 1000, 400], terminated=[False, False, False, True])
    del flat["timeouts"]
    found = read_trajectories(write_hdf5(tmp_path / "hopper_medium.hdf5", flat))
    assert found.lengths.tolist() == [1000, 1000, 1000, 400]  # older readers: 1000, 999, 999, 402
    assert found.num_dropped_rows == 0


def test_without_timeouts_the_count_restarts_after_a_terminal(tmp_path):
    flat = rows([300, 1000, 1000, 1, 999, 250], terminated=[True, False, True, True, True, False])
    del flat["timeouts"]
    found = read_trajectories(write_hdf5(tmp_path / "hopper.hdf5", flat))
    assert found.lengths.tolist() == [300, 1000, 1000, 1, 999]
    assert found.terminals[found.offsets[1:] - 1].tolist() == [True, False, True, True, True]
    assert found.num_dropped_rows == 250
    reacher = {**flat, "observations": flat["observations"][:, :10], "actions": flat["actions"][:, :2]}
    found = read_trajectories(write_hdf5(tmp_path / "x.hdf5", reacher), task="reacher")  # its limit is 50
    assert found.lengths[:7].tolist() == [50] * 7
    assert found.task == "Reacher-v5"


def test_timeouts_that_are_never_set_count_as_absent(tmp_path):
    flat = rows([1000, 1000, 400], terminated=[False, False, True])
    flat["timeouts"][:] = False
    found = read_trajectories(write_hdf5(tmp_path / "hopper_medium-v1.hdf5", flat))
    assert found.lengths.tolist() == [1000, 1000, 400]


def test_without_timeouts_an_unknown_task_is_asked_for(tmp_path):
    flat = rows([10, 20], terminated=[True, True])
    del flat["timeouts"]
    path = write_hdf5(tmp_path / "data.hdf5", flat)
    with pytest.raises(UsageError, match="has no timeouts, and no known task") as caught:
        read_trajectories(path)
    assert "--task" in caught.value.hint
    assert read_trajectories(path, task="hopper-v5").lengths.tolist() == [10, 20]


def test_an_unfinished_tail_is_dropped_and_counted(tmp_path):
    flat = rows([10, 20, 7], terminated=[True, False, False])
    flat["timeouts"][-1] = False
    found = read_trajectories(write_hdf5(tmp_path / "hopper.hdf5", flat))
    assert found.lengths.tolist() == [10, 20]
    assert found.num_dropped_rows == 7
    assert len(found.rewards) == len(found.observations) == len(found.actions) == len(found.terminals) == 30
    np.testing.assert_allclose(found.returns_to_go()[10], flat["rewards"][10:30].sum(), rtol=1e-5)


def test_a_file_without_a_complete_episode_is_refused(tmp_path):
    flat = rows([500], terminated=[False])
    flat["timeouts"][:] = False
    with pytest.raises(DataError, match="no complete episode in 500 rows"):
        read_trajectories(write_hdf5(tmp_path / "hopper.hdf5", flat))
    del flat["timeouts"]
    with pytest.raises(DataError, match="no complete episode in 500 rows"):
        read_trajectories(write_hdf5(tmp_path / "hopper.hdf5", flat))


def test_a_minari_episode_without_flags_is_kept_as_cut(tmp_path):
    flat = rows([5, 4], terminated=[False, True])
    flat["timeouts"][:] = False
    found = read_trajectories(write_minari(tmp_path / "ant" / "data", flat, [5, 4]), task="Hopper-v5")
    assert found.lengths.tolist() == [5, 4]
    assert time_limits(found).nonzero()[0].tolist() == [4]


def test_minari_metadata_give_task_and_provenance(tmp_path):
    flat = rows([5], terminated=[True])
    specification = '{"id": "Hopper-v4", "kwargs": {"low": -Infinity}, "max_episode_steps": 1000}'
    metadata = {"env_spec": specification, "author": ["A", "B"], "dataset_id": "x/y-v0", "total_steps": 5}
    found = read_trajectories(write_minari(tmp_path / "data", flat, [5], **metadata))
    assert found.task == "Hopper-v4"
    assert found.attributes == {
        "dataset_id": "x/y-v0",
        "author": "A, B",
        "env_id": "Hopper-v4",
        "env_spec": specification,
    }
    folder = write_minari(tmp_path / "broken" / "data", flat, [5])
    (folder / "metadata.json").write_text("{")
    with pytest.raises(DataError, match=r"metadata\.json is damaged"):
        read_trajectories(folder)


def test_the_task_comes_from_argument_then_file_then_name(tmp_path):
    flat = rows([5], terminated=[True])
    recorded = write_hdf5(tmp_path / "hopper_a.hdf5", flat, env_id="Hopper-v4")
    assert read_trajectories(recorded, task="hopper-v5").task == "Hopper-v5"
    assert read_trajectories(recorded).task == "Hopper-v4"
    assert read_trajectories(write_hdf5(tmp_path / "hopper_b.hdf5", flat)).task == "Hopper-v5"
    assert read_trajectories(write_hdf5(tmp_path / "other.hdf5", flat)).task is None
    assert read_trajectories(write_hdf5(tmp_path / "c.hdf5", flat, env_id="Mine-v0")).task == "Mine-v0"
    with pytest.raises(UsageError, match="there is no task hoper"):
        read_trajectories(recorded, task="hoper")


@pytest.mark.parametrize(
    ("name", "task", "widths", "hint"),
    [
        ("ant_medium.hdf5", None, (27, 8), "the widths of Ant-v4: try --task Ant-v4"),
        ("ant_medium-v2.hdf5", None, (111, 8), "111 columns are Ant-v2 or v3"),
        ("x.hdf5", "Ant-v4", (105, 8), "the widths of Ant-v5: try --task Ant-v5"),
        ("x.hdf5", "Humanoid-v5", (376, 17), "the widths of Humanoid-v4: try --task Humanoid-v4"),
        ("x.hdf5", "Humanoid-v4", (348, 17), "Humanoid-v5 or HumanoidStandup-v5: try --task Humanoid-v5"),
        ("walker2d.hdf5", None, (11, 3), "Hopper-v5 or Hopper-v4: try --task Hopper-v5"),
        ("x.hdf5", "HalfCheetah-v5", (17, 5), "no task that gq knows"),
    ],
)
def test_widths_of_another_task_are_refused_with_both_and_the_fitting_task(tmp_path, name, task, widths, hint):
    flat = rows([5], terminated=[True], width=widths[0], num_actions=widths[1])
    message = rf"has {widths[0]} observation and {widths[1]} action columns, \w+-v\d has \d+ and \d+"
    with pytest.raises(DataError, match=message) as caught:
        read_trajectories(write_hdf5(tmp_path / name, flat), task=task)
    assert hint in caught.value.hint
    for path in (write_pickle(tmp_path / "x.pkl", flat, [5]), write_minari(tmp_path / "m" / "data", flat, [5])):
        with pytest.raises(DataError, match=message):
            read_trajectories(path, task=task or ("Ant-v5" if "ant" in name else "Walker2d-v5"))


def damaged(change: dict[str, Any]) -> dict[str, Any]:
    """Return two good episodes with some arrays replaced, or removed where the change is None."""
    flat = rows([10, 20], terminated=[True, False]) | change
    return {name: array for name, array in flat.items() if array is not None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": None}, r"has no rewards, but actions, observations, terminals, timeouts"),
        ({"terminals": None}, r"has no terminals, but"),
        ({"rewards": np.zeros(29, np.float32)}, r"differ in length: observations 30, actions 30, rewards 29"),
        ({"actions": np.zeros((30, 2, 3))}, r"actions has shape \(30, 2, 3\), expected \(rows, columns\)"),
        ({"actions": np.zeros(30)}, r"actions has shape \(30,\), expected \(rows, columns\)"),
        ({"rewards": np.zeros((30, 2))}, r"rewards has shape \(30, 2\), expected \(rows,\)"),
        ({"rewards": np.float32(0)}, r"rewards has shape \(\), expected \(rows,\)"),
        ({"actions": np.zeros((0, 3))}, r"actions is empty, shape \(0, 3\)"),
        ({"actions": np.zeros((30, 0))}, r"actions is empty, shape \(30, 0\)"),
        ({"rewards": np.array([b"x"] * 30)}, r"rewards holds \|S1, not numbers"),
        ({"rewards": np.zeros(30, complex)}, r"rewards holds complex128, not numbers"),
        ({"rewards": None, "rewards/image": np.zeros(3)}, r"rewards is a group, not one array"),
        ({"observations": None}, r"neither observations \(D4RL\) nor episode_0 \(Minari\) at its root, but actions"),
    ],
)
def test_a_wrong_array_is_refused_by_name(tmp_path, change, message):
    path = write_hdf5(tmp_path / "hopper.hdf5", damaged(change))
    with pytest.raises(DataError, match=message) as caught:
        read_trajectories(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"rewards": None},
        {"terminals": None},
        {"rewards": np.zeros(29, np.float32)},
        {"actions": np.zeros((30, 1, 3))},
        {"timeouts": np.full(30, np.nan)},
    ],
)
def test_training_refuses_with_the_error_of_a_problem_that_repair_sees(tmp_path, change):
    path = write_hdf5(tmp_path / "hopper.hdf5", damaged(change))
    _, problems = read_rows(path)
    (error,) = [problem.error for problem in problems if problem.error]
    with pytest.raises(DataError) as caught:
        read_trajectories(path)
    assert (str(caught.value), caught.value.hint) == (str(error), error.hint)


def test_a_problem_says_of_which_episode_it_is(tmp_path):
    flat = rows([10, 20], terminated=[True, False])
    folder = write_minari(tmp_path / "data", flat, [10, 20])
    with h5py.File(folder / "main_data.hdf5", "r+") as root:
        del root["episode_1/actions"]
    found, problems = read_rows(folder / "main_data.hdf5")
    assert found is not None
    assert found.labels == ["episode_0"]
    assert [(problem.episode, problem.loses_episode) for problem in problems] == [("episode_1", True), ("", False)]


@pytest.mark.parametrize(
    ("name", "position", "value", "message"),
    [
        ("observations", (12, 4), np.nan, "observations holds NaN at {0}, column 4 (1 such values in all)"),
        ("actions", (12, 2), -np.inf, "actions holds an infinite value at {0}, column 2 (1 such values in all)"),
        ("rewards", (slice(12, 15),), np.nan, "rewards holds NaN at {0} (3 such values in all)"),
        ("observations", (12, 4), 1e300, "observations holds an infinite value at {0}, column 4"),
    ],
)
def test_nan_and_infinity_are_refused_with_their_place(tmp_path, name, position, value, message):
    flat = {key: array.astype(np.float64) for key, array in rows([10, 20], terminated=[True, False]).items()}
    flat[name][position] = value
    with pytest.raises(DataError, match=re.escape(message.format("row 12"))):
        read_trajectories(write_hdf5(tmp_path / "hopper.hdf5", flat))
    with pytest.raises(DataError, match=re.escape(message.format("episode_1, step 2"))):
        read_trajectories(write_minari(tmp_path / "data", flat, [10, 20]))
    with pytest.raises(DataError, match=re.escape(message.format("episode 1, step 2"))):
        read_trajectories(write_pickle(tmp_path / "hopper.pkl", flat, [10, 20]))


def test_finite_values_whose_sum_is_large_are_accepted(tmp_path):
    flat = rows([10, 20], terminated=[True, False])
    flat["observations"][:] = 3e38
    assert read_trajectories(write_hdf5(tmp_path / "hopper.hdf5", flat)).num_episodes == 2


def test_an_episode_longer_than_the_limit_is_refused(tmp_path):
    flat = rows([10, 1001], terminated=[False, True])
    message = r"episode 1 has 1,001 steps, Hopper-v5 stops at 1,000"
    for path in (
        write_hdf5(tmp_path / "hopper.hdf5", flat),
        write_minari(tmp_path / "hopper" / "medium-v0" / "data", flat, [10, 1001]),
        write_pickle(tmp_path / "hopper.pkl", flat, [10, 1001]),
    ):
        with pytest.raises(DataError, match=message):
            read_trajectories(path)


def test_a_terminal_inside_an_episode_is_refused(tmp_path):
    flat = rows([10, 20], terminated=[True, False])
    flat["terminals"][14] = True
    for path in (write_minari(tmp_path / "data", flat, [10, 20]), write_pickle(tmp_path / "x.pkl", flat, [10, 20])):
        with pytest.raises(DataError, match="episode 1 goes on after a terminal at its step 4"):
            read_trajectories(path)


def test_minari_files_with_wrong_episodes_are_refused(tmp_path):
    flat = rows([10, 20], terminated=[True, False])
    wrong = {
        "too_few_observations": (
            "episode_1/observations",
            np.zeros((19, 11)),
            "differ in length: observations 19, actions 20",
        ),
        "other_width": (
            "episode_1/observations",
            np.zeros((21, 12)),
            "episode_1 has 12 observation and 3 action columns",
        ),
        "no_rewards": ("episode_1/rewards", None, "episode_1 has no rewards, but actions, observations"),
        "dataset": ("episode_1", np.zeros(3), "episode_1 is not a group of arrays"),
    }
    for name, (key, value, message) in wrong.items():
        folder = write_minari(tmp_path / name / "data", flat, [10, 20])
        with h5py.File(folder / "main_data.hdf5", "r+") as root:
            del root[key]
            if value is not None:
                root[key] = value
        with pytest.raises(DataError, match=message):
            read_trajectories(folder)


def test_pickles_that_hold_something_else_are_refused(tmp_path):
    path = tmp_path / "x.pkl"
    episode = {"observations": np.zeros((3, 11)), "actions": np.zeros((3, 3)), "rewards": np.zeros(3)}
    flagged = episode | {"terminals": np.zeros(3, bool)}
    wrong = {
        "holds a dict, not episodes": {"a": 1},
        "holds an empty list, not episodes": [],
        "holds a list, not episodes": [1, 2],
        "episode 1 has no terminals, but observations, actions, rewards": [flagged, episode],
        "episode 0: rewards is a list, not one array": [flagged | {"rewards": [0.0, 0.0, 0.0]}],
        "episode 0: the arrays differ in length": [flagged | {"rewards": np.zeros(4)}],
        "episode 1: observations is empty": [flagged, {name: array[:0] for name, array in flagged.items()}],
    }
    for message, stored in wrong.items():
        path.write_bytes(pickle.dumps(stored))
        with pytest.raises(DataError, match=message):
            read_trajectories(path)


def test_files_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "hopper.hdf5"
    wrong = {
        b"observations,actions\n1,2\n": "it is text that starts with 'observations,actions'",
        b"<!DOCTYPE html>\n<html>": "it is a web page",
        b"": "it is empty",
        b"PK\x03\x04\x00\x00\xff\xfe": "it is a zip archive",
        b"\x89HDF": "unknown content",
    }
    for content, message in wrong.items():
        path.write_bytes(content)
        with pytest.raises(
            DataError, match=re.escape(f"{path} is neither an HDF5 file nor a pickle: {message}")
        ) as caught:
            read_trajectories(path)
        assert caught.value.exit_code == 1
        assert caught.value.hint


def test_a_truncated_hdf5_says_how_much_is_there(tmp_path):
    path = write_hdf5(tmp_path / "hopper.hdf5", rows([500], terminated=[True]))
    whole = path.read_bytes()
    for length in (5000, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=f"is truncated: it has {length:,} of {len(whole):,} bytes") as caught:
            read_trajectories(path)
        assert "again" in caught.value.hint
    path.write_bytes(whole[:20])
    with pytest.raises(DataError, match="is damaged: "):
        read_trajectories(path)


def test_a_damaged_compressed_chunk_is_refused(tmp_path):
    flat = rows([500], terminated=[True])
    path = tmp_path / "hopper.hdf5"
    with h5py.File(path, "w") as root:
        for name, array in flat.items():
            root.create_dataset(name, data=array, compression="gzip")
        chunk = root["observations"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + 20 : chunk.byte_offset + 60] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(DataError, match="is damaged: "):
        read_trajectories(path)


def test_missing_paths_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match=r"there is no file .*absent\.hdf5") as caught:
        read_trajectories(tmp_path / "absent.hdf5")
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match=r"is a folder without main_data\.hdf5"):
        read_trajectories(tmp_path)


episode_lists = st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(episodes=episode_lists, widths=st.tuples(st.integers(1, 4), st.integers(1, 3)))
def test_the_canonical_file_reads_back_equal(tmp_path, episodes, widths):
    lengths, terminated = [length for length, _ in episodes], [flag for _, flag in episodes]
    flat = rows(lengths, terminated=terminated, width=widths[0], num_actions=widths[1])
    written = Trajectories(
        **{name: flat[name] for name in ("observations", "actions", "rewards", "terminals")},
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        source="somewhere",
        task="Mine-v0",
    )
    np.testing.assert_array_equal(time_limits(written), flat["timeouts"])
    path = tmp_path / "a" / "canonical.hdf5"
    write_canonical(path, written, timeouts=flat["timeouts"], attributes={"seed": 3, "note": "ä", "absent": None})
    found = read_trajectories(path, source="somewhere")
    assert_equal(found, written)
    assert found.source == "somewhere"
    assert found.num_dropped_rows == 0
    assert found.attributes == {"env_id": "Mine-v0", "source": "somewhere", "seed": 3, "note": "ä"}
    assert [file.name for file in path.parent.iterdir()] == ["canonical.hdf5"]
    with h5py.File(path) as root:
        assert {name: (root[name].dtype, root[name].chunks) for name in root} == {
            **dict.fromkeys(("observations", "actions", "rewards"), (np.float32, None)),
            **dict.fromkeys(("terminals", "timeouts"), (np.bool_, None)),
        }


def test_attributes_that_hdf5_cannot_hold_are_written_as_text(tmp_path):
    found = read_trajectories(write_hdf5(tmp_path / "hopper.hdf5", rows([5], terminated=[True])))
    attributes = {"a": "x\0\ud800", "b": {"c": 1}, "d": ["\ud800", "e"], "f": [1, "g"], "h": [1, 2]}
    write_canonical(tmp_path / "x.hdf5", found, timeouts=time_limits(found), attributes=attributes)
    stored = read_trajectories(tmp_path / "x.hdf5").attributes
    assert {name: stored[name] for name in attributes} == {
        "a": "x ?",
        "b": "{'c': 1}",
        "d": ["?", "e"],
        "f": "[1, 'g']",
        "h": [1, 2],
    }


def test_flags_that_do_not_mark_the_ends_are_a_programming_error(tmp_path):
    found = read_trajectories(write_hdf5(tmp_path / "hopper.hdf5", rows([5, 4], terminated=[True, False])))
    with pytest.raises(AssertionError, match="flags must mark the ends"):
        write_canonical(tmp_path / "x.hdf5", found, timeouts=np.zeros(9, bool), attributes={})


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of file sizes")
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write_hdf5(tmp_path / "hopper.hdf5", rows([900] * 9, terminated=[True] * 9))
    before = path.read_bytes()
    code = f"""
import resource
from pathlib import Path
from gq.data.reading import read_trajectories, time_limits, write_canonical
from gq.errors import GqError
path = Path({str(path)!r})
found = read_trajectories(path)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_canonical(path, found, timeouts=time_limits(found), attributes={{}})
except GqError as error:
    print(error, "|", error.hint)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert result.stdout.startswith(f"cannot write {path}: File too large | "), result.stdout + result.stderr
    assert result.stdout.count("\n") == 1
    assert (result.returncode, result.stderr) == (0, "")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_million_rows_without_timeouts_are_cut_at_the_limit(tmp_path):
    flat = rows([1000] * 1000, terminated=[False] * 1000, width=17, num_actions=6)
    path = write_hdf5(tmp_path / "halfcheetah.hdf5", {name: a for name, a in flat.items() if name != "timeouts"})
    lengths = read_trajectories(path).lengths
    assert (len(lengths), lengths.min(), lengths.max()) == (1000, 1000, 1000)


# The real files; the numbers are those of the table in their README


@needs_shared
@pytest.mark.parametrize(
    ("name", "num_rows", "num_episodes", "num_terminated", "num_dropped", "mean", "std", "task"),
    [
        ("hopper-medium-replay", 200_000, 968, 887, 203, 563, 798, "Hopper-v5"),
        ("hopper-medium-v0layout", 50_000, 74, 50, 109, 1777, 877, "Hopper-v5"),
        ("humanoid-medium", 23_371, 24, 1, 0, 7037, 1071, "Humanoid-v5"),
        ("ant-medium-replay", 20_000, 37, 22, 674, 918, 1135, "Ant-v5"),
        ("walker2d-medium", 100_000, 131, 92, 396, 2483, 809, "Walker2d-v5"),
    ],
)
def test_real_files_have_the_documented_episodes(
    name, num_rows, num_episodes, num_terminated, num_dropped, mean, std, task
):
    found = read_trajectories(SHARED / f"{name}.hdf5")
    assert found.num_transitions + found.num_dropped_rows == num_rows
    assert found.num_episodes == num_episodes
    assert found.terminals.sum() == num_terminated
    assert found.num_dropped_rows == num_dropped
    assert round(found.returns.mean()) == mean
    assert round(found.returns.std()) == std
    assert found.task == task
    assert found.lengths.max() <= 1000


@needs_shared
def test_boundaries_without_timeouts_equal_the_recorded_ones():
    found = read_trajectories(SHARED / "hopper-medium-v0layout.hdf5")
    with h5py.File(SHARED / "hopper-medium.hdf5") as root:
        flags = root["terminals"][:50_000] | root["timeouts"][:50_000]
    np.testing.assert_array_equal(found.offsets[1:] - 1, np.flatnonzero(flags))


@needs_shared
def test_the_real_pickle_minari_folder_and_hdf5_hold_the_same_episodes():
    pickled = read_trajectories(SHARED / "hopper-medium-20ep.pkl")
    minari = read_trajectories(SHARED / "minari" / "mujoco" / "hopper" / "medium-v0")
    whole = read_trajectories(SHARED / "hopper-medium.hdf5")
    assert pickled.num_episodes == 20
    assert pickled.num_transitions == 14_140
    assert pickled.terminals.sum() == 14
    assert round(pickled.returns.mean()) == 1909
    assert_equal(minari, pickled)
    assert_equal(whole.select(np.arange(20)), pickled)
    assert minari.attributes["dataset_id"] == "mujoco/hopper/medium-v0"


@needs_shared
def test_a_real_file_survives_the_canonical_form(tmp_path):
    replay = read_trajectories(SHARED / "ant-medium-replay.hdf5")
    write_canonical(tmp_path / "x.hdf5", replay, timeouts=time_limits(replay), attributes=replay.attributes)
    found = read_trajectories(tmp_path / "x.hdf5")
    assert_equal(found, replay)
    assert found.attributes == {**replay.attributes, "source": replay.source}


@needs_shared
def test_a_real_file_of_another_task_is_refused():
    with pytest.raises(GqError, match="has 11 observation and 3 action columns, Walker2d-v5 has 17 and 6") as caught:
        read_trajectories(SHARED / "hopper-medium-20ep.pkl", task="Walker2d-v5")
    assert caught.value.hint == "these are the widths of Hopper-v5 or Hopper-v4: try --task Hopper-v5"
