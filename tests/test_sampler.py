"""Windows: where they begin, where they end, what is valid in them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comparing import chi_square
from gq.data.trajectories import Trajectories
from gq.data.windows import Batch, WindowSampler


def make_trajectories(lengths: list[int], rewards: list[float] | None = None) -> Trajectories:
    """Return episodes whose observations are (row, episode) and whose action is the negated row."""
    num_rows = sum(lengths)
    rows, episodes = np.arange(num_rows), np.repeat(np.arange(len(lengths)), lengths)
    return Trajectories(
        observations=np.stack([rows, episodes], axis=1).astype(np.float32),
        actions=-rows[:, None].astype(np.float32),
        rewards=np.array(np.ones(num_rows) if rewards is None else rewards, np.float32),
        terminals=np.zeros(num_rows, bool),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        source="test",
    )


def rows_of(batch: Batch) -> torch.Tensor:
    return batch.observations[..., 0].long()


# --- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("delayed", "returns_to_go"), [(False, [5, 3]), (True, [6, 6])])
def test_the_worked_example(delayed: bool, returns_to_go: list[float]) -> None:
    """Rewards 1, 2, 3, a window of 4 from step 1: the original pads it on the left, ours ends with invalid steps."""
    sampler = WindowSampler(make_trajectories([2, 3, 2], [7, 7, 1, 2, 3, 9, 9]), 4, delayed=delayed)
    batch = sampler.gather(torch.tensor([3]))
    assert batch.valid[0].tolist() == [True, True, False, False]
    assert batch.timesteps[0, :2].tolist() == [1, 2]
    assert batch.returns_to_go[0, :2, 0].tolist() == returns_to_go
    assert batch.actions[0, :2, 0].tolist() == [-3, -4]
    assert rows_of(batch)[0].tolist() == [3, 4, 4, 4], "beyond the end the last row is repeated"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.integers(1, 12), st.booleans())
def test_windows_are_consecutive_and_never_leave_their_episode(
    lengths: list[int], num_steps: int, backward: bool
) -> None:
    trajectories = make_trajectories(lengths)
    sampler = WindowSampler(trajectories, num_steps, backward=backward)
    anchors = torch.arange(trajectories.num_transitions)
    batch = sampler.gather(anchors)
    episodes, rows = batch.observations[..., 1], rows_of(batch)
    own = torch.as_tensor(trajectories.observations[:, 1])[:, None]
    assert (episodes == own).all(), "no row of another episode, valid or not"
    shift = torch.arange(num_steps) - (num_steps - 1 if backward else 0)
    wanted = anchors[:, None] + shift
    assert (rows == wanted)[batch.valid].all()
    first = torch.as_tensor(np.repeat(trajectories.offsets[:-1], lengths))[:, None]
    last = torch.as_tensor(np.repeat(trajectories.offsets[1:], lengths))[:, None] - 1
    assert torch.equal(batch.valid, (wanted >= first) & (wanted <= last))
    assert torch.equal(rows, wanted.clamp(min=first, max=last))
    assert batch.valid[:, -1 if backward else 0].all(), "the anchor is always real"
    assert torch.equal(batch.timesteps, rows - first)
    assert torch.equal(batch.actions[..., 0], -rows.float())
    expected = torch.as_tensor(trajectories.returns_to_go())[rows]
    assert torch.equal(batch.returns_to_go[..., 0], expected)


def test_shapes_and_types_of_a_batch() -> None:
    batch = WindowSampler(make_trajectories([5, 1, 3]), 4).sample(7)
    assert [tuple(array.shape) for array in batch] == [(7, 4, 2), (7, 4, 1), (7, 4, 1), (7, 4), (7, 4)]
    assert [array.dtype for array in batch] == [torch.float32] * 3 + [torch.int64, torch.bool]


def test_a_context_longer_than_every_episode() -> None:
    batch = WindowSampler(make_trajectories([3, 2]), 50).sample(64)
    assert batch.valid.shape == (64, 50), "no window is left out"
    assert batch.valid.sum(dim=1).max() == 3
    assert batch.valid.sum(dim=1).min() == 1


@pytest.mark.parametrize("backward", [False, True])
def test_episodes_of_one_step(backward: bool) -> None:
    sampler = WindowSampler(make_trajectories([1, 1, 1], [4, 5, 6]), 3, backward=backward)
    batch = sampler.gather(torch.tensor([1, 2]))
    valid = [False, False, True] if backward else [True, False, False]
    assert batch.valid.tolist() == [valid, valid]
    assert batch.returns_to_go[..., 0].tolist() == [[5] * 3, [6] * 3]
    assert batch.timesteps.eq(0).all()


def test_backward_windows_end_at_their_anchor() -> None:
    sampler = WindowSampler(make_trajectories([2, 4]), 3, backward=True)
    batch = sampler.gather(torch.tensor([5, 3, 2]))
    assert rows_of(batch).tolist() == [[3, 4, 5], [2, 2, 3], [2, 2, 2]]
    assert batch.valid.tolist() == [[True, True, True], [False, True, True], [False, False, True]]


# --- the draw ---------------------------------------------------------------------------------------------------------

LENGTHS = [1, 4, 15, 80]
NUM_DRAWS = 40_000


@pytest.mark.parametrize("backward", [False, True])
def test_anchors_are_uniform_over_all_transitions(backward: bool) -> None:
    """Chi-square below its 99.99 % quantile: 161 at 99 degrees of freedom, 21 at 3."""
    sampler = WindowSampler(make_trajectories(LENGTHS), 2, backward=backward, seed=3)
    anchors = rows_of(sampler.sample(NUM_DRAWS))[:, -1 if backward else 0].numpy()
    counts = np.bincount(anchors, minlength=100)
    assert chi_square(counts, np.full(100, NUM_DRAWS / 100)) < 161
    lengths = np.array(LENGTHS)
    episodes = np.add.reduceat(counts, np.cumsum([0, *LENGTHS[:-1]]))
    by_length = NUM_DRAWS * lengths / lengths.sum()
    assert chi_square(episodes, by_length) < 21
    one_window_per_episode = np.full(4, NUM_DRAWS / 4)
    assert chi_square(one_window_per_episode, by_length) > 1000, "the check can tell an unweighted draw"


def test_the_draw_equals_a_draw_of_an_episode_by_length_and_of_a_start_within_it() -> None:
    """Two samples, one chi-square: 2 x 100 cells, 99 degrees of freedom."""
    generator, lengths = np.random.default_rng(0), np.array(LENGTHS)
    episodes = generator.choice(4, NUM_DRAWS, p=lengths / lengths.sum())
    starts = np.cumsum([0, *LENGTHS[:-1]])[episodes] + generator.integers(lengths[episodes])
    theirs = np.bincount(starts, minlength=100)
    ours = np.bincount(rows_of(WindowSampler(make_trajectories(LENGTHS), 2).sample(NUM_DRAWS))[:, 0], minlength=100)
    assert ((ours - theirs) ** 2 / (ours + theirs)).sum() < 161


def test_the_same_generator_state_gives_the_same_batch() -> None:
    sampler = WindowSampler(make_trajectories([30, 20]), 5, seed=1)
    sampler.sample(3)
    state = sampler.generator.get_state()
    first, second = sampler.sample(16), sampler.sample(16)
    sampler.generator.set_state(state)
    repeated = sampler.sample(16)
    assert all(torch.equal(a, b) for a, b in zip(first, repeated, strict=True))
    assert not torch.equal(first.observations, second.observations)


def test_the_seed_alone_decides_what_is_drawn() -> None:
    drawn = []
    for seed, global_seed in ((5, 0), (5, 1), (6, 0)):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        drawn.append(rows_of(WindowSampler(make_trajectories([50]), 3, seed=seed).sample(32)))
        assert torch.equal(before, torch.get_rng_state()), "the global generator is left alone"
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("delayed", [False, True])
def test_sampling_leaves_the_data_as_they_are(delayed: bool) -> None:
    trajectories = make_trajectories([4, 6], [float(reward) for reward in range(10)])
    names = ("observations", "actions", "rewards", "offsets")
    before = {name: getattr(trajectories, name).copy() for name in names}
    batch = WindowSampler(trajectories, 4, delayed=delayed).sample(8)
    for array in batch:
        array.zero_()  # a batch is a copy
    for name, array in before.items():
        assert np.array_equal(getattr(trajectories, name), array), name
