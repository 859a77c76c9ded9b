"""TD-MPC2 in several processes, as torchrun starts them: one model, environments and replay of their own."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from breaking import repeated
from commandline import gq
from comparing import assert_equal
from gq.algos.tdmpc2 import SequenceBatch, TDMPC2Learner, UpdateDraws, draw
from gq.data.pieces import FIRST
from gq.data.steps import StepLog
from gq.models.world_config import WorldModelConfig, WorldUpdateConfig
from gq.models.world_model import WorldModel
from gq.runs.checkpoint import choose_checkpoint, load_checkpoint
from gq.training.processes import Processes
from processes import command_in_processes
from resumable import WORLD, WORLD_TASK
from tiny import as_flags

pytestmark = [pytest.mark.computes, pytest.mark.usefixtures("one_thread", "fast_disk")]

SETTINGS = {**WORLD, "train.decisions": 60, "train.num_environments": 1, "eval.every": 0, "checkpoint.every": 3}


def command(run: Path, **changes: Any) -> list[Any]:
    flags = as_flags(SETTINGS | changes)
    return ["train", "tdmpc2", "--task", WORLD_TASK, "--size", "1", "--out", run, "-q", *flags]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    command_in_processes(2, *command(run))
    return run


def steps_of(run: Path, rank: int) -> np.ndarray:
    position = load_checkpoint(choose_checkpoint(run, "last")).state["processes"][rank]["log"]
    return StepLog(run / "replay" / f"rank-{rank}", num_environments=1, width=7, position=position).read(0)


def test_two_processes_share_the_decisions_and_see_different_episodes(whole: Path) -> None:
    checkpoint = load_checkpoint(choose_checkpoint(whole, "last"))
    steps = [steps_of(whole, rank) for rank in range(2)]
    num_decisions = [int((rows[:, :, -1] != FIRST).sum()) for rows in steps]
    assert sum(num_decisions) == checkpoint.state["progress"]["decisions"] >= 60
    assert min(num_decisions) > 20
    assert checkpoint.state["progress"]["step"] == checkpoint.state["progress"]["decisions"] // 4
    assert not np.array_equal(steps[0][:5], steps[1][:5])
    assert (whole / "README.md").exists()
    steps_logged = [json.loads(line)["step"] for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert steps_logged == sorted(steps_logged), "one process writes the log"


def test_two_processes_resume_exactly(tmp_path: Path, whole: Path) -> None:
    run = tmp_path / "run"
    command_in_processes(2, *command(run, **{"train.decisions": 36}))
    command_in_processes(2, "train", "tdmpc2", "--out", run, "--resume", "--decisions", "60", "-q")
    found, expected = (load_checkpoint(choose_checkpoint(path, "last")) for path in (run, whole))
    assert_equal(found.model, expected.model)
    assert_equal(found.optimizer, expected.optimizer)
    assert repeated(found.state)["processes"] == repeated(expected.state)["processes"]
    assert all(np.array_equal(steps_of(run, rank), steps_of(whole, rank)) for rank in range(2))


def test_another_number_of_processes_is_refused(whole: Path) -> None:
    result = gq("train", "tdmpc2", "--out", whole, "--resume", "--decisions", "90")
    assert result.exit_code == 2
    error, hint = result.stderr.splitlines()[-2:]
    assert error == "error: the run began with 2 processes, not 1"
    assert hint == f"hint: resume with torchrun --nproc-per-node 2 -m gq train tdmpc2 --out {whole} --resume"


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    result = gq(*command(tmp_path / "run"))
    assert result.exit_code == 2
    assert "a batch of 4 cannot be divided among 3 processes" in result.stderr
    assert "--set train.batch_size=6" in result.stderr
    assert not (tmp_path / "run").exists()


# --- gradients --------------------------------------------------------------------------------------------------------

CONFIG = WorldModelConfig(encoder_dim=16, mlp_dim=16, latent_dim=16, num_q=2, dropout=0.0)


def make_learner(average: Any = None) -> TDMPC2Learner:
    torch.manual_seed(0)
    model = WorldModel(CONFIG, observation_dim=3, action_dim=2)
    return TDMPC2Learner(model, WorldUpdateConfig(), discount=0.99, autocast=nullcontext, average=average)


def make_batch(learner: TDMPC2Learner) -> tuple[SequenceBatch, UpdateDraws]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(4, 8, 3), (3, 8, 2), (3, 8)]
    observations, actions, rewards = (torch.randn(*shape, generator=generator) for shape in shapes)
    batch = SequenceBatch(observations, actions.tanh(), rewards, torch.zeros(3, 8, dtype=torch.bool))
    torch.manual_seed(2)
    return batch, draw(learner.model, batch)


def learn_from_half(rank: int, folder: str, averages: bool) -> None:
    """Take an update on one half of the batch; write the model."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        patch.setenv("RANK", str(rank))
        processes = Processes("cpu")
    learner = make_learner(processes.average if averages else None)
    batch, draws = make_batch(learner)
    half = slice(4 * rank, 4 * rank + 4)
    mine = SequenceBatch(*(part[:, half] for part in batch))
    noise = [draws.target_noise[:, half], draws.policy_noise[:, half]]
    for _ in range(2):
        learner.update(mine, draws._replace(target_noise=noise[0], policy_noise=noise[1]))
    torch.save(learner.model.state_dict(), f"{folder}/{rank}.pt")
    processes.close()


@pytest.mark.parametrize("averages", [True, False])
def test_halves_of_a_batch_in_two_processes_teach_what_the_whole_does(tmp_path: Path, averages: bool) -> None:
    multiprocessing.start_processes(learn_from_half, (str(tmp_path), averages), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    learner = make_learner()
    batch, draws = make_batch(learner)
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    for _ in range(2):
        learner.update(batch, draws)
    differences = {name: float((first[name] - second[name]).abs().max()) for name in first}
    assert (max(differences.values()) == 0) == averages
    if not averages:
        return
    for name, value in learner.model.state_dict().items():
        if not name.startswith("policy_head."):  # which depends on quantiles of the values in a process's own share
            assert torch.allclose(first[name], value, atol=2e-6), name
            assert name.startswith("target") or not torch.equal(first[name], before[name]), name
