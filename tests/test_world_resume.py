"""TD-MPC2 runs stopped or killed at any point end, bit for bit, like those that nothing disturbed."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

import breaking
from breaking import Killed, Point, die, repeated, terminate
from commandline import copy_run, gq
from comparing import assert_equal
from gq import presets
from gq.algos.tdmpc2 import RunningScale, TDMPC2Learner
from gq.data.steps import FIRST, GOES_ON, TERMINATED, TRUNCATED, StepLog, StepRing
from gq.errors import GqError, Interrupted
from gq.planning.acting import PlanningPolicy
from gq.runs import checkpoint as checkpoints
from gq.runs.checkpoint import choose_checkpoint, load_checkpoint
from gq.training.interaction import Interaction
from gq.training.session import Session
from gq.training.world import WorldProgress, train_world_model
from tiny import as_flags

TINY = {
    "task": "InvertedPendulum-v5",  # whose episodes are short and end by themselves
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
pytestmark = [pytest.mark.computes, pytest.mark.usefixtures("one_thread", "fast_disk")]

# --- points of a run, at which something can happen -------------------------------------------------------------------

POINTS = {
    "decision": Point(Interaction, "_planned_actions"),
    "uniform decision": Point(Interaction, "_uniform_actions"),
    "half a tick": Point(StepRing, "add"),  # the environments have moved, the log does not know
    "update": Point(TDMPC2Learner, "update"),
    "half an update": Point(RunningScale, "update"),  # the world model has moved, the policy has not
    "evaluation": Point(PlanningPolicy, "act"),
    "step log": Point(StepLog, "sync"),
    **breaking.KEEPING,
}
at, kill = partial(breaking.at, POINTS), partial(breaking.kill_at, POINTS)


# --- a run and what is compared ---------------------------------------------------------------------------------------


class Reference(NamedTuple):
    """A run without interruption."""

    run: Path
    num_passes: dict[str, int]  # of each point

    def number(self, point: str, share: float) -> int:
        """Return which pass of a point comes after so much of the run."""
        return int(share * (self.num_passes[point] - 1))


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


@pytest.fixture(scope="module", autouse=True)
def given_ends() -> Iterator[None]:
    plain = gymnasium.make
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gymnasium, "make", lambda *names, **options: GivenEnds(plain(*names, **options)))
        yield


def start(run: Path, **settings: Any) -> None:
    train_world_model(presets.tdmpc2("1").replace({**TINY, **settings}), run)


def resume(run: Path) -> None:
    result = gq("train", "tdmpc2", "--out", run, "--resume", "-q")
    assert (result.exit_code, result.stdout) == (0, f"{run}\n"), result.stderr


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    run = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        passes = {point: at(patch, point, -1, die) for point in POINTS}
        start(run)
    num_passes = {point: len(passed) for point, passed in passes.items()}
    assert all(num_passes.values()), num_passes
    return Reference(run, num_passes)


def assert_same_run(run: Path, reference: Path) -> None:
    """Metrics, both checkpoints with all moments and random states, and the steps that were taken."""
    assert (run / "metrics.jsonl").read_text() == (reference / "metrics.jsonl").read_text()
    for which in ("last", "best"):
        folders = [choose_checkpoint(path, which) for path in (run, reference)]
        assert folders[0].name == folders[1].name
        found, expected = map(load_checkpoint, folders)
        assert_equal(found.model, expected.model)
        assert_equal(found.optimizer, expected.optimizer)
        assert repeated(found.state) == repeated(expected.state)
    assert steps_of(run) == steps_of(reference)
    assert not list((run / "checkpoints").glob(".*")), "nothing half-written stays behind"
    assert (run / "README.md").exists()


def steps_of(run: Path) -> dict[str, bytes]:
    """Return the files of the step log by name."""
    return {path.name: path.read_bytes() for path in (run / "replay" / "rank-0").iterdir()}


def test_the_run_that_all_are_compared_with_has_everything_in_it(reference: Reference) -> None:
    """Both ends of episodes, rows that left the ring, an episode that goes on over a checkpoint."""
    state = load_checkpoint(choose_checkpoint(reference.run, "last")).state
    position = state["processes"][0]["log"]
    log = StepLog(reference.run / "replay" / "rank-0", num_environments=2, width=7, position=position)
    kinds = log.read(0)[:, :, -1]
    assert (kinds == TERMINATED).sum() >= 2
    assert (kinds == TRUNCATED).sum() >= 2
    assert len(kinds) > TINY["train.buffer_size"] // 2
    assert (kinds[-1] == GOES_ON).any()
    progress = state["progress"]
    assert progress["decisions"] == (kinds != FIRST).sum() >= 60
    assert progress["step"] == int(progress["decisions"] * 0.25)
    records = [json.loads(line) for line in (reference.run / "metrics.jsonl").read_text().splitlines()]
    assert sum("eval/return_mean" in record for record in records) == 3
    assert all(record["frames"] == record["decisions"] for record in records)


# --- stopped ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "share"),
    [
        ("uniform decision", 0.5),
        ("decision", 0.3),
        ("half a tick", 0.8),
        ("update", 0.0),
        ("half an update", 0.6),
        ("evaluation", 0.4),
        ("saving", 0.5),
    ],
)
def test_a_stopped_run_resumes_exactly(tmp_path: Path, reference: Reference, point: str, share: float) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        at(patch, point, reference.number(point, share), terminate)
        with pytest.raises(Interrupted) as stopped:
            start(run)
    assert stopped.value.exit_code == 130
    assert stopped.value.hint == f"go on with: gq train tdmpc2 --out {run} --resume"
    assert not (run / "README.md").exists()
    resume(run)
    assert_same_run(run, reference.run)


def test_a_run_stopped_again_and_again_resumes_exactly(tmp_path: Path, reference: Reference) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        at(patch, "uniform decision", 3, terminate)
        with pytest.raises(Interrupted, match="at step 0"):
            start(run)
    for point, number in [("uniform decision", 2), ("update", 1), ("decision", 2), ("half an update", 2)]:
        with pytest.MonkeyPatch.context() as patch:
            at(patch, point, number, terminate)
            result = gq("train", "tdmpc2", "--out", run, "--resume")
        assert result.exit_code == 130, result.stderr
    resume(run)
    assert_same_run(run, reference.run)


# --- killed, within this process --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "share"),
    [
        ("decision", 0.7),
        ("half a tick", 0.6),
        ("half an update", 0.9),
        ("metrics", 0.7),
        ("evaluation", 1.0),
        ("step log", 0.6),
        ("saving", 0.4),
        ("saving", 1.0),
        ("hashing", 0.5),
        ("renaming", 0.8),
        ("last.json", 0.0),
        ("last.json", 0.6),
        ("best.json", 1.0),
        ("removal", 0.0),
    ],
)
def test_a_run_that_broke_off_resumes_exactly(tmp_path: Path, reference: Reference, point: str, share: float) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        at(patch, point, reference.number(point, share), die)
        with pytest.raises(Killed):
            start(run)
    resume(run)
    assert_same_run(run, reference.run)


@pytest.mark.parametrize(
    "lost", ["rng/torch", "exp_avg", "value_scale", "rank-0/rng/plans-1", "rank-0/rng/batches", "rank-0/warm_start"]
)
def test_exactness_depends_on_everything_that_is_saved(
    tmp_path: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at(patch, "half a tick", reference.number("half a tick", 0.75), terminate)
        with pytest.raises(Interrupted):
            start(run)

    def forgetful(folder: Path, **options: Any) -> checkpoints.Checkpoint:
        checkpoint = load_checkpoint(folder, **options)
        for name, tensor in checkpoint.optimizer.items():
            if name.startswith(lost):
                fresh = torch.Generator().get_state() if "rng" in lost else torch.zeros_like(tensor)
                checkpoint.optimizer[name] = fresh
        return checkpoint

    monkeypatch.setattr(checkpoints, "load_checkpoint", forgetful)
    resume(run)
    with pytest.raises(AssertionError):
        assert_same_run(run, reference.run)


# --- going on ---------------------------------------------------------------------------------------------------------


def test_more_decisions_can_be_added(tmp_path: Path, reference: Reference) -> None:
    run = tmp_path / "run"
    start(run, **{"train.decisions": 30})
    assert (run / "README.md").exists()
    result = gq("train", "tdmpc2", "--out", run, "--resume", "--decisions", "60", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["decisions"] == document["frames"] >= 60
    assert steps_of(run) == steps_of(reference.run)


def test_the_number_of_environments_cannot_change(reference: Reference) -> None:
    result = gq("train", "tdmpc2", "--out", reference.run, "--resume", "--environments", "3", "--decisions", "90")
    assert result.exit_code == 2
    assert "the run began with train.num_environments = 2, not 3" in result.stderr


def test_a_finished_run_stays_as_it_is(tmp_path: Path, reference: Reference) -> None:
    run = copy_run(reference.run, tmp_path / "run")
    card = (run / "README.md").read_bytes()
    resume(run)
    assert_same_run(run, reference.run)
    assert (run / "README.md").read_bytes() == card


def test_lost_steps_are_noticed(tmp_path: Path, reference: Reference) -> None:
    run = copy_run(reference.run, tmp_path / "run")
    (run / "replay" / "rank-0" / "steps-000000.bin").unlink()
    result = gq("train", "tdmpc2", "--out", run, "--resume", "--decisions", "90")
    assert result.exit_code == 1
    error, hint = result.stderr.splitlines()[-2:]
    assert "steps-000000.bin is not what this run wrote" in error
    assert hint.startswith("hint: put the file back")


def test_another_simulator_is_noticed(tmp_path: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unfinished episode is repeated to go on with it; where that gives other numbers, the run must not go on."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at(patch, "half a tick", reference.number("half a tick", 0.9), terminate)
        with pytest.raises(Interrupted):
            start(run)
    plain = Interaction._step

    def heavier(self: Interaction, i: int, action: np.ndarray) -> None:
        self.environments[i].unwrapped.model.opt.gravity[2] = -9.82
        plain(self, i, action)

    monkeypatch.setattr(Interaction, "_step", heavier)
    with pytest.raises(GqError, match="InvertedPendulum-v5 does not repeat what this run saw"):
        train_world_model(presets.tdmpc2("1").replace(TINY), run, resume=True)


def test_what_is_not_finite_is_never_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Interaction._step

    def broken(self: Interaction, i: int, action: np.ndarray) -> None:
        plain(self, i, action)
        if self.lengths[i] == 4:
            self.rows[i, 0] = np.nan

    monkeypatch.setattr(Interaction, "_step", broken)
    with pytest.raises(GqError, match="gave observations or rewards that are not finite"):
        start(tmp_path / "run")


def test_an_update_whose_gradient_is_not_finite_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = StepRing.sample

    def spoilt(self: StepRing, batch_size: int) -> Any:
        batch = plain(self, batch_size)
        return batch._replace(rewards=batch.rewards * float("nan"))

    monkeypatch.setattr(StepRing, "sample", spoilt)
    with pytest.raises(GqError, match="not finite since step 0"):
        start(tmp_path / "run")


# --- decisions, updates and environments ------------------------------------------------------------------------------


def test_what_happens_in_an_environment_does_not_depend_on_the_others(tmp_path: Path) -> None:
    uniform = {"train.seed_decisions": 1000, "train.decisions": 40, "eval.every": 0}
    start(tmp_path / "two", **uniform)
    start(tmp_path / "one", **uniform, **{"train.num_environments": 1})
    two = np.frombuffer(steps_of(tmp_path / "two")["steps-000000.bin"], np.float32).reshape(-1, 2, 7)
    one = np.frombuffer(steps_of(tmp_path / "one")["steps-000000.bin"], np.float32).reshape(-1, 7)
    assert len(two) >= 20
    assert np.array_equal(two[:, 0], one[: len(two)])
    assert not np.array_equal(two[:, 1], one[: len(two)])


@pytest.mark.parametrize(("updates_per_decision", "expected"), [(0.25, 10), (1.0, 40), (2.0, 80)])
def test_updates_follow_the_decisions_and_make_up_for_the_uniform_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, updates_per_decision: float, expected: int
) -> None:
    seen: list[tuple[int, int]] = []
    plain = Session.count

    def watched(self: Session[WorldProgress], metrics: dict[str, Tensor]) -> None:
        seen.append((self.progress.decisions, self.progress.step))
        plain(self, metrics)

    monkeypatch.setattr(Session, "count", watched)
    start(
        tmp_path / "run",
        **{"train.updates_per_decision": updates_per_decision, "train.num_environments": 1, "train.decisions": 40},
        **{"eval.every": 0},
    )
    assert len(seen) == expected
    assert seen[0][0] == 24, "none before the uniform decisions are over"
    assert all(step < decisions * updates_per_decision for decisions, step in seen)
    assert sum(decisions == 24 for decisions, _ in seen) == 24 * updates_per_decision


# --- SIGKILL ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("point", POINTS)
def test_a_killed_run_resumes_exactly(tmp_path: Path, reference: Reference, point: str, share: float) -> None:
    run = tmp_path / "run"
    flags = as_flags({name: value for name, value in TINY.items() if name != "task"})
    command = ("train", "tdmpc2", "--task", TINY["task"], "--size", "1", "--out", run)
    kill(point, reference.number(point, share), *command, *flags)
    result = gq("train", "tdmpc2", "--out", run, "--resume", "-q")
    assert (result.exit_code, result.stdout) == (0, f"{run}\n"), result.stderr
    assert_same_run(run, reference.run)
