"""Files of what a planner decided, episode by episode, for distilling it: HDF5, and whole or absent.

Shapes: T decisions, S observation_dim, L latent_dim, A action_dim, H the planner's horizon. Actions are within [-1, 1].
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from gq.data.hdf5 import check_size, open_hdf5, own_item, pick_columns, plain_attributes
from gq.errors import DataError, UsageError
from gq.files import atomic_path

FORMAT = "gq plan data 1"
AGAIN = "collect it again: gq distill RUN"


@dataclass(frozen=True, kw_only=True)
class PlanEpisode:
    """One whole episode: what was reached and done, and what the planner thought in each state. float32 but for ages.

    Where a student drove, `predicted`, `queued` and `queued_std` are what it corrected; where the planner drove, each
    plan is new: they are the latent itself and the plan's first action. Histories are not stored: `past_rows`
    finds them.
    """

    observations: np.ndarray  # [T, S]
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

    @property
    def num_decisions(self) -> int:
        """Return the decisions of all episodes."""
        return sum(episode.num_decisions for episode in self.episodes)


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
        raise UsageError(f"there is no file {path}", hint="check the path, or leave --data away to collect one")
    with open_hdf5(path) as root:
        attributes = plain_attributes(root)
        if attributes.get("format") != FORMAT:
            raise DataError(f"{path} does not hold a planner's decisions", hint=AGAIN)
        found = str(attributes.get("teacher_sha256"))
        if teacher_sha256 is not None and found != teacher_sha256:
            message = f"{path} holds the decisions of another teacher: {found[:12]}, not {teacher_sha256[:12]}"
            raise UsageError(message, hint="collect this one's by leaving --data away, or name its run and checkpoint")
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


def is_validation(number: int, num_episodes: int) -> bool:
    """Tell whether an episode is for validation: every fifth, or the last where there are fewer.

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


class EpisodeParts:
    """A folder in which each finished episode is a file of its own, so that a kill loses only what runs."""

    def __init__(self, folder: Path, attributes: dict[str, Any]) -> None:
        self.folder, self.attributes = folder, attributes

    def path(self, number: int) -> Path:
        """Return where an episode lies."""
        return self.folder / f"episode-{number:06d}.hdf5"

    def has(self, number: int) -> bool:
        """Tell whether an episode is there."""
        return self.path(number).is_file()

    def append(self, episode: PlanEpisode) -> None:
        """Add an episode. Raises GqError if it cannot be written."""
        write_plan_data(self.path(episode.number), [episode], self.attributes)

    def read(self, number: int) -> PlanEpisode:
        """Return an episode. Raises DataError if it is damaged."""
        (episode,) = read_plan_data(self.path(number)).episodes
        return episode

    def __iter__(self) -> Iterator[PlanEpisode]:
        """Yield the episodes 0, 1, ... that are there."""
        number = 0
        while self.has(number):
            yield self.read(number)
            number += 1


def request_text(request: dict[str, Any]) -> str:
    """Return all that the decisions of a file depend on as one line, for its attribute `request`."""
    return json.dumps(request, sort_keys=True)
