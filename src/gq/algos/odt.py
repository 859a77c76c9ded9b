"""Online Decision Transformer (arXiv 2202.05607): likelihood under a constraint on the entropy, and its policy."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import torch
from torch import Tensor

from gq.algos.dt import DTPolicy
from gq.algos.state import load_moments, skip_if
from gq.algos.supervised import EAGER, Execution, SupervisedLearner, cosine_factor, warmed_up
from gq.config import EntropyConfig, OptimConfig, TrainConfig, UpdateConfig
from gq.data.windows import Batch, Sampler
from gq.models.config import Context
from gq.models.distributions import ActionDistribution
from gq.models.stochastic_transformer import StochasticTransformer

SATURATED = 0.99  # a scaled action beyond this is counted as saturated
NUM_QUANTILE_VALUES = 2048  # so many of a batch's standard deviations are sorted for the log
SIGMA_QUANTILES = (0.1, 0.5, 0.9)


class EntropyConstraint:
    """The temperature lambda, which weighs the entropy H in the loss, as the dual variable of H >= target.

    It minimises lambda * (H - target) by Adam on log lambda (equation 11 of the paper), so it falls while there is more
    entropy than asked for. In double precision: its steps are small beside its size.
    """

    def __init__(
        self, entropy: EntropyConfig, action_dim: int, device: torch.device, *, captured: bool = False
    ) -> None:
        self.entropy, self.target = entropy, entropy.target * action_dim
        dtype = torch.float32 if device.type == "mps" else torch.float64
        start = torch.tensor(math.log(entropy.temperature), dtype=dtype, device=device)
        self.log_temperature = start.requires_grad_(entropy.mode == "dual")
        self.optimizer = torch.optim.Adam(
            [self.log_temperature], lr=entropy.learning_rate, fused=device.type != "mps", capturable=captured
        )

    @property
    def temperature(self) -> Tensor:
        """The weight of the entropy in the loss, a float32 scalar without gradient; 0 if the constraint is off."""
        return self.log_temperature.detach().exp().float() * (self.entropy.mode != "off")

    def update(self, measured: Tensor, skipped: Tensor) -> None:
        """Take a step with a batch's mean entropy, unless `skipped` is 1."""
        if self.entropy.mode != "dual":
            return
        self.log_temperature.grad = self.log_temperature.detach().exp() * (measured.detach() - self.target)
        skip_if(skipped, self.optimizer)
        self.optimizer.step()
        low, high = math.log(self.entropy.temperature_min), math.log(self.entropy.temperature_max)
        self.log_temperature.data.clamp_(low, high)

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the temperature and its moments, on the CPU."""
        state = self.optimizer.state.get(self.log_temperature, {})
        tensors = {f"temperature/{key}": value.detach().cpu().clone() for key, value in state.items()}
        return tensors | {"temperature/log": self.log_temperature.detach().cpu().clone()}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_tensors` returned."""
        device = self.log_temperature.device
        self.log_temperature.data.copy_(tensors["temperature/log"])
        state = {
            key: tensors[f"temperature/{key}"].to(device)
            for key in ("step", "exp_avg", "exp_avg_sq")
            if f"temperature/{key}" in tensors
        }
        if state:
            self.optimizer.state[self.log_temperature] = state


class ODTLearner(SupervisedLearner):
    """Minimise -log pi(a) - lambda H over valid steps; H is estimated from one sample per step."""

    model: StochasticTransformer

    def __init__(
        self,
        model: StochasticTransformer,
        sampler: Sampler,
        optim: OptimConfig,
        train: UpdateConfig,
        entropy: EntropyConfig,
        execution: Execution = EAGER,
    ) -> None:
        action_low = model.scaling.action_low
        self.constraint = EntropyConstraint(
            entropy, len(action_low), action_low.device, captured=execution.program.captured
        )
        super().__init__(model, partial(measure, self.constraint), sampler, optim, train, execution)
        self.step_offset = 0  # steps of a parent whose warm-up goes on
        self.share_done = 0.0  # of the budget; online, who runs the updates says it

    def take_step(self, batch: Batch) -> dict[str, Tensor]:
        """Take a step at the optimiser's learning rate, then one of the temperature."""
        before = self.num_skipped.clone()
        metrics = super().take_step(batch)
        metrics["temperature"] = self.constraint.temperature
        self.constraint.update(metrics["entropy"], self.num_skipped - before)
        return metrics

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of step number `step`; online it follows the parent's, and falls with the budget."""
        if isinstance(self.train, TrainConfig):
            return super().learning_rate(step)
        rate = warmed_up(self.optim, step + self.step_offset)
        return rate * cosine_factor(self.share_done) if self.optim.schedule == "cosine" else rate

    def state_tensors(self) -> dict[str, Tensor]:
        """Return moments, temperature and random states, on the CPU."""
        offset = {"step_offset": torch.tensor(self.step_offset)}
        return super().state_tensors() | self.constraint.state_tensors() | offset

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_tensors` returned."""
        super().load_state_tensors(tensors)
        self.constraint.load_state_tensors(tensors)
        self.step_offset = int(tensors["step_offset"])

    def carry(self, tensors: dict[str, Tensor], num_steps: int) -> None:
        """Take over moments, temperature and schedule of a parent that took `num_steps` steps itself."""
        load_moments(tensors, self.model, self.optimizer)
        self.constraint.load_state_tensors(tensors)
        self.step_offset = int(tensors["step_offset"]) + num_steps


def measure(constraint: EntropyConstraint, model: StochasticTransformer, batch: Batch) -> dict[str, Tensor]:
    """Return the loss on a batch and what describes the policy, as scalars."""
    distribution = model(batch.observations, batch.actions, batch.returns_to_go, batch.timesteps)
    return policy_metrics(
        distribution,
        model.scaling.scale_actions(batch.actions),
        batch.valid,
        temperature=constraint.temperature,
        clip=model.config.action_clip,
        draws=torch.randn_like(distribution.mean),
    )


def policy_metrics(
    distribution: ActionDistribution, target: Tensor, valid: Tensor, *, temperature: Tensor, clip: float, draws: Tensor
) -> dict[str, Tensor]:
    """Return the loss and what describes the policy, as scalars.

    Args:
        target: actions of the data [B, K, A], scaled to [-1, 1].
        valid: bool [B, K]; every mean is over these steps, the entropy's too.
        clip: targets are clamped to 1 - clip in size.
        draws: standard normal [B, K, A], one sample per step for the entropy.
    """
    log_likelihood = distribution.log_prob(target, clip).sum(dim=-1)  # [B, K]
    sampled, sampled_log_prob = distribution.sample(draws)
    num_valid = valid.sum()

    def mean(values: Tensor) -> Tensor:
        return (values * valid).sum() / num_valid

    nll, entropy = -mean(log_likelihood), -mean(sampled_log_prob.sum(dim=-1))
    with torch.no_grad():
        log_std = distribution.log_std.masked_fill(~valid[..., None], math.nan)
        log_std = log_std[:: -(-log_std.numel() // NUM_QUANTILE_VALUES)].flatten()  # whole windows: every dimension
        wanted = torch.stack([log_std.new_full((), quantile) for quantile in SIGMA_QUANTILES])  # made on the device
        quantiles = torch.nanquantile(log_std, wanted).exp()
        saturated = mean((sampled.abs() > SATURATED).float().mean(dim=-1))
        clamped = mean((target.abs() > 1 - clip).float().mean(dim=-1)) * distribution.squashed
    return {
        "loss": nll - temperature * entropy,
        "nll": nll,
        "entropy": entropy,
        "saturated": saturated,
        "clamped": clamped,
        **{f"sigma_p{round(100 * q)}": quantiles[i] for i, q in enumerate(SIGMA_QUANTILES)},
    }


class ODTPolicy(DTPolicy):
    """Act from the last `acting_context` steps: by the distribution's mode, or by samples of it.

    Each episode draws its samples from its own seed, so that they do not depend on which others run beside it.
    """

    model: StochasticTransformer

    def __init__(
        self,
        model: StochasticTransformer,
        *,
        autocast: Callable[[], AbstractContextManager[None]],
        delayed: bool = False,
        context: Context = "sliding",
        stochastic: bool = False,
    ) -> None:
        length = model.config.acting_context
        super().__init__(model, autocast=autocast, delayed=delayed, context=context, context_length=length)
        self.stochastic = stochastic

    def reset(self, target_returns: np.ndarray, seeds: Sequence[int] = ()) -> None:
        """Start one episode per target return [E], with a seed for each [E] where actions are sampled."""
        super().reset(target_returns, seeds)
        self.generators: list[torch.Generator] = []
        if self.stochastic:
            assert len(seeds) == len(target_returns)
            self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    @torch.no_grad()
    def act(self, rows: np.ndarray, observations: np.ndarray) -> np.ndarray:
        """Return actions [E', A] in environment units for the running episodes `rows` and their observations."""
        context = self.context(rows, observations)
        draws = None
        if self.stochastic:
            each = [torch.randn(self.action_dim, generator=self.generators[row]) for row in rows]
            draws = torch.stack(each).to(self.device)
        return self.model.act(*context, draws, cache=self.cache).float().cpu().numpy()
