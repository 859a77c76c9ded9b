"""The update of TD-MPC2 (arXiv 2310.16828): world model and Q by prediction, then the policy, then the target.

Shapes: H horizon, B batch, S observation_dim, A action_dim, L latent_dim, Q num_q. Time comes first.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gq.algos.captured import EAGER, Captured, Program
from gq.algos.state import load_moments, moments, random_states, restore_random_states, skip_if
from gq.data.steps import SequenceBatch
from gq.models.distributions import two_hot, two_hot_loss
from gq.models.world_config import WorldUpdateConfig
from gq.models.world_model import PolicySample, WorldModel
from gq.threads import keep_freed_memory

NUM_DRAWN_HEADS = 2  # of the Q ensemble, wherever a value is needed
VALUE_QUANTILES = (0.05, 0.95)


class UpdateDraws(NamedTuple):
    """All that is random in an update, but dropout."""

    target_noise: Tensor  # standard normal [H, B, A]
    target_heads: Tensor  # int64 [2]
    policy_noise: Tensor  # standard normal [H + 1, B, A]
    policy_heads: Tensor  # int64 [2]


def draw(model: WorldModel, batch: SequenceBatch) -> UpdateDraws:
    """Draw what an update on a batch needs, on its device."""
    horizon, *shape = batch.actions.shape
    device = batch.actions.device
    heads = [torch.rand(model.config.num_q, device=device).argsort()[:NUM_DRAWN_HEADS] for _ in range(2)]
    target_noise = torch.randn(horizon, *shape, device=device)
    return UpdateDraws(target_noise, heads[0], torch.randn(horizon + 1, *shape, device=device), heads[1])


@torch.no_grad()
def td_target(
    model: WorldModel, batch: SequenceBatch, next_latents: Tensor, discount: float, draws: UpdateDraws
) -> Tensor:
    """Return reward plus discounted value [H, B]: the smaller of two target heads, and nothing after a termination."""
    action = model.policy(next_latents, draws.target_noise).action
    value = model.q_values(next_latents, action, draws.target_heads, target=True).amin(dim=0)
    return batch.rewards + discount * (1 - batch.terminated.float()) * value


def unroll(model: WorldModel, observations: Tensor, actions: Tensor) -> Tensor:
    """Return the latents [H + 1, B, L] that actions [H, B, A] are predicted to lead to from observations [B, S]."""
    latents = [model.encode(observations)]
    for action in actions:
        latents.append(model.next(latents[-1], action))
    return torch.stack(latents)


def world_losses(
    model: WorldModel,
    batch: SequenceBatch,
    latents: Tensor,
    next_latents: Tensor,
    target: Tensor,
    config: WorldUpdateConfig,
) -> dict[str, Tensor]:
    """Return the weighted sum `loss` and its terms, as scalars.

    Args:
        latents: as `unroll` predicts them [H + 1, B, L]; the gradient goes back through all of them.
        next_latents: encoded from what was observed after each action [H, B, L], without gradient.
        target: values [H, B], without gradient.
    """
    weights = temporal_weights(config, latents)[:-1]
    num_bins, limit = model.config.num_bins, model.config.bin_limit
    before, after = latents[:-1], latents[1:]
    reward_logits = model.reward_logits(before, batch.actions)
    q_logits = model.q_logits(before, batch.actions)  # [Q, H, B, K]
    terms = {
        "consistency_loss": (weights * (after - next_latents).square().mean(dim=(1, 2))).mean(),
        "reward_loss": (weights * two_hot_loss(reward_logits, two_hot(batch.rewards, num_bins, limit)).mean(1)).mean(),
        "value_loss": (weights * two_hot_loss(q_logits, two_hot(target, num_bins, limit)).mean(dim=(0, 2))).mean(),
    }
    loss = (
        config.consistency_coefficient * terms["consistency_loss"]
        + config.reward_coefficient * terms["reward_loss"]
        + config.value_coefficient * terms["value_loss"]
    )
    if model.episodic:
        terms["termination_loss"] = F.binary_cross_entropy_with_logits(
            model.termination_logits(after), batch.terminated.float()
        )
        loss = loss + config.termination_coefficient * terms["termination_loss"]
    return terms | {"loss": loss}


def predict(
    model: WorldModel, batch: SequenceBatch, draws: UpdateDraws, discount: float, config: WorldUpdateConfig
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return the losses of all networks but the policy, predicted latents [H + 1, B, L] and target values [H, B]."""
    with torch.no_grad():
        next_latents = model.encode(batch.observations[1:])
        target = td_target(model, batch, next_latents, discount, draws)
    latents = unroll(model, batch.observations[0], batch.actions)
    return world_losses(model, batch, latents, next_latents, target, config), latents, target


def act(model: WorldModel, latents: Tensor, draws: UpdateDraws) -> tuple[PolicySample, Tensor]:
    """Return the policy's actions in latents [H + 1, B, L], and the mean value [H + 1, B] of two heads for them."""
    sample = model.policy(latents, draws.policy_noise)
    return sample, model.q_values(latents, sample.action, draws.policy_heads).mean(dim=0)


def temporal_weights(config: WorldUpdateConfig, latents: Tensor) -> Tensor:
    """Return the weight [H + 1] of each step of the horizon."""
    return config.temporal_decay ** torch.arange(len(latents), device=latents.device, dtype=torch.float32)


class RunningScale:
    """The spread of values that the policy loss is divided by: from 5 to 95 %, at least 1, averaged over updates."""

    def __init__(self, rate: float, device: torch.device) -> None:
        self.rate, self.value = rate, torch.ones((), device=device)

    def update(self, spread: Tensor) -> None:
        """Move towards a batch's spread; one that is not finite changes nothing."""
        spread = torch.where(spread.isfinite(), spread, self.value).clamp(min=1)
        self.value.lerp_(spread, self.rate)


def value_spread(values: Tensor) -> Tensor:
    """Return the distance between the quantiles of values [B], interpolated linearly."""
    ordered, bounds = values.sort().values, []
    for quantile in VALUE_QUANTILES:  # torch.quantile would copy these to the device
        place = quantile * (len(values) - 1)
        bounds.append(torch.lerp(ordered[math.floor(place)], ordered[math.ceil(place)], place % 1))
    return bounds[1] - bounds[0]


def policy_loss(sample: PolicySample, values: Tensor, scale: Tensor, config: WorldUpdateConfig) -> Tensor:
    """Return the mean over the horizon of what an action drawn from the policy lacks in value and entropy.

    Args:
        sample: the policy's, in latents [H + 1, B].
        values: of its actions [H + 1, B].
        scale: what values are divided by.
    """
    gain = config.entropy_coefficient * sample.scaled_entropy + values / scale
    return -(temporal_weights(config, values) * gain.mean(dim=1)).mean()


def move(tensors: list[Tensor], towards: list[Tensor], share: Tensor) -> None:
    """Move tensors a share of the way, a scalar on their device, towards others."""
    if share.device.type == "cpu":
        torch._foreach_lerp_(tensors, towards, [share] * len(tensors))
        return
    gaps = torch._foreach_sub(towards, tensors)  # few launches on a GPU, where the above has one for each tensor
    torch._foreach_mul_(gaps, share)
    torch._foreach_add_(tensors, gaps)


class TDMPC2Learner:
    """Train a world model on pieces of episodes.

    A step whose gradient is not finite changes nothing and is counted in `num_skipped`, on the device, so that no
    update waits for the host.
    """

    is_sharded = False

    def __init__(
        self,
        model: WorldModel,
        config: WorldUpdateConfig,
        *,
        discount: float,
        autocast: Callable[[], AbstractContextManager[None]],
        average: Callable[[Sequence[Tensor]], None] | None = None,
        program: Program = EAGER,
    ) -> None:
        """Take the discount per decision, and, with several processes, what averages tensors over them in place.

        What the program compiles are the two losses; updates with draws of their own are what it captures.
        """
        self.model, self.config, self.discount, self.autocast = model.eval(), config, discount, autocast
        self.average = average or (lambda tensors: None)
        keep_freed_memory()
        encoder = list(model.encoder.parameters())
        self.policy_parameters = list(model.policy_head.parameters())
        apart = {*encoder, *self.policy_parameters}
        others = [value for value in model.parameters() if value.requires_grad and value not in apart]
        self.world_parameters = [*encoder, *others]
        device = encoder[0].device
        rate = config.learning_rate
        groups = [{"params": encoder, "lr": rate * config.encoder_learning_rate_scale}, {"params": others, "lr": rate}]
        options: dict[str, Any] = {"fused": True, "capturable": program.captured}
        self.world_optimizer = torch.optim.Adam(groups, eps=1e-8, **options)
        self.policy_optimizer = torch.optim.Adam(self.policy_parameters, lr=rate, eps=1e-5, **options)
        self.captured = Captured(device) if program.captured else None
        self.predict, self.act = predict, act
        if program.compiled:
            self.predict = torch.compile(predict, dynamic=False)
            self.act = torch.compile(act, dynamic=False)
        self.program = program
        self.scale = RunningScale(config.target_rate, device)
        self.num_skipped = torch.zeros((), device=device)

    def update(self, batch: SequenceBatch, draws: UpdateDraws | None = None) -> dict[str, Tensor]:
        """Learn from a batch; return device scalars, among them `loss`, `policy_loss` and `gradient_norm`."""
        if self.captured and not draws:
            return self.captured(self.take_step, *batch)
        return self.take_step(*batch, draws=draws)

    def take_step(self, *tensors: Tensor, draws: UpdateDraws | None = None) -> dict[str, Tensor]:
        """Learn from the tensors of a batch, without waiting for the device."""
        batch = SequenceBatch(*tensors)
        draws = draws or draw(self.model, batch)
        self.model.q_heads.train()  # only these know dropout
        metrics, latents, skipped = self.update_world(batch, draws)
        metrics |= self.update_policy(latents, draws, skipped)
        with torch.no_grad():
            online: list[Tensor] = list(self.model.q_heads.parameters())
            target: list[Tensor] = list(self.model.target_q_heads.parameters())
            move(target, online, self.config.target_rate * (1 - skipped))
        self.model.q_heads.eval()
        return metrics

    def update_world(self, batch: SequenceBatch, draws: UpdateDraws) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Take a step of all networks but the policy; return metrics, latents [H + 1, B, L] and 1 if it was skipped."""
        with self.autocast():
            metrics, latents, target = self.predict(self.model, batch, draws, self.discount, self.config)
        norm, skipped = self.step(metrics["loss"], self.world_optimizer, self.world_parameters)
        metrics = {name: value.detach() for name, value in metrics.items()}
        return metrics | {"gradient_norm": norm, "value": target.mean()}, latents.detach(), skipped

    def update_policy(self, latents: Tensor, draws: UpdateDraws, skipped: Tensor) -> dict[str, Tensor]:
        """Take a step of the policy on latents [H + 1, B, L], with the Q just updated; return metrics."""
        with self.autocast():
            sample, values = self.act(self.model, latents, draws)
        spread = value_spread(values[0].detach())
        self.average([spread])
        self.scale.update(spread)
        loss = policy_loss(sample, values, self.scale.value, self.config)
        norm, skipped = self.step(loss, self.policy_optimizer, self.policy_parameters, skipped)
        self.num_skipped += skipped
        return {
            "policy_loss": loss.detach(),
            "policy_gradient_norm": norm,
            "policy_scaled_entropy": sample.scaled_entropy.detach().mean(),
            "value_scale": self.scale.value.clone(),
        }

    def step(
        self,
        loss: Tensor,
        optimizer: torch.optim.Optimizer,
        parameters: list[nn.Parameter],
        skipped: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Step down a loss, unless `skipped` is 1 or the gradient is not finite; return its norm and whether it was."""
        optimizer.zero_grad()
        loss.backward(inputs=parameters)
        self.average([parameter.grad for parameter in parameters if parameter.grad is not None])
        norm = nn.utils.clip_grad_norm_(parameters, self.config.gradient_clip)
        wrong = (~norm.isfinite()).float()
        skipped = wrong if skipped is None else torch.maximum(skipped, wrong)
        skip_if(skipped, optimizer)
        optimizer.step()
        return norm, skipped

    def state_tensors(self) -> dict[str, Tensor]:
        """Return moments, the scale of values and random states, on the CPU."""
        tensors = {"value_scale": self.scale.value.cpu().clone(), "num_skipped": self.num_skipped.cpu().clone()}
        for optimizer in (self.world_optimizer, self.policy_optimizer):
            tensors |= moments(self.model, optimizer)
        return tensors | random_states(self.num_skipped.device)

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_tensors` returned."""
        restore_random_states(tensors, self.num_skipped.device)
        self.scale.value.copy_(tensors["value_scale"])
        self.num_skipped.copy_(tensors["num_skipped"])
        policy = {name for name in tensors if "/policy_head." in name}
        load_moments({name: tensors[name] for name in policy}, self.model, self.policy_optimizer)
        load_moments({name: tensors[name] for name in tensors.keys() - policy}, self.model, self.world_optimizer)
        if self.captured:
            self.captured.forget()
