"""The simulator as a witness: does the next row follow from this one?"""

from collections.abc import Callable

import numpy as np

from gq.repair.motion import robot_of
from gq.repair.transitions import Replayed, replay_transitions
from gq.repair.verdicts import BREAK, FOLLOWS, UNKNOWN

Progress = Callable[[int, int | None], None]
CALIBRATION_ROWS = 200
# In typical steps. With the data's own engine, nearly all steps are within 0.004, all within 0.1; a reset is 2 off.
LEAST_TOLERANCE, LARGEST_TOLERANCE = 0.02, 2.0
# Shares of the distance from a row to its next that the simulator may be off. Impacts can amplify rounding: measured
# up to 0.03, twice in 640,000 steps; and 0.5 with other gravity, friction, damping and gears. A reset has 0.8 or more.
SAME_PHYSICS_SHARE, OTHER_PHYSICS_SHARE = 0.08, 0.35
SEARCHED_ERROR, SEARCHED_SCORE = 1.0, 3.0  # together, for a break where hidden velocities had to be found


class Judge:
    """The simulator as a witness: how closely it reproduces ordinary steps decides what counts as a break."""

    def __init__(
        self, task: str, observations: np.ndarray, actions: np.ndarray, scores: np.ndarray, ordinary: np.ndarray
    ) -> None:
        """Calibrate on `ordinary`, int rows of steps that are likely to be good; `scores` [N - 1] are of all steps."""
        self.observations, self.actions, self.scores = observations, actions, scores
        self.robot = robot_of(task)
        assert self.robot is not None
        self.scales = typical_steps(observations[:, : self.robot.num_columns])
        picked = np.linspace(0, len(ordinary) - 1, min(CALIBRATION_ROWS, len(ordinary))).astype(np.int64)
        self.num_replayed = 0
        self.task, self.tolerance = task, np.inf
        family, version = task.split("-")
        for physics in (task, f"{family}-{'v4' if version == 'v5' else 'v5'}"):
            errors = self.replay(ordinary[np.unique(picked)], physics).errors
            errors = errors[np.isfinite(errors)]
            level = 20 * float(np.quantile(errors, 0.95)) if len(errors) else np.inf
            if level < self.tolerance:
                self.task, self.tolerance = physics, level
            if self.tolerance < LEAST_TOLERANCE:
                break
        self.is_usable = self.tolerance <= 20 * LARGEST_TOLERANCE
        self.is_exact = self.tolerance < LEAST_TOLERANCE
        self.tolerance = float(np.clip(self.tolerance, LEAST_TOLERANCE, LARGEST_TOLERANCE))

    def replay(self, rows: np.ndarray, physics: str | None = None, progress: Progress | None = None) -> Replayed:
        """Replay rows in the simulator of the task or of another one."""
        self.num_replayed += len(rows)
        watch = progress or (lambda done, total: None)
        task = physics or self.task
        return replay_transitions(task, self.observations, self.actions, rows, self.scales, progress=watch)

    def verdicts(self, rows: np.ndarray, progress: Progress | None = None) -> np.ndarray:
        """Return FOLLOWS, BREAK or UNKNOWN for rows, int8 [n]."""
        errors, _, searched = self.replay(rows, progress=progress)
        share = SAME_PHYSICS_SHARE if self.is_exact else OTHER_PHYSICS_SHARE
        fits = (errors < self.tolerance) | (errors < share * self.sizes(rows))
        # A search for hidden velocities that finds nothing is no proof by itself.
        is_clear = fits | ~searched | ((errors >= SEARCHED_ERROR) & (self.scores[rows] >= SEARCHED_SCORE))
        verdicts = np.where(fits, FOLLOWS, np.where(is_clear, BREAK, UNKNOWN))
        return np.where(np.isnan(errors), UNKNOWN, verdicts).astype(np.int8)

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        """Return how far rows are from their next ones, in typical steps, float64 [n]."""
        assert self.robot is not None
        columns = slice(self.robot.num_columns)
        after = self.observations[np.minimum(rows + 1, len(self.observations) - 1), columns]
        steps = (after - self.observations[rows, columns]) / self.scales
        sizes: np.ndarray = np.sqrt(np.mean(steps * steps, axis=1))
        return sizes

    def predicted(self, rows: np.ndarray) -> np.ndarray:
        """Return the states that follow rows, float32 [n, W]; NaN where the simulator cannot tell."""
        return self.replay(rows).predicted


def typical_steps(states: np.ndarray) -> np.ndarray:
    """Return how far each column of [N, W] moves in a typical step, float64 [W], never 0."""
    rows = np.unique(np.linspace(0, len(states) - 2, 20_000).astype(np.int64))
    steps = np.abs(states[rows + 1].astype(np.float64) - states[rows])
    steps = steps[np.isfinite(steps).all(axis=1)]
    typical: np.ndarray = np.maximum(np.median(steps, axis=0), 0.1 * steps.mean(axis=0)) + 1e-6
    return typical
