"""`gq repair`: what it says of damaged files, and that its copies are good and its originals untouched."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

import corruptions
from corruptions import Stream, changed, notes, only, problems, simulated, whole_rows
from gq.data.old_columns import EXACT_COLUMNS
from gq.data.reading import read_trajectories
from gq.datasets.names import resolve
from gq.envs.scores import origin_of, reference_for
from gq.envs.tasks import TASKS
from gq.errors import DataError, UsageError
from gq.files import sha256
from gq.repair.repair import repair

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
needs_shared = pytest.mark.usefixtures("shared_data")


# --- healthy files ----------------------------------------------------------------------------------------------------


@needs_shared
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hopper-medium.hdf5", (304, 1)),
        ("hopper-medium-20ep.pkl", (20, 0)),
        ("minari/mujoco/hopper/medium-v0", (20, 0)),
        ("halfcheetah-medium.hdf5", (100, 0)),
        ("humanoid-medium.hdf5", (24, 0)),
    ],
)
def test_healthy_files_have_no_problems(name: str, expected: tuple[int, int]) -> None:
    report = repair(SHARED / name)
    assert problems(report) == set()
    assert (report.num_episodes, report.num_fragments) == expected
    assert notes(report) <= {"trailing-fragment", "action-saturated", "constant-dimension"}


@needs_shared
def test_the_v0_layout_lacks_24_timeouts_and_is_repaired_to_the_v2_episodes(tmp_path: Path) -> None:
    report = repair(SHARED / "hopper-medium-v0layout.hdf5", output=str(tmp_path / "good.hdf5"))
    assert problems(report) == {"missing-timeouts"}
    assert only(report, "missing-timeouts").count == 24
    repaired = read_trajectories(tmp_path / "good.hdf5")
    good = read_trajectories(SHARED / "hopper-medium.hdf5")
    assert repaired.num_episodes == report.num_episodes == 74
    assert np.array_equal(repaired.offsets, good.offsets[:75])
    assert np.array_equal(repaired.observations, good.observations[: good.offsets[74]])
    with h5py.File(tmp_path / "good.hdf5") as root:
        assert root["timeouts"][()].sum() == 24
        assert root.attrs["env_id"] == "Hopper-v5"
        assert root.attrs["mujoco_version"] == "3.17.0"
        assert "n_episodes" not in root.attrs  # the original's, no longer true


def test_a_healthy_file_is_not_changed_by_a_repair(hopper: Stream, tmp_path: Path) -> None:
    original = hopper.write(tmp_path / "hopper.hdf5")
    report = repair(original, output=tmp_path / "copy.hdf5")
    assert problems(report) == set()
    assert notes(report) >= {"trailing-fragment"}
    first, second = read_trajectories(original), read_trajectories(tmp_path / "copy.hdf5")
    for name in ("observations", "actions", "rewards", "terminals", "offsets"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name


# --- shapes and types -------------------------------------------------------------------------------------------------


def test_odd_shapes_and_types_are_named_and_put_right(hopper: Stream, tmp_path: Path) -> None:
    columns = hopper.columns
    odd = changed(
        hopper,
        observations=columns["observations"].astype(np.float64),
        rewards=columns["rewards"][:, None],
        terminals=columns["terminals"].astype(np.int64)[:, None],
    )
    report = repair(odd.write(tmp_path / "hopper.hdf5"), output=tmp_path / "good.hdf5")
    assert problems(report) == {"bad-shape", "wrong-dtype"}
    assert [finding.message for finding in report.findings if finding.code == "bad-shape"] == [
        "rewards has the shape (rows, 1), expected (rows,)",
        "terminals has the shape (rows, 1), expected (rows,)",
    ]
    assert report.num_episodes == hopper.num_whole
    with h5py.File(tmp_path / "good.hdf5") as root:
        assert {root[name].dtype.name for name in ("observations", "actions", "rewards")} == {"float32"}
        assert {root[name].dtype.name for name in ("terminals", "timeouts")} == {"bool"}
        assert root["rewards"].ndim == 1
        assert np.array_equal(root["rewards"][()], columns["rewards"][whole_rows(hopper)])


def test_columns_of_unequal_length_keep_their_common_rows(hopper: Stream, tmp_path: Path) -> None:
    uneven = changed(hopper, rewards=hopper.columns["rewards"][:-100], actions=hopper.columns["actions"][:-30])
    report = repair(uneven.write(tmp_path / "hopper.hdf5"), output=tmp_path / "good.hdf5")
    assert problems(report) == {"length-mismatch"}
    assert report.num_transitions == hopper.num_rows - 100
    assert report.num_episodes == corruptions.cut_tail(hopper, 100).num_whole
    assert read_trajectories(tmp_path / "good.hdf5").num_episodes == report.num_episodes


def test_a_column_that_is_missing_or_holds_text_is_said(hopper: Stream, tmp_path: Path) -> None:
    path = corruptions.without(hopper, "rewards").write(tmp_path / "hopper.hdf5")
    assert only(repair(path), "bad-shape").message.startswith("rewards cannot be read, only observations (600 rows)")
    with pytest.raises(DataError, match="nothing can be saved"):
        repair(path, output=tmp_path / "good.hdf5")
    path = changed(hopper, actions=np.full(600, b"abc")).write(tmp_path / "hopper.hdf5")
    assert problems(repair(path)) == {"wrong-dtype"}


def test_without_terminals_falls_are_recognised(hopper: Stream, tmp_path: Path) -> None:
    stream = corruptions.without(hopper, "terminals", "timeouts")
    report = repair(stream.write(tmp_path / "hopper.hdf5"), output=tmp_path / "good.hdf5")
    assert problems(report) == {"bad-shape", "missing-terminals"}
    terminals = read_trajectories(tmp_path / "good.hdf5").terminals
    assert np.array_equal(terminals, hopper.columns["terminals"][: len(terminals)])


# --- values -----------------------------------------------------------------------------------------------------------


def test_episodes_with_nan_or_infinity_are_left_out_whole(hopper: Stream, tmp_path: Path) -> None:
    observations, rewards = hopper.columns["observations"].copy(), hopper.columns["rewards"].copy()
    inner, last = hopper.ends[3] - 2, hopper.ends[7]
    observations[inner, 4], rewards[last] = np.nan, np.inf
    path = changed(hopper, observations=observations, rewards=rewards).write(tmp_path / "hopper.hdf5")
    with pytest.raises(DataError, match="NaN"):
        read_trajectories(path)
    report = repair(path, output=tmp_path / "good.hdf5")
    assert problems(report) == {"non-finite"}
    assert only(report, "non-finite").rows == (inner, last)
    repaired = read_trajectories(tmp_path / "good.hdf5")
    gone = np.concatenate([np.arange(hopper.ends[i - 1] + 1, hopper.ends[i] + 1) for i in (3, 7)])
    kept = np.setdiff1d(whole_rows(hopper), gone)
    assert np.array_equal(repaired.rewards, hopper.columns["rewards"][kept])
    assert repaired.num_episodes == hopper.num_whole - 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("task", ["Hopper-v5", "Swimmer-v5"])
def test_a_column_of_nothing_but_nan_leaves_nothing(task: str, tmp_path: Path) -> None:
    stream = simulated(task, 1_200)
    observations = stream.columns["observations"].copy()
    observations[:, 2] = np.nan
    path = changed(stream, observations=observations).write(tmp_path / "data.hdf5", env_id=task)
    report = repair(path)
    assert only(report, "non-finite").count == 1_200
    assert report.health is None
    with pytest.raises(DataError, match="no whole episode"):
        repair(path, output=tmp_path / "good.hdf5")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("task", ["Hopper-v5", "Unknown-v5"])
def test_infinite_values_are_reported_without_warnings(task: str, hopper: Stream, tmp_path: Path) -> None:
    columns = {name: hopper.columns[name].copy() for name in ("observations", "actions", "rewards")}
    start = hopper.ends[3] + 1
    columns["observations"][start : start + 2, 3] = np.inf
    columns["actions"][start], columns["rewards"][start : start + 2] = np.inf, [np.inf, -np.inf]
    path = changed(hopper, **columns).write(tmp_path / "data.hdf5", env_id=task)
    assert only(repair(path, output=tmp_path / "good.hdf5"), "non-finite").rows == (start, start + 1)
    columns["observations"][:] = np.inf
    assert only(repair(changed(hopper, **columns).write(path, env_id=task)), "non-finite").count == 600


def test_actions_are_clipped_to_the_tasks_own_bound(tmp_path: Path) -> None:
    stream = simulated("Humanoid-v5", 120)
    actions = stream.columns["actions"].copy()
    actions[[7, 50], 3] = [0.9, -1.0]
    path = changed(stream, actions=actions).write(tmp_path / "humanoid.hdf5")
    report = repair(path, output=tmp_path / "good.hdf5", fragments="keep")
    assert "action-out-of-bounds" in problems(report)
    assert only(report, "action-out-of-bounds").rows == (7, 50)
    assert "±0.4" in only(report, "action-out-of-bounds").message
    repaired = read_trajectories(tmp_path / "good.hdf5").actions
    assert np.abs(repaired).max() == np.float32(0.4)
    assert np.array_equal(repaired, actions.clip(-0.4, 0.4))
    assert "action-out-of-bounds" not in problems(repair(tmp_path / "good.hdf5"))


def test_saturation_and_constant_columns_are_notes(cheetah: Stream, tmp_path: Path) -> None:
    actions, observations = cheetah.columns["actions"].copy(), cheetah.columns["observations"].copy()
    actions[:300, 1], actions[300:600, 2] = 1.0, -1.0
    report = repair(changed(cheetah, actions=actions).write(tmp_path / "halfcheetah.hdf5"), simulate="off")
    assert notes(report) == {"action-saturated"}
    assert only(report, "action-saturated").message.startswith("3% of the action components")
    observations[:, 3] = 0.25
    report = repair(changed(cheetah, observations=observations).write(tmp_path / "halfcheetah.hdf5"), simulate="off")
    assert notes(report) == {"constant-dimension"}
    assert only(report, "constant-dimension").rows == (3,)


def test_copies_of_episodes_are_left_out(hopper: Stream, tmp_path: Path) -> None:
    first_three = corruptions.keep_rows(hopper, np.arange(hopper.num_rows) <= hopper.ends[2])
    stream = corruptions.concatenate(first_three, corruptions.keep_rows(hopper, np.arange(600) <= hopper.ends[4]))
    report = repair(stream.write(tmp_path / "hopper.hdf5"), output=tmp_path / "good.hdf5")
    assert problems(report) == {"duplicate-episodes"}
    assert only(report, "duplicate-episodes").count == 3
    assert only(report, "duplicate-episodes").rows[0] == hopper.ends[2] + 1
    assert read_trajectories(tmp_path / "good.hdf5").num_episodes == 5
    assert repair(tmp_path / "good.hdf5").problems == ()


# --- flags and fragments ----------------------------------------------------------------------------------------------


def test_late_terminals_are_moved_back(hopper: Stream, tmp_path: Path) -> None:
    path = corruptions.shift_terminals(hopper, 1).write(tmp_path / "hopper.hdf5")
    report = repair(path, output=tmp_path / "good.hdf5")
    assert problems(report) == {"shifted-terminals"}
    assert only(report, "shifted-terminals").rows[:2] == (hopper.ends[0] + 1, hopper.ends[1] + 1)
    assert "one row late" in only(report, "shifted-terminals").message
    repaired = read_trajectories(tmp_path / "good.hdf5")
    assert repaired.num_episodes == hopper.num_whole
    assert np.array_equal(repaired.terminals, hopper.columns["terminals"][: repaired.num_transitions])


def test_terminals_on_the_time_limit_are_timeouts(cheetah: Stream, tmp_path: Path) -> None:
    stream = changed(cheetah, terminals=cheetah.columns["timeouts"], timeouts=np.zeros(3_000, bool))
    report = repair(stream.write(tmp_path / "halfcheetah.hdf5"), output=tmp_path / "good.hdf5")
    assert problems(report) == {"missing-timeouts"}
    assert "3 at the limit, but as terminals" in only(report, "missing-timeouts").message
    assert not read_trajectories(tmp_path / "good.hdf5").terminals.any()


def replay_file(cheetah: Stream, path: Path) -> tuple[Path, Stream]:
    """Write two whole episodes and two that a sampling iteration cut and marked as timeouts."""
    stream = corruptions.concatenate(cheetah, corruptions.cut_out(cheetah, 700, 2_000))
    timeouts = stream.columns["timeouts"].copy()
    timeouts[3_699] = True
    # Other rewards, so that no episode is a copy.
    actions = stream.columns["actions"].copy()
    actions[3_000:] = np.nextafter(actions[3_000:], 0)
    stream = changed(stream, timeouts=timeouts, actions=actions)
    return stream.write(path), stream


def test_fragments_of_sampling_iterations_are_dropped_kept_or_completed(cheetah: Stream, tmp_path: Path) -> None:
    path, stream = replay_file(cheetah, tmp_path / "halfcheetah-medium-replay.hdf5")
    report = repair(path, output=tmp_path / "dropped.hdf5")
    assert problems(report) == {"iteration-timeouts"}
    assert only(report, "iteration-timeouts").rows == (3_699,)
    assert (report.num_episodes, report.num_fragments) == (4, 1)
    assert read_trajectories(tmp_path / "dropped.hdf5").lengths.tolist() == [1000] * 4

    repair(path, output=tmp_path / "kept.hdf5", fragments="keep")
    assert read_trajectories(tmp_path / "kept.hdf5").lengths.tolist() == [1000, 1000, 1000, 700, 1000]
    with h5py.File(tmp_path / "kept.hdf5") as root:
        assert np.flatnonzero(root["fragments"][()]).tolist() == list(range(3_000, 3_700))
        assert root["timeouts"][3_699]
        assert "bootstrap_values" not in root

    report = repair(path, output=tmp_path / "completed.hdf5", fragments="bootstrap")
    with h5py.File(tmp_path / "completed.hdf5") as root:
        values = root["bootstrap_values"][()]
        assert np.array_equal(root["rewards"][()], stream.columns["rewards"])  # not mixed into the rewards
    assert np.flatnonzero(values).tolist() == [3_699]
    after = cheetah.columns["rewards"].reshape(3, 1000)[:, 680:].sum(axis=1)  # in the whole episodes
    assert after.min() - 10 < values[3_699] < after.max() + 10
    assert any("gq train does not use it" in words for words in report.repairs)


def test_timeouts_inside_episodes_are_taken_away(cheetah: Stream, tmp_path: Path) -> None:
    path = corruptions.mark_iterations(cheetah, 800).write(tmp_path / "halfcheetah.hdf5")
    report = repair(path, output=tmp_path / "good.hdf5")
    assert problems(report) == {"iteration-timeouts", "missing-timeouts"}
    assert only(report, "iteration-timeouts").rows == (799, 1599, 2399)
    assert read_trajectories(tmp_path / "good.hdf5").lengths.tolist() == [1000, 1000, 1000]


def test_a_beginning_in_mid_episode_is_a_problem_and_a_flagged_end_too(cheetah: Stream, tmp_path: Path) -> None:
    stream = corruptions.cut_tail(corruptions.begin_inside(cheetah, 250), 100)
    report = repair(stream.write(tmp_path / "halfcheetah.hdf5"))
    assert (problems(report), notes(report)) == ({"leading-fragment"}, {"trailing-fragment"})
    timeouts = stream.columns["timeouts"].copy()
    timeouts[-1] = True
    report = repair(changed(stream, timeouts=timeouts).write(tmp_path / "halfcheetah.hdf5"))
    assert problems(report) == {"leading-fragment", "trailing-fragment"}
    assert (report.num_episodes, report.num_fragments) == (1, 2)


def test_nothing_whole_is_an_error_that_names_keep(cheetah: Stream, tmp_path: Path) -> None:
    path = corruptions.cut_tail(cheetah, 2_500).write(tmp_path / "halfcheetah.hdf5")
    with pytest.raises(DataError) as caught:
        repair(path, output=tmp_path / "good.hdf5")
    assert "--fragments keep" in caught.value.hint
    with pytest.raises(DataError, match="no whole episode"):
        repair(path, output=tmp_path / "good.hdf5", fragments="bootstrap")
    assert list(tmp_path.iterdir()) == [path]
    repair(path, output=tmp_path / "good.hdf5", fragments="keep")
    assert read_trajectories(tmp_path / "good.hdf5").lengths.tolist() == [500]


# --- widths -----------------------------------------------------------------------------------------------------------


def widened(stream: Stream, width: int, kept: np.ndarray) -> Stream:
    """Return old observations, with zeros in the columns that newer versions leave out."""
    observations = np.zeros((stream.num_rows, width), np.float32)
    observations[:, kept] = stream.columns["observations"]
    return changed(stream, observations=observations)


@pytest.mark.parametrize(("task", "width"), [("Ant-v5", 111), ("Humanoid-v5", 376)])
def test_old_widths_are_mapped_exactly(task: str, width: int, tmp_path: Path) -> None:
    stream = corruptions.cut_tail(simulated(task, 1_100 if task == "Ant-v5" else 120), 2)
    old = widened(stream, width, EXACT_COLUMNS[task, width])
    name = task.split("-")[0].lower()
    path = old.write(tmp_path / f"{name}_medium-v2.hdf5")
    report = repair(path, output=tmp_path / "good.hdf5")
    assert problems(report) == {"dimension-mismatch"}
    assert report.task == task
    assert "exactly" in only(report, "dimension-mismatch").message
    rows = whole_rows(stream)
    repaired = read_trajectories(tmp_path / "good.hdf5")
    assert np.array_equal(repaired.observations, stream.columns["observations"][rows])
    assert repaired.task == task
    columns = old.columns["observations"].copy()
    columns[3, np.setdiff1d(np.arange(width), EXACT_COLUMNS[task, width])[0]] = 1.0
    report = repair(changed(old, observations=columns).write(tmp_path / f"{name}_medium-v2.hdf5"))
    assert "exactly" not in only(report, "dimension-mismatch").message


def test_27_columns_are_ant_v4(tmp_path: Path) -> None:
    stream = simulated("Ant-v5", 1_100)
    narrow = changed(stream, observations=stream.columns["observations"][:, :27])
    report = repair(narrow.write(tmp_path / "ant.hdf5"), output=tmp_path / "good.hdf5", fragments="keep")
    assert problems(report) == {"dimension-mismatch"}
    assert report.task == read_trajectories(tmp_path / "good.hdf5").task == "Ant-v4"
    assert "dimension-mismatch" not in problems(repair(tmp_path / "ant.hdf5", task="Ant-v4"))


def test_widths_of_another_robot_name_it(hopper: Stream, tmp_path: Path) -> None:
    report = repair(hopper.write(tmp_path / "walker2d.hdf5"))
    assert "try --task Hopper-v5" in only(report, "dimension-mismatch").message
    with pytest.raises(DataError):
        repair(tmp_path / "walker2d.hdf5", output=tmp_path / "good.hdf5")
    assert not (tmp_path / "good.hdf5").exists()
    assert problems(repair(tmp_path / "walker2d.hdf5", task="hopper")) == set()


# --- the copy ---------------------------------------------------------------------------------------------------------


def test_the_original_is_never_touched_nor_anything_else_overwritten(hopper: Stream, tmp_path: Path) -> None:
    original = corruptions.strip_timeouts(hopper).write(tmp_path / "hopper.hdf5")
    before = sha256(original)
    (tmp_path / "link.hdf5").symlink_to(original)
    (tmp_path / "hard.hdf5").hardlink_to(original)
    (tmp_path / "taken.hdf5").write_text("mine")
    (tmp_path / "free.hdf5.report.json").write_text("mine")
    for name in ("hopper.hdf5", "link.hdf5", "hard.hdf5"):
        with pytest.raises(UsageError, match="is the original"):
            repair(original, output=tmp_path / name, force=True)
    for name in ("taken.hdf5", "free.hdf5"):
        with pytest.raises(UsageError, match="exists"):
            repair(original, output=tmp_path / name)
    with pytest.raises(UsageError, match="is a folder"):
        repair(original, output=tmp_path, force=True)
    assert (tmp_path / "taken.hdf5").read_text() == "mine"
    repair(original, output=tmp_path / "taken.hdf5", force=True)
    assert read_trajectories(tmp_path / "taken.hdf5").num_episodes == hopper.num_whole
    assert sha256(original) == before


def test_data_of_an_environment_that_gq_does_not_know_are_copied(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    is_end = np.arange(200) % 50 == 49
    columns = {
        "observations": generator.standard_normal((200, 39)).astype(np.float32),
        "actions": generator.uniform(-1, 1, (200, 28)).astype(np.float32),
        "rewards": np.zeros(200, np.float32),
        "terminals": np.zeros(200, bool),
        "timeouts": is_end,
    }
    stream = corruptions.from_columns(columns)
    report = repair(stream.write(tmp_path / "door.hdf5", env_id="AdroitHandDoor-v1"), output=tmp_path / "good.hdf5")
    assert report.problems == ()
    found = read_trajectories(tmp_path / "good.hdf5")
    assert (found.task, found.num_episodes) == ("AdroitHandDoor-v1", 4)


def test_a_copy_records_d4rl_as_its_source_however_the_file_was_named(hopper: Stream, tmp_path: Path) -> None:
    entry = resolve("hopper-medium-v2")
    entry.path.parent.mkdir(parents=True)
    hopper.write(entry.path, env_id="Hopper-v5")
    hopper.write(entry.refused_path, env_id="Hopper-v5")
    once = hopper.write(tmp_path / "hopper-a.hdf5", source=entry.id)
    again = hopper.write(tmp_path / "hopper-b.hdf5", source="elsewhere")
    sources = {"hopper-medium-v2": entry.id, str(entry.refused_path): entry.id, str(once): entry.id}
    for name, source in {**sources, str(again): str(again)}.items():
        repair(name, output=tmp_path / "good.hdf5", force=True)
        found = read_trajectories(tmp_path / "good.hdf5")
        assert found.attributes["source"] == source
        reference = reference_for(TASKS["Hopper-v5"], origin_of("good.hdf5", found.attributes))
        assert reference is not None
        assert (reference.name == "d4rl") == (source == entry.id)


def test_the_report_beside_a_copy_says_what_was_done(hopper: Stream, tmp_path: Path) -> None:
    path = corruptions.shift_terminals(hopper, 1).write(tmp_path / "hopper.hdf5", license="MIT", return_mean=5.0)
    report = repair(path, output=tmp_path / "good.hdf5")
    stored = json.loads((tmp_path / "good.hdf5.report.json").read_text())
    assert stored == json.loads(json.dumps(report.document()))
    assert list(stored)[:5] == ["file", "episodes", "fragments", "findings", "output"]
    assert stored["output"] == str(tmp_path / "good.hdf5")
    assert set(stored["findings"][0]) >= {"code", "count", "rows", "message"}
    with h5py.File(tmp_path / "good.hdf5") as root:
        assert root.attrs["repaired_from_sha256"] == sha256(path)
        assert "put terminals on the last rows of episodes" in json.loads(root.attrs["repairs"])
        assert root.attrs["license"] == "MIT"
        assert "return_mean" not in root.attrs
