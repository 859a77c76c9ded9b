"""Training windows and evaluation contexts are the same thing: a recorded episode is walked both ways."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from gq.algos.bc import BCPolicy
from gq.algos.dt import DTPolicy
from gq.data.trajectories import Trajectories
from gq.data.windows import WindowSampler
from gq.models.config import MLPConfig, ModelConfig
from gq.models.context_cache import ContextCache
from gq.models.decision_transformer import DecisionTransformer
from gq.models.mlp import ObservationMLP

K, OBSERVATION_DIM, ACTION_DIM = 5, 4, 2
LENGTHS = [13, 2 * K, K - 2, 1]
QWEN3 = ModelConfig(embed_dim=16, num_layers=2, num_heads=2, num_kv_heads=1, context_length=K, max_timestep=9)
CONFIGS = {"qwen3": QWEN3, "gpt2": replace(QWEN3, backbone="gpt2", num_kv_heads=2)}
Context = tuple[Tensor, Tensor, Tensor, Tensor]


def make_trajectories() -> Trajectories:
    generator, num_rows = np.random.default_rng(0), sum(LENGTHS)
    return Trajectories(
        observations=generator.normal(size=(num_rows, OBSERVATION_DIM)).astype(np.float32),
        actions=generator.uniform(-0.4, 0.4, (num_rows, ACTION_DIM)).astype(np.float32),
        rewards=generator.uniform(0, 3, num_rows).astype(np.float32),
        terminals=np.zeros(num_rows, bool),
        offsets=np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int64),
        source="test",
    )


def make_model(backbone: str = "qwen3") -> DecisionTransformer:
    torch.manual_seed(0)
    model = DecisionTransformer(CONFIGS[backbone], observation_dim=OBSERVATION_DIM, action_dim=ACTION_DIM)
    with torch.no_grad():  # fresh weights hardly look at the past
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.scaling.set(
        observation_mean=np.full(OBSERVATION_DIM, 0.3),
        observation_std=np.full(OBSERVATION_DIM, 2.0),
        action_low=np.full(ACTION_DIM, -0.4),
        action_high=np.full(ACTION_DIM, 0.4),
        return_scale=10.0,
    )
    return model.eval()


class Walk:
    """Recorded episodes taken through a policy side by side: it sees them as if it had acted so itself."""

    def __init__(self, policy: DTPolicy, trajectories: Trajectories, monkeypatch: pytest.MonkeyPatch) -> None:
        self.policy, self.trajectories = policy, trajectories
        self.contexts: list[tuple[int, int, Context]] = []  # episode, step, what the model was given
        self.chosen: list[Tensor] = []  # the model's own action there
        self.forced = np.zeros(0)
        own = policy.model.act

        def act(*context: Tensor, **cached: ContextCache | None) -> Tensor:
            self.given = tuple(array.clone() for array in context)
            self.own = own(*context, **cached)
            return torch.as_tensor(self.forced)

        monkeypatch.setattr(policy.model, "act", act)

    def run(self) -> "Walk":
        trajectories, starts = self.trajectories, self.trajectories.offsets[:-1]
        self.policy.reset(trajectories.returns_to_go()[starts])
        for step in range(max(LENGTHS)):
            running = np.flatnonzero(trajectories.lengths > step)
            rows = starts[running] + step
            self.forced = trajectories.actions[rows]
            assert np.array_equal(self.policy.act(running, trajectories.observations[rows]), self.forced)
            for index, episode in enumerate(running.tolist()):
                self.contexts.append((episode, step, tuple(array[index] for array in self.given)))  # type: ignore[arg-type]
                self.chosen.append(self.own[index])
            self.policy.record(running, self.forced, trajectories.rewards[rows])
        return self


def window_ending_at(sampler: WindowSampler, row: int, step: int) -> Context:
    """Return the training window whose last step is the given step of an episode."""
    length = min(step + 1, K)
    batch = sampler.gather(torch.tensor([row + 1 - length]))
    assert batch.valid[0, :length].all()
    observations, actions, returns_to_go, timesteps, _ = (array[0, :length] for array in batch)
    return observations, actions, returns_to_go, timesteps


def assert_same_inputs(walk: Walk, sampler: WindowSampler) -> None:
    assert len(walk.contexts) == sum(LENGTHS)
    for episode, step, (observations, actions, returns_to_go, timesteps) in walk.contexts:
        window = window_ending_at(sampler, int(walk.trajectories.offsets[episode]) + step, step)
        assert len(observations) == min(step + 1, K)
        assert torch.equal(observations, window[0]), f"observations of episode {episode}, step {step}"
        assert torch.equal(actions, window[1][:-1]), f"earlier actions of episode {episode}, step {step}"
        assert (returns_to_go - window[2]).abs().max() < 1e-5, f"returns-to-go of episode {episode}, step {step}"
        assert torch.equal(timesteps, window[3]), f"timesteps of episode {episode}, step {step}"


@pytest.mark.parametrize("delayed", [False, True])
def test_a_walked_episode_gives_the_model_the_training_windows(delayed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    trajectories = make_trajectories()
    policy = DTPolicy(make_model(), autocast=nullcontext, delayed=delayed)
    walk = Walk(policy, trajectories, monkeypatch).run()
    assert_same_inputs(walk, WindowSampler(trajectories, K, delayed=delayed))


@pytest.mark.parametrize("backbone", ["qwen3", "gpt2"])
def test_a_walked_episode_gives_the_predictions_of_training(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trajectories, model = make_trajectories(), make_model(backbone)
    walk = Walk(DTPolicy(model, autocast=nullcontext), trajectories, monkeypatch).run()
    sampler = WindowSampler(trajectories, K)
    for (episode, step, _), chosen in zip(walk.contexts, walk.chosen, strict=True):
        window = window_ending_at(sampler, int(trajectories.offsets[episode]) + step, step)
        with torch.no_grad():
            predicted = model.scaling.unscale_actions(model(*(array[None] for array in window)))[0, -1]
        assert (chosen - predicted).abs().max() < 1e-6, f"episode {episode}, step {step}"


class LatePolicy(DTPolicy):
    """The defect: each action lands one slot late, so the model sees 0, a_0, ..., a_{t-2}."""

    def record(self, rows: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> None:
        super().record(rows, self.previous[rows], rewards)
        self.previous[rows] = actions

    def reset(self, target_returns: np.ndarray) -> None:
        super().reset(target_returns)
        self.previous = np.zeros((len(target_returns), ACTION_DIM), np.float32)


class ForgetfulPolicy(DTPolicy):
    """The defect: the context never learns of the actions."""

    def record(self, rows: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> None:
        super().record(rows, np.zeros_like(actions), rewards)


class StalePolicy(DTPolicy):
    """The defect: the return-to-go of the previous step."""

    def record(self, rows: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> None:
        super().record(rows, actions, self.previous[rows])
        self.previous[rows] = rewards

    def reset(self, target_returns: np.ndarray) -> None:
        super().reset(target_returns)
        self.previous = np.zeros(len(target_returns))


@pytest.mark.parametrize(
    ("defect", "message"),
    [(LatePolicy, "earlier actions"), (ForgetfulPolicy, "earlier actions"), (StalePolicy, "returns-to-go")],
)
def test_the_comparison_catches(defect: Callable[..., DTPolicy], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trajectories = make_trajectories()
    walk = Walk(defect(make_model(), autocast=nullcontext), trajectories, monkeypatch).run()
    with pytest.raises(AssertionError, match=message):
        assert_same_inputs(walk, WindowSampler(trajectories, K))


def test_the_comparison_catches_the_wrong_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    trajectories = make_trajectories()
    walk = Walk(DTPolicy(make_model(), autocast=nullcontext, delayed=True), trajectories, monkeypatch).run()
    with pytest.raises(AssertionError, match="returns-to-go"):
        assert_same_inputs(walk, WindowSampler(trajectories, K))


# --- the policy by itself ---------------------------------------------------------------------------------------------


def play(
    policy: DTPolicy | BCPolicy, observations: np.ndarray, rewards: np.ndarray, targets: list[float]
) -> np.ndarray:
    """Return the actions [T, E, A] on observations [T, E, S], every episode running to the end."""
    policy.reset(np.array(targets))
    rows, actions = np.arange(len(targets)), []
    for seen, earned in zip(observations, rewards, strict=True):
        actions.append(policy.act(rows, seen))
        policy.record(rows, actions[-1], earned)
    return np.array(actions)


def test_the_return_to_go_falls_by_the_reward_and_below_zero_too() -> None:
    policy = DTPolicy(make_model(), autocast=nullcontext)
    play(
        policy, np.zeros((3, 2, OBSERVATION_DIM), np.float32), np.array([[1.0, 2.0], [0.5, 3.0], [0.5, -1.0]]), [100, 4]
    )
    assert policy.returns_to_go.tolist() == [98.0, 0.0]
    policy.record(np.array([1]), np.zeros((1, ACTION_DIM)), np.array([2.5]))
    assert policy.returns_to_go.tolist() == [98.0, -2.5]


def test_the_return_to_go_stays_at_the_target_in_delayed_mode() -> None:
    policy = DTPolicy(make_model(), autocast=nullcontext, delayed=True)
    play(policy, np.zeros((3, 2, OBSERVATION_DIM), np.float32), np.ones((3, 2)), [100, 4])
    assert policy.returns_to_go.tolist() == [100.0, 4.0]


def test_actions_follow_the_target() -> None:
    generator, rewards = np.random.default_rng(0), np.zeros((8, 2))
    observations = np.repeat(generator.normal(size=(8, 1, OBSERVATION_DIM)), 2, axis=1).astype(np.float32)
    same = play(DTPolicy(make_model(), autocast=nullcontext), observations, rewards, [20, 20])
    apart = play(DTPolicy(make_model(), autocast=nullcontext), observations, rewards, [20, 60])
    np.testing.assert_allclose(same[:, 0], same[:, 1], rtol=0, atol=1e-6)
    assert np.abs(apart[:, 0] - apart[:, 1]).max(axis=1).min() > 1e-4
    assert np.abs(apart).max() <= 0.4


def test_an_episode_that_ended_does_not_touch_the_others() -> None:
    generator = np.random.default_rng(0)
    observations = generator.normal(size=(9, 3, OBSERVATION_DIM)).astype(np.float32)
    rewards = generator.uniform(size=(9, 3))
    together = play(DTPolicy(make_model(), autocast=nullcontext), observations, rewards, [10, 20, 30])
    policy = DTPolicy(make_model(), autocast=nullcontext)
    policy.reset(np.array([10.0, 20.0, 30.0]))
    for step in range(9):
        rows = np.arange(3) if step < 3 else np.array([0, 2]) if step < 7 else np.array([2])
        actions = policy.act(rows, observations[step, rows])
        np.testing.assert_allclose(actions, together[step, rows], rtol=0, atol=1e-6)
        policy.record(rows, actions, rewards[step, rows])


def test_a_reset_forgets_the_episodes_before() -> None:
    generator = np.random.default_rng(0)
    observations, rewards = generator.normal(size=(8, 2, OBSERVATION_DIM)).astype(np.float32), np.ones((8, 2))
    policy = DTPolicy(make_model(), autocast=nullcontext)
    first = play(policy, observations, rewards, [10, 20])
    assert np.array_equal(play(policy, observations, rewards, [10, 20]), first)
    assert play(policy, observations[:, :1], rewards[:, :1], [10]).shape == (8, 1, ACTION_DIM), "a smaller group"


def test_the_context_holds_the_executed_action_not_the_proposed_one() -> None:
    policy = DTPolicy(make_model(), autocast=nullcontext)
    policy.reset(np.array([5.0]))
    rows, zeros = np.arange(1), np.zeros((1, OBSERVATION_DIM), np.float32)
    executed = policy.act(rows, zeros) + 0.125
    policy.record(rows, executed, np.ones(1))
    assert np.array_equal(policy.context(rows, zeros)[1][0], executed)


def test_the_given_targets_are_not_written_to() -> None:
    targets = np.array([5.0, 6.0])
    policy = DTPolicy(make_model(), autocast=nullcontext)
    policy.reset(targets)
    actions = policy.act(np.arange(2), np.zeros((2, OBSERVATION_DIM), np.float32))
    policy.record(np.arange(2), actions, np.ones(2))
    assert targets.tolist() == [5.0, 6.0]


# --- behaviour cloning ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_observations", [1, 3])
def test_behaviour_cloning_acts_on_the_windows_it_was_trained_on(num_observations: int) -> None:
    torch.manual_seed(0)
    config = MLPConfig(context_length=num_observations, embed_dim=16)
    model = ObservationMLP(config, observation_dim=OBSERVATION_DIM, action_dim=ACTION_DIM).eval()
    model.scaling.action_high.fill_(0.4)
    model.scaling.observation_mean.fill_(1.0)
    trajectories = make_trajectories()
    sampler = WindowSampler(trajectories, num_observations, backward=True)
    policy, starts = BCPolicy(model, autocast=nullcontext), trajectories.offsets[:-1]
    policy.reset(np.zeros(len(LENGTHS)))
    for step in range(max(LENGTHS)):
        running = np.flatnonzero(trajectories.lengths > step)
        rows = starts[running] + step
        actions = policy.act(running, trajectories.observations[rows])
        batch = sampler.gather(torch.as_tensor(rows))
        with torch.no_grad():
            predicted = model.scaling.unscale_actions(model(batch.observations, batch.valid)).numpy()
        np.testing.assert_allclose(actions, predicted, rtol=0, atol=1e-6, err_msg=f"step {step}")
        policy.record(running, actions, np.ones(len(running)))


def test_behaviour_cloning_ignores_the_target() -> None:
    model = ObservationMLP(MLPConfig(), observation_dim=OBSERVATION_DIM, action_dim=ACTION_DIM)
    observations = np.repeat(np.random.default_rng(0).normal(size=(3, 1, OBSERVATION_DIM)), 2, axis=1).astype(
        np.float32
    )
    actions = play(BCPolicy(model, autocast=nullcontext), observations, np.ones((3, 2)), [0, 1e6])
    np.testing.assert_allclose(actions[:, 0], actions[:, 1], rtol=0, atol=1e-6)
    assert BCPolicy(model, autocast=nullcontext).returns_to_go.size == 0
