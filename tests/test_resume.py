"""A run of any algorithm that was stopped or killed, at any point, ends bit for bit like one that nothing disturbed."""

import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from breaking import Killed, die, forked, terminate
from commandline import copy_run, gq
from gq.runs import checkpoint as checkpoints
from gq.runs.checkpoint import choose_checkpoint, load_checkpoint
from resumable import KINDS, Reference, References
from tiny import SETTINGS, as_flags, write_hopper_file

pytestmark = [pytest.mark.computes, pytest.mark.usefixtures("one_thread", "fast_disk")]

# By algorithm: points, and how much of the run comes before.
Table = dict[str, list[tuple[str, float]]]
STOPS: Table = {
    "dt": [("update", 0.0), ("update", 0.4), ("update", 0.6), ("update", 0.95)],
    "bc": [("update", 0.6)],
    "td3bc": [("update", 0.4), ("half an update", 0.6)],
    "odt": [("update", 0.6)],
    "finetune": [
        ("rollout", 0.0),
        ("rollout", 0.5),
        ("update", 0.4),
        ("half an update", 0.7),
        ("selection", 0.0),
        ("selection", 0.5),
        ("saving", 0.3),
    ],
    "tdmpc2": [
        ("uniform decision", 0.5),
        ("decision", 0.3),
        ("half a tick", 0.8),
        ("update", 0.0),
        ("half an update", 0.6),
        ("evaluation", 0.4),
        ("saving", 0.5),
    ],
}
BREAKS: Table = {
    "dt": [("metrics", 0.6), ("renaming", 0.8), ("last.json", 0.4), ("best.json", 0.0), ("best.json", 1.0)],
    "td3bc": [("half an update", 0.65), ("last.json", 0.4)],
    "odt": [("half an update", 0.65), ("evaluation", 0.6), ("last.json", 0.4)],
    "finetune": [
        ("rollout", 0.9),
        ("episode log", 0.0),
        ("episode log", 0.6),
        ("half an update", 0.3),
        ("metrics", 0.6),
        ("evaluation", 0.0),
        ("evaluation", 0.7),
        ("evaluation", 1.0),
        ("hashing", 0.5),
        ("renaming", 0.8),
        ("last.json", 0.0),
        ("last.json", 0.6),
        ("best.json", 0.0),
        ("best.json", 1.0),
        ("removal", 0.0),
    ],
    "tdmpc2": [
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
}
KILLS: Table = {
    "td3bc": [("half an update", 0.45)],
    "odt": [("half an update", 0.45), ("hashing", 0.4), ("evaluation", 0.8)],
    "finetune": [
        *[("rollout", share) for share in (0.0, 0.3, 0.6, 0.95)],
        *[("episode log", share) for share in (0.2, 1.0)],
        *[("update", share) for share in (0.0, 0.5, 1.0)],
        *[("half an update", share) for share in (0.4, 0.8)],
        ("metrics", 0.5),
        *[("evaluation", share) for share in (0.0, 0.4, 0.8, 1.0)],
        ("hashing", 0.4),
        ("renaming", 0.7),
        *[("last.json", share) for share in (0.0, 0.5)],
        *[("best.json", share) for share in (0.0, 1.0)],
        ("removal", 0.5),
    ],
    "tdmpc2": [(point, share) for point in KINDS["tdmpc2"].points for share in (0.1, 0.5, 0.9)],
}
# A point, its pass since the run went on, and the step at which the run is then.
AGAIN = {
    "finetune": [("update", 1, 2), ("rollout", 1, 4), ("half an update", 1, 6), ("selection", 0, 8), ("saving", 0, 9)],
    "tdmpc2": [
        ("uniform decision", 3, 0),
        ("uniform decision", 2, 0),
        ("update", 1, 2),
        ("decision", 2, None),
        ("half an update", 2, None),
    ],
}
LOST = {
    "dt": ["rng/torch", "rng/sampler", "exp_avg"],
    "td3bc": ["rng/sampler", "target/actor", "target/critic", "actor/exp_avg", "critic/exp_avg"],
    "finetune": ["rng/torch", "rng/sampler", "exp_avg", "temperature", "step_offset"],
    "tdmpc2": ["rng/torch", "exp_avg", "value_scale", "rank-0/rng/plans-1", "rank-0/rng/batches", "rank-0/warm_start"],
}
STOPPED_BEFORE_LOSS = {
    "dt": ("update", 0.6),
    "td3bc": ("update", 0.6),
    "finetune": ("update", 0.6),
    "tdmpc2": ("half a tick", 0.75),
}


def cases(table: Table) -> list[tuple[str, str, float]]:
    return [(name, point, share) for name, found in table.items() for point, share in found]


def stopped(reference: Reference, run: Path, point: str, number: int, happen: Any = terminate) -> Any:
    """Start a run that is sent a signal when it passes a point for the n-th time; return the command's result."""
    with pytest.MonkeyPatch.context() as patch:
        reference.at(patch, point, number, happen)
        result = reference.begin(run)
    assert (result.exit_code, result.stdout) == (130, ""), result.stderr
    return result


def assert_told(result: Any, reference: Reference, run: Path, name: str = "SIGTERM") -> int:
    """Check what is said of a run that was stopped; return at which step it was."""
    step = load_checkpoint(choose_checkpoint(run, "last")).state["step"]
    error, hint = result.stderr.splitlines()[-2:]
    assert error == f"error: stopped by {name} at step {step}, everything is saved"
    assert hint == f"hint: resume with: gq {' '.join(reference.kind.words)} --out {run} --resume"
    return step


def test_the_runs_that_others_are_compared_with_pass_each_point(references: References) -> None:
    for name, kind in KINDS.items():
        num_passes = references(name).num_passes
        assert num_passes.keys() == kind.points.keys()
        assert all(num_passes.values()) or name in ("dt", "bc", "odt", "td3bc"), (name, num_passes)
    assert all(number > 1 for number in references("finetune").num_passes.values())


@pytest.mark.parametrize(("name", "point", "share"), cases(STOPS))
def test_a_stopped_run_resumes_exactly(
    tmp_path: Path, references: References, name: str, point: str, share: float
) -> None:
    reference, run = references(name), tmp_path / "run"
    number = reference.number(point, share)
    step = assert_told(stopped(reference, run, point, number), reference, run)
    assert step == number + 1 or point != "update"
    assert not (run / "README.md").exists()
    reference.resume(run)
    reference.assert_same(run)


@pytest.mark.parametrize("name", KINDS)
def test_a_run_that_was_stopped_by_ctrl_c_resumes_exactly(tmp_path: Path, references: References, name: str) -> None:
    reference, run = references(name), tmp_path / "run"
    number = reference.number("update", 0.4)
    result = stopped(reference, run, "update", number, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert assert_told(result, reference, run, "SIGINT") == number + 1
    reference.resume(run)
    reference.assert_same(run)


@pytest.mark.parametrize("name", AGAIN)
def test_a_run_stopped_again_and_again_resumes_exactly(tmp_path: Path, references: References, name: str) -> None:
    reference, run = references(name), tmp_path / "run"
    for point, number, expected in AGAIN[name]:
        with pytest.MonkeyPatch.context() as patch:
            reference.at(patch, point, number, terminate)
            result = gq(*reference.kind.words, "--out", run, "--resume") if run.exists() else reference.begin(run)
        assert result.exit_code == 130, result.stderr
        assert assert_told(result, reference, run) == expected or expected is None
    reference.resume(run)
    reference.assert_same(run)


@pytest.mark.parametrize(("name", "point", "share"), cases(BREAKS))
def test_a_run_that_broke_off_resumes_exactly(
    tmp_path: Path, references: References, name: str, point: str, share: float
) -> None:
    reference, run = references(name), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        reference.at(patch, point, reference.number(point, share), die)
        with pytest.raises(Killed):
            reference.begin(run)
    reference.resume(run)
    reference.assert_same(run)


@pytest.mark.parametrize("name", KINDS)
def test_a_finished_run_stays_as_it_is(tmp_path: Path, references: References, name: str) -> None:
    reference = references(name)
    run = copy_run(reference.run, tmp_path / name)  # its card names it
    card = (run / "README.md").read_bytes()
    reference.resume(run)
    reference.assert_same(run)
    assert (run / "README.md").read_bytes() == card


# --- what a checkpoint must hold --------------------------------------------------------------------------------------


def change_checkpoints(patch: pytest.MonkeyPatch, change: Any) -> None:
    """Let checkpoints be read with other tensors of the learner."""

    def load(folder: Path, **options: Any) -> checkpoints.Checkpoint:
        checkpoint = load_checkpoint(folder, **options)
        return replace(checkpoint, optimizer=change(checkpoint.optimizer))

    patch.setattr(checkpoints, "load_checkpoint", load)


@pytest.mark.parametrize(("name", "lost"), [(name, lost) for name, found in LOST.items() for lost in found])
def test_exactness_depends_on_everything_that_is_saved(
    tmp_path: Path, references: References, monkeypatch: pytest.MonkeyPatch, name: str, lost: str
) -> None:
    reference, run = references(name), tmp_path / "run"
    point, share = STOPPED_BEFORE_LOSS[name]
    stopped(reference, run, point, reference.number(point, share))

    def forget(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        assert any(key.startswith(lost) for key in tensors)
        fresh = torch.Generator().get_state()
        return {
            key: (fresh if "rng" in lost else torch.zeros_like(tensor)) if key.startswith(lost) else tensor
            for key, tensor in tensors.items()
        }

    change_checkpoints(monkeypatch, forget)
    reference.resume(run)
    monkeypatch.undo()
    with pytest.raises(AssertionError):
        reference.assert_same(run)


@pytest.mark.parametrize(("name", "lost"), [("dt", "exp_avg"), ("finetune", "temperature")])
def test_what_a_checkpoint_does_not_have_is_an_error(
    tmp_path: Path, references: References, monkeypatch: pytest.MonkeyPatch, name: str, lost: str
) -> None:
    reference, run = references(name), tmp_path / "run"
    stopped(reference, run, "update", 6)
    change_checkpoints(monkeypatch, lambda found: {key: found[key] for key in found if not key.startswith(lost)})
    result = gq(*reference.kind.words, "--out", run, "--resume", "-q")
    assert result.exit_code == 1
    assert "does not fit its run: KeyError" in result.stderr


# --- SIGKILL ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "point", "share"), cases(KILLS))
def test_a_killed_run_resumes_exactly(
    tmp_path: Path, references: References, name: str, point: str, share: float
) -> None:
    reference, run = references(name), tmp_path / "run"
    reference.kill(run, point, reference.number(point, share))
    reference.resume(run)
    reference.assert_same(run)


@pytest.mark.slow
def test_a_run_killed_in_every_phase_in_turn_resumes_exactly(tmp_path: Path, references: References) -> None:
    reference, run = references("finetune"), tmp_path / "run"
    reference.kill(run, "evaluation", 5)
    for point, number in [("last.json", 0), ("rollout", 3), ("best.json", 0), ("half an update", 4), ("selection", 0)]:
        reference.kill(run, point, number, resume=True)
    reference.resume(run)
    reference.assert_same(run)


def test_a_run_killed_before_it_wrote_anything_starts_again(tmp_path: Path, data: Path) -> None:
    run, flags = tmp_path / "run", as_flags({**SETTINGS, "train.steps": 2, "eval.every": 0})
    command = ("train", "dt", "-q", "--dataset", data, "--out", run, "--resume", *flags)
    run.mkdir()
    (run / "thesis.txt").touch()
    assert gq(*command).exit_code == 2, "what is there is no run"
    (run / "thesis.txt").rename(run / ".lock")
    result = gq(*command)
    assert (result.exit_code, result.stdout.strip()) == (0, str(run))


def run_to_its_end(data: Path, run: Path, *extra: str) -> None:
    """Train, or exit with what went wrong."""
    settings = {**SETTINGS, "train.steps": 150, "checkpoint.every": 10, "eval.every": 50}
    result = gq("train", "dt", "-q", "--dataset", data, "--out", run, *as_flags(settings), *extra)
    if result.exit_code:
        raise SystemExit(result.stderr)


def kill_and_resume(data: Path, run: Path, delay_s: float) -> None:
    """Start a run, kill it after the delay, and go on until it ends."""
    process = forked(run_to_its_end, data, run)
    time.sleep(delay_s)
    process.kill()
    process.join()
    started = (run / "config.toml").is_file()
    run_to_its_end(data, run, *(["--resume"] if started else []))


def kill_at_any_time(folder: Path, num_kills: int) -> None:
    """Kill runs after times that are spread over the whole of one."""
    began, data = time.monotonic(), write_hopper_file(folder / "data.hdf5")
    process = forked(run_to_its_end, data, folder / "whole")
    process.join()
    assert process.exitcode == 0
    duration_s, generator = time.monotonic() - began, random.Random(0)
    whole = Reference(KINDS["dt"], (), folder / "whole", {}, [], [])
    for index in range(num_kills):
        # Stratified, so that a few kills already cover start, middle and end.
        delay_s = duration_s * (index + generator.random()) / num_kills
        kill_and_resume(data, folder / f"killed-{index}", delay_s)
        whole.assert_same(folder / f"killed-{index}")


def test_runs_killed_at_any_time_resume_exactly(tmp_path: Path) -> None:
    kill_at_any_time(tmp_path, 3)


@pytest.mark.slow
def test_twenty_runs_killed_at_any_time_resume_exactly(tmp_path: Path) -> None:
    kill_at_any_time(tmp_path, 20)
