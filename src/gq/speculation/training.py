"""Training a corrector to do what a planner would have done in the state that was really reached.

Shapes: N states, L latent_dim, A action_dim. Actions are within [-1, 1].
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gq.config import NonNegative, Positive, Seed
from gq.errors import DataError
from gq.models.config import Count
from gq.models.corrector import Corrector, CorrectorConfig
from gq.models.world_model import WorldModel
from gq.speculation.samples import Batch, Samples

HUBER_DELTA = 0.1  # an action's error from which the loss is linear
MIN_STD = 0.05  # the least that planners have
GRADIENT_CLIP = 10.0  # global norm
CHUNK = 4096  # samples at a time without learning
MAX_SCALED = 100_000  # samples that inputs are scaled by
MAX_BOUNDED = 1_000_000  # numbers that residuals are bounded by


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How a corrector is trained."""

    num_epochs: Count = 50  # at most
    patience: Count = 8  # epochs without a better validation before it ends
    batch_size: Count = 256
    learning_rate: Positive = 3e-4
    weight_decay: NonNegative = 1e-4
    value_weight: NonNegative = 0.0  # of the lost value beside the action's error
    seed: Seed = 0  # of episodes, batches and weights


# --- the loss ---------------------------------------------------------------------------------------------------------


class Terms(NamedTuple):
    """The mean terms of a loss."""

    loss: Tensor
    action: Tensor
    value: Tensor


class ValueGap:
    """What a teacher's Q loses where its action is replaced, in units of how far its values spread.

    Args:
        teacher: whose parameters need no gradients.
        scale: of values; see `value_scale`.
    """

    def __init__(self, teacher: WorldModel, scale: float) -> None:
        self.teacher, self.scale = teacher, scale

    def __call__(self, latents: Tensor, actions: Tensor, labels: Tensor) -> Tensor:
        """The gap [N] between labels [N, A] and actions [N, A]; only the actions have gradients."""
        gained = self.teacher.q_values(latents, actions).mean(dim=0)
        with torch.no_grad():
            possible = self.teacher.q_values(latents, labels).mean(dim=0)
        return (possible - gained) / self.scale


@torch.no_grad()
def value_scale(teacher: WorldModel, latents: Tensor, actions: Tensor) -> float:
    """How far the teacher's values of N latents and actions spread, 1 at least: between their 5 and 95 %."""
    values = teacher.q_values(latents, actions).mean(dim=0)
    low, high = values.double().quantile(torch.tensor([0.05, 0.95], dtype=torch.float64, device=values.device))
    return max(float(high - low), 1.0)


def action_errors(actions: Tensor, batch: Batch) -> Tensor:
    """Huber errors [N] of actions [N, A], weighted by how sure the teacher was of each action.

    Weights are one over its standard deviation, and 1 where that is MIN_STD or less.
    """
    assert actions.shape == batch.label.shape == batch.label_std.shape, (actions.shape, batch.label.shape)
    errors = F.huber_loss(actions, batch.label, reduction="none", delta=HUBER_DELTA) / HUBER_DELTA
    return (errors * MIN_STD / batch.label_std.clamp(min=MIN_STD)).mean(dim=-1)


def corrector_loss(
    corrector: Corrector, batch: Batch, *, value_gap: ValueGap | None = None, value_weight: float = 0.0
) -> Terms:
    """The loss of a batch.

    Args:
        value_gap: needed where `value_weight`, what a lost value counts beside an action's error, is not 0.
    """
    actions = corrector.unclipped(batch.inputs)
    action = action_errors(actions, batch).mean()
    if not value_weight:
        return Terms(action, action.detach(), torch.zeros_like(action))
    assert value_gap is not None
    value = value_gap(batch.inputs.real, actions.clamp(-1, 1), batch.label).mean()
    return Terms(action + value_weight * value, action.detach(), value.detach())


# --- training ---------------------------------------------------------------------------------------------------------


class CorrectorLearner:
    """A corrector with its optimiser."""

    def __init__(self, corrector: Corrector, settings: TrainSettings, value_gap: ValueGap | None = None) -> None:
        self.corrector, self.value_gap, self.value_weight = corrector, value_gap, settings.value_weight
        self.optimizer = torch.optim.AdamW(
            corrector.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )

    def update(self, batch: Batch) -> Terms:
        """Take one step; return the loss before it, detached."""
        self.corrector.train()
        terms = corrector_loss(self.corrector, batch, value_gap=self.value_gap, value_weight=self.value_weight)
        self.optimizer.zero_grad(set_to_none=True)
        terms.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.corrector.parameters(), GRADIENT_CLIP)
        self.optimizer.step()
        return Terms(*(term.detach() for term in terms))

    @torch.no_grad()
    def loss(self, batch: Batch) -> Terms:
        """The loss of a batch, without learning from it."""
        self.corrector.eval()
        return corrector_loss(self.corrector, batch, value_gap=self.value_gap, value_weight=self.value_weight)

    def mean_loss(self, samples: Samples, rows: np.ndarray) -> float:
        """The mean loss of samples, int64 [N]."""
        total = 0.0
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            total += float(self.loss(samples.batch(chunk, self.corrector.history_length)).loss) * len(chunk)
        return total / len(rows)


@dataclass(frozen=True)
class Trained:
    """A corrector as it was after its best epoch, and how it got there."""

    corrector: Corrector
    history: list[dict[str, float]]  # one entry an epoch: epoch, train_loss, validation_loss
    best_epoch: int  # 0: before the first


def train_corrector(
    samples: Samples,
    teacher: WorldModel,
    config: CorrectorConfig,
    settings: TrainSettings,
    *,
    is_stopped: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Trained | None:
    """Train a new corrector until other episodes get no better; None if it was stopped.

    The caller's random numbers are left as they were.

    Args:
        progress: called after each epoch with the epochs so far and the most there can be.

    Raises:
        DataError: there are no samples to learn from, or none to validate with.
    """
    rows, held_out = np.flatnonzero(~samples.is_validation), np.flatnonzero(samples.is_validation)
    if not len(rows) or not len(held_out):
        message = f"there are {len(rows)} samples to learn from and {len(held_out)} of other episodes to validate with"
        raise DataError(message, hint="collect more with --episodes, or lower min_distance")
    device = samples.states.latents.device
    generator = np.random.default_rng([settings.seed, *b"batches"])
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        corrector = Corrector(config).to(device)
        _scale(corrector, samples, generator.permutation(rows)[:MAX_SCALED])
        gap = _gap_of(teacher, samples) if settings.value_weight else None
        learner = CorrectorLearner(corrector, settings, gap)
        best_epoch, best = 0, learner.mean_loss(samples, held_out)
        history = [{"epoch": 0, "train_loss": learner.mean_loss(samples, rows), "validation_loss": best}]
        best_state = copy.deepcopy(corrector.state_dict())
        for epoch in range(1, settings.num_epochs + 1):
            order, losses = generator.permutation(rows), []
            for start in range(0, len(order), settings.batch_size):
                chosen = order[start : start + settings.batch_size]
                batch = samples.batch(chosen, corrector.history_length)
                losses.append(learner.update(batch).loss * len(chosen))
                if is_stopped():
                    return None
            train_loss = float(torch.stack(losses).sum()) / len(order)
            loss = learner.mean_loss(samples, held_out)
            history.append({"epoch": epoch, "train_loss": train_loss, "validation_loss": loss})
            if loss < best:
                best_epoch, best, best_state = epoch, loss, copy.deepcopy(corrector.state_dict())
            progress(epoch, settings.num_epochs)
            if epoch - best_epoch >= settings.patience:
                break
    corrector.load_state_dict(best_state)
    return Trained(corrector.eval().requires_grad_(False), history, best_epoch)


def _scale(corrector: Corrector, samples: Samples, rows: np.ndarray) -> None:
    """Scale a corrector's inputs and bound its residuals by samples."""
    chosen = torch.from_numpy(rows)
    states, uses = samples.states, samples.uses
    here = uses.state[chosen]
    corrector.scale_inputs(states.latents[here], uses.predicted[chosen])
    base = states.policy_mean[here] if corrector.config.plan_blind else uses.plan_action[chosen]
    residuals = states.label[here] - base
    corrector.bound_residual(residuals[: MAX_BOUNDED // residuals.shape[1]])


def _gap_of(teacher: WorldModel, samples: Samples) -> ValueGap:
    return ValueGap(teacher, value_scale(teacher, samples.states.latents, samples.states.label))


# --- errors -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def measure(corrector: Corrector, samples: Samples, teacher: WorldModel) -> dict[str, Any]:
    """How far actions are from the teacher's in the validation episodes, in all and by the plan's age.

    Each entry has `samples` and, for `corrected`, `plan` (as it is) and `policy` (its mean): `rmse`, the root of the
    mean squared error of an action; `huber`, the weighted error that is learnt; and `value_gap`, what the teacher's Q
    loses by it, in units of how far its values spread.
    """
    rows, gap = np.flatnonzero(samples.is_validation), _gap_of(teacher, samples)
    errors: dict[str, list[Tensor]] = {name: [] for name in ("corrected", "plan", "policy")}
    for start in range(0, len(rows), CHUNK):
        batch = samples.batch(rows[start : start + CHUNK], corrector.history_length)
        inputs = batch.inputs
        actions = {"corrected": corrector(inputs), "plan": inputs.plan_action, "policy": inputs.policy_mean}
        for name, chosen in actions.items():
            squared = (chosen - batch.label).square().mean(dim=-1)
            lost = gap(inputs.real, chosen, batch.label)
            errors[name].append(torch.stack([squared, action_errors(chosen, batch), lost], dim=-1))
    joined = {name: torch.cat(parts).cpu().double() for name, parts in errors.items()}
    ages = samples.uses.age[torch.from_numpy(rows)].cpu()
    table = {"all": _means(joined, torch.ones(len(rows), dtype=torch.bool))}
    return table | {str(age): _means(joined, ages == age) for age in sorted(set(ages.tolist()))}


def _means(errors: dict[str, Tensor], chosen: Tensor) -> dict[str, Any]:
    """The means of errors [N, 3] over chosen samples, bool [N]."""
    entry: dict[str, Any] = {"samples": int(chosen.sum())}
    for name, values in errors.items():
        squared, huber, lost = values[chosen].mean(dim=0).tolist()
        entry[name] = {"rmse": squared**0.5, "huber": huber, "value_gap": lost}
    return entry
