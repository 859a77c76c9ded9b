"""TD3+BC and ReBRAC compute what their papers say, equal an independent eager implementation, and prefer what pays."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import replaying
from commandline import gq
from gq import presets
from gq.algos.captured import Captured, Program
from gq.algos.critic import noisy, td_target
from gq.algos.supervised import Execution
from gq.algos.td3bc import TD3BCLearner, TD3BCPolicy
from gq.config import TD3BCConfig
from gq.data.trajectories import Trajectories
from gq.data.transitions import TransitionSampler
from gq.errors import DataError, UsageError
from gq.models.actor_critic import ActorCritic
from gq.models.critic_config import CriticConfig
from gq.models.flat_mlp import FlatMLP, Kept, differentiate, run
from tiny import write_hopper_file

S, A = 5, 2
RECIPES = ("td3bc", "rebrac")


def make_trajectories(*, cut: tuple[int, ...] = (1,), rows: int = 8, episodes: int = 4, seed: int = 0) -> Trajectories:
    """Episodes of equal length, of which those in `cut` end by their time limit."""
    generator, num = np.random.default_rng(seed), rows * episodes
    terminals = np.zeros(num, bool)
    terminals[[rows * (episode + 1) - 1 for episode in range(episodes) if episode not in cut]] = True
    return Trajectories(
        observations=generator.standard_normal((num, S)).astype(np.float32),
        actions=generator.uniform(-1, 1, (num, A)).astype(np.float32),
        rewards=generator.uniform(0, 1, num).astype(np.float32),
        terminals=terminals,
        offsets=np.arange(0, num + 1, rows),
        source="test",
    )


def make_learner(recipe: str, execution: Execution | None = None, **settings: Any) -> TD3BCLearner:
    torch.manual_seed(0)
    usual = {"model.embed_dim": 16, "train.batch_size": 32, "train.steps": 20}
    config = presets.td3bc(recipe).replace({**usual, **settings})
    assert isinstance(config, TD3BCConfig)
    model = ActorCritic(config.model, observation_dim=S, action_dim=A)
    sampler = TransitionSampler(make_trajectories(), model.scaling, seed=3, reward_scale=config.critic.reward_scale)
    return TD3BCLearner(model, sampler, config, execution or Execution())


# --- an independent implementation: modules, autograd, torch's Adam ---------------------------------------------------


class Plain(nn.Module):
    """An MLP of modules with one head's weights."""

    def __init__(self, head: list[Any]) -> None:
        super().__init__()
        self.linears, self.norms = nn.ModuleList(), nn.ModuleList()
        for layer in head:
            linear = nn.Linear(layer.weight.shape[1], layer.weight.shape[0])
            linear.load_state_dict({"weight": layer.weight, "bias": layer.bias})
            self.linears.append(linear)
            if layer.gain is not None:
                norm = nn.LayerNorm(len(layer.gain), eps=1e-6)
                norm.load_state_dict({"weight": layer.gain, "bias": layer.shift})
                self.norms.append(norm)

    def forward(self, x: Tensor) -> Tensor:
        for index, linear in enumerate(self.linears):
            x = linear(x)
            if index < len(self.linears) - 1:
                x = F.relu(x)
                x = self.norms[index](x) if len(self.norms) else x
        return x


class Eager:
    """TD3+BC and ReBRAC as their papers write them."""

    def __init__(self, learner: TD3BCLearner) -> None:
        self.is_rebrac = learner.config.size == "rebrac"
        self.actor = Plain(learner.actor.heads[0])
        self.critics = nn.ModuleList(Plain(head) for head in learner.critic.heads)
        self.slow_actor, self.slow_critics = copy.deepcopy(self.actor), copy.deepcopy(self.critics)
        rate = 1e-3 if self.is_rebrac else 3e-4
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), lr=rate)
        self.critic_adam = torch.optim.Adam(self.critics.parameters(), lr=rate)

    def update(self, batch: tuple[Tensor, ...], noise: Tensor, *, with_policy: bool) -> None:
        s, a, r, not_done, s2, a2 = batch
        with torch.no_grad():
            action = (torch.tanh(self.slow_actor(s2)) + (noise * 0.2).clamp(-0.5, 0.5)).clamp(-1, 1)
            q = torch.min(*[critic(torch.cat([s2, action], 1)) for critic in self.slow_critics])
            if self.is_rebrac:
                q = q - 0.01 * ((action - a2) ** 2).sum(1, keepdim=True)
            target = r + 0.99 * not_done * q
        loss = sum(F.mse_loss(critic(torch.cat([s, a], 1)), target) for critic in self.critics)
        self.critic_adam.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        self.critic_adam.step()
        if not with_policy:
            return
        pi = torch.tanh(self.actor(s))
        values = [critic(torch.cat([s, pi], 1)) for critic in self.critics]
        if self.is_rebrac:
            value = torch.min(*values)
            policy_loss = (0.05 * ((pi - a) ** 2).sum(1, keepdim=True) - value / value.abs().mean().detach()).mean()
        else:
            value = values[0]
            policy_loss = -2.5 * value.mean() / value.abs().mean().detach() + F.mse_loss(pi, a)
        self.actor_adam.zero_grad()
        policy_loss.backward()
        self.actor_adam.step()
        for slow, fast in ((self.slow_actor, self.actor), (self.slow_critics, self.critics)):
            for one, other in zip(slow.parameters(), fast.parameters(), strict=True):
                one.data.copy_(0.995 * one.data + 0.005 * other.data)


def weights_of(head: list[Any]) -> Tensor:
    return torch.cat([value.detach().reshape(-1) for layer in head for value in layer if value is not None])


def weights_in(plain: Any) -> Tensor:
    parts = []
    for index, linear in enumerate(plain.linears):
        modules = [linear, plain.norms[index]] if index < len(plain.norms) else [linear]
        parts += [value.detach().reshape(-1) for module in modules for value in (module.weight, module.bias)]
    return torch.cat(parts)


@pytest.mark.parametrize("recipe", RECIPES)
def test_updates_equal_those_of_an_eager_implementation(recipe: str) -> None:
    learner = make_learner(recipe)
    eager, generator = Eager(learner), torch.Generator().manual_seed(5)
    before = weights_of(learner.actor.heads[0]).clone()
    for step in range(6):
        batch = learner.sampler.sample(32)
        noise = torch.randn(32, A, generator=generator)
        s, a, s2, a2 = (*batch.inputs.split([S, A], 1), *batch.next_inputs.split([S, A], 1))
        learner.learn(batch, noise, learner.learning_rate(step), with_policy=step % 2 == 1)
        eager.update((s, a, batch.rewards, batch.bootstrap, s2, a2), noise, with_policy=step % 2 == 1)
        if step in (1, 5):
            pairs = [
                (learner.actor.heads[0], eager.actor),
                (learner.actor.target_heads[0], eager.slow_actor),
                *zip(learner.critic.heads, eager.critics, strict=True),
                *zip(learner.critic.target_heads, eager.slow_critics, strict=True),
            ]
            for head, plain in pairs:
                torch.testing.assert_close(weights_of(head), weights_in(plain), atol=1e-5, rtol=1e-5)
    assert (weights_of(learner.actor.heads[0]) - before).abs().max() > 1e-4


@pytest.mark.parametrize("norm", [False, True])
def test_the_backward_pass_equals_autograd(norm: bool) -> None:
    network = FlatMLP((4, 8, 8, 3), num_heads=2, norm=norm)
    inputs = torch.randn(7, 4, requires_grad=True)
    outputs = network(inputs)
    weight = torch.randn(7, 3)
    (outputs[1] * weight).sum().backward()
    into = torch.zeros_like(network.flat)
    with torch.no_grad():
        kept: list[Kept] = []
        head = network.layers(network.flat)[1]
        torch.testing.assert_close(run(head, inputs, kept), outputs[1].detach())
        found = differentiate(head, kept, weight, network.layers(into)[1], columns=2)
        assert differentiate(head, kept, weight) is None
    assert network.flat.grad is not None
    assert inputs.grad is not None
    assert found is not None
    torch.testing.assert_close(into, network.flat.grad)
    torch.testing.assert_close(found, inputs.grad[:, -2:])


def test_networks_have_the_sizes_and_starts_of_the_papers() -> None:
    plain = ActorCritic(presets.td3bc().model, observation_dim=11, action_dim=3)
    assert (plain.actor.flat.numel(), plain.critic.flat.numel()) == (69_635, 2 * 69_889)
    rebrac = ActorCritic(presets.td3bc("rebrac").model, observation_dim=11, action_dim=3)
    assert (rebrac.actor.flat.numel(), rebrac.critic.flat.numel()) == (135_427, 2 * 137_217)
    first, *_, last = rebrac.critic.layers(rebrac.critic.flat)[1]
    assert torch.equal(first.bias, torch.full((256,), 0.1))
    assert last.weight.abs().max() <= 3e-3
    assert last.weight.abs().max() > 2e-3
    assert first.gain is not None
    assert last.gain is None


# --- targets ----------------------------------------------------------------------------------------------------------


def target(reward: float, bootstrap: float, value: float, distance: float, **settings: float) -> float:
    config = CriticConfig(**settings)  # type: ignore[arg-type]
    column = [torch.tensor([[number]]) for number in (reward, bootstrap, value, distance)]
    return float(td_target(column[0], column[1], column[2], column[3], config))


def test_targets_are_those_worked_out_by_hand() -> None:
    assert target(1, 1, 9, 0) == pytest.approx(9.91)
    assert target(1, 0, 9, 0) == 1
    assert target(1, 1, 9, 0.25, target_penalty=0.5) == pytest.approx(9.78625)
    # A chain s0 -> s1 -> end with reward 1: Q(s1) = 1, Q(s0) = 1.9; with pi(s1) = 0.5 where 0.2 was logged, less.
    assert target(1, 1, 1, 0.09, discount=0.9) == pytest.approx(1.9)
    assert target(1, 1, 1, 0.09, discount=0.9, target_penalty=0.5) == pytest.approx(1.8595)
    assert target(1, 1, 1, 0.09, discount=0.9, target_penalty=1) == pytest.approx(1.819)
    assert target(1, 1, 2, 0, discount=0.9) == pytest.approx(2.8)  # cut short there, and not an end


def test_noise_is_scaled_and_clipped_and_actions_stay_in_the_box() -> None:
    actions, noise = torch.tensor([[0.0, 0.0, 0.9, -0.9]]), torch.tensor([[1.0, -9.0, 9.0, -9.0]])
    assert noisy(actions, noise, CriticConfig()).tolist() == [pytest.approx([0.2, -0.5, 1.0, -1.0])]


def test_transitions_skip_cuts_and_keep_ends() -> None:
    trajectories = make_trajectories(cut=(1,))
    scaling = ActorCritic(presets.td3bc().model, observation_dim=S, action_dim=A).scaling
    sampler = TransitionSampler(trajectories, scaling, reward_scale=2.0)
    assert sorted(set(range(32)) - set(sampler.usable.tolist())) == [15]  # the step that the time limit ended
    batch = sampler.gather(sampler.usable)
    assert batch.bootstrap[:, 0].tolist() == [0.0 if row % 8 == 7 else 1.0 for row in sampler.usable.tolist()]
    np.testing.assert_allclose(batch.rewards[:8, 0], 2 * trajectories.rewards[:8])
    np.testing.assert_allclose(batch.next_inputs[3, S:], trajectories.actions[4])
    np.testing.assert_allclose(batch.inputs[3, :S], trajectories.observations[3], rtol=1e-5)
    with pytest.raises(DataError, match="no transition with a next observation"):
        TransitionSampler(make_trajectories(cut=(0,), rows=1, episodes=1), scaling)


def test_what_ends_an_episode_has_a_digest_of_its_own() -> None:
    cut, ended = make_trajectories(cut=(1,)), make_trajectories(cut=())
    assert cut.sha256() == ended.sha256()
    assert cut.terminals_sha256() != ended.terminals_sha256()


# --- what is learnt ---------------------------------------------------------------------------------------------------


def two_modes(num: int = 512) -> Trajectories:
    """Actions of -0.5 and 0.5 in one state, each an episode; the second is paid."""
    actions = np.where(np.arange(num) % 2, 0.5, -0.5).astype(np.float32)[:, None]
    return Trajectories(
        observations=np.ones((num, 1), np.float32),
        actions=actions,
        rewards=(actions[:, 0] > 0).astype(np.float32),
        terminals=np.ones(num, bool),
        offsets=np.arange(num + 1),
        source="test",
    )


def learnt_action(recipe: str, **settings: Any) -> float:
    torch.manual_seed(1)
    usual = {"model.embed_dim": 32, "train.batch_size": 128, "optim.learning_rate": 3e-3}
    config = presets.td3bc(recipe).replace({**usual, **settings})
    assert isinstance(config, TD3BCConfig)
    model = ActorCritic(config.model, observation_dim=1, action_dim=1)
    learner = TD3BCLearner(model, TransitionSampler(two_modes(), model.scaling), config)
    for step in range(600):
        learner.update(step)
    return float(model(torch.ones(1, 1)).detach())


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_policy_prefers_what_pays_and_clones_where_only_cloning_counts(recipe: str) -> None:
    assert learnt_action(recipe) > 0.3
    assert abs(learnt_action(recipe, **{"critic.q_weight": 0})) < 0.1
    assert abs(learnt_action(recipe, **{"critic.bc_weight": 1000.0})) < 0.1


def test_the_policy_and_the_slow_copies_move_every_second_update() -> None:
    learner = make_learner("td3bc")
    first = {name: getattr(learner, name).target.clone() for name in ("actor", "critic")}
    weights = learner.actor.parameter.detach().clone()
    learner.update(0)
    assert torch.equal(learner.actor.target, first["actor"])
    assert torch.equal(learner.critic.target, first["critic"])
    assert torch.equal(learner.actor.parameter, weights)
    learner.update(1)
    for name, before in first.items():
        flat = getattr(learner, name)
        torch.testing.assert_close(flat.target, before + 0.005 * (flat.parameter.detach() - before))


def test_updates_that_are_not_finite_change_nothing_and_are_counted() -> None:
    learner = make_learner("td3bc")
    learner.sampler.rows[:, S + A] = torch.nan  # rewards
    before = learner.critic.parameter.detach().clone()
    learner.update(0)
    assert torch.equal(learner.critic.parameter, before)
    assert float(learner.num_skipped) == 1


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_state_resumes_to_the_bit(recipe: str) -> None:
    whole, first, second = (make_learner(recipe) for _ in range(3))
    for step in range(9):
        whole.update(step)
    for step in range(5):
        first.update(step)
    second.sampler.generator.manual_seed(77)
    second.model.load_state_dict(first.model.state_dict())
    second.load_state_tensors(first.state_tensors())
    for step in range(5, 9):
        second.update(step)
    for name, value in whole.state_tensors().items():
        assert torch.equal(value, second.state_tensors()[name]), name
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_replayed_updates_equal_those_that_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Captured, "capture", replaying.capture)
    monkeypatch.setattr(Captured, "warm_up", replaying.warm_up)
    captured, plain = make_learner("rebrac", Execution(program=Program(False, True, "test"))), make_learner("rebrac")
    step = 0
    while step < 13:
        step += captured.updates(step, 13 - step)[1]
    for step in range(13):
        plain.update(step)
    for name in ("actor", "critic"):  # a graph's learning rates are float32
        one, other = getattr(captured, name), getattr(plain, name)
        torch.testing.assert_close(one.parameter, other.parameter, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(one.target, other.target, rtol=1e-4, atol=1e-6)


def test_actions_come_in_the_units_of_the_environment() -> None:
    model = ActorCritic(presets.td3bc().model, observation_dim=S, action_dim=A)
    model.scaling.action_high.fill_(0.4)
    model.scaling.action_low.fill_(-0.4)
    policy = TD3BCPolicy(model, autocast=torch.no_grad)
    policy.reset(np.zeros(3))
    observations = 5 * np.random.default_rng(0).standard_normal((3, S))
    actions = policy.act(np.arange(3), observations)
    expected = 0.4 * model(torch.as_tensor(observations, dtype=torch.float32)).detach().numpy()
    np.testing.assert_allclose(actions, expected, rtol=1e-5)


# --- recipes and the command ------------------------------------------------------------------------------------------


def test_rebrac_takes_its_published_weights_for_d4rl_and_one_pair_for_all_else() -> None:
    def weights(dataset: str) -> tuple[float, float]:
        critic = presets.td3bc("rebrac", dataset).critic
        return critic.bc_weight, critic.target_penalty

    assert weights("d4rl/hopper-medium-v2") == (0.01, 0.01)
    assert weights("d4rl/hopper-medium-replay-v2") == (0.05, 0.5)
    assert weights("builtin/hopper/medium-replay") == weights("d4rl/ant-medium-v2") == (0.05, 0.01)
    with pytest.raises(UsageError, match="no recipe rebarc"):
        presets.td3bc("rebarc")


@pytest.mark.parametrize("setting", ["train.num_micro_batches=2", "optim.optimizer=lamb", "data.mode=delayed"])
def test_settings_that_mean_nothing_to_it_are_refused(tmp_path: Path, setting: str) -> None:
    data = write_hopper_file(tmp_path / "data.hdf5")
    result = gq("train", "td3bc", "--dataset", data, "--set", setting)
    assert result.exit_code == 2
    assert f"{setting.split('=')[0]} cannot be changed for td3bc" in result.stderr


@pytest.mark.usefixtures("fast_disk")
def test_the_command_trains_evaluates_and_refuses_other_ends(tmp_path: Path) -> None:
    data, out = write_hopper_file(tmp_path / "data.hdf5"), tmp_path / "run"
    flags = ["--set", "model.embed_dim=8", "--set", "eval.num_episodes=1", "--batch-size", 8]
    result = gq("train", "td3bc", "--recipe", "rebrac", "--dataset", data, "--steps", 4, "--out", out, *flags)
    assert result.exit_code == 0, result.stderr
    facts = json.loads((out / "environment.json").read_text())
    assert len(facts["terminals_sha256"]) == 64
    evaluated = gq("eval", out, "--episodes", 2, "--json")
    assert evaluated.exit_code == 0, evaluated.stderr
    assert "TD3+BC or ReBRAC" in (out / "README.md").read_text()
    assert gq("collect", out, "--episodes", 1, "--output", tmp_path / "collected.hdf5").exit_code == 0
    assert gq("params", out).exit_code == 2
    import h5py

    with h5py.File(data, "r+") as file:
        file["terminals"][29], file["timeouts"][29] = False, True
    again = gq("train", "td3bc", "--out", out, "--resume", "--steps", 6)
    assert again.exit_code == 1
    assert "is not the data that this run began with" in again.stderr
