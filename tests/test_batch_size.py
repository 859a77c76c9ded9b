"""`--batch-size auto` measures, chooses, and leaves no trace in the run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from commandline import gq
from gq import presets
from gq.datasets.loading import load_dataset
from gq.errors import GqError, UsageError
from gq.runs.checkpoint import choose_checkpoint
from gq.training import batch_size
from gq.training.batch_size import Trial, choose_batch_size, is_saturated, smallest_fast, try_sizes
from tiny import SETTINGS, as_flags

SHAPES = {key: value for key, value in SETTINGS.items() if key != "train.batch_size"}


def trials_of(speeds: dict[int, float]) -> list[Trial]:
    return [Trial(size, size / speed, size / speed) for size, speed in speeds.items()]


def sizes_tried(speeds: dict[int, float], data: Path, first: int) -> tuple[list[int], str]:
    config = presets.dt("1m").replace({"data.dataset": str(data), "train.batch_size": first})
    known = {trial.batch_size: trial for trial in trials_of(speeds)}
    trials, limit = try_sizes(known.get, config, load_dataset(str(data)))
    return [trial.batch_size for trial in trials], limit


def test_the_smallest_size_within_five_per_cent_of_the_best_is_taken() -> None:
    assert smallest_fast(trials_of({64: 100, 128: 180, 256: 196, 512: 200})).batch_size == 256
    assert smallest_fast(trials_of({64: 191, 128: 180, 256: 200})).batch_size == 64
    assert smallest_fast(trials_of({64: 189, 128: 180, 256: 200})).batch_size == 256


def test_larger_sizes_are_tried_until_two_doublings_gain_nothing() -> None:
    assert not is_saturated(trials_of({64: 100, 128: 100}))
    assert is_saturated(trials_of({64: 100, 128: 101, 256: 102}))
    assert not is_saturated(trials_of({64: 100, 128: 101, 256: 110}))


def test_what_ends_the_trials_is_said(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sizes_tried({8: 100, 16: 101, 32: 102, 64: 103}, data, 8) == ([8, 16, 32], "speed")
    assert sizes_tried({8: 100, 16: 200}, data, 8) == ([8, 16], "memory")
    assert sizes_tried({64: 100, 128: 200}, data, 64) == ([64, 128], "data"), "195 transitions have no 256 windows"
    assert sizes_tried({8: 100}, data, 64) == ([8], "memory"), "less than the recipe's, where that does not fit"
    assert sizes_tried({}, data, 64) == ([], "memory")
    monkeypatch.setattr(batch_size, "BUDGET_S", 0.0)
    assert sizes_tried({8: 100, 16: 200}, data, 8) == ([8], "time")


@pytest.mark.parametrize("algo", ["dt", "bc", "odt"])
def test_the_run_is_bit_equal_to_one_with_that_size_by_hand(
    algo: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_size, "TRIAL_S", 0.0)
    monkeypatch.setattr(
        batch_size, "smallest_fast", lambda trials: next(trial for trial in trials if trial.batch_size == 16)
    )
    shapes = {"model.dropout": 0.2, "train.steps": 6, "train.log_every": 2, "eval.every": 0}
    if algo != "bc":
        shapes |= {key: value for key, value in SHAPES.items() if key.startswith("model.") and key not in shapes}
        shapes |= {"model.acting_context": 2, "model.num_heads": 1} if algo == "odt" else {}
    monkeypatch.setattr(batch_size, "BUDGET_S", 60.0)
    common = ("train", algo, "--dataset", data, *as_flags(shapes))
    start = ("--config", recipe(tmp_path))  # from 8 on
    measured = gq(*common, *start, "--out", tmp_path / "auto", "--batch-size", "auto")
    assert measured.exit_code == 0, measured.stderr
    assert "batch size 16; windows/s: " in measured.stderr
    assert "6 updates take about 0:00:" in measured.stderr
    by_hand = gq(*common, *start, "--out", tmp_path / "hand", "--batch-size", "16")
    assert by_hand.exit_code == 0, by_hand.stderr
    ours, theirs = (weights(tmp_path / name) for name in ("auto", "hand"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for name in ("metrics.jsonl", "config.toml"):
        assert (tmp_path / "auto" / name).read_text() == (tmp_path / "hand" / name).read_text()


def recipe(folder: Path) -> Path:
    path = folder / "recipe.toml"
    path.write_text("[train]\nbatch_size = 8\n")
    return path


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(choose_checkpoint(run, "last") / "model.safetensors")


def test_random_numbers_stay_where_they_were(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "TRIAL_S", 0.0)
    config = presets.dt("1m").replace({"data.dataset": str(data), "task": "Hopper-v5", **SETTINGS})
    torch.manual_seed(5)
    before = torch.get_rng_state()
    choice = choose_batch_size(config, load_dataset(str(data)))
    assert torch.equal(torch.get_rng_state(), before)
    assert choice.batch_size in [trial.batch_size for trial in choice.trials]
    chosen = next(trial for trial in choice.trials if trial.batch_size == choice.batch_size)
    assert choice.training_seconds == 12 * chosen.mean_seconds >= 12 * chosen.fastest_seconds > 0


def test_a_batch_that_would_fill_the_memory_is_not_tried(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = presets.dt("1m").replace({"data.dataset": str(data), "task": "Hopper-v5", **SETTINGS})
    trajectories = load_dataset(str(data))
    monkeypatch.setattr(batch_size, "TRIAL_S", 0.0)
    monkeypatch.setattr(batch_size, "available_memory_bytes", lambda: 0)
    with pytest.raises(GqError, match="not even one window fits into the memory of cpu"):
        choose_batch_size(config, trajectories)


def test_several_processes_do_not_measure_each_other(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = presets.dt("1m").replace({"data.dataset": str(data), "task": "Hopper-v5", **SETTINGS})
    with pytest.raises(UsageError, match="measures one process, not several"):
        choose_batch_size(config, load_dataset(str(data)))


def test_a_dry_run_says_which_size_it_would_be(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "TRIAL_S", 0.0)
    result = gq("train", "dt", "--dataset", data, *as_flags(SHAPES), "--batch-size", "auto", "--dry-run", "--json")
    assert result.exit_code == 0, result.stderr
    printed: dict[str, Any] = json.loads(result.stdout)
    assert f"batch size {printed['config']['train']['batch_size']}; windows/s" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "many"], "--batch-size many is not a number"),
        (["--batch-size", "-4"], "train.batch_size = -4"),
        (["--batch-size", "0"], "train.batch_size = 0"),
        (["--batch-size", "auto", "--resume"], "a run that goes on keeps its batch size"),
    ],
)
def test_what_is_no_batch_size(arguments: list[str], message: str, data: Path) -> None:
    result = gq("train", "dt", "--dataset", data, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
