"""Supervised training in several processes: the same batches, the same curve, one run that any number goes on with."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from commandline import child_environment, gq
from comparing import assert_equal
from gq import presets
from gq.algos.supervised import SupervisedLearner
from gq.config import OfflineConfig
from gq.data.windows import Share
from gq.errors import GqError, Interrupted
from gq.learn import train
from gq.runs.checkpoint import choose_checkpoint, load_checkpoint
from gq.training import session
from processes import in_processes
from tiny import SETTINGS, as_flags, write_hopper_file

pytestmark = pytest.mark.usefixtures("one_thread", "fast_disk")

CURVE_TOLERANCE = 1e-5  # of losses and weights after 12 updates in float32: sums in another order
PLAIN = {**SETTINGS, "model.num_layers": 2, "model.dropout": 0.0, "train.precision": "float32", "train.log_every": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hopper_file(tmp_path_factory.mktemp("data") / "data.hdf5")


TARGETS = (35.3, 37.5, 38.5)


def make_config(data: Path, algo: str = "dt", **settings: Any) -> OfflineConfig:
    base = {"dt": lambda: presets.dt("1m"), "odt": lambda: presets.odt("tiny", ""), "bc": presets.bc}[algo]()
    known = {key: value for key, value in PLAIN.items() if algo != "bc" or not key.startswith("model.num")}
    usual = {
        "data.dataset": str(data),
        "data.top_fraction": 1.0,
        "eval.targets": TARGETS[-1:] if algo == "odt" else TARGETS,
    }
    return base.replace({**known, **usual, **settings})


def work(config: OfflineConfig, run: Path, stopped_at: int) -> None:
    """Train; where a signal shall stop it, check where."""
    if not stopped_at:
        train(config, run, resume=run.exists())
        return
    with pytest.raises(Interrupted, match=f"at step {stopped_at},"):
        train(config, run)


def train_in(num_processes: int, config: OfflineConfig, run: Path, stopped_at: int = 0) -> Path:
    in_processes(num_processes, work, config, run, stopped_at)
    return run


def curve(run: Path, name: str = "loss") -> list[float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record[name] for record in records if name in record]


def weights(run: Path) -> dict[str, Tensor]:
    return load_checkpoint(choose_checkpoint(run, "last")).model


def difference(run: Path, other: Path) -> float:
    """Return the largest difference of any loss, gradient norm or weight; infinite if their numbers differ."""
    found, expected = weights(run), weights(other)
    if found.keys() != expected.keys() or len(curve(run)) != len(curve(other)):
        return float("inf")
    differences = [float((found[name] - expected[name]).abs().max()) for name in expected]
    for name in ("loss", "gradient_norm"):
        differences += [
            abs(a - b) / max(1.0, abs(b)) for a, b in zip(curve(run, name), curve(other, name), strict=True)
        ]
    return max(differences)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    run = tmp_path_factory.mktemp("alone") / "run"
    train(make_config(data), run)
    return run


@pytest.mark.parametrize(("num_processes", "parallel"), [(2, "replicated"), (4, "replicated"), (2, "sharded")])
def test_processes_learn_what_one_learns_from_the_same_batches(
    tmp_path: Path, data: Path, alone: Path, num_processes: int, parallel: str
) -> None:
    run = train_in(num_processes, make_config(data, **{"train.parallel": parallel}), tmp_path / "run")
    assert len(curve(run)) == 12
    assert difference(run, alone) < CURVE_TOLERANCE
    found, expected = (load_checkpoint(choose_checkpoint(path, "last")) for path in (run, alone))
    assert found.optimizer.keys() - expected.optimizer.keys() == {
        f"rank-{rank}/rng/torch" for rank in range(1, num_processes)
    }
    for name in ("exp_avg/backbone.blocks.0.gate_up.weight", "exp_avg_sq/embed_return.bias"):
        assert torch.allclose(found.optimizer[name], expected.optimizer[name], atol=CURVE_TOLERANCE), name
    assert found.state["progress"]["best_step"] == expected.state["progress"]["best_step"]
    for target in TARGETS:  # each by another process, where there are enough
        evaluated = f"eval/target_{target:g}/return_mean"
        assert len(curve(run, evaluated)) == 2
        assert curve(run, evaluated) == pytest.approx(curve(alone, evaluated), abs=1e-3)
    assert (run / "README.md").exists()


@pytest.mark.parametrize("algo", ["bc", "odt"])
def test_the_other_algorithms_learn_the_same_way(tmp_path: Path, data: Path, algo: str) -> None:
    settings: dict[str, Any] = {"eval.every": 0}
    if algo == "odt":
        # Without the entropy: its draws are each process's own.
        settings |= {"model.acting_context": 4, "model.num_kv_heads": 2, "entropy.mode": "off"}
    config = make_config(data, algo, **settings)
    train(config, tmp_path / "alone")
    assert difference(train_in(2, config, tmp_path / "run"), tmp_path / "alone") < CURVE_TOLERANCE


def test_shares_that_overlap_would_be_noticed(
    tmp_path: Path, data: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Share, "of", lambda share, anchors: anchors.chunk(share.num_processes)[0])
    assert difference(train_in(2, make_config(data), tmp_path / "run"), alone) > 100 * CURVE_TOLERANCE


def stop(monkeypatch: pytest.MonkeyPatch, rank: int, num_updates: int, number: int) -> None:
    """Let a process send itself a signal after so many updates."""
    plain = SupervisedLearner.update

    def update(self: SupervisedLearner, step: int) -> dict[str, Tensor]:
        metrics = plain(self, step)
        if step + 1 == num_updates and os.environ["RANK"] == str(rank):
            os.kill(os.getpid(), number)
        return metrics

    monkeypatch.setattr(SupervisedLearner, "update", update)


@pytest.mark.parametrize("parallel", ["replicated", "sharded"])
def test_a_signal_to_one_process_stops_all_and_the_run_resumes_exactly(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, parallel: str
) -> None:
    config = make_config(data, **{"train.parallel": parallel, "model.dropout": 0.2})
    whole = train_in(2, config, tmp_path / "whole")
    monkeypatch.setattr(session, "LOOK_EVERY_S", 0)
    with monkeypatch.context() as patch:
        stop(patch, 1, 7, signal.SIGTERM)
        run = train_in(2, config, tmp_path / "run", stopped_at=7)
    assert len(curve(run)) == 7
    train_in(2, config, run)
    found, expected = (load_checkpoint(choose_checkpoint(path, "last")) for path in (run, whole))
    assert_equal(found.model, expected.model)
    assert_equal(found.optimizer, expected.optimizer)
    assert (run / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()


@pytest.mark.parametrize(("before", "after"), [((2, "sharded"), (4, "replicated")), ((1, "auto"), (2, "sharded"))])
def test_another_number_of_processes_goes_on(
    tmp_path: Path,
    data: Path,
    alone: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: tuple[int, str],
    after: tuple[int, str],
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(session, "LOOK_EVERY_S", 0)
    with monkeypatch.context() as patch:
        stop(patch, 0, 5, signal.SIGTERM)
        train_in(before[0], make_config(data, **{"train.parallel": before[1]}), run, stopped_at=5)
    train_in(after[0], make_config(data, **{"train.parallel": after[1]}), run)
    assert difference(run, alone) < CURVE_TOLERANCE


def test_a_killed_process_ends_the_others_with_a_reason(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop(monkeypatch, 1, 6, signal.SIGKILL)
    context = in_processes(2, work, make_config(data), tmp_path / "run", 0, join=False)
    survivor, killed = context.processes
    survivor.join()
    killed.join()
    assert (survivor.exitcode, killed.exitcode) == (1, -signal.SIGKILL)
    report = Path(context.error_files[0]).read_bytes().decode(errors="replace")
    assert "GqError: another process of this run ended" in report
    assert load_checkpoint(choose_checkpoint(tmp_path / "run", "last")).state["step"] == 4


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(GqError, match="a batch of 8 cannot be divided among 3 processes"):
        train(make_config(data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def torchrun(num_processes: int, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """Run a command as people do in several processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    return subprocess.run(
        [*launcher, "-m", "gq", *map(str, arguments)],
        env=child_environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_torchrun_starts_processes_of_which_one_speaks(tmp_path: Path, data: Path) -> None:
    run = tmp_path / "run"
    command = ["train", "dt", "--dataset", data, "--out", run, *as_flags(SETTINGS)]
    result = torchrun(2, *command)
    assert (result.returncode, result.stdout.splitlines()[-1]) == (0, str(run)), result.stderr
    assert result.stderr.count("run: ") == 1
    assert "2 processes with the whole model each" in result.stderr
    assert json.loads(gq("eval", run, "--episodes", "1", "--json").stdout)
