"""What large models need: blocks computed again, checkpoints written beside the loop."""

import multiprocessing
import os
import signal
import threading
import time
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gq import presets
from gq.config import BCConfig, DTConfig
from gq.data.trajectories import Trajectories
from gq.errors import GqError, Interrupted, UsageError
from gq.learn import train
from gq.policies.compute import choose_compute
from gq.runs import checkpoint as checkpoints
from gq.runs.checkpoint import checkpoint_folders, choose_checkpoint, load_checkpoint
from gq.training import offline
from gq.training import session as loops
from gq.training.building import build_learner, choose_placement
from gq.training.lifecycle import Background
from test_checkpoints import assert_same_run, resumed, stop_after
from test_sampler import make_trajectories
from tiny import SETTINGS, write_hopper_file

pytestmark = [pytest.mark.computes, pytest.mark.usefixtures("one_thread", "fast_disk")]

# --- activation checkpointing -----------------------------------------------------------------------------------------

SHAPE = {"model.embed_dim": 32, "model.num_layers": 6, "model.num_heads": 2, "model.num_kv_heads": 2}


def make_data() -> Trajectories:
    plain = make_trajectories([30, 20])
    arrays = {"observations": torch.randn(50, 11).numpy(), "actions": torch.rand(50, 3).numpy()}
    return Trajectories(**{**vars(plain), **arrays, "task": "Hopper-v5"})


def learn(config: DTConfig | BCConfig) -> tuple[list[dict[str, Tensor]], dict[str, Tensor], int]:
    """Take two updates; return their metrics, the weights, and the most bytes kept for a backward pass."""
    torch.manual_seed(0)
    data, compute = make_data(), choose_compute("cpu", "float32")
    learner = build_learner(config, data, choose_placement(config, data, compute))
    kept = 0
    most = [0]

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes * (not isinstance(tensor, torch.nn.Parameter))
        return tensor.detach()  # an output kept as it is would keep its own graph alive

    plain = learner.loss

    def loss(model: Any, batch: Any) -> dict[str, Tensor]:
        nonlocal kept
        kept = 0
        measured = plain(model, batch)
        most[0] = max(most[0], kept)
        return measured

    learner.loss = loss
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        metrics = [learner.update(step) for step in range(2)]
    return metrics, learner.model.state_dict(), most[0]


@pytest.mark.parametrize("backbone", ["qwen3", "gpt2"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_blocks_computed_again_learn_the_same_with_less_memory(backbone: str, dropout: float) -> None:
    config = presets.dt("1m").replace(
        {**SHAPE, "task": "Hopper-v5", "model.backbone": backbone, "model.dropout": dropout, "train.batch_size": 8}
    )
    metrics, weights, num_bytes = learn(config)
    metrics_again, weights_again, num_bytes_again = learn(config.replace({"train.checkpoint_activations": True}))
    for found, expected in zip([*metrics_again, weights_again], [*metrics, weights], strict=True):
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert num_bytes_again < num_bytes / 4


def test_parts_of_a_batch_need_less_memory_and_learn_the_same() -> None:
    config = presets.dt("1m").replace({**SHAPE, "task": "Hopper-v5", "model.dropout": 0.0, "train.batch_size": 8})
    metrics, weights, num_bytes = learn(config)
    metrics_again, weights_again, num_bytes_again = learn(config.replace({"train.num_micro_batches": 4}))
    for found, expected in zip([*metrics_again, weights_again], [*metrics, weights], strict=True):
        assert all(torch.allclose(found[name], value, atol=2e-6) for name, value in expected.items())
    assert num_bytes_again < num_bytes / 3


def test_a_network_without_blocks_is_refused() -> None:
    config = presets.bc().replace({"task": "Hopper-v5", "train.checkpoint_activations": True})
    with pytest.raises(UsageError, match=r"train\.checkpoint_activations is for transformers"):
        learn(config)


# --- checkpoints in the background ------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DTConfig:
    monkeypatch.setattr(offline, "LARGE", 1)
    data = write_hopper_file(tmp_path / "data.hdf5")
    return presets.dt("1m").replace({"data.dataset": str(data), "size": "tiny", **SETTINGS})


def slow_down(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.1) -> list[str]:
    """Let saving take a while; return a growing list of the threads that save."""
    plain, threads = loops.save_checkpoint, []

    def save(*arguments: Any, **settings: Any) -> Path:
        threads.append(threading.current_thread().name)
        time.sleep(seconds)
        return plain(*arguments, **settings)

    monkeypatch.setattr(loops, "save_checkpoint", save)
    return threads


def test_checkpoints_of_large_models_are_written_beside_the_loop(
    tmp_path: Path, config: DTConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = slow_down(monkeypatch)
    train(config, tmp_path / "run")
    assert threads
    assert all(name.startswith("background") for name in threads)
    monkeypatch.setattr(offline, "LARGE", 10**9)
    threads.clear()
    train(config, tmp_path / "plain")
    assert set(threads) == {"MainThread"}
    assert_same_run(tmp_path / "run", tmp_path / "plain")
    folders = [[folder.name for folder in checkpoint_folders(tmp_path / name)] for name in ("run", "plain")]
    assert folders[0] == folders[1]
    for name in folders[0]:  # although the weights moved on while they were written
        found, expected = (load_checkpoint(tmp_path / run / "checkpoints" / name) for run in ("run", "plain"))
        assert all(torch.equal(found.model[key], value) for key, value in expected.model.items())
        assert all(torch.equal(found.optimizer[key], value) for key, value in expected.optimizer.items())
        assert found.state["progress"]["step"] == expected.state["progress"]["step"]


def test_a_stop_waits_for_what_is_being_written(
    tmp_path: Path, config: DTConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config, tmp_path / "reference")
    with monkeypatch.context() as patch:
        slow_down(patch, 0.3)
        stop_after(patch, 7)
        with pytest.raises(Interrupted):
            train(config, tmp_path / "run")
    assert load_checkpoint(choose_checkpoint(tmp_path / "run", "last")).state["step"] == 7
    resumed(tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "reference")


def test_a_full_disk_ends_the_run_at_the_next_step(
    tmp_path: Path, config: DTConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise GqError("cannot write: No space left on device")

    monkeypatch.setattr(loops, "save_checkpoint", fail)
    plain, steps = loops.Session.count, []

    def count(self: loops.Session[Any], *arguments: Any) -> None:
        plain(self, *arguments)
        steps.append(self.progress.step)
        if self.progress.step == 5 and self.background and self.background._work:
            futures.wait([self.background._work])

    monkeypatch.setattr(loops.Session, "count", count)
    with pytest.raises(GqError, match="No space left"):
        train(config.replace({"eval.every": 0}), tmp_path / "run")
    assert steps in ([1, 2, 3, 4], [1, 2, 3, 4, 5])  # the thread may fail before the next step begins


def be_killed_while_saving(config: DTConfig, run: Path, wanted: int) -> None:
    """Train, and be killed in the middle of a checkpoint."""
    plain, calls = checkpoints.sha256, []

    def die(path: Path) -> str:
        calls.append(path)
        if len(calls) == wanted:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(path)

    checkpoints.sha256 = die  # type: ignore[assignment]
    train(config, run)


@pytest.mark.parametrize("wanted", [2, 5])
def test_a_kill_while_saving_loses_no_checkpoint(tmp_path: Path, config: DTConfig, wanted: int) -> None:
    train(config, tmp_path / "reference")
    child = multiprocessing.get_context("fork").Process(
        target=be_killed_while_saving, args=(config, tmp_path / "run", wanted)
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    train(config, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "reference")


def test_work_is_done_one_at_a_time_and_errors_are_raised_once() -> None:
    done: list[int] = []
    with Background() as background:
        background.check()
        background.wait()
        for number in range(3):
            background.begin(lambda number=number: (time.sleep(0.01), done.append(number)))  # type: ignore[misc]
        background.wait()
        assert done == [0, 1, 2]
        background.begin(lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            background.begin(lambda: done.append(3))
        background.check()
        background.begin(lambda: (time.sleep(0.05), done.append(4)))
    assert done == [0, 1, 2, 4], "leaving waits"
