"""Replay single transitions in the simulator: does the stored next observation follow from this one?"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gq.repair.restore import Layout, layout_of

CARRY_LIMIT = 0.5  # error, in typical steps, up to which a replayed transition hands its hidden velocities on
SEARCHED_CARRY_LIMIT = 1e-3  # the same where those velocities had to be searched
SOLVED = 1e-4  # error from which on a search for hidden velocities has found them
NUM_SEARCH_STEPS = 8


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
    """Predict from each row the next one, one step of the environment each, in this process.

    Hopper and Walker2d show velocities clipped to ±10. The state of such a row is its stored columns and, for the
    clipped velocities, what the replayed transition into it gave; rows that lead up to it are therefore replayed too.
    Where none did, the velocities are searched that lead to the next row best.

    Args:
        task: a Gymnasium id for which `can_restore` is true.
        observations: [N, S], a stream of rows in order; columns behind the velocities are not used.
        actions: [N, A] in the environment's units.
        rows: int [n], ascending; the last row of the stream has a prediction but no error.
        scales: [W], the typical step of each position and velocity.
        progress: called with the steps done and their number.
    """
    from gq.envs.make import make

    layout = layout_of(task)
    width = layout.num_positions + layout.num_velocities
    wanted, shown = rows_to_replay(observations, rows, layout)
    errors, searched = np.full(len(rows), np.nan), np.zeros(len(rows), bool)
    predicted = np.full((len(rows), width), np.nan, np.float32)
    index_of = dict(zip(rows.tolist(), range(len(rows)), strict=True))
    carried_row, carried = -1, np.zeros(layout.num_velocities)  # the velocities, not clipped, that led to a row
    is_searched = False
    env = make(task)
    stepper = Stepper(env.unwrapped, layout, scales)
    try:
        for done, row in enumerate(wanted.tolist()):
            if done % 1000 == 0:
                progress(done, len(wanted))
            state = observations[row, :width].astype(np.float64)
            after = observations[row + 1, :width].astype(np.float64) if row + 1 < len(observations) else None
            is_carried = carried_row == row
            is_searched = not shown[row] and (is_searched or not is_carried)
            if is_carried and not shown[row]:
                state = stepper.uncovered(state, carried)
            elif not shown[row]:
                if after is None:
                    continue
                state = stepper.search(state, actions[row], after)
            following = stepper.step(state, actions[row])
            if following is None:
                continue
            error = np.nan if after is None else stepper.error(following, after)
            if error < (SEARCHED_CARRY_LIMIT if is_searched else CARRY_LIMIT):
                carried_row, carried = row + 1, following[layout.num_positions :]
            if row in index_of:
                index = index_of[row]
                errors[index], searched[index] = error, is_searched
                if shown[row] or is_carried:
                    predicted[index] = stepper.clipped(following)
    finally:
        env.close()
    return Replayed(errors, predicted, searched)


class Stepper:
    """A simulator that steps from given states and compares; states are [W], positions and velocities."""

    def __init__(self, simulator: Any, layout: Layout, scales: np.ndarray) -> None:
        self.simulator, self.layout, self.scales = simulator, layout, scales

    def clipped(self, state: np.ndarray) -> np.ndarray:
        """Return a state as an observation shows it."""
        shown = state.copy()
        velocities = shown[self.layout.num_positions :]
        velocities.clip(-self.layout.velocity_limit, self.layout.velocity_limit, out=velocities)
        return shown

    def uncovered(self, state: np.ndarray, velocities: np.ndarray) -> np.ndarray:
        """Return a state with its clipped velocities replaced by others, [V]."""
        full = state.copy()
        hidden = np.abs(full[self.layout.num_positions :]) >= self.layout.velocity_limit
        full[self.layout.num_positions :][hidden] = velocities[hidden]
        return full

    def error(self, following: np.ndarray, after: np.ndarray) -> float:
        """Return the root mean square difference, in typical steps, of a predicted state and an observed one."""
        difference = (self.clipped(following) - after) / self.scales
        return float(np.sqrt(np.mean(difference * difference)))

    def step(self, state: np.ndarray, action: np.ndarray) -> np.ndarray | None:
        """Return the state, not clipped, one environment step later.

        None if something is not finite or the simulation becomes unstable. The environment's own `step` spends three
        quarters of its time on rewards and observations that nobody needs here.
        """
        import mujoco

        if not (np.isfinite(state).all() and np.isfinite(action).all()):
            return None
        model, data = self.simulator.model, self.simulator.data
        data.time = 0.0
        data.qpos[: self.layout.num_hidden] = 0.0
        data.qpos[self.layout.num_hidden :] = state[: self.layout.num_positions]
        data.qvel[:] = state[self.layout.num_positions :]
        data.qacc_warmstart[:] = 0.0  # what led here is not known
        data.ctrl[:] = action
        mujoco.mj_step(model, data, self.simulator.frame_skip)
        if data.time < (self.simulator.frame_skip - 0.5) * model.opt.timestep:  # unstable, so it began anew at time 0
            return None
        return np.concatenate([data.qpos[self.layout.num_hidden :], data.qvel])

    def search(self, state: np.ndarray, action: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Return a state with clipped velocities such that its next one is as near to `after` as Gauss-Newton gets."""
        hidden = self.layout.num_positions + np.flatnonzero(
            np.abs(state[self.layout.num_positions :]) >= self.layout.velocity_limit
        )
        visible = np.abs(after) < self.layout.velocity_limit
        visible[: self.layout.num_positions] = True
        sign = np.sign(state[hidden])

        def residual(values: np.ndarray) -> np.ndarray | None:
            trial = state.copy()
            trial[hidden] = values
            following = self.step(trial, action)
            return None if following is None else ((following - after) / self.scales)[visible]

        best, least = state[hidden], np.inf
        for start in (self.guess(state, after)[hidden], state[hidden]):
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
                values = sign * np.maximum(sign * (values + move), self.layout.velocity_limit)
                residuals = residual(values)
            if least < SOLVED:
                break
        found = state.copy()
        found[hidden] = best
        return found

    def guess(self, state: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Return a state with clipped velocities guessed from how far the positions moved; for robots in the plane."""
        count, limit = self.layout.num_positions, self.layout.velocity_limit
        guessed = state.copy()
        velocities, next_velocities = guessed[count + 1 :], after[count + 1 :]  # the first one is that of x
        mean = (after[:count] - state[:count]) / self.simulator.dt
        linear = np.where(np.abs(next_velocities) < limit, 2 * mean - next_velocities, mean)
        hidden = np.abs(velocities) >= limit
        sign = np.sign(velocities)
        velocities[hidden] = (sign * np.maximum(sign * linear, limit))[hidden]
        return guessed


def rows_to_replay(observations: np.ndarray, rows: np.ndarray, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows with those that lead up to them, int [m], and which rows show their whole state, bool [N]."""
    shown = np.ones(len(observations), bool)
    if np.isfinite(layout.velocity_limit):
        velocities = observations[:, layout.num_positions : layout.num_positions + layout.num_velocities]
        with np.errstate(invalid="ignore"):
            shown = (np.abs(velocities) < layout.velocity_limit).all(axis=1)
    latest = np.maximum.accumulate(np.where(shown, np.arange(len(shown)), -1))[rows]
    starts = np.where(latest >= 0, latest, rows)
    depth = np.zeros(len(observations) + 1, np.int64)  # how many walks pass each row
    np.add.at(depth, starts, 1)
    np.add.at(depth, rows + 1, -1)
    return np.flatnonzero(np.cumsum(depth[:-1]) > 0), shown
