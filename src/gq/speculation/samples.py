"""From a planner's decisions to a corrector's samples: every input is looked up by index, for every age of a plan.

Shapes: S states of all episodes back to back, N samples, L latent_dim, A action_dim, H the planner's horizon, K the
execution horizon. A sample is a state in which a plan of age 1, ..., K - 1 was, or could have been, in use.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gq.models.world_model import WorldModel
from gq.planning.interfaces import Past, corrector_inputs
from gq.speculation.lesson import Lesson
from gq.speculation.plan_data import PlanEpisode, is_validation, past_rows

Target = Literal["mean", "elite"]
CHUNK = 8192  # states at a time through the model


class States(NamedTuple):
    """All states, with what does not depend on plans."""

    latents: Tensor  # [S, L]
    expected: Tensor  # [S, L], what the model expected of the decision before; at an episode's start, the latent
    actions: Tensor  # [S, A] as executed
    policy_mean: Tensor  # [S, A]
    label: Tensor  # [S, A]
    label_std: Tensor  # [S, A], of the distribution that the planner ended with
    first: np.ndarray  # int64 [S], where the state's episode begins


class Uses(NamedTuple):
    """Plans in use, N of them."""

    state: Tensor  # int64 [N]
    age: Tensor  # int64 [N]
    predicted: Tensor  # [N, L]
    plan_action: Tensor  # [N, A]
    plan_std: Tensor  # [N, A]


@dataclass(frozen=True)
class Samples:
    """States and the plans in use in them."""

    states: States
    uses: Uses
    episode: np.ndarray  # int64 [N], number of each sample's
    round: np.ndarray  # int64 [N]
    is_validation: np.ndarray  # bool [N]

    def lesson(self, rows: np.ndarray, history_length: int) -> Lesson:
        """Return samples by index, as the corrector sees them when it acts."""
        states, uses = self.states, Uses(*(part[torch.from_numpy(rows)] for part in self.uses))
        here = uses.state.cpu().numpy()
        before, mask = past_rows(here, states.first[here], history_length - 1)
        index, device = torch.from_numpy(before), states.latents.device
        past = Past(
            states.latents[index], states.expected[index], states.actions[index], torch.from_numpy(mask).to(device)
        )
        inputs = corrector_inputs(
            states.latents[uses.state],
            uses.predicted,
            uses.plan_action,
            age=uses.age,
            plan_std=uses.plan_std,
            policy_mean=states.policy_mean[uses.state],
            past=past,
        )
        return Lesson(inputs, states.label[uses.state], states.label_std[uses.state])


def build_samples(
    episodes: list[PlanEpisode],
    teacher: WorldModel,
    *,
    execution_horizon: int,
    min_distance: float = 0.0,
    max_samples: int | None = None,
    target: Target = "mean",
    seed: int = 0,
) -> Samples:
    """Return the samples of episodes on the teacher's device.

    Args:
        min_distance: leave out samples whose latent is nearer to the prediction than this.
        max_samples: keep at most so many, drawn by the seed, as many of each round as there can be.
        target: learn the mean of several plans, or one plan's drawn elite.
    """
    states = build_states(episodes, teacher, target)
    offsets = np.cumsum([0] + [episode.num_decisions for episode in episodes])
    parts, owners = [], []
    for episode, offset in zip(episodes, offsets, strict=False):
        if episode.driver == "planner":
            parts.append(planner_uses(teacher, episode, states, int(offset), execution_horizon))
        else:
            parts.append(student_uses(episode, states, int(offset), execution_horizon))
        owners += [(episode.number, episode.round)] * len(parts[-1].state)
    uses = Uses(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
    numbers, rounds = np.array(owners, np.int64).reshape(-1, 2).T
    kept = np.arange(len(numbers))
    if min_distance > 0:
        distance = (states.latents[uses.state] - uses.predicted).norm(dim=-1)
        kept = np.flatnonzero((distance >= min_distance).cpu().numpy())
    if max_samples is not None:
        kept = thin(kept, rounds[kept], max_samples, seed)
    validation = np.array([is_validation(int(number), len(episodes)) for number in numbers[kept]], bool)
    uses = Uses(*(part[torch.from_numpy(kept)] for part in uses))
    return Samples(states, uses, numbers[kept], rounds[kept], validation)


@torch.no_grad()
def build_states(episodes: list[PlanEpisode], teacher: WorldModel, target: Target) -> States:
    """Return the states of all episodes."""
    device = next(teacher.parameters()).device

    def joined(arrays: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays)).to(device)

    latents, actions = joined([e.latents for e in episodes]), joined([e.actions for e in episodes])
    lengths = np.array([episode.num_decisions for episode in episodes])
    first = np.repeat(np.cumsum(lengths) - lengths, lengths)
    expected, policy_mean = torch.empty_like(latents), torch.empty_like(actions)
    for start in range(0, len(latents), CHUNK):
        chunk = slice(start, start + CHUNK)
        following = slice(start + 1, start + 1 + len(expected[start + 1 : start + 1 + CHUNK]))
        expected[following] = teacher.next(latents[chunk], actions[chunk])[: len(expected[following])]
        policy_mean[chunk] = teacher.policy(latents[chunk], torch.zeros_like(actions[chunk])).mean
    starts = torch.from_numpy(np.unique(first))
    expected[starts] = latents[starts]
    label = joined([e.label if target == "mean" else e.plan_elite[:, 0] for e in episodes])
    return States(latents, expected, actions, policy_mean, label, joined([e.plan_std[:, 0] for e in episodes]), first)


@torch.no_grad()
def planner_uses(
    teacher: WorldModel, episode: PlanEpisode, states: States, offset: int, execution_horizon: int
) -> Uses:
    """Return every plan of an episode that the planner drove, at every age that it could have reached."""
    device, num, horizon = states.latents.device, episode.num_decisions, episode.plan_mean.shape[1]
    members = slice(offset, offset + num)
    mean, std = (torch.from_numpy(array).to(device) for array in (episode.plan_mean, episode.plan_std))
    parts, predicted = [], states.latents[members]
    for age in range(1, min(execution_horizon, num)):
        here, made = slice(offset + age, offset + num), slice(0, num - age)
        if age <= horizon:
            predicted = teacher.next(predicted[: num - age], mean[made, age - 1])
        else:
            predicted = states.expected[here]
        if age < horizon:
            plan = (predicted, mean[made, age], std[made, age])
        else:  # behind the plan's end
            plan = (predicted, states.policy_mean[here], std[made, -1])
        state = torch.arange(offset + age, offset + num, device=device)
        parts.append(Uses(state, torch.full_like(state, age), *plan))
    if not parts:  # an episode of one decision
        nothing = torch.zeros(0, dtype=torch.int64, device=device)
        parts = [Uses(nothing, nothing, states.latents[:0], states.actions[:0], states.actions[:0])]
    return Uses(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def student_uses(episode: PlanEpisode, states: States, offset: int, execution_horizon: int) -> Uses:
    """Return the plans that a student executed, where it could correct them."""
    device = states.latents.device
    steps = np.flatnonzero((episode.ages > 0) & (episode.ages < execution_horizon))
    return Uses(
        torch.from_numpy(offset + steps).to(device),
        torch.from_numpy(episode.ages[steps].astype(np.int64)).to(device),
        *(
            torch.from_numpy(array[steps]).to(device)
            for array in (episode.predicted, episode.queued, episode.queued_std)
        ),
    )


def thin(kept: np.ndarray, rounds: np.ndarray, max_samples: int, seed: int) -> np.ndarray:
    """Return at most so many of the rows, in order: as many of each round, where it has them."""
    generator = np.random.default_rng([seed, *b"samples"])
    chosen: list[np.ndarray] = []
    groups = sorted((kept[rounds == number] for number in np.unique(rounds)), key=len)
    for index, group in enumerate(groups):
        share = (max_samples - sum(map(len, chosen))) // (len(groups) - index)
        chosen.append(generator.permutation(group)[:share])
    return np.sort(np.concatenate(chosen)) if chosen else kept
