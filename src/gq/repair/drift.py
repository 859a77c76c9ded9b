"""Tell whether stored data come from the physics of the installed simulator.

The verdict rests on single steps from stored states, where errors do not add up. Measured with mujoco 3.17.0 on
recorded data of Hopper, HalfCheetah, Walker2d, Ant and Humanoid, in typical steps (a row's error is that of its worst
column, one of rewards is in mean absolute rewards):
- The same engine (3.11 to 3.17) stays within 3e-5 on every row: the rounding of float32.
- With 1 % more gravity, 1 % more motor force or actions scaled by 0.9, nine rows of ten are off by 1e-3 or more.
- With 10 % more friction, a mujoco before 3.5 (in Hopper, Ant, Humanoid) or the other version of Walker2d, 35 to 60 %
  of the rows agree, those without certain contacts, and the others are off by up to two typical steps. Size cannot tell
  these three apart; the recorded versions and a replay in the other version of the environment can.
- mujoco 4.0 moves most rows of Ant and Humanoid by 1e-4 to 1e-3, as 0.1 % more gravity does.
Actions alone, from the first state, are chaotic: with the same physics the rounding grows to a tenth of a typical step
within 35 steps in HalfCheetah, 54 in Ant, 240 in Humanoid, 340 in Walker2d, 600 in Hopper.
"""

from dataclasses import asdict, astuple, dataclass
from typing import Any

import numpy as np

from gq.data.trajectories import Trajectories
from gq.envs.engines import differing_engines, installed_engines, recorded_engines
from gq.envs.tasks import TASKS, resolve_task
from gq.errors import DataError, UsageError
from gq.repair.replay import SMALLEST, Simulator, typical_step
from gq.repair.robots import known_robot, robot_of

AGREES = 1e-4  # typical steps, or mean absolute rewards
CLEARLY_OFF = 1e-3
DIVERGED = 0.1  # for whole episodes
ENOUGH, FEW = 0.99, 0.1  # shares of the rows
MIN_ROWS = 20


@dataclass(frozen=True)
class Errors:
    """Errors of T replayed rows; NaN where nothing can be compared."""

    state: np.ndarray  # [T] of one step from the stored state
    outputs: np.ndarray  # [T] of the same step, in the columns that are not state; -inf where there are none
    rewards: np.ndarray  # [T] of the same step
    open_state: np.ndarray  # [T] of the episode's actions from its first state
    open_rewards: np.ndarray  # [T]


@dataclass(frozen=True)
class EpisodeDrift:
    """How one stored episode replays; observations in typical steps, rewards in mean absolute rewards."""

    episode: int  # its number in the data
    length: int
    num_compared: int  # rows that show a state and have a next row
    error_median: float | None  # of one step
    error_max: float | None
    reward_error_max: float | None
    diverges_at: int | None  # first step, by actions alone, that is off by more than DIVERGED; None: none is
    reward_diverges_at: int | None


@dataclass(frozen=True)
class DriftReport:
    """What the replay says."""

    source: str
    task: str
    verdict: str  # same physics, other rewards, drifts, other physics or unknown
    reason: str
    num_compared: int
    agreement: float | None  # share of compared rows that agree within AGREES
    error_quantiles: dict[str, float]  # p10, p50, p90 and max of one step
    reward_agreement: float | None  # share, of the agreeing rows
    output_agreement: float | None  # share, of the agreeing rows, by the columns that are not state; None: no such
    num_falls: int  # replayed steps that ended an episode by themselves
    num_fall_rewards_off: int
    recorded: dict[str, str]  # engine versions and env_id, as far as the data say
    installed: dict[str, str]
    fits: str | None  # another version of the environment in which the data do agree
    episodes: list[EpisodeDrift]

    def document(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def summary(self) -> list[str]:
        """Return a few lines for people, the verdict first."""
        recorded = ", ".join(f"{name} {version}" for name, version in self.recorded.items()) or "nothing"
        installed = ", ".join(f"{name} {version}" for name, version in self.installed.items())
        lines = [
            f"{self.verdict}: {self.reason}",
            f"recorded: {recorded}; replayed in {self.task} with {installed}",
        ]
        if self.agreement is None:
            return lines
        sizes = ", ".join(f"{name} {value:.1e}" for name, value in self.error_quantiles.items())
        lines.append(
            f"one step from each of {self.num_compared:,} stored states: {_percent(self.agreement)} agree within "
            f"{AGREES:g} typical steps ({sizes})"
        )
        if self.reward_agreement is not None:
            lines.append(f"rewards of the steps that agree: {_percent(self.reward_agreement)} agree")
        if self.output_agreement is not None:
            lines.append(f"columns that are not state: {_percent(self.output_agreement)} of those steps agree")
        if self.num_fall_rewards_off and self.agreement >= ENOUGH:
            falls = f"{self.num_fall_rewards_off} of {self.num_falls} falls"
            lines.append(f"another reward on the last step of {falls}: v4 pays for health there, v5 does not")
        steps = [episode.diverges_at for episode in self.episodes if episode.diverges_at is not None]
        when = f" from step {min(steps)} at the earliest, step {int(np.median(steps))} in the middle" if steps else ""
        lines.append(f"by actions alone, {len(steps)} of {len(self.episodes)} episodes diverge{when}")
        return lines


def _percent(value: float) -> str:
    """Return a share as text, never rounded up to 100 %."""
    return f"{np.floor(1000 * value) / 10:g} %"


def replay_drift(trajectories: Trajectories, num_episodes: int, *, task: str | None = None) -> DriftReport:
    """Replay episodes spread evenly over the data in the installed simulator.

    States come from the observations, also where a file holds qpos and qvel: in every task that can be replayed the
    observations show them, but for clipped velocities, whose rows are left out.

    Args:
        num_episodes: how many; all where there are fewer.
        task: Gymnasium id; default: what the data say.

    Raises:
        UsageError: no task is known, its states cannot be restored, or a number of episodes below 1.
        DataError: the data have other widths than the task.
    """
    if num_episodes < 1:
        raise UsageError(f"cannot replay {num_episodes} episodes", hint="ask for one at least")
    name = _check_task(trajectories, task)
    chosen = np.unique(np.linspace(0, trajectories.num_episodes - 1, num_episodes).round().astype(int))
    errors = _replay_episodes(name, trajectories, chosen)
    pool = _pooled(errors)
    state = pool.state[~np.isnan(pool.state)]
    recorded, installed = recorded_engines(trajectories.attributes), installed_engines()
    agreement = _share(state)
    is_off = agreement is not None and agreement < ENOUGH
    fits = _fitting_sibling(name, trajectories, chosen) if is_off else None
    agreeing = pool.state <= AGREES
    reward_agreement = _share(pool.rewards[agreeing])
    lasts = np.cumsum([len(error.state) for error in errors]) - 1
    falls = lasts[trajectories.terminals[trajectories.offsets[chosen + 1] - 1]]
    verdict, reason = _judge(state, reward_agreement, differing_engines(recorded, installed), recorded, fits)
    has_outputs = bool(np.isfinite(pool.outputs[agreeing]).any())
    return DriftReport(
        source=trajectories.source,
        task=name,
        verdict=verdict,
        reason=reason,
        num_compared=len(state),
        agreement=agreement,
        error_quantiles=_quantiles(state),
        reward_agreement=reward_agreement,
        output_agreement=_share(pool.outputs[agreeing]) if has_outputs else None,
        num_falls=len(falls),
        num_fall_rewards_off=int((pool.rewards[falls] > AGREES).sum()),
        recorded=recorded,
        installed=installed,
        fits=fits,
        episodes=[_describe(int(i), error) for i, error in zip(chosen, errors, strict=True)],
    )


def _replay_episodes(task: str, trajectories: Trajectories, episodes: np.ndarray) -> list[Errors]:
    """Replay the given episodes in a task and return the errors of each."""
    rows = [np.arange(*trajectories.offsets[i : i + 2]) for i in episodes]
    scale = typical_step(trajectories.observations, np.concatenate([row[:-1] for row in rows]))
    typical_reward = max(float(np.abs(trajectories.rewards[np.concatenate(rows)]).mean()), SMALLEST)
    num_columns = known_robot(task).num_columns
    errors = []
    with Simulator(task) as simulator:
        for row in rows:
            observations, actions = trajectories.observations[row].astype(np.float64), trajectories.actions[row]
            one_step = simulator.step_each(observations, actions, in_order=True)
            by_actions = simulator.step_through(observations[0], actions)
            compared = []
            for predicted, rewards in (one_step, by_actions):
                difference = np.full(observations.shape, np.nan)  # the last row has no next one
                difference[:-1] = np.abs(predicted[:-1] - observations[1:]) / scale
                compared.append((difference, np.abs(rewards - trajectories.rewards[row]) / typical_reward))
            (difference, reward_errors), (open_difference, open_reward_errors) = compared
            errors.append(
                Errors(
                    state=difference[:, :num_columns].max(axis=1),
                    outputs=difference[:, num_columns:].max(axis=1, initial=-np.inf),
                    rewards=reward_errors,
                    open_state=open_difference[:, :num_columns].max(axis=1),
                    open_rewards=open_reward_errors,
                )
            )
    return errors


def _pooled(errors: list[Errors]) -> Errors:
    """Return the errors of all episodes as one."""
    return Errors(*(np.concatenate(parts) for parts in zip(*(astuple(error) for error in errors), strict=True)))


def _check_task(trajectories: Trajectories, task: str | None) -> str:
    """Return the id of the task to replay in; raise UsageError or DataError where that is impossible."""
    asked = task or trajectories.task
    if asked is None:
        raise UsageError(f"{trajectories.source} does not say its task", hint="name it, for example --task Hopper-v5")
    name = resolve_task(asked).id
    if robot_of(name) is None:
        known = ", ".join(known for known in TASKS if known.endswith("v5") and robot_of(known) is not None)
        message = f"{name} cannot be replayed: its observations do not show the simulator's state"
        raise UsageError(message, hint=f"replay works for {known}")
    widths = (trajectories.observations.shape[1], trajectories.actions.shape[1])
    expected = _dims(name)
    if widths != expected:
        message = f"{trajectories.source} has {widths[0]} observation and {widths[1]} action columns, "
        message += f"{name} has {expected[0]} and {expected[1]}"
        raise DataError(message, hint="replay it in the task that has these widths: --task")
    return name


def _dims(task: str) -> tuple[int, int]:
    """Return the numbers of observation and action columns of a task."""
    return TASKS[task].observation_dim, TASKS[task].action_dim


def _fitting_sibling(task: str, trajectories: Trajectories, episodes: np.ndarray) -> str | None:
    """Return another version of a task in which the data agree, or None."""
    for other in TASKS:
        if other != task and other.split("-")[0] == task.split("-")[0] and _dims(other) == _dims(task):
            agreement = _share(_pooled(_replay_episodes(other, trajectories, episodes)).state)
            if agreement is not None and agreement >= ENOUGH:
                return other
    return None


def _judge(
    state: np.ndarray,
    reward_agreement: float | None,
    differing: list[str],
    recorded: dict[str, str],
    fits: str | None,
) -> tuple[str, str]:
    """Return the verdict and its reason.

    Args:
        state: errors of single steps.
        differing: engines that were recorded in another version than the installed one.
    """
    agreement = _share(state)
    if agreement is None or len(state) < MIN_ROWS:
        return "unknown", f"only {len(state)} stored steps can be replayed"
    if agreement >= ENOUGH:
        if reward_agreement is not None and reward_agreement < ENOUGH:
            return "other rewards", "the simulator moves as the data say but pays otherwise"
        return "same physics", "the installed simulator repeats the stored steps"
    if fits:
        return "other physics", f"the data are of {fits}"
    extent = "almost every step differs" if agreement <= FEW else "part of the steps differ"
    if (_share(state, CLEARLY_OFF) or 0) <= FEW:
        return "other physics", f"{extent}: other masses, gravity, time step or action scaling, or a very old engine"
    if differing:
        return "drifts", f"{extent}, as they may between versions of " + " and ".join(differing)
    if "mujoco" in recorded:
        return "other physics", f"{extent} though the engine is the same: another model or other settings"
    return "drifts", f"{extent}, as they may between engine versions; the data do not name theirs"


def _share(errors: np.ndarray, limit: float = AGREES) -> float | None:
    """Return the share of the known errors within a limit, None where none is known."""
    known = errors[~np.isnan(errors)]
    return float((known <= limit).mean()) if len(known) else None


def _quantiles(errors: np.ndarray) -> dict[str, float]:
    """Return a few quantiles of errors by name, none of no errors."""
    names = {"p10": 0.1, "p50": 0.5, "p90": 0.9, "max": 1.0}
    return {name: float(np.quantile(errors, q)) for name, q in names.items()} if len(errors) else {}


def _describe(episode: int, errors: Errors) -> EpisodeDrift:
    """Return what to report of one episode."""
    known, rewards = errors.state[~np.isnan(errors.state)], errors.rewards[~np.isnan(errors.rewards)]
    return EpisodeDrift(
        episode=episode,
        length=len(errors.state),
        num_compared=len(known),
        error_median=float(np.median(known)) if len(known) else None,
        error_max=float(known.max()) if len(known) else None,
        reward_error_max=float(rewards.max()) if len(rewards) else None,
        diverges_at=_first_beyond(errors.open_state),
        reward_diverges_at=_first_beyond(errors.open_rewards),
    )


def _first_beyond(errors: np.ndarray) -> int | None:
    """Return the first step that is off by more than DIVERGED, or None."""
    beyond = np.flatnonzero(errors > DIVERGED)
    return int(beyond[0]) if len(beyond) else None
