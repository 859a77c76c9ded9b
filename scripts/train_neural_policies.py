"""Train small neural policies behind the built-in datasets, by soft actor-critic.

Random search over linear policies needs hours on many cores for the harder environments; this needs one core for half
an hour, and an hour for Humanoid. It is SAC (Haarnoja et al., arXiv 1812.05905) with 3-step returns, layer
normalisation in the critics, and a policy small enough to package: it sees joint positions and velocities only, the
first 45 of Humanoid's 348 columns.

    python scripts/train_neural_policies.py --env Humanoid-v5 --updates 200000 --seed 2 --out sac/humanoid

It writes a snapshot every few thousand updates and a checkpoint with it, from which it goes on when it is started
again (with a new replay and new optimisers). It needs gq installed; `package_builtin_policies.py` makes the packaged
files.
"""

import argparse
import json
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gq.envs.make import make
from gq.envs.tasks import resolve_task
from gq.files import atomic_path


class Settings(NamedTuple):
    """What differs between environments."""

    num_observed: int  # leading columns of the observation
    policy_width: int
    critic_width: int
    num_environments: int  # stepped once between two updates
    batch_size: int
    learning_rate: float
    snapshot_interval: int  # updates


SETTINGS = {
    "HalfCheetah-v5": Settings(17, 64, 128, 3, 128, 1e-3, 5000),
    "Walker2d-v5": Settings(17, 64, 128, 3, 128, 1e-3, 10_000),
    "Ant-v5": Settings(27, 64, 128, 3, 128, 1e-3, 5000),
    "Humanoid-v5": Settings(45, 128, 256, 6, 192, 7e-4, 20_000),
}
NUM_STEPS, TARGET_RATE, DISCOUNT, REWARD_SCALE = 3, 0.01, 0.99, 0.1
CAPACITY, NUM_RANDOM_STEPS, NUM_NORMALISED_STEPS = 1_000_000, 10_000, 200_000
REPORT_INTERVAL = 5000  # updates
LOG_STD_LOW, LOG_STD_HIGH = -5.0, 2.0


class Critics(nn.Module):
    """Two critics as one batched network."""

    def __init__(self, num_inputs: int, width: int) -> None:
        super().__init__()
        sizes = [(num_inputs, width), (width, width), (width, 1)]
        self.weights = nn.ParameterList([torch.empty(2, i, o).uniform_(-1, 1) / i**0.5 for i, o in sizes])
        self.biases = nn.ParameterList([torch.zeros(2, 1, o) for _, o in sizes])
        self.scales = nn.ParameterList([torch.ones(2, 1, width) for _ in range(2)])
        self.shifts = nn.ParameterList([torch.zeros(2, 1, width) for _ in range(2)])

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Return both values [2, B]."""
        hidden = torch.cat([observations, actions], -1).expand(2, -1, -1)
        for layer, (scale, shift) in enumerate(zip(self.scales, self.shifts, strict=True)):
            hidden = torch.baddbmm(self.biases[layer], hidden, self.weights[layer])
            hidden = F.relu(F.layer_norm(hidden, hidden.shape[-1:]) * scale + shift)
        return torch.baddbmm(self.biases[2], hidden, self.weights[2])[..., 0]


class GaussianPolicy(nn.Module):
    """A squashed Gaussian policy."""

    def __init__(self, num_observations: int, num_actions: int, width: int) -> None:
        super().__init__()
        self.hidden = nn.ModuleList([nn.Linear(num_observations, width), nn.Linear(width, width)])
        self.mean = nn.Linear(width, num_actions)
        self.log_std = nn.Linear(width, num_actions)

    def forward(self, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return actions in (-1, 1) [B, A] and their log-probabilities [B]."""
        hidden = observations
        for layer in self.hidden:
            hidden = F.relu(layer(hidden))
        range_ = (LOG_STD_HIGH - LOG_STD_LOW) / 2
        log_std = LOG_STD_LOW + range_ * (torch.tanh(self.log_std(hidden)) + 1)
        raw = self.mean(hidden) + log_std.exp() * noise
        gaussian = -0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi)
        jacobian = 2 * (np.log(2) - raw - F.softplus(-2 * raw))  # log of 1 - tanh(raw)^2
        return torch.tanh(raw), (gaussian - jacobian).sum(-1)


class Replay:
    """Hold transitions over several steps."""

    def __init__(self, num_observed: int, num_actions: int) -> None:
        self.size = self.position = 0
        self.columns = {
            "observations": np.zeros((CAPACITY, num_observed), np.float32),
            "actions": np.zeros((CAPACITY, num_actions), np.float32),
            "rewards": np.zeros(CAPACITY, np.float32),
            "discounts": np.zeros(CAPACITY, np.float32),
            "next_observations": np.zeros((CAPACITY, num_observed), np.float32),
        }

    def add(self, *values: Any) -> None:
        """Add one row, in the order of the columns."""
        for column, value in zip(self.columns.values(), values, strict=True):
            column[self.position] = value
        self.position = (self.position + 1) % CAPACITY
        self.size = min(self.size + 1, CAPACITY)

    def draw(self, generator: np.random.Generator, batch_size: int) -> dict[str, np.ndarray]:
        """Return a batch of rows."""
        rows = generator.integers(self.size, size=batch_size)
        return {name: column[rows] for name, column in self.columns.items()}


class Normaliser:
    """Running mean and variance of the observations, fixed after a while."""

    def __init__(self, num_observed: int) -> None:
        self.count, self.mean, self.squares = 1e-4, np.zeros(num_observed), np.zeros(num_observed)

    def add(self, observation: np.ndarray) -> None:
        """Count one observation."""
        if self.count < NUM_NORMALISED_STEPS:
            self.count += 1
            difference = observation - self.mean
            self.mean = self.mean + difference / self.count
            self.squares = self.squares + difference * (observation - self.mean)

    @property
    def std(self) -> np.ndarray:
        """Standard deviation, float64 [num_observed]."""
        return np.sqrt(self.squares / self.count + 1e-4)

    def __call__(self, observations: np.ndarray) -> Tensor:
        """Return observations in standard deviations, float32."""
        return torch.as_tensor(((observations - self.mean) / self.std).clip(-10, 10), dtype=torch.float32)


class Collector:
    """Step the environments and fill the replay."""

    def __init__(self, env_id: str, settings: Settings, seed: int) -> None:
        self.num_observed, number = settings.num_observed, settings.num_environments
        self.environments: list[Any] = [make(resolve_task(env_id)) for _ in range(number)]
        space = self.environments[0].action_space
        self.half_range = (space.high - space.low) / 2  # the boxes are symmetric
        self.num_actions = len(space.high)
        resets = [env.reset(seed=seed * 1000 + i)[0] for i, env in enumerate(self.environments)]
        self.observations = np.stack(resets)[:, : self.num_observed]
        self.waiting: list[deque[tuple[np.ndarray, np.ndarray, float]]] = [deque() for _ in self.environments]
        self.totals, self.lengths = np.zeros(number), np.zeros(number)
        self.finished: deque[tuple[float, float]] = deque(maxlen=30)  # return and length

    def step(self, actions: np.ndarray, replay: Replay, normaliser: Normaliser) -> None:
        """Execute an action [A] in (-1, 1) in each environment."""
        for i, environment in enumerate(self.environments):
            following, reward, terminated, truncated, _ = environment.step(actions[i] * self.half_range)
            following = following[: self.num_observed]
            waiting = self.waiting[i]
            waiting.append((self.observations[i].copy(), actions[i], float(reward)))
            while waiting and (len(waiting) == NUM_STEPS or terminated or truncated):
                total = sum(DISCOUNT**k * step[2] for k, step in enumerate(waiting))
                discount = 0.0 if terminated else DISCOUNT ** len(waiting)
                replay.add(waiting[0][0], waiting[0][1], REWARD_SCALE * total, discount, following)
                waiting.popleft()
            normaliser.add(following)
            self.totals[i] += reward
            self.lengths[i] += 1
            self.observations[i] = following
            if terminated or truncated:
                self.finished.append((self.totals[i], self.lengths[i]))
                self.totals[i] = self.lengths[i] = 0
                self.observations[i] = environment.reset()[0][: self.num_observed]


class Learner:
    """Soft actor-critic with a learned temperature."""

    def __init__(self, settings: Settings, num_actions: int) -> None:
        self.num_actions, self.batch_size = num_actions, settings.batch_size
        num_inputs, rate = settings.num_observed + num_actions, settings.learning_rate
        self.policy = GaussianPolicy(settings.num_observed, num_actions, settings.policy_width)
        self.critics = Critics(num_inputs, settings.critic_width)
        self.targets = Critics(num_inputs, settings.critic_width)
        self.targets.load_state_dict(self.critics.state_dict())
        self.log_temperature = torch.tensor(-2.0, requires_grad=True)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), rate, fused=True)
        self.policy_optimizer = torch.optim.Adam(self.policy.parameters(), rate, fused=True)
        self.temperature_optimizer = torch.optim.Adam([self.log_temperature], rate, betas=(0.5, 0.999))
        self.critic_loss = torch.compile(self._critic_loss)
        self.policy_loss = torch.compile(self._policy_loss)
        self.num_updates = 0

    def _critic_loss(self, batch: dict[str, Tensor], temperature: Tensor) -> Tensor:
        with torch.no_grad():
            following = batch["next_observations"]
            actions, log_probabilities = self.policy(following, torch.randn(self.batch_size, self.num_actions))
            value = self.targets(following, actions).min(0).values - temperature * log_probabilities
            target = batch["rewards"] + batch["discounts"] * value
        return ((self.critics(batch["observations"], batch["actions"]) - target) ** 2).sum(0).mean()

    def _policy_loss(self, observations: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
        actions, log_probabilities = self.policy(observations, torch.randn(self.batch_size, self.num_actions))
        value = self.critics(observations, actions).min(0).values
        return (temperature * log_probabilities - value).mean(), log_probabilities.mean().detach()

    def update(self, batch: dict[str, Tensor]) -> None:
        """Update the critics, every second time the policy and the temperature, then the targets."""
        temperature = self.log_temperature.exp().detach()
        descend(self.critic_optimizer, self.critic_loss(batch, temperature))
        if self.num_updates % 2 == 0:
            loss, log_probability = self.policy_loss(batch["observations"], temperature)
            descend(self.policy_optimizer, loss)
            surplus = log_probability - self.num_actions  # the entropy's target is minus the number of actions
            descend(self.temperature_optimizer, -self.log_temperature.exp() * surplus)
        with torch.no_grad():
            torch._foreach_lerp_(list(self.targets.parameters()), list(self.critics.parameters()), TARGET_RATE)
        self.num_updates += 1

    def tensors(self) -> dict[str, Tensor]:
        """Return all that is learned, by name: the tensors themselves, not copies."""
        modules = {"policy": self.policy, "critics": self.critics, "targets": self.targets}
        named = {f"{room}.{name}": value for room, m in modules.items() for name, value in m.state_dict().items()}
        return named | {"log_temperature": self.log_temperature.detach()}


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Make one step."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def save(folder: Path, learner: Learner, normaliser: Normaliser) -> None:
    """Write the policy's mean as a snapshot, and a checkpoint to go on from."""
    arrays: dict[str, np.ndarray] = {"mean": normaliser.mean, "std": normaliser.std}
    for number, layer in enumerate([*learner.policy.hidden, learner.policy.mean]):
        arrays |= {f"layers.{number}.{name}": value.numpy() for name, value in layer.state_dict().items()}
    with atomic_path(folder / f"iteration-{learner.num_updates:06d}.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    statistics = {name: torch.as_tensor(value) for name, value in vars(normaliser).items()}
    with atomic_path(folder / "checkpoint.safetensors") as temporary:
        save_file(learner.tensors() | statistics, temporary, metadata={"num_updates": str(learner.num_updates)})


def load(folder: Path, learner: Learner, normaliser: Normaliser) -> None:
    """Go on from a checkpoint if there is one."""
    if not (folder / "checkpoint.safetensors").is_file():
        return
    with safe_open(folder / "checkpoint.safetensors", framework="pt") as file:
        for name, tensor in learner.tensors().items():
            tensor.copy_(file.get_tensor(name))
        vars(normaliser).update((name, file.get_tensor(name).numpy()) for name in vars(normaliser))
        learner.num_updates = int(file.metadata()["num_updates"])
    print(f"resuming at update {learner.num_updates}", flush=True)


def main() -> None:
    """Train until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", choices=sorted(SETTINGS), required=True)
    parser.add_argument("--updates", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    settings = SETTINGS[arguments.env]
    method = f"two hidden layers of {settings.policy_width} by soft actor-critic, seed {arguments.seed}"
    document = {"env_id": arguments.env, "seed": arguments.seed, "method": method, **settings._asdict()}
    (arguments.out / "search.json").write_text(json.dumps(document, indent=2))
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    train(arguments, settings)


def train(arguments: argparse.Namespace, settings: Settings) -> None:
    """Step the environments and update in turn."""
    generator = np.random.default_rng(arguments.seed)
    collector, normaliser = Collector(arguments.env, settings, arguments.seed), Normaliser(settings.num_observed)
    replay = Replay(settings.num_observed, collector.num_actions)
    learner = Learner(settings, collector.num_actions)
    load(arguments.out, learner, normaliser)
    shape, num_steps = (settings.num_environments, collector.num_actions), 0
    while learner.num_updates < arguments.updates:
        if num_steps < NUM_RANDOM_STEPS and learner.num_updates == 0:  # resumed, the policy fills the replay
            actions = generator.uniform(-1, 1, shape).astype(np.float32)
        else:
            with torch.no_grad():
                actions = learner.policy(normaliser(collector.observations), torch.randn(shape))[0].numpy()
        collector.step(actions, replay, normaliser)
        num_steps += settings.num_environments
        if num_steps < NUM_RANDOM_STEPS:
            continue
        drawn = replay.draw(generator, settings.batch_size)
        batch = {name: torch.from_numpy(column) for name, column in drawn.items()}
        batch |= {name: normaliser(drawn[name]) for name in ("observations", "next_observations")}
        learner.update(batch)
        if learner.num_updates % REPORT_INTERVAL == 0:
            average, length = np.mean(collector.finished, axis=0)
            print(f"{learner.num_updates:7d}  return {average:7.1f}  length {length:6.1f}", flush=True)
        if learner.num_updates % settings.snapshot_interval == 0:
            save(arguments.out, learner, normaliser)


if __name__ == "__main__":
    main()
