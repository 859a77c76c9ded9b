"""The benchmarks run, at their smallest; their figures mean nothing here, only that they are there and add up."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import gq
from gq.data.reading import read_trajectories
from tiny import write_hopper_file

FOLDER = Path(__file__).parents[1] / "benchmarks"
Tables = list[dict[str, Any]]
Run = Callable[..., Tables]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    """Return what runs a script in this process, its contenders in theirs, and returns its tables."""
    num_threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("PYTHONPATH", str(Path(gq.__file__).parents[1]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which the scripts set, too: then it is put back

    def call(name: str, arguments: str, *more: str) -> Tables:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments.split(), *more, "--json", "found.json"])
        importlib.import_module(name).main()
        document = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
        assert document["command"][:2] == ["python", f"benchmarks/{name}.py"]
        assert document["machine"]["versions"]["torch"]
        tables: Tables = document["tables"]
        return tables

    yield call
    torch.set_num_threads(num_threads)


def test_loading_has_a_row_for_each_contender(run: Run) -> None:
    options = "--rows 3000 --rounds 1 --batches 2 --batch-size 4 --context 5 --train 1m --contenders gq published"
    windows, updates = run("loading", options)
    ours, theirs = windows["rows"]
    assert (ours["contender"], theirs["contender"]) == ("gq", "published")
    assert ours["as fast"] == pytest.approx(ours["windows/CPU s"] / theirs["windows/CPU s"])
    assert theirs["as fast"] == 1
    assert theirs["hash s"] is None
    assert [row["size"] for row in updates["rows"]] == ["1m"]


@pytest.mark.usefixtures("run")
def test_windows_of_the_loops_hold_what_follows(tmp_path: Path) -> None:
    loading = importlib.import_module("loading")
    path = write_hopper_file(tmp_path / "data.hdf5", num_episodes=3, length=8)
    trajectories, arrays = read_trajectories(path), loading.read_arrays(str(path))
    for prepared in (False, True):
        loop = loading.Loop(arrays, 5, prepared=prepared)
        _, actions, returns, timesteps, valid = loop.sample(20)
        known = {action.tobytes(): row for row, action in enumerate(trajectories.actions)}
        rows = [known[action.numpy().tobytes()] for action in actions[valid]]
        assert returns[valid].numpy() == pytest.approx(trajectories.returns_to_go()[rows], rel=1e-5)
        assert timesteps[valid].tolist() == trajectories.timesteps()[rows].tolist()
        assert not valid[:, 0].all()
        assert valid[:, -1].all()


def test_scaling_has_a_row_for_each_shape(run: Run) -> None:
    (table,) = run("scaling", "--batches 2 --contexts --sizes --rounds 1")
    (row,) = table["rows"]
    assert (row["size"], row["batch"], row["K"]) == ("1m", 2, 20)
    assert row["tokens/s"] == pytest.approx(120 / (row["ms"] / 1e3))
    assert row["as fast"] == pytest.approx(row["plain ms"] / row["ms"])


def test_utilisation_finds_no_waits_in_updates_and_some_where_they_are(run: Run) -> None:
    (table,) = run("utilisation", "--sizes 1m --batch-size 2 --context 3 --rounds 1")
    (row,) = table["rows"]
    assert row["waits"] == 0
    assert row["MFU"] > 0  # of a peak that was measured beside whatever else the machine did
    utilisation = importlib.import_module("utilisation")
    assert utilisation.count_waits(lambda: torch.ones(1).item(), "cpu") == utilisation.NUM_PROFILED


def test_a_speedrun_ends_at_the_goal_and_keeps_a_log(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speedrun = importlib.import_module("speedrun")
    data = read_trajectories(write_hopper_file(tmp_path / "data.hdf5", num_episodes=3, length=30))
    monkeypatch.setattr(speedrun, "load", lambda: data)
    monkeypatch.setattr(speedrun, "GOAL", 1.0)  # any episode returns that
    recipe = speedrun.Recipe("paper", 5, 2, 1)
    monkeypatch.setattr(speedrun, "RECIPES", {"cpu": recipe})
    evaluations, summary = run("speedrun", "--episodes 1 --contenders", "plain", "gq gpt2")
    lines = [json.loads(line) for line in (tmp_path / "speedrun.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines == [{"recipe": "cpu", **row} for row in evaluations["rows"]]
    assert [row["contender"] for row in lines] == ["plain", "gq gpt2"] * 3, "one evaluation alone is not enough"
    ours = summary["rows"][1]
    assert (ours["updates"], ours["at 1"]) == (4, 4)
    assert ours["as fast"] == pytest.approx(summary["rows"][0]["s to 1"] / ours["s to 1"])


def test_a_contender_that_is_not_installed_is_named(run: Run, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    options = "--models paper --rounds 1 --turn 1 --contenders"
    (table,) = run("training", f"{options} d3rlpy", "gq gpt2", "--peers-python", str(python))
    assert [row["contender"] for row in table["rows"]] == ["gq gpt2"]
    assert any("d3rlpy was not measured" in note for note in table["notes"])
