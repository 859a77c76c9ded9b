"""Finetuning from end to end: budgets, episodes and labels, buffer, log, what it takes over and what it refuses."""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Sequence
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from commandline import copy_run, document, gq
from comparing import assert_equal
from gq.algos.odt import ODTLearner
from gq.data.replay import EpisodeLog, LoggedEpisode, ReplayBuffer
from gq.data.returns import online_target
from gq.datasets.loading import load_dataset
from gq.envs.scores import GQ_V5
from gq.learn import finetune, prepare_finetuning
from gq.policies.loading import Acting
from gq.results.evaluate import evaluate
from gq.rollouts import episodes as rollout
from gq.rollouts.collect import Recipe, episode_start
from gq.rollouts.episodes import EpisodeRequest
from gq.rollouts.statistics import Episode, Summary, summarise
from gq.runs.checkpoint import checkpoint_folders, choose_checkpoint, load_checkpoint
from gq.runs.folder import SELECTION_SEED, lock_run
from gq.runs.metrics import Silence
from gq.training import finetuning, online
from gq.training.finetuning import EXPLORATION_SEED, Evaluations
from gq.training.online import FinetuneResult
from gq.training.session import Session
from simulator import make
from tiny import SETTINGS, as_flags, write_hopper_file

PRETRAINING = {
    **SETTINGS,
    "model.backbone": "qwen3",
    "model.num_kv_heads": 1,
    "model.acting_context": 2,
    "optim.optimizer": "lamb",
    "optim.learning_rate": 1e-3,
    "optim.warmup_steps": 24,
    "optim.schedule": "constant",
    "eval.targets": [40.0],
}
ONLINE = {
    "online.environment_steps": 0,
    "online.rollouts": 1,
    "online.buffer_start": "top",
    "online.optimizer_state": "carry",
    "online.collapse": 0.0,
    "online.iterations": 4,
    "online.updates_per_rollout": 3,
    "online.buffer_size": 4,
    "online.final_episodes": 0,
    "eval.every": 0,
    "checkpoint.every": 0,
    "train.log_every": 2,
}
TARGET = 40.0
NOMINAL_RATE, NUM_PARENT_STEPS, WARMUP_STEPS = 1e-3, 12, 24
pytestmark = [pytest.mark.computes, pytest.mark.usefixtures("fast_disk")]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of `gq train odt` whose dataset lies beside it."""
    folder = tmp_path_factory.mktemp("pretrained")
    data = write_hopper_file(folder / "data.hdf5")
    flags = as_flags(PRETRAINING)
    result = gq("train", "odt", "-q", "--size", "tiny", "--dataset", data, "--out", folder / "parent", *flags)
    assert (result.exit_code, result.stdout) == (0, f"{folder / 'parent'}\n"), result.stderr
    return folder / "parent"


@pytest.fixture(scope="module")
def finished(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finetuning run that no test changes."""
    run = tmp_path_factory.mktemp("finetuned") / "run"
    finetuned(parent, run, **{"checkpoint.every": 3, "checkpoint.keep": 100})
    return run


def finetuned(parent: Path, run: Path, listener: Any = None, **settings: Any) -> FinetuneResult:
    config, trajectories = prepare_finetuning(parent, "last", {**ONLINE, **settings})
    return finetune(config, run, trajectories=trajectories, listener=listener)


def records(run: Path, key: str = "step") -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl that have a key."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if key in line]


def evaluation_steps(run: Path) -> list[int]:
    """Return after how many updates each evaluation was."""
    return [record["step"] for record in records(run, f"eval/target_{TARGET:g}/return_mean")]


def state_of(run: Path, which: str = "last") -> dict[str, Any]:
    return load_checkpoint(choose_checkpoint(run, which)).state


def weights_of(run: Path, which: str = "last") -> dict[str, Tensor]:
    return load_checkpoint(choose_checkpoint(run, which)).model


def summary(mean: float) -> Summary:
    return summarise([Episode(0, TARGET, mean, 10, True)], None)[0]


def script_evaluations(monkeypatch: pytest.MonkeyPatch, returns: Sequence[float]) -> None:
    """Let the evaluations that select give these mean returns."""
    values = iter(returns)
    monkeypatch.setattr(Evaluations, "select", lambda self: [summary(next(values))])


def recorded_rewards(number: int) -> np.ndarray:
    """Return the rewards of a recorded episode."""
    return np.random.default_rng(number).uniform(-1, 3, 5 + number).astype(np.float32)


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let episode i be the same whatever is asked of it, and without a simulator."""

    def record_episodes(
        _policy: Any, _environments: Any, numbers: Sequence[int], _recipe: Recipe, **callbacks: Callable[..., Any]
    ) -> None:
        for number in numbers:
            earned, generator = recorded_rewards(number), np.random.default_rng(100 + number)
            observations = list(generator.standard_normal((len(earned), 11)).astype(np.float32))
            actions = list(generator.uniform(-1, 1, (len(earned), 3)).astype(np.float32))
            episode = LoggedEpisode(np.stack(observations), np.stack(actions), earned, terminated=True)
            callbacks["finished"](number, episode)

    monkeypatch.setattr(finetuning, "record_episodes", record_episodes)


# --- the command line -------------------------------------------------------------------------------------------------


def test_pretrain_finetune_and_evaluate_by_the_command_line(tmp_path: Path) -> None:
    data = write_hopper_file(tmp_path / "data.hdf5")
    pretrained = document("train", "odt", "--size", "tiny", "--dataset", data, *as_flags(PRETRAINING))
    assert (pretrained["task"], pretrained["steps"]) == ("Hopper-v5", 12)
    assert [e["target_return"] for e in pretrained["evaluation"]] == [TARGET]
    shape = ("--iterations", "2", "--rollouts", "2", "--updates", "2")
    done = document("finetune", "--latest", *shape, *as_flags({**ONLINE, "online.final_episodes": 2}))
    run = Path(done["run"])
    assert done["parent"] == pretrained["run"]
    assert (done["task"], done["iterations"], done["steps"], done["collapsed"]) == ("Hopper-v5", 2, 8, False)
    with EpisodeLog(run / "trajectories" / "episodes.bin", observation_dim=11, action_dim=3) as log:
        assert list(log.lengths) == [0, 1, 2, 3]
        assert log.num_rows == done["environment_steps"] == records(run, "environment_steps")[-1]["environment_steps"]
    assert done["seconds"] > done["rollout_seconds"] > 0
    assert done["evaluation_seconds"] > 0
    (compared,) = done["comparison"]
    assert (compared["target_return"], compared["num_episodes"], compared["reference"]) == (TARGET, 2, "gq-v5")
    assert compared["difference_mean"] == pytest.approx(compared["end_mean"] - compared["start_mean"])
    evaluated = document("eval", "--latest", "--episodes", "2")
    assert (evaluated["run"], evaluated["stochastic"]) == (run.name, False)
    assert evaluated["results"][0]["return_mean"] == compared["end_mean"], "of the best checkpoint, on the same seeds"
    sampled = document("eval", "--latest", "--episodes", "2", "--stochastic")
    assert (sampled["stochastic"], sampled["checkpoint"]) == (True, evaluated["checkpoint"])
    assert sampled["results"][0]["return_mean"] != evaluated["results"][0]["return_mean"]


def test_the_closing_table_compares_start_and_end(parent: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = as_flags({**ONLINE, "online.iterations": 1, "online.final_episodes": 1})
    result = gq("finetune", parent, "--out", run, *flags)
    assert result.exit_code == 0, result.stderr
    for word in ("target", "offline", "online", "difference", "score", "episodes", str(run)):
        assert word in result.stdout
    assert f"next: gq eval {run}" in result.stderr
    assert "in 1 iterations, 3 updates" in result.stderr
    assert "environment_steps = 7" in gq("finetune", parent, "--dry-run", "--steps", "7").stdout


@pytest.mark.parametrize("stochastic", [False, True])
def test_evaluating_a_checkpoint_twice_gives_the_same_returns(finished: Path, stochastic: bool) -> None:
    acting, two = Acting(stochastic=stochastic, device="cpu"), EpisodeRequest(2)
    first = evaluate(finished, acting, two).results
    torch.manual_seed(123)
    assert evaluate(finished, acting, two).results == first
    assert evaluate(finished, acting, EpisodeRequest(2, seed=1)).results != first
    assert evaluate(finished, dataclasses.replace(acting, stochastic=not stochastic), two).results != first


# --- evaluations and budgets ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("recording")
@pytest.mark.parametrize("every", [0, 1, 15])
def test_evaluations_come_first_last_and_where_an_iteration_passes_a_multiple(
    parent: Path, tmp_path: Path, every: int
) -> None:
    run = tmp_path / "run"
    finetuned(parent, run, **{"eval.every": every, "online.iterations": 6, "online.updates_per_rollout": 2})
    rollouts = records(run, "iteration")
    assert [(r["iteration"], r["step"]) for r in rollouts] == [(i + 1, 2 * i) for i in range(6)]
    ends = [r["environment_steps"] for r in rollouts]
    expected = {0: 0, 12: ends[-1]}
    for iteration, (before, after) in enumerate(pairwise([0, *ends]), 1):
        if every and after // every > before // every:
            expected[2 * iteration] = after
    assert evaluation_steps(run) == sorted(expected)
    assert len(expected) == {0: 2, 1: 7}.get(every, len(expected))
    assert 2 < len(expected) < 7 or every != 15, "some iterations end with an evaluation and some do not"
    assert records(run)[0]["step"] == 0
    assert f"eval/target_{TARGET:g}/return_mean" in records(run)[0], "before anything else"
    assert state_of(run)["progress"]["evaluated_at"] == ends[-1]


@pytest.mark.usefixtures("recording")
@pytest.mark.parametrize("num_steps", [1, 20])
def test_a_run_stops_with_the_iteration_that_uses_its_environment_steps_up(
    parent: Path, tmp_path: Path, num_steps: int
) -> None:
    run = tmp_path / "run"
    given = {"online.environment_steps": num_steps, "online.iterations": 0, "online.rollouts": 2}
    result = finetuned(parent, run, **given)
    ends = [0] + [r["environment_steps"] for r in records(run, "iteration")]
    assert ends[-1] == result.environment_steps >= num_steps > ends[-2]
    assert result.iterations == len(ends) - 1
    assert result.steps == 2 * 3 * result.iterations == evaluation_steps(run)[-1], "its updates are taken too"


@pytest.mark.usefixtures("recording")
def test_the_first_budget_that_is_used_up_ends_the_run(parent: Path, tmp_path: Path) -> None:
    both = {"online.environment_steps": 12, "online.iterations": 100, "online.minutes": 60.0}
    assert finetuned(parent, tmp_path / "steps", **both).environment_steps == 5 + 6 + 7
    assert finetuned(parent, tmp_path / "iterations", **both | {"online.iterations": 1}).iterations == 1


@pytest.mark.usefixtures("recording")
def test_a_run_stops_with_the_iteration_that_uses_its_minutes_up(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every look at the clock takes five seconds, so that the minute may end between any two of them."""
    run, ticks = tmp_path / "run", count(step=5)
    monkeypatch.setattr("gq.training.session.monotonic", lambda: float(next(ticks)))
    given = {"online.iterations": 0, "online.minutes": 2.0, "train.log_every": 1}
    result = finetuned(parent, run, **given)
    times = {line["step"]: line["seconds"] for line in map(json.loads, (run / "times.jsonl").read_text().splitlines())}
    assert result.steps % 3 == 0
    assert times[result.steps - 3] < 120 <= times[result.steps]
    assert result.seconds >= times[result.steps]
    assert evaluation_steps(run) == [0, result.steps], "an end by the clock is evaluated as well"


def test_a_run_without_any_budget_is_refused(parent: Path, tmp_path: Path) -> None:
    result = gq("finetune", parent, "--steps", "0", "--out", tmp_path / "run")
    assert (result.exit_code, result.stdout) == (2, "")
    error, hint = result.stderr.splitlines()
    assert error == "error: nothing would ever end this run"
    for option in ("--steps", "--iterations", "--minutes"):
        assert option in hint
        assert gq("finetune", parent, "--steps", "0", option, "1", "--dry-run").exit_code == 0
    assert not (tmp_path / "run").exists()


# --- episodes, labels, targets ----------------------------------------------------------------------------------------


@pytest.fixture
def buffers(monkeypatch: pytest.MonkeyPatch) -> list[ReplayBuffer]:
    """Return a list that fills with the buffers that are made."""
    made: list[ReplayBuffer] = []
    plain = ReplayBuffer.__init__

    def init(self: ReplayBuffer, *arguments: Any, **settings: Any) -> None:
        plain(self, *arguments, **settings)
        made.append(self)

    monkeypatch.setattr(ReplayBuffer, "__init__", init)
    return made


def labels_of(buffer: ReplayBuffer) -> list[Tensor]:
    """Return the returns-to-go of each trajectory."""
    live = buffer._rows.returns_to_go[buffer._start : buffer._end, 0]
    return list(live.split([entry.num_rows for entry in buffer.entries]))


@pytest.mark.usefixtures("recording")
def test_what_is_asked_of_an_episode_is_in_no_label(parent: Path, tmp_path: Path, buffers: list[ReplayBuffer]) -> None:
    for name, target in (("once", 60.0), ("ten times", 600.0)):
        finetuned(parent, tmp_path / name, **{"online.targets": [target]})
    labels, larger = map(labels_of, buffers)
    for number in range(4):
        assert torch.equal(labels[number], larger[number])
        earned = np.cumsum(recorded_rewards(number)[::-1].astype(np.float64))[::-1].astype(np.float32)
        assert np.array_equal(labels[number].numpy(), earned), "summed from what was earned"
    assert_equal(weights_of(tmp_path / "ten times"), weights_of(tmp_path / "once"))
    assert [r["rollout/target_mean"] for r in records(tmp_path / "ten times", "iteration")] == [600.0] * 4
    shortfalls = [r["rollout/shortfall_mean"] for r in records(tmp_path / "ten times", "iteration")]
    assert shortfalls == pytest.approx([600 - float(recorded_rewards(i).sum()) for i in range(4)], rel=1e-6)


def test_what_is_asked_of_an_episode_changes_the_episode(parent: Path, tmp_path: Path, finished: Path) -> None:
    finetuned(parent, tmp_path / "run", **{"online.targets": [4000.0], "online.iterations": 1})
    assert not np.array_equal(episodes_of(tmp_path / "run")[0].actions[:8], episodes_of(finished)[0].actions[:8])


def episodes_of(run: Path) -> list[LoggedEpisode]:
    with EpisodeLog(run / "trajectories" / "episodes.bin", observation_dim=11, action_dim=3) as log:
        return [log.read(number) for number in log.lengths]


def test_the_log_holds_what_the_simulator_gave(finished: Path) -> None:
    environment = make("Hopper-v5")
    episodes = episodes_of(finished)
    assert len(episodes) == 4
    for number, episode in enumerate(episodes):
        observation, _ = environment.reset(seed=episode_start(EXPLORATION_SEED, number)[0])
        for step, action in enumerate(episode.actions):
            assert np.array_equal(episode.observations[step], np.asarray(observation, np.float32))
            observation, reward, terminated, _, _ = environment.step(action)
            assert episode.rewards[step] == np.float32(reward)
        assert terminated
        assert episode.terminated
    rollouts = records(finished, "iteration")
    returns = [episode.rewards.sum(dtype=np.float64) for episode in episodes]
    assert [r["rollout/return_mean"] for r in rollouts] == pytest.approx(returns)
    assert [r["rollout/length_mean"] for r in rollouts] == [len(episode.rewards) for episode in episodes]
    assert len({episode.observations[0].tobytes() for episode in episodes}) == 4, "they start differently"


def test_delayed_rewards_count_from_the_start(parent: Path, tmp_path: Path, buffers: list[ReplayBuffer]) -> None:
    finetuned(parent, tmp_path / "run", **{"data.mode": "delayed", "online.iterations": 2})
    (buffer,) = buffers
    for labels, entry in zip(labels_of(buffer), buffer.entries, strict=True):
        assert torch.equal(labels, torch.full_like(labels, entry.episode_return)), entry.name
    assert [entry.name.partition("/")[0] for entry in buffer.entries] == ["offline"] * 2 + ["online"] * 2


def test_the_online_target_is_twice_the_highest_above_a_random_policys_return(parent: Path) -> None:
    low = GQ_V5["Hopper-v5"].minimum
    assert low == pytest.approx(18.05, abs=1)
    returns = load_dataset(str(parent.parent / "data.hdf5")).returns
    reachable = returns.max() + 0.1 * (returns.max() - returns.min())
    below = float(low + (reachable - low) / 3)
    config, _ = prepare_finetuning(parent, "last", {"eval.targets": [below, below - 5]})
    assert config.online.targets == (pytest.approx(low + 2 * (below - low), rel=1e-5),)
    config, _ = prepare_finetuning(parent, "last", {"eval.targets": [float(reachable)]})
    assert config.online.targets == (pytest.approx(reachable, rel=1e-5),), "no more than a tenth above the data"
    config, _ = prepare_finetuning(parent, "last", {"online.targets": [7.0]})
    assert config.online.targets == (7.0,), "unless it is given"


@pytest.mark.parametrize(("target", "low"), [(-100.0, -296.17), (-5.0, -1500.0), (0.0, -20.0), (3600.0, 18.05)])
def test_the_online_target_is_above_the_target_for_negative_returns_too(target: float, low: float) -> None:
    asked = online_target(target, low, np.array([low, 2 * target - low]))
    assert asked > target
    assert asked - low == pytest.approx(2 * (target - low), rel=1e-5)


def test_no_return_is_asked_online_that_nobody_can_earn() -> None:
    returns = np.array([-43.0, -12.0, -4.0])  # a Reacher's: none is above 0
    assert online_target(-4.0, -43.0, returns) == pytest.approx(-0.1)


def test_episodes_of_an_iteration_run_at_once_with_the_targets_in_turn(parent: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = {"online.rollouts": 3, "online.targets": [30.0, 60.0], "online.iterations": 2, "online.buffer_size": 5}
    result = finetuned(parent, run, **given)
    assert (result.iterations, result.steps) == (2, 18)
    first, second = records(run, "iteration")
    assert (first["step"], second["step"]) == (0, 9)
    assert [first["rollout/target_mean"], second["rollout/target_mean"]] == [40.0, 50.0]
    episodes = episodes_of(run)
    returns = np.array([episode.rewards.sum(dtype=np.float64) for episode in episodes]).reshape(2, 3)
    for record, earned in zip((first, second), returns, strict=True):
        found = [record[f"rollout/return_{name}"] for name in ("min", "mean", "max")]
        assert found == pytest.approx([earned.min(), earned.mean(), earned.max()])
    assert second["environment_steps"] == sum(len(episode.rewards) for episode in episodes)
    assert state_of(run)["buffer"] == [f"online/{i}" for i in range(1, 6)]


# --- the buffer -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("recording")
@pytest.mark.parametrize(
    ("start", "num_rollouts", "size"),
    [("top", 1, 4), ("all", 1, 4), ("none", 1, 4), ("top", 3, 4), ("top", 5, 2), ("top", 1, 100), ("all", 2, 1)],
)
def test_the_oldest_leave_the_buffer_first(
    parent: Path, tmp_path: Path, start: str, num_rollouts: int, size: int
) -> None:
    run = tmp_path / "run"
    given = {"online.buffer_start": start, "online.rollouts": num_rollouts, "online.buffer_size": size}
    every = {"online.updates_per_rollout": 1, "checkpoint.every": num_rollouts, "checkpoint.keep": 100}
    finetuned(parent, run, **given, **every)
    returns = load_dataset(str(parent.parent / "data.hdf5")).returns
    by_return = sorted(range(6), key=lambda number: returns[number])
    offline = [f"offline/{number}" for number in {"top": by_return, "all": range(6), "none": []}[start]]
    for iteration in range(5):
        arrived = [f"online/{number}" for number in range(iteration * num_rollouts)]
        assert state_of(run, str(iteration * num_rollouts))["buffer"] == (offline[-size:] + arrived)[-size:]
    shares = [record["buffer/online_share"] for record in records(run, "iteration")]
    assert shares == sorted(shares)
    rows = [record["buffer/trajectories"] for record in records(run, "iteration")]
    assert rows == [min(size, len(offline[-size:]) + (i + 1) * num_rollouts) for i in range(4)]


def test_the_log_describes_the_buffer(parent: Path, finished: Path) -> None:
    lengths = {entry: len(episode.rewards) for entry, episode in enumerate(episodes_of(finished))}
    earned = {
        entry: float(episode.rewards.sum(dtype=np.float64)) for entry, episode in enumerate(episodes_of(finished))
    }
    data = load_dataset(str(parent.parent / "data.hdf5"))
    best = int(data.returns.argmax())
    third = records(finished, "iteration")[2]
    returns = [float(data.returns[best]), earned[0], earned[1], earned[2]]
    assert third["buffer/online_share"] == 0.75
    assert third["buffer/transitions"] == data.lengths[best] + lengths[0] + lengths[1] + lengths[2]
    found = [third[f"buffer/return_{name}"] for name in ("min", "median", "max")]
    assert found == pytest.approx([min(returns), np.median(returns), max(returns)], rel=1e-5)


# --- what is logged and kept ------------------------------------------------------------------------------------------


def test_updates_rollouts_and_evaluations_are_logged(finished: Path) -> None:
    described = {"nll", "entropy", "temperature", "sigma_p10", "sigma_p50", "sigma_p90", "saturated", "clamped"}
    updates = records(finished, "nll")
    assert [record["step"] for record in updates] == [2, 4, 6, 8, 10, 12]
    for record in updates:
        assert record.keys() == described | {"step", "environment_steps", "loss", "gradient_norm"}
        assert record["loss"] == pytest.approx(record["nll"] - record["temperature"] * record["entropy"], rel=1e-3)
        assert 0 < record["sigma_p10"] < record["sigma_p50"] < record["sigma_p90"] < math.exp(2)
        assert 0 <= record["saturated"] <= 1
        assert 0 <= record["clamped"] <= 1
    rollout_keys = {f"rollout/{name}" for name in ("return_mean", "return_min", "return_max", "length_mean")}
    buffer_keys = {"trajectories", "transitions", "online_share", "return_min", "return_median", "return_max"}
    for record in records(finished, "iteration"):
        others = {"step", "iteration", "environment_steps", "rollout/target_mean", "rollout/shortfall_mean"}
        assert record.keys() == others | rollout_keys | {f"buffer/{name}" for name in buffer_keys}
    times = list(map(json.loads, (finished / "times.jsonl").read_text().splitlines()))
    assert [line["step"] for line in times] == [2, 4, 6, 8, 10, 12]
    assert all(0 < before["seconds"] <= after["seconds"] for before, after in pairwise(times))
    assert "seconds" not in (finished / "metrics.jsonl").read_text(), "so that the metrics repeat exactly"


def test_the_best_checkpoint_and_the_newest_are_kept(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    script_evaluations(monkeypatch, [5.0, 9.0, 7.0, 9.0, 8.0])
    given = {"eval.every": 1, "checkpoint.every": 1, "checkpoint.keep": 1, "online.final_episodes": 2}
    result = finetuned(parent, run, **given)
    assert result.best_step == 3
    assert [folder.name for folder in checkpoint_folders(run)] == ["step-000000003", "step-000000012"]
    assert json.loads((run / "checkpoints/best.json").read_text()) == {"checkpoint": "step-000000003"}
    assert json.loads((run / "checkpoints/last.json").read_text()) == {"checkpoint": "step-000000012"}
    (compared,) = result.comparison
    for which, mean in (("best", compared.end_mean), ("last", None)):
        (found,) = evaluate(run, Acting(checkpoint=which, device="cpu"), EpisodeRequest(2)).results
        assert (found.return_mean == mean) == (which == "best"), "the comparison is of the best checkpoint"
    (before,) = evaluate(parent, Acting(checkpoint="last", device="cpu"), EpisodeRequest(2)).results
    assert compared.start_mean == before.return_mean


@pytest.mark.usefixtures("recording")
def test_a_run_that_never_improved_ends_where_it_began(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_evaluations(monkeypatch, [5.0, 4.0, 5.0, 3.0, 2.0])
    result = finetuned(parent, tmp_path / "run", **{"eval.every": 1, "online.final_episodes": 5})
    (compared,) = result.comparison
    assert result.best_step == 0
    assert (compared.difference_mean, compared.difference_ci95) == (0.0, (0.0, 0.0))
    assert_equal(weights_of(tmp_path / "run", "best"), weights_of(parent))
    with pytest.raises(AssertionError):
        assert_equal(weights_of(tmp_path / "run", "last"), weights_of(parent))


def test_the_comparison_is_on_seeds_that_selected_nothing(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, seeds = rollout.roll_out, []

    def roll_out(*arguments: Any, **settings: Any) -> list[Episode]:
        seeds.append([start.seed for start in arguments[2]])
        return plain(*arguments, **settings)

    monkeypatch.setattr(finetuning, "roll_out", roll_out)
    given = {"eval.num_episodes": 3, "online.final_episodes": 5, "online.iterations": 1}
    finetuned(parent, tmp_path / "run", **given)
    selection = [SELECTION_SEED + i for i in range(3)]
    assert seeds == [[0, 1, 2, 3, 4], selection, selection, [0, 1, 2, 3, 4]]
    seeds.clear()
    result = finetuned(parent, tmp_path / "without", **given | {"online.final_episodes": 0})
    assert seeds == [selection, selection]
    assert result.comparison == []


@pytest.mark.usefixtures("recording")
def test_episodes_are_compared_in_pairs(parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    returns = iter([[[0.0, 100.0, 50.0, 0.0, 100.0]], [[11.0, 109.0, 60.0, 9.0, 111.0]]])
    monkeypatch.setattr(Evaluations, "fresh_returns", lambda self: next(returns))
    given = {"online.iterations": 1, "online.final_episodes": 5}
    (compared,) = finetuned(parent, tmp_path / "run", **given).comparison
    assert (compared.start_mean, compared.end_mean, compared.num_episodes) == (50.0, 60.0, 5)
    assert compared.difference_mean == pytest.approx(10.0)
    assert compared.difference_ci95 == pytest.approx((10 - 1.2417, 10 + 1.2417), abs=1e-3), "Student's t of five"
    assert compared.start_ci95[1] - compared.start_ci95[0] > 50, "far wider than that of the pairs"


# --- the collapse guard -----------------------------------------------------------------------------------------------


class Notes(Silence):
    """Keep what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.usefixtures("recording")
@pytest.mark.parametrize(
    ("low", "returns", "num_iterations"),
    [
        (0.0, [1000.0, 950.0, 899.0, 1200.0, 1200.0], 2),
        (0.0, [1000.0, 2000.0, 901.0, 1000.0, 900.0], 4),
        (-300.0, [-100.0, -119.0, -121.0, 0.0, 0.0], 2),
        (-300.0, [-100.0, -110.0, -119.0, 50.0, -119.0], 4),
        (18.0, [2.0, 2.0, 1.0, 2.0, 3.0], 4),
        (18.0, [2.0, 1.0, 30.0, 2.0, 1.0], 4),
    ],
    ids=["falls", "stays", "falls below zero", "stays below zero", "starts below random", "starts there and rises"],
)
def test_a_run_stops_when_the_policy_collapses(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, low: float, returns: list[float], num_iterations: int
) -> None:
    """A tenth of what the first evaluation was above a random policy's return may be lost."""
    run, listener = tmp_path / "run", Notes()
    script_evaluations(monkeypatch, returns)
    for module in (finetuning, online):
        monkeypatch.setattr(module, "random_return", lambda config, trajectories: low)
    given = {"online.collapse": 0.9, "eval.every": 1, "online.updates_per_rollout": 1}
    result = finetuned(parent, run, listener, **given)
    assert (result.iterations, result.collapsed) == (num_iterations, num_iterations < 4)
    said = [text for text in listener.said if text.startswith("stopping")]
    expected = f"stopping: the mean return fell from {returns[0]:.0f} to {returns[2]:.0f}"
    assert said == ([expected] if result.collapsed else [])
    assert state_of(run)["progress"]["collapsed"] == result.collapsed
    assert state_of(run, "best")["step"] == result.best_step, "the best is kept"


@pytest.mark.usefixtures("recording")
def test_without_the_guard_a_collapse_changes_nothing(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_evaluations(monkeypatch, [1000.0, 1.0, -50.0, 2.0, 0.0])
    result = finetuned(parent, tmp_path / "run", **{"eval.every": 1, "online.updates_per_rollout": 1})
    assert (result.iterations, result.collapsed) == (4, False)


# --- what is taken over from the parent -------------------------------------------------------------------------------


@pytest.fixture
def first_state(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return a dictionary that gets the learner's state before its first update, and `rates`, those of all updates."""
    seen: dict[str, Any] = {"rates": []}
    plain = ODTLearner.update

    def update(self: ODTLearner, step: int) -> dict[str, Tensor]:
        if not seen["rates"]:
            seen["tensors"] = {name: tensor.clone() for name, tensor in self.state_tensors().items()}
        metrics = plain(self, step)
        seen["rates"].append(self.optimizer.param_groups[0]["lr"])
        return metrics

    monkeypatch.setattr(ODTLearner, "update", update)
    return seen


def optimizer_of(run: Path) -> dict[str, Tensor]:
    """Return moments and temperature."""
    tensors = load_file(choose_checkpoint(run, "last") / "optimizer.safetensors")
    return {name: tensor for name, tensor in tensors.items() if name.startswith(("exp_avg", "step/", "temperature/"))}


def test_schedule_moments_and_temperature_are_carried(
    parent: Path, tmp_path: Path, first_state: dict[str, Any]
) -> None:
    finetuned(parent, tmp_path / "run", **{"online.iterations": 1})
    expected = optimizer_of(parent)
    assert len(expected) > 20
    assert expected["temperature/log"].item() != pytest.approx(math.log(0.1), rel=1e-6), "it has moved"
    assert_equal({name: first_state["tensors"][name] for name in expected}, expected)
    rates = [NOMINAL_RATE * (NUM_PARENT_STEPS + 1 + i) / WARMUP_STEPS for i in range(3)]
    assert first_state["rates"] == pytest.approx(rates)


def test_schedule_moments_and_temperature_are_reset(parent: Path, tmp_path: Path, first_state: dict[str, Any]) -> None:
    finetuned(parent, tmp_path / "run", **{"online.iterations": 1, "online.optimizer_state": "reset"})
    fresh = {name for name in first_state["tensors"] if name.startswith(("exp_avg", "step/", "temperature/"))}
    assert fresh == {"temperature/log"}
    assert first_state["tensors"]["temperature/log"].item() == pytest.approx(math.log(0.1))
    assert first_state["rates"] == pytest.approx([NOMINAL_RATE * (1 + i) / WARMUP_STEPS for i in range(3)])


@pytest.mark.parametrize(("choice", "expected"), [("carry", 0.5001e-3), ("reset", 1e-7)])
def test_half_way_through_a_warm_up_the_rate_is_half(
    parent: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first_state: dict[str, Any],
    choice: str,
    expected: float,
) -> None:
    plain = finetuning.parent_checkpoint

    def parent_checkpoint(*arguments: Any) -> Any:
        checkpoint = plain(*arguments)
        return dataclasses.replace(checkpoint, state=checkpoint.state | {"step": 5000})

    monkeypatch.setattr(finetuning, "parent_checkpoint", parent_checkpoint)
    given = {"optim.warmup_steps": 10_000, "online.optimizer_state": choice, "online.iterations": 1}
    finetuned(parent, tmp_path / "run", **given)
    assert first_state["rates"][0] == pytest.approx(expected)


def test_a_rate_that_fell_goes_on_at_a_third(parent: Path, tmp_path: Path) -> None:
    fell = copy_run(parent, tmp_path / "fell")
    config = fell / "config.toml"
    config.write_text(config.read_text().replace('schedule = "constant"', 'schedule = "cosine"'))
    for run, given, schedule, expected in (
        (parent, {}, "constant", 1.0),
        (fell, {}, "cosine", 1 / 3),
        (fell, {"optim.learning_rate": 0.5}, "cosine", 500),
    ):
        optim = prepare_finetuning(run, "last", given)[0].optim
        assert (optim.schedule, optim.learning_rate) == (schedule, pytest.approx(expected * NOMINAL_RATE))


def test_a_rate_falls_with_the_used_budget(parent: Path, tmp_path: Path, first_state: dict[str, Any]) -> None:
    given = {"optim.schedule": "cosine", "optim.warmup_steps": 0, "online.iterations": 2, "online.environment_steps": 0}
    finetuned(parent, tmp_path / "run", **given)
    shares = [rate / NOMINAL_RATE for rate in first_state["rates"]]
    assert shares[0] == pytest.approx(0.55), "half of the iterations are under way"
    assert shares[-1] == pytest.approx(0.1), "the last one"


def test_a_finetuned_run_can_be_finetuned(finished: Path, tmp_path: Path, first_state: dict[str, Any]) -> None:
    run = tmp_path / "run"
    result = finetuned(finished, run, **{"online.iterations": 2})
    assert (result.parent, result.steps, result.iterations) == (str(finished.resolve()), 6, 2)
    assert state_of(run, "last")["parent"]["checkpoint"] == "step-000000012"
    assert_equal({name: first_state["tensors"][name] for name in optimizer_of(finished)}, optimizer_of(finished))
    steps_before = NUM_PARENT_STEPS + 12  # of pretraining and the first finetuning: the warm-up is over
    assert first_state["rates"] == pytest.approx([NOMINAL_RATE] * 6)
    assert first_state["tensors"]["step_offset"] == steps_before
    assert state_of(run)["buffer"] == [*state_of(finished, "0")["buffer"][2:], "online/0", "online/1"]


def test_the_parents_settings_are_inherited_and_can_be_changed(parent: Path, tmp_path: Path) -> None:
    inherited = document("finetune", parent, "--dry-run")["config"]
    assert inherited["model"]["embed_dim"] == 16
    assert inherited["model"]["acting_context"] == 2
    assert inherited["data"]["dataset"] == str(parent.parent / "data.hdf5")
    assert (inherited["task"], inherited["train"]["batch_size"]) == ("Hopper-v5", 8)
    assert (inherited["optim"]["warmup_steps"], inherited["optim"]["schedule"]) == (WARMUP_STEPS, "constant")
    assert (inherited["eval"]["targets"], inherited["eval"]["num_episodes"]) == ([TARGET], 1)
    assert inherited["online"]["checkpoint"] == choose_checkpoint(parent, "best").name
    flags = ("--target", "70,50", "--online-target", "90", "--seed", "3", "--checkpoint", "last")
    settings = {"optim.learning_rate": 0.5, "entropy.mode": "fixed", "model.acting_context": 3, "model.dropout": 0.0}
    changed = document("finetune", parent, "--dry-run", *flags, *as_flags(settings))["config"]
    assert (changed["optim"]["learning_rate"], changed["entropy"]["mode"]) == (0.5, "fixed")
    assert (changed["model"]["acting_context"], changed["train"]["seed"]) == (3, 3)
    assert (changed["eval"]["targets"], changed["online"]["targets"]) == ([70.0, 50.0], [90.0])
    assert changed["online"]["checkpoint"] == "step-000000012"
    assert not (tmp_path / "home" / "runs").exists(), "a dry run leaves nothing"


# --- what is refused --------------------------------------------------------------------------------------------------


def refusal(*arguments: Any) -> tuple[int, str, str]:
    """Run a command that is refused; return exit code, message and hint."""
    result = gq("finetune", *arguments)
    assert result.stdout == ""
    *_, error, hint = result.stderr.splitlines()
    assert error.startswith("error: "), result.stderr
    assert hint.startswith("hint: ")
    return result.exit_code, error.removeprefix("error: "), hint.removeprefix("hint: ")


def test_a_parent_without_a_checkpoint_is_refused(parent: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(parent / "config.toml", run)
    assert refusal(run) == (2, f"{run} has no checkpoint yet", f"go on training: gq train odt --out {run} --resume")


def test_a_parent_that_is_not_there_is_refused(parent: Path) -> None:
    code, message, hint = refusal("nothing")
    assert (code, message) == (2, "there is no run nothing")
    assert refusal("--latest")[::2] == (2, "train one: gq train odt")
    code, message, hint = refusal(parent, "--checkpoint", "7")
    assert (code, message) == (2, "parent has no checkpoint 7")
    assert "12" in hint


def test_a_parent_of_another_algorithm_is_refused(parent: Path, tmp_path: Path) -> None:
    flags = as_flags({**SETTINGS, "train.steps": 1, "eval.every": 0})
    data = parent.parent / "data.hdf5"
    assert gq("train", "dt", "--dataset", data, "--out", tmp_path / "dt", *flags).exit_code == 0
    assert refusal(tmp_path / "dt") == (2, "dt is a dt run", "finetune one of gq train odt")


def test_other_data_than_the_parents_is_refused(parent: Path, tmp_path: Path) -> None:
    other, run = write_hopper_file(tmp_path / "other.hdf5", seed=1), tmp_path / "run"
    code, message, hint = refusal(parent, "--dataset", other, "--out", run)
    assert code == 1
    assert "is not the data that" in message
    assert hint == "restore the file, or pretrain again"
    assert not run.exists(), "a refused run leaves no folder"


def test_the_parents_data_can_lie_elsewhere_but_must_be_there(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved, orphan = tmp_path / "moved.hdf5", copy_run(parent, tmp_path / "orphan")
    shutil.copy(parent.parent / "data.hdf5", moved)
    config = orphan / "config.toml"
    config.write_text(config.read_text().replace(str(parent.parent / "data.hdf5"), str(tmp_path / "gone.hdf5")))
    code, message, _ = refusal(orphan)
    assert code == 2
    assert str(tmp_path / "gone.hdf5") in message
    flags = as_flags({**ONLINE, "online.iterations": 1})
    monkeypatch.chdir(tmp_path)
    result = gq("finetune", orphan, "--dataset", moved.name, "--out", tmp_path / "run", "-q", *flags)
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'run'}\n"), result.stderr
    assert f'dataset = "{moved}"' in (tmp_path / "run" / "config.toml").read_text(), "so that it is found from anywhere"


def test_a_parent_that_vanished_before_the_first_checkpoint_is_refused(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orphan, run = copy_run(parent, tmp_path / "orphan"), tmp_path / "run"

    def vanish(_: Session[Any], **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Session, "training", vanish)
        with pytest.raises(KeyboardInterrupt):
            finetuned(orphan, run)
    shutil.rmtree(orphan)
    code, message, hint = refusal("--out", run, "--resume")
    assert (code, message) == (1, f"the parent's checkpoint {orphan / 'checkpoints' / 'step-000000012'} is gone")
    assert hint == "start again from another run or checkpoint"


@pytest.mark.parametrize(
    ("key", "value", "parents"),
    [
        ("model.embed_dim", "32", "16"),
        ("model.distribution", "gaussian", "tanh"),
        ("data.return_scale", "5.0", "10.0"),
        ("task", "Walker2d-v5", "Hopper-v5"),
    ],
)
def test_what_comes_with_the_parents_weights_cannot_change(
    parent: Path, tmp_path: Path, key: str, value: str, parents: str
) -> None:
    run = tmp_path / "run"
    code, message, hint = refusal(parent, "--set", f"{key}={value}", "--out", run)
    assert (code, message) == (2, f"{key} = {value} does not fit the parent's weights, which have {parents}")
    assert hint == f"leave it, or pretrain with it: gq train odt --set {key}={value}"
    assert not run.exists()


def test_settings_of_pretraining_are_unknown(parent: Path) -> None:
    assert refusal(parent, "--set", "train.steps=3")[:2] == (2, "there is no setting train.steps")


def test_a_folder_that_holds_a_run_is_refused(finished: Path, parent: Path) -> None:
    code, message, hint = refusal(parent, "--out", finished)
    assert (code, message) == (2, f"{finished} is not empty")
    assert f"gq finetune --out {finished} --resume" in hint


def test_a_second_process_is_refused(parent: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    finetuned(parent, run, **{"online.iterations": 1})
    before = (run / "metrics.jsonl").read_bytes()
    with lock_run(run):
        code, message, hint = refusal("--out", run, "--resume", "--iterations", "2")
    assert (code, message) == (1, f"another process is training {run}")
    assert hint == "wait for it, or choose another --out"
    assert (run / "metrics.jsonl").read_bytes() == before
    assert gq("finetune", "--out", run, "--resume", "--iterations", "2", "-q").exit_code == 0


@pytest.mark.parametrize("which", ["parent", "finished"])
def test_online_runs_are_reported_with_a_film(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run = shutil.copytree(request.getfixturevalue(which), tmp_path / "run")
    result = gq("report", run, "--video", "--episodes", "2", "--json")
    assert result.exit_code == 0, result.stderr
    (document,) = json.loads(result.stdout)["runs"]
    assert Path(document["video"]).parent == run / "videos"
    assert {len(measure["episodes"]) for measure in document["best"]["measures"]} == {2}
