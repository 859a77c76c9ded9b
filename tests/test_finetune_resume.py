"""Finetuning that goes on: more iterations, what it needs for that, what cannot change, what is noticed."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from breaking import die, terminate
from commandline import copy_run, gq
from comparing import assert_equal
from gq.errors import GqError
from gq.learn import finetune
from gq.runs.checkpoint import choose_checkpoint, load_checkpoint
from gq.runs.folder import resume_config
from gq.training.online import ReplayStore
from resumable import Reference, References
from tiny import write_hopper_file

pytestmark = [pytest.mark.computes, pytest.mark.usefixtures("one_thread", "fast_disk")]


@pytest.fixture
def reference(references: References) -> Reference:
    return references("finetune")


def stop(reference: Reference, run: Path, point: str, number: int, **settings: Any) -> str:
    """Start or resume a run that is stopped when it passes a point for the n-th time; return what it says."""
    with pytest.MonkeyPatch.context() as patch:
        reference.at(patch, point, number, terminate)
        result = gq("finetune", "--out", run, "--resume") if run.exists() else reference.begin(run, **settings)
    assert result.exit_code == 130, result.stderr
    return str(result.stderr)


def test_a_stop_in_a_rollout_loses_its_episodes_and_nothing_else(
    tmp_path: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it writes no checkpoint over the one that is there already."""
    run = tmp_path / "run"
    folders = reference.at(monkeypatch, "renaming", -1, die)
    assert "at step 0," in stop(reference, run, "rollout", 2, **{"checkpoint.keep": 1})
    assert len(folders) == 1
    assert (run / "trajectories" / "episodes.bin").stat().st_size == 0
    assert "at step 0," in stop(reference, run, "rollout", 2)
    assert len(folders) == 1
    reference.resume(run)
    assert (run / "metrics.jsonl").read_bytes() == (reference.run / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("lost", ["order", "row"])
def test_exactness_depends_on_the_buffer_and_its_order(
    tmp_path: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    run, restore = tmp_path / "run", ReplayStore.restore
    stop(reference, run, "update", 6)

    def restore_otherwise(self: ReplayStore, names: Sequence[str], num_episodes: int) -> None:
        restore(self, names[::-1] if lost == "order" else names[1:], num_episodes)

    monkeypatch.setattr(ReplayStore, "restore", restore_otherwise)
    reference.resume(run)
    with pytest.raises(AssertionError):
        reference.assert_same(run)


def test_more_iterations_can_be_added(tmp_path: Path, reference: Reference) -> None:
    run = tmp_path / "run"
    assert reference.begin(run, **{"online.iterations": 1}).exit_code == 0
    assert load_checkpoint(choose_checkpoint(run, "last")).state["step"] == 4
    result = gq("finetune", "--out", run, "--resume", "--iterations", "3", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["iterations"] == 3
    found, expected = (load_checkpoint(choose_checkpoint(path, "last")) for path in (run, reference.run))
    assert_equal(found.model, expected.model)
    assert found.state["buffer"] == expected.state["buffer"]


def test_resuming_a_finished_run_only_compares_again(tmp_path: Path, reference: Reference) -> None:
    run = copy_run(reference.run, tmp_path / "run")
    result = gq("finetune", "--out", run, "--resume", "--json")
    assert result.exit_code == 0, result.stderr
    (compared,) = json.loads(result.stdout)["comparison"]
    starts = load_checkpoint(choose_checkpoint(run, "last")).state["progress"]["start_returns"][0]
    assert [compared["start_mean"]] == starts
    reference.assert_same(run)


def test_the_parent_is_not_needed_any_more_but_its_data_are(
    tmp_path: Path, references: References, reference: Reference
) -> None:
    orphan, run = copy_run(references("odt").run, tmp_path / "parent"), tmp_path / "run"
    start = reference._replace(start=("finetune", orphan, "--checkpoint", "last"))
    assert start.begin(run, **{"online.iterations": 1}).exit_code == 0
    shutil.rmtree(orphan)
    result = gq("finetune", "--out", run, "--resume", "--iterations", "2", "-q")
    assert (result.exit_code, result.stdout) == (0, f"{run}\n"), result.stderr
    data = references.data
    kept = data.rename(data.with_suffix(".kept"))
    write_hopper_file(data, seed=1)
    result = gq("finetune", "--out", run, "--resume", "--iterations", "3")
    kept.replace(data)
    assert result.exit_code == 1
    assert f"{data} is not the data that this run began with" in result.stderr


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("online.updates_per_rollout", 7),
        ("online.targets", "[1.0]"),
        ("optim.learning_rate", 0.5),
        ("eval.targets", "[9.0]"),
    ],
)
def test_what_is_learnt_and_compared_cannot_change(reference: Reference, setting: str, value: Any) -> None:
    before = (reference.run / "config.toml").read_bytes()
    result = gq("finetune", "--out", reference.run, "--resume", "--iterations", "9", "--set", f"{setting}={value}")
    assert (result.exit_code, result.stdout) == (2, "")
    error, hint = result.stderr.splitlines()
    assert error.startswith(f"error: the run began with {setting} = ")
    assert hint.startswith("hint: ")
    assert (reference.run / "config.toml").read_bytes() == before


def test_the_newest_unfinished_run_is_found(own_home: Path, reference: Reference) -> None:
    runs = own_home / "runs"
    copy_run(reference.run, runs / "finished")
    stop(reference, runs / "stopped", "update", 3)
    result = gq("finetune", "--resume", "-q")
    assert (result.exit_code, result.stdout) == (0, f"{runs / 'stopped'}\n"), result.stderr
    reference.assert_same(runs / "stopped")
    assert gq("finetune", "--resume").exit_code == 2, "now there is none"


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_lost_episodes_are_noticed(tmp_path: Path, reference: Reference, damage: str) -> None:
    run = copy_run(reference.run, tmp_path / "run")
    log = run / "trajectories" / "episodes.bin"
    content = bytearray(log.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        log.unlink()
    else:
        log.write_bytes(content if damage == "flipped" else content[:-1])
    _, config = resume_config("finetune", None, {"online.iterations": 4}, run)
    with pytest.raises(GqError, match=r"episodes.bin was damaged: \d of 6 episodes are left in it") as refused:
        finetune(config, run, resume=True)
    assert refused.value.hint
