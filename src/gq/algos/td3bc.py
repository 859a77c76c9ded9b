"""TD3+BC (arXiv 2106.06860) and ReBRAC (arXiv 2305.09836): a critic, and a policy that stays near the data.

One learner with two recipes (`gq.presets.td3bc`). All sums below are per batch:

    target  y = r + discount (1 - end) (min Q'(s', a') - penalty |a' - a'_data|^2),  a' = policy'(s') + clipped noise
    critic  sum over both heads of mean (Q(s, a) - y)^2
    policy  -q_weight mean Q(s, pi) / mean |Q(s, pi)| + bc_weight mean |pi - a|^2, the divisor held

where |.|^2 is the mean over action dimensions for TD3+BC and the sum for ReBRAC. Both slow copies follow after the
policy's step, which every second update takes, the first of them the second. ReBRAC's own code moves the policy's slow
copy before its step, and begins with the first update; gq does as TD3 does, for both.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from gq.algos.captured import Captured
from gq.algos.critic import FlatNetwork, fit, noisy, smallest, td_target, value_gradient
from gq.algos.state import load_moments, moments, random_states, restore_generator, restore_random_states
from gq.algos.supervised import EAGER, Execution, learning_rate
from gq.config import TD3BCConfig
from gq.data.transitions import Transitions, TransitionSampler
from gq.models.actor_critic import ActorCritic
from gq.models.flat_mlp import Kept, differentiate, run


class TD3BCLearner:
    """Train policy and critic on transitions; gradients are computed by `gq.models.flat_mlp`, without autograd."""

    is_sharded = False

    def __init__(
        self, model: ActorCritic, sampler: TransitionSampler, config: TD3BCConfig, execution: Execution = EAGER
    ) -> None:
        """Take a model that is on the device, since the learner works on views of its weights."""
        self.model, self.sampler, self.config = model, sampler, config
        self.action_dim = model.scaling.action_low.shape[0]
        device = model.actor.flat.device
        is_captured = execution.program.captured
        self.actor, self.critic = (
            FlatNetwork(network, _adam(network, config, captured=is_captured))
            for network in (model.actor, model.critic)
        )
        self.num_skipped = torch.zeros((), device=device)
        self.captured = Captured(device, [sampler.generator]) if is_captured else None

    def updates(self, step: int, most: int) -> tuple[dict[str, Tensor], int]:
        """Take updates from number `step` (from 0) on, no more than `most`; return metrics and their number.

        A graph holds as many as there are between two steps of the policy.
        """
        interval = self.config.critic.policy_interval
        if not self.captured or step % interval or most < interval:
            return self.update(step), 1
        rates = torch.tensor([self.learning_rate(step + index) for index in range(interval)])
        return self.captured(self.take_steps, rates), interval

    def update(self, step: int) -> dict[str, Tensor]:
        """Take update number `step` (from 0); return device scalars."""
        interval = self.config.critic.policy_interval
        return self.take_step(self.learning_rate(step), with_policy=step % interval == interval - 1)

    def take_steps(self, rates: Tensor) -> dict[str, Tensor]:
        """Take the updates up to the policy's next step, at learning rates [N]; return metrics, each [N] or less."""
        found: dict[str, list[Tensor]] = {}
        for index, rate in enumerate(rates.unbind()):
            for name, value in self.take_step(rate, with_policy=index == len(rates) - 1).items():
                found.setdefault(name, []).append(value)
        return {name: torch.stack(values) for name, values in found.items()}

    @torch.no_grad()
    def take_step(self, rate: float | Tensor, *, with_policy: bool) -> dict[str, Tensor]:
        """Draw a batch and take one step of the critic, and one of the policy if it is due."""
        batch = self.sampler.sample(self.config.train.batch_size)
        generator, shape = self.sampler.generator, (len(batch.inputs), self.action_dim)
        noise = torch.randn(shape, generator=generator, device=batch.inputs.device)
        return self.learn(batch, noise, rate, with_policy=with_policy)

    @torch.no_grad()
    def learn(self, batch: Transitions, noise: Tensor, rate: float | Tensor, *, with_policy: bool) -> dict[str, Tensor]:
        """Take a step on a batch, with standard normal noise [B, A] for the slow policy's actions."""
        optim, critic = self.config.optim, self.config.critic
        targets = self.targets(batch, noise)
        _set_rate(self.critic.optimizer, rate)
        loss, q_mean = fit(self.critic, batch.inputs, targets)
        norm, skipped = self.critic.step(optim.gradient_clip)
        metrics = {"loss": loss, "q_mean": q_mean, "gradient_norm": norm}
        if with_policy:
            _set_rate(self.actor.optimizer, rate)
            metrics |= self.differentiate_policy(batch)
            metrics["actor_gradient_norm"], too = self.actor.step(optim.gradient_clip)
            skipped = torch.maximum(skipped, too)
            self.actor.sync(critic.target_rate)
            self.critic.sync(critic.target_rate)
        self.num_skipped += skipped
        return metrics

    def targets(self, batch: Transitions, noise: Tensor) -> Tensor:
        """Return what the critic's values are to be, [B, 1]."""
        config, num = self.config.critic, self.action_dim
        logged = batch.next_inputs[:, -num:]
        actions = noisy(run(self.actor.target_heads[0], batch.next_inputs[:, :-num]).tanh_(), noise, config)
        distance = (actions - logged).square_().sum(1, keepdim=True) if config.target_penalty else 0.0
        inputs = torch.cat([batch.next_inputs[:, :-num], actions], dim=1)
        next_value = smallest(self.critic.target_heads, inputs)
        return td_target(batch.rewards, batch.bootstrap, next_value, distance, config)

    def differentiate_policy(self, batch: Transitions) -> dict[str, Tensor]:
        """Fill in the policy's gradient; return its metrics."""
        config, num = self.config.critic, self.action_dim
        observations, logged = batch.inputs[:, :-num], batch.inputs[:, -num:]
        kept: list[Kept] = []
        (head,), (into,) = self.actor.heads, self.actor.gradient_heads
        actions = run(head, observations, kept).tanh_()
        by_value, value = value_gradient(self.critic, torch.cat([observations, actions], dim=1), num, config)
        away = actions - logged
        bc_weight = config.bc_weight / (num if config.bc_reduction == "mean" else 1)
        gradient = away * (2 * bc_weight / len(away)) - config.q_weight * by_value
        differentiate(head, kept, gradient * (1 - actions.square()), into)
        error = away.square().mean()
        loss = num * bc_weight * error - config.q_weight * value.mean() / value.abs().mean()
        return {"actor_loss": loss, "bc_error": error}

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of update number `step`."""
        return learning_rate(self.config.optim, step, self.config.train.steps)

    def state_tensors(self) -> dict[str, Tensor]:
        """Return slow copies, moments and random states, on the CPU."""
        device = self.num_skipped.device
        tensors = {"rng/sampler": self.sampler.generator.get_state(), **random_states(device)}
        for name, one in (("actor", self.actor), ("critic", self.critic)):
            tensors[f"target/{name}"] = one.target.cpu()
            tensors |= {f"{name}/{key}": value for key, value in moments(one.network, one.optimizer).items()}
        return tensors | {"num_skipped": self.num_skipped.cpu()}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_tensors` returned."""
        restore_generator(self.sampler.generator, tensors["rng/sampler"])
        restore_random_states(tensors, self.num_skipped.device)
        self.num_skipped.copy_(tensors["num_skipped"])
        for name, one in (("actor", self.actor), ("critic", self.critic)):
            one.target.copy_(tensors[f"target/{name}"])
            own = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
            load_moments(own, one.network, one.optimizer)
        if self.captured:
            self.captured.forget()


def _adam(network: torch.nn.Module, config: TD3BCConfig, *, captured: bool) -> torch.optim.Optimizer:
    from gq.algos.supervised import build_optimizer

    return build_optimizer(network, config.optim, captured=captured)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float | Tensor) -> None:
    for group in optimizer.param_groups:
        if isinstance(rate, Tensor):
            group["lr"].copy_(rate)
        elif isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class TD3BCPolicy:
    """Act by the policy network; the target return is ignored."""

    is_rowwise = False

    def __init__(self, model: ActorCritic, *, autocast: Callable[[], AbstractContextManager[None]]) -> None:
        self.model, self.autocast = model.eval(), autocast
        self.device = model.actor.flat.device
        self.returns_to_go = np.zeros(0)

    def reset(self, target_returns: np.ndarray, seeds: Sequence[int] = ()) -> None:
        """Start episodes; there is nothing to remember of them."""

    @torch.no_grad()
    def act(self, rows: np.ndarray, observations: np.ndarray) -> np.ndarray:
        """Return actions [E', A] in environment units for observations [E', S]."""
        inputs = torch.as_tensor(observations, dtype=torch.float32, device=self.device)
        return self.model.scaling.unscale_actions(self.model(inputs)).cpu().numpy()

    def record(self, rows: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> None:
        """Ignore what happened."""
