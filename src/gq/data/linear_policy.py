"""Small policies that come with gq: linear in the observation, with Gaussian exploration noise."""

from dataclasses import dataclass
from importlib import resources

import numpy as np
from safetensors import safe_open

from gq.files import sha256


@dataclass(frozen=True, kw_only=True)
class LinearPolicy:
    """Hold one policy; float32 arrays for S observation and A action dimensions."""

    env_id: str
    weight: np.ndarray  # [A, S]
    mean: np.ndarray  # [S], subtracted from the observation
    noise: float  # standard deviation of the exploration noise, in half action ranges
    action_low: np.ndarray  # [A]
    action_high: np.ndarray  # [A]
    metadata: dict[str, str]  # how it was trained, and its measured returns
    sha256: str = ""  # of the packaged file

    def act(self, observation: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Return the action, float32 [A], in the environment's units, for one observation [S]."""
        # Not a BLAS product: its order of summation differs between processors, and the simulation is chaotic.
        action = (self.weight * (observation - self.mean)).sum(axis=1)
        action = np.clip(action + self.noise * generator.standard_normal(len(action)), -1, 1)
        return (self.action_low + (action + 1) / 2 * (self.action_high - self.action_low)).astype(np.float32)


def load_policy(name: str) -> LinearPolicy:
    """Return a packaged policy by its file's stem, such as `hopper-medium`."""
    packaged = resources.files("gq.data") / "policies" / f"{name}.safetensors"
    with resources.as_file(packaged) as path, safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        arrays = {key: file.get_tensor(key) for key in ("weight", "mean", "action_low", "action_high")}
        return LinearPolicy(
            env_id=metadata["env_id"],
            noise=float(metadata["noise"]),
            metadata=metadata,
            sha256=sha256(path),
            **arrays,
        )
