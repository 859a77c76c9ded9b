"""Normalised scores: 100 (return - minimum) / (maximum - minimum), always with the name of the references used."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """A named pair of returns that a score is measured between."""

    name: str
    minimum: float  # a uniform random policy
    maximum: float  # a good policy

    def score(self, episode_return: float) -> float:
        """Return the normalised score."""
        return 100 * (episode_return - self.minimum) / (self.maximum - self.minimum)


# d4rl/infos.py of D4RL, the same for v0, v1 and v2.
D4RL = {
    "hopper": Reference("d4rl", -20.272305, 3234.3),
    "halfcheetah": Reference("d4rl", -280.178953, 12135.0),
    "walker2d": Reference("d4rl", 1.629008, 4592.3),
    "ant": Reference("d4rl", -325.6, 3879.7),
}

# Measured on the v5 environments, gymnasium 1.4.0 and mujoco 3.17.0: mean of 300 to 1000 random episodes, and mean of
# 20 deterministic episodes of the best public policies (CS285 experts; SB3 zoo TQC for HalfCheetah).
GQ_V5 = {
    "Hopper-v5": Reference("gq-v5", 18.2, 3728.0),
    "HalfCheetah-v5": Reference("gq-v5", -291.0, 12135.0),
    "Walker2d-v5": Reference("gq-v5", 1.65, 5169.0),
    "Ant-v5": Reference("gq-v5", -57.3, 4709.0),
    "Humanoid-v5": Reference("gq-v5", 113.7, 10073.0),
}


def reference_for(task: str, dataset: str) -> Reference | None:
    """Return the references for results on a dataset: D4RL's for D4RL data only, else the task's own, or None."""
    if dataset.startswith("d4rl/"):
        return D4RL.get(task.split("-")[0].lower())
    return GQ_V5.get(task)
