"""Checkpoints: which are kept, whole or not there at all, and what is noted between them."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gq import presets
from gq.algos.state import restore_generator
from gq.algos.supervised import SupervisedLearner
from gq.config import DTConfig
from gq.errors import GqError, UsageError
from gq.learn import train
from gq.runs import checkpoint as checkpoints
from gq.runs.folder import lock_run, resume_config, was_elsewhere
from gq.training.offline import TrainResult
from gq.training.session import Session, restored_metrics
from tiny import SETTINGS, write_hopper_file

pytestmark = [pytest.mark.computes, pytest.mark.usefixtures("one_thread", "fast_disk")]

EMPTY: dict[str, Any] = {"model": {}, "optimizer": {}, "state": {}}


def tiny_config(data: Path, **settings: Any) -> DTConfig:
    return presets.dt("1m").replace({"data.dataset": str(data), "size": "tiny", **SETTINGS, **settings})


def resumed(run: Path, **settings: Any) -> TrainResult:
    _, config = resume_config("dt", None, settings, run)
    return train(config, run, resume=True)


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints.choose_checkpoint(run, "last") / "model.safetensors")


def assert_same_run(run: Path, reference: Path) -> None:
    """Weights bit-equal, metrics and the best checkpoint the same."""
    ours, theirs = final_weights(run), final_weights(reference)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name
    assert (run / "metrics.jsonl").read_text() == (reference / "metrics.jsonl").read_text()
    assert (run / "checkpoints/best.json").read_text() == (reference / "checkpoints/best.json").read_text()


def stop_after(monkeypatch: pytest.MonkeyPatch, num_updates: int, error: BaseException | None = None) -> None:
    """Send SIGTERM to ourselves, or raise, after so many updates."""
    plain = SupervisedLearner.update

    def update(self: SupervisedLearner, step: int) -> dict[str, torch.Tensor]:
        metrics = plain(self, step)
        if step + 1 == num_updates:
            if error:
                raise error
            os.kill(os.getpid(), signal.SIGTERM)
        return metrics

    monkeypatch.setattr(SupervisedLearner, "update", update)


@pytest.fixture
def reference(tmp_path: Path, data: Path) -> Path:
    run = tmp_path / "reference"
    train(tiny_config(data), run)
    return run


def test_more_steps_can_be_added_and_nothing_else_changed(reference: Path) -> None:
    assert resumed(reference, **{"train.steps": 15}).steps == 15
    with pytest.raises(UsageError, match=r"began with optim.learning_rate = 0.001, not 0.5"):
        resumed(reference, **{"optim.learning_rate": 0.5})


def test_other_data_is_refused(data: Path, reference: Path) -> None:
    write_hopper_file(data, seed=1)
    with pytest.raises(GqError, match="not the data that this run began with"):
        resumed(reference, **{"train.steps": 15})


def test_a_gradient_that_is_never_finite_ends_the_run_and_keeps_what_was_saved(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, plain = tmp_path / "run", SupervisedLearner.update

    def update(self: SupervisedLearner, step: int) -> dict[str, torch.Tensor]:
        if step >= 5:
            self.loss = lambda model, batch: {"loss": sum(p.sum() for p in model.parameters()) * float("nan")}
        return plain(self, step)

    monkeypatch.setattr(SupervisedLearner, "update", update)
    with pytest.raises(GqError, match="not finite since step 5"):
        train(tiny_config(data), run)
    last = checkpoints.load_checkpoint(checkpoints.choose_checkpoint(run, "last"))
    assert last.state["step"] == 8
    assert all(torch.isfinite(value).all() for value in last.model.values())
    at_five = checkpoints.load_checkpoint(run / "checkpoints/step-000000006").model
    assert all(torch.equal(value, at_five[name]) for name, value in last.model.items()), "skipped steps change nothing"


def test_a_full_disk_loses_no_checkpoint(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    plain, calls = checkpoints.write_json, []

    def write_json(path: Path, document: Any) -> None:
        calls.append(path)
        if len(calls) > 4 and path.name == "MANIFEST.json":
            raise OSError(28, "No space left on device")
        plain(path, document)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_json", write_json)
        with pytest.raises(GqError, match="No space left on device") as failed:
            train(tiny_config(data), run)
    assert "--out or GQ_HOME" in failed.value.hint
    assert [path.name for path in (run / "checkpoints").iterdir() if path.is_dir()] == ["step-000000004"]
    assert resumed(run).steps == 12
    unharmed = tmp_path / "unharmed"
    train(tiny_config(data), unharmed)
    assert_same_run(run, unharmed)


def test_only_the_newest_and_the_best_checkpoints_are_kept(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def log_evaluation(self: Session[Any], *_: Any) -> bool:
        self.progress.best_step = 3
        return self.progress.step == 3

    monkeypatch.setattr(Session, "log_evaluation", log_evaluation)
    run = tmp_path / "run"
    train(tiny_config(data, **{"checkpoint.every": 2, "checkpoint.keep": 2, "eval.every": 3}), run)
    names = [folder.name for folder in checkpoints.checkpoint_folders(run)]
    assert names == ["step-000000003", "step-000000010", "step-000000012"]
    assert json.loads((run / "checkpoints/best.json").read_text()) == {"checkpoint": "step-000000003"}
    assert checkpoints.choose_checkpoint(run, "best").name == "step-000000003"
    assert checkpoints.choose_checkpoint(run, "10").name == "step-000000010"


def test_a_kill_while_old_checkpoints_are_removed_leaves_none_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, removals = tmp_path / "run", []

    def rmtree(path: Path, **_: Any) -> None:
        if (path / "MANIFEST.json").exists():
            removals.append(path)
            (path / "model.safetensors").unlink()
            raise KeyboardInterrupt

    checkpoints.save_checkpoint(run, 1, **EMPTY, is_best=False, keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", rmtree)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save_checkpoint(run, 2, **EMPTY, is_best=False, keep=1)
    assert len(removals) == 1
    for folder in checkpoints.checkpoint_folders(run):
        checkpoints.verify_checkpoint(folder, deep=True)
    assert [folder.name for folder in checkpoints.checkpoint_folders(run)] == ["step-000000002"]
    with lock_run(run):
        assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-000000002", "last.json"}


def test_a_resumed_run_removes_what_a_kill_kept_it_from_removing(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, settings = tmp_path / "run", {"checkpoint.every": 4, "checkpoint.keep": 1, "eval.every": 0}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "remove_old", lambda run, keep: None)
        train(tiny_config(data, **settings), run)
    assert [folder.name[-2:] for folder in checkpoints.checkpoint_folders(run)] == ["04", "08", "12"]
    resumed(run)
    assert [folder.name[-2:] for folder in checkpoints.checkpoint_folders(run)] == ["12"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"])
def test_a_flipped_byte_is_found(reference: Path, name: str) -> None:
    folder = checkpoints.choose_checkpoint(reference, "last")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(GqError) as refused:
        checkpoints.load_checkpoint(folder)
    assert refused.value.hint.startswith(f"remove {folder} to go on from step-")


def test_checkpoints_hold_no_pickle(reference: Path) -> None:
    suffixes = {path.suffix for path in (reference / "checkpoints").rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}


def test_a_run_in_bursts_is_the_same_as_one_by_one(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs, evaluations and checkpoints come at their steps, whatever the learner takes at once."""
    settings = {"train.steps": 23, "eval.every": 8, "checkpoint.every": 7, "checkpoint.keep": 9, "train.log_every": 5}
    config, whole, burst = tiny_config(data, **settings), tmp_path / "whole", tmp_path / "burst"
    train(config, whole)
    bursts: list[int] = []

    def updates(self: SupervisedLearner, step: int, most: int) -> tuple[dict[str, Tensor], int]:
        bursts.append(min(most, 4))
        each = [self.update(step + index) for index in range(bursts[-1])]
        return {name: torch.stack([metrics[name] for metrics in each]) for name in each[0]}, bursts[-1]

    monkeypatch.setattr(SupervisedLearner, "updates", updates)
    train(config, burst)
    assert bursts == [4, 1, 2, 1, 2, 4, 1, 1, 4, 1, 2]
    assert (burst / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    files = sorted(whole.glob("checkpoints/*/*.safetensors"))
    assert len(files) >= 2 * 4
    for file in files:
        assert (burst / file.relative_to(whole)).read_bytes() == file.read_bytes()


def test_means_are_of_the_updates_that_they_are_about(tmp_path: Path, data: Path) -> None:
    """Also where a run goes on with another log interval."""
    each = {"eval.every": 0, "checkpoint.every": 0}
    train(tiny_config(data, **each, **{"train.steps": 8, "train.log_every": 1}), tmp_path / "single")
    losses = [record["loss"] for record in records(tmp_path / "single")]
    train(tiny_config(data, **each, **{"train.steps": 7, "train.log_every": 5}), tmp_path / "changed")
    resumed(tmp_path / "changed", **{"train.steps": 8, "train.log_every": 4})
    first, second = records(tmp_path / "changed")
    assert (first["step"], second["step"]) == (5, 8)
    assert first["loss"] == pytest.approx(sum(losses[:5]) / 5)
    assert second["loss"] == pytest.approx(sum(losses[5:8]) / 3)


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_metrics_go_on_where_those_of_the_next_updates_are() -> None:
    saved = {"metric/loss": torch.ones(3), "rng/sampler": torch.zeros(16, dtype=torch.uint8)}
    (found,) = restored_metrics(saved, torch.device("meta")).items()
    assert found[0] == "loss"
    assert [values.device.type for values in found[1]] == ["meta"]


def test_a_generator_s_state_of_another_kind_of_device_seeds_it_instead() -> None:
    """A CPU's state has 5,056 bytes, a GPU's 16."""
    kept = torch.Generator().manual_seed(5)
    torch.rand(3, generator=kept)
    restored = torch.Generator()
    restore_generator(restored, kept.get_state())
    assert torch.equal(restored.get_state(), kept.get_state())
    others = [torch.arange(16, dtype=torch.uint8), torch.arange(16, dtype=torch.uint8).flip(0)]
    drawn = []
    for state in (others[0], others[0], others[1]):
        restore_generator(restored, state)
        drawn.append(float(torch.rand((), generator=restored)))
    assert drawn[0] == drawn[1] != drawn[2]


def test_it_is_known_whether_a_run_changes_its_kind_of_device(tmp_path: Path, data: Path) -> None:
    train(tiny_config(data), tmp_path / "run")
    assert not was_elsewhere(tmp_path / "run", "cpu")
    assert was_elsewhere(tmp_path / "run", "cuda")
    assert not was_elsewhere(tmp_path / "new", "cuda")
