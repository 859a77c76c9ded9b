"""The returns of a dataset, from the file in the cache or wherever it lies."""

import numpy as np

from gq.datasets.loading import load_dataset
from gq.results.facts import DataFacts
from gq.training.offline import fingerprint

NUM_BINS = 32
QUANTILES = (0, 10, 25, 50, 75, 90, 99, 100)
TOP_FRACTION = 0.1  # of all rows, as `gq train bc` takes them by default


def read_data(dataset: str, task: str) -> DataFacts:
    """Return the facts of a dataset.

    Raises:
        GqError: it is not there, or its file is damaged.
    """
    trajectories = load_dataset(dataset, task=task)
    returns = trajectories.returns
    best = trajectories.best(TOP_FRACTION).returns
    counts, edges = np.histogram(returns, bins=NUM_BINS)
    return DataFacts(
        dataset=dataset,
        num_episodes=trajectories.num_episodes,
        num_transitions=trajectories.num_transitions,
        return_mean=float(returns.mean()),
        return_std=float(returns.std()),
        quantiles={f"p{q}": float(np.percentile(returns, q)) for q in QUANTILES},
        edges=edges.tolist(),
        counts=counts.tolist(),
        top_mean=float(best.mean()),
        top_episodes=len(best),
        fingerprint=fingerprint(trajectories),
    )
