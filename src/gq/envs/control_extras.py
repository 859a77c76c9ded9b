"""Tasks that the TD-MPC2 paper adds to the DeepMind Control suite: robots of the suite with other rewards.

Nine of the eleven: reacher-three-easy and -hard have a robot of their own. The numbers are those of the official
program; the floors of its walker and cheetah are drawn longer, which no force depends on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

Reward = Callable[[Any], float]  # of a domain's `dm_control.mujoco.Physics`, in 0..1
Start = Callable[..., None]  # of a Physics and random=RandomState

CHEETAH_UP_M = 1.2
SLOW_M_PER_S = 0.5


@dataclass(frozen=True)
class Extra:
    """A task of the suite with another reward and, where it is given, other starts."""

    base: str  # the suite's task, as gq names it
    reward: Reward
    start: Start | None = None


def at_least(value: float, bound: float, *, margin: float, at_margin: float = 0.0) -> float:
    """Return 1 from `bound` on, less on a straight line below it, `at_margin` where `margin` is missing; never below 0.

    dm_control calls this a tolerance with a linear sigmoid.
    """
    missing = max(bound - value, 0.0) / margin
    return max(1.0 - (1.0 - at_margin) * missing, 0.0)


def nearly(value: float, bound: float, *, margin: float) -> float:
    """Return 1 from `bound` on, below it half a bell curve that is 0.1 where `margin` is missing."""
    return float(0.1 ** (max(bound - value, 0.0) / margin) ** 2)


def move_backwards_upright(physics: Any, *, speed: float) -> float:
    """Return walker's reward for standing upright and moving at `speed` m/s backwards."""
    standing = nearly(physics.torso_height(), 1.2, margin=0.6)
    upright = (1.0 + physics.torso_upright()) / 2
    moving = at_least(-physics.horizontal_velocity(), speed, margin=speed / 2, at_margin=0.5)
    return float((3 * standing + upright) / 4 * (5 * moving + 1) / 6)


def run_backwards(physics: Any) -> float:
    """Return cheetah's reward for 8 m/s backwards."""
    return at_least(-physics.speed(), 8.0, margin=8.0)


def run_on_one_foot(physics: Any, *, raised: str) -> float:
    """Return cheetah's reward for 6 m/s with its torso and the foot `raised` (ffoot, bfoot) up."""
    foot, torso = height_of(physics, raised), height_of(physics, "torso")
    margin = CHEETAH_UP_M / 2
    up = (3 * nearly(foot, CHEETAH_UP_M, margin=margin) + 2 * nearly(torso, CHEETAH_UP_M, margin=margin)) / 5
    return up * (5 * at_least(physics.speed(), 6.0, margin=6.0) + 1) / 6


def jump(physics: Any) -> float:
    """Return cheetah's reward for having its torso and both feet up without going anywhere."""
    torso = height_of(physics, "torso")
    heights = [(torso + height_of(physics, foot)) / 2 for foot in ("ffoot", "bfoot")]
    up = sum(nearly(height, CHEETAH_UP_M, margin=CHEETAH_UP_M / 2) for height in heights) / 2
    still = at_least(-abs(physics.speed()), -SLOW_M_PER_S, margin=SLOW_M_PER_S)
    return (5 * up + still) / 6


def hop_backwards(physics: Any) -> float:
    """Return hopper's reward for 1 m/s backwards with the torso 0.6 to 2 m above the foot."""
    is_up = bool(0.6 <= physics.height() <= 2.0)
    return is_up * at_least(-physics.speed(), 1.0, margin=0.5, at_margin=0.5)


def spin_pole(physics: Any) -> float:
    """Return pendulum's reward for 9 rad/s in either direction."""
    return at_least(float(np.linalg.norm(physics.angular_velocity())), 9.0, margin=4.5, at_margin=0.5)


def spin_ball(physics: Any) -> float:
    """Return the reward for the ball out of the cup, half a metre away and at 6 m/s."""
    velocity = physics.named.data.qvel[["ball_x", "ball_z"]]
    away = at_least(float(np.linalg.norm(physics.ball_to_target())), 0.5, margin=0.25, at_margin=0.5)
    fast = at_least(float(np.linalg.norm(velocity)), 6.0, margin=3.0, at_margin=0.5)
    return float((1.0 - physics.in_target()) * (away + 2 * fast) / 3)


def start_in_cup(physics: Any, *, random: np.random.RandomState) -> None:
    """Put the ball somewhere where it touches nothing: in nine of ten episodes into the cup."""
    is_anywhere = random.uniform() < 0.1
    while True:
        physics.named.data.qpos["ball_x"] = random.uniform(-0.2, 0.2)
        physics.named.data.qpos["ball_z"] = random.uniform(0.2, 0.5)
        physics.after_reset()
        if physics.data.ncon == 0 and (is_anywhere or physics.in_target()):
            return


def height_of(physics: Any, body: str) -> float:
    """Return a body's height above the floor in metres."""
    return float(physics.named.data.xpos[body, "z"])


EXTRAS = {
    "walker-walk-backwards": Extra("walker-walk", partial(move_backwards_upright, speed=1.0)),
    "walker-run-backwards": Extra("walker-run", partial(move_backwards_upright, speed=8.0)),
    "cheetah-run-backwards": Extra("cheetah-run", run_backwards),
    "cheetah-run-front": Extra("cheetah-run", partial(run_on_one_foot, raised="bfoot")),
    "cheetah-run-back": Extra("cheetah-run", partial(run_on_one_foot, raised="ffoot")),
    "cheetah-jump": Extra("cheetah-run", jump),
    "hopper-hop-backwards": Extra("hopper-hop", hop_backwards),
    "pendulum-spin": Extra("pendulum-swingup", spin_pole),
    "cup-spin": Extra("cup-catch", spin_ball, start_in_cup),
}
