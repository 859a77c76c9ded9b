"""Returns-to-go, statistics and the choice of the best episodes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gq.data.trajectories import Trajectories


def make_trajectories(lengths: list[int], *, seed: int = 0, rewards: list[float] | None = None) -> Trajectories:
    """Return episodes of the given lengths in read-only arrays; the first observation column numbers the rows."""
    generator, num_rows = np.random.default_rng(seed), sum(lengths)
    observations = generator.normal(size=(num_rows, 3)).astype(np.float32)
    observations[:, 0] = np.arange(num_rows)
    arrays: dict[str, Any] = {
        "observations": observations,
        "actions": generator.uniform(-1, 1, (num_rows, 2)).astype(np.float32),
        "rewards": np.array(generator.normal(size=num_rows) if rewards is None else rewards, np.float32),
        "terminals": np.zeros(num_rows, bool),
        "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    }
    for array in arrays.values():
        array.flags.writeable = False
    return Trajectories(**arrays, source="test", task="Hopper-v5", num_dropped_rows=4, attributes={"origin": "here"})


def episodes_of(trajectories: Trajectories) -> list[slice]:
    starts, ends = trajectories.offsets[:-1].tolist(), trajectories.offsets[1:].tolist()
    return [slice(start, end) for start, end in zip(starts, ends, strict=True)]


def naive_returns_to_go(trajectories: Trajectories, *, delayed: bool = False) -> list[float]:
    result = []
    for rows in episodes_of(trajectories):
        rewards = trajectories.rewards[rows].astype(float)
        if delayed:
            rewards[:] = [0.0] * (len(rewards) - 1) + [rewards.sum()]
        result += [rewards[step:].sum() for step in range(len(rewards))]
    return result


lengths_of_episodes = st.lists(st.integers(1, 12), min_size=1, max_size=8)


@settings(max_examples=100, deadline=None)
@given(lengths_of_episodes, st.integers(0, 1000), st.booleans())
def test_returns_to_go_equal_a_sum_over_the_rest_of_the_episode(lengths: list[int], seed: int, delayed: bool) -> None:
    trajectories = make_trajectories(lengths, seed=seed)
    found = trajectories.returns_to_go(delayed=delayed)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, naive_returns_to_go(trajectories, delayed=delayed), rtol=1e-5, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(lengths_of_episodes, st.integers(0, 1000))
def test_lengths_returns_and_timesteps_fit_the_offsets(lengths: list[int], seed: int) -> None:
    trajectories = make_trajectories(lengths, seed=seed)
    assert trajectories.lengths.tolist() == lengths
    assert (trajectories.num_episodes, trajectories.num_transitions) == (len(lengths), sum(lengths))
    by_hand = [trajectories.rewards[rows].astype(float).sum() for rows in episodes_of(trajectories)]
    np.testing.assert_allclose(trajectories.returns, by_hand, rtol=1e-12, atol=1e-12)
    assert trajectories.timesteps().tolist() == [step for length in lengths for step in range(length)]


def test_returns_to_go_of_the_worked_example() -> None:
    trajectories = make_trajectories([3, 2], rewards=[1, 2, 3, 10, 20])
    assert trajectories.returns.tolist() == [6, 30]
    assert trajectories.returns_to_go().tolist() == [6, 5, 3, 30, 20]
    assert trajectories.returns_to_go(delayed=True).tolist() == [6, 6, 6, 30, 30]


def test_delayed_mode_leaves_the_data_as_they_are() -> None:
    trajectories = make_trajectories([3, 2], rewards=[1, 2, 3, 10, 20])
    writable = replace(trajectories, rewards=trajectories.rewards.copy())
    first = writable.returns_to_go(delayed=True)
    assert writable.rewards.tolist() == [1, 2, 3, 10, 20]
    assert np.array_equal(first, writable.returns_to_go(delayed=True)), "a second use gives the same"
    assert writable.returns_to_go().tolist() == [6, 5, 3, 30, 20]


def test_returns_to_go_stay_exact_far_into_a_large_file() -> None:
    """A running sum in float32 would be off by whole units after a million rows."""
    num_episodes, length = 1000, 1000
    rewards = np.random.default_rng(0).uniform(3, 5, num_episodes * length).astype(np.float32)
    trajectories = replace(
        make_trajectories([1]), rewards=rewards, offsets=np.arange(0, num_episodes * length + 1, length)
    )
    last = rewards[-length:].astype(float)
    expected = np.cumsum(last[::-1])[::-1]
    np.testing.assert_allclose(trajectories.returns_to_go()[-length:], expected, rtol=0, atol=5e-4)


# --- the best episodes ------------------------------------------------------------------------------------------------


def first_rows(trajectories: Trajectories) -> list[int]:
    """Return the row numbers of the episodes' first rows in the trajectories that they were chosen from."""
    return trajectories.observations[trajectories.offsets[:-1], 0].astype(int).tolist()


def test_the_whole_of_the_data_keeps_every_episode() -> None:
    """A comparison with < instead of <= would keep two of the three."""
    trajectories = make_trajectories([10, 10, 10])
    assert trajectories.best(1.0).num_episodes == 3
    kept = np.cumsum(trajectories.lengths) < 1.0 * trajectories.num_transitions
    assert kept.sum() == 2, "what the defect would give"


def test_the_best_share_keeps_the_highest_returns_in_their_order() -> None:
    trajectories = make_trajectories([2, 2, 2, 2], rewards=[3, 3, 0, 0, 5, 5, 1, 1])
    assert first_rows(trajectories.best(0.5)) == [0, 4]
    assert first_rows(trajectories.best(0.25)) == [4]
    assert first_rows(trajectories.best(0.74)) == [0, 4], "less than a share is never exceeded"
    assert first_rows(trajectories.best(0.75)) == [0, 4, 6]


@pytest.mark.parametrize("fraction", [1e-9, 0.1, 0.5])
def test_at_least_one_episode_is_kept(fraction: float) -> None:
    trajectories = make_trajectories([8, 2], rewards=[1.0] * 8 + [0.5] * 2)
    assert first_rows(trajectories.best(fraction)) == [0]
    assert make_trajectories([5]).best(fraction).num_episodes == 1


@settings(max_examples=100, deadline=None)
@given(lengths_of_episodes, st.integers(0, 1000), st.floats(0.001, 1))
def test_the_best_share_is_what_a_loop_over_sorted_episodes_keeps(
    lengths: list[int], seed: int, fraction: float
) -> None:
    trajectories = make_trajectories(lengths, seed=seed)
    order = sorted(range(len(lengths)), key=lambda episode: trajectories.returns[episode])
    kept, num_rows = [order[-1]], lengths[order[-1]]
    for episode in reversed(order[:-1]):
        if num_rows + lengths[episode] > fraction * sum(lengths) + 1e-6:  # shares are decimal, floats are not
            break
        kept.append(episode)
        num_rows += lengths[episode]
    best = trajectories.best(fraction)
    assert first_rows(best) == [int(trajectories.offsets[episode]) for episode in sorted(kept)]
    assert best.num_transitions == num_rows


def test_a_share_that_is_met_exactly_is_not_lost_to_rounding() -> None:
    assert 0.29 * 100 < 29
    trajectories = make_trajectories([29, 71], rewards=[2.0] * 29 + [0.1] * 71)
    assert trajectories.best(0.29).num_transitions == 29
    three = make_trajectories([19, 10, 71], rewards=[3.0] * 19 + [2.0] * 10 + [0.01] * 71)
    assert three.best(0.29).num_transitions == 29


def test_selected_episodes_keep_their_rows_and_their_provenance() -> None:
    trajectories = make_trajectories([3, 1, 4])
    chosen = trajectories.select(np.array([2, 0]))
    assert chosen.offsets.tolist() == [0, 4, 7]
    assert chosen.offsets.dtype == np.int64
    rows = [4, 5, 6, 7, 0, 1, 2]
    for name in ("observations", "actions", "rewards", "terminals"):
        assert np.array_equal(getattr(chosen, name), getattr(trajectories, name)[rows]), name
    assert (chosen.task, chosen.source, chosen.num_dropped_rows) == ("Hopper-v5", "test", 4)
    assert chosen.attributes == {"origin": "here"}
    assert trajectories.select(np.arange(3)) is trajectories, "no copy of everything"
    assert trajectories.select(np.array([0, 2, 1])).lengths.tolist() == [3, 4, 1], "an order of all is no shortcut"


# --- observation statistics -------------------------------------------------------------------------------------------


def test_observation_statistics_are_those_of_all_rows() -> None:
    trajectories = make_trajectories([40, 60])
    mean, std = trajectories.observation_statistics()
    assert (mean.dtype, std.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(mean, trajectories.observations.astype(float).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(std, trajectories.observations.astype(float).std(axis=0) + 1e-6, rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.7, 1e4, 0.1])
def test_a_constant_column_gets_std_one(value: float) -> None:
    observations = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    observations[:, 1] = value
    mean, std = replace(make_trajectories([50]), observations=observations).observation_statistics()
    assert std[1] == 1
    assert mean[1] == pytest.approx(value, rel=1e-6)
    assert 0.5 < std[0] < 2


def test_a_column_with_rounding_noise_counts_as_constant_and_a_small_one_does_not() -> None:
    observations = np.full((1000, 2), 100, np.float32)
    observations[::2, 0] = np.nextafter(np.float32(100), np.float32(101))
    observations[:, 1] = np.random.default_rng(0).normal(size=1000) * 1e-3
    _, std = replace(make_trajectories([1000]), observations=observations).observation_statistics()
    assert std[0] == 1
    assert std[1] == pytest.approx(1e-3, rel=0.1)


def test_statistics_of_a_large_offset_do_not_cancel() -> None:
    observations = (1e4 + np.random.default_rng(0).normal(size=(20_000, 1))).astype(np.float32)
    mean, std = replace(make_trajectories([20_000]), observations=observations).observation_statistics()
    assert mean[0] == pytest.approx(1e4, rel=1e-5)
    assert std[0] == pytest.approx(1, rel=0.03)
