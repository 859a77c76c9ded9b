"""Tiny trainings of every algorithm: how they start, where they can break off, and what must be equal at the end."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import pytest
import torch
from torch import Tensor

import breaking
from breaking import KEEPING, Point, die, repeated
from commandline import gq
from comparing import assert_equal
from gq.algos.odt import EntropyConstraint, ODTLearner, ODTPolicy
from gq.algos.supervised import SupervisedLearner
from gq.algos.td3bc import TD3BCLearner
from gq.algos.tdmpc2 import RunningScale, TDMPC2Learner
from gq.data.replay import EpisodeLog, ReplayBuffer
from gq.data.steps import StepLog, StepRing
from gq.planning.acting import PlanningPolicy
from gq.runs.checkpoint import choose_checkpoint, load_checkpoint
from gq.training.finetuning import Evaluations
from gq.training.interaction import Interaction
from gq.training.session import Session
from tiny import SETTINGS, as_flags, write_hopper_file

PRETRAINING = {
    **SETTINGS,
    "model.backbone": "gpt2",
    "model.num_kv_heads": 2,
    "model.acting_context": 2,
    "optim.optimizer": "lamb",
    "optim.learning_rate": 1e-3,
    "optim.warmup_steps": 24,
    "optim.schedule": "constant",
    "eval.targets": [40.0],
}
FINETUNING = {
    "online.environment_steps": 0,
    "online.iterations": 3,
    "online.rollouts": 2,
    "online.updates_per_rollout": 2,
    "online.buffer_size": 5,
    "online.buffer_start": "top",
    "online.optimizer_state": "carry",
    "online.collapse": 0.0,
    "online.final_episodes": 1,
    "eval.every": 1,  # after each iteration, however long its episodes are
    "eval.num_episodes": 1,
    "checkpoint.every": 3,
    "train.log_every": 3,
}
WORLD = {
    "model.encoder_dim": 16,
    "model.mlp_dim": 16,
    "model.latent_dim": 16,
    "model.num_q": 2,
    "planner.num_samples": 8,
    "planner.num_policy_samples": 2,
    "planner.num_elites": 4,
    "planner.iterations": 1,
    "train.decisions": 60,
    "train.num_environments": 2,
    "train.seed_decisions": 24,
    "train.updates_per_decision": 0.25,
    "train.buffer_size": 40,  # so that rows leave it before the end
    "train.batch_size": 4,
    "train.log_every": 2,
    "eval.every": 20,
    "eval.num_episodes": 1,
    "checkpoint.every": 4,
}
WORLD_TASK = "InvertedPendulum-v5"
# By step: what a network that has learnt nothing returns is luck, and so is which checkpoints are best so far. With
# these finetuning is best at 0 and 4, TD-MPC2 at 0 and 10, the others at 6 and 12.
SCORES = {0: 1.0, 4: 3.0, 6: 0.5, 8: 2.0, 10: 3.0, 12: 2.5, 15: 2.0}


class Kind(NamedTuple):
    """A training of one algorithm."""

    words: tuple[str, ...]  # of its command
    settings: dict[str, Any]
    points: dict[str, Point]  # at which something can happen


SUPERVISED = {"update": Point(SupervisedLearner, "update"), **KEEPING}
KINDS = {
    "dt": Kind(("train", "dt"), SETTINGS, SUPERVISED),
    "bc": Kind(
        ("train", "bc"),
        {key: value for key, value in SETTINGS.items() if not key.startswith("model")} | {"model.embed_dim": 8},
        SUPERVISED,
    ),
    "td3bc": Kind(
        ("train", "td3bc"),
        {key: value for key, value in SETTINGS.items() if not key.startswith("model")} | {"model.embed_dim": 8},
        {
            "update": Point(TD3BCLearner, "update"),
            "half an update": Point(TD3BCLearner, "differentiate_policy"),
            **KEEPING,
        },
    ),
    "odt": Kind(
        ("train", "odt"),
        PRETRAINING,
        {
            "update": Point(ODTLearner, "update"),
            "half an update": Point(EntropyConstraint, "update"),  # the weights have moved, the temperature has not
            "evaluation": Point(ODTPolicy, "act", lambda policy, *_: not policy.stochastic),
            **KEEPING,
        },
    ),
    "finetune": Kind(
        ("finetune",),
        FINETUNING,
        {
            "rollout": Point(ODTPolicy, "act", lambda policy, *_: policy.stochastic),
            "episode log": Point(EpisodeLog, "append", is_torn=True),  # half of the record is written then
            "update": Point(ODTLearner, "update"),
            "half an update": Point(EntropyConstraint, "update"),
            "selection": Point(Evaluations, "select"),
            "evaluation": Point(ODTPolicy, "act", lambda policy, *_: not policy.stochastic),
            **KEEPING,
        },
    ),
    "tdmpc2": Kind(
        ("train", "tdmpc2"),
        WORLD,
        {
            "decision": Point(Interaction, "_planned_actions"),
            "uniform decision": Point(Interaction, "_uniform_actions"),
            "half a tick": Point(StepRing, "add"),  # the environments have moved, the log does not know
            "update": Point(TDMPC2Learner, "update"),
            "half an update": Point(RunningScale, "update"),  # the world model has moved, the policy has not
            "evaluation": Point(PlanningPolicy, "act"),
            "step log": Point(StepLog, "sync"),
            **KEEPING,
        },
    ),
}


class GivenEnds(gymnasium.Wrapper):
    """An environment whose episodes end as their seeds say, terminated or cut short, however a network acts."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        assert seed is not None
        self.num_left, self.is_cut = 6 + seed % 5, bool(seed % 2)
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        observation, reward, _, _, info = super().step(action)
        self.num_left -= 1
        is_end = self.num_left == 0
        return observation, reward, is_end and not self.is_cut, is_end and self.is_cut, info


class Reference(NamedTuple):
    """A run without interruption."""

    kind: Kind
    start: tuple[Any, ...]  # the command that starts such a run in a folder of its own
    run: Path
    num_passes: dict[str, int]  # of each point
    buffer: list[Tensor]  # what was in the replay buffer of finetuning at the end
    buffers: list[ReplayBuffer]  # a growing list of those that are made

    def number(self, point: str, share: float) -> int:
        """Return which pass of a point comes after so much of the run."""
        return int(share * (self.num_passes[point] - 1))

    def at(self, patch: pytest.MonkeyPatch, point: str, number: int, happen: Callable[[], None]) -> list[int]:
        """Let something happen before a run passes a point for the n-th time."""
        return breaking.at(self.kind.points, patch, point, number, happen)

    def begin(self, run: Path, **settings: Any) -> Any:
        """Start a run; return the command's result."""
        return gq(*self.start, "--out", run, *as_flags({**self.kind.settings, **settings}))

    def kill(self, run: Path, point: str, number: int, *, resume: bool = False) -> None:
        """Start or resume a run that is killed when it passes a point for the n-th time."""
        command = self.start if not resume else (*self.kind.words, "--resume")
        flags = as_flags(self.kind.settings) if not resume else []
        breaking.kill_at(self.kind.points, point, number, *command, "--out", run, *flags)

    def resume(self, run: Path, *options: str) -> None:
        """Let a run go on to its end."""
        result = gq(*self.kind.words, "--out", run, "--resume", "-q", *options)
        assert (result.exit_code, result.stdout) == (0, f"{run}\n"), result.stderr

    def assert_same(self, run: Path) -> None:
        """Metrics, both checkpoints with all moments and random states, and the steps and episodes that were taken."""
        assert (run / "metrics.jsonl").read_text() == (self.run / "metrics.jsonl").read_text()
        for which in ("last", "best"):
            folders = [choose_checkpoint(path, which) for path in (run, self.run)]
            assert folders[0].name == folders[1].name
            found, expected = map(load_checkpoint, folders)
            assert_equal(found.model, expected.model)
            assert_equal(found.optimizer, expected.optimizer)
            assert repeated(found.state) == repeated(expected.state)
        assert times_of(run) == times_of(self.run)
        assert experience_of(run) == experience_of(self.run)
        assert not list((run / "checkpoints").glob(".*")), "nothing half-written stays behind"
        assert (run / "README.md").exists()
        if self.buffer:
            for part, other in zip(contents(self.buffers[-1]), self.buffer, strict=True):
                assert torch.equal(part, other)


def times_of(run: Path) -> list[int]:
    """Return the steps at which the times were noted."""
    return [json.loads(line)["step"] for line in (run / "times.jsonl").read_text().splitlines()]


def experience_of(run: Path) -> dict[str, bytes]:
    """Return the files of what happened in environments by name."""
    files = [*run.glob("trajectories/*"), *run.glob("replay/*/*")]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def contents(buffer: ReplayBuffer) -> list[Tensor]:
    """Return all that decides what a buffer's draws give: its rows in their order, and the random state."""
    live = slice(buffer._start, buffer._end)
    rows = [array[live].clone() for array in buffer._rows]
    return [*rows[:-1], rows[-1] - buffer._start, buffer.generator.get_state()]


class References:
    """The runs that others are compared with, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made, self.buffers = folder, dict[str, Reference](), list[ReplayBuffer]()
        self.data = write_hopper_file(folder / "data.hdf5")

    def __call__(self, name: str) -> Reference:
        if name not in self.made:
            self.made[name] = self._make(name)
        return self.made[name]

    def _make(self, name: str) -> Reference:
        kind, needs = KINDS[name], ("--dataset", self.data)
        if name == "odt":
            needs += ("--size", "tiny")
        elif name == "tdmpc2":
            needs = ("--task", WORLD_TASK, "--size", "1")
        elif name == "finetune":
            needs = (self("odt").run, "--checkpoint", "last")
        reference = Reference(kind, (*kind.words, *needs), self.folder / name, {}, [], self.buffers)
        with pytest.MonkeyPatch.context() as patch:
            passes = {point: reference.at(patch, point, -1, die) for point in kind.points}
            result = reference.begin(reference.run)
        assert result.exit_code == 0, result.stderr
        num_passes = {point: len(passed) for point, passed in passes.items()}
        buffer = contents(self.buffers[-1]) if name == "finetune" else []
        return reference._replace(num_passes=num_passes, buffer=buffer)


@contextmanager
def references_in(folder: Path) -> Iterator[References]:
    """Yield the reference runs, in a world where neither scores nor the ends of episodes depend on a network."""
    references = References(folder)
    plain_make, plain_log, plain_init = gymnasium.make, Session.log_evaluation, ReplayBuffer.__init__

    def log_evaluation(self: Session[Any], record: dict[str, float], _: float) -> bool:
        return plain_log(self, record, SCORES.get(self.progress.step, 0.0))

    def init(self: ReplayBuffer, *arguments: Any, **settings: Any) -> None:
        plain_init(self, *arguments, **settings)
        references.buffers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gymnasium, "make", lambda *names, **options: GivenEnds(plain_make(*names, **options)))
        patch.setattr(Session, "log_evaluation", log_evaluation)
        patch.setattr(ReplayBuffer, "__init__", init)
        yield references
