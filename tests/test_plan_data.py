"""Files of a planner's decisions are exact and refuse what does not fit; samples of them are looked up rightly."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gq.errors import DataError, UsageError
from gq.models.world_config import WorldModelConfig
from gq.models.world_model import WorldModel
from gq.speculation.samples import (
    ARRAYS,
    PlanEpisode,
    Samples,
    build_samples,
    is_validation,
    past_rows,
    read_plan_data,
    thin,
    write_plan_data,
)

OBSERVATION, LATENT, ACTION, HORIZON = 5, 16, 2, 3
ATTRIBUTES = {"teacher_sha256": "a" * 64, "plan_horizon": HORIZON}


def make_teacher() -> WorldModel:
    torch.manual_seed(0)
    sizes = {"encoder_dim": 16, "mlp_dim": 16, "latent_dim": LATENT, "num_q": 2}
    return WorldModel(WorldModelConfig(**sizes), observation_dim=OBSERVATION, action_dim=ACTION).eval()


def make_episode(number: int, length: int, *, round_number: int = 0, execution_horizon: int = 4) -> PlanEpisode:
    """Return a made-up episode; a student drove it unless the round is 0."""
    generator = np.random.default_rng([number, length])

    def draw(*shape: int) -> np.ndarray:
        return generator.uniform(-1, 1, (length, *shape)).astype(np.float32)

    ages = np.arange(length) % execution_horizon if round_number else np.zeros(length)
    return PlanEpisode(
        observations=draw(OBSERVATION),
        latents=draw(LATENT),
        actions=draw(ACTION),
        rewards=draw(),
        ages=ages.astype(np.int16),
        predicted=draw(LATENT),
        queued=draw(ACTION),
        queued_std=abs(draw(ACTION)),
        plan_mean=draw(HORIZON, ACTION),
        plan_std=abs(draw(HORIZON, ACTION)),
        plan_elite=draw(HORIZON, ACTION),
        label=draw(ACTION),
        label_std=abs(draw(ACTION)),
        elite_std=abs(draw(ACTION)),
        number=number,
        round=round_number,
        driver="two-tower" if round_number else "planner",
        seed=number + 100,
    )


# --- files ------------------------------------------------------------------------------------------------------------


def test_what_is_written_is_what_is_read_and_the_same_bytes_again(tmp_path: Path) -> None:
    episodes = [make_episode(0, 4), make_episode(1, 7, round_number=1)]
    for name in ("a.hdf5", "b.hdf5"):
        write_plan_data(tmp_path / name, episodes, ATTRIBUTES)
    assert (tmp_path / "a.hdf5").read_bytes() == (tmp_path / "b.hdf5").read_bytes()
    data = read_plan_data(tmp_path / "a.hdf5", teacher_sha256="a" * 64)
    assert [episode.num_decisions for episode in data.episodes] == [4, 7]
    assert data.attributes["plan_horizon"] == HORIZON
    for written, read in zip(episodes, data.episodes, strict=True):
        for field in fields(PlanEpisode):
            first, second = getattr(written, field.name), getattr(read, field.name)
            assert np.array_equal(first, second), field.name
            assert type(first) is type(second)
            assert field.name not in ARRAYS or first.dtype == second.dtype


def test_histories_are_not_stored(tmp_path: Path) -> None:
    write_plan_data(tmp_path / "a.hdf5", [make_episode(0, 1000)], ATTRIBUTES)
    numbers = OBSERVATION + 2 * LATENT + 6 * ACTION + 3 * HORIZON * ACTION + 1
    assert (tmp_path / "a.hdf5").stat().st_size < 1000 * (4 * numbers + 2) + 30_000


def test_another_teachers_file_is_refused(tmp_path: Path) -> None:
    write_plan_data(tmp_path / "a.hdf5", [make_episode(0, 4)], ATTRIBUTES)
    with pytest.raises(UsageError, match="another teacher: aaaaaaaaaaaa, not bbbbbbbbbbbb"):
        read_plan_data(tmp_path / "a.hdf5", teacher_sha256="b" * 64)
    with pytest.raises(UsageError, match="there is no file"):
        read_plan_data(tmp_path / "b.hdf5")


def spoil(path: Path, name: str, value: Any) -> None:
    with h5py.File(path, "r+") as root:
        group = root["episode_000000"]
        del group[name]
        if value is not None:
            group[name] = value


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("label", None, "has no label"),
        ("label", np.zeros((3, ACTION), np.float32), "has 3 rows of label"),
        ("latents", np.full((4, LATENT), np.nan, np.float32), "latents in episode_000000 holds numbers"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, name: str, value: Any, message: str) -> None:
    write_plan_data(tmp_path / "a.hdf5", [make_episode(0, 4)], ATTRIBUTES)
    spoil(tmp_path / "a.hdf5", name, value)
    with pytest.raises(DataError, match=message):
        read_plan_data(tmp_path / "a.hdf5")


def test_another_kind_of_file_and_half_a_file_are_refused(tmp_path: Path) -> None:
    write_plan_data(tmp_path / "a.hdf5", [make_episode(0, 4)], ATTRIBUTES)
    (tmp_path / "b.hdf5").write_bytes((tmp_path / "a.hdf5").read_bytes()[:3000])
    with pytest.raises(DataError, match="truncated"):
        read_plan_data(tmp_path / "b.hdf5")
    with h5py.File(tmp_path / "c.hdf5", "w") as root:
        root["observations"] = np.zeros(3)
    with pytest.raises(DataError, match="does not hold a planner's decisions"):
        read_plan_data(tmp_path / "c.hdf5")


# --- indices ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 5))
def test_the_past_stays_within_its_episode_with_the_newest_last(lengths: list[int], length: int) -> None:
    first = np.repeat(np.cumsum(lengths) - lengths, lengths)
    rows = np.arange(len(first))
    past, mask = past_rows(rows, first, length)
    for row in rows:
        wanted = [other for other in range(row - length, row) if other >= first[row]]
        assert past[row][mask[row]].tolist() == wanted
        assert mask[row].tolist() == [False] * (length - len(wanted)) + [True] * len(wanted)
        assert (past[row] >= first[row]).all()


@given(st.integers(2, 40))
def test_an_episode_does_not_change_sides_when_more_are_collected(num_episodes: int) -> None:
    sides = [is_validation(number, num_episodes) for number in range(num_episodes)]
    assert 0 < sum(sides) < num_episodes
    if num_episodes >= 5:
        assert sides == [is_validation(number, num_episodes + 10) for number in range(num_episodes)]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 80), st.integers(0, 5))
def test_thinning_keeps_as_many_as_asked_and_as_many_of_each_round_as_can_be(
    rounds: list[int], most: int, seed: int
) -> None:
    kept = thin(np.arange(len(rounds)) * 3, np.array(rounds), most, seed)
    assert len(kept) == min(most, len(rounds))
    assert (np.diff(kept) > 0).all()
    left = np.bincount(np.array(rounds)[kept // 3], minlength=4)
    total = np.bincount(rounds, minlength=4)
    spared = left < total  # a round that lost some has no less than another one, but for rounding
    assert not spared.any() or left[spared].min() >= left.max() - 1


# --- samples ----------------------------------------------------------------------------------------------------------


def sample_keys(samples: Samples) -> list[tuple[int, int]]:
    """Return state and age of all samples."""
    return list(zip(samples.uses.state.tolist(), samples.uses.age.tolist(), strict=True))


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 8), min_size=2, max_size=3), st.integers(2, 6), st.integers(1, 4))
@torch.no_grad()
def test_every_age_of_a_planners_plan_is_as_if_it_had_been_executed(
    lengths: list[int], execution_horizon: int, history_length: int
) -> None:
    teacher = make_teacher()
    episodes = [make_episode(number, length) for number, length in enumerate(lengths)]
    if sum(max(length - 1, 0) for length in lengths) == 0:
        return
    samples = build_samples(episodes, teacher, execution_horizon=execution_horizon)
    starts = np.cumsum([0, *lengths])
    wanted = {
        (int(starts[e.number]) + step, age): (e, step, age)
        for e in episodes
        for age in range(1, execution_horizon)
        for step in range(age, e.num_decisions)
    }
    keys = sample_keys(samples)
    assert sorted(keys) == sorted(wanted)
    assert samples.episode.tolist() == [wanted[key][0].number for key in keys]
    rows = np.arange(len(keys))
    inputs, label, label_std = samples.batch(rows, history_length)
    for row, key in enumerate(keys):
        episode, step, age = wanted[key]
        latents, actions = torch.from_numpy(episode.latents), torch.from_numpy(episode.actions)
        policy = teacher.policy(latents, torch.zeros_like(actions)).mean
        expected = torch.cat([latents[:1], teacher.next(latents[:-1], actions[:-1])])
        predicted = latents[step - age]
        for ahead in range(min(age, HORIZON)):
            predicted = teacher.next(predicted, torch.from_numpy(episode.plan_mean)[step - age, ahead])
        plan_action = torch.from_numpy(episode.plan_mean)[step - age, min(age, HORIZON - 1)]
        close = {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(inputs.predicted[row], predicted if age <= HORIZON else expected[step], **close)
        torch.testing.assert_close(inputs.plan_action[row], plan_action if age < HORIZON else policy[step], **close)
        assert torch.equal(inputs.plan_std[row], torch.from_numpy(episode.plan_std)[step - age, min(age, HORIZON - 1)])
        assert torch.equal(inputs.real[row], latents[step])
        torch.testing.assert_close(inputs.policy_mean[row], policy[step], **close)
        assert torch.equal(label[row], torch.from_numpy(episode.label)[step])
        assert torch.equal(label_std[row], torch.from_numpy(episode.plan_std)[step, 0])
        for place in range(history_length - 1):
            before = step - (history_length - 1) + place
            assert inputs.mask[row, place] == (before >= 0)
            if before >= 0:
                parts = [latents[before], expected[before], latents[before] - expected[before], actions[before]]
                torch.testing.assert_close(inputs.history[row, place], torch.cat(parts), **close)


def test_a_students_samples_are_what_it_corrected() -> None:
    episode = make_episode(1, 10, round_number=1, execution_horizon=4)
    samples = build_samples([make_episode(0, 3), episode], make_teacher(), execution_horizon=4)
    mine = np.flatnonzero(samples.round == 1)
    steps = np.flatnonzero(episode.ages)
    assert (samples.uses.state[mine] - 3).tolist() == steps.tolist() == [1, 2, 3, 5, 6, 7, 9]
    assert samples.uses.age[mine].tolist() == [1, 2, 3, 1, 2, 3, 1]
    inputs = samples.batch(mine, 1).inputs
    for name in ("predicted", "queued", "queued_std"):
        part = inputs._asdict()[{"queued": "plan_action", "queued_std": "plan_std"}.get(name, name)]
        assert np.array_equal(part.numpy(), getattr(episode, name)[steps]), name


def test_near_latents_are_left_out_and_the_others_keep_their_rows() -> None:
    episodes = [make_episode(0, 9), make_episode(1, 9, round_number=1)]
    teacher = make_teacher()
    every = build_samples(episodes, teacher, execution_horizon=4)
    distance = (every.states.latents[every.uses.state] - every.uses.predicted).norm(dim=-1).numpy()
    least = float(np.median(distance))
    far = build_samples(episodes, teacher, execution_horizon=4, min_distance=least)
    kept = np.flatnonzero(distance >= least)
    assert 0 < len(kept) < len(distance)
    assert [sample_keys(every)[row] for row in kept] == sample_keys(far)
    batches = every.batch(kept, 4), far.batch(np.arange(len(kept)), 4)
    for first, second in zip(
        (*batches[0].inputs, batches[0].label), (*batches[1].inputs, batches[1].label), strict=True
    ):
        assert torch.equal(first, second)


def test_no_episode_is_on_both_sides() -> None:
    episodes = [make_episode(number, 6, round_number=number // 3) for number in range(7)]
    samples = build_samples(episodes, make_teacher(), execution_horizon=4)
    assert set(samples.episode[samples.is_validation]) == {4}
    assert set(samples.episode[~samples.is_validation]) == {0, 1, 2, 3, 5, 6}
    thinned = build_samples(episodes, make_teacher(), execution_horizon=4, max_samples=20)
    assert len(thinned.episode) == 20
    assert set(sample_keys(thinned)) <= set(sample_keys(samples))


def test_the_drawn_elite_can_be_the_target() -> None:
    episodes = [make_episode(0, 5), replace(make_episode(1, 5), label=np.zeros((5, ACTION), np.float32))]
    samples = build_samples(episodes, make_teacher(), execution_horizon=2, target="elite")
    wanted = np.concatenate([episode.plan_elite[1:, 0] for episode in episodes])
    assert np.array_equal(samples.batch(np.arange(8), 1).label.numpy(), wanted)
