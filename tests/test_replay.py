"""The replay buffer against a plain list of trajectories: what is in it, what its windows hold, how they are drawn."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comparing import chi_square
from gq.data.replay import Entry, EpisodeLog, LoggedEpisode, ReplayBuffer, dataset_episodes, starting_episodes
from gq.data.trajectories import Trajectories
from gq.data.windows import Batch

Named = tuple[str, LoggedEpisode]

# Multiples of 1/8 of this size add up without rounding in float32, so sums can be compared exactly.
REWARDS = st.lists(st.integers(-8000, 8000).map(lambda eighths: eighths / 8), min_size=1, max_size=12)
EPISODES = st.lists(REWARDS, min_size=1, max_size=40)


def make_episode(number: int, rewards: list[float]) -> LoggedEpisode:
    """Return an episode whose observations are (number, step) and whose action is the negated step."""
    steps = np.arange(len(rewards), dtype=np.float32)
    observations = np.stack([np.full(len(rewards), number, np.float32), steps], axis=1)
    return LoggedEpisode(observations, -steps[:, None], np.array(rewards, np.float32), True)


def named_episodes(episodes: list[list[float]]) -> list[Named]:
    return [(f"online/{number}", make_episode(number, rewards)) for number, rewards in enumerate(episodes)]


def of_lengths(*lengths: int) -> list[Named]:
    """Return episodes whose reward is 1 on every step."""
    return named_episodes([[1.0] * length for length in lengths])


def make_buffer(
    capacity: int, episodes: list[Named], *, context_length: int = 4, seed: int = 0, delayed: bool = False
) -> ReplayBuffer:
    buffer = ReplayBuffer(capacity, context_length, observation_dim=2, action_dim=1, seed=seed, delayed=delayed)
    for name, episode in episodes:
        buffer.add(name, episode)
    return buffer


def make_trajectories(episodes: list[list[float]]) -> Trajectories:
    """Return the episodes of `make_episode` as a dataset, every second one terminal."""
    made = [make_episode(number, rewards) for number, rewards in enumerate(episodes)]
    offsets = np.concatenate([[0], np.cumsum([len(rewards) for rewards in episodes])]).astype(np.int64)
    terminals = np.zeros(offsets[-1], bool)
    terminals[offsets[1:] - 1] = np.arange(len(episodes)) % 2 == 0
    return Trajectories(
        observations=np.concatenate([episode.observations for episode in made]),
        actions=np.concatenate([episode.actions for episode in made]),
        rewards=np.concatenate([episode.rewards for episode in made]),
        terminals=terminals,
        offsets=offsets,
        source="test",
    )


def names_of(buffer: ReplayBuffer) -> list[str]:
    return [entry.name for entry in buffer.entries]


def anchors_of(batch: Batch) -> list[tuple[int, int]]:
    """Return the episode and the step at which each window begins."""
    return [(int(number), int(step)) for number, step in batch.observations[:, 0]]


def labels_of(batch: Batch) -> set[tuple[int, int, float]]:
    """Return the episode, the step and the return-to-go of each window's beginning."""
    first = batch.returns_to_go[:, 0, 0].tolist()
    return {(*anchor, label) for anchor, label in zip(anchors_of(batch), first, strict=True)}


def are_equal(first: Batch, second: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# --- what a buffer starts with ----------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(EPISODES, st.integers(1, 50))
def test_top_takes_the_best_returns_and_puts_the_worst_of_them_first(
    episodes: list[list[float]], capacity: int
) -> None:
    numbers = starting_episodes(make_trajectories(episodes), "top", capacity)
    returns = [sum(rewards) for rewards in episodes]
    assert [returns[number] for number in numbers] == sorted(returns)[-capacity:]
    assert len(set(numbers)) == len(numbers) == min(capacity, len(episodes))


def test_top_counts_the_return_and_not_the_length_or_the_size_of_it() -> None:
    trajectories = make_trajectories([[-900.0], [1.0] * 9, [8.5], [-3.0, 1.0], [20.0, -30.0]])
    assert starting_episodes(trajectories, "top", 3) == [3, 2, 1]
    assert starting_episodes(trajectories, "top", 1) == [1]
    assert starting_episodes(trajectories, "top", 5) == [0, 4, 3, 2, 1], "all, the worst too"
    assert starting_episodes(trajectories, "top", 50) == [0, 4, 3, 2, 1]


def test_all_keeps_the_order_of_the_dataset_and_none_is_empty() -> None:
    trajectories = make_trajectories([[5.0], [1.0], [9.0], [2.0]])
    assert starting_episodes(trajectories, "all", 10) == [0, 1, 2, 3]
    assert starting_episodes(trajectories, "all", 4) == [0, 1, 2, 3]
    assert starting_episodes(trajectories, "all", 2) == [2, 3], "as if all had been added one by one"
    assert starting_episodes(trajectories, "none", 10) == []


@settings(max_examples=50, deadline=None)
@given(EPISODES)
def test_the_episodes_of_a_dataset_come_whole_and_under_their_own_numbers(episodes: list[list[float]]) -> None:
    chosen = list(range(len(episodes)))[::-2]
    found = list(dataset_episodes(make_trajectories(episodes), chosen))
    assert [name for name, _ in found] == [f"offline/{number}" for number in chosen]
    for number, (_, episode) in zip(chosen, found, strict=True):
        expected = make_episode(number, episodes[number])
        assert all(np.array_equal(*pair) for pair in zip(episode[:3], expected[:3], strict=True))
        assert episode.terminated == (number % 2 == 0)


def test_the_worst_of_the_dataset_leave_first() -> None:
    trajectories = make_trajectories([[3.0], [1.0], [2.0], [5.0]])
    buffer = make_buffer(3, list(dataset_episodes(trajectories, starting_episodes(trajectories, "top", 3))))
    assert [entry.episode_return for entry in buffer.entries] == [2, 3, 5]
    buffer.add("online/0", make_episode(0, [-7.0]))
    assert names_of(buffer) == ["offline/0", "offline/3", "online/0"], "even for a worse one"


# --- first in, first out ----------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(EPISODES, st.integers(1, 12), st.booleans())
def test_the_newest_trajectories_stay_in_the_order_of_their_age(
    episodes: list[list[float]], capacity: int, delayed: bool
) -> None:
    """After every addition: entries, rows and windows are those of the last ones of a list."""
    buffer = make_buffer(capacity, [], delayed=delayed)
    model: list[Named] = []
    for name, episode in named_episodes(episodes):
        buffer.add(name, episode)
        model = [*model, (name, episode)][-capacity:]
        wanted = [Entry(name, len(kept.rewards), float(kept.rewards.sum())) for name, kept in model]
        assert list(buffer.entries) == wanted
        assert buffer.num_rows == sum(entry.num_rows for entry in wanted)
        check_windows(buffer.sample(8), dict(model), delayed=delayed)


def check_windows(batch: Batch, episodes: dict[str, LoggedEpisode], *, delayed: bool) -> None:
    """Check every window of a batch against the episode and the step that it begins with."""
    num_steps = batch.valid.shape[1]
    for index, (number, first) in enumerate(anchors_of(batch)):
        episode = episodes[f"online/{number}"]  # a KeyError: it had left the buffer
        length = len(episode.rewards)
        num_valid = min(num_steps, length - first)
        assert batch.valid[index].tolist() == [True] * num_valid + [False] * (num_steps - num_valid)
        assert (batch.observations[index, :, 0] == number).all(), "no row of another episode, valid or not"
        real = slice(0, num_valid)
        rows = np.arange(first, first + num_valid)
        assert batch.observations[index, real, 1].tolist() == rows.tolist()
        assert batch.timesteps[index, real].tolist() == rows.tolist()
        assert batch.actions[index, real, 0].tolist() == (-rows).tolist()
        to_go = [float(episode.rewards[0 if delayed else row :].sum()) for row in rows]
        assert batch.returns_to_go[index, real, 0].tolist() == to_go


@pytest.mark.parametrize("capacity", [1, 3])
def test_storage_does_not_grow_with_the_number_of_additions(capacity: int) -> None:
    buffer = make_buffer(capacity, of_lengths(*[7, 50, 23] * 60))
    assert names_of(buffer) == [f"online/{number}" for number in range(180 - capacity, 180)]
    assert len(buffer._rows.timesteps) <= 2 * (capacity + 1) * 50


def test_more_new_trajectories_than_there_is_room_for() -> None:
    trajectories = make_trajectories([[1.0], [2.0], [3.0]])
    buffer = make_buffer(2, list(dataset_episodes(trajectories, starting_episodes(trajectories, "top", 2))))
    for name, episode in of_lengths(4, 5, 6, 7, 8):
        buffer.add(name, episode)
    assert list(buffer.entries) == [Entry("online/3", 7, 7.0), Entry("online/4", 8, 8.0)]
    assert set(anchors_of(buffer.sample(500))) == {(3, step) for step in range(7)} | {(4, step) for step in range(8)}


def test_a_buffer_of_one_trajectory() -> None:
    buffer = make_buffer(1, of_lengths(9, 2), context_length=3)
    assert list(buffer.entries) == [Entry("online/1", 2, 2.0)]
    assert set(anchors_of(buffer.sample(100))) == {(1, 0), (1, 1)}


# --- windows and labels -----------------------------------------------------------------------------------------------


def test_episodes_of_one_step() -> None:
    buffer = make_buffer(3, named_episodes([[4.0], [-5.0], [6.0]]), context_length=3)
    batch = buffer.sample(60)
    assert batch.valid.tolist() == [[True, False, False]] * 60
    assert batch.timesteps.eq(0).all()
    assert labels_of(batch) == {(0, 0, 4.0), (1, 0, -5.0), (2, 0, 6.0)}


def test_shapes_and_types_of_a_batch() -> None:
    batch = make_buffer(3, of_lengths(5, 1, 3)).sample(7)
    assert [tuple(array.shape) for array in batch] == [(7, 4, 2), (7, 4, 1), (7, 4, 1), (7, 4), (7, 4)]
    assert [array.dtype for array in batch] == [torch.float32] * 3 + [torch.int64, torch.bool]


def test_returns_to_go_are_summed_in_double_precision() -> None:
    """In float32 the 1 is lost beside the 1e8, and the label of the first step would be 0."""
    rewards = [1e8, 1.0, -1e8]
    buffer = make_buffer(1, named_episodes([rewards]), context_length=1)
    assert np.cumsum(np.array(rewards, np.float32)[::-1])[-1] == 0, "so it would be lost"
    assert labels_of(buffer.sample(50)) == {(0, 0, 1.0), (0, 1, -1e8), (0, 2, -1e8)}
    assert buffer.entries[0].episode_return == 1.0


def test_labels_equal_those_of_learning_from_the_same_data() -> None:
    generator = np.random.default_rng(0)
    trajectories = make_trajectories([list(generator.standard_normal(n)) for n in (40, 1, 90)])
    for delayed in (False, True):
        episodes = list(dataset_episodes(trajectories, [0, 1, 2]))
        buffer = make_buffer(3, episodes, context_length=1, delayed=delayed)
        batch = buffer.sample(400)
        rows = [int(trajectories.offsets[number]) + step for number, step in anchors_of(batch)]
        expected = trajectories.returns_to_go(delayed=delayed)[rows]
        np.testing.assert_allclose(batch.returns_to_go[:, 0, 0].numpy(), expected, rtol=1e-6, atol=1e-6)


# --- copies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delayed", [False, True])
def test_the_buffer_shares_no_memory_with_what_it_was_given(delayed: bool) -> None:
    trajectories = make_trajectories([[1.0, 2.0, 3.0], [4.0], [5.0, 6.0]])
    arrays = (trajectories.observations, trajectories.actions, trajectories.rewards, trajectories.offsets)
    before = [array.copy() for array in arrays]
    numbers = starting_episodes(trajectories, "all", 3)
    buffer = make_buffer(3, list(dataset_episodes(trajectories, numbers)), delayed=delayed)
    state = buffer.generator.get_state()
    first = buffer.sample(50)
    kept = Batch(*(array.clone() for array in first))
    for array in (*arrays[:3], *first):
        array[:] = 0  # the dataset, and a batch that was handed out
    buffer.generator.set_state(state)
    assert are_equal(buffer.sample(50), kept)
    for array, original in zip(arrays[:3], before, strict=False):
        array[:] = original
    for name, episode in of_lengths(4, 4, 4, 4):
        buffer.add(name, episode)
    assert all(np.array_equal(*pair) for pair in zip(arrays, before, strict=True)), "adding changes no input"
    assert numbers == [0, 1, 2]


def test_episodes_read_from_a_log_give_the_same_batches(tmp_path: Path) -> None:
    """The log's arrays can only be read; torch warns where it would share such memory."""
    episodes = of_lengths(5, 9, 2)
    with EpisodeLog(tmp_path / "episodes", observation_dim=2, action_dim=1) as log:
        for number, (_, episode) in enumerate(episodes):
            log.append(number, episode)
        read = [(name, log.read(number)) for number, (name, _) in enumerate(episodes)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert are_equal(make_buffer(3, read).sample(64), make_buffer(3, episodes).sample(64))


# --- the draw ---------------------------------------------------------------------------------------------------------

LENGTHS = (1, 19, 80)
NUM_DRAWS = 40_000


def cells(batch: Batch) -> np.ndarray:
    """Return how often each of the 100 transitions of three episodes of LENGTHS begins a window."""
    starts = np.cumsum([0, *LENGTHS[:-1]])
    first = anchors_of(batch)
    numbers = sorted({number for number, _ in first})
    return np.bincount([starts[numbers.index(number)] + step for number, step in first], minlength=100)


def draw_by_length(num_draws: int) -> np.ndarray:
    """Draw a trajectory by its length, then a start within it, as the paper does; return the counts."""
    generator, lengths = np.random.default_rng(1), np.array(LENGTHS)
    episodes = generator.choice(3, num_draws, p=lengths / lengths.sum())
    starts = np.cumsum([0, *LENGTHS[:-1]])[episodes] + generator.integers(lengths[episodes])
    return np.bincount(starts, minlength=100)


@pytest.mark.parametrize("num_earlier", [0, 1, 50])
def test_windows_begin_uniformly_over_all_transitions(num_earlier: int) -> None:
    """Chi-square below its 99.99 % quantile: 161 at 99 degrees of freedom, 18 at 2; fresh and after evictions."""
    buffer = make_buffer(3, of_lengths(*[30] * num_earlier, *LENGTHS), context_length=1, seed=3)
    ours = cells(buffer.sample(NUM_DRAWS))
    assert chi_square(ours, np.full(100, NUM_DRAWS / 100)) < 161
    by_length = NUM_DRAWS * np.array(LENGTHS) / 100
    episodes = np.add.reduceat(ours, [0, 1, 20])
    assert chi_square(episodes, by_length) < 18
    assert chi_square(np.full(3, NUM_DRAWS / 3), by_length) > 1000, "the check can tell an unweighted draw"
    theirs = draw_by_length(NUM_DRAWS)
    assert ((ours - theirs) ** 2 / (ours + theirs)).sum() < 161, "two samples of one distribution"


@settings(max_examples=60, deadline=None)
@given(EPISODES, st.integers(1, 6), st.integers(0, 2**32))
def test_a_buffer_filled_anew_draws_the_same_batches(episodes: list[list[float]], capacity: int, seed: int) -> None:
    """Whatever was evicted and moved before: entries and random state are all that matters, now and later."""
    given_episodes = named_episodes(episodes)
    lived = make_buffer(capacity, given_episodes, seed=seed)
    lived.sample(5)
    anew = make_buffer(capacity, [named for named in given_episodes if named[0] in names_of(lived)])
    anew.generator.set_state(lived.generator.get_state())
    assert list(anew.entries) == list(lived.entries)
    for name, episode in [("online/100", make_episode(100, [1.0] * 30)), ("online/101", make_episode(101, [2.0]))]:
        assert are_equal(lived.sample(16), anew.sample(16))
        lived.add(name, episode)
        anew.add(name, episode)
    assert are_equal(lived.sample(16), anew.sample(16))


def test_the_order_of_the_trajectories_decides_what_a_draw_gives() -> None:
    episodes = of_lengths(10, 20, 30)
    assert not are_equal(make_buffer(3, episodes).sample(32), make_buffer(3, episodes[::-1]).sample(32))


def test_the_seed_alone_decides_what_is_drawn() -> None:
    drawn = []
    for seed, global_seed in ((5, 0), (5, 1), (6, 0)):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        drawn.append(make_buffer(2, of_lengths(30, 20), seed=seed).sample(32))
        assert torch.equal(before, torch.get_rng_state()), "the global generator is left alone"
    assert are_equal(drawn[0], drawn[1])
    assert not are_equal(drawn[0], drawn[2])
