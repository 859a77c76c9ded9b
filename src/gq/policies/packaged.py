"""The small policies that come with gq, from which the built-in datasets are simulated.

One safetensors file an environment holds every network that any of its datasets needs. Its metadata has one entry,
`gq`: a JSON document with the environment, and for each level its networks, its exploration noise and what it measured.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from gq.errors import UsageError, suggest
from gq.files import sha256

ENVIRONMENTS = ("hopper", "halfcheetah", "walker2d", "ant", "humanoid")
LEVELS = ("medium", "medium-replay", "expert")
NAMES = [f"builtin/{environment}/{level}" for environment in ENVIRONMENTS for level in LEVELS]


@dataclass(frozen=True, kw_only=True)
class Network:
    """Hold one policy network: linear for one layer, else with rectified hidden layers; float32 arrays.

    It reads the first s of the observation's columns and gives actions in half action ranges.
    """

    mean: np.ndarray  # [s], subtracted from the observation
    weights: tuple[np.ndarray, ...]  # [outputs, inputs] of each layer; scaling is folded in
    biases: tuple[np.ndarray, ...]  # [outputs]
    squash: bool = False  # the output is tanh of the last layer; otherwise it is clipped


@dataclass(frozen=True, kw_only=True)
class PackagedPolicy:
    """Hold what one built-in dataset is simulated with, for A action dimensions."""

    env_id: str
    networks: tuple[Network, ...]  # an episode draws one
    probabilities: np.ndarray  # [networks]; such that each gives about as many rows
    noise: float  # standard deviation of the Gaussian exploration noise, in half action ranges
    action_low: np.ndarray  # float32 [A]
    action_high: np.ndarray  # float32 [A]
    metadata: dict[str, Any]  # how it was trained, and its measured returns
    sha256: str = ""  # of the packaged file

    def to_box(self, actions: np.ndarray) -> np.ndarray:
        """Clip actions [..., A] in half ranges and return them in the environment's units, float32."""
        clipped = np.minimum(np.maximum(actions, -1), 1)
        clipped *= self._half_range
        clipped += self._middle
        scaled: np.ndarray = clipped.astype(np.float32)
        return scaled

    @cached_property
    def _half_range(self) -> np.ndarray:
        half: np.ndarray = (self.action_high.astype(np.float64) - self.action_low) / 2
        return half

    @cached_property
    def _middle(self) -> np.ndarray:
        middle: np.ndarray = (self.action_high.astype(np.float64) + self.action_low) / 2
        return middle


class Slots:
    """Evaluate a network for each of M environments at once; each slot's may be another one of the same shape."""

    def __init__(self, networks: tuple[Network, ...], num_slots: int) -> None:
        self._networks = networks
        self._squash = networks[0].squash
        first = networks[0]
        self._mean = np.stack([first.mean] * num_slots).astype(np.float64)
        self._weights = [np.stack([weight.T] * num_slots).astype(np.float64) for weight in first.weights]
        self._biases = [np.stack([bias] * num_slots).astype(np.float64) for bias in first.biases]
        # Kept from call to call: fresh arrays would drive the simulator's state out of the cache.
        self._values = [np.empty((num_slots, len(first.mean)))] + [np.empty(bias.shape) for bias in self._biases]

    def choose(self, slot: int, network: int) -> None:
        """Let a slot use another network."""
        chosen = self._networks[network]
        self._mean[slot] = chosen.mean
        for stacked, weight in zip(self._weights, chosen.weights, strict=True):
            stacked[slot] = weight.T
        for stacked, bias in zip(self._biases, chosen.biases, strict=True):
            stacked[slot] = bias

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Return the actions without noise [M, A], in half action ranges, for float64 observations [M, S]."""
        np.subtract(observations[:, : self._mean.shape[1]], self._mean, out=self._values[0])
        last = len(self._weights) - 1
        for layer, (weights, bias) in enumerate(zip(self._weights, self._biases, strict=True)):
            sums = self._values[layer + 1]  # [M, outputs]
            # Not a BLAS product: its order of summation differs between processors, and the simulation is chaotic.
            np.einsum("mi,mio->mo", self._values[layer], weights, out=sums)
            sums += bias
            if layer < last:
                np.maximum(sums, 0, out=sums)
        return np.tanh(sums) if self._squash else sums.copy()


def load_policy(name: str) -> PackagedPolicy:
    """Return the policy behind a built-in dataset, such as `builtin/hopper/medium`.

    Raises:
        UsageError: there is no such dataset.
    """
    if name not in NAMES:
        hint = suggest(name, NAMES, otherwise="built-in datasets: " + ", ".join(NAMES))
        raise UsageError(f"there is no built-in dataset {name}", hint=hint)
    _, environment, level = name.split("/")
    packaged = resources.files("gq.policies") / "packaged_weights" / f"{environment}.safetensors"
    with resources.as_file(packaged) as path:
        return read_policy(path, level)


def read_policy(path: Path, level: str) -> PackagedPolicy:
    """Read one level of a packaged file."""
    with safe_open(path, framework="numpy") as file:
        document = json.loads(file.metadata()["gq"])
        chosen = document["levels"][level]
        networks = tuple(
            Network(
                mean=file.get_tensor(f"{key}.mean"),
                weights=tuple(file.get_tensor(f"{key}.{layer}.weight") for layer in range(document["num_layers"])),
                biases=tuple(file.get_tensor(f"{key}.{layer}.bias") for layer in range(document["num_layers"])),
                squash=document["squash"],
            )
            for key in chosen["networks"]
        )
        return PackagedPolicy(
            env_id=document["env_id"],
            networks=networks,
            probabilities=np.array(chosen["probabilities"]),
            noise=chosen["noise"],
            action_low=file.get_tensor("action_low"),
            action_high=file.get_tensor("action_high"),
            metadata={name: value for name, value in document.items() if name != "levels"} | chosen,
            sha256=sha256(path),
        )
