"""Updates of TD3+BC and ReBRAC on a CPU: gq's against plain PyTorch with modules and autograd, in turns.

    python benchmarks/critics.py [--rounds 5] [--updates 200] [--threads 1]

Both take turns in one process, on the same random transitions of Hopper's shape; times are of the process's CPU.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gq import presets
from gq.algos.td3bc import TD3BCLearner
from gq.data.trajectories import Trajectories
from gq.data.transitions import TransitionSampler
from gq.models.actor_critic import ActorCritic

S, A, ROWS = 11, 3, 100_000


def mlp(inputs: int, outputs: int, layers: int, *, norm: bool) -> nn.Sequential:
    modules: list[nn.Module] = []
    for index in range(layers):
        modules += [nn.Linear(256 if index else inputs, 256), nn.ReLU(), *([nn.LayerNorm(256)] if norm else [])]
    return nn.Sequential(*modules, nn.Linear(256, outputs))


class Plain:
    """One update after the other, in the way of single-file implementations."""

    def __init__(self, recipe: str, columns: list[Tensor]) -> None:
        self.is_rebrac, self.columns = recipe == "rebrac", columns
        layers, self.batch = (3, 1024) if self.is_rebrac else (2, 256)
        rate = 1e-3 if self.is_rebrac else 3e-4
        self.actor = nn.Sequential(mlp(S, A, layers, norm=False), nn.Tanh())
        self.critics = nn.ModuleList(mlp(S + A, 1, layers, norm=self.is_rebrac) for _ in range(2))
        self.slow_actor, self.slow_critics = copy.deepcopy(self.actor), copy.deepcopy(self.critics)
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), lr=rate)
        self.critic_adams = [torch.optim.Adam(critic.parameters(), lr=rate) for critic in self.critics]

    def update(self, step: int) -> None:
        indices = np.random.randint(0, ROWS - 1, self.batch)
        s, a, r, d, s2, a2 = (column[indices] for column in self.columns)
        with torch.no_grad():
            noise = (torch.randn_like(a) * 0.2).clamp(-0.5, 0.5)
            action = (self.slow_actor(s2) + noise).clamp(-1, 1)
            q = torch.min(*[critic(torch.cat([s2, action], 1)) for critic in self.slow_critics])
            if self.is_rebrac:
                q = q - 0.01 * ((action - a2) ** 2).sum(1, keepdim=True)
            target = r + 0.99 * (1 - d) * q
        loss = sum((F.mse_loss(critic(torch.cat([s, a], 1)), target) for critic in self.critics), torch.zeros(()))
        loss.item()  # as it is logged
        for adam in self.critic_adams:
            adam.zero_grad()
        loss.backward()
        for adam in self.critic_adams:
            adam.step()
        if step % 2 == 0:
            return
        pi = self.actor(s)
        values = [critic(torch.cat([s, pi], 1)) for critic in self.critics[: 2 if self.is_rebrac else 1]]
        value = torch.min(*values) if self.is_rebrac else values[0]
        weight, away = (0.05 * A, F.mse_loss(pi, a)) if self.is_rebrac else (0.4, F.mse_loss(pi, a))
        policy_loss = weight * away - value.mean() / value.abs().mean().detach()
        policy_loss.item()
        self.actor_adam.zero_grad()
        policy_loss.backward()
        self.actor_adam.step()
        for slow, fast in ((self.slow_actor, self.actor), (self.slow_critics, self.critics)):
            for one, other in zip(slow.parameters(), fast.parameters(), strict=True):
                one.data.copy_(0.995 * one.data + 0.005 * other.data)


def contenders(recipe: str) -> dict[str, Callable[[int], object]]:
    generator = np.random.default_rng(0)
    terminals = np.zeros(ROWS, bool)
    terminals[999::1000] = True
    data = Trajectories(
        observations=generator.standard_normal((ROWS, S)).astype(np.float32),
        actions=generator.uniform(-1, 1, (ROWS, A)).astype(np.float32),
        rewards=generator.uniform(0, 1, ROWS).astype(np.float32),
        terminals=terminals,
        offsets=np.arange(0, ROWS + 1, 1000),
        source="random",
    )
    config = presets.td3bc(recipe)
    model = ActorCritic(config.model, observation_dim=S, action_dim=A)
    learner = TD3BCLearner(model, TransitionSampler(data, model.scaling), config)
    s, a = torch.from_numpy(data.observations), torch.from_numpy(data.actions)
    r, d = torch.from_numpy(data.rewards)[:, None], torch.from_numpy(terminals)[:, None].float()
    plain = Plain(recipe, [s, a, r, d, s.roll(-1, 0), a.roll(-1, 0)])
    return {"gq": learner.update, "plain": plain.update}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for recipe in ("td3bc", "rebrac"):
        seconds: dict[str, list[float]] = {}
        found = contenders(recipe)
        for number in range(options.rounds + 1):
            for name, update in found.items():
                begun = time.process_time()
                for step in range(options.updates):
                    update(step)
                if number:  # the first round warms up
                    seconds.setdefault(name, []).append((time.process_time() - begun) / options.updates)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        rates = ", ".join(f"{name} {1 / value:.1f} updates a CPU second" for name, value in medians.items())
        print(f"{recipe}: {rates}; ratio {medians['plain'] / medians['gq']:.2f}")


if __name__ == "__main__":
    main()
