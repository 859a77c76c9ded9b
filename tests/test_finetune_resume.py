"""Online Decision Transformers stopped or killed at any point end, bit for bit, like those that nothing disturbed."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import breaking
from breaking import Killed, Point, die, repeated, terminate
from commandline import copy_run, gq
from comparing import assert_equal
from gq.algos.odt import EntropyConstraint, ODTLearner, ODTPolicy
from gq.config import FinetuneConfig
from gq.data.replay import EpisodeLog, ReplayBuffer
from gq.errors import GqError, Interrupted
from gq.learn import finetune, prepare_finetuning
from gq.runs.checkpoint import choose_checkpoint, load_checkpoint
from gq.runs.folder import resume_config
from gq.training.finetuning import Evaluations, ReplayStore
from gq.training.online import OnlineProgress
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
# By step: what a network that has learnt nothing returns is luck, and so is which checkpoints are best so far.
SCORES = {0: 1.0, 4: 3.0, 8: 2.0, 12: 2.5} | {6: 0.5}  # finetuning: the best at 0 and 4; pretraining: at 6 and 12
pytestmark = [pytest.mark.computes, pytest.mark.usefixtures("one_thread", "fast_disk", "scores")]


# --- points of a run, at which something can happen -------------------------------------------------------------------


POINTS = {
    "rollout": Point(ODTPolicy, "act", lambda policy, *_: policy.stochastic),
    "episode log": Point(EpisodeLog, "append", is_torn=True),  # half of the record is written then
    "update": Point(ODTLearner, "update"),
    "half an update": Point(EntropyConstraint, "update"),  # the weights have moved, the temperature has not
    "selection": Point(Evaluations, "select"),
    "evaluation": Point(ODTPolicy, "act", lambda policy, *_: not policy.stochastic),
    **breaking.KEEPING,
}
at, kill = partial(breaking.at, POINTS), partial(breaking.kill_at, POINTS)


# --- a run and what is compared ---------------------------------------------------------------------------------------


class Reference(NamedTuple):
    """A run without interruption."""

    run: Path
    parent: Path
    num_passes: dict[str, int]  # of each point
    buffer: list[Tensor]

    def number(self, point: str, share: float) -> int:
        """Return which pass of a point comes after so much of the run."""
        return int(share * (self.num_passes[point] - 1))


def give_scores(patch: pytest.MonkeyPatch) -> None:
    plain = Session.log_evaluation

    def log_evaluation(self: Session[OnlineProgress], record: dict[str, float], _: float) -> bool:
        return plain(self, record, SCORES[self.progress.step])

    patch.setattr(Session, "log_evaluation", log_evaluation)


@pytest.fixture(scope="module")
def scores() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        give_scores(patch)
        yield


def start(parent: Path, run: Path, **settings: Any) -> None:
    config, trajectories = prepare_finetuning(parent, "last", {**FINETUNING, **settings})
    finetune(config, run, trajectories=trajectories)


def resume(run: Path, **settings: Any) -> None:
    _, config = resume_config("finetune", None, settings, run)
    assert isinstance(config, FinetuneConfig)
    finetune(config, run, resume=True)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    pretrain(write_hopper_file(folder / "data.hdf5"), folder / "parent")
    return folder / "parent"


def pretrain(data: Path, run: Path, *extra: str) -> None:
    flags = as_flags(PRETRAINING)
    result = gq("train", "odt", "-q", "--size", "tiny", "--dataset", data, "--out", run, *flags, *extra)
    assert (result.exit_code, result.stdout) == (0, f"{run}\n"), result.stderr


@pytest.fixture(scope="module")
def reference(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    run = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        passes = {point: at(patch, point, -1, die) for point in POINTS}
        buffers = watch_buffers(patch)
        start(parent, run)
    num_passes = {point: len(passed) for point, passed in passes.items()}
    assert all(num > 1 for num in num_passes.values()), num_passes
    return Reference(run, parent, num_passes, contents(buffers[-1]))


def watch_buffers(patch: pytest.MonkeyPatch) -> list[ReplayBuffer]:
    """Return a list that fills with the buffers that are made."""
    made: list[ReplayBuffer] = []
    plain = ReplayBuffer.__init__

    def init(self: ReplayBuffer, *arguments: Any, **settings: Any) -> None:
        plain(self, *arguments, **settings)
        made.append(self)

    patch.setattr(ReplayBuffer, "__init__", init)
    return made


@pytest.fixture
def buffers(monkeypatch: pytest.MonkeyPatch) -> list[ReplayBuffer]:
    return watch_buffers(monkeypatch)


def contents(buffer: ReplayBuffer) -> list[Tensor]:
    """Return all that decides what a buffer's draws give: its rows in their order, and the random state."""
    live = slice(buffer._start, buffer._end)
    rows = [array[live].clone() for array in buffer._rows]
    return [*rows[:-1], rows[-1] - buffer._start, buffer.generator.get_state()]


def assert_same_run(run: Path, reference: Path) -> None:
    """Metrics, both checkpoints with all moments and random states, the order of the buffer, and the episodes."""
    assert (run / "metrics.jsonl").read_text() == (reference / "metrics.jsonl").read_text()
    for which in ("last", "best"):
        folders = [choose_checkpoint(path, which) for path in (run, reference)]
        assert folders[0].name == folders[1].name
        found, expected = map(load_checkpoint, folders)
        assert_equal(found.model, expected.model)
        assert_equal(found.optimizer, expected.optimizer)
        assert repeated(found.state) == repeated(expected.state)
    steps = [
        [json.loads(line)["step"] for line in (path / "times.jsonl").read_text().splitlines()]
        for path in (run, reference)
    ]
    assert steps[0] == steps[1]
    episodes = Path("trajectories") / "episodes.bin"
    if (reference / episodes).exists():
        assert (run / episodes).read_bytes() == (reference / episodes).read_bytes()
    assert not list((run / "checkpoints").glob(".*")), "nothing half-written stays behind"
    assert (run / "README.md").exists()


def assert_same_buffer(buffer: ReplayBuffer, reference: Reference) -> None:
    for found, expected in zip(contents(buffer), reference.buffer, strict=True):
        assert torch.equal(found, expected)


# --- stopped ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "share"),
    [
        ("rollout", 0.0),
        ("rollout", 0.5),
        ("update", 0.4),
        ("half an update", 0.7),
        ("selection", 0.0),
        ("selection", 0.5),
        ("saving", 0.3),
    ],
)
def test_a_stopped_run_resumes_exactly(
    tmp_path: Path, reference: Reference, buffers: list[ReplayBuffer], point: str, share: float
) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        at(patch, point, reference.number(point, share), terminate)
        with pytest.raises(Interrupted) as stopped:
            start(reference.parent, run)
    assert stopped.value.exit_code == 130
    assert stopped.value.hint == f"go on with: gq finetune --out {run} --resume"
    step = load_checkpoint(choose_checkpoint(run, "last")).state["step"]
    assert str(stopped.value) == f"stopped by SIGTERM at step {step}, everything is saved"
    assert not (run / "README.md").exists()
    resume(run)
    assert_same_run(run, reference.run)
    assert_same_buffer(buffers[-1], reference)


def test_a_stop_in_a_rollout_loses_its_episodes_and_nothing_else(
    tmp_path: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it writes no checkpoint over the one that is there already."""
    run = tmp_path / "run"
    folders = at(monkeypatch, "renaming", -1, die)
    with pytest.MonkeyPatch.context() as patch:
        at(patch, "rollout", 2, terminate)
        with pytest.raises(Interrupted, match="at step 0"):
            start(reference.parent, run, **{"checkpoint.keep": 1})
    assert len(folders) == 1
    assert (run / "trajectories" / "episodes.bin").stat().st_size == 0
    with pytest.MonkeyPatch.context() as patch:
        at(patch, "rollout", 2, terminate)
        with pytest.raises(Interrupted, match="at step 0"):
            resume(run)
    assert len(folders) == 1
    resume(run)
    assert (run / "metrics.jsonl").read_bytes() == (reference.run / "metrics.jsonl").read_bytes()


def test_a_run_stopped_again_and_again_resumes_exactly(
    tmp_path: Path, reference: Reference, buffers: list[ReplayBuffer]
) -> None:
    run, points = tmp_path / "run", {"update": 2, "rollout": 4, "half an update": 6, "selection": 8, "saving": 9}
    for point, step in points.items():
        with pytest.MonkeyPatch.context() as patch:
            at(patch, point, 0 if point in ("selection", "saving") else 1, terminate)
            with pytest.raises(Interrupted, match=f"at step {step},"):
                resume(run) if run.exists() else start(reference.parent, run)
    resume(run)
    assert_same_run(run, reference.run)
    assert_same_buffer(buffers[-1], reference)


def test_ctrl_c_on_the_command_line_says_how_to_go_on(
    tmp_path: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at(patch, "update", 4, lambda: os.kill(os.getpid(), signal.SIGINT))
        flags = ("--checkpoint", "last", *as_flags(FINETUNING))
        result = gq("finetune", reference.parent, "--out", run, *flags)
    assert (result.exit_code, result.stdout) == (130, "")
    error, hint = result.stderr.splitlines()[-2:]
    assert error == "error: stopped by SIGINT at step 5, everything is saved"
    assert hint == f"hint: go on with: gq finetune --out {run} --resume"
    result = gq("finetune", "--out", run, "--resume", "-q")
    assert (result.exit_code, result.stdout) == (0, f"{run}\n"), result.stderr
    assert_same_run(run, reference.run)


# --- killed, within this process --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "share"),
    [
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
)
def test_a_run_that_broke_off_resumes_exactly(
    tmp_path: Path, reference: Reference, buffers: list[ReplayBuffer], point: str, share: float
) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        at(patch, point, reference.number(point, share), die)
        with pytest.raises(Killed):
            start(reference.parent, run)
    resume(run)
    assert_same_run(run, reference.run)
    assert_same_buffer(buffers[-1], reference)


@pytest.mark.parametrize("lost", ["rng/torch", "rng/sampler", "exp_avg", "temperature", "step_offset", "order", "row"])
def test_exactness_depends_on_everything_that_is_saved(
    tmp_path: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    run, load, restore = tmp_path / "run", ODTLearner.load_state_tensors, ReplayStore.restore
    with monkeypatch.context() as patch:
        at(patch, "update", 6, terminate)
        with pytest.raises(Interrupted):
            start(reference.parent, run)

    def forgetful(self: ODTLearner, tensors: dict[str, Tensor]) -> None:
        fresh = {"temperature/log": torch.tensor(-1.0), "step_offset": torch.tensor(0)}
        fresh |= {name: tensor for name, tensor in self.state_tensors().items() if name.startswith("rng/")}
        fresh |= {name: torch.zeros_like(tensor) for name, tensor in tensors.items() if name.startswith("exp_avg")}
        load(self, {name: fresh[name] if name.startswith(lost) else tensor for name, tensor in tensors.items()})

    def restore_otherwise(self: ReplayStore, names: list[str], num_episodes: int) -> None:
        restore(self, names[::-1] if lost == "order" else names[1:] if lost == "row" else names, num_episodes)

    monkeypatch.setattr(ODTLearner, "load_state_tensors", forgetful)
    monkeypatch.setattr(ReplayStore, "restore", restore_otherwise)
    if lost == "temperature":
        with pytest.raises(KeyError):
            resume(run)
        return
    resume(run)
    with pytest.raises(AssertionError):
        assert_same_run(run, reference.run)


# --- going on ---------------------------------------------------------------------------------------------------------


def test_more_iterations_can_be_added(tmp_path: Path, reference: Reference) -> None:
    run = tmp_path / "run"
    start(reference.parent, run, **{"online.iterations": 1})
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
    assert_same_run(run, reference.run)


def test_the_parent_is_not_needed_any_more_but_its_data_are(tmp_path: Path, reference: Reference) -> None:
    orphan, run = copy_run(reference.parent, tmp_path / "parent"), tmp_path / "run"
    start(orphan, run, **{"online.iterations": 1})
    shutil.rmtree(orphan)
    result = gq("finetune", "--out", run, "--resume", "--iterations", "2", "-q")
    assert (result.exit_code, result.stdout) == (0, f"{run}\n"), result.stderr
    data = reference.parent.parent / "data.hdf5"
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
    with pytest.MonkeyPatch.context() as patch:
        at(patch, "update", 3, terminate)
        with pytest.raises(Interrupted):
            start(reference.parent, runs / "stopped")
    result = gq("finetune", "--resume", "-q")
    assert (result.exit_code, result.stdout) == (0, f"{runs / 'stopped'}\n"), result.stderr
    assert_same_run(runs / "stopped", reference.run)
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
    with pytest.raises(GqError, match=r"episodes.bin was damaged: \d of 6 episodes are left in it") as refused:
        resume(run, **{"online.iterations": 4})
    assert refused.value.hint


# --- pretraining ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "number", "happen"),
    [("update", 6, terminate), ("half an update", 7, die), ("evaluation", 9, die), ("last.json", 1, die)],
)
def test_pretraining_resumes_exactly(
    tmp_path: Path, parent: Path, point: str, number: int, happen: Callable[[], None]
) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        at(patch, point, number, happen)
        if happen is die:
            with pytest.raises(Killed):
                pretrain(parent.parent / "data.hdf5", run)
        else:
            with pytest.raises(AssertionError, match="stopped by SIGTERM at step 7"):
                pretrain(parent.parent / "data.hdf5", run)
    pretrain(parent.parent / "data.hdf5", run, "--resume")
    assert_same_run(run, parent)


# --- SIGKILL ----------------------------------------------------------------------------------------------------------


KILLS = [
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
]


@pytest.mark.slow
@pytest.mark.parametrize(("point", "share"), KILLS)
def test_a_killed_run_resumes_exactly(
    tmp_path: Path, reference: Reference, buffers: list[ReplayBuffer], point: str, share: float
) -> None:
    run = tmp_path / "run"
    flags = ("--checkpoint", "last", "-q", *as_flags(FINETUNING))
    kill(point, reference.number(point, share), "finetune", reference.parent, "--out", run, *flags)
    result = gq("finetune", "--out", run, "--resume", "-q")
    assert (result.exit_code, result.stdout) == (0, f"{run}\n"), result.stderr
    assert_same_run(run, reference.run)
    assert_same_buffer(buffers[-1], reference)


@pytest.mark.slow
def test_a_run_killed_in_every_phase_in_turn_resumes_exactly(
    tmp_path: Path, reference: Reference, buffers: list[ReplayBuffer]
) -> None:
    run = tmp_path / "run"
    first = ("finetune", reference.parent, "--out", run, "--checkpoint", "last", *as_flags(FINETUNING))
    kill("evaluation", 5, *first)
    for point, number in [("last.json", 0), ("rollout", 3), ("best.json", 0), ("half an update", 4), ("selection", 0)]:
        kill(point, number, "finetune", "--out", run, "--resume")
    result = gq("finetune", "--out", run, "--resume", "-q")
    assert (result.exit_code, result.stdout) == (0, f"{run}\n"), result.stderr
    assert_same_run(run, reference.run)
    assert_same_buffer(buffers[-1], reference)


@pytest.mark.slow
@pytest.mark.parametrize(("point", "number"), [("half an update", 5), ("hashing", 4), ("evaluation", 12)])
def test_a_killed_pretraining_resumes_exactly(tmp_path: Path, parent: Path, point: str, number: int) -> None:
    run, data = tmp_path / "run", parent.parent / "data.hdf5"
    kill(point, number, "train", "odt", "--size", "tiny", "--dataset", data, "--out", run, *as_flags(PRETRAINING))
    pretrain(data, run, "--resume")
    assert_same_run(run, parent)
