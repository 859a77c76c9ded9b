"""Rollouts and what is said about them: every episode counted, the same whatever runs beside it, honest intervals."""

from collections.abc import Callable, Sequence
from contextlib import closing, contextmanager, nullcontext
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gq.envs.make import make
from gq.envs.scores import D4RL, GQ_V5, Reference, reference_for
from gq.envs.tasks import TASKS, Task
from gq.rollouts import episodes as rollout
from gq.rollouts.episodes import Start, Step, roll_out
from gq.rollouts.intervals import interquartile_mean, mean_interval
from gq.rollouts.statistics import Episode, summarise

# --- statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (list(range(8)), 3.5),
        ([0, 0, 1, 2, 3, 10, 100, 1000], 4.0),  # (1 + 2 + 3 + 10) / 4
        ([5], 5.0),
        ([2, 4], 3.0),
        ([1, 2, 30], 11.0),  # too few to leave any out
        ([0, 1, 2, 30, 100], 11.0),  # (1 + 2 + 30) / 3
        ([0, 10, 20, 30, 40, 1000], 25.0),  # (10 + 20 + 30 + 40) / 4
        ([1e6, 1, -1e6, 1], 1.0),
    ],
)
def test_the_interquartile_mean_of_known_values(values: list[float], expected: float) -> None:
    assert interquartile_mean(np.array(values, float)) == pytest.approx(expected, rel=1e-12)


samples = st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=30)


@settings(max_examples=100, deadline=None)
@given(samples, st.integers(2, 5), st.randoms(use_true_random=False))
def test_the_interquartile_mean_does_not_depend_on_the_order(values: list[float], times: int, random: Any) -> None:
    found = interquartile_mean(np.array(values))
    assert min(values) - 1e-6 <= found <= max(values) + 1e-6
    shuffled = random.sample(values, len(values))
    assert interquartile_mean(np.array(shuffled)) == pytest.approx(found, rel=1e-9, abs=1e-9)
    if len(values) % 4 == 0:  # else a quarter is no whole number of values
        assert interquartile_mean(np.repeat(values, times)) == pytest.approx(found, rel=1e-6, abs=1e-6)


def test_the_interval_is_deterministic_and_around_the_mean() -> None:
    values = np.random.default_rng(0).normal(100, 10, 50)
    low, high = mean_interval(values)
    assert (low, high) == mean_interval(values.copy())
    assert low < values.mean() < high
    normal_theory = 2 * 1.96 * values.std() / np.sqrt(50)
    assert high - low == pytest.approx(normal_theory, rel=0.1)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    intervals = [mean_interval(generator.normal(3, 2, 30)) for _ in range(200)]
    assert 0.88 <= np.mean([low <= 3 <= high for low, high in intervals]) <= 0.99


def test_equal_episodes_have_no_width_and_few_no_interval() -> None:
    assert mean_interval(np.array([7.0])) is None
    assert mean_interval(np.full(4, 7.0)) is None
    assert mean_interval(np.full(20, 7.0)) == (7.0, 7.0)


def test_a_summary_per_target_in_the_order_of_appearance() -> None:
    pairs = [(3600.0, 3000.0), (1800.0, 1500.0), (3600.0, 1000.0), (-5.0, 20.0), (1800.0, 1700.0), (3600.0, 2300.0)]
    episodes = [Episode(seed, target, earned, 10 * seed, True) for seed, (target, earned) in enumerate(pairs)]
    summaries = summarise(episodes, D4RL["hopper"])
    assert [summary.target_return for summary in summaries] == [3600.0, 1800.0, -5.0]
    assert [summary.num_episodes for summary in summaries] == [3, 2, 1]
    first = summaries[0]
    assert first.return_mean == pytest.approx(2100)
    assert first.return_std == pytest.approx(np.std([3000, 1000, 2300], ddof=1))
    assert (first.return_min, first.return_max) == (1000, 3000)
    assert first.return_iqm == pytest.approx(2100)  # of three none is left out
    assert first.return_ci95 is None  # of three
    six = [Episode(seed, 1.0, float(seed), 1, True) for seed in range(6)]
    assert summarise(six, None)[0].return_ci95 == mean_interval(np.arange(6.0))
    assert first.length_mean == pytest.approx((0 + 20 + 50) / 3)
    assert first.normalized_mean == pytest.approx(100 * (2100 + 20.272305) / (3234.3 + 20.272305))
    assert first.reference == "d4rl"


def test_without_references_there_is_no_score() -> None:
    (summary,) = summarise([Episode(0, 1.0, 2.0, 3, False)], None)
    assert summary.normalized_mean is None
    assert summary.reference is None


# --- normalised scores ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "of_1000", "of_3600"),
    [
        ("hopper", 31.3489, 111.2365),
        ("halfcheetah", 10.3114, 31.2535),
        ("walker2d", 21.7478, 78.3844),
        ("ant", 31.5221, 93.3489),
    ],
)
def test_scores_of_d4rl(name: str, of_1000: float, of_3600: float) -> None:
    assert D4RL[name].score(1000) == pytest.approx(of_1000, abs=5e-5)
    assert D4RL[name].score(3600) == pytest.approx(of_3600, abs=5e-5)


@pytest.mark.parametrize("reference", [*D4RL.values(), *GQ_V5.values()])
def test_a_score_is_0_at_the_minimum_and_100_at_the_maximum(reference: Reference) -> None:
    assert reference.score(reference.minimum) == 0
    assert reference.score(reference.maximum) == pytest.approx(100)


@pytest.mark.parametrize(
    ("task", "dataset", "name"),
    [
        ("Hopper-v5", "d4rl/hopper-medium-v2", "d4rl"),
        ("HalfCheetah-v4", "d4rl/halfcheetah-expert-v2", "d4rl"),
        ("Hopper-v5", "builtin/hopper/medium", "gq-v5"),
        ("Hopper-v5", "/data/d4rl/hopper.hdf5", "gq-v5"),
        ("Humanoid-v5", "mujoco/humanoid/medium-v0", "gq-v5"),
        ("Humanoid-v5", "d4rl/humanoid-medium-v2", None),
        ("Hopper-v4", "builtin/hopper/medium", None),
        ("Swimmer-v5", "mujoco/swimmer/medium-v0", None),
    ],
)
def test_references_of_d4rl_are_for_its_data_only(task: str, dataset: str, name: str | None) -> None:
    found = reference_for(TASKS[task], dataset)
    assert (found.name if found else None) == name


# --- rollouts ---------------------------------------------------------------------------------------------------------


class NumpyPolicy:
    """A fixed random policy, computed row by row so that no result depends on the size of the batch."""

    def __init__(self, observation_dim: int, action_dim: int, *, gain: float = 1.0) -> None:
        self.weight = np.random.default_rng(4).normal(size=(action_dim, observation_dim)) * gain
        self.returns_to_go = np.zeros(0)
        self.autocast: Callable = nullcontext
        self.resets: list[list[float]] = []
        self.seeds: list[int] = []
        self.acted: list[list[int]] = []
        self.recorded: list[list[int]] = []

    def reset(self, target_returns: np.ndarray, seeds: Sequence[int]) -> None:
        self.resets.append(target_returns.tolist())
        self.seeds += seeds

    def act(self, rows: np.ndarray, observations: np.ndarray) -> np.ndarray:
        assert observations.dtype == np.float32
        assert len(observations) == len(rows)
        self.acted.append(rows.tolist())
        return np.stack([self.weight @ observation for observation in observations]).astype(np.float32)

    def record(self, rows: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> None:
        assert len(rows) == len(actions) == len(rewards)
        self.recorded.append(rows.tolist())


class Watched(gymnasium.Wrapper):
    """An environment that keeps what it was told."""

    def __init__(self, environment: gymnasium.Env) -> None:
        super().__init__(environment)
        self.seeds: list[int] = []
        self.actions: list[np.ndarray] = []
        self.num_closings = 0

    def reset(self, **options: Any) -> Any:
        self.seeds.append(options["seed"])
        return super().reset(**options)

    def step(self, action: np.ndarray) -> Any:
        self.actions.append(action.copy())
        return super().step(action)

    def close(self) -> None:
        self.num_closings += 1
        super().close()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    """Return the environments that roll_out makes from here on."""
    made: list[Watched] = []

    def make_watched(task: Task, **options: Any) -> Watched:
        made.append(Watched(make(task, **options)))
        return made[-1]

    monkeypatch.setattr(rollout, "make", make_watched)
    return made


def play_alone(policy: NumpyPolicy, task: str, seed: int) -> tuple[float, int, bool]:
    """Run one episode by the plain loop."""
    with closing(make(TASKS[task])) as environment:
        box = environment.action_space
        assert isinstance(box, gymnasium.spaces.Box)
        observation, _ = environment.reset(seed=seed)
        total, length, terminated, truncated = 0.0, 0, False, False
        while not (terminated or truncated):
            (action,) = policy.act(np.array([0]), observation[None].astype(np.float32))
            observation, reward, terminated, truncated, _ = environment.step(np.clip(action, box.low, box.high))
            total, length = total + float(reward), length + 1
    return total, length, terminated


SEEDS = [100, 101, 102, 103, 104, 105, 106]
TARGETS = [1.0, 2.0, 1.0, 2.0, 3.0, 1.0, 1.0]
STARTS = [Start(*start) for start in zip(SEEDS, TARGETS, strict=True)]


@pytest.mark.parametrize("num_parallel", [1, 3, 7, 128])
def test_returns_do_not_depend_on_how_many_episodes_run_side_by_side(
    num_parallel: int, monkeypatch: pytest.MonkeyPatch, watched: list[Watched]
) -> None:
    monkeypatch.setattr(rollout, "MAX_PARALLEL_EPISODES", num_parallel)
    policy = NumpyPolicy(11, 3)
    episodes = roll_out(policy, TASKS["Hopper-v5"], STARTS)
    alone = [play_alone(NumpyPolicy(11, 3), "Hopper-v5", seed) for seed in SEEDS]
    assert [(e.episode_return, e.length, e.terminated) for e in episodes] == alone
    assert [(e.seed, e.target_return) for e in episodes] == list(zip(SEEDS, TARGETS, strict=True))
    assert len({e.length for e in episodes}) > 2, "the episodes differ in length"
    assert [target for group in policy.resets for target in group] == TARGETS
    assert policy.seeds == SEEDS
    assert max(len(group) for group in policy.resets) <= num_parallel
    assert policy.acted == policy.recorded
    assert [environment.seeds for environment in watched] == [[seed] for seed in SEEDS], "one episode each, none lost"
    assert all(environment.num_closings == 1 for environment in watched)


def test_a_long_episode_counts_as_much_as_a_short_one() -> None:
    """The bias to avoid: stopping at a number of finished episodes keeps the short ones."""
    episodes = roll_out(NumpyPolicy(11, 3), TASKS["Hopper-v5"], [Start(seed) for seed in SEEDS])
    lengths = sorted(e.length for e in episodes)
    assert len(episodes) == 7
    (summary,) = summarise(episodes, None)
    assert summary.length_mean == pytest.approx(np.mean(lengths))
    assert summary.length_mean > np.mean(lengths[:-1]), "the longest is among them"


def test_actions_are_clipped_to_the_box_of_humanoid(watched: list[Watched]) -> None:
    roll_out(NumpyPolicy(348, 17, gain=10), TASKS["Humanoid-v5"], [Start(0), Start(1)], max_steps=4)
    actions = np.array([action for environment in watched for action in environment.actions])
    assert len(actions) == 8
    assert np.abs(actions).max() == np.float32(0.4)


def test_a_time_limit_is_not_a_termination() -> None:
    (episode,) = roll_out(NumpyPolicy(10, 2), TASKS["Reacher-v5"], [Start(0)])
    assert (episode.length, episode.terminated) == (50, False)
    shortened = roll_out(NumpyPolicy(10, 2), TASKS["Reacher-v5"], [Start(0), Start(1)], max_steps=7)
    assert [(e.length, e.terminated) for e in shortened] == [(7, False)] * 2
    (hopper,) = roll_out(NumpyPolicy(11, 3), TASKS["Hopper-v5"], [Start(100)])
    assert hopper.terminated


def test_options_reach_the_environment() -> None:
    policy = NumpyPolicy(10, 2)
    (episode,) = roll_out(policy, TASKS["Reacher-v5"], [Start(0)], max_episode_steps=5)
    assert episode.length == 5


def test_whoever_watches_sees_every_step() -> None:
    steps: list[Step] = []
    episodes = roll_out(NumpyPolicy(11, 3), TASKS["Hopper-v5"], STARTS[:3], on_step=steps.append)
    assert [step.index for step in steps] == list(range(max(e.length for e in episodes)))
    totals = np.zeros(3)
    for step in steps:
        totals[step.rows] += step.rewards
        assert np.array_equal(totals, step.returns), "what was seen earlier does not change afterwards"
    assert totals.tolist() == [e.episode_return for e in episodes]
    assert [sum(row in step.rows for step in steps) for row in range(3)] == [e.length for e in episodes]


def test_environments_are_closed_when_the_policy_fails(watched: list[Watched]) -> None:
    class Broken(NumpyPolicy):
        def act(self, rows: np.ndarray, observations: np.ndarray) -> np.ndarray:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        roll_out(Broken(11, 3), TASKS["Hopper-v5"], [Start(0), Start(1)])
    assert [environment.num_closings for environment in watched] == [1, 1]


def test_autocast_lasts_for_the_whole_group() -> None:
    entered: list[str] = []

    @contextmanager
    def autocast() -> Any:
        entered.append("in")
        yield
        entered.append("out")

    policy = NumpyPolicy(11, 3)
    policy.autocast = autocast
    roll_out(policy, TASKS["Hopper-v5"], [Start(0), Start(1)], max_steps=3)
    assert entered == ["in", "out"]


def test_no_episodes_give_no_results() -> None:
    assert roll_out(NumpyPolicy(11, 3), TASKS["Hopper-v5"], []) == []
