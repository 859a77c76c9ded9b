"""Estimate what a cut-off episode would still have earned, from whole episodes of the same data."""

import numpy as np

NUM_NEIGHBOURS = 16
NUM_REFERENCES = 20_000  # rows of whole episodes that are compared with, spread evenly
NEAR_IN_TIME = 0.05  # the share of them, nearest in time, that is compared by observation
MIN_NEAR_IN_TIME = 64
NUM_PROBES = 200


class Estimator:
    """The mean over similar rows, by time and observation, of the return that came after them in whole episodes.

    Similar is: of the twentieth of the rows that is nearest in time, or of all where the time is not known, the 16
    nearest by standardised observation. It takes for granted that the policy that was cut off acts like those of the
    whole episodes.
    """

    def __init__(
        self, observations: np.ndarray, returns_after: np.ndarray, timesteps: np.ndarray, episodes: np.ndarray
    ) -> None:
        """Keep references.

        Args:
            observations: [R, C], the state columns of rows of whole episodes.
            returns_after: float [R], the return-to-go less the row's own reward.
            timesteps: int [R].
            episodes: int [R], which episode each row is of.
        """
        picked = np.unique(np.linspace(0, len(timesteps) - 1, min(len(timesteps), NUM_REFERENCES)).astype(np.int64))
        picked = picked[np.argsort(timesteps[picked], kind="stable")]
        self.observations = observations[picked].astype(np.float64)
        self.centre, self.spread = self.observations.mean(axis=0), self.observations.std(axis=0) + 1e-6
        self.observations = (self.observations - self.centre) / self.spread
        self.returns_after, self.timesteps, self.episodes = returns_after[picked], timesteps[picked], episodes[picked]

    def estimate(self, observation: np.ndarray, timestep: int | None, *, not_of: int = -1) -> float:
        """Return the estimate for a row: observation [C], its step or None, without references of episode `not_of`."""
        low, high = 0, len(self.timesteps)
        count = min(high, max(MIN_NEAR_IN_TIME, int(NEAR_IN_TIME * high)))
        if timestep is not None:
            middle = int(np.searchsorted(self.timesteps, timestep))
            low = int(np.clip(middle - count // 2, 0, high - count))
            high = low + count
        distances = ((self.observations[low:high] - (observation - self.centre) / self.spread) ** 2).sum(axis=1)
        distances[self.episodes[low:high] == not_of] = np.inf
        count = min(NUM_NEIGHBOURS, len(distances))
        nearest = np.argpartition(distances, count - 1)[:count]
        return float(self.returns_after[low:high][nearest].mean())

    def typical_error(self) -> float:
        """Return the median absolute error on rows of whole episodes, each without its own episode."""
        probes = np.unique(np.linspace(0, len(self.timesteps) - 1, NUM_PROBES).astype(np.int64))
        errors = [
            abs(
                self.estimate(
                    self.observations[row] * self.spread + self.centre,
                    int(self.timesteps[row]),
                    not_of=int(self.episodes[row]),
                )
                - self.returns_after[row]
            )
            for row in probes
        ]
        return float(np.median(errors))
