"""Many environments at once give, to the bit, what each gives alone in Gymnasium."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest

from gq.envs.tasks import resolve_task
from gq.rollouts import episodes as rollout
from gq.rollouts.episodes import MIN_SHARE, Start, Stepper, roll_out, shares
from simulator import make

NUM_EPISODES = 3 * MIN_SHARE + 1
MAX_STEPS = 60


class Shaking:
    """Actions that depend on the observation and the seed alone; the same for one episode as for many."""

    is_rowwise = True
    returns_to_go = np.zeros(0)

    def __init__(self, space: Any) -> None:
        self.space = space

    @staticmethod
    def autocast() -> Any:
        from contextlib import nullcontext

        return nullcontext()

    def reset(self, target_returns: np.ndarray, seeds: Sequence[int]) -> None:
        self.generators = [np.random.default_rng(seed) for seed in seeds]

    def act(self, rows: np.ndarray, observations: np.ndarray) -> np.ndarray:
        return np.stack([self.choose(self.generators[row], seen) for row, seen in zip(rows, observations, strict=True)])

    def choose(self, generator: np.random.Generator, seen: np.ndarray) -> np.ndarray:
        drawn = generator.uniform(self.space.low, self.space.high)
        return np.clip(drawn + 0.1 * seen[: len(drawn)], self.space.low, self.space.high).astype(np.float32)

    def record(self, rows: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> None:
        pass


def alone(task: str, seed: int) -> tuple[float, int, bool]:
    """Return the return and length of an episode in Gymnasium's own loop, and whether it terminated."""
    mujoco.set_mju_user_warning(lambda message: None)
    environment = gymnasium.make(task)
    policy = Shaking(environment.action_space)
    policy.reset(np.zeros(1), [seed])
    observation, _ = environment.reset(seed=seed)
    total, length = 0.0, 0
    for _ in range(MAX_STEPS):
        action = policy.choose(policy.generators[0], observation.astype(np.float32))
        observation, reward, terminated, truncated, _ = environment.step(action)
        total, length = total + reward, length + 1
        if terminated or truncated:
            break
    environment.close()
    return total, length, terminated


@pytest.mark.parametrize("num_cores", [1, 3])
@pytest.mark.parametrize("task", ["Hopper-v5", "Humanoid-v5", "HalfCheetah-v5", "Reacher-v5"])
def test_many_give_to_the_bit_what_each_gives_alone(task: str, num_cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "num_cores", lambda: num_cores)
    environment = make(task)
    policy, seeds = Shaking(environment.action_space), list(range(NUM_EPISODES))
    episodes = roll_out(policy, resolve_task(task), [Start(seed) for seed in seeds], max_steps=MAX_STEPS)
    found = [(episode.episode_return, episode.length, episode.terminated) for episode in episodes]
    assert found == [alone(task, seed) for seed in seeds]
    if task in ("Hopper-v5", "Humanoid-v5"):
        assert any(terminated for _, _, terminated in found)
        assert len({length for _, length, _ in found}) > 2, "episodes end at different steps"


def test_shares_are_even_and_never_only_a_few() -> None:
    assert [list(share) for share in shares(3, 8)] == [[0, 1, 2]]
    assert shares(2 * MIN_SHARE, 8) == [range(MIN_SHARE), range(MIN_SHARE, 2 * MIN_SHARE)]
    assert [len(share) for share in shares(100, 3)] == [33, 33, 34]
    assert [len(share) for share in shares(128, 1)] == [128]
    for number in range(1, 130):
        parts = shares(number, 16)
        assert [index for part in parts for index in part] == list(range(number))
        assert len(parts) == 1 or min(map(len, parts)) >= MIN_SHARE


class Environment:
    """Counts its steps; breaks at a step."""

    def __init__(self, breaks_at: int = -1) -> None:
        self.num_steps, self.breaks_at = 0, breaks_at

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.num_steps += 1
        if self.num_steps == self.breaks_at:
            raise ValueError("broken")
        return np.full(2, self.num_steps), float(action[0]), self.num_steps == 3, self.num_steps == 4, {}


def test_rows_keep_their_order_in_threads() -> None:
    environments = [Environment() for _ in range(40)]
    rows = np.arange(1, 40, 2)
    with Stepper(environments, num_threads=4) as stepper:
        for step in range(1, 5):
            outcome = stepper.step(rows, rows[:, None].astype(float))
            assert outcome.rewards.tolist() == rows.tolist()
            assert outcome.observations.tolist() == [[step, step]] * len(rows)
            assert outcome.terminated.all() == (step == 3)
            assert outcome.ended.all() == (step >= 3)
    assert [environment.num_steps for environment in environments] == [0, 4] * 20


@pytest.mark.parametrize("broken", [0, 39])
def test_an_error_in_any_thread_is_raised(broken: int) -> None:
    environments = [Environment(1 if index == broken else -1) for index in range(40)]
    with Stepper(environments, num_threads=4) as stepper, pytest.raises(ValueError, match="broken"):
        stepper.step(np.arange(40), np.zeros((40, 1)))


def test_one_core_has_no_thread() -> None:
    with Stepper([Environment()], num_threads=1) as stepper:
        assert stepper.pool is None


def test_windows_are_drawn_in_the_thread_that_made_them() -> None:
    environment = Environment()
    environment.render_mode = "human"  # type: ignore[attr-defined]
    with Stepper([environment, *(Environment() for _ in range(40))], num_threads=4) as stepper:
        assert stepper.pool is None
