"""The replay ring and the files behind it: which pieces can be drawn, and what is there after a kill or damage."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gq.data import steps
from gq.data.pieces import FIRST, GOES_ON, TERMINATED, TRUNCATED
from gq.data.steps import StepLog, StepRing, row_width
from gq.errors import DataError

HORIZON = 3
KINDS = st.lists(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.sampled_from([TERMINATED, TRUNCATED]))))


def column(episodes: list[tuple[int, int]], num_ticks: int) -> np.ndarray:
    """Return the kinds [T] of one environment's rows: episodes of so many decisions, ending so, then a long one."""
    kinds: list[int] = []
    for length, end in [*episodes, (num_ticks, TRUNCATED)]:
        kinds += [FIRST, *[GOES_ON] * (length - 1), end]
    return np.array(kinds[:num_ticks])


def ticks(columns: list[np.ndarray]) -> np.ndarray:
    """Return rows [T, E, W] of 2-wide observations (tick, environment), an action -tick and a reward of tick / 10."""
    rows = np.zeros((len(columns[0]), len(columns), row_width(2, 1)), np.float32)
    for environment, kinds in enumerate(columns):
        rows[:, environment, 0] = np.arange(len(kinds))
        rows[:, environment, 1] = environment
        rows[:, environment, 2] = -np.arange(len(kinds))
        rows[:, environment, 3] = np.arange(len(kinds)) / 10
        rows[:, environment, 4] = kinds
    return rows


def make_ring(num_ticks: int, num_environments: int, seed: int = 0, *, by_episode: bool = False) -> StepRing:
    dims = {"observation_dim": 2, "action_dim": 1, "horizon": HORIZON}
    return StepRing(num_ticks, num_environments, **dims, seed=seed, by_episode=by_episode)


def valid_starts(rows: np.ndarray, capacity: int) -> dict[tuple[int, int], tuple[int, int]]:
    """Return (tick, environment) of every piece that lies within one episode and the newest ticks, and its episode."""
    found = {}
    for tick in range(max(len(rows) - capacity, 0), len(rows) - HORIZON):
        for environment in range(rows.shape[1]):
            if (rows[tick + 1 : tick + HORIZON + 1, environment, -1] != FIRST).all():
                found[tick, environment] = (int((rows[: tick + 1, environment, -1] == FIRST).sum()), environment)
    return found


def of_ended_episodes(starts: dict[tuple[int, int], tuple[int, int]], rows: np.ndarray) -> dict:
    """Return the pieces of episodes that have ended."""
    ended = {
        (number, environment)
        for environment in range(rows.shape[1])
        for number in range(1, 1 + int((rows[:, environment, -1] >= TERMINATED).sum()))
    }
    return {start: episode for start, episode in starts.items() if episode in ended}


@settings(max_examples=60, deadline=None)
@given(st.lists(KINDS, min_size=1, max_size=3), st.integers(HORIZON + 1, 40), st.integers(5, 60), st.booleans())
def test_exactly_the_pieces_within_an_episode_and_the_newest_ticks_can_be_drawn(
    episodes: list[list[tuple[int, int]]], capacity: int, num_ticks: int, by_episode: bool
) -> None:
    rows = ticks([column(each, num_ticks) for each in episodes])
    ring = make_ring(capacity, len(episodes), by_episode=by_episode)
    for tick in rows:
        ring.add(tick)
    expected = valid_starts(rows, capacity)
    if by_episode:
        expected = of_ended_episodes(expected, rows)
        assert len(ring.pieces) == len(set(expected.values()))
    else:
        assert len(ring.pieces) == len(expected)
    if not expected:
        return
    batch = ring.sample(64)
    for observations, actions, rewards, terminated in zip(
        batch.observations.unbind(1),
        batch.actions.unbind(1),
        batch.rewards.unbind(1),
        batch.terminated.unbind(1),
        strict=True,
    ):
        tick, environment = int(observations[0, 0]), int(observations[0, 1])
        assert (tick, environment) in expected
        piece = rows[tick : tick + HORIZON + 1, environment]
        assert torch.equal(observations, torch.from_numpy(piece[:, :2]))
        assert torch.equal(actions, torch.from_numpy(piece[1:, 2:3]))
        assert torch.equal(rewards, torch.from_numpy(piece[1:, 3]))
        assert terminated.tolist() == (piece[1:, 4] == TERMINATED).tolist()
        assert not terminated[:-1].any()


def test_all_pieces_are_drawn_equally_often() -> None:
    rows = ticks([column([(5, TERMINATED), (9, TRUNCATED)], 60), column([(30, TRUNCATED)], 60)])
    ring = make_ring(40, 2)
    for tick in rows:
        ring.add(tick)
    expected = valid_starts(rows, 40)
    drawn = ring.sample(200 * len(expected)).observations[0].int().tolist()
    counts = dict.fromkeys(expected, 0)
    for tick_number, environment in drawn:
        counts[tick_number, environment] += 1
    assert min(counts.values()) > 130  # 200 on average, with a standard deviation of 14
    assert max(counts.values()) < 270


def test_by_episode_each_ended_episode_is_drawn_equally_often_and_then_each_of_its_pieces() -> None:
    rows = ticks([column([(5, TERMINATED), (9, TRUNCATED)], 60), column([(30, TRUNCATED), (3, TRUNCATED)], 60)])
    ring = make_ring(55, 2, by_episode=True)  # the first episode is gone, the longest has lost a few pieces
    for tick in rows:
        ring.add(tick)
    expected = of_ended_episodes(valid_starts(rows, 55), rows)
    sizes = {(2, 0): 7, (1, 1): 23, (2, 1): 1}
    assert {each: list(expected.values()).count(each) for each in sizes} == sizes
    assert set(expected.values()) == set(sizes)
    counts = dict.fromkeys(expected, 0)
    for tick_number, environment in ring.sample(12_000).observations[0].int().tolist():
        counts[tick_number, environment] += 1
    for start, count in counts.items():
        mean = 4_000 / list(expected.values()).count(expected[start])
        assert abs(count - mean) < 5 * mean**0.5, (start, count, mean)


def test_a_truncation_is_not_a_termination() -> None:
    ring = make_ring(20, 1)
    for tick in ticks([column([(4, TRUNCATED), (4, TERMINATED)], 10)]):
        ring.add(tick)
    batch = ring.sample(200)
    pieces = zip(batch.observations.unbind(1), batch.terminated.unbind(1), strict=True)
    ends = {int(observations[-1, 0]): bool(ended[-1]) for observations, ended in pieces}
    assert ends == {3: False, 4: False, 8: False, 9: True}


@pytest.mark.parametrize("by_episode", [False, True])
def test_a_restored_ring_draws_the_same(by_episode: bool) -> None:
    rows = ticks([column([(5, TERMINATED)] * 9, 50), column([(7, TRUNCATED)] * 9, 50)])
    ring, restored = (make_ring(21, 2, by_episode=by_episode) for _ in range(2))
    for tick in rows:
        ring.add(tick)
    ring.sample(5)
    restored.restore(rows[-21:], len(rows))
    restored.generator.set_state(ring.generator.get_state())
    assert all(torch.equal(*pair) for pair in zip(ring.sample(32), restored.sample(32), strict=True))
    more = ticks([column([], 14 if by_episode else 30)] * 2)[1:]  # after which no ended episode would be left
    for tick in more:
        ring.add(tick)
        restored.add(tick)
        assert all(torch.equal(*pair) for pair in zip(ring.sample(8), restored.sample(8), strict=True))


# --- the log ----------------------------------------------------------------------------------------------------------


def open_log(folder: Path, position: dict | None = None) -> StepLog:
    return StepLog(folder, num_environments=2, width=5, position=position)


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "SEGMENT_ROWS", 20)  # 10 ticks of two environments


ROWS = ticks([column([(5, TERMINATED)] * 9, 47)] * 2)


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("sync_at", [[47], [3, 10, 20, 21, 47], [9, 11, 29, 47]])
def test_what_was_synced_is_read_again(tmp_path: Path, sync_at: list[int]) -> None:
    log = open_log(tmp_path / "log")
    for number, row in enumerate(ROWS, 1):
        log.append(row)
        if number in sync_at:
            position = log.sync()
    assert position["ticks"] == 47
    assert len(position["checksums"]) == 5
    again = open_log(tmp_path / "log", position)
    for first in (0, 9, 10, 33, 46):
        assert np.array_equal(again.read(first), ROWS[first:])


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("kept", [0, 7, 10, 25, 40])
def test_what_came_after_the_checkpoint_is_forgotten_and_written_again(tmp_path: Path, kept: int) -> None:
    log = open_log(tmp_path / "log")
    for row in ROWS[:kept]:
        log.append(row)
    position = log.sync()
    for row in ROWS[kept:]:
        log.append(-row)
    log.sync()
    again = open_log(tmp_path / "log", position)
    for row in ROWS[kept:]:
        again.append(row)
    final = again.sync()
    assert np.array_equal(open_log(tmp_path / "log", final).read(0), ROWS)
    assert sum(path.stat().st_size for path in (tmp_path / "log").iterdir()) == ROWS.nbytes


@pytest.mark.usefixtures("small_segments")
def test_a_checkpoint_writes_only_what_is_new(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log")
    for row in ROWS[:30]:
        log.append(row)
    log.sync()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "log").iterdir()}
    for row in ROWS[30:]:
        log.append(row)
    log.sync()
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "log").iterdir()}
    assert {name: after[name] for name in before} == before
    assert len(after) == 5


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
@pytest.mark.parametrize("segment", [0, 4])
def test_lost_or_changed_steps_are_refused(tmp_path: Path, damage: str, segment: int) -> None:
    log = open_log(tmp_path / "log")
    for row in ROWS:
        log.append(row)
    position = log.sync()
    path = tmp_path / "log" / f"steps-{segment:06d}.bin"
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        content[100] ^= 1
        path.write_bytes(content if damage == "flip" else content[:-4])
    with pytest.raises(DataError, match=f"steps-{segment:06d}.bin is not what this run wrote") as error:
        open_log(tmp_path / "log", position)
    assert "copy" in (error.value.hint or "")
