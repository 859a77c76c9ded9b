"""The whole Online Decision Transformer, its update and its windows against arrays recorded from the original."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from gq.algos import odt
from gq.algos.odt import EntropyConstraint, ODTLearner
from gq.config import EntropyConfig, OptimConfig, TrainConfig
from gq.data.trajectories import Trajectories
from gq.data.windows import Batch, WindowSampler
from gq.models.config import StochasticModelConfig
from gq.models.scaling import Scaling
from gq.models.stochastic_transformer import StochasticTransformer
from test_parity import Recorded, assert_close, gpt2_names, to_ours

pytestmark = pytest.mark.parity

OPTIM = OptimConfig(
    optimizer="lamb", learning_rate=1e-3, weight_decay=5e-4, warmup_steps=2, schedule="constant", gradient_clip=0.25
)
UNUSED = ("transformer.wte.", "embed_timestep.", "predict_state.", "predict_return.")


class OriginalODT:
    """A recorded Online Decision Transformer, loaded into ours."""

    def __init__(self, folder: Path, prefix: str = "") -> None:
        self.recorded = Recorded(folder / "odt_model.npz")
        meta, weights = self.recorded.meta, self.recorded.under(f"{prefix}w/")
        self.names = gpt2_names(meta["n_layer"])
        for theirs, ours in (("mu", "mean"), ("log_std", "log_std")):
            self.names |= {f"predict_action.{theirs}.{part}": f"predict_{ours}.{part}" for part in ("weight", "bias")}
        self.names["embed_ordering.weight"] = "embed_position.weight"
        config = StochasticModelConfig(
            backbone="gpt2",
            embed_dim=meta["hidden_size"],
            num_layers=meta["n_layer"],
            num_heads=meta["n_head"],
            num_kv_heads=meta["n_head"],
            mlp_ratio=meta["n_inner"] / meta["hidden_size"],
            activation="relu",
            context_length=meta["max_length"],
            acting_context=meta["eval_context_length"],
            positions="timestep" if "embed_ordering.weight" in weights else "none",
            max_timestep=meta["max_ep_len"],
        )
        self.model = StochasticTransformer(config, observation_dim=meta["state_dim"], action_dim=meta["act_dim"])
        state = {self.names[name]: value for name, value in self.trained(f"{prefix}w/").items()}
        missing, unexpected = self.model.load_state_dict(state, strict=False)
        assert not unexpected
        assert all(name.startswith("scaling.") for name in missing)

    def trained(self, prefix: str) -> dict[str, Tensor]:
        """Return the recorded tensors that ours has too, turned to our layout, by the original's names."""
        return {
            name: to_ours(name, value)
            for name, value in self.recorded.under(prefix).items()
            if not name.startswith(UNUSED) and not name.endswith((".attn.bias", ".attn.masked_bias"))
        }

    def inputs(self, prefix: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        states, actions, returns, timesteps = (
            self.recorded[f"{prefix}/{name}"] for name in ("states", "actions", "rtg", "timesteps")
        )
        return states, actions, returns[:, : states.shape[1]], timesteps


@pytest.fixture
def original(fixtures: Path) -> OriginalODT:
    return OriginalODT(fixtures)


# --- predictions ------------------------------------------------------------------------------------------------------


def test_predictions_with_left_padding_match_the_original(original: OriginalODT) -> None:
    recorded, inputs, real = original.recorded, original.inputs("fwd"), original.recorded["fwd/mask"].bool()
    assert 0 < real.float().mean() < 1
    distribution = original.model.eval()(*inputs, real)
    assert_close(distribution.mean[real], recorded["fwd/mu"][real])
    assert_close(distribution.log_std[real], recorded["fwd/log_std"][real])
    assert_close(distribution.mode()[real], recorded["fwd/mean_action"][real])
    log_likelihood = distribution.log_prob(inputs[1], clip=1e-6).sum(dim=-1)
    torch.testing.assert_close(log_likelihood[real], recorded["fwd/log_likelihood"][real], rtol=1e-4, atol=1e-4)
    unmasked = original.model(*inputs)
    assert (unmasked.mean[real] - recorded["fwd/mu"][real]).abs().max() > 1e-3, "padding must be masked"


def test_predictions_with_positions_match_the_original(fixtures: Path) -> None:
    original = OriginalODT(fixtures, "ordering/")
    assert original.model.config.positions == "timestep"
    real = original.recorded["fwd/mask"].bool()
    distribution = original.model.eval()(*original.inputs("fwd"), real)
    assert_close(distribution.mean[real], original.recorded["ordering/mu"][real])
    assert_close(distribution.log_std[real], original.recorded["ordering/log_std"][real])


def test_the_next_action_matches_the_original(original: OriginalODT) -> None:
    recorded, length = original.recorded, original.model.config.acting_context
    states, actions, returns, timesteps = (array[:, -length:] for array in original.inputs("act"))
    model = original.model.eval()
    assert_close(model.act(states, actions[:, :-1], returns, timesteps), recorded["act/mean_action"])
    distribution = model(states, actions, returns, timesteps)
    assert_close(distribution.mean[:, -1], recorded["act/mu"])
    assert_close(distribution.log_std[:, -1], recorded["act/log_std"])
    draws = torch.tensor([[0.3, -1.0, 0.1], [-0.5, 0.0, 1.5]])
    sampled = torch.tanh(recorded["act/mu"] + recorded["act/log_std"].exp() * draws)
    assert_close(model.act(states, actions[:, :-1], returns, timesteps, draws), sampled)


# --- the update -------------------------------------------------------------------------------------------------------


class RecordedTraining:
    """A sampler that gives the recorded batches, and the draws that went with each."""

    def __init__(self, original: OriginalODT) -> None:
        self.original, self.num_batches, self.num_draws = original, 0, 0
        self.generator = torch.Generator()

    def sample(self, batch_size: int) -> Batch:
        prefix = f"train{self.num_batches}"
        self.num_batches += 1
        return Batch(*self.original.inputs(prefix), self.original.recorded[f"{prefix}/mask"].bool())

    def draw(self, like: Tensor) -> Tensor:
        self.num_draws += 1
        return self.original.recorded[f"train{self.num_draws - 1}/eps"][0]


def make_learner(original: OriginalODT, monkeypatch: pytest.MonkeyPatch) -> ODTLearner:
    training = RecordedTraining(original)
    monkeypatch.setattr(odt.torch, "randn_like", training.draw)
    batch_size = len(original.recorded["train0/mask"])
    return ODTLearner(original.model, training, OPTIM, TrainConfig(batch_size=batch_size), EntropyConfig())


def test_first_gradients_match_the_original(original: OriginalODT, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make_learner(original, monkeypatch)
    learner.loss(original.model, learner.sampler.sample(0))["loss"].backward()
    gradients = {name: parameter.grad for name, parameter in original.model.named_parameters()}
    expected = original.trained("grad1/")
    assert {original.names[name] for name in expected} == set(gradients)
    for name, value in expected.items():
        found = gradients[original.names[name]]
        assert found is not None, name
        assert (found - value).abs().max() <= 5e-5 * value.abs().max() + 1e-8, name


def test_three_training_steps_match_the_original(original: OriginalODT, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, recorded = make_learner(original, monkeypatch), original.recorded
    for step in range(3):
        metrics = learner.update(step)
        assert_close(metrics["loss"], recorded["train/loss"][step], atol=2e-5)
        assert_close(metrics["nll"], recorded["train/nll"][step], atol=2e-5)
        assert_close(metrics["entropy"], recorded["train/entropy"][step])
        assert_close(metrics["gradient_norm"], recorded["train/grad_norm"][step], atol=0)
        found, expected = learner.constraint.log_temperature.detach(), recorded["train/log_temperature"][step]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
        if step in (0, 2):
            assert_parameters_close(original, f"after{step + 1}/")
    assert learner.num_skipped == 0


def assert_parameters_close(original: OriginalODT, prefix: str) -> None:
    ours, errors = original.model.state_dict(), []
    for name, expected in original.trained(prefix).items():
        difference = (ours[original.names[name]] - expected).abs()
        if name.endswith("c_attn.bias"):  # softmax does not depend on the key bias: its gradient is rounding noise
            assert difference.max() <= 5e-5, name
        else:
            errors.append(difference.flatten())
    every = torch.cat(errors)
    assert (every <= 1e-6).float().mean() >= 0.999
    assert every.max() <= 2e-5


def test_the_temperature_matches_the_original(fixtures: Path) -> None:
    recorded = Recorded(fixtures / "odt_tanh_gaussian.npz")
    target, start = float(recorded["dual/target_entropy"]), float(recorded["dual/init_temperature"])
    config = EntropyConfig(temperature=start, target=target / 3)
    constraint = EntropyConstraint(config, 3, torch.device("cpu"))
    for entropy, expected in zip(recorded["dual/entropy"], recorded["dual/log_temperature"], strict=True):
        constraint.update(entropy, torch.tensor(0.0))
        found = constraint.log_temperature.detach()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


# --- windows ----------------------------------------------------------------------------------------------------------


def test_windows_match_the_original(fixtures: Path) -> None:
    """Ours ends with invalid steps where the original begins with padding; its returns are in thousands."""
    recorded = Recorded(fixtures / "odt_model.npz")
    rewards = recorded["window/traj_rewards"].numpy()
    trajectories = Trajectories(
        observations=recorded["window/traj_observations"].float().numpy(),
        actions=recorded["window/traj_actions"].float().numpy(),
        rewards=rewards.astype("float32"),
        terminals=rewards != rewards,
        offsets=torch.tensor([0, len(rewards)]).numpy(),
        source="test",
    )
    scaling = Scaling(trajectories.observations.shape[1], trajectories.actions.shape[1])
    scaling.set(
        observation_mean=recorded.arrays["window/state_mean"],
        observation_std=recorded.arrays["window/state_std"],
        action_low=recorded.arrays["window/traj_actions"][0] * 0 - 1,
        action_high=recorded.arrays["window/traj_actions"][0] * 0 + 1,
        return_scale=1000.0,
    )
    sampler = WindowSampler(trajectories, recorded.meta["max_length"])
    lengths = []
    for window in ("window0", "window1", "window2"):
        real = recorded[f"{window}/mask"].bool()
        batch = sampler.gather(recorded[f"{window}/start"][None])
        valid = batch.valid[0]
        assert valid.sum() == real.sum()
        assert_close(scaling.scale_observations(batch.observations[0, valid]), recorded[f"{window}/states"][real])
        clamped = scaling.scale_actions(batch.actions[0, valid]).clamp(-1 + 1e-6, 1 - 1e-6)
        assert_close(clamped, recorded[f"{window}/actions"][real])
        returns = recorded[f"{window}/rtg"][:-1][real]
        assert_close(scaling.scale_returns(batch.returns_to_go[0, valid]), returns)
        assert torch.equal(batch.timesteps[0, valid], recorded[f"{window}/timesteps"][real])
        lengths.append(int(valid.sum()))
    assert min(lengths) < sampler.window.numel() == max(lengths), "one is cut short and one is whole"
