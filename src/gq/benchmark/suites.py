"""The suites by name: which datasets, which algorithms in which settings, and for how many updates."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gq.errors import UsageError, suggest

Flags = tuple[str, ...]


@dataclass(frozen=True)
class Method:
    """An algorithm in one setting."""

    name: str
    command: Flags  # behind `gq train`
    updates: int
    update_seconds: float  # of one core that has nothing else to do, measured on an x86 machine with AVX2
    has_target: bool = False


@dataclass(frozen=True)
class Suite:
    """What is compared."""

    name: str
    datasets: tuple[str, ...]
    methods: tuple[Method, ...]
    evaluations: int  # in training, evenly spaced; the best checkpoint is chosen among them


@dataclass(frozen=True)
class Cell:
    """One run of a suite."""

    dataset: str
    method: Method
    seed: int

    @property
    def place(self) -> str:
        """Its folder below the suite's."""
        return f"runs/{self.dataset.replace('/', '-')}/{self.method.name}/seed-{self.seed}"


ROBOTS = ("hopper", "halfcheetah", "walker2d")
GPT2: Flags = ("--set", "model.backbone=gpt2", "--set", "model.num_kv_heads=4", "--set", "model.mlp_ratio=4.0")
OUTPUT: Flags = ("--set", "model.conditioning=output")
NARROW: Flags = ("--set", "model.embed_dim=64", "--set", "model.context_length=5")


def methods(*, updates: int, shape: Flags, seconds: float, value_updates: int, small_batch: bool) -> tuple[Method, ...]:
    """Return all algorithms, transformers of one shape.

    Values need many updates: they move back one step of an episode in about as many as the slow copies take to follow,
    400 at a rate of 0.005 every second update, and a discount of 0.99 looks a hundred steps ahead.

    Args:
        seconds: of an update of the transformer with return tokens.
        small_batch: ReBRAC on batches of 256 instead of 1024.
    """
    rebrac: Flags = ("td3bc", "--recipe", "rebrac", *(("--batch-size", "256") if small_batch else ()))
    return (
        Method("bc-10", ("bc",), updates, 0.003),
        Method("dt", ("dt", *shape), updates, seconds, has_target=True),
        Method("dt-gpt2", ("dt", *shape, *GPT2), updates, seconds, has_target=True),
        Method("dt-output", ("dt", *shape, *OUTPUT), updates, seconds / 1.6, has_target=True),
        Method("odt", ("odt",), updates, 0.03, has_target=True),
        Method("td3bc", ("td3bc",), value_updates, 0.007),
        Method("rebrac", rebrac, value_updates, 0.015 if small_batch else 0.055),
    )


SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            "builtin",
            tuple(f"builtin/{robot}/{level}" for level in ("medium-replay", "medium", "expert") for robot in ROBOTS),
            methods(updates=3000, shape=NARROW, seconds=0.02, value_updates=50_000, small_batch=True),
            evaluations=5,
        ),
        Suite(
            "minari-mujoco",
            tuple(f"mujoco/{robot}/{level}-v0" for level in ("simple", "medium", "expert") for robot in ROBOTS),
            methods(updates=100_000, shape=(), seconds=0.1, value_updates=1_000_000, small_batch=False),
            evaluations=20,
        ),
        Suite(
            "d4rl",
            tuple(
                f"d4rl/{robot}-{level}-v2" for level in ("medium", "medium-replay", "medium-expert") for robot in ROBOTS
            ),
            methods(updates=100_000, shape=(), seconds=0.1, value_updates=1_000_000, small_batch=False),
            evaluations=20,
        ),
    )
}


def choose(name: str, *, datasets: Sequence[str] = (), only: Sequence[str] = (), updates: int | None = None) -> Suite:
    """Return a suite, or the part of it that is asked for.

    Args:
        datasets: parts of their names; all if empty.
        only: names of methods; all if empty.
        updates: of every run, instead of the suite's.

    Raises:
        UsageError: there is no such suite, dataset or method.
    """
    if name not in SUITES:
        hint = suggest(name, SUITES, otherwise=f"there are {', '.join(SUITES)}")
        raise UsageError(f"there is no suite {name}", hint=hint)
    suite = SUITES[name]
    for wanted in datasets:
        if not any(wanted in dataset for dataset in suite.datasets):
            raise UsageError(f"{name} has no dataset {wanted}", hint=f"its datasets: {', '.join(suite.datasets)}")
    known = [method.name for method in suite.methods]
    for wanted in only:
        if wanted not in known:
            hint = suggest(wanted, known, otherwise=f"its methods: {', '.join(known)}")
            raise UsageError(f"{name} has no method {wanted}", hint=hint)
    return replace(
        suite,
        datasets=tuple(d for d in suite.datasets if not datasets or any(wanted in d for wanted in datasets)),
        methods=tuple(
            replace(method, updates=updates or method.updates)
            for method in suite.methods
            if not only or method.name in only
        ),
    )


def cells(suite: Suite, seeds: Sequence[int]) -> list[Cell]:
    """Return all runs, a seed of everything before the next seed, so that tables fill evenly."""
    return [Cell(dataset, method, seed) for seed in seeds for dataset in suite.datasets for method in suite.methods]


def train_words(cell: Cell, suite: Suite) -> list[str]:
    """Return what trains a cell, behind `gq`, but for its folder."""
    every = max(1, cell.method.updates // suite.evaluations)
    return [
        *("train", *cell.method.command, "--dataset", cell.dataset, "--seed", str(cell.seed)),
        *("--steps", str(cell.method.updates), "--set", f"eval.every={every}", "--set", f"checkpoint.every={every}"),
    ]
