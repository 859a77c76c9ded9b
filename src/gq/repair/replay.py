"""Replay recorded steps: put the installed simulator into a recorded state, take the recorded action, compare.

Repair asks whether the next row follows from a row, so where episodes break; `drift` asks whose physics the data are.
What no observation shows limits how exact a replay can be: the solver's warm start, and the body positions from which
Ant and Humanoid measure their next reward. Largest differences from what followed in 3,000 rows of float32 files of the
same engine (mujoco 3.17.0), each row on its own, in the columns of positions and velocities, and rows a second on one
core, with rewards:

    task         state: 99 %     max   reward max   rows that show no state   rows/s
    Hopper             9e-7    1e-6         4e-7                   8 to 15 %     6000
    HalfCheetah        2e-5    1e-4         1e-6                           0    13000
    Walker2d           7e-6    1e-5         8e-7                        76 %     6000
    Ant                1e-6    4e-6         8e-2                           0     3000
    Humanoid           4e-4    5e-3         4e-3                           0     2000
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import numpy as np

from gq.repair.robots import Robot, known_robot

SMALLEST = 2e-3  # least typical step, as a share of a column's largest value
CARRY_LIMIT = 0.5  # error, in typical steps, up to which a replayed step hands its hidden velocities on
SEARCHED_CARRY_LIMIT = 1e-3  # the same where those velocities had to be searched
SOLVED = 1e-4  # error from which on a search for hidden velocities has found them
NUM_SEARCH_STEPS = 8


def typical_step(observations: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the unit of errors for each column of observations [N, S]: float64 [S], never 0.

    It is the mean change from a row to the next one, over `rows`, but at least two thousandths of the largest value, so
    that the rounding of float32 stays below 1e-4.
    """
    before, after = observations[rows], observations[rows + 1]
    finite = np.isfinite(before).all(axis=1) & np.isfinite(after).all(axis=1)
    before, after = before[finite], after[finite]
    total = np.abs(after - before).sum(axis=0, dtype=np.float64)
    largest = np.maximum(np.abs(before).max(axis=0, initial=1), np.abs(after).max(axis=0, initial=1))
    typical: np.ndarray = np.maximum(total / max(len(before), 1), SMALLEST * largest)
    return typical


class Simulator:
    """An environment of a task, put into given states; a state is [W], the positions and velocities shown."""

    def __init__(self, task: str) -> None:
        from gq.envs.make import make
        from gq.envs.tasks import resolve_task

        self.robot: Robot = known_robot(task)
        env: Any = make(resolve_task(task))
        self.env, self.unwrapped = env, env.unwrapped
        self.model, self.data = self.unwrapped.model, self.unwrapped.data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.env.close()

    def restore(self, observation: np.ndarray) -> None:
        """Start from the state of an observation [S], at the horizontal position 0.

        Time is 0 then, and the solver starts warm from the solution for this state itself, as after a reset.
        """
        import mujoco

        mujoco.mj_resetData(self.model, self.data)
        self.correct(observation)
        mujoco.mj_forward(self.model, self.data)

    def correct(self, observation: np.ndarray) -> None:
        """Take exactly the positions and velocities that an observation [S] shows, and continue from there.

        After a step that led there, this keeps what no observation shows and the next step depends on.
        """
        self.data.qpos[self.robot.num_hidden :] = observation[: self.robot.num_positions]
        self.data.qvel[:] = observation[self.robot.num_positions : self.robot.num_columns]

    def step_each(
        self, observations: np.ndarray, actions: np.ndarray, *, in_order: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Take one step of the environment from each recorded state.

        Args:
            observations: [n, S]; their columns behind the velocities are not used.
            actions: [n, A] in the environment's units, executed as they are.
            in_order: each row is the one that followed the row before, whose hidden state is kept.

        Returns:
            Next observations, float64 [n, S], and rewards, float64 [n]. NaN where the observation shows no state, the
            action is not finite, or the simulation becomes unstable.
        """
        following = np.full(observations.shape, np.nan)
        rewards = np.full(len(observations), np.nan)
        usable = self.robot.shows_state(observations) & np.isfinite(actions).all(axis=1)
        is_running = False
        for row, is_usable in enumerate(usable):
            if is_usable:
                place = self.correct if is_running and in_order else self.restore
                place(observations[row])
                observation, reward, _, _, _ = self.unwrapped.step(actions[row])
                is_usable = not self.data.warning.number.any()  # of instability, after which MuJoCo begins at time 0
                if is_usable:
                    following[row], rewards[row] = observation, reward
            is_running = bool(is_usable)
        return following, rewards

    def step_through(self, observation: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take actions [T, A] one after the other from the state of an observation [S].

        Returns:
            Next observations, float64 [T, S], and rewards, float64 [T]; NaN where the observation shows no state.
        """
        following = np.full((len(actions), len(observation)), np.nan)
        rewards = np.full(len(actions), np.nan)
        if self.robot.shows_state(observation[None])[0]:
            self.restore(observation)
            for row, action in enumerate(actions):
                following[row], rewards[row], _, _, _ = self.unwrapped.step(action)
        return following, rewards

    def advance(self, state: np.ndarray, action: np.ndarray) -> np.ndarray | None:
        """Return the state one environment step after another, velocities not clipped.

        None if something is not finite or the simulation becomes unstable. The environment's own `step` spends three
        quarters of its time on rewards and observations.
        """
        import mujoco

        if not (np.isfinite(state).all() and np.isfinite(action).all()):
            return None
        self.data.time = 0.0
        self.data.qpos[: self.robot.num_hidden] = 0.0
        self.correct(state)
        self.data.qacc_warmstart[:] = 0.0  # what led here is not known
        self.data.ctrl[:] = action
        mujoco.mj_step(self.model, self.data, self.unwrapped.frame_skip)
        if self.data.time < (self.unwrapped.frame_skip - 0.5) * self.model.opt.timestep:  # unstable: it began at time 0
            return None
        return np.concatenate([self.data.qpos[self.robot.num_hidden :], self.data.qvel])


class Replayed(NamedTuple):
    """What the simulator makes of n rows; NaN where a row's state is not known or the simulation becomes unstable."""

    errors: np.ndarray  # float64 [n]: root mean square of predicted minus stored next state, in typical steps
    predicted: np.ndarray  # float32 [n, W]: next positions and velocities; NaN also where looking at them was needed
    searched: np.ndarray  # bool [n]: hidden velocities had to be found, here or since the last row that shows all


def replay_transitions(
    task: str,
    observations: np.ndarray,
    actions: np.ndarray,
    rows: np.ndarray,
    scales: np.ndarray,
    *,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> Replayed:
    """Predict from each row the state of the next one.

    Hopper and Walker2d show velocities clipped to ±10. The state of such a row is its stored columns and, for the
    clipped velocities, what the replayed step into it gave; rows that lead up to it are therefore replayed too. Where
    none did, the velocities are searched that lead to the next row best.

    Args:
        task: a Gymnasium id whose robot is known.
        observations: [N, S], a stream of rows in order; columns behind the velocities are not used.
        actions: [N, A] in the environment's units.
        rows: int [n], ascending; the last row of the stream has a prediction but no error.
        scales: [W], the typical step of each position and velocity.
        progress: called with the steps done and their number.
    """
    with Simulator(task) as simulator:
        hidden = _HiddenVelocities(simulator, scales)
        robot = simulator.robot
        wanted, shown = _rows_to_replay(observations, rows, robot)
        errors, searched = np.full(len(rows), np.nan), np.zeros(len(rows), bool)
        predicted = np.full((len(rows), robot.num_columns), np.nan, np.float32)
        index_of = dict(zip(rows.tolist(), range(len(rows)), strict=True))
        carried_row, carried = -1, np.zeros(robot.num_velocities)  # the velocities, not clipped, that led to a row
        is_searched = False
        for done, row in enumerate(wanted.tolist()):
            if done % 1000 == 0:
                progress(done, len(wanted))
            state = observations[row, : robot.num_columns].astype(np.float64)
            has_next = row + 1 < len(observations)
            after = observations[row + 1, : robot.num_columns].astype(np.float64) if has_next else None
            is_carried = carried_row == row
            is_searched = not shown[row] and (is_searched or not is_carried)
            if is_carried and not shown[row]:
                state = hidden.filled_in(state, carried)
            elif not shown[row]:
                if after is None:
                    continue
                state = hidden.search(state, actions[row], after)
            following = simulator.advance(state, actions[row])
            if following is None:
                continue
            error = np.nan if after is None else hidden.error(following, after)
            if error < (SEARCHED_CARRY_LIMIT if is_searched else CARRY_LIMIT):
                carried_row, carried = row + 1, following[robot.num_positions :]
            if row in index_of:
                index = index_of[row]
                errors[index], searched[index] = error, is_searched
                if shown[row] or is_carried:
                    predicted[index] = hidden.clipped(following)
    return Replayed(errors, predicted, searched)


def _rows_to_replay(observations: np.ndarray, rows: np.ndarray, robot: Robot) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows with those that lead up to them, int [m], and which rows show all velocities, bool [N].

    A row whose velocities are clipped is reached from the latest row before it that shows all: a walk. Each walk adds 1
    at its first row and takes 1 away behind its last, so that the running sum counts the walks that pass a row.
    """
    shown = np.ones(len(observations), bool)
    if np.isfinite(robot.velocity_limit):
        velocities = observations[:, robot.num_positions : robot.num_columns]
        with np.errstate(invalid="ignore"):
            shown = (np.abs(velocities) < robot.velocity_limit).all(axis=1)
    latest = np.maximum.accumulate(np.where(shown, np.arange(len(shown)), -1))[rows]
    starts = np.where(latest >= 0, latest, rows)
    changes = np.zeros(len(observations) + 1, np.int64)
    np.add.at(changes, starts, 1)
    np.add.at(changes, rows + 1, -1)
    return np.flatnonzero(np.cumsum(changes[:-1]) > 0), shown


class _HiddenVelocities:
    """Velocities behind the limit at which observations clip them: found by what they lead to."""

    def __init__(self, simulator: Simulator, scales: np.ndarray) -> None:
        self.simulator, self.scales = simulator, scales
        self.count, self.limit = simulator.robot.num_positions, simulator.robot.velocity_limit

    def clipped(self, state: np.ndarray) -> np.ndarray:
        """Return a state as an observation shows it."""
        return np.concatenate([state[: self.count], state[self.count :].clip(-self.limit, self.limit)])

    def error(self, following: np.ndarray, after: np.ndarray) -> float:
        """Return the root mean square difference, in typical steps, of a predicted state and an observed one."""
        difference = (self.clipped(following) - after) / self.scales
        return float(np.sqrt(np.mean(difference * difference)))

    def filled_in(self, state: np.ndarray, velocities: np.ndarray) -> np.ndarray:
        """Return a state with its clipped velocities replaced by others, [V]."""
        shown = state[self.count :]
        return np.concatenate([state[: self.count], np.where(np.abs(shown) >= self.limit, velocities, shown)])

    def search(self, state: np.ndarray, action: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Return a state with clipped velocities such that its next one is as near to `after` as Gauss-Newton gets.

        With v the hidden velocities, r(v) the difference of the state after one step from `after`, in typical steps and
        where that shows it, and J its slopes by finite differences, each move solves J dv = -r(v) by least squares. It
        starts from a guess by how far the positions moved, then from the limit itself.
        """
        hidden = self.count + np.flatnonzero(np.abs(state[self.count :]) >= self.limit)
        visible = np.abs(after) < self.limit
        visible[: self.count] = True
        sign = np.sign(state[hidden])

        def residual(values: np.ndarray) -> np.ndarray | None:
            trial = state.copy()
            trial[hidden] = values
            following = self.simulator.advance(trial, action)
            return None if following is None else ((following - after) / self.scales)[visible]

        best, least = state[hidden], np.inf
        for start in (self._guess(state, after)[hidden], state[hidden]):
            values, residuals = start, residual(start)
            for _ in range(NUM_SEARCH_STEPS):
                if residuals is None or (size := float(np.sqrt(np.mean(residuals**2)))) >= 1e6:
                    break
                if size < least:
                    best, least = values, size
                if least < SOLVED:
                    break
                columns = [residual(values + nudge) for nudge in 1e-4 * np.eye(len(hidden))]
                if any(column is None for column in columns):
                    break
                slopes = np.stack([(column - residuals) / 1e-4 for column in columns if column is not None], axis=1)
                move = np.linalg.lstsq(slopes, -residuals, rcond=None)[0]
                values = sign * np.maximum(sign * (values + move), self.limit)
                residuals = residual(values)
            if least < SOLVED:
                break
        found = state.copy()
        found[hidden] = best
        return found

    def _guess(self, state: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Return a state with clipped velocities guessed from how far the positions moved; for robots in the plane."""
        guessed = state.copy()
        velocities, next_velocities = guessed[self.count + 1 :], after[self.count + 1 :]  # the first one is that of x
        mean = (after[: self.count] - state[: self.count]) / self.simulator.unwrapped.dt
        linear = np.where(np.abs(next_velocities) < self.limit, 2 * mean - next_velocities, mean)
        hidden = np.abs(velocities) >= self.limit
        sign = np.sign(velocities)
        velocities[hidden] = (sign * np.maximum(sign * linear, self.limit))[hidden]
        return guessed
