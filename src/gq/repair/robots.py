"""What is known of each robot: what its observations show of its state, where episodes begin, and when they end."""

from typing import NamedTuple

import numpy as np

ROUNDING = 1e-4  # of positions that the simulator predicts
VELOCITY_DEVIATIONS = 6.0  # of a normal distribution, for initial velocities


class Robot(NamedTuple):
    """One environment's observation: positions without x (and y), then all velocities, then what is no state."""

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
    def num_hidden(self) -> int:
        """Leading positions that no observation shows: x, or x and y, on which no force depends."""
        return 2 if self.is_free_body else 1

    @property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Columns of positions and of their velocities; the quaternion of a free body has none."""
        if not self.is_free_body:  # in the plane, where only x is hidden
            positions = np.arange(self.num_positions)
            return positions, self.num_positions + 1 + positions
        joints = np.arange(5, self.num_positions)  # after z and the quaternion
        velocities = self.num_positions + 6 + joints - 5  # after those of the free body, z's being the third
        return np.concatenate([[0], joints]), np.concatenate([[self.num_positions + 2], velocities])

    def shows_state(self, observations: np.ndarray) -> np.ndarray:
        """Which observations [n, S] show a state: bool [n]. NaN, infinity and clipped velocities do not."""
        state = observations[:, : self.num_columns]
        velocities = np.abs(state[:, self.num_positions :])
        shown: np.ndarray = np.isfinite(state).all(axis=1) & (velocities < self.velocity_limit).all(axis=1)
        return shown


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
    """What is known of a task's robot, whatever the version, or None."""
    return ROBOTS.get((task or "").split("-")[0])


def known_robot(task: str) -> Robot:
    """What is known of the robot of a task that can be replayed, v4 or v5; only its horizontal position is hidden."""
    robot = robot_of(task)
    assert robot is not None, f"{task} cannot be replayed"
    return robot


def looks_initial(robot: Robot, observations: np.ndarray) -> np.ndarray:
    """Which observations [n, S] lie where episodes begin: bool [n]; False for NaN."""
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
