"""Every end of an episode is found, and no other, on files whose truth is known."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import corruptions
from corruptions import CUT, LIMIT, TERMINAL, Stream, simulated
from gq.data.rows import Rows
from gq.envs.tasks import Task
from gq.repair import boundaries
from gq.repair.boundaries import BREAK, FOLLOWS, UNKNOWN, by_flags, examine, step_scores
from gq.repair.examination import Examined, examine_file
from gq.repair.replay import replay_transitions
from gq.repair.robots import ROBOTS, looks_initial, robot_of, terminates
from gq.repair.segments import Physics, begins_inside, cut

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
needs_shared = pytest.mark.usefixtures("shared_data")
FILES = {
    "hopper-medium": "Hopper-v5",
    "hopper-medium-replay": "Hopper-v5",
    "halfcheetah-medium": "HalfCheetah-v5",
    "walker2d-medium": "Walker2d-v5",
    "ant-medium-replay": "Ant-v5",
    "humanoid-medium": "Humanoid-v5",
}
NUM_ROWS = {"walker2d-medium": 2_600}  # its clipped velocities make the simulator slow


@pytest.fixture(autouse=True)
def few_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the simulator look at few steps of small files, so that the choice of steps is tested too."""
    monkeypatch.setattr(boundaries, "LEAST_LOOKS", 150)


@cache
def recorded(name: str) -> Stream:
    return corruptions.load(SHARED / f"{name}.hdf5", num_rows=NUM_ROWS.get(name, 3_600))


def unknown_end(rows: np.ndarray) -> np.ndarray:
    """Say of no row whether the step from there ends an episode."""
    return np.full(len(rows), UNKNOWN, np.int8)


def found_in(stream: Stream, path: Path, task: str, simulate: str = "auto") -> Examined:
    stream.write(path, env_id=task)
    return examine_file(path, None, simulate, lambda what, done, total: None)  # type: ignore[arg-type]


def kinds(examined: Examined) -> list[tuple[int, str, bool]]:
    """Return last row, kind of end and whether it begins inside, of every piece that was found."""
    s = examined.segments
    ends = np.where(s.terminals, TERMINAL, np.where(s.complete, LIMIT, CUT)).tolist()
    return list(zip(s.ends.tolist(), ends, s.inside.tolist(), strict=True))


def truth(stream: Stream) -> list[tuple[int, str, bool]]:
    return list(zip(stream.ends, stream.kinds, stream.inside, strict=True))


def codes(examined: Examined) -> set[str]:
    return {finding.code for finding in examined.findings if finding.is_problem}


DAMAGE: dict[str, tuple[Callable[[Stream], Stream], set[str]]] = {
    "nothing": (lambda s: s, set()),
    "no timeouts": (corruptions.strip_timeouts, {"missing-timeouts"}),
    "no flags": (corruptions.strip_flags, {"missing-timeouts", "missing-terminals"}),
    "late terminals": (lambda s: corruptions.shift_terminals(s, 1), {"shifted-terminals"}),
    "early terminals": (lambda s: corruptions.shift_terminals(s, -1), {"shifted-terminals"}),
    "marked iterations": (
        lambda s: corruptions.mark_iterations(s, 777),
        {"iteration-timeouts", "missing-timeouts"},
    ),
    "sampled by iteration": (
        lambda s: corruptions.sample_iterations(s, 1_777),
        {"iteration-timeouts", "trailing-fragment"},
    ),
    "begun in mid-episode": (
        lambda s: corruptions.strip_timeouts(corruptions.begin_inside(s, 437)),
        {"missing-timeouts", "leading-fragment"},
    ),
    "cut and put together": (
        lambda s: corruptions.concatenate(corruptions.cut_tail(s, 777), corruptions.begin_inside(s, 1_234)),
        {"missing-timeouts", "leading-fragment", "duplicate-episodes"},
    ),
    "the same without flags": (
        lambda s: corruptions.strip_flags(DAMAGE["cut and put together"][0](s)),
        {"missing-timeouts", "missing-terminals", "leading-fragment", "duplicate-episodes"},
    ),
    "a piece missing": (
        lambda s: corruptions.strip_flags(corruptions.cut_out(s, 2_345, 2_445)),
        {"missing-timeouts", "missing-terminals", "leading-fragment"},
    ),
}


@needs_shared
@pytest.mark.parametrize("name", [name for name in FILES if name != "hopper-medium-replay"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_every_end_and_no_other_is_found_with_the_simulator(name: str, damage: str, tmp_path: Path) -> None:
    change, possible = DAMAGE[damage]
    stream = change(recorded(name))
    examined = found_in(stream, tmp_path / "data.hdf5", FILES[name])
    assert kinds(examined) == truth(stream)
    assert examined.evidence.method == "simulator"
    assert codes(examined) <= possible
    if damage in ("no timeouts", "begun in mid-episode") and LIMIT in stream.kinds:
        assert "missing-timeouts" in codes(examined)
    if "terminals" in damage and TERMINAL in stream.kinds:
        assert codes(examined) == {"shifted-terminals"}
    if damage in ("marked iterations", "sampled by iteration"):
        assert "iteration-timeouts" in codes(examined)


@needs_shared
@pytest.mark.parametrize("name", FILES)
def test_statistics_alone_find_every_reset(name: str, tmp_path: Path) -> None:
    for change in (corruptions.strip_timeouts, corruptions.strip_flags, DAMAGE["late terminals"][0]):
        stream = change(recorded(name))
        examined = found_in(stream, tmp_path / "data.hdf5", FILES[name], simulate="off")
        assert examined.segments.ends.tolist() == list(stream.ends)
        assert examined.evidence.method == "statistics"
        assert examined.evidence.num_replayed == 0


@needs_shared
@pytest.mark.parametrize("name", FILES)
def test_scores_separate_resets_for_a_robot_that_is_not_known(name: str) -> None:
    stream = recorded(name)
    scores = step_scores(stream.columns["observations"], stream.columns["actions"], None)
    resets = np.array(stream.ends[:-1])
    assert np.delete(scores, resets).max() < scores[resets].min() + 0.2  # measured on these files


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), task=st.sampled_from(["Hopper-v5", "HalfCheetah-v5"]))
def test_ends_are_found_after_any_damage(data: st.DataObject, task: str, tmp_path: Path) -> None:
    stream = simulated(task, 3_300)
    for _ in range(data.draw(st.integers(0, 4), label="number of cuts")):
        start = data.draw(st.integers(0, stream.num_rows - 200), label="cut at")
        stream = corruptions.cut_out(stream, start, start + data.draw(st.integers(5, 150), label="rows"))
    if data.draw(st.booleans(), label="another one behind it"):
        stream = corruptions.concatenate(stream, corruptions.begin_inside(simulated(task, 1_200), 30))
    flags: dict[str, Callable[[Stream], Stream]] = {
        "as they are": lambda s: s,
        "no timeouts": corruptions.strip_timeouts,
        "none": corruptions.strip_flags,
        "by iteration": lambda s: corruptions.mark_iterations(s, 400),
    }
    stream = flags[data.draw(st.sampled_from(sorted(flags)), label="flags")](stream)
    if min(np.diff(stream.ends, prepend=-1)) > 2 and "timeouts" in stream.columns:
        stream = corruptions.shift_terminals(stream, data.draw(st.sampled_from([0, 1, -1]), label="shift"))
    examined = found_in(stream, tmp_path / "data.hdf5", task)
    assert kinds(examined) == truth(stream)


def test_three_episodes_of_1000_steps_without_timeouts_are_three_of_1000(tmp_path: Path) -> None:
    stream = corruptions.strip_timeouts(simulated("HalfCheetah-v5", 3_000))
    for simulate in ("auto", "all", "off"):
        examined = found_in(stream, tmp_path / "data.hdf5", "HalfCheetah-v5", simulate)
        assert np.diff(examined.segments.offsets).tolist() == [1000, 1000, 1000]
        assert examined.segments.complete.all()


def test_episodes_that_all_begin_in_the_middle_are_fragments_of_a_known_environment(tmp_path: Path) -> None:
    stream = corruptions.keep_rows(simulated("HalfCheetah-v5", 3_000), np.arange(3_000) % 1000 >= 600)
    assert [end + 1 for end in stream.ends] == [400, 800, 1200]
    examined = found_in(corruptions.strip_flags(stream), tmp_path / "data.hdf5", "HalfCheetah-v5")
    assert examined.segments.ends.tolist() == list(stream.ends)
    assert examined.segments.inside.tolist() == [True, True, True]
    offsets = examined.segments.offsets
    nowhere = np.zeros(stream.num_rows, bool)
    physics = Physics(limit=None, ends_by_itself=unknown_end, initial=nowhere, is_standard=True)
    assert begins_inside(physics, offsets).all()
    assert not begins_inside(replace(physics, is_standard=False), offsets).any()  # resets may put another one there


@pytest.mark.parametrize(("task", "noise"), [("Hopper-v5", 0.05), ("Walker2d-v5", 0.02)])
def test_resets_that_differ_from_the_tasks_are_beginnings_where_episodes_ended_before(
    task: str, noise: float, tmp_path: Path
) -> None:
    stream = simulated(task, 600, reset_noise_scale=noise)
    examined = found_in(stream, tmp_path / "data.hdf5", task)
    assert examined.evidence.judge
    assert examined.evidence.judge.is_exact
    assert kinds(examined) == truth(stream)
    assert codes(examined) == set()


def test_an_end_is_no_lost_terminal_where_episodes_go_on_after_falls(tmp_path: Path) -> None:
    stream = simulated("Hopper-v5", 1_000, terminate_when_unhealthy=False, max_episode_steps=200)
    examined = found_in(stream, tmp_path / "data.hdf5", "Hopper-v5")
    assert examined.segments.ends.tolist() == [199, 399, 599, 799, 999]
    assert not examined.segments.terminals.any()
    assert "missing-terminals" not in codes(examined)


def unknown_rows(observations: np.ndarray, terminals: np.ndarray) -> Rows:
    """Return rows of a robot of which nothing is known."""
    zeros = np.zeros((len(observations), 2), np.float32)
    return Rows(
        layout="d4rl",
        observations=observations,
        actions=zeros,
        rewards=zeros[:, 0],
        terminals=terminals,
        timeouts=None,
        task=None,
        lost=zeros[:, 0] != 0,
    )


def test_next_observations_tell_without_a_known_robot() -> None:
    generator = np.random.default_rng(0)
    observations = generator.standard_normal((100, 4)).astype(np.float32)
    continues = np.ones(99, bool)
    continues[[29, 59]] = False
    evidence = examine(replace(unknown_rows(observations, np.zeros(100, bool)), continues=continues))
    assert evidence.method == "next_observations"
    assert np.flatnonzero(evidence.follows == BREAK).tolist() == [29, 59]


def test_a_jump_in_the_data_of_an_unknown_robot_is_found_and_flags_settle_the_rest() -> None:
    time = np.arange(600)
    observations = np.stack([np.sin(time / 9), np.cos(time / 9), np.sin(time / 5 + 1)], axis=1).astype(np.float32)
    observations += 0.001 * np.random.default_rng(0).standard_normal(observations.shape).astype(np.float32)
    observations[300:] += 0.7
    flagged = np.zeros(600, bool)
    flagged[449] = True
    evidence = examine(unknown_rows(observations, flagged))
    assert np.flatnonzero(evidence.follows == BREAK).tolist() == [299]
    assert evidence.follows[449] == UNKNOWN  # nothing speaks against the flag
    assert evidence.method == "statistics"


# --- cutting ----------------------------------------------------------------------------------------------------------


def cut_plainly(follows: list[int], terminals: list[int], timeouts: list[int] | None, limit: int | None = None):
    def flags(rows: list[int]) -> np.ndarray:
        return np.isin(np.arange(len(follows) + 1), rows)

    return cut(
        np.array(follows, np.int8),
        flags(terminals),
        None if timeouts is None else flags(timeouts),
        Physics(limit=limit, ends_by_itself=unknown_end),
    )


def test_flags_decide_where_nothing_is_known() -> None:
    segments = cut_plainly([-1] * 9, [3], [6])
    assert segments.offsets.tolist() == [0, 4, 7, 10]
    assert segments.complete.tolist() == [True, True, False]


def test_late_and_early_and_stray_terminals_are_told_apart() -> None:
    follows = np.ones(39, np.int8)
    follows[[9, 19, 29]] = 0
    segments = cut_plainly(follows.tolist(), [10, 18, 25], [])
    assert segments.late.tolist() == [10]
    assert segments.early.tolist() == [18]
    assert segments.stray.tolist() == [25]
    assert segments.terminals.tolist() == [True, True, False, False]


def test_the_limit_is_counted_from_each_episodes_own_first_row() -> None:
    assert cut_plainly([1] * 34, [], None, limit=10).offsets.tolist() == [0, 10, 20, 30, 35]
    assert cut_plainly([1] * 34, [14], None, limit=10).stray.tolist() == [14]


def test_without_a_task_the_longest_length_that_is_there_twice_is_the_limit() -> None:
    follows = np.ones(24, np.int8)
    follows[[9, 12, 22]] = 0
    segments = cut_plainly(follows.tolist(), [12], [])
    assert segments.limit == 10
    assert segments.complete.tolist() == [True, True, True, False]
    follows[9] = 1
    assert cut_plainly(follows.tolist(), [12], []).limit is None


def test_a_length_that_is_there_twice_by_chance_is_no_limit() -> None:
    segments = cut_plainly([-1] * 24, [2], [6, 12, 18, 24])  # 3 rows, then 4, 6, 6, 6
    assert (segments.limit, segments.misplaced_timeouts.tolist()) == (6, [6])
    assert segments.complete.tolist() == [True, False, True, True, True]
    segments = cut_plainly([-1] * 24, [], [2, 6, 12, 18, 22, 24])  # 3, 4, 6, 6, 4, 2
    assert segments.limit is None
    assert segments.complete.all()
    assert segments.misplaced_timeouts.tolist() == segments.unmarked.tolist() == []


# --- what is known of the robots --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ROBOTS))
def test_a_robot_is_what_the_simulator_says(name: str) -> None:
    from simulator import make

    robot = ROBOTS[name]
    env = make(f"{name}-v5")
    starts = np.stack([env.reset(seed=seed)[0] for seed in range(50)]).astype(np.float32)
    assert looks_initial(robot, starts).all()
    assert (terminates(robot, starts) == 0).all()
    env.action_space.seed(0)
    num_ends, following = 0, starts[-1]
    for _ in range(300):
        following, _, terminated, _, _ = env.step(env.action_space.sample())
        assert terminates(robot, following[None].astype(np.float32))[0] == terminated
        num_ends += terminated
        if terminated:
            env.reset()
    env.close()
    assert num_ends > 0 or name in ("HalfCheetah", "Ant")
    positions, velocities = robot.pairs
    assert len(positions) == len(velocities) == robot.num_positions - 4 * robot.is_free_body


def test_joints_move_by_their_velocities() -> None:
    stream = simulated("HalfCheetah-v5", 3_000)
    robot = robot_of("HalfCheetah-v4")
    assert robot is not None
    positions, velocities = robot.pairs
    observations = stream.columns["observations"].astype(np.float64)
    moved = np.diff(observations[:900, positions], axis=0)
    mean = (observations[:899, velocities] + observations[1:900, velocities]) / 2
    correlations = np.corrcoef(moved.T, mean.T)[: len(positions), len(positions) :]
    assert correlations.argmax(axis=1).tolist() == list(range(len(positions)))
    assert correlations.diagonal().min() > 0.8


@needs_shared
def test_hidden_velocities_are_carried_and_searched() -> None:
    stream = recorded("walker2d-medium")
    observations, actions = stream.columns["observations"], stream.columns["actions"]
    clipped = (np.abs(observations[:, 8:]) >= 10).any(axis=1)
    assert clipped.mean() > 0.5
    rows = np.flatnonzero(clipped[1:900]) + 1
    scales = boundaries_scales(observations)
    carried = replay_transitions("Walker2d-v5", observations, actions, rows, scales)
    follows = ~np.isin(rows, stream.ends)
    assert not carried.searched.any()
    assert carried.errors[follows].max() < 1e-3
    assert carried.errors[~follows].min(initial=9) > 5
    start = int(rows[rows > 200][0])  # a stream that begins where nothing led to
    alone = replay_transitions("Walker2d-v5", observations[start:], actions[start:], np.array([0]), scales)
    assert alone.searched.all()
    assert alone.errors[0] < 1e-3
    assert np.isnan(alone.predicted).all()  # they were found by looking at it


def boundaries_scales(observations: np.ndarray) -> np.ndarray:
    return np.median(np.abs(np.diff(observations, axis=0)), axis=0) + 1e-6


def test_other_physics_are_noticed_and_resets_still_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gq.envs.make as making

    make = making.make

    def make_heavier(task: Task, **options: object):
        env = make(task, **options)
        env.unwrapped.model.opt.gravity[:] *= 1.02
        env.unwrapped.model.actuator_gear[:] *= 1.02
        return env

    stream = corruptions.strip_flags(simulated("Hopper-v5", 3_300))
    same = found_in(stream, tmp_path / "data.hdf5", "Hopper-v5")
    monkeypatch.setattr(making, "make", make_heavier)
    other = found_in(stream, tmp_path / "data.hdf5", "Hopper-v5")
    assert same.evidence.judge
    assert other.evidence.judge
    assert same.evidence.judge.is_exact
    assert not other.evidence.judge.is_exact
    assert other.segments.ends.tolist() == same.segments.ends.tolist() == list(stream.ends)


@pytest.mark.parametrize("task", ["Reacher-v5", "Pusher-v5", "Swimmer-v5"])
def test_of_other_robots_flags_are_believed_and_the_limit_is_found(task: str, tmp_path: Path) -> None:
    stream = simulated(task, 2_400)
    examined = found_in(stream, tmp_path / "data.hdf5", task)
    assert kinds(examined) == truth(stream)
    assert codes(examined) == set()  # although unusual steps are not rare
    examined = found_in(corruptions.strip_timeouts(stream), tmp_path / "data.hdf5", task)
    assert examined.segments.ends.tolist() == list(stream.ends)
    assert codes(examined) == {"missing-timeouts"}


@needs_shared
def test_terminals_of_an_unknown_robot_that_are_all_late_are_noticed() -> None:
    stream = recorded("hopper-medium-replay")
    scores = step_scores(stream.columns["observations"], stream.columns["actions"], None)
    late = corruptions.shift_terminals(stream, 1).columns["terminals"]
    ends = np.array(stream.ends[:-1])
    for terminals in (stream.columns["terminals"], late):
        verdicts = by_flags(scores, terminals, np.zeros(stream.num_rows, bool), 1000)
        assert np.flatnonzero(verdicts != FOLLOWS).tolist()[1:-1] == ends.tolist()[1:-1]


def test_next_observations_made_from_the_next_rows_tell_nothing(tmp_path: Path) -> None:
    stream = corruptions.strip_timeouts(simulated("HalfCheetah-v5", 3_000))
    observations = stream.columns["observations"]
    made = np.concatenate([observations[1:], observations[:1]])
    examined = found_in(
        replace(stream, columns={**stream.columns, "next_observations": made}), tmp_path / "data.hdf5", "HalfCheetah-v5"
    )
    assert examined.evidence.method == "simulator"
    assert kinds(examined) == truth(stream)
    true = made.copy()
    true[list(stream.ends)] += 0.5
    examined = found_in(
        replace(stream, columns={**stream.columns, "next_observations": true}), tmp_path / "data.hdf5", "HalfCheetah-v5"
    )
    assert examined.evidence.method == "next_observations"
    assert kinds(examined) == truth(stream)


@pytest.mark.parametrize("num_rows", [1, 2, 5])
def test_a_handful_of_rows_is_a_fragment(num_rows: int, tmp_path: Path) -> None:
    stream = corruptions.cut_tail(simulated("HalfCheetah-v5", 3_000), 3_000 - num_rows)
    examined = found_in(stream, tmp_path / "data.hdf5", "HalfCheetah-v5")
    assert kinds(examined) == [(num_rows - 1, CUT, False)]


def test_where_the_simulator_cannot_tell_the_statistics_are_believed() -> None:
    judge = SimpleNamespace(verdicts=lambda rows, progress: np.array([UNKNOWN, BREAK, UNKNOWN], np.int8))
    follows, likely = np.ones(5, np.int8), np.array([1, 1, 1, 1, 0], np.int8)
    found = boundaries._look(judge, follows, np.array([0, 2, 4]), otherwise=likely, progress=lambda done, total: None)
    assert found.tolist() == [1, 1, 0, 1, 0]
