"""What is known of each robot's motion: which columns move which, where episodes begin, and when they end."""

from typing import NamedTuple

import numpy as np

CHUNK = 65_536  # rows worked on at a time, so that wide data need little memory
FIT_ROWS = 50_000
ROUNDING = 1e-4  # of positions that the simulator predicts
VELOCITY_DEVIATIONS = 6.0  # of a normal distribution, for initial velocities


class Robot(NamedTuple):
    """One environment's observation: first positions without x (and y), then all velocities."""

    num_positions: int
    num_velocities: int
    pose: tuple[float, ...]  # initial positions
    position_noise: float  # uniform, ±, around the initial pose
    velocity_noise: float  # the largest initial velocity
    healthy: tuple[tuple[int, float, float], ...] = ()  # column, low, high: outside, an episode ends
    velocity_limit: float = np.inf  # at which observations clip velocities
    unlikely_share: float = 0.02  # of the steps, that are worth a look by the simulator because of their score alone
    is_free_body: bool = False  # with a quaternion behind z, and x and y hidden

    @property
    def num_columns(self) -> int:
        """Columns that are state; others, such as contact forces, follow from it."""
        return self.num_positions + self.num_velocities

    @property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Columns of positions and of their velocities; the quaternion of a free body has none."""
        if not self.is_free_body:  # in the plane, where only x is hidden
            positions = np.arange(self.num_positions)
            return positions, self.num_positions + 1 + positions
        joints = np.arange(5, self.num_positions)  # after z and the quaternion
        velocities = self.num_positions + 6 + joints - 5  # after those of the free body, z's being the third
        return np.concatenate([[0], joints]), np.concatenate([[self.num_positions + 2], velocities])


# From gymnasium's environments; the same numbers in v2, v3, v4 and v5.
UPRIGHT = (1.0, 0.0, 0.0, 0.0)
# A look at a robot with clipped velocities takes several steps, and its scores tell more; HalfCheetah's is fast.
ROBOTS = {
    "Hopper": Robot(5, 6, (1.25, *[0.0] * 4), 5e-3, 5e-3, ((0, 0.7, np.inf), (1, -0.2, 0.2)), 10.0, 0.005),
    "HalfCheetah": Robot(8, 9, (0.0,) * 8, 0.1, 0.1 * VELOCITY_DEVIATIONS, unlikely_share=0.1),
    "Walker2d": Robot(8, 9, (1.25, *[0.0] * 7), 5e-3, 5e-3, ((0, 0.8, 2.0), (1, -1.0, 1.0)), 10.0, 0.005),
    "Ant": Robot(
        num_positions=13,
        num_velocities=14,
        pose=(0.75, *UPRIGHT, *[0.0] * 8),
        position_noise=0.1,
        velocity_noise=0.1 * VELOCITY_DEVIATIONS,
        healthy=((0, 0.2, 1.0),),
        is_free_body=True,
    ),
    "Humanoid": Robot(22, 23, (1.4, *UPRIGHT, *[0.0] * 17), 1e-2, 1e-2, ((0, 1.0, 2.0),), is_free_body=True),
}


def robot_of(task: str | None) -> Robot | None:
    """Return what is known of a task's robot, whatever the version, or None."""
    return ROBOTS.get((task or "").split("-")[0])


def looks_initial(robot: Robot, observations: np.ndarray) -> np.ndarray:
    """Return which observations [n, S] lie where episodes begin: bool [n]; False for NaN."""
    slack = 1.0 + 1e-3  # float32, and a pose that is not exactly a decimal
    pose = observations[:, : robot.num_positions] - np.array(robot.pose, np.float32)
    velocities = observations[:, robot.num_positions : robot.num_columns]
    near = (np.abs(pose) <= slack * robot.position_noise).all(axis=1)
    initial: np.ndarray = near & (np.abs(velocities) <= slack * robot.velocity_noise).all(axis=1)
    return initial


def terminates(robot: Robot, observations: np.ndarray, *, rounding: float = ROUNDING) -> np.ndarray:
    """Tell whether an episode ends by itself on reaching an observation: int8 [n], 1 yes, 0 no, -1 for NaN.

    What is within rounding of a bound counts as beyond it: asked about are steps after which something ended. With
    -ROUNDING it counts as not there yet. HalfCheetah never ends by itself.
    """
    distance = np.where(np.isfinite(observations[:, 0]), np.inf, np.nan)  # to the nearest bound, negative beyond it
    for column, low, high in robot.healthy:
        values = observations[:, column].astype(np.float64)
        distance = np.minimum(distance, np.minimum(values - low, high - values))  # NaN stays NaN
    return np.where(np.isnan(distance), -1, distance < rounding).astype(np.int8)


def step_scores(observations: np.ndarray, actions: np.ndarray, robot: Robot | None) -> np.ndarray:
    """Score how unlike the others each step to the next row is: float64 [N - 1], NaN where a value is not finite.

    A linear model predicts the change of each column; it is fitted to the bulk of the steps, so that breaks in the
    stream do not matter. The score is the residual in the residual's own median, put on a logarithmic scale of robust
    standard deviations: 0 is typical, 3 is one of the rare steps (an impact, a break), 6 is nearly always a break.

    For a known robot the changes of its joints are predicted from the velocities before and after, which every step
    must obey and a break has no reason to; else the changes of all columns from the row.
    """
    num_steps = len(observations) - 1
    if num_steps < 1:
        return np.zeros(0)
    columns = slice(robot.num_columns) if robot else lively_columns(observations)
    observations = observations[:, columns]
    sample = np.unique(np.linspace(0, num_steps - 1, min(num_steps, FIT_ROWS)).astype(np.int64))
    inputs, changes, valid = step_features(observations, actions, sample, robot)
    usable = np.isfinite(inputs).all(axis=1) & np.isfinite(changes).all(axis=1)
    whole = usable & valid.all(axis=1)
    if whole.sum() < 2 * inputs.shape[1]:
        whole = usable
    if not whole.any():
        return np.full(num_steps, np.nan)
    weights, spread = fit_bulk(inputs[whole], changes[whole])
    scores = np.empty(num_steps)
    for start in range(0, num_steps, CHUNK):
        rows = np.arange(start, min(start + CHUNK, num_steps))
        inputs, changes, valid = step_features(observations, actions, rows, robot)
        with np.errstate(invalid="ignore", over="ignore"):
            squares = np.minimum(((changes - inputs @ weights) / spread) ** 2, 1e12)
        squares[~valid & np.isfinite(squares)] = 0.0
        scores[rows] = squares.sum(axis=1) / np.maximum(valid.sum(axis=1), 1)
    return standardised(scores)


def lively_columns(observations: np.ndarray) -> np.ndarray:
    """Return the columns of observations [N, S] that move nearly always, at most 64; contact forces do not."""
    start = np.unique(np.linspace(0, len(observations) - 2, 2000).astype(np.int64))
    changes = np.nan_to_num(np.abs(observations[start + 1].astype(np.float64) - observations[start]))
    lively = np.median(changes, axis=0) > 0.1 * changes.mean(axis=0)
    return np.flatnonzero(lively)[:64] if lively.any() else np.arange(min(observations.shape[1], 64))


def step_features(
    observations: np.ndarray, actions: np.ndarray, rows: np.ndarray, robot: Robot | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the inputs [n, F], the changes to predict [n, C], and which changes can be predicted, bool [n, C]."""
    before, after = observations[rows], observations[rows + 1]
    ones = np.ones((len(rows), 1))
    if robot is None:
        changes = after.astype(np.float64) - before
        return np.concatenate([before, actions[rows], ones], axis=1), changes, np.ones(changes.shape, bool)
    positions, velocities = robot.pairs
    first, second = before[:, velocities], after[:, velocities]
    inputs = np.concatenate([first, second, actions[rows], before[:, positions], ones], axis=1, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        valid = np.maximum(np.abs(first), np.abs(second)) < robot.velocity_limit  # clipped ones say too little
    return inputs, after[:, positions].astype(np.float64) - before[:, positions], valid


def fit_bulk(inputs: np.ndarray, changes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit changes [n, C] linearly to inputs [n, F] but the worst twentieth; return weights and typical residuals."""
    kept = np.ones(len(inputs), bool)
    floor = 1e-9 + 1e-6 * np.abs(changes).mean(axis=0)
    for _ in range(3):
        gram = inputs[kept].T @ inputs[kept]
        gram += 1e-9 * np.trace(gram) / len(gram) * np.eye(len(gram))  # a column may be constant
        weights = np.linalg.solve(gram, inputs[kept].T @ changes[kept])
        residuals = np.abs(changes - inputs @ weights)
        spread = np.median(residuals, axis=0) + floor
        badness = np.minimum((residuals / spread) ** 2, 1e12).mean(axis=1)
        kept = badness <= np.quantile(badness, 0.95)
    return weights, spread


def standardised(squares: np.ndarray) -> np.ndarray:
    """Return positive numbers on a logarithmic scale with median 0 and robust standard deviation 1; NaN stays."""
    logarithms = np.log(squares + 1e-12)
    finite = logarithms[np.isfinite(logarithms)]
    if not len(finite):
        return logarithms
    median = np.median(finite)
    deviation = 1.4826 * np.median(np.abs(finite - median))
    scores: np.ndarray = (logarithms - median) / max(float(deviation), 1e-6)
    return scores
