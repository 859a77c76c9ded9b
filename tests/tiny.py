"""A dataset and a model so small that a whole run takes seconds."""

from pathlib import Path

import h5py
import numpy as np

SETTINGS = {
    "model.embed_dim": 16,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.context_length": 4,
    "model.dropout": 0.1,  # so that its random stream matters for exactness
    "train.steps": 12,
    "train.batch_size": 8,
    "train.log_every": 5,
    "eval.num_episodes": 1,
    "eval.every": 6,
    "checkpoint.every": 4,
}


def write_hopper_file(path: Path, *, num_episodes: int = 6, length: int = 30, seed: int = 0) -> Path:
    """Write a D4RL-like file of random Hopper-shaped episodes of slightly different lengths, all terminal."""
    generator = np.random.default_rng(seed)
    lengths = length + np.arange(num_episodes)
    num_rows = int(lengths.sum())
    terminals = np.zeros(num_rows, bool)
    terminals[np.cumsum(lengths) - 1] = True
    with h5py.File(path, "w") as file:
        file["observations"] = generator.standard_normal((num_rows, 11)).astype(np.float32)
        file["actions"] = generator.uniform(-1, 1, (num_rows, 3)).astype(np.float32)
        file["rewards"] = generator.uniform(0, 2, num_rows).astype(np.float32)
        file["terminals"] = terminals
        file["timeouts"] = np.zeros(num_rows, bool)
        file.attrs["env_id"] = "Hopper-v5"
    return path


def as_flags(settings: dict[str, object]) -> list[str]:
    """Return settings as command-line arguments."""
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
