"""A planner's decisions, episode by episode, in files and as a corrector's samples.

A file is HDF5, and whole or absent. Every input of a sample is looked up by index, for every age of a plan: a sample is
a state in which a plan of age 1, ..., K - 1 was, or could have been, in use.

Shapes: T decisions of an episode, S states of all episodes back to back, N samples, O observation_dim, L latent_dim, A
action_dim, H the planner's horizon, K the execution horizon. Actions are within [-1, 1].
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gq.data.hdf5 import check_size, open_hdf5, own_item, pick_columns, plain_attributes
from gq.errors import DataError, UsageError
from gq.files import atomic_path
from gq.models.corrector import CorrectorInputs
from gq.models.world_model import WorldModel
from gq.planning.interfaces import Past, corrector_inputs

FORMAT = "gq plan data 1"
AGAIN = "collect it again: gq distill RUN"
Target = Literal["mean", "elite"]
CHUNK = 8192  # states at a time through the model


# --- episodes and files -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PlanEpisode:
    """One whole episode: what was reached and done, and what the planner thought in each state. float32 but for ages.

    Where a student drove, `predicted`, `queued` and `queued_std` are what it corrected; where the planner drove, each
    plan is new: they are the latent itself and the plan's first action. Histories are not stored: `past_rows`
    finds them.
    """

    observations: np.ndarray  # [T, O]
    latents: np.ndarray  # [T, L]
    actions: np.ndarray  # [T, A] as executed
    rewards: np.ndarray  # [T]
    ages: np.ndarray  # int16 [T], decisions since the plan that was being executed was made
    predicted: np.ndarray  # [T, L], what that plan expected
    queued: np.ndarray  # [T, A], its action, or the policy's past its end, before correction
    queued_std: np.ndarray  # [T, A]
    plan_mean: np.ndarray  # [T, H, A] of a plan made here
    plan_std: np.ndarray  # [T, H, A]
    plan_elite: np.ndarray  # [T, H, A]
    label: np.ndarray  # [T, A], the first action of the plan's mean, averaged over several plans
    label_std: np.ndarray  # [T, A], its standard deviation over them
    elite_std: np.ndarray  # [T, A], that of the drawn elites' first actions
    number: int
    round: int  # 0: the planner drove
    driver: str  # `planner`, or the architecture of the corrector that drove
    seed: int  # that the environment was reset with

    @property
    def num_decisions(self) -> int:
        """Return T."""
        return len(self.rewards)


ARRAYS = [field.name for field in fields(PlanEpisode) if field.type is np.ndarray]
SCALARS: dict[str, Any] = {field.name: field.type for field in fields(PlanEpisode) if field.type is not np.ndarray}


@dataclass(frozen=True)
class PlanData:
    """The episodes of a file, in order, with what they depend on."""

    episodes: list[PlanEpisode]
    attributes: dict[str, Any]  # teacher_sha256, task and more


def write_plan_data(path: Path, episodes: Iterable[PlanEpisode], attributes: dict[str, Any]) -> None:
    """Write a file; the same episodes and attributes give the same bytes.

    Args:
        attributes: text and numbers, `teacher_sha256` among them.

    Raises:
        GqError: the folder cannot be written or the disk is full.
    """
    import h5py

    with atomic_path(path) as temporary, h5py.File(temporary, "w") as root:
        root.attrs.update({"format": FORMAT, **attributes})
        for index, episode in enumerate(episodes):
            group = root.create_group(f"episode_{index:06d}")
            group.attrs.update({name: getattr(episode, name) for name in SCALARS})
            for name in ARRAYS:
                dtype = np.int16 if name == "ages" else np.float32
                group.create_dataset(name, data=np.ascontiguousarray(getattr(episode, name), dtype))


def read_plan_data(path: Path, *, teacher_sha256: str | None = None) -> PlanData:
    """Read a file.

    Args:
        teacher_sha256: of the weights whose decisions it must hold; None takes any.

    Raises:
        UsageError: there is no such file, or it holds another teacher's decisions.
        DataError: it is damaged, or no such file at all.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}", hint="check the path, or omit --data to collect one")
    with open_hdf5(path) as root:
        attributes = plain_attributes(root)
        if attributes.get("format") != FORMAT:
            raise DataError(f"{path} does not hold a planner's decisions", hint=AGAIN)
        found = str(attributes.get("teacher_sha256"))
        if teacher_sha256 is not None and found != teacher_sha256:
            message = f"{path} holds the decisions of another teacher: {found[:12]}, not {teacher_sha256[:12]}"
            raise UsageError(message, hint="omit --data to collect this one's, or name its run and checkpoint")
        return PlanData([read_episode(path, own_item(str(path), root, name)) for name in sorted(root)], attributes)


def read_episode(path: Path, group: Any) -> PlanEpisode:
    """Return an episode of an open file. Raises DataError if something of it is missing, not finite, or misshapen."""
    columns = pick_columns(str(path), group, ARRAYS)
    check_size(path, [column.shape for column in columns.values()])
    for name, column in columns.items():
        if column.dtype.kind not in "if" or not column.shape:
            raise DataError(
                f"{path}: {group.name[1:]} holds {column.dtype} for {name}, not rows of numbers", hint=AGAIN
            )
    arrays = {name: column[()] for name, column in columns.items()}
    for name, array in arrays.items():
        if len(array) != len(arrays["rewards"]) or not len(array):
            raise DataError(f"{path}: {group.name[1:]} has {len(array)} rows of {name}", hint=AGAIN)
        if not np.isfinite(array).all():
            raise DataError(f"{path}: {name} in {group.name[1:]} holds numbers that are not finite", hint=AGAIN)
    attributes = plain_attributes(group)
    try:
        scalars = {name: kind(attributes[name]) for name, kind in SCALARS.items()}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: {group.name[1:]} does not say {error}", hint=AGAIN) from None
    return PlanEpisode(**arrays, **scalars)


# --- samples ----------------------------------------------------------------------------------------------------------


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


class Batch(NamedTuple):
    """Samples, with what the teacher says of them."""

    inputs: CorrectorInputs
    label: Tensor  # [N, A], the planner's mean, averaged over several plans
    label_std: Tensor  # [N, A], the standard deviation of its plans' last distribution


@dataclass(frozen=True)
class Samples:
    """States and the plans in use in them."""

    states: States
    uses: Uses
    episode: np.ndarray  # int64 [N], number of each sample's
    round: np.ndarray  # int64 [N]
    is_validation: np.ndarray  # bool [N]

    def batch(self, rows: np.ndarray, history_length: int) -> Batch:
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
        return Batch(inputs, states.label[uses.state], states.label_std[uses.state])


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
        max_samples: keep at most this many, drawn by the seed, as many of each round as there can be.
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
    """At most `max_samples` of the rows, in order: equally many of each round, where it has them."""
    generator = np.random.default_rng([seed, *b"samples"])
    chosen: list[np.ndarray] = []
    groups = sorted((kept[rounds == number] for number in np.unique(rounds)), key=len)
    for index, group in enumerate(groups):
        share = (max_samples - sum(map(len, chosen))) // (len(groups) - index)
        chosen.append(generator.permutation(group)[:share])
    return np.sort(np.concatenate(chosen)) if chosen else kept


def is_validation(number: int, num_episodes: int) -> bool:
    """Whether an episode is for validation: every fifth, or the last where there are fewer.

    More episodes move none from one side to the other once there are five.
    """
    return number % 5 == 4 or (num_episodes < 5 and number == num_episodes - 1)


def past_rows(rows: np.ndarray, first: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows [N, length] before the present ones, the newest last, and which of them there are.

    Args:
        rows: int64 [N], the present ones.
        first: int64 [N], where the episode of each begins; what would lie before it is False in the mask [N, length].
    """
    wanted = rows[:, None] - np.arange(length, 0, -1)
    return np.maximum(wanted, first[:, None]), wanted >= first[:, None]
