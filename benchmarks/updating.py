"""The time of a TD-MPC2 update with gq against a plain reference, taking turns in one process.

    python benchmarks/updating.py [--sizes 1 5] [--tasks dog-run cheetah-run] [--threads 1] [--rounds 7]

The reference is written from the formulas and runs eagerly in float32: it evaluates every Q head and drops all but two,
and uses torch's own mish, softmax, dropout and Adam. It starts from the same weights, and the program first takes one
update with the same draws and without dropout on both sides and shows how far the losses are apart. Times are medians,
drawing included; the range is that of the rounds' ratios. On a machine that does other work, --clock process counts
this process's time instead of what passes; with more than one thread, only the passing time says anything. The
reference gains, too, from the memory that gq lets the process keep: about a tenth.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from common import Report, add_options, ratios

from gq import threads

threads.prepare()

import torch  # noqa: E402  after the thread settings
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from gq.algos.tdmpc2 import SequenceBatch, TDMPC2Learner, UpdateDraws, draw  # noqa: E402
from gq.models.world_config import WorldUpdateConfig, discount_factor, resolve_world_model_size  # noqa: E402
from gq.models.world_model import WorldModel  # noqa: E402

DIMENSIONS = {"dog-run": (223, 38), "cheetah-run": (17, 6), "humanoid-run": (67, 21), "walker-run": (24, 6)}
DISCOUNT, BATCH_SIZE, HORIZON = discount_factor(500), 256, 3
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}
LAST_LAYER_STD = 0.1  # of reward and values, which start at 0


# --- the reference ----------------------------------------------------------------------------------------------------


class PlainLearner:
    """The update's formulas, one after the other."""

    def __init__(self, model: WorldModel) -> None:
        self.model, self.scale, self.bins = model, torch.ones(()), model.bins
        encoder, policy = list(model.encoder.parameters()), list(model.policy_head.parameters())
        known = {*encoder, *policy}
        others = [value for value in model.parameters() if value.requires_grad and value not in known]
        self.world_parameters, self.policy_parameters = [*encoder, *others], policy
        self.world_optimizer = torch.optim.Adam([{"params": encoder, "lr": 9e-5}, {"params": others}], lr=3e-4)
        self.policy_optimizer = torch.optim.Adam(policy, lr=3e-4, eps=1e-5)

    def network(self, layers: nn.Sequential, inputs: Tensor) -> Tensor:
        *hidden, last = layers
        for layer in hidden:
            outputs = F.linear(inputs, layer.weight, layer.bias)
            inputs = F.mish(F.layer_norm(outputs, outputs.shape[-1:], layer.norm.weight, layer.norm.bias))
        outputs = F.linear(inputs, last.weight, last.bias)
        if not hasattr(last, "norm"):
            return outputs
        outputs = F.layer_norm(outputs, outputs.shape[-1:], last.norm.weight, last.norm.bias)
        return outputs.view(*outputs.shape[:-1], -1, 8).softmax(dim=-1).view(outputs.shape)

    def next(self, latents: Tensor, actions: Tensor) -> Tensor:
        return self.network(self.model.dynamics, torch.cat([latents, actions], dim=-1))

    def policy(self, latents: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        location, raw = self.network(self.model.policy_head, latents).chunk(2, dim=-1)
        log_std = -10 + 6 * (torch.tanh(raw) + 1)
        entropy = -self.model.action_dim * (-0.5 * draws.square() - log_std - 0.9189385).sum(dim=-1)
        return torch.tanh(location + draws * log_std.exp()), entropy

    def q_logits(self, latents: Tensor, actions: Tensor, *, target: bool = False, detached: bool = False) -> Tensor:
        network = self.model.target_q_heads if target else self.model.q_heads
        inputs = torch.cat([latents, actions], dim=-1)
        hidden = inputs.flatten(0, -2).expand(self.model.config.num_q, -1, -1)
        for layer in network.layers:
            weight, bias, gain, shift = (
                value.detach() if detached and value is not None else value
                for value in (layer.weight, layer.bias, layer.norm_weight, layer.norm_bias)
            )
            hidden = torch.baddbmm(bias[:, None], hidden, weight.mT)
            if gain is not None:
                hidden = F.dropout(hidden, layer.dropout, not target and self.model.training)
                hidden = F.mish(F.layer_norm(hidden, hidden.shape[-1:]) * gain[:, None] + shift[:, None])
        return hidden.unflatten(1, inputs.shape[:-1])

    def decode(self, logits: Tensor) -> Tensor:
        expected = (logits.softmax(dim=-1) * self.bins).sum(dim=-1)
        return expected.sign() * (expected.abs().exp() - 1)

    def two_hot_loss(self, logits: Tensor, values: Tensor) -> Tensor:
        place = (values.sign() * values.abs().log1p()).clamp(-10, 10) / 0.2 + 50
        low = place.floor()
        weights = torch.zeros(*values.shape, len(self.bins))
        weights.scatter_(-1, low.long()[..., None], (1 - place + low)[..., None])
        weights.scatter_(-1, (low.long()[..., None] + 1) % len(self.bins), (place - low)[..., None])
        return -(weights * logits.log_softmax(dim=-1)).sum(dim=-1)

    def update(self, batch: SequenceBatch, draws: UpdateDraws) -> dict[str, Tensor]:
        """Take one update; return its losses."""
        model = self.model.train()
        with torch.no_grad():
            next_latents = self.network(model.encoder, batch.observations[1:])
            action, _ = self.policy(next_latents, draws.target_noise)
            values = self.decode(self.q_logits(next_latents, action, target=True))[draws.target_heads].amin(dim=0)
            target = batch.rewards + DISCOUNT * (1 - batch.terminated) * values
        latents = [self.network(model.encoder, batch.observations[0])]
        consistency = torch.zeros(())
        for step, action in enumerate(batch.actions):
            latents.append(self.next(latents[-1], action))
            consistency = consistency + 0.5**step * F.mse_loss(latents[-1], next_latents[step])
        stacked = torch.stack(latents)
        reward_logits = self.network(model.reward_head, torch.cat([stacked[:-1], batch.actions], dim=-1))
        q_logits = self.q_logits(stacked[:-1], batch.actions)
        reward, value = torch.zeros(()), torch.zeros(())
        for step in range(HORIZON):
            reward = reward + 0.5**step * self.two_hot_loss(reward_logits[step], batch.rewards[step]).mean()
            for head in q_logits[:, step]:
                value = value + 0.5**step * self.two_hot_loss(head, target[step]).mean() / len(q_logits)
        loss = (20 * consistency + 0.1 * reward + 0.1 * value) / HORIZON
        self.step(loss, self.world_optimizer, self.world_parameters)
        loss_of_policy = self.policy_loss(stacked.detach(), draws)
        self.step(loss_of_policy, self.policy_optimizer, self.policy_parameters)
        with torch.no_grad():
            pairs = zip(model.target_q_heads.parameters(), model.q_heads.parameters(), strict=True)
            for slow, fast in pairs:
                slow.lerp_(fast, 0.01)
        return {"loss": loss.detach(), "policy_loss": loss_of_policy.detach()}

    def policy_loss(self, latents: Tensor, draws: UpdateDraws) -> Tensor:
        action, entropy = self.policy(latents, draws.policy_noise)
        values = self.decode(self.q_logits(latents, action, detached=True))[draws.policy_heads].mean(dim=0)
        low, high = torch.quantile(values[0].detach(), torch.tensor([0.05, 0.95]))
        self.scale = torch.lerp(self.scale, (high - low).clamp(min=1), 0.01)
        weights = 0.5 ** torch.arange(HORIZON + 1)
        return -(weights * (1e-4 * entropy + values / self.scale).mean(dim=1)).mean()

    def step(self, loss: Tensor, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 20)
        optimizer.step()
        optimizer.zero_grad()


# --- the measurement --------------------------------------------------------------------------------------------------


def make_model(size: str, task: str, dropout: float) -> WorldModel:
    """Return a model that is not indifferent; the same one for the same arguments."""
    torch.manual_seed(0)
    observation_dim, action_dim = DIMENSIONS[task]
    config = replace(resolve_world_model_size(size), dropout=dropout)
    model = WorldModel(config, observation_dim=observation_dim, action_dim=action_dim)
    for name in ("reward_head.2.weight", "q_heads.layers.2.weight", "target_q_heads.layers.2.weight"):
        nn.init.normal_(model.get_parameter(name), std=LAST_LAYER_STD)
    return model


def make_batch(task: str) -> SequenceBatch:
    observation_dim, action_dim = DIMENSIONS[task]
    observations = torch.randn(HORIZON + 1, BATCH_SIZE, observation_dim)
    actions = torch.rand(HORIZON, BATCH_SIZE, action_dim) * 2 - 1
    return SequenceBatch(observations, actions, torch.rand(HORIZON, BATCH_SIZE), torch.zeros(HORIZON, BATCH_SIZE))


def make_learners(size: str, task: str, dropout: float) -> dict[str, PlainLearner | TDMPC2Learner]:
    learners: dict[str, PlainLearner | TDMPC2Learner] = {"reference": PlainLearner(make_model(size, task, dropout))}
    for name, bfloat16 in (("gq float32", False), ("gq bfloat16", True)):
        autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=bfloat16)
        model = make_model(size, task, dropout)
        learners[name] = TDMPC2Learner(model, WorldUpdateConfig(), discount=DISCOUNT, autocast=autocast)
    return learners


def measure(size: str, task: str, rounds: int, clock: Callable[[], float], report: Report) -> None:
    """Print the times of all learners for one size and task."""
    batch, learners = make_batch(task), make_learners(size, task, 0.0)
    draws = draw(learners["gq float32"].model, batch)
    losses = {name: learner.update(batch, draws) for name, learner in learners.items()}
    learners = make_learners(size, task, 0.01)
    seconds: dict[str, list[float]] = {name: [] for name in learners}
    for number in range(rounds + 1):
        for name, learner in learners.items():
            began = clock()
            learner.update(batch, draw(learner.model, batch))
            if number:  # the first one allocates
                seconds[name].append(clock() - began)
    columns = {
        "learner": (12, ""),
        "ms": (10, ".1f"),
        "as fast": (9, ".2f"),
        "range": (16, ""),
        "losses within": (15, ".1e"),
    }
    table = report.table(f"{task}, size {size}, {rounds} rounds", columns)
    for name, times in seconds.items():
        ratio, spread = ratios(seconds["reference"], times)
        gap = max(abs(float(losses[name][key] / losses["reference"][key]) - 1) for key in ("loss", "policy_loss"))
        table.add(name, 1e3 * statistics.median(times), ratio, spread, gap)


def main() -> None:
    """Measure each size and task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["1", "5"])
    parser.add_argument("--tasks", nargs="+", default=["dog-run", "cheetah-run"], choices=DIMENSIONS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    add_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report = Report(options)
    for size in options.sizes:
        for task in options.tasks:
            measure(size, task, options.rounds, CLOCKS[options.clock], report)
    report.save()


if __name__ == "__main__":
    main()
