"""Training a corrector on samples: batches, early stopping on other episodes, and what its errors are worth."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gq.config import NonNegative, Positive, Seed
from gq.errors import DataError
from gq.models.config import Count
from gq.models.corrector import Corrector, CorrectorConfig
from gq.models.world_model import WorldModel
from gq.speculation.lesson import DistillLearner, Lesson, ValueGap, action_errors, value_scale
from gq.speculation.samples import Samples

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
    """Train a new corrector; None if it was stopped. The caller's random numbers are left as they were.

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
        prepare(corrector, samples, rows, generator)
        gap = None
        if settings.value_weight:
            states = samples.states
            gap = ValueGap(teacher, value_scale(teacher, states.latents, states.label))
        learner = DistillLearner(
            corrector,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            value_gap=gap,
            value_weight=settings.value_weight,
        )
        return fit(learner, samples, rows, held_out, settings, generator, is_stopped, progress)


def prepare(corrector: Corrector, samples: Samples, rows: np.ndarray, generator: np.random.Generator) -> None:
    """Scale a corrector's inputs and bound its residuals by samples."""
    chosen = torch.from_numpy(generator.permutation(rows)[:MAX_SCALED])
    states, uses = samples.states, samples.uses
    here = uses.state[chosen]
    corrector.scale_inputs(states.latents[here], uses.predicted[chosen])
    base = states.policy_mean[here] if corrector.config.plan_blind else uses.plan_action[chosen]
    residuals = states.label[here] - base
    corrector.bound_residual(residuals[: MAX_BOUNDED // residuals.shape[1]])


def fit(
    learner: DistillLearner,
    samples: Samples,
    rows: np.ndarray,
    held_out: np.ndarray,
    settings: TrainSettings,
    generator: np.random.Generator,
    is_stopped: Callable[[], bool],
    progress: Callable[[int, int], None],
) -> Trained | None:
    """Learn until other episodes get no better."""
    length = learner.corrector.history_length
    best = validate(learner, samples, held_out)
    history = [{"epoch": 0, "train_loss": validate(learner, samples, rows), "validation_loss": best}]
    best_epoch, best_state = 0, copy.deepcopy(learner.corrector.state_dict())
    for epoch in range(1, settings.num_epochs + 1):
        order, losses = generator.permutation(rows), []
        for start in range(0, len(order), settings.batch_size):
            batch = order[start : start + settings.batch_size]
            losses.append(learner.update(samples.lesson(batch, length)).loss * len(batch))
            if is_stopped():
                return None
        train_loss = float(torch.stack(losses).sum()) / len(order)
        validation_loss = validate(learner, samples, held_out)
        history.append({"epoch": epoch, "train_loss": train_loss, "validation_loss": validation_loss})
        if validation_loss < best:
            best, best_epoch, best_state = validation_loss, epoch, copy.deepcopy(learner.corrector.state_dict())
        progress(epoch, settings.num_epochs)
        if epoch - best_epoch >= settings.patience:
            break
    learner.corrector.load_state_dict(best_state)
    return Trained(learner.corrector.eval().requires_grad_(False), history, best_epoch)


def validate(learner: DistillLearner, samples: Samples, rows: np.ndarray) -> float:
    """Return the mean loss of samples."""
    total = 0.0
    for start in range(0, len(rows), CHUNK):
        batch = rows[start : start + CHUNK]
        total += float(learner.loss(samples.lesson(batch, learner.corrector.history_length)).loss) * len(batch)
    return total / len(rows)


@torch.no_grad()
def measure(corrector: Corrector, samples: Samples, teacher: WorldModel) -> dict[str, Any]:
    """Return how far actions are from the teacher's in the validation episodes, in all and by the plan's age.

    Each entry has `samples` and, for `corrected`, `plan` (as it is) and `policy` (its mean): `rmse`, the root of the
    mean squared error of an action; `huber`, the weighted error that is learnt; and `value_gap`, what the teacher's Q
    loses by it, in units of how far its values spread.
    """
    rows = np.flatnonzero(samples.is_validation)
    states = samples.states
    gap = ValueGap(teacher, value_scale(teacher, states.latents, states.label))
    errors: dict[str, list[Tensor]] = {name: [] for name in ("corrected", "plan", "policy")}
    for start in range(0, len(rows), CHUNK):
        lesson = samples.lesson(rows[start : start + CHUNK], corrector.history_length)
        inputs = lesson.inputs
        actions = {"corrected": corrector(inputs), "plan": inputs.plan_action, "policy": inputs.policy_mean}
        for name, chosen in actions.items():
            errors[name].append(errors_of(chosen, lesson, gap))
    joined = {name: torch.cat(parts).cpu().double() for name, parts in errors.items()}
    ages = samples.uses.age[torch.from_numpy(rows)].cpu()
    table = {"all": summary(joined, torch.ones(len(rows), dtype=torch.bool))}
    table |= {str(age): summary(joined, ages == age) for age in sorted(set(ages.tolist()))}
    return table


def errors_of(actions: Tensor, lesson: Lesson, gap: ValueGap) -> Tensor:
    """Return squared error, weighted Huber error and value gap of actions, [N, 3]."""
    squared = (actions - lesson.label).square().mean(dim=-1)
    lost = gap(lesson.inputs.real, actions, lesson.label)
    return torch.stack([squared, action_errors(actions, lesson), lost], dim=-1)


def summary(errors: dict[str, Tensor], chosen: Tensor) -> dict[str, Any]:
    """Return the means of errors [N, 3] over chosen samples, bool [N]."""
    entry: dict[str, Any] = {"samples": int(chosen.sum())}
    for name, values in errors.items():
        squared, huber, lost = values[chosen].mean(dim=0).tolist()
        entry[name] = {"rmse": squared**0.5, "huber": huber, "value_gap": lost}
    return entry
