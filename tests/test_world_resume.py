"""TD-MPC2's runs: what is in them, what is noticed when they go on, how updates follow decisions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from breaking import terminate
from commandline import copy_run, gq
from gq.data.pieces import FIRST, GOES_ON, TERMINATED, TRUNCATED
from gq.data.steps import StepLog, StepRing
from gq.runs.checkpoint import choose_checkpoint, load_checkpoint
from gq.training.interaction import Interaction
from gq.training.session import Session
from gq.training.world import WorldProgress
from resumable import WORLD, Reference, References, experience_of

pytestmark = [pytest.mark.computes, pytest.mark.usefixtures("one_thread", "fast_disk")]


@pytest.fixture
def reference(references: References) -> Reference:
    return references("tdmpc2")


def start(reference: Reference, run: Path, **settings: Any) -> None:
    result = reference.begin(run, **settings)
    assert result.exit_code == 0, result.stderr


def refusal(*command: Any) -> str:
    """Return what a command that must fail says."""
    result = gq(*command)
    assert result.exit_code == 1, result.stderr
    return str(result.stderr)


def test_the_run_that_all_are_compared_with_has_everything_in_it(reference: Reference) -> None:
    """Both ends of episodes, rows that left the ring, an episode that goes on over a checkpoint."""
    state = load_checkpoint(choose_checkpoint(reference.run, "last")).state
    position = state["processes"][0]["log"]
    log = StepLog(reference.run / "replay" / "rank-0", num_environments=2, width=7, position=position)
    kinds = log.read(0)[:, :, -1]
    assert (kinds == TERMINATED).sum() >= 2
    assert (kinds == TRUNCATED).sum() >= 2
    assert len(kinds) > WORLD["train.buffer_size"] // 2
    assert (kinds[-1] == GOES_ON).any()
    progress = state["progress"]
    assert progress["decisions"] == (kinds != FIRST).sum() >= 60
    assert progress["step"] == int(progress["decisions"] * 0.25)
    records = [json.loads(line) for line in (reference.run / "metrics.jsonl").read_text().splitlines()]
    assert sum("eval/return_mean" in record for record in records) == 3
    assert all(record["frames"] == record["decisions"] for record in records)


def test_more_decisions_can_be_added(tmp_path: Path, reference: Reference) -> None:
    run = tmp_path / "run"
    start(reference, run, **{"train.decisions": 30})
    assert (run / "README.md").exists()
    result = gq("train", "tdmpc2", "--out", run, "--resume", "--decisions", "60", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["decisions"] == document["frames"] >= 60
    assert experience_of(run) == experience_of(reference.run)


def test_the_number_of_environments_cannot_change(reference: Reference) -> None:
    result = gq("train", "tdmpc2", "--out", reference.run, "--resume", "--environments", "3", "--decisions", "90")
    assert result.exit_code == 2
    assert "the run began with train.num_environments = 2, not 3" in result.stderr


def test_lost_steps_are_noticed(tmp_path: Path, reference: Reference) -> None:
    run = copy_run(reference.run, tmp_path / "run")
    (run / "replay" / "rank-0" / "steps-000000.bin").unlink()
    error, hint = refusal("train", "tdmpc2", "--out", run, "--resume", "--decisions", "90").splitlines()[-2:]
    assert "steps-000000.bin is not what this run wrote" in error
    assert hint.startswith("hint: put the file back")


def test_another_simulator_is_noticed(tmp_path: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unfinished episode is repeated to go on with it; where that gives other numbers, the run must not go on."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        reference.at(patch, "half a tick", reference.number("half a tick", 0.9), terminate)
        assert reference.begin(run).exit_code == 130
    plain = Interaction._step

    def heavier(self: Interaction, i: int, action: np.ndarray) -> None:
        self.environments[i].unwrapped.model.opt.gravity[2] = -9.82
        plain(self, i, action)

    monkeypatch.setattr(Interaction, "_step", heavier)
    said = refusal("train", "tdmpc2", "--out", run, "--resume")
    assert "InvertedPendulum-v5 does not repeat what this run saw" in said


def test_what_is_not_finite_is_never_kept(
    tmp_path: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Interaction._step

    def broken(self: Interaction, i: int, action: np.ndarray) -> None:
        plain(self, i, action)
        if self.lengths[i] == 4:
            self.rows[i, 0] = np.nan

    monkeypatch.setattr(Interaction, "_step", broken)
    result = reference.begin(tmp_path / "run")
    assert result.exit_code == 1
    assert "gave observations or rewards that are not finite" in result.stderr


def test_an_update_whose_gradient_is_not_finite_changes_nothing(
    tmp_path: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = StepRing.sample

    def spoilt(self: StepRing, batch_size: int) -> Any:
        batch = plain(self, batch_size)
        return batch._replace(rewards=batch.rewards * float("nan"))

    monkeypatch.setattr(StepRing, "sample", spoilt)
    result = reference.begin(tmp_path / "run")
    assert result.exit_code == 1
    assert "not finite since step 0" in result.stderr


def test_what_happens_in_an_environment_does_not_depend_on_the_others(tmp_path: Path, reference: Reference) -> None:
    uniform = {"train.seed_decisions": 1000, "train.decisions": 40, "eval.every": 0}
    start(reference, tmp_path / "two", **uniform)
    start(reference, tmp_path / "one", **uniform, **{"train.num_environments": 1})
    two, one = (np.fromfile(tmp_path / name / "replay/rank-0/steps-000000.bin", np.float32) for name in ("two", "one"))
    two, one = two.reshape(-1, 2, 7), one.reshape(-1, 7)
    assert len(two) >= 20
    assert np.array_equal(two[:, 0], one[: len(two)])
    assert not np.array_equal(two[:, 1], one[: len(two)])


@pytest.mark.parametrize(("updates_per_decision", "expected"), [(0.25, 10), (1.0, 40), (2.0, 80)])
def test_updates_follow_the_decisions_and_make_up_for_the_uniform_ones(
    tmp_path: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch, updates_per_decision: float, expected: int
) -> None:
    seen: list[tuple[int, int]] = []
    plain = Session.count

    def watched(self: Session[WorldProgress], metrics: dict[str, Tensor]) -> None:
        seen.append((self.progress.decisions, self.progress.step))
        plain(self, metrics)

    monkeypatch.setattr(Session, "count", watched)
    start(
        reference,
        tmp_path / "run",
        **{"train.updates_per_decision": updates_per_decision, "train.num_environments": 1, "train.decisions": 40},
        **{"eval.every": 0},
    )
    assert len(seen) == expected
    assert seen[0][0] == 24, "none before the uniform decisions are over"
    assert all(step < decisions * updates_per_decision for decisions, step in seen)
    assert sum(decisions == 24 for decisions, _ in seen) == 24 * updates_per_decision


def test_by_episode_nothing_is_learnt_before_an_episode_has_ended(tmp_path: Path, reference: Reference) -> None:
    """Uniform decisions end after 4, the first episode later; the updates in between are made up for."""
    start(reference, tmp_path / "run", **{"train.seed_decisions": 4, "train.num_environments": 1})
    folder = tmp_path / "run" / "replay" / "rank-0"
    state = load_checkpoint(choose_checkpoint(tmp_path / "run", "last")).state
    kinds = StepLog(folder, num_environments=1, width=7, position=state["processes"][0]["log"]).read(0)[:, 0, -1]
    first_end = int((kinds >= TERMINATED).argmax())
    assert first_end > 4
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert min(record["decisions"] for record in records if "value_loss" in record) >= first_end
    assert state["progress"]["step"] == int(state["progress"]["decisions"] * 0.25)


def test_a_budget_in_which_no_episode_ends_is_refused_before_there_is_a_run(tmp_path: Path) -> None:
    command = ("train", "tdmpc2", "--task", "HalfCheetah-v5", "--size", "1", "--out", tmp_path / "run")
    result = gq(*command, "--decisions", "900")
    assert result.exit_code == 2
    assert "no episode to learn from ends within 900 decisions" in result.stderr
    assert "--set train.replay=steps" in result.stderr
    assert not (tmp_path / "run").exists()
