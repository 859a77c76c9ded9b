"""The suites by name: which datasets, which algorithms in which settings, and for how many updates."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gq.errors import UsageError, suggest
from gq.sweeps.plan import SEED, Member, Plan, check_name, complete, name_at

Settings = dict[str, Any]  # by dotted key
METHOD = "method"  # among the values of a member


@dataclass(frozen=True)
class Method:
    """An algorithm in one setting."""

    name: str
    algo: str
    settings: Settings
    updates: int
    update_seconds: float  # of one core that has nothing else to do, measured on an x86 machine with AVX2


@dataclass(frozen=True)
class Suite:
    """What is compared."""

    name: str
    datasets: tuple[str, ...]
    methods: tuple[Method, ...]
    evaluations: int  # in training, evenly spaced; the best checkpoint is chosen among them


ROBOTS = ("hopper", "halfcheetah", "walker2d")
GPT2: Settings = {"model.backbone": "gpt2", "model.num_kv_heads": 4, "model.mlp_ratio": 4.0}
OUTPUT: Settings = {"model.conditioning": "output"}
NARROW: Settings = {"model.embed_dim": 64, "model.context_length": 5}


def methods(
    *, updates: int, shape: Settings, seconds: float, value_updates: int, small_batch: bool
) -> tuple[Method, ...]:
    """Return all algorithms, transformers of one shape.

    Values need many updates: they move back one step of an episode in about as many as the slow copies take to follow,
    400 at a rate of 0.005 every second update, and a discount of 0.99 looks a hundred steps ahead.

    Args:
        seconds: of an update of the transformer with return tokens.
        small_batch: ReBRAC on batches of 256 instead of 1024.
    """
    rebrac: Settings = {"size": "rebrac"} | ({"train.batch_size": 256} if small_batch else {})
    return (
        Method("bc-10", "bc", {}, updates, 0.003),
        Method("dt", "dt", shape, updates, seconds),
        Method("dt-gpt2", "dt", shape | GPT2, updates, seconds),
        Method("dt-output", "dt", shape | OUTPUT, updates, seconds / 1.6),
        Method("odt", "odt", {}, updates, 0.03),
        Method("td3bc", "td3bc", {}, value_updates, 0.007),
        Method("rebrac", "td3bc", rebrac, value_updates, 0.015 if small_batch else 0.055),
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
            methods(updates=100_000, shape={}, seconds=0.1, value_updates=1_000_000, small_batch=False),
            evaluations=20,
        ),
        Suite(
            "d4rl",
            tuple(
                f"d4rl/{robot}-{level}-v2" for level in ("medium", "medium-replay", "medium-expert") for robot in ROBOTS
            ),
            methods(updates=100_000, shape={}, seconds=0.1, value_updates=1_000_000, small_batch=False),
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


def plan(suite: Suite, seeds: Sequence[int], num_episodes: int) -> Plan:
    """Return all runs as a sweep, a seed of everything before the next seed, so that tables fill evenly.

    Args:
        num_episodes: fresh ones, of each last and best checkpoint.
    """
    members = [
        member_of(suite, dataset, method, seed)
        for seed in seeds
        for dataset in suite.datasets
        for method in suite.methods
    ]
    return Plan(check_name(suite.name), tuple(members), num_episodes)


def member_of(suite: Suite, dataset: str, method: Method, seed: int) -> Member:
    """Return one run."""
    every = max(1, method.updates // suite.evaluations)
    place = {"data.dataset": dataset, SEED: seed, "log.sweep": suite.name}
    length = {"train.steps": method.updates, "eval.every": every, "checkpoint.every": every}
    name = f"{name_at({'data.dataset': dataset})}-{method.name}-seed{seed}"
    values = {"data.dataset": dataset, METHOD: method.name, SEED: seed}
    return Member(name, method.algo, complete(method.algo, method.settings | place | length), values)
